"""Paired statistics over prompts: tests, intervals, effect sizes, and the effects that can be detected.

Values are arrays (prompts, seeds), or means (prompts,). Samples of one prompt with different seeds are not
independent, so they are averaged first. Undefined values are NaN. A pair with an undefined value on either side is left
out, and the number of such pairs is reported. Undefined values are never filled in.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.extras import Later

optimize = Later("scipy.optimize", "comparing settings", "study")
stats = Later("scipy.stats", "comparing settings", "study")

RESAMPLED = 1 << 16  # values of resamples that are held together: they fit the processor's cache
RESAMPLES = 9999  # bootstrap resamples of the prompts
BATCH = 500  # resamples, or sign flips, that are made together
KEPT = 1 << 27  # bytes of draws that are kept for the next comparisons
FLIPS = 19_999  # random sign flips: the smallest p, 1/20,000, suffices for Holm's correction of 999 comparisons


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float
    note: str = ""
    """A remark on an unusual interval; empty for a usual one."""

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Comparison:
    """The comparison of two settings, b minus a, on the same prompts and noise."""

    difference: Interval
    """Mean difference in the metric's unit, with its BCa interval."""
    p: float
    """p value of a two-sided paired permutation test (sign flips) of the mean difference."""
    d_z: float
    """Mean difference divided by the standard deviation of the differences; NaN if that is 0."""
    improves: Interval
    """Share of prompts on which b is better, with its interval. A tie counts half."""
    pairs: int
    """Number of prompts that were compared."""
    undefined: int
    """Number of prompts that were left out because a value is undefined."""
    visible: float
    """The smallest d_z that this many pairs detect with 80% power at p = 0.05."""


