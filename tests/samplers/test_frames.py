"""Frames that are kept or edited, in every sampler."""

from functools import partial

import pytest
import torch

from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, Process
from guidon.diffusion.spacing import Explicit
from guidon.samplers import (
    WHOLE,
    FrameMask,
    SampleNoise,
    sample_consistency,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    sample_dpm_solver_sde,
    sample_unipc,
)
from toy_network import normal

FULL = NoiseSchedule.named()
SHAPE = (2, 4, 5, 3, 3)
MADE = torch.tensor([[0.0, 1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 0.2, 0.9, 1.0]])
FIXED = Process("x0", "fixed_small")
STEPS = 10
SOLVERS = {
    "dpm-solver": sample_dpm_solver,
    "dpm-solver-sde": sample_dpm_solver_sde,
    "dpm-solver-3m-sde": partial(sample_dpm_solver_sde, order=3),
    "unipc": sample_unipc,
}
NOISY = ("ddpm", "consistency", "dpm-solver-sde", "dpm-solver-3m-sde")
every_sampler = pytest.mark.parametrize("name", ["ddpm", "ddim", "consistency", *SOLVERS])


class Watched:
    """A network that predicts x_0 from x, and notes what it was shown."""

    def __init__(self):
        self.x, self.noisy = [], []

    def __call__(self, x, level):
        self.x.append(x)
        self.noisy.append(level.noisy)
        return torch.tanh(x.float()) * 0.5


def run(name, x, frames, network=None, noise=None):
    network, noise = network or Watched(), noise or SampleNoise(1, range(2))
    if name in SOLVERS:
        return SOLVERS[name](network, FULL, x, noise, process=FIXED, frames=frames, steps=STEPS)
    sample = {"ddpm": sample_ddpm, "ddim": sample_ddim, "consistency": sample_consistency}[name]
    return sample(network, FULL.respaced(STEPS), x, noise, process=FIXED, frames=frames)


def frame(x, row, number):
    return x[row, :, number]


@every_sampler
def test_kept_frames_come_back_and_the_others_are_made(name):
    x, network = normal(*SHAPE), Watched()
    out = run(name, x, FrameMask(MADE), network)
    for row, number in ((0, 0), (0, 4)):
        # on a discrete schedule a kept frame takes part in the last step, which changes it a little, as in the original
        assert all(torch.equal(frame(seen, row, number), frame(x, row, number)) for seen in network.x[: STEPS - 1])
        if name not in WHOLE:
            assert torch.equal(frame(out, row, number), frame(x, row, number))
    assert not torch.equal(frame(out, 0, 1), frame(x, 0, 1))
    assert not torch.equal(frame(out, 1, 2), frame(x, 1, 2))


