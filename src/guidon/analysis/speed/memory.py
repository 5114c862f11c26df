"""The most memory that a piece of work takes, as the device or the operating system counts it."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(work: Callable[[], object], device: torch.device) -> int | None:
    """Do a piece of work once, and give the most bytes that it takes.

    On CUDA it is the peak of torch's allocator, with weights and all else that is there. On the CPU it is how far the
    memory of this process grows, with that inside operators, which ``count`` does not see; pages that the allocator
    kept from before are given back first. It needs Linux.

    Returns:
        Bytes; None where nothing tells.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        _RESET.write_text("5")  # the peak is what is resident now
        before = _resident("VmRSS")
        work()
        return max(0, _resident("VmHWM") - before)
    except OSError:  # a system that hides it
        return None


def _resident(name: str) -> int:
    """A number of bytes of proc_pid_status(5): what is resident now (VmRSS), or was at most (VmHWM)."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")
