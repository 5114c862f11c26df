import math

import numpy as np
import pytest

from guidon.core.errors import InputError
from guidon.diffusion import FlowPath, NoiseSchedule
from guidon.diffusion.flow import shifted
from guidon.diffusion.spacing import UNIFORM, Explicit, Karras, Power, Split, parse_spacing, whole_timesteps

FULL = NoiseSchedule.named()
TEXTS = ("uniform", "quadratic", "power:0.5", "karras", "karras:3", "logsnr", "split:0.35,0.5", "at:999,500.5,0")
NOISE = 0.5 * (np.log1p(-FULL.alphas_cumprod) - np.log(FULL.alphas_cumprod))


@pytest.mark.parametrize("text", TEXTS[1:])
def test_its_text_is_read_back(text):
    assert parse_spacing(text).text == text


@pytest.mark.parametrize("spacing", [Power(1 + 1e-9), Karras(1000 / 3), Split(0.3499999, 1 / 3)])
def test_no_digit_of_it_is_lost(spacing):
    assert parse_spacing(spacing.text) == spacing


def test_one_choice_has_one_spelling():
    assert parse_spacing("power:1") == parse_spacing("uniform") == UNIFORM
    assert parse_spacing("power:2").text == "quadratic"
    assert parse_spacing("karras:7").text == "karras"
    assert [parse_spacing(f"power:{power}").text for power in (0.05, 20)] == ["power:0.05", "power:20"]


@pytest.mark.parametrize("text", TEXTS[:-1])
@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_fractions_fall_from_noise_to_data(text, count):
    found = parse_spacing(text).fractions(count, NOISE)
    assert len(found) == count
    assert found[0] == 1
    assert (np.diff(found) < 0).all()
    assert count == 1 or found[-1] == pytest.approx(0, abs=1e-6)


def test_each_kind_is_even_in_its_own_measure():
    def even(values):
        gaps = np.diff(values)
        return np.ptp(gaps) < 1e-3 * abs(gaps).mean()

    def noise_at(fractions):
        return np.interp(fractions, np.linspace(0, 1, len(NOISE)), NOISE)

    assert even(np.sqrt(parse_spacing("quadratic").fractions(9, NOISE)))
    assert even(noise_at(parse_spacing("logsnr").fractions(9, NOISE)))
    assert even(np.exp(noise_at(parse_spacing("karras:3").fractions(9, NOISE)) / 3))
    split = parse_spacing("split:0.4,0.7").fractions(10, NOISE)
    assert (split < 0.4).sum() == 7
    assert (parse_spacing("split:0.35,0.29").fractions(100, NOISE) < 0.35).sum() == 29
    assert even(split[:3])
    assert even(split[3:])


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("steps", [2, 3, 8, 10, 20])
def test_the_divided_steps_are_as_many_on_each_side_whatever_ends_the_run(steps, share):
    split = Split(0.4, share)
    below = sum(timestep < 0.4 * 999 for timestep in FULL.spaced_by(steps, split).timestep_map)
    assert below == max(1, round(share * steps))
    flow = [level.timestep for level in FlowPath().spaced_by(steps, split).levels]
    assert (len(flow), sum(timestep < 400 for timestep in flow)) == (steps, below)
    times = FULL.times_spaced_by(steps, split)
    assert (len(times), sum(1000 * time - 1 < 0.4 * 999 for time in times[:-1])) == (steps + 1, below)


@pytest.mark.parametrize("text", ["power:9", "logsnr", "power:0.1"])
@pytest.mark.parametrize("count", [1, 30, 999, 1000])
def test_whole_timesteps_are_as_many_as_asked_for(text, count):
    found = whole_timesteps(parse_spacing(text).fractions(count, NOISE), 999)
    assert len(set(found)) == count
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] == 999 if count > 1 else found[-1] <= 999


def test_a_uniform_one_is_what_a_schedule_does_without():
    for steps in (2, 10, 50):
        assert FULL.spaced_by(steps, UNIFORM).timestep_map.tolist() == FULL.respaced(steps).timestep_map.tolist()
        flow = FlowPath(shift=3.0)
        with_it = [level.timestep for level in flow.spaced_by(steps, UNIFORM).levels]
        assert with_it == pytest.approx([level.timestep for level in flow.respaced(steps).levels])


def test_the_times_of_a_solver_reach_from_noise_to_the_first_level():
    assert FULL.times_spaced_by(4, UNIFORM) == pytest.approx(np.linspace(1, 0.001, 5))
    levels = [FULL.between(time) for time in FULL.times_spaced_by(8, parse_spacing("karras"))]
    gaps = np.diff([(level.sigma / level.alpha) ** (1 / 7) for level in levels])
    assert np.ptp(gaps) < 2e-3 * abs(gaps).mean()


