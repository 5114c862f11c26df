import numpy as np
import pytest
import torch

from guidon.core.errors import InputError
from guidon.guidance import Guidance, GuidanceTrace, RotatedGuidance, added_energy, random_rotation
from guidon.guidance.rotation import rotate
from toy_network import COND, SCHEDULE, UNCOND, Network, denoiser, latents, level_at, predicted


def test_the_trace_holds_the_norms_of_the_difference():
    trace = GuidanceTrace()
    run = denoiser(Guidance(4.0, 3, timing="interval:0,0.6"), observe=trace)
    for step in (19, 10, 0):
        run(latents(), level_at(step))
    arrays = trace.as_arrays()
    assert len(trace) == 2
    assert arrays["difference"].shape == arrays["cosine"].shape == (2, 2, 4)
    assert arrays["timestep"].tolist() == [999, SCHEDULE.timestep_map[10]]
    assert arrays["scale"][0].tolist() == [4, 4, 4, 1]
    cond, uncond = predicted(COND, 19)[:, :4], predicted(UNCOND, 19)[:, :4]
    assert np.allclose(arrays["difference"][:, 0], (cond - uncond).flatten(2).norm(dim=2), rtol=1e-5)
    a, b = (cond - uncond).flatten(2), cond.flatten(2)
    assert np.allclose(arrays["cond"][:, 0], b.norm(dim=2), rtol=1e-5)
    assert np.allclose(arrays["cosine"][:, 0], torch.cosine_similarity(a, b, dim=2), atol=1e-5)

    by_frame = trace.as_arrays(by_frame=True)
    expected = (cond - uncond).flatten(3).norm(dim=3)
    assert np.allclose(by_frame["difference"][:, 0], expected, rtol=1e-5)
    assert np.allclose((by_frame["difference"] ** 2).sum(-1), arrays["difference"] ** 2)
    with pytest.raises(ValueError, match="keep_x0=True"):
        _ = trace.x0


def test_images_have_one_frame():
    trace, x = GuidanceTrace(), latents()[:, :, 0]
    denoiser(Guidance(4.0, 3), observe=trace)(x, level_at(10))
    assert trace.as_arrays(by_frame=True)["difference"].shape == (2, 1, 4, 1)


def test_the_trace_keeps_the_clean_latents_of_both_branches_if_asked():
    for predicts in ("eps", "x0", "v", "flow"):
        trace, x = GuidanceTrace(keep_x0=True), latents()
        denoiser(Guidance(4.0, 3), Network(predicts), observe=trace)(x, level_at(10))
        cond, uncond = trace.x0
        assert cond.shape == uncond.shape == (1, *x.shape)
        signal = float(SCHEDULE.alphas_cumprod[10])
        for branch, condition in ((cond, COND), (uncond, UNCOND)):
            eps = predicted(condition, 10)[:, :4]
            assert torch.allclose(branch[0], (x - (1 - signal) ** 0.5 * eps) / signal**0.5, rtol=1e-3, atol=1e-3)


def test_a_trace_holds_one_run():
    trace = GuidanceTrace()
    for step in (12, 10, 10):  # schedulers of higher order visit a level twice
        denoiser(Guidance(4.0, 3), observe=trace)(latents(), level_at(step))
    assert len(trace) == 3
    with pytest.raises(InputError, match="a trace holds one run, and this one has seen another: use a new one"):
        denoiser(Guidance(4.0, 3), observe=trace)(latents(), level_at(12))


def test_a_trace_that_forgets_is_as_new():
    trace, again = GuidanceTrace(keep_x0=True), GuidanceTrace(keep_x0=True)
    denoiser(Guidance(4.0, 3), observe=trace)(latents(), level_at(10))
    trace.forget()
    assert len(trace) == 0
    for each in (trace, again):
        denoiser(Guidance(2.0, 3), observe=each)(latents(), level_at(12))
    assert all(np.array_equal(trace.as_arrays()[name], value) for name, value in again.as_arrays().items())
    assert all(torch.equal(a, b) for a, b in zip(trace.x0, again.x0, strict=True))


def test_samples_of_another_run_are_put_beside_those_of_a_trace():
    def traced(scale, x, step=10):
        trace = GuidanceTrace(keep_x0=True)
        denoiser(Guidance(scale, 3), observe=trace)(x, level_at(step))
        return trace

    joined, alone = GuidanceTrace(keep_x0=True), [traced(4.0, latents(seed)) for seed in (1, 2)]
    joined.add_samples(traced(4.0, latents(1)))
    joined.add_samples(alone[1])
    for name in ("difference", "cond", "cosine"):
        assert np.array_equal(joined.as_arrays()[name], np.concatenate([each.as_arrays()[name] for each in alone]))
    for k in range(2):
        assert torch.equal(joined.x0[k], torch.cat([each.x0[k] for each in alone], 1))
    for other in (traced(3.0, latents(2)), traced(4.0, latents(2), step=11)):
        with pytest.raises(InputError, match="two runs were guided at other steps"):
            joined.add_samples(other)


def test_a_trace_without_a_guided_step_is_empty():
    trace = GuidanceTrace()
    denoiser(Guidance(1.0), observe=trace)(latents(), level_at(10))
    assert len(trace) == 0
    assert trace.as_arrays()["timestep"].shape == (0,)


@pytest.mark.parametrize("rotation", [None, random_rotation(4, 1)], ids=["plain", "rotated"])
def test_what_guidance_adds_has_the_energy_that_the_trace_and_its_scales_say(rotation):
    trace, x = GuidanceTrace(keep_x0=True), latents()
    guidance, observe = Guidance(3.0, 3), trace
    if rotation is not None:
        guidance = RotatedGuidance(guidance, rotation)
        observe = guidance.observer(trace)
    prediction = denoiser(guidance, observe=observe)(x.clone(), level_at(9))[:, :4]
    arrays = trace.as_arrays()
    said = (((arrays["scale"] - 1) * arrays["difference"]) ** 2).sum((1, 2))
    added = (prediction - predicted(COND, 9)[:, :4]).square().flatten(1).sum(1).numpy()
    assert np.allclose(said, added, rtol=1e-3)
    assert added_energy(arrays) == pytest.approx(added.sum(), rel=1e-3)


def test_a_trace_under_a_rotation_is_of_the_directions_that_are_guided_and_of_the_latents_own_x0():
    rotation, trace, plain = random_rotation(4, 1), GuidanceTrace(keep_x0=True), GuidanceTrace(keep_x0=True)
    guidance = RotatedGuidance(Guidance(3.0, 3), rotation)
    denoiser(guidance, observe=guidance.observer(trace))(latents(), level_at(9))
    denoiser(guidance.guidance, observe=plain)(latents(), level_at(9))
    turned = rotate((predicted(COND, 9) - predicted(UNCOND, 9))[:, :4], rotation)
    assert np.allclose(trace.as_arrays()["difference"][:, 0], turned.flatten(2).norm(dim=2), rtol=1e-5)
    assert trace.as_arrays()["scale"].tolist() == [[3, 3, 3, 1]]
    assert all(torch.equal(a, b) for a, b in zip(trace.x0, plain.x0, strict=True))