def by_prompt(values: np.ndarray) -> np.ndarray:
    """The mean over each prompt's seeds: (prompts, seeds) -> (prompts,); NaN where all seeds are undefined."""
    values = np.asarray(values, float)
    if values.ndim == 1:
        return values
    if values.ndim != 2:
        raise InputError(f"values of shape {values.shape}: expected (prompts, seeds) or (prompts,)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=1)


def mean_interval(values: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean over prompts with its BCa bootstrap interval (Efron 1987), resampling prompts."""
    means = by_prompt(values)
    means = means[np.isfinite(means)]
    if len(means) == 0:
        return Interval(math.nan, math.nan, math.nan, "undefined everywhere")
    mean = float(means.mean())
    if len(means) < 2:
        return Interval(mean, math.nan, math.nan, "one prompt: no interval")
    if np.ptp(means) == 0:
        return Interval(mean, mean, mean, "no variation")
    low, high = _bca(means, confidence, seed)
    return Interval(mean, low, high)


def metric_interval(values: np.ndarray, *, share: bool) -> Interval:
    """``mean_interval``, but Wilson's interval for a share that is 0 in every prompt or 1 in every prompt."""
    found = mean_interval(values)
    if share and found.note == "no variation" and found.value in (0, 1):
        defined = int(np.isfinite(by_prompt(values)).sum())
        return share_interval(found.value * defined, defined)
    return found


def change_interval(changes: np.ndarray, *, share: bool, confidence: float = 0.95) -> Interval:
    """``mean_interval`` of differences, but the rule of three where no prompt changes a share.

    No prompt changes a share by more than 1, so the share of prompts that change bounds the mean difference. If none of
    n changes, that share is at most 1 - (1 - confidence)^(1 / n): about 3/n at 95%.
    """
    found = mean_interval(changes, confidence=confidence)
    if share and found.note == "no variation" and found.value == 0:
        bound = 1 - (1 - confidence) ** (1 / int(np.isfinite(by_prompt(changes)).sum()))
        return Interval(0.0, -bound, bound, "no prompt differs: the rule of three")
    return found


def _bca(values: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """The BCa interval, or the percentile interval where few distinct values leave BCa's acceleration undefined."""
    found: dict[str, tuple[float, float]] = {}
    drawn = SimpleNamespace(bootstrap_distribution=_resampled_means(values, seed))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = stats.bootstrap(
                (values,),
                np.mean,
                n_resamples=0,
                confidence_level=confidence,
                method=method,
                batch=BATCH,
                bootstrap_result=drawn,
            )
        found[method] = float(result.confidence_interval.low), float(result.confidence_interval.high)
        if all(math.isfinite(end) for end in found[method]):
            return found[method]
    return found["percentile"]


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """The means (RESAMPLES,) of bootstrap resamples of values (n,)."""
    return np.concatenate([values.take(drawn).mean(axis=-1) for drawn in _resamples(len(values), seed)])


def _resamples(count: int, seed: int) -> Iterable[np.ndarray]:
    """Which of ``count`` values each resample draws, in batches (up to BATCH, count). They are shared: do not change
    them."""
    if 2 * RESAMPLES * count > KEPT or count > 1 << 16:
        return _draw(count, seed)
    return _kept.get(("resamples", count, seed, RESAMPLES), lambda: [b.astype(np.uint16) for b in _draw(count, seed)])


def _draw(count: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for first in range(0, RESAMPLES, BATCH):
        yield rng.integers(0, count, (min(BATCH, RESAMPLES - first), count))


class _Kept:
    """The last used draws. Most comparisons of a study are of the same number of prompts, and get the same draws."""

    def __init__(self) -> None:
        self.found: OrderedDict[tuple[Any, ...], list[np.ndarray]] = OrderedDict()

    def get(self, key: tuple[Any, ...], make: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
        """Those of a key. The oldest are dropped above ``KEPT`` bytes."""
        if key not in self.found:
            made = make()
            size = sum(part.nbytes for part in made)
            while self.found and size + sum(part.nbytes for own in self.found.values() for part in own) > KEPT:
                self.found.popitem(last=False)
            self.found[key] = made
        self.found.move_to_end(key)
        return self.found[key]


_kept = _Kept()


def share_interval(successes: float, count: int, *, confidence: float = 0.95) -> Interval:
    """The share of successes in ``count`` independent trials, with Wilson's interval (1927)."""
    if not 0 <= successes <= count or count < 1:
        raise InputError(f"{successes} of {count} is not a share: give 0 to count successes, of at least 1")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def sign_flips(prompts: int, seed: int = 0) -> np.ndarray:
    """Signs (R, prompts) for a paired permutation test: all 2^prompts up to 13 prompts, above that a random sample."""
    return _sign_flips(prompts, seed).copy()


def _sign_flips(prompts: int, seed: int) -> np.ndarray:
    """See ``sign_flips``. The array is shared: do not change it."""

    def make() -> list[np.ndarray]:
        if prompts <= 13:
            signs = 1 - 2 * ((np.arange(2**prompts)[:, None] >> np.arange(prompts)) & 1)
        else:
            signs = 1 - 2 * np.random.default_rng(seed).integers(2, size=(FLIPS, prompts), dtype=np.int8)
        signs.flags.writeable = False
        return [signs]

    return _kept.get(("flips", prompts, seed, FLIPS), make)[0]


def compare(a: np.ndarray, b: np.ndarray, *, better: str | None = "higher", seed: int = 0) -> Comparison:
    """Compare b with a on the same prompts and noise.

    The permutation test flips the signs of the prompts' differences. It is exact up to 13 prompts. A seed whose value
    is undefined in one setting is left out of both.

    Args:
        a, b: (prompts, seeds) or (prompts,).
        better: the direction in which the metric improves, "higher" or "lower".
        seed: of the resampling.

    Raises:
        InputError: the shapes differ.
    """
    if np.shape(a) != np.shape(b):
        sizes = [" x ".join(map(str, np.shape(values))) for values in (a, b)]
        raise InputError(f"{sizes[0]} and {sizes[1]} prompts cannot be paired: give the same prompts and seeds")
    difference = by_prompt(np.asarray(b, float) - np.asarray(a, float))
    defined = np.isfinite(difference)
    values = difference[defined]
    n, undefined = len(values), int((~defined).sum())
    if n < 2:
        nothing = Interval(math.nan, math.nan, math.nan, "fewer than two pairs")
        return Comparison(nothing, math.nan, math.nan, nothing, n, undefined, math.nan)
    deviation = float(values.std(ddof=1))
    sign = -1 if better == "lower" else 1
    wins = float((sign * values > 0).sum() + 0.5 * (values == 0).sum())
    return Comparison(
        mean_interval(values, seed=seed),
        float(_p_values(values[:, None], seed)[0]),
        float(values.mean()) / deviation if deviation > 0 else math.nan,
        share_interval(wins, n),
        n,
        undefined,
        smallest_effect(n),
    )


def _p_values(differences: np.ndarray, seed: int) -> np.ndarray:
    """Two-sided p of the mean of each column of differences (prompts, M), by sign flips."""
    null = np.abs(_flipped(differences, seed))
    # The rounding error of a mean is relative to the values, whatever the mean is.
    observed = np.abs(differences.mean(0)) - 1e-12 * np.abs(differences).mean(0)
    reached = (null >= observed).sum(0)
    return reached / len(null) if len(differences) <= 13 else (reached + 1) / (len(null) + 1)


def _flipped(differences: np.ndarray, seed: int) -> np.ndarray:
    """Means (R, M) under sign flips of the prompts."""
    signs, rows = _sign_flips(len(differences), seed), BATCH
    means = [signs[first : first + rows].astype(float) @ differences for first in range(0, len(signs), rows)]
    return np.concatenate(means) / len(differences)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment (1979) of a family of p values. NaN stays NaN and is not part of the family."""
    p = np.asarray(p, float)
    out = np.full(p.shape, np.nan)
    defined = np.flatnonzero(np.isfinite(p))
    order = defined[np.argsort(p[defined])]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return out


@lru_cache(maxsize=256)
def smallest_effect(pairs: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest d_z that a paired two-sided test of ``pairs`` pairs detects with the given power.

    From the noncentral t distribution. Infinite where a sign-flip test cannot reach ``alpha`` (five pairs or fewer at
    p = 0.05).
    """
    if pairs < 2 or 2 / 2**pairs > alpha:
        return math.inf

    def excess(d_z: float) -> float:
        return paired_power(d_z, pairs, alpha=alpha) - power

    enough = 1 / math.sqrt(pairs)
    while excess(enough) < 0:
        enough *= 2
    return float(optimize.brentq(excess, 0.0, enough, xtol=1e-12, rtol=1e-14))


def detectable_difference(differences: np.ndarray, *, share: bool, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest mean difference that a test of so many pairs detects with the given power, in the metric's unit.

    It is ``smallest_effect`` times the standard deviation of these differences. For a few pairs that differ by all or
    nothing this is too small: the sign-flip test needs k pairs that change in one direction, with 2 / 2^k <= alpha.
    Then the result is at least the share of pairs that must change, so that k of them do so with the given power.

    Args:
        differences: (pairs,), all defined.
        share: whether the metric is a share.
        power, alpha: of the test.

    Returns:
        Infinite where a test of so many pairs cannot reach ``alpha``; NaN where nothing is known, because no pair of a
        metric that is no share differs.
    """
    pairs = len(differences)
    effect = smallest_effect(pairs, power=power, alpha=alpha)
    if not math.isfinite(effect):
        return effect
    found = effect * float(differences.std(ddof=1))
    if share and np.isin(np.abs(differences), (0, 1)).all():
        changes = math.ceil(math.log2(2 / alpha))
        return max(found, float(stats.beta.ppf(power, changes, pairs - changes + 1)))
    return found if found > 0 else math.nan


def paired_power(d_z: float, pairs: int, *, alpha: float = 0.05) -> float:
    """The power of a two-sided paired t test: how often it detects an effect d_z with this many pairs."""
    critical = float(stats.t.ppf(1 - alpha / 2, pairs - 1))
    shift = d_z * math.sqrt(pairs)
    # P(t > critical) + P(t < -critical); the second by symmetry, since scipy's lower tail is NaN in places
    return float(stats.nct.sf(critical, pairs - 1, shift)) + float(stats.nct.sf(critical, pairs - 1, -shift))


def pairs_needed(d_z: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many prompts a paired test needs to detect an effect d_z with the given power."""
    if d_z <= 0:
        raise InputError(f"an effect of {d_z} cannot be detected: give a positive d_z")
    # Double until there is enough power, then bisect.
    low, high = 2, 3
    while paired_power(d_z, high, alpha=alpha) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if paired_power(d_z, middle, alpha=alpha) < power else (low, middle)
    return high


def pareto(
    values: Mapping[str, tuple[np.ndarray, np.ndarray]],
    better: tuple[str, str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """The share of bootstrap resamples of the prompts in which each setting is on the Pareto front of two metrics.

    Args:
        values: by setting, its two metrics, (prompts, seeds) or (prompts,) each, on the same prompts.
        better: for each metric the direction in which it improves, "higher" or "lower".
        resamples: number of bootstrap resamples of the prompts.
        seed: seed of the resampling.
    """
    names = list(values)
    signs = [1 if direction == "higher" else -1 for direction in better]
    means = [[sign * by_prompt(part) for sign, part in zip(signs, values[name], strict=True)] for name in names]
    counts = sorted({len(part) for pair in means for part in pair})
    if len(counts) != 1:
        had = " and ".join(map(str, counts)) or "no"
        raise InputError(f"the settings have values of {had} prompts: give the same prompts for each")
    table = np.array(means)
    rng = np.random.default_rng(seed)
    prompts = table.shape[-1]
    wins = np.zeros(len(names))
    together = max(1, RESAMPLED // table.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for first in range(0, resamples, together):
            drawn = rng.integers(prompts, size=(min(together, resamples - first), prompts))
            means = np.nanmean(table[..., drawn], axis=-1)  # (settings, 2, resamples)
            wins += _on_front(np.moveaxis(means, -1, 0)).sum(0)
    return dict(zip(names, (wins / resamples).tolist(), strict=True))


def _on_front(means: np.ndarray) -> np.ndarray:
    """Which of the points (..., S, 2) are on the front: no other is at least as large in both and larger in one."""
    defined = np.isfinite(means).all(-1)
    x, y = (np.where(np.isnan(means).any(-1), -np.inf, means[..., k]) for k in (0, 1))  # NaN beats nothing
    # From the largest x on, and for equal x from the largest y on, each point is compared with the best before it.
    order = np.lexsort((-y, -x), axis=-1)
    x, y = (np.take_along_axis(values, order, -1) for values in (x, y))
    new = np.concatenate([np.ones_like(x[..., :1], bool), x[..., 1:] != x[..., :-1]], -1)
    first = np.maximum.accumulate(np.where(new, np.arange(x.shape[-1]), 0), -1)  # of the points of the same x
    highest = np.concatenate([np.full_like(y[..., :1], -np.inf), np.maximum.accumulate(y, -1)], -1)
    beaten = (np.take_along_axis(highest, first, -1) >= y) | (np.take_along_axis(y, first, -1) > y)
    found = np.empty_like(defined)
    np.put_along_axis(found, order, ~beaten, -1)
    return found & defined
