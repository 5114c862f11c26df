"""Numbers as text."""

from __future__ import annotations


def all_digits(*numbers: float) -> str:
    """Numbers in as many digits as they need, with commas between them: ``1.5,2``. Read back, they are the same."""
    return ",".join(repr(float(number)).removesuffix(".0") for number in numbers)
