"""The numbers a CUDA device draws, on any machine: the originals' samples were made on one, and their seeds with it.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as torch's CUDA generator runs
it: one subsequence a thread, four normal values a call by Box-Muller, threads striding over the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256  # threads in a block of torch's distribution kernels
# Blocks that a GPU runs at once, multiprocessors times blocks on each; draws of over 256 times as many depend on it.
BLOCKS = {
    "a100": 108 * 8, "h100": 132 * 8, "h800": 132 * 8, "v100": 80 * 8, "a10": 72 * 6, "l40s": 142 * 6,
    "rtx3090": 82 * 6, "rtx4090": 128 * 6,
}  # fmt: skip
Words = NDArray[np.uint64]


def philox(counter: Sequence[Words | int], key: int) -> tuple[Words, ...]:
    """Ten rounds over four words of 32 bits, under a key of 64: four words, shaped like the counter's."""
    c = [np.asarray(word, np.uint64) for word in np.broadcast_arrays(*counter)]
    mask, k0, k1 = np.uint64(0xFFFFFFFF), key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        low, high = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (high >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), high & mask,
            (low >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), low & mask,
        ]  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(c)


class CudaGenerator:
    """``torch.manual_seed(seed)`` and the ``torch.randn`` calls after it, as a CUDA device answers them.

    Args:
        seed: 0 to 2^64 - 1.
        blocks: blocks of 256 threads that the device runs at once: multiprocessors times (threads per one / 256).
    """

    def __init__(self, seed: int, blocks: int = BLOCKS["a100"]) -> None:
        self.seed, self.blocks, self.calls = seed, blocks, 0

    def randn(self, shape: Sequence[int]) -> Tensor:
        """The next draw, fp32, on the CPU."""
        import torch

        count = math.prod(shape)
        if count == 0:
            return torch.empty(tuple(shape))
        threads = BLOCK * min(self.blocks, math.ceil(count / BLOCK))
        rounds = math.ceil(count / (4 * threads))
        call = np.arange(self.calls, self.calls + rounds, dtype=np.uint64)[:, None]
        thread = np.arange(threads, dtype=np.uint64)[None]
        words = philox((call & np.uint64(0xFFFFFFFF), call >> np.uint64(32), thread, 0), self.seed)
        self.calls += rounds
        values = np.stack([*_normal(words[0], words[1]), *_normal(words[2], words[3])], axis=1)  # (rounds, 4, threads)
        return torch.tensor(values.reshape(-1)[:count]).view(tuple(shape))


def _normal(a: Words, b: Words) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Box-Muller, in float32 as curand does it."""
    step = np.float32(2.0**-32)
    u = a.astype(np.float32) * step + step / 2
    angle = b.astype(np.float32) * np.float32(2 * math.pi * 2.0**-32) + np.float32(math.pi * 2.0**-32)
    radius = np.sqrt(np.float32(-2) * np.log(u))
    return radius * np.sin(angle), radius * np.cos(angle)
