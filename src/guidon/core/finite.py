"""A check, once a step, that numbers are finite, without making the device wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class FiniteCheck:
    """Looks at the tensors of a step: the sum of their values is finite only if all of them are.

    On the CPU it looks at once. On CUDA the sum is copied to the host behind the step's work. It is looked at when the
    next step's work has been queued, so that the device never waits for the host. On other devices it is looked at one
    step later too.
    """

    def __init__(self) -> None:
        self._open: tuple[Tensor, torch.cuda.Event | None, Callable[[], None]] | None = None

    def look(self, tensors: Sequence[Tensor], fail: Callable[[], None]) -> None:
        """Look at this step's tensors, or on a device other than the CPU at those of the step before.

        Args:
            tensors: values of any shape, all on one device.
            fail: called if their sum is not finite. The sum of finite values may overflow, so ``fail`` looks again, at
                every value, and raises if one of them is not finite.
        """
        total = tensors[0].detach().sum(dtype=torch.float32)
        for other in tensors[1:]:
            total = total + other.detach().sum(dtype=torch.float32)
        if total.is_meta:  # it has no values
            return
        if total.device.type == "cpu":
            if not math.isfinite(float(total)):
                fail()
            return
        copied = None
        if total.device.type == "cuda":
            host = torch.empty((), pin_memory=True).copy_(total, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(total.device))
            total = host
        self.finish()
        self._open = total, copied, fail

    def finish(self) -> None:
        """Look at the last step's tensors, if that was not done."""
        if self._open is None:
            return
        (total, copied, fail), self._open = self._open, None
        if copied is not None:
            copied.synchronize()
        if not math.isfinite(float(total)):
            fail()
