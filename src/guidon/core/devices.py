"""The device to run on, and the number of CPU threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import InputError, setting


def pick_device(name: str) -> torch.device:
    """The device with a name: "auto", "cpu", "cuda", "cuda:N" or "mps".

    "auto" is CUDA if there is a CUDA device, else the CPU. Under torchrun it is the CUDA device of this rank.

    Raises:
        InputError: the name is no device, or this machine does not have it.
    """
    if name == "auto":
        own = os.environ.get("LOCAL_RANK", "")
        several = own.isdecimal() and int(own) < torch.cuda.device_count()
        return torch.device((f"cuda:{own}" if several else "cuda") if torch.cuda.is_available() else "cpu")
    asked = f"{setting('device')} {name!r}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"{asked} is not a device; valid: auto, cpu, cuda, cuda:N, mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"{asked} is not one that Guidon runs on; valid: auto, cpu, cuda, cuda:N, mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{asked} was asked for but this machine has no CUDA: use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"{asked} does not exist: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"{asked} was asked for but this machine has no MPS: use cpu or auto")
    return device


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set the number of torch's CPU threads for the block, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
