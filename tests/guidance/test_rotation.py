import pytest
import torch

from guidon.guidance import RULES, START, Guidance, RotatedGuidance, random_rotation
from guidon.guidance.rotation import rotate, rotate_back
from toy_network import COND, GENTLE, SCHEDULE, Network, denoiser, flow_level, latents, level_at, normal, predicted


def test_a_random_rotation_is_orthogonal_and_decided_by_its_seed():
    turn = random_rotation(4, 5)
    assert torch.allclose(turn @ turn.T, torch.eye(4), atol=1e-6)
    assert abs(torch.linalg.det(turn)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(turn, random_rotation(4, 5))
    assert not torch.allclose(turn, random_rotation(4, 6), atol=0.1)


def test_rotating_back_undoes_a_rotation():
    for shape in ((2, 4, 9), (2, 4, 8, 8), (2, 4, 2, 8, 8)):
        x, turn = normal(*shape), random_rotation(4, 5)
        assert torch.allclose(rotate_back(rotate(x, turn), turn), x, atol=1e-6)
        assert torch.allclose(rotate(x, turn)[:, 1], torch.einsum("c,bc...->b...", turn[1], x), atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_the_identity_rotation_guides_as_no_rotation_does(name):
    for channels in (3, "all", "0,2"):
        guidance = Guidance(0.6, channels, name)
        turned, plain = (denoiser(g, Network("v")) for g in (RotatedGuidance(guidance, torch.eye(4)), guidance))
        for number, level in enumerate(SCHEDULE.levels[::5]):
            assert torch.allclose(turned(latents(number), level), plain(latents(number), level), atol=1e-6)
        assert (turned.memory.calls, turned.memory.guided) == (plain.memory.calls, plain.memory.guided)


@pytest.mark.parametrize("name", ["cfg", "apg", "cfg-zero", "perp-neg", "autoguidance", "stg", "three-way"])
def test_a_rotation_changes_what_three_channels_are_and_not_what_all_are(name):
    turn = random_rotation(4, 5)

    def out(channels, rotation):
        guidance = Guidance(3.0, channels, name)
        return denoiser(guidance if rotation is None else RotatedGuidance(guidance, rotation))(latents(), level_at(9))

    plain, turned = out("all", None), out("all", turn)
    assert torch.allclose(plain[:, :4], turned[:, :4], atol=2e-3)
    assert torch.equal(plain[:, 4:], turned[:, 4:])
    assert not torch.allclose(out(3, None)[:, :4], out(3, turn)[:, :4], atol=0.05)


@pytest.mark.parametrize("name", RULES)
def test_an_unguided_direction_is_the_conditional_predictions(name):
    turn = random_rotation(4, 5)
    for channels, unguided in ((3, [3]), ("0,2", [1, 3]), ("only:1", [0, 2, 3])):
        guidance = Guidance(0.6, channels, GENTLE.get(name, name))
        found = denoiser(RotatedGuidance(guidance, turn))(latents(), level_at(9))
        difference = rotate(found[:, :4] - predicted(COND, 9)[:, :4], turn)
        assert difference[:, unguided].abs().max() < 1e-4
        assert difference.abs().max() > 0.05
        assert torch.equal(found[:, 4:], predicted(COND, 9)[:, 4:])


def test_where_guidance_does_not_act_the_conditional_prediction_is_left_as_it_is():
    guidance = RotatedGuidance(Guidance(3.0, 3, timing="interval:0.5,1"), random_rotation(4, 5))
    out = denoiser(guidance)(latents(), level_at(19))
    assert torch.equal(out, predicted(COND, 19))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype_is_rotated_in_fp32_and_given_back(dtype):
    guidance = RotatedGuidance(Guidance(3.0, 3, "apg"), random_rotation(4, 5))
    cond, uncond, x = (normal(2, 4, 8, 8, seed=seed).to(dtype) for seed in range(3))
    before = [tensor.clone() for tensor in (cond, uncond, x)]
    out, _ = guidance.combine(cond, uncond, x, flow_level(0.5), START, parameterization="flow")
    expected, _ = guidance.combine(cond.float(), uncond.float(), x.float(), flow_level(0.5), parameterization="flow")
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))
    assert all(torch.equal(tensor, old) for tensor, old in zip((cond, uncond, x), before, strict=True))
