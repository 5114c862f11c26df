import torch

from guidon.guidance import START, Guidance
from guidon.guidance.rules import Momentum
from toy_network import SCHEDULE, Network, branches, denoiser, draw, flow_level, latents, normal, plain


def test_momentum_pushes_the_velocity_away_from_the_mean_of_those_before():
    rule, kept, mean = Momentum(alpha=0.5, beta=0.6), {}, None
    for seed in range(0, 8, 2):
        cond, uncond = draw(seed, seed + 1)
        b = branches(cond=cond, uncond=uncond, kept=kept)
        velocity = plain(b, 3.0)
        mean = velocity if mean is None else mean  # the first step is plain guidance
        assert torch.allclose(rule(b, 3.0), velocity + 0.5 * (velocity - mean), atol=1e-5)
        kept, mean = rule.keeps(b, 3.0), 0.6 * mean + 0.4 * velocity
        assert torch.allclose(kept["mean"], mean, atol=1e-5)


def test_momentum_changes_nothing_where_the_velocity_stays():
    b = branches()
    later = branches(kept=Momentum().keeps(b, 3.0))
    assert torch.allclose(Momentum()(later, 3.0), plain(b, 3.0), atol=1e-5)


def test_a_run_under_momentum_is_guided_by_the_velocities_of_its_guided_steps():
    """Steps without guidance leave the mean as it was."""
    guidance = Guidance(3.0, 3, "momentum", "interval:0.2,0.9")
    memory, means = START, []
    for number, s in enumerate((1.0, 0.7, 0.5, 0.3, 0.05)):
        cond, uncond, x = (normal(2, 4, 4, 4, seed=10 * number + k) for k in range(3))
        _, memory = guidance.combine(cond, uncond, x, flow_level(s), memory, parameterization="flow")
        means.append(memory.kept.get("mean"))
    assert means[0] is None
    assert means[1].shape == (2, 3, 4, 4)  # of the guided channels alone
    assert means[4] is means[3]
    assert (memory.calls, memory.guided) == (5, 3)


def test_a_run_begins_without_memory():
    runs = [denoiser(Guidance(3.0, 3, "momentum"), Network("v")) for _ in range(2)]
    first, second = ([run(latents(), level) for level in SCHEDULE.levels[:3]] for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
