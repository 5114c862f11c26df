"""The outline of a drawn object, and how far it is from the outline of a shape.

An overlap (IoU) hardly sees lumps: they are thin. The distance between outlines does, in pixels.
"""

from __future__ import annotations

import math

import numpy as np

from .. import world

LEVEL = 0.5  # the outline is where this share of a pixel is covered
FEWEST = 8  # points that an outline must have
ROUNDS = 3  # of fitting; each takes the nearest points anew
ARM = 1 / math.sqrt(20)  # half the width of a cross's arm; an arm is three times as long as it is wide
INRADIUS = 1 / math.sqrt(3 * math.sqrt(3))  # of a triangle
CORNERS: dict[str, np.ndarray | None] = {
    "circle": None,
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2,
    "triangle": INRADIUS * np.array([(0, -2), (math.sqrt(3), 1), (-math.sqrt(3), 1)]),
    "cross": ARM
    * np.array(
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
    ),
}  # fmt: skip
"""The corners (E, 2) of each of ``world.SHAPES`` around its centroid, in order, for an area of 1; None for a circle."""


def outline_errors(coverage: np.ndarray) -> np.ndarray:
    """How far drawn outlines are from those of each shape, where position and size fit best. (F, shapes), px.

    The error is the RMS distance of the points of the drawn outline from the shape's outline. Position and size are
    free, so that the error says how the object is drawn, and nothing about where and how large.

    Args:
        coverage: how much of each pixel the object covers, (F, H, W) in [0, 1].

    Returns:
        In the order of ``world.SHAPES``; NaN for frames whose outline has fewer than ``FEWEST`` points.
    """
    points, exists = outline_points(coverage)
    errors = [_fitted_error(points, exists, CORNERS[shape]) for shape in world.SHAPES]
    return np.where(exists.sum(1)[:, None] >= FEWEST, np.stack(errors, axis=1), np.nan)


def outline_points(coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where coverage crosses one half between neighbouring pixels, by linear interpolation.

    Returns:
        Points (F, P, 2) as (x, y) px; and which of them exist, bool (F, P), for frames have different numbers.
    """
    found: list[np.ndarray] = []  # rows of (frame, x, y)
    for axis in (2, 1):  # neighbours side by side, then one above the other
        before, after = (np.take(coverage, range(k, coverage.shape[axis] - 1 + k), axis) for k in (0, 1))
        frame, row, column = np.nonzero((before >= LEVEL) != (after >= LEVEL))
        start, end = (part[frame, row, column] for part in (before, after))
        along = (LEVEL - start) / (end - start)
        x, y = (column + along, row) if axis == 2 else (column, row + along)
        found.append(np.stack([frame, x + 0.5, y + 0.5], axis=1))
    rows = np.concatenate(found)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    counts = np.bincount(rows[:, 0].astype(int), minlength=len(coverage))
    exists = np.arange(max(counts.max(initial=0), 1)) < counts[:, None]
    points = np.zeros((*exists.shape, 2))
    points[exists] = rows[:, 1:]
    return points, exists


def _fitted_error(points: np.ndarray, exists: np.ndarray, corners: np.ndarray | None) -> np.ndarray:
    """The RMS distance (F,) of points from a shape's outline, whose position and size are fitted by Gauss-Newton."""
    weights = exists / np.maximum(exists.sum(1, keepdims=True), 1)  # (F, P)
    centre = (weights[..., None] * points).sum(1)  # (F, 2)
    spread = np.sqrt((weights * ((points - centre[:, None]) ** 2).sum(-1)).sum(1))
    scale = np.maximum(spread / _spread(corners), 1e-3)  # the square root of the area, (F,)
    smallest, largest = scale / 2, scale * 2
    for _ in range(ROUNDS):
        nearest, normal = _nearest((points - centre[:, None]) / scale[:, None, None], corners)
        distance = _dot(normal, points - centre[:, None] - scale[:, None, None] * nearest)
        # Change of the distance with centre and scale: (F, P, 3).
        slope = -np.concatenate([normal, _dot(normal, nearest)[..., None]], axis=-1)
        squares = np.einsum("fp,fpi,fpj->fij", weights, slope, slope) + 1e-9 * np.eye(3)
        step = np.linalg.solve(squares, np.einsum("fp,fpi,fp->fi", weights, slope, distance)[..., None])[..., 0]
        centre = centre - step[:, :2]
        scale = np.clip(scale - step[:, 2], smallest, largest)
    nearest, _ = _nearest((points - centre[:, None]) / scale[:, None, None], corners)
    away = points - centre[:, None] - scale[:, None, None] * nearest
    return np.sqrt((weights * _dot(away, away)).sum(1))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The products (...) of vectors (..., 2). numpy's own sum over so short an axis takes many times as long."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1]


def _spread(corners: np.ndarray | None) -> float:
    """The RMS distance of an outline of area 1 from its centroid."""
    if corners is None:
        return 1 / math.sqrt(math.pi)
    after = np.roll(corners, -1, axis=0)
    lengths = np.linalg.norm(after - corners, axis=1)
    squared = ((corners**2).sum(1) + (corners * after).sum(1) + (after**2).sum(1)) / 3  # the mean over each side
    return math.sqrt((lengths * squared).sum() / lengths.sum())


def _nearest(points: np.ndarray, corners: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The nearest point of an outline of area 1 to each of ``points`` (F, P, 2), and the outline's normal there."""
    if corners is None:
        length = np.maximum(np.sqrt(_dot(points, points)), 1e-9)[..., None]
        return points / length / math.sqrt(math.pi), points / length
    sides = np.roll(corners, -1, axis=0) - corners  # (E, 2)
    squares = (sides**2).sum(1)
    share = np.clip((points @ sides.T - (corners * sides).sum(1)) / squares, 0, 1)  # (F, P, E)
    x, y = (points[..., axis, None] - (corners[:, axis] + share * sides[:, axis]) for axis in (0, 1))
    side = (x**2 + y**2).argmin(-1)  # (F, P)
    nearest = corners[side] + np.take_along_axis(share, side[..., None], axis=-1) * sides[side]
    across = np.stack([sides[:, 1], -sides[:, 0]], axis=1) / np.sqrt(squares)[:, None]
    # Beyond a corner the normal points from the corner to the point.
    away = points - nearest
    length = np.sqrt(_dot(away, away))[..., None]
    return nearest, np.where(length > 1e-6, away / np.maximum(length, 1e-9), across[side])
