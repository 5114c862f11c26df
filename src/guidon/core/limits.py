"""What this machine has, memory and disk, and the refusal of work that needs more than that.

The numbers come from the kernel, so no other package is needed. Estimates are lower bounds: refused work needs more
than is free now, without swap. Work that is let through may still run out of memory.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import InputError, setting

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
UNLIMITED = sys.maxsize  # more than any machine has
_OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot|failed to) allocate|not enough memory|bad_alloc|alloc_failed|"
    "could not create a (primitive$|memory)",  # oneDNN
    re.IGNORECASE,
)
"""What the messages of failed allocations say."""


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that this process can still allocate on a device. Swap does not count.

    On the CPU this is the least of what the kernel calls available, what the control groups (version 1 and 2) that hold
    this process leave, and what RLIMIT_AS and RLIMIT_DATA leave.
    """
    name = str(device)
    if name.startswith("cuda"):
        import torch

        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free blocks of torch's cache
        return torch.cuda.mem_get_info(device)[0] + held
    if name.startswith("mps"):
        import torch

        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return max(0, min(_machine_memory(), _group_memory(), _process_memory()))


def free_disk(path: Path | str) -> int:
    """Bytes that this user may still write on the disk of a path. The path need not exist yet."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:  # a filesystem that does not say
        return UNLIMITED


def require_memory(
    what: str, needed: int | float, device: torch.device | str = "cpu", *, lower: str = "", have: int | None = None
) -> None:
    """Refuse work that needs more memory than there is.

    Args:
        what: what needs it, as the subject of a sentence in the plural, such as "the latents of 5 clips".
        needed: bytes, at the least.
        device: where.
        lower: the name of the setting to lower, or an instruction such as "give fewer prompts".
        have: bytes that are free, if the caller knows them already.

    Raises:
        InputError: less is free. The message holds the estimate, what is free, and what to do.
    """
    have = available_memory(device) if have is None else have
    if needed > have:
        place = "" if str(device) == "cpu" else f" of {device}"
        raise InputError(
            f"{what} need at least {as_text(needed)} of memory, {as_text(have)}{place} are free: {_what_to_do(lower)}"
        )


def require_disk(what: str, needed: int | float, path: Path | str, *, lower: str = "") -> None:
    """Refuse output that is larger than the free part of the disk; see ``require_memory``."""
    have = free_disk(path)
    if needed > have:
        raise InputError(
            f"{what} need at least {as_text(needed)} of disk, {as_text(have)} are free at {path}: {_what_to_do(lower)}"
        )


def as_text(count: int | float) -> str:
    """A number of bytes for people, such as "65.5 TB"; 1000 EB and more is "1000 EB"."""
    for unit, size in (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1e21 else f"1000 {unit}"
    return f"{int(count)} bytes"


def as_count(count: int) -> str:
    """A number of things for people, whatever its size."""
    return f"{count:,}" if count < 10**18 else "over 10^18"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on the CPU or on a device.

    It is a MemoryError, torch's OutOfMemoryError, or a RuntimeError of torch's CPU allocator or of a library that torch
    calls. Only the message tells such a RuntimeError from others.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def attempt(work: Callable[[], T]) -> T | None:
    """What the work returns, or None if an allocation failed. The memory of the failed work is then freed."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()  # the error is gone here, and with it the frames of the call stack that held tensors
    return None


def free_memory() -> None:
    """Give memory that nothing uses any more back to the system and the device."""
    import ctypes  # not above: `guidon --help` would wait for it
    import gc

    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed
        if trim is not None:
            trim(0)
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _what_to_do(lower: str) -> str:
    if not lower:
        return "ask for less"
    return lower if " " in lower else f"lower {setting(lower)}"


def _machine_memory() -> int:
    """Bytes of memory that the kernel can give without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return _windows_memory()
    try:  # where the kernel does not say what is free: all of it
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNLIMITED


def _windows_memory() -> int:
    import ctypes

    fields = ("total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "free_extended")
    words = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), *((name, ctypes.c_ulonglong) for name in fields)]
    status: Any = type("MemoryStatus", (ctypes.Structure,), {"_fields_": words})()
    status.length = ctypes.sizeof(status)
    found = getattr(ctypes, "windll").kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # noqa: B009
    return int(status.free) if found else UNLIMITED


def _process_memory() -> int:
    """What the resource limits of this process leave of its address space and of its data."""
    try:
        import resource

        pages = [int(word) for word in Path("/proc/self/statm").read_text().split()]
    except (ImportError, OSError):
        return UNLIMITED
    page, left = os.sysconf("SC_PAGE_SIZE"), UNLIMITED
    for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            left = min(left, limit - used * page)
    return left


def _group_memory(root: Path = Path("/")) -> int:
    """What the control groups of this process leave. ``root`` is where /proc and /sys are."""
    return min((_left_in(*group) for group in _groups(root)), default=UNLIMITED)


def _groups(root: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of the memory groups that hold this process, from its own to the root; and whether version 2."""
    try:
        own = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in own:
        _, controllers, path = line.split(":", 2)
        version_2 = not controllers
        if not version_2 and "memory" not in controllers.split(","):
            continue
        for mount in mounts:
            left, _, right = mount.partition(" - ")
            kind, _, options = (*right.split(" "), "", "")[:3]
            wanted = kind == "cgroup2" if version_2 else kind == "cgroup" and "memory" in options.split(",")
            if not wanted:
                continue
            # A container sees a part of the tree: its mount shows the folders below the mount's own root.
            shown, place = left.split(" ")[3:5]
            top = root / place.lstrip("/")
            inner = path.removeprefix(shown.rstrip("/")) if path.startswith(shown) else ""
            folder = top / inner.strip("/")
            for found in (folder, *folder.parents):
                if found.is_dir():
                    yield found, version_2
                if found == top:
                    break


def _left_in(group: Path, version_2: bool) -> int:
    """What one control group leaves: its limit, less what it uses, without the file cache, which the kernel frees."""
    names = ("memory.max", "memory.current") if version_2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        limit, used = ((group / name).read_text().strip() for name in names)
        if limit == "max" or int(limit) >= 1 << 60:
            return UNLIMITED
        statistics = dict(line.split()[:2] for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return UNLIMITED
    cache = ("inactive_file", "active_file") if version_2 else ("total_inactive_file", "total_active_file")
    return int(limit) - int(used) + sum(int(statistics.get(name, 0)) for name in cache)
