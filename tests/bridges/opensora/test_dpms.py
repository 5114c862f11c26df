"""DPMS against the numbers of Open-Sora 1.0's and PixArt's, and what it refuses."""

import pytest
import torch

from goldens import golden, relative_error
from guidon import iddpm
from guidon.core.errors import InputError
from toy_network import normal


def model(g, channels=4):
    """The toy model of the golden ``iddpm/dropin``; its condition has no name."""

    def called(x, t, condition):
        mixed = torch.einsum("oc,bcthw->bothw", g["weight"][:channels], x) * (1 + t.view(-1, 1, 1, 1, 1) / 1000)
        return torch.tanh(mixed + g["bias"][:channels].view(-1, 1, 1, 1) + condition.view(-1, 1, 1, 1, 1))

    return called


CONDITION, NULL = torch.tensor([0.8, -0.4, 0.1]), torch.zeros(3)


@pytest.mark.parametrize(("schedule", "steps"), [("linear", 12), ("squaredcos_cap_v2", 8)])
def test_samples_are_the_originals(schedule, steps):
    g, _ = golden("iddpm/dropin")
    solver = iddpm.DPMS(model(g), CONDITION, NULL, 4.5, noise_schedule=schedule)
    found = solver.sample(g["x"], steps=steps, order=2, skip_type="time_uniform", method="multistep")
    assert relative_error(found, g[f"dpms.{schedule}"]) < 1e-5
    # the variance is not read
    double = model(g, 8)
    found = iddpm.DPMS(double, CONDITION, NULL, 4.5, noise_schedule=schedule).sample(g["x"], steps)
    assert relative_error(found, g[f"dpms.{schedule}"]) < 1e-5


def test_channels_are_guided_by_choice_and_keywords_reach_both_branches():
    g, _ = golden("iddpm/dropin")
    seen = []

    def watched(x, t, condition, mask):
        seen.append((len(x), condition.tolist(), mask.tolist()))
        return model(g)(x, t, condition)

    args = {"model_kwargs": {"mask": torch.tensor([1, 2, 3])}}
    all_of_them = iddpm.DPMS(watched, CONDITION, NULL, 4.5, **args).sample(g["x"], 4)
    three = iddpm.DPMS(watched, CONDITION, NULL, 4.5, cfg_channels=3, **args).sample(g["x"], 4)
    assert seen[0] == (6, [*CONDITION.tolist(), *NULL.tolist()], [1, 2, 3, 1, 2, 3])
    assert not torch.equal(all_of_them, three)
    seen.clear()
    alone = iddpm.DPMS(watched, CONDITION, None, 4.5, **args).sample(g["x"], 4)
    assert [rows for rows, _, _ in seen] == [3] * 4
    assert torch.equal(alone, iddpm.DPMS(watched, CONDITION, NULL, 1.0, **args).sample(g["x"], 4))


def test_without_a_condition():
    seen = []

    def unconditional(x, t, flag):
        seen.append((len(x), float(t[0]), flag))
        return x.tanh()

    args = {"guidance_type": "uncond", "diffusion_steps": 500, "model_kwargs": {"flag": 5}}
    for given in ((None, None, 1.0), (CONDITION, NULL, 4.5)):  # which are not used
        iddpm.DPMS(unconditional, *given, **args).sample(normal(3, 4, 2, 2), 2)
    assert [rows for rows, _, _ in seen] == [3] * 4
    assert seen[0][1] == pytest.approx(998)  # timesteps reach 1000 whatever T is
    assert seen[0][2] == 5


@pytest.mark.parametrize(
    ("made", "sampled", "message"),
    [
        ({"model_type": "v"}, {}, "model_type 'v': Guidon's solver has model_type 'noise' only"),
        ({"guidance_type": "classifier"}, {}, "'classifier-free' or 'uncond' only"),
        ({"noise_schedule": "quad"}, {}, "noise schedule 'quad' does not exist"),
        ({}, {"order": 3}, "order 3: Guidon's solver has order 2 only"),
        ({}, {"method": "singlestep"}, "method 'multistep' only"),
        ({}, {"skip_type": "logSNR"}, "skip_type 'time_uniform' only"),
        ({}, {"t_end": 0.1}, "t_end None only"),
        ({}, {"denoise_to_zero": True}, "denoise_to_zero False only"),
        ({}, {"solver_type": "taylor"}, "solver_type 'dpmsolver' only"),
        ({}, {"steps": 1}, "1 steps were asked for"),
    ],
)
def test_what_the_solver_does_not_have_is_refused(made, sampled, message):
    with pytest.raises(InputError, match=message):
        iddpm.DPMS(lambda x, t, c: x, CONDITION, NULL, 2.0, **made).sample(normal(3, 4, 2, 2), **sampled)
