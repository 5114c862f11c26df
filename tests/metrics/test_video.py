import numpy as np
import pytest
from scipy import ndimage

from guidon.core.errors import InputError
from guidon.metrics.video import VIDEO_METRICS, measure_video


def texture(seed=0, size=96):
    noise = np.random.default_rng(seed).normal(size=(size, size, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0))
    return (smooth - smooth.min()) / np.ptp(smooth) * 200 + 20


def gliding(step=1.0, frames=12, jitter=0.0, flicker=0.0):
    """A textured plane that moves right, by sub-pixel shifts."""
    rng = np.random.default_rng(1)
    clip = []
    for t in range(frames):
        shift = t * step + jitter * rng.normal()
        frame = ndimage.shift(texture(), (0, shift, 0), order=1, mode="wrap")[16:80, 16:80]
        clip.append(frame * (1 + flicker * (-1) ** t))
    return np.stack(clip).clip(0, 255).astype(np.uint8)


def test_smooth_motion_is_predictable_and_as_fast_as_it_is():
    smooth = measure_video(gliding(1.5))
    assert smooth["dynamics"] == pytest.approx(1.5, rel=0.15)
    assert smooth["warp_ratio"] < 0.3
    assert 0 < smooth["drift_1"] < smooth["drift_4"]
    assert list(smooth) == list(VIDEO_METRICS)


@pytest.mark.parametrize("fault", [{"jitter": 1.0}, {"flicker": 0.05}])
def test_unsteady_motion_is_worse(fault):
    smooth, unsteady = measure_video(gliding()), measure_video(gliding(**fault))
    assert unsteady["interpolation_error"] > 1.3 * smooth["interpolation_error"]


def test_what_only_motion_can_show_is_undefined_for_a_still():
    still = measure_video(np.repeat(gliding(frames=1), 10, axis=0))
    assert still["dynamics"] == pytest.approx(0, abs=1e-3)
    assert np.isnan([still["warp_ratio"], still["interpolation_error"]]).all()
    assert still["drift_8"] == 0
    image = measure_video(gliding(frames=1))
    assert np.isnan([image["dynamics"], image["drift_1"]]).all()


def test_colour_and_sharpness():
    grey = np.full((2, 32, 32, 3), 128, np.uint8)
    assert measure_video(grey)["saturation"] == 0
    grey[..., 1:] = 0
    seen = measure_video(grey)
    assert seen["saturation"] == pytest.approx(1)
    assert seen["clipped"] == pytest.approx(2 / 3)
    sharp = gliding()
    blurred = ndimage.gaussian_filter(sharp.astype(float), (0, 2, 2, 0)).astype(np.uint8)
    assert measure_video(blurred)["sharpness"] < 0.3 * measure_video(sharp)["sharpness"]


def test_what_is_no_clip_is_refused():
    with pytest.raises(InputError, match="at least 16"):
        measure_video(np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="expected uint8"):
        measure_video(np.zeros((4, 32, 32, 3)))