@every_sampler
def test_a_frame_of_half_an_edit_joins_in_the_middle(name):
    x, network = normal(*SHAPE), Watched()
    run(name, x, FrameMask(MADE), network)
    moved = [k for k in range(STEPS) if not torch.equal(frame(network.x[k], 0, 2), frame(x, 0, 2))]
    told = [k for k in range(STEPS) if network.noisy[k][0, 2]]
    assert moved == list(range(moved[0], STEPS))
    assert moved[0] in (STEPS // 2 - 1, STEPS // 2)
    # Open-Sora 1.1 tells the network one step later
    assert told == (moved[1:] if name in WHOLE else moved)
    assert [bool(noisy[0, 1]) for noisy in network.noisy] == [True] * STEPS


@every_sampler
def test_a_mask_of_ones_makes_every_frame_as_no_mask_does(name):
    x, draws = normal(*SHAPE), iter(range(100))

    def noise(x):
        return normal(*x.shape, seed=next(draws))

    class Half:
        """Every second draw is that of the mask, which is not used."""

        def __init__(self):
            self.calls = 0

        def __call__(self, x):
            self.calls += 1
            return torch.full_like(x, 1e9) if self.calls % 2 or name not in NOISY else noise(x)

    masked = run(name, x, FrameMask(torch.ones(2, 5)), noise=Half())
    draws = iter(range(100))
    assert torch.equal(masked, run(name, x, None, noise=noise))


@every_sampler
def test_clean_frames_are_put_into_the_noise(name):
    x, clean = normal(*SHAPE), normal(*SHAPE, seed=4)
    placed = torch.where((MADE == 1)[:, None, :, None, None], x, clean)
    expected = run(name, placed, FrameMask(MADE))
    assert torch.equal(run(name, x, FrameMask(MADE, clean)), expected)


@every_sampler
def test_a_network_that_reads_no_mask_is_shown_kept_frames_noised_to_the_level(name):
    x, clean, network = normal(*SHAPE), torch.zeros(SHAPE), Watched()
    run(name, x, FrameMask(MADE, clean, replace=True), network)
    first, last = (frame(network.x[k], 0, 0).std() for k in (0, STEPS - 1))
    assert first > 0.8  # almost pure noise around a clean frame of zeros
    assert last < first / 2


@pytest.mark.parametrize("name", ["dpm-solver", "unipc"])
def test_the_first_step_of_a_frame_that_joins_is_of_first_order(name):
    """Beside frames that move, it is what it would be if the run began there: no history from before leaks in."""
    x, network = normal(*SHAPE), Watched()
    made = torch.tensor([[1.0, 1.0, 0.5, 1.0, 1.0]] * 2)
    run(name, x, FrameMask(made), network)
    joins = next(k for k in range(STEPS) if network.noisy[k][0, 2])
    before, after = network.x[joins][:, :, 2], network.x[joins + 1][:, :, 2]
    levels = [FULL.between(1 - k / STEPS * (1 - 1 / len(FULL))) for k in (joins, joins + 1)]
    # DDIM's step, which is the solver's of first order
    x_0 = torch.tanh(before) * 0.5
    eps = (before - levels[0].alpha * x_0) / levels[0].sigma
    assert torch.allclose(after, levels[1].alpha * x_0 + levels[1].sigma * eps, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_frame_that_joins_moves_as_if_its_run_began_there(name):
    """No step takes a prediction into account that was made before, while the frame was kept."""
    times, joins = (999, 900, 750, 600, 499, 380, 250, 160, 90, 40, 10), 4
    watched = Watched(), Watched()
    for network, visited, made in ((watched[0], times, 0.5), (watched[1], times[joins:], 1.0)):
        x = normal(*SHAPE) if made < 1 else watched[0].x[joins]
        mask, spacing = torch.ones(2, 5), Explicit(visited)
        mask[:, 2] = made
        own = {"process": FIXED, "frames": FrameMask(mask), "steps": len(visited), "spacing": spacing}
        SOLVERS[name](network, FULL, x, torch.zeros_like, **own)
    assert [bool(noisy[0, 2]) for noisy in watched[0].noisy] == [k >= joins for k in range(len(times))]
    for joined, begun in zip(watched[0].x[joins:], watched[1].x, strict=True):
        assert torch.allclose(joined[:, :, 2], begun[:, :, 2], atol=1e-5)


@every_sampler
def test_latents_in_half_precision_are_computed_in_single(name):
    x, seen = normal(*SHAPE).bfloat16(), []

    def noise(like):
        seen.append(like.dtype)
        return normal(*like.shape).to(like.dtype)

    out = run(name, x, None, noise=noise)
    assert out.dtype == torch.float32
    if name == "ddpm":
        assert seen == [torch.bfloat16] + [torch.float32] * (STEPS - 1)  # as in Open-Sora 1.1
    else:
        assert torch.equal(out, run(name, x.float(), None, noise=noise))


def test_frames_in_half_precision_are_noised_in_single():
    x, noise, level = normal(*SHAPE).bfloat16(), normal(*SHAPE, seed=1).bfloat16(), FULL.between(0.4)
    shown, told = FrameMask(MADE).begin(x, level, lambda _: noise)
    expected, _ = FrameMask(MADE).begin(x.float(), level, lambda _: noise.float())
    assert shown.dtype == torch.float32
    assert torch.equal(shown, expected)
    assert told.noisy[0].tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("made", "clean", "x", "message"),
    [
        (torch.full((2, 5), 1.5), None, SHAPE, "needs one value in \\[0, 1\\]"),
        (torch.full((2, 5), float("nan")), None, SHAPE, "needs one value in \\[0, 1\\]"),
        (torch.ones(5), None, SHAPE, "shape \\(5,\\)"),
        (torch.ones(2, 4), None, SHAPE, "mask is \\(2, 4\\), expected one value a frame: \\(2, 5\\)"),
        (torch.ones(2, 3), None, (2, 4, 3, 3), "expected one value a frame"),
        (torch.ones(2, 5), torch.zeros(2, 4, 5, 3, 2), SHAPE, "clean frames of a mask are \\(2, 4, 5, 3, 2\\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(made, clean, x, message):
    with pytest.raises(InputError, match=message):
        run("ddpm", normal(*x), FrameMask(made, clean))
