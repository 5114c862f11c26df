import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import FlowPath, clip_shift, q_sample, target, velocity_loss
from guidon.diffusion.flow import shifted
from guidon.diffusion.spacing import parse_spacing
from toy_network import normal

SHIFTS = st.floats(0.05, 40)


@given(st.integers(1, 60), SHIFTS, st.booleans())
def test_levels_fall_from_pure_noise_to_the_data(steps, shift, whole):
    levels = FlowPath(steps=steps, shift=shift, whole=whole).levels
    assert len(levels) == steps
    assert (levels[0].timestep, levels[0].alpha, levels[0].progress) == (1000, 0, 0)
    assert levels[-1].next is not None
    assert levels[-1].next.timestep == 0
    for level, after in itertools.pairwise(levels):
        assert level.next is after
        assert level.timestep > after.timestep
        assert after.alpha + after.sigma == pytest.approx(1)
        assert after.sigma == pytest.approx(after.timestep / 1000)


@given(st.floats(0, 1), SHIFTS, SHIFTS)
def test_shifts_compose_by_their_product(u, first, second):
    assert shifted(shifted(u, first), second) == pytest.approx(shifted(u, first * second), abs=1e-9)


@given(SHIFTS)
def test_a_tensor_of_times_is_shifted_as_each_of_them_and_keeps_its_ends(shift):
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    found = shifted(times, shift)
    assert found.tolist() == pytest.approx([shifted(u, shift) for u in times.tolist()])
    assert (shifted(times.float(), shift)[0], shifted(times.float(), shift)[-1]) == (0, 1)


@pytest.mark.parametrize("row", range(6))
def test_timesteps_of_a_run_are_those_of_rflow(row):
    tensors, case = golden("open_sora_1_1_to_2_0/rflow/transform")
    height, width, frames = case["rows"][row]
    path = FlowPath(by_size=True).for_clip(height, width, frames)
    for steps in (10, 30):
        found = torch.tensor([level.timestep for level in path.respaced(steps).levels])
        assert relative_error(found, tensors[f"{row}.sampling{steps}"]) < 1e-6


@pytest.mark.parametrize("row", range(6))
def test_sizes_in_bf16_round_as_in_open_soras_scripts(row):
    tensors, case = golden("open_sora_1_1_to_2_0/rflow/transform")
    path = FlowPath(by_size=True).for_clip(*case["rows"][row], torch.bfloat16)
    found = [1000 * shifted(t / 1000, path.shift, path.dtype) for t in tensors["t"].tolist()]
    assert relative_error(torch.tensor(found), tensors[f"{row}.bf16"]) < 1e-6


def test_a_batch_has_levels_in_fp32():
    level = FlowPath().at(torch.tensor([302.0, 7.0], dtype=torch.bfloat16), normal(2, 4, 3, 2, 2))
    assert level.alpha.dtype == level.sigma.dtype == torch.float32
    assert level.sigma.flatten().tolist() == pytest.approx([0.302, 0.007], rel=1e-5)
    assert level.progress.tolist() == pytest.approx([0.698, 0.993], rel=1e-5)


def test_timesteps_may_end_at_another_number():
    path = FlowPath(num_timesteps=500, steps=4)
    assert [level.timestep for level in path.levels] == [500, 375, 250, 125]
    assert [level.sigma for level in path.levels] == [1, 0.75, 0.5, 0.25]
    assert [level.progress for level in path.levels] == [0, 0.25, 0.5, 0.75]
    level = path.at(torch.tensor([500, 125]), normal(2, 4, 3))
    assert level.sigma.flatten().tolist() == [1, 0.25]
    assert {each.num_timesteps for each in (*path.levels, level)} == {500}


def test_whole_timesteps_are_rounded():
    rounded = [1000, 857, 714, 571, 429, 286, 143]
    assert [level.timestep for level in FlowPath(steps=7, whole=True).levels] == rounded
    found = [level.timestep for level in FlowPath(steps=7, whole=True, shift=3).levels]  # before the shift
    assert found == pytest.approx([1000 * shifted(t / 1000, 3) for t in rounded])


def test_a_size_changes_the_shift_only_where_the_path_says_so():
    path = FlowPath(shift=3)
    assert path.for_clip(720, 1280, 51) is path
    twice = FlowPath(shift=2, by_size=True).for_clip(512, 512)
    assert twice.shift == 2
    assert twice.for_clip(720, 1280) is twice
    assert FlowPath(by_size=True).for_clip(256, 512) == FlowPath(by_size=True).for_clip(256, 512, 1)
    assert clip_shift(256, 512) == pytest.approx(0.5**0.5)  # of a picture


def test_clips_of_few_frames_have_a_shift():
    """Where the original counts no latent frame, its timesteps are 0 or NaN."""
    shifts = [clip_shift(512, 512, frames) for frames in range(1, 18)]
    assert shifts == [math.sqrt(n) for n in (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5)]


def test_the_velocity_moves_a_sample_along_its_path():
    x_0, noise = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    path, t = FlowPath(), torch.tensor([1000.0, 311.5, 0.0])
    level = path.at(t, x_0)
    x_t = q_sample(x_0, level, noise)
    assert torch.equal(x_t[0], noise[0])
    assert torch.equal(x_t[2], x_0[2])
    later = path.at(t / 2, x_0)
    moved = x_t + (later.sigma - level.sigma) * target(x_0, noise, level, "flow")
    assert relative_error(moved, q_sample(x_0, later, noise)) < 1e-6


def test_the_loss_counts_the_frames_that_are_named():
    x_0, noise, velocity = (normal(2, 3, 4, 2, 2, seed=k) for k in range(3))
    frames = torch.tensor([[True, False, True, True], [False, False, True, False]])
    found = velocity_loss(velocity, x_0, noise, frames=frames)
    for row, named in enumerate(frames):
        part = [value[row : row + 1, :, named] for value in (velocity, x_0, noise)]
        assert torch.allclose(found[row], velocity_loss(*part))
    everything = velocity_loss(velocity, x_0, noise, frames=torch.ones_like(frames))
    assert torch.allclose(everything, velocity_loss(velocity, x_0, noise))
    weighted = velocity_loss(velocity, x_0, noise, importance=torch.tensor(2.5))
    assert torch.allclose(weighted, 2.5 * everything)
    assert torch.equal(velocity_loss(noise - x_0, x_0, noise), torch.zeros(2))


def test_it_can_be_copied_and_pickled_after_its_levels_were_made():
    path = FlowPath(shift=2)
    assert len(path.levels) == 1000
    for other in (copy.deepcopy(path), pickle.loads(pickle.dumps(path))):
        assert other == path
        assert other.is_same(path.respaced(3))
        assert other.is_same(path.spaced_by(4, parse_spacing("logsnr")))
        assert not other.is_same(FlowPath())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 0.0}, "shift of timesteps is 0"),
        ({"shift": math.inf}, "shift of timesteps is inf"),
        ({"num_timesteps": 0}, "a flow's number of timesteps is 0: give a whole number from 1 to 100,000"),
        ({"num_timesteps": 10**9}, "timesteps is 1000000000: give a whole number from 1 to 100,000"),
        ({"steps": 0}, "steps is 0: give a whole"),
        ({"steps": 2.5}, "steps is 2.5: give a whole"),
        ({"steps": 10**300}, r"steps is 1000\d+: give a whole"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        FlowPath(**settings)
