"""Sums of products of named tensors and scalars, and the test whether a sum is guidance.

An expression is a polynomial: ``u + s * (c - u)`` is ``u + s c - s u``. It is guidance if it is an affine combination
of branches: every product holds exactly one branch, and the factors of the branches add up to 1. All spellings of
classifier-free guidance (Ho & Salimans 2207.12598, eq. 6) have this property, in any order of their terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

Product = tuple[str, ...]
"""Keys of the factors, sorted; empty for a plain number."""
Sum = Mapping[Product, float]

MOST_TERMS = 24
"""A longer sum is not followed further."""
MOST_FACTORS = 6
_MOST_NAMES = 8
_TINY = 1e-9


def number(value: float) -> Sum:
    return {(): float(value)} if value else {}


def single(key: str) -> Sum:
    return {(key,): 1.0}


def as_number(terms: Sum) -> float | None:
    """The number that a sum is, or None if it holds a name."""
    if not terms:
        return 0.0
    return terms[()] if len(terms) == 1 and () in terms else None


def add(left: Sum, right: Sum, factor: float = 1.0) -> Sum:
    """left + factor * right"""
    total = dict(left)
    for product, value in right.items():
        total[product] = total.get(product, 0.0) + factor * value
    return {product: value for product, value in total.items() if abs(value) > _TINY}


def multiply(left: Sum, right: Sum) -> Sum | None:
    """The product of two sums, or None if it is too long to follow."""
    if len(left) * len(right) > MOST_TERMS:
        return None
    total: dict[Product, float] = {}
    for a, x in left.items():
        for b, y in right.items():
            product = tuple(sorted(a + b))
            if len(product) > MOST_FACTORS:
                return None
            total[product] = total.get(product, 0.0) + x * y
    return {product: value for product, value in total.items() if abs(value) > _TINY}


def names(terms: Sum) -> list[str]:
    """The keys in a sum, each once, in the order of appearance."""
    return list(dict.fromkeys(key for product in terms for key in product))


def affine(terms: Sum) -> Iterator[dict[str, Sum]]:
    """Every way to read a sum as an affine combination of two or three branches: branch -> its factor.

    A plain average, with constant factors from 0 to 1, is no guidance.
    """
    keys = names(terms)
    if len(terms) < 2 or not 2 <= len(keys) <= _MOST_NAMES:
        return
    for size in (2, 3):
        for group in combinations(keys, size):
            factors = _factors(terms, group)
            if factors is None:
                continue
            total: Sum = {}
            for factor in factors.values():
                total = add(total, factor)
            constants = [as_number(factor) for factor in factors.values()]
            average = all(value is not None and -_TINY <= value <= 1 + _TINY for value in constants)
            if as_number(total) is not None and abs((as_number(total) or 0.0) - 1) < 1e-6 and not average:
                yield factors


def difference(terms: Sum) -> bool:
    """Whether a sum is a multiple of a difference of two branches: s (c - u)."""
    for group in combinations(names(terms)[:_MOST_NAMES], 2):
        factors = _factors(terms, group)
        if factors is not None and not add(factors[group[0]], factors[group[1]]):
            return True
    return False


def _factors(terms: Sum, group: tuple[str, ...]) -> dict[str, Sum] | None:
    """The factor of each branch; None if a product holds no branch or two, or a branch does not appear."""
    factors: dict[str, dict[Product, float]] = {key: {} for key in group}
    for product, value in terms.items():
        inside = [key for key in product if key in factors]
        if len(inside) != 1:
            return None
        rest = list(product)
        rest.remove(inside[0])
        factors[inside[0]][tuple(rest)] = value
    return dict(factors) if all(factors.values()) else None
