"""Temporal and image quality of any video, with no learnt weights: optical flow, structural similarity, statistics.

Stillness wins on naive scores: a frozen clip has no flicker. So ``dynamics`` stands beside the others, and what only
motion can show is undefined where nothing moves.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from ..core.errors import InputError
from .world import Metric

STILL = 0.05  # mean flow in px per frame below which a clip counts as still
GAPS = (1, 2, 4, 8)
_FLOWLESS = "the clip is still, or has fewer than two frames"
VIDEO_METRICS = {
    metric.name: metric
    for metric in (
        Metric("dynamics", "temporal", "px/frame", (0, math.inf), None, "mean length of optical flow"),
        Metric(
            "warp_ratio", "temporal", "ratio", (0, math.inf), "lower",
            "error of a frame predicted from the one before by its flow, over that of no prediction", _FLOWLESS,
        ),
        Metric(
            "interpolation_error", "temporal", "intensity", (0, 1), "lower",
            "mean absolute error of every other frame, interpolated by flow from its neighbours", _FLOWLESS,
        ),
        *(
            Metric(
                f"drift_{gap}", "temporal", "1 - SSIM", (0, 1), None,
                f"dissimilarity of frames {gap} apart", "the clip is no longer than that",
            )
            for gap in GAPS
        ),
        Metric("clipped", "quality", "share", (0, 1), "lower", "values that are exactly black or full"),
        Metric("saturation", "quality", "HSV", (0, 1), None, "mean saturation"),
        Metric("sharpness", "quality", "intensity^2", (0, math.inf), None, "variance of the Laplacian of grey values"),
    )
}  # fmt: skip


def measure_video(frames: np.ndarray) -> dict[str, float]:
    """The metrics of ``VIDEO_METRICS`` of one clip, uint8 (time, height, width, 3) RGB; NaN where undefined.

    Raises:
        InputError: the clip has another form or sides under 16 px, or OpenCV or scikit-image is not installed.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or min(frames.shape[1:3]) < 16:
        raise InputError(
            f"frames are {frames.dtype} {frames.shape}: expected uint8 (time, at least 16, at least 16, 3)"
        )
    cv2, skimage = _libraries()
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    floats = grey.astype(np.float32) / 255
    values = {
        "clipped": float(((frames == 0) | (frames == 255)).mean()),
        "saturation": float(np.mean([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[..., 1].mean() for frame in frames])) / 255,
        "sharpness": float(np.mean([cv2.Laplacian(frame, cv2.CV_32F).var() for frame in floats])),
    }
    for gap in GAPS:
        pairs = range(len(grey) - gap)
        drifts = [1 - skimage.structural_similarity(grey[k], grey[k + gap]) for k in pairs]
        values[f"drift_{gap}"] = float(np.mean(drifts)) if drifts else math.nan

    flows = [_flow(cv2, a, b) for a, b in itertools.pairwise(grey)]
    values["dynamics"] = float(np.mean([np.linalg.norm(flow, axis=-1).mean() for flow in flows])) if flows else math.nan
    moving = bool(flows) and values["dynamics"] >= STILL
    values["warp_ratio"] = _warp_ratio(cv2, floats, flows) if moving else math.nan
    values["interpolation_error"] = _interpolation_error(cv2, grey, floats) if moving and len(grey) > 2 else math.nan
    return {name: values[name] for name in VIDEO_METRICS}


def _libraries() -> tuple[Any, Any]:
    try:
        import cv2
        from skimage import metrics
    except ImportError as error:
        raise InputError(
            f"measuring any video needs {error.name}, which is not installed: pip install 'guidon-diffusion[video]'"
        ) from None
    return cv2, metrics


def _flow(cv2: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dense flow (H, W, 2) from grey frame a to b, px (Farneback 2003)."""
    return cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)


def _warped(cv2: Any, frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The frame as seen from where ``flow`` points: out(p) = frame(p + flow(p))."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    return cv2.remap(frame, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _warp_ratio(cv2: Any, floats: np.ndarray, flows: list[np.ndarray]) -> float:
    still = sum(float(np.abs(b - a).mean()) for a, b in itertools.pairwise(floats))
    moved = sum(
        float(np.abs(_warped(cv2, b, flow) - a).mean())
        for a, b, flow in zip(floats[:-1], floats[1:], flows, strict=True)
    )
    return moved / still if still > 0 else math.nan


def _interpolation_error(cv2: Any, grey: np.ndarray, floats: np.ndarray) -> float:
    """Odd frames from even ones: both neighbours moved half of the flow between them, and averaged."""
    errors = []
    for k in range(1, len(grey) - 1, 2):
        forward, backward = _flow(cv2, grey[k - 1], grey[k + 1]), _flow(cv2, grey[k + 1], grey[k - 1])
        middle = (
            _warped(cv2, floats[k - 1], backward / 2) + _warped(cv2, floats[k + 1], forward / 2)
        ) / 2  # where things are half-way, flow is taken from the frame's own place
        errors.append(float(np.abs(middle - floats[k]).mean()))
    return float(np.mean(errors))
