import os
import resource
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from forks import in_fork
from guidon.core import limits
from guidon.core.errors import InputError
from guidon.core.limits import (
    UNLIMITED,
    as_text,
    attempt,
    available_memory,
    free_disk,
    is_out_of_memory,
    require_disk,
    require_memory,
)

GB = 10**9


def test_available_memory_is_no_more_than_the_machine_has():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= physical
    assert available_memory(torch.device("cpu")) <= physical


def test_an_address_space_limit_counts():
    def work():
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = taken + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        left = available_memory()
        assert left == pytest.approx(1 << 30, rel=0.05)
        block = bytearray(400 << 20)
        assert left - available_memory() == pytest.approx(len(block), rel=0.05)

    in_fork(work)


def test_without_a_limit_the_process_has_no_limit_of_its_own():
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        assert limits._process_memory() == UNLIMITED


def write_groups(root, own, mounts, files):
    for name, text in {"proc/self/cgroup": own, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "35 29 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def group_2(place, limit, current, inactive=0):
    return {
        f"{place}/memory.max": f"{limit}\n",
        f"{place}/memory.current": f"{current}\n",
        f"{place}/memory.stat": f"anon 5\ninactive_file {inactive}\nactive_file 0\n",
    }


def group_1(place, limit, usage, inactive=0):
    return {
        f"{place}/memory.limit_in_bytes": f"{limit}\n",
        f"{place}/memory.usage_in_bytes": f"{usage}\n",
        f"{place}/memory.stat": f"cache 7\ntotal_inactive_file {inactive}\ntotal_active_file 0\n",
    }


def test_version_2_groups_leave_their_limit_less_what_is_used_and_cannot_be_freed(tmp_path):
    write_groups(tmp_path, "0::/user/me\n", V2.format(root="/"), group_2("sys/fs/cgroup/user/me", 8 * GB, 3 * GB, GB))
    assert limits._group_memory(tmp_path) == 6 * GB


def test_the_limit_of_a_parent_group_counts(tmp_path):
    files = group_2("sys/fs/cgroup/user/me", "max", GB) | group_2("sys/fs/cgroup/user", 4 * GB, 3 * GB)
    write_groups(tmp_path, "0::/user/me\n", V2.format(root="/"), files)
    assert limits._group_memory(tmp_path) == GB


@pytest.mark.parametrize(("own", "shown"), [("0::/\n", "/"), ("0::/docker/abc\n", "/docker/abc")])
def test_a_container_sees_its_own_group_at_the_mount(tmp_path, own, shown):
    write_groups(tmp_path, own, V2.format(root=shown), group_2("sys/fs/cgroup", 2 * GB, GB))
    assert limits._group_memory(tmp_path) == GB


def test_version_1_groups_count(tmp_path):
    files = group_1("sys/fs/cgroup/memory/box", 5 * GB, 4 * GB, GB)
    write_groups(tmp_path, "4:cpu,cpuacct:/box\n3:memory:/box\n0::/\n", V1.format(root="/"), files)
    assert limits._group_memory(tmp_path) == 2 * GB


def test_no_limit_is_no_limit(tmp_path):
    files = group_1("sys/fs/cgroup/memory", 9223372036854771712, GB)
    write_groups(tmp_path, "3:memory:/\n", V1.format(root="/"), files)
    assert limits._group_memory(tmp_path) == UNLIMITED
    assert limits._group_memory(tmp_path / "nothing") == UNLIMITED


def test_a_group_that_cannot_be_read_is_no_limit(tmp_path):
    files = group_2("sys/fs/cgroup", "much", "more")
    write_groups(tmp_path, "0::/\n", V2.format(root="/"), files)
    assert limits._group_memory(tmp_path) == UNLIMITED


def test_free_disk_of_a_path_that_is_not_there_yet(tmp_path):
    assert free_disk(tmp_path / "not" / "yet") > 0


def test_more_memory_than_there_is_is_refused_with_the_estimate_and_what_to_lower():
    with pytest.raises(InputError, match=r"the latents of 9 clips need at least 1\.5 EB of memory, .* lower size"):
        require_memory("the latents of 9 clips", int(1.5e18), lower="size")
    with pytest.raises(InputError, match=r"2 GB of memory, 1 GB of cuda:0 are free: give fewer prompts"):
        require_memory("frames", 2 * GB, "cuda:0", have=GB, lower="give fewer prompts")
    require_memory("frames", GB, have=GB)
    require_memory("frames", 1000)


def test_more_disk_than_there_is_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cells need at least 3 EB of disk, .* are free at .*: ask for less"):
        require_disk("cells", 3e18, tmp_path)
    require_disk("cells", 1, tmp_path)


def test_a_machine_that_runs_out_says_so_in_many_words():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    with pytest.raises(MemoryError) as real:
        np.empty(1 << 60, np.uint8)
    assert is_out_of_memory(real.value)
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (65.5e12, "65.5 TB"), (10**40, "1000 EB")]
)
def test_bytes_for_people(count, text):
    assert as_text(count) == text


def test_an_attempt_frees_what_the_failed_work_held():
    held = []

    class Big:
        def __init__(self):
            held.append(weakref.ref(self))

    def work():
        big = Big()
        raise MemoryError(big)

    def other_fault():
        raise RuntimeError("shapes do not match")

    assert attempt(work) is None
    assert held[0]() is None
    assert attempt(lambda: 3) == 3
    with pytest.raises(RuntimeError, match="shapes"):
        attempt(other_fault)
