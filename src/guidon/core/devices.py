"""The device to run on, the precision to compute in, and the number of CPU threads."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from .errors import InputError, setting

if TYPE_CHECKING:
    import torch

DtypeName = Literal["fp32", "bf16", "fp16"]
"""The precisions in which networks run."""
DecodeDtype = Literal["fp32", "bf16"]
"""The precisions in which autoencoders decode."""
_OF_TORCH: dict[DtypeName, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def torch_dtype(name: DtypeName) -> torch.dtype:
    """Torch's dtype of a precision."""
    import torch

    return getattr(torch, _OF_TORCH[name])


def dtype_name(dtype: object) -> DtypeName | None:
    """The precision that a dtype of torch is, given itself or by name ("float16"); None for another one."""
    own = str(dtype).removeprefix("torch.")
    return next((name for name in get_args(DtypeName) if _OF_TORCH[name] == own), None)


def bf16_unit(device: torch.device) -> str | None:
    """The name of the unit of a device that multiplies in bf16, such as "amx_bf16"; None where it has none.

    A CPU without such a unit computes bf16 by fp32 instructions, which is slower than fp32.
    """
    import torch

    if device.type == "cuda":
        return "bf16 in CUDA" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    ask = getattr(torch.cpu, "get_capabilities", None)  # not in versions before 2.11
    if device.type != "cpu" or ask is None:
        return None
    found = ask()
    return next((name for name in ("amx_bf16", "avx512_bf16") if found.get(name)), None)


def autocast(name: DecodeDtype, device: torch.device) -> AbstractContextManager[object]:
    """A block in which matrix products and convolutions are computed in bf16; one that changes nothing for fp32."""
    import torch

    return nullcontext() if name == "fp32" else torch.autocast(device.type, torch.bfloat16)


def check_device(name: str) -> None:
    """Refuse a name that is no device. Whether this machine has the device is not looked at, which would need torch.

    Raises:
        InputError: the name is not valid.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name):
        raise InputError(f"{setting('device')} {name!r} is not a device; valid: auto, cpu, cuda, cuda:N, mps")


def pick_device(name: str) -> torch.device:
    """The device with a name: "auto", "cpu", "cuda", "cuda:N" or "mps".

    "auto" is CUDA if there is a CUDA device, else the CPU. Under torchrun, CUDA without a number is the device of this
    rank.

    Raises:
        InputError: the name is no device, or this machine does not have it.
    """
    check_device(name)
    import torch

    own = os.environ.get("LOCAL_RANK", "")
    several = own.isdecimal() and int(own) < torch.cuda.device_count()
    if name == "auto":
        return torch.device((f"cuda:{own}" if several else "cuda") if torch.cuda.is_available() else "cpu")
    if name == "cuda" and several and torch.cuda.is_available():
        return torch.device(f"cuda:{own}")
    asked, device = f"{setting('device')} {name!r}", torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{asked} was asked for but this machine has no CUDA: use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"{asked} does not exist: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"{asked} was asked for but this machine has no MPS: use cpu or auto")
    return device


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's CPU threads for the block, and restore it afterwards. None changes nothing."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def processor() -> tuple[str, frozenset[str]]:
    """The processor's name, and the names of its abilities ("avx512f"), which only Linux tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return platform.processor(), frozenset()
    lines = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    flags = (lines.get("flags") or lines.get("Features") or "").split()
    return lines.get("model name", platform.processor()), frozenset(flags)
