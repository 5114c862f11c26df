"""Sources of the samplers' noise. Only ``LegacyNoise`` without a generator uses torch's global generator.

A source is called as ``noise(x)``. It gives standard normal values shaped like x.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from .philox import BLOCKS, CudaGenerator


class SampleNoise:
    """One generator per sample, seeded by (seed, sample index): a sample does not depend on its batch.

    Values are drawn on the CPU, so that they are the same on every device. The copy to the device does not block.

    Args:
        seed: one seed for all samples, or one for each.
        samples: the index of each sample.
        loop: which part of long clips the noise is for: parts share none.
    """

    def __init__(self, seed: int | Sequence[int], samples: Sequence[int], *, loop: int = 0) -> None:
        seeds = [seed] * len(samples) if isinstance(seed, int) else seed
        part = (loop,) if loop else ()
        self.generators = [
            torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)
            for key in ((*pair, *part) for pair in zip(seeds, samples, strict=True))
        ]

    def initial(self, shape: Sequence[int], device: torch.device | str = "cpu", rows: int | None = None) -> Tensor:
        """The noise that sampling starts from: (samples, *shape), fp32. ``rows`` must be the number of samples."""
        if rows not in (None, len(self.generators)):
            raise InputError(f"{rows} rows were asked for, there are {len(self.generators)} samples")
        return self._draw(tuple(shape)).to(device)

    def __call__(self, x: Tensor) -> Tensor:
        return self._draw(tuple(x.shape[1:])).to(x.device, x.dtype, non_blocking=True)

    def draw_part(self, row: int, out: Tensor) -> Tensor:
        """Fill fp32 memory on the CPU with the next values of a row.

        Parts of whole multiples of 16 values, and a last one of at least 16, are the values that a call draws at once.
        """
        return torch.randn(out.shape, generator=self.generators[row], out=out)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.empty(len(self.generators), *shape)
        for row, generator in zip(drawn, self.generators, strict=True):
            torch.randn(shape, generator=generator, out=row)
        return drawn


def replayed_noise(seed: int, draws: str, device: torch.device) -> LegacyNoise:
    """The originals' noise after ``torch.manual_seed(seed)``; the global generator is not touched.

    Args:
        seed: the originals' seed.
        draws: "device" draws as ``device`` does. "cuda" or "cuda:h100" draws as such a CUDA device does, on any
            machine.
        device: where sampling runs.
    """
    if draws == "device":
        return LegacyNoise(2, torch.Generator(device).manual_seed(seed))
    gpu = draws.removeprefix("cuda").removeprefix(":") or "a100"
    return LegacyNoise(2, CudaGenerator(seed, BLOCKS[gpu]))


class LegacyNoise:
    """The draws of Open-Sora and DiT: every step draws noise for the doubled batch and uses the first half.

    The last step draws too, although its noise is multiplied by zero. The global generator is used unless one is given.
    """

    def __init__(self, branches: int = 2, generator: torch.Generator | CudaGenerator | None = None) -> None:
        self.branches, self.generator = branches, generator

    def initial(
        self,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        rows: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """One draw of the undoubled batch: (rows, *shape), or ``shape`` itself without rows.

        A CPU draws other numbers in bf16 than in fp32; a CUDA device rounds them.
        """
        shape = tuple(shape) if rows is None else (rows, *shape)
        return self._draw(shape, torch.device(device), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        doubled = (self.branches * x.shape[0], *x.shape[1:])
        return self._draw(doubled, x.device, x.dtype)[: x.shape[0]]

    def _draw(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        if isinstance(self.generator, CudaGenerator):
            return self.generator.randn(shape).to(device, dtype)
        return torch.randn(shape, generator=self.generator, device=device, dtype=dtype)