def test_it_keeps_the_marginals_of_the_schedule():
    few = FULL.spaced_by(8, Power(1.5))
    assert few.alphas_cumprod == pytest.approx(FULL.alphas_cumprod[few.timestep_map])


def test_listed_timesteps_are_visited():
    listed = Explicit((999, 600, 30))
    assert FULL.spaced_by(3, listed).timestep_map.tolist() == [30, 600, 999]
    assert FULL.times_spaced_by(3, listed) == pytest.approx([1.0, 0.601, 0.031, 0.001])
    assert FULL.times_spaced_by(2, Explicit((999, 0)))[-1] == 0
    assert [level.timestep for level in FlowPath(shift=3.0).spaced_by(3, listed).levels] == [999, 600, 30]


@pytest.mark.parametrize("text", ["quadratic", "logsnr", "karras", "split:0.3,0.5"])
def test_a_flow_ends_at_the_data_once(text):
    levels = FlowPath().spaced_by(6, parse_spacing(text)).levels
    assert levels[0].timestep == 1000
    times = [level.timestep for level in levels]
    assert times == sorted(set(times), reverse=True)
    assert times[-1] > 0
    assert levels[-1].next is not None
    assert levels[-1].next.sigma == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uniformly", "did you mean 'uniform'"),
        ("power:0", "the power 0 is not valid: give a number from 0.05 to 20"),
        ("power:20.5", "the power 20.5 is not valid"),
        ("power:x", "cannot be read: give a power such as power:1.5"),
        ("power", "cannot be read: give a power"),
        ("karras:-1", "karras has the exponent -1"),
        (f"karras:{math.nan}", "karras has the exponent nan"),
        ("split:0.5", "cannot be read: give a fraction"),
        ("split:0,0.5", "both above 0 and below 1"),
        ("at:1,2", "do not fall from noise to 0"),
        ("at:nan", "do not fall"),
        ("at:inf,1", "do not fall"),
        ("at:5,-1", "do not fall"),
        ("at:", "cannot be read: give timesteps"),
    ],
)
def test_what_is_no_spacing_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_spacing(text)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ((999, 0), "lists 2 timesteps, steps is 3: give as many"),
        ((1000, 500, 0), "begins at timestep 1000, the largest of the model is 999"),
        ((999, 0.5, 0), "lists timestep 0.5, and this sampler takes whole ones"),
    ],
)
def test_listed_timesteps_that_do_not_fit_are_refused(timesteps, message):
    with pytest.raises(InputError, match=message):
        FULL.spaced_by(3, Explicit(timesteps))


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_schedule_has_no_more_steps_than_timesteps(steps):
    assert len(FULL.spaced_by(1000, Power(1.5))) == 1000
    with pytest.raises(InputError, match=f"a schedule was asked for steps {steps}: give 1 to 1000"):
        FULL.spaced_by(steps, Power(1.5))


def test_a_flow_shifts_the_steps_that_a_spacing_does_not_place_by_their_noise():
    for text, is_shifted in (("quadratic", True), ("split:0.3,0.5", True), ("logsnr", False), ("karras", False)):
        plain, other = (
            [level.timestep / 1000 for level in FlowPath(shift=shift).spaced_by(6, parse_spacing(text)).levels]
            for shift in (1.0, 3.0)
        )
        assert other == pytest.approx([shifted(u, 3.0) if is_shifted else u for u in plain]), text


def test_a_flow_spaces_its_noise_between_half_a_timestep_and_the_rest():
    levels, most = FlowPath().spaced_by(6, parse_spacing("logsnr")).levels, math.log(999.5 / 0.5)
    wanted = [1 / (1 + math.exp(-most * (1 - k / 3))) for k in range(6)]
    assert [level.sigma for level in levels] == pytest.approx([1, *wanted[1:]], abs=1e-4)


def test_a_flow_takes_as_many_listed_timesteps_as_it_has_steps():
    with pytest.raises(InputError, match="lists 2 timesteps, steps is 3: give as many"):
        FlowPath().spaced_by(3, Explicit((1000, 500)))


def test_a_flow_does_not_begin_a_step_at_the_data():
    with pytest.raises(InputError, match="ends at timestep 0, which is the data itself"):
        FlowPath().spaced_by(2, Explicit((1000, 0)))
    assert [level.timestep for level in FlowPath().spaced_by(2, Explicit((1000, 0.5))).levels] == [1000, 0.5]
