"""The bench of any video: temporal and image quality without learnt weights and without captions.

The metrics use optical flow, structural similarity and pixel statistics. A still clip has no flicker and no drift, so
most of the metrics favour still clips: read them together with ``dynamics``. Metrics that need motion are NaN for a
still clip.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from ..core.errors import InputError
from ..core.extras import require
from ..core.limits import require_memory
from .metric import CLIPPED, Bench, Metric, Values, named

STILL = 0.05  # mean flow in px per frame below which a clip counts as still
GAPS = (1, 2, 4, 8)  # distances between the frames that drift compares
SMALLEST = 16  # px, the shortest side of a frame
BYTES_OF_ALL = 13  # for each pixel of a clip: grey as a byte and as a float, and two floats of flow
BYTES_OF_ONE = 64  # for each pixel of the frame that is measured: SSIM's images in double precision
_FLOWLESS = "the clip is still or too short"
VIDEO_METRICS = named(
    Metric(
        "dynamics", "temporal", "px/frame", (0, math.inf), None, "mean length of optical flow",
        "the clip has one frame",
        label="amount of motion", words="how far things move from frame to frame",
    ),
    Metric(
        "warp_ratio", "temporal", "ratio", (0, math.inf), "lower",
        "error of predicting a frame from the one before by optical flow, over the error of repeating that frame",
        _FLOWLESS,
        label="incoherent motion", words="how much of the change between frames is no motion",
    ),
    Metric(
        "interpolation_error", "temporal", "intensity", (0, 1), "lower",
        "mean absolute error of interpolating every second frame from its neighbours by optical flow", _FLOWLESS,
        label="jerkiness", words="how far a frame is from the middle of its neighbours",
    ),
    *(
        Metric(
            f"drift_{gap}", "temporal", "1 - SSIM", (0, 1), None,
            f"dissimilarity of frames {gap} apart", "the clip has no such frames",
            label=f"change over {gap} frame{'s' if gap > 1 else ''}",
            words=f"how much the picture changes within {gap} frame{'s' if gap > 1 else ''}",
        )
        for gap in GAPS
    ),
    CLIPPED,
    Metric(
        "saturation", "quality", "HSV", (0, 1), None, "mean saturation",
        label="colour strength", words="how strong the colours are",
    ),
    Metric(
        "sharpness", "quality", "intensity^2", (0, math.inf), None, "variance of the Laplacian of grey values",
        label="sharpness", words="how much fine detail there is",
    ),
)  # fmt: skip


def measure_video(frames: np.ndarray) -> dict[str, float]:
    """The ``VIDEO_METRICS`` of one clip.

    Args:
        frames: uint8 RGB (time, height, width, 3), of at least ``SMALLEST`` px a side.

    Returns:
        A value for each metric; NaN where undefined.

    Raises:
        InputError: the clip has another form, or OpenCV or scikit-image is not installed.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape[1:3]) < SMALLEST:
        raise InputError(
            f"frames are {frames.dtype} {frames.shape}: expected uint8 (time, height, width, 3) with sides of at least "
            f"{SMALLEST}"
        )
    length, height, width, _ = frames.shape
    require_memory(
        f"the metrics of {length} frames of {width}x{height}", (BYTES_OF_ALL * length + BYTES_OF_ONE) * height * width,
        lower="measure a shorter or smaller clip",
    )  # fmt: skip
    cv2 = require("cv2", "measuring any video", "study", package="opencv-python-headless")
    similarity = require("skimage.metrics", "measuring any video", "study", package="scikit-image")
    # Statistics of single frames.
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    floats = grey.astype(np.float32) / 255
    values = {
        "clipped": float(((frames == 0) | (frames == 255)).mean()),
        "saturation": float(np.mean([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[..., 1].mean() for frame in frames])) / 255,
        "sharpness": float(np.mean([cv2.Laplacian(frame, cv2.CV_32F).var() for frame in floats])),
    }
    # Similarity of frames at each distance in GAPS.
    for gap in GAPS:
        pairs = range(len(grey) - gap)
        drifts = [1 - similarity.structural_similarity(grey[k], grey[k + gap]) for k in pairs]
        values[f"drift_{gap}"] = float(np.mean(drifts)) if drifts else math.nan

    # Motion, and how well it predicts other frames.
    flows = [_flow(cv2, a, b) for a, b in itertools.pairwise(grey)]
    values["dynamics"] = float(np.mean([np.linalg.norm(flow, axis=-1).mean() for flow in flows])) if flows else math.nan
    moving = bool(flows) and values["dynamics"] >= STILL
    values["warp_ratio"] = _warp_ratio(cv2, floats, flows) if moving else math.nan
    values["interpolation_error"] = _interpolation_error(cv2, grey, floats) if moving and len(grey) > 2 else math.nan
    return {name: values[name] for name in VIDEO_METRICS}


def _flow(cv2: ModuleType, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dense optical flow (H, W, 2), px, from grey frame a to b (Farneback 2003)."""
    return cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)


def _warped(cv2: ModuleType, frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The frame sampled at positions moved by the flow: out(p) = frame(p + flow(p))."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    return cv2.remap(frame, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _warp_ratio(cv2: ModuleType, floats: np.ndarray, flows: list[np.ndarray]) -> float:
    """Error of each frame warped onto the one before it, over the error without a warp."""
    still = sum(float(np.abs(b - a).mean()) for a, b in itertools.pairwise(floats))
    moved = sum(
        float(np.abs(_warped(cv2, b, flow) - a).mean())
        for a, b, flow in zip(floats[:-1], floats[1:], flows, strict=True)
    )
    return moved / still if still > 0 else math.nan


def _interpolation_error(cv2: ModuleType, grey: np.ndarray, floats: np.ndarray) -> float:
    """Mean absolute error of predicting every odd frame as the mean of its two neighbours, warped to the middle."""
    errors = []
    for k in range(1, len(grey) - 1, 2):
        forward, backward = _flow(cv2, grey[k - 1], grey[k + 1]), _flow(cv2, grey[k + 1], grey[k - 1])
        # Approximation: half of the flow between the neighbours, without moving it to the middle frame's positions.
        middle = (_warped(cv2, floats[k - 1], backward / 2) + _warped(cv2, floats[k + 1], forward / 2)) / 2
        errors.append(float(np.abs(middle - floats[k]).mean()))
    return float(np.mean(errors))


def _measure(frames: np.ndarray, captions: Sequence[str]) -> Values:
    """``measure_video`` of every clip. Captions are not used."""
    rows = [measure_video(clip) for clip in frames]
    return {name: np.array([row[name] for row in rows]) for name in VIDEO_METRICS}


BENCH = Bench(
    name="video",
    metrics=VIDEO_METRICS,
    measure=_measure,
    shown=tuple(VIDEO_METRICS),
    primary="dynamics",
    matched=("saturation", "drift_1", "sharpness"),
    fronts=(("interpolation_error", "clipped"),),
)
