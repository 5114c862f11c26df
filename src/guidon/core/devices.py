"""Which device to run on."""

import os

import torch

from .errors import InputError


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA when there is one, under torchrun the rank's own, else the CPU; what is not there is refused."""
    if name == "auto":
        own = os.environ.get("LOCAL_RANK", "")
        several = own.isdecimal() and int(own) < torch.cuda.device_count()
        return torch.device((f"cuda:{own}" if several else "cuda") if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is not a device; valid: auto, cpu, cuda, cuda:N, mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name!r} is not one that Guidon runs on; valid: auto, cpu, cuda, cuda:N, mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} was asked for but this machine has no CUDA: use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {name!r} was asked for but this machine has no MPS: use cpu or auto")
    return device
