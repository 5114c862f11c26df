/*
 * Makes system calls fail, for tests of writing. Preloaded (LD_PRELOAD), it counts the calls that change something
 * below a folder, and makes one of them fail or kills the process there.
 *
 * faults_arm(folder, at, action) starts the count; at = 0 only counts. faults_count() tells how many calls there were,
 * faults_call(n) names call n (1 is the first). The environment can arm it at the start of a process instead:
 * GUIDON_FAULT_FOLDER, GUIDON_FAULT_AT, GUIDON_FAULT_ACTION.
 *
 * Actions: 1 fails with ENOSPC, 2 fails with EIO, 3 kills the process (half of a write is done before), 4 is a full
 * disk: this call and all later ones that take space fail with ENOSPC, but if this call is a write, half of it is done
 * and it returns how much that was, as a kernel does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ENOSPC_ONCE = 1, EIO_ONCE = 2, KILL = 3, DISK_FULL = 4 };
enum { HALF = -2 };
enum { MOST = 20000, LENGTH = 160 };

static char folder[PATH_MAX];
static size_t folder_length;
static long fault_at;
static int fault_action;
static atomic_long calls;
static char names[MOST][LENGTH];

void faults_arm(const char *where, long at, int action) {
    folder_length = 0;
    calls = 0;
    fault_at = at;
    fault_action = action;
    if (where != NULL && strlen(where) < sizeof folder) {
        strcpy(folder, where);
        folder_length = strlen(folder);
    }
}

long faults_count(void) { return calls; }

const char *faults_call(long number) { return number >= 1 && number <= MOST ? names[number - 1] : ""; }

__attribute__((constructor)) static void arm_from_environment(void) {
    const char *where = getenv("GUIDON_FAULT_FOLDER"), *at = getenv("GUIDON_FAULT_AT");
    const char *action = getenv("GUIDON_FAULT_ACTION");
    if (where != NULL) faults_arm(where, at ? atol(at) : 0, action ? atoi(action) : 0);
}

/* The absolute path of a file descriptor, or of a path relative to one. */
static int absolute(int descriptor, const char *path, char *found) {
    char link[64], base[PATH_MAX];
    ssize_t length;
    if (path != NULL && path[0] == '/') return snprintf(found, PATH_MAX, "%s", path) < PATH_MAX;
    if (descriptor == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, base, sizeof base - 1);
    if (length < 0) return 0;
    base[length] = 0;
    if (path == NULL) return snprintf(found, PATH_MAX, "%s", base) < PATH_MAX;
    return snprintf(found, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

/* Count a call if it is below the folder. Returns the error that it must fail with, 0 for none, -1 to
 * kill, or HALF. */
static int fault(const char *name, int takes_space, int descriptor, const char *path) {
    char where[PATH_MAX];
    int saved = errno;
    long number;
    if (folder_length == 0) return 0;
    if (!absolute(descriptor, path, where) || strncmp(where, folder, folder_length) != 0 ||
        (where[folder_length] != '/' && where[folder_length] != 0)) {
        errno = saved;
        return 0;
    }
    errno = saved;
    number = ++calls;
    if (number <= MOST) snprintf(names[number - 1], LENGTH, "%s %.120s", name, where + folder_length);
    if (fault_at == 0 || number < fault_at) return 0;
    if (fault_action == DISK_FULL) return !takes_space ? 0 : number == fault_at ? HALF : ENOSPC;
    if (number > fault_at) return 0;
    return fault_action == ENOSPC_ONCE ? ENOSPC : fault_action == EIO_ONCE ? EIO : -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define FAIL_OR(problem, call)        \
    do {                              \
        int found = (problem);        \
        if (found == -1) raise(SIGKILL); \
        if (found != 0) {             \
            errno = found == HALF ? ENOSPC : found; \
            return -1;                \
        }                             \
        return (call);                \
    } while (0)

ssize_t write(int descriptor, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (real == NULL) real = REAL(write);
    int found = fault("write", 1, descriptor, NULL);
    if (found == -1) {
        real(descriptor, data, size / 2);
        raise(SIGKILL);
    }
    if (found == HALF && size > 1) return real(descriptor, data, size / 2);
    FAIL_OR(found, real(descriptor, data, size));
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t at) {
    FAIL_OR(fault("pwrite", 1, descriptor, NULL), REAL(pwrite)(descriptor, data, size, at));
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at) {
    FAIL_OR(fault("pwrite", 1, descriptor, NULL), REAL(pwrite64)(descriptor, data, size, at));
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    int found = fault("writev", 1, descriptor, NULL);
    if ((found == HALF || found == -1) && count > 1) count = 1;
    if (found == HALF && parts[0].iov_len > 0) return REAL(writev)(descriptor, parts, count);
    FAIL_OR(found, REAL(writev)(descriptor, parts, count));
}

int fsync(int descriptor) { FAIL_OR(fault("fsync", 1, descriptor, NULL), REAL(fsync)(descriptor)); }

int fdatasync(int descriptor) { FAIL_OR(fault("fdatasync", 1, descriptor, NULL), REAL(fdatasync)(descriptor)); }

int ftruncate(int descriptor, off_t size) {
    FAIL_OR(fault("ftruncate", 0, descriptor, NULL), REAL(ftruncate)(descriptor, size));
}

int ftruncate64(int descriptor, off64_t size) {
    FAIL_OR(fault("ftruncate", 0, descriptor, NULL), REAL(ftruncate64)(descriptor, size));
}

int rename(const char *from, const char *to) {
    FAIL_OR(fault("rename", 1, AT_FDCWD, to), REAL(rename)(from, to));
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    FAIL_OR(fault("renameat", 1, to_folder, to), REAL(renameat)(from_folder, from, to_folder, to));
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
    FAIL_OR(fault("renameat2", 1, to_folder, to), REAL(renameat2)(from_folder, from, to_folder, to, flags));
}

int mkdir(const char *path, mode_t mode) { FAIL_OR(fault("mkdir", 1, AT_FDCWD, path), REAL(mkdir)(path, mode)); }

int mkdirat(int parent, const char *path, mode_t mode) {
    FAIL_OR(fault("mkdirat", 1, parent, path), REAL(mkdirat)(parent, path, mode));
}

int unlink(const char *path) { FAIL_OR(fault("unlink", 0, AT_FDCWD, path), REAL(unlink)(path)); }

int unlinkat(int parent, const char *path, int flags) {
    FAIL_OR(fault("unlinkat", 0, parent, path), REAL(unlinkat)(parent, path, flags));
}

int rmdir(const char *path) { FAIL_OR(fault("rmdir", 0, AT_FDCWD, path), REAL(rmdir)(path)); }

/* Opening counts only where it writes or creates. */
static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0; }

static int has_mode(int flags) { return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }

/* The mode that follows the flags, where there is one. */
#define READ_MODE(mode, flags)       \
    mode_t mode = 0;                 \
    if (has_mode(flags)) {           \
        va_list rest;                \
        va_start(rest, flags);       \
        mode = va_arg(rest, mode_t); \
        va_end(rest);                \
    }

#define OPEN(name)                                                                                    \
    int name(const char *path, int flags, ...) {                                                      \
        READ_MODE(mode, flags)                                                                        \
        if (!changes(flags)) return REAL(name)(path, flags, mode);                                    \
        FAIL_OR(fault("open", (flags & O_CREAT) != 0, AT_FDCWD, path), REAL(name)(path, flags, mode)); \
    }

#define OPENAT(name)                                                                                          \
    int name(int parent, const char *path, int flags, ...) {                                                  \
        READ_MODE(mode, flags)                                                                                \
        if (!changes(flags)) return REAL(name)(parent, path, flags, mode);                                    \
        FAIL_OR(fault("open", (flags & O_CREAT) != 0, parent, path), REAL(name)(parent, path, flags, mode));  \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                              \
    FILE *name(const char *path, const char *mode) {                             \
        int found = mode[0] == 'r' && strchr(mode, '+') == NULL ? 0 : fault("open", 1, AT_FDCWD, path); \
        if (found == -1) raise(SIGKILL);                                         \
        if (found != 0) {                                                        \
            errno = found == HALF ? ENOSPC : found;                              \
            return NULL;                                                         \
        }                                                                        \
        return REAL(name)(path, mode);                                           \
    }

FOPEN(fopen)
FOPEN(fopen64)
