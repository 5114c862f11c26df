"""The trace of a run as a picture and as text: ||cond - uncond|| of every channel and call."""

from __future__ import annotations

import torch
from torch import Tensor

from .runs import Run

_COLOURS = ((0.05, 0.05, 0.14), (0.20, 0.15, 0.45), (0.10, 0.45, 0.60), (0.35, 0.75, 0.45), (0.98, 0.92, 0.30))
_PAPER, _STRONG, _WEAK = (0.10, 0.10, 0.10), (1.0, 1.0, 1.0), (0.45, 0.45, 0.45)
_DIGITS = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001001001001", "111101111101111", "111101111001111",
)  # fmt: skip
"""0 to 9, each five rows of three points."""
_DOT = 3  # pixels of a digit's point
_MARGIN = 12 * _DOT  # room for two to three digits
_WIDTH = 960  # about the width of a picture of few or many calls


def trace_picture(run: Run) -> Tensor:
    """A heat map (1, height, width, 3) in [0, 1], ComfyUI's IMAGE: a row a channel, a column a call, noise on the left.

    The brightest cell is the largest ||cond - uncond||, the mean over the batch; black is 0. A channel's number is
    white if it was guided at some call, and a call's number is white if a channel was guided there; else they are gray.
    """
    values = run.table().mean(1).T  # (C, calls)
    guided = torch.tensor(run.scales).T != 1
    channels, calls = values.shape
    wide, high = min(max(_WIDTH // calls, 4), 48), min(max(640 // channels, 6 * _DOT), 32)
    cells = _coloured(values / values.max().clamp_min(1e-12))
    body = cells.repeat_interleave(high, 0).repeat_interleave(wide, 1)
    picture = torch.tensor(_PAPER).expand(channels * high + _MARGIN // 2, calls * wide + _MARGIN, 3).clone()
    picture[: channels * high, _MARGIN:] = body
    for channel in range(channels):
        _write(picture, str(channel), channel * high + (high - 5 * _DOT) // 2, 1, bool(guided[channel].any()))
    for call in range(0, calls, max(1, -(-10 * _DOT // wide))):
        _write(picture, str(call), channels * high + 2, _MARGIN + call * wide, bool(guided[:, call].any()))
    return picture[None].float()


def trace_table(run: Run) -> str:
    """The trace as text: a line a channel, with its share of sum ||cond - uncond||^2 and its scales."""
    squares = run.table().double().square().mean(1).sum(0)  # (C,)
    lines = [
        f"{len(run.sigmas)} calls, sigma {run.sigmas[0]:g} to {run.sigmas[-1]:g}",
        "channel  ||c - u||  share  scale",
    ]
    for channel, square in enumerate(squares.tolist()):
        share = square / max(float(squares.sum()), 1e-300)
        scales = [scales[channel] for scales in run.scales]
        low, high = min(scales), max(scales)
        scale = f"{high:g}" if low == high else f"{low:g} to {high:g}"
        lines.append(f"{channel:7d}  {square**0.5:9.4g}  {share:5.1%}  {scale}")
    return "\n".join(lines)


def _coloured(values: Tensor) -> Tensor:
    """Values in [0, 1], (...), as colours, (..., 3)."""
    colours = torch.tensor(_COLOURS)
    place = values.clamp(0, 1) * (len(_COLOURS) - 1)
    below = place.floor().long().clamp(max=len(_COLOURS) - 2)
    part = (place - below)[..., None]
    return colours[below] * (1 - part) + colours[below + 1] * part


def _write(picture: Tensor, number: str, top: int, left: int, strong: bool) -> None:
    """Draw a number on a picture (height, width, 3), in place; what does not fit is cut off."""
    colour = torch.tensor(_STRONG if strong else _WEAK)
    for place, digit in enumerate(number):
        points = torch.tensor([int(point) for point in _DIGITS[int(digit)]]).view(5, 3)
        dots = points.repeat_interleave(_DOT, 0).repeat_interleave(_DOT, 1).bool()
        x = left + place * 4 * _DOT
        area = picture[top : top + 5 * _DOT, x : x + 3 * _DOT]
        area[dots[: area.shape[0], : area.shape[1]]] = colour
