"""The order in which samples are drawn, as a function of (seed, step). All samples of a batch are of one bucket."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class Order:
    """Draws batches from buckets.

    Each bucket has an endless row of its samples: one permutation after the other. Its first batch takes the first of
    these, its second batch the next, and so on. So every sample of a bucket is drawn once before any is drawn twice,
    and a bucket that has fewer samples than a batch fills it with some of them twice. Buckets take turns, each as often
    as it has a share of all samples: then all samples are drawn equally often.

    Args:
        seed: the seed.
        counts: the number of samples in each bucket, each at least 1.
    """

    def __init__(self, seed: int, counts: Sequence[int]) -> None:
        self.seed, self.counts = seed, list(counts)
        # In a cycle every bucket has as many turns as it has samples, divided by what divides all.
        turns = np.array(self.counts) // np.gcd.reduce(self.counts)
        bucket = np.repeat(np.arange(len(turns)), turns)
        number = np.concatenate([np.arange(count) for count in turns])
        phase = np.random.default_rng((seed, 12)).random(len(turns))  # so that buckets do not all begin together
        turn = np.argsort((number + phase[bucket]) / turns[bucket], kind="stable")
        self._turns, self._bucket, self._number = turns, bucket[turn], number[turn]

    def batch(self, step: int, size: int, rows: slice) -> tuple[int, list[tuple[int, int]]]:
        """The bucket of a step's batch, and some of its rows: (sample's number in the bucket, its place in the row).

        Args:
            step: number of the step.
            size: rows of a batch.
            rows: which rows.
        """
        cycle, place = divmod(step, len(self._bucket))
        bucket = int(self._bucket[place])
        before = cycle * int(self._turns[bucket]) + int(self._number[place])
        count = self.counts[bucket]
        found: list[tuple[int, int]] = []
        for position in range(before * size, (before + 1) * size)[rows]:
            epoch, offset = divmod(position, count)
            found.append((int(_shuffled(self.seed, bucket, epoch, count)[offset]), position))
        return bucket, found


@lru_cache(maxsize=64)
def _shuffled(seed: int, bucket: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, bucket, epoch, 13)).permutation(count)
