import dataclasses

import pytest
import torch

from guidon.diffusion import NoiseSchedule
from guidon.models.parts.layers import unpatch
from guidon.models.parts.refiner import Refiner
from guidon.models.stdit.network import STDiT, STDiTConfig

PLAIN = STDiTConfig(
    (4, 8, 8), patch_size=(4, 2, 2), hidden_size=32, depth=1, num_heads=4, caption_channels=12, model_max_length=6
)
FINISHED = dataclasses.replace(PLAIN, finisher_channels=8, finisher_depth=2)
REFINED = dataclasses.replace(PLAIN, refiner_channels=8, refiner_depth=2)
INPUTS = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 400])


def drawn(module):
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def test_a_new_refiner_changes_nothing_and_learns():
    y = torch.randn(2, 6, 12)
    plain, refined = drawn(STDiT(PLAIN)), STDiT(REFINED)
    refined.load_state_dict(plain.state_dict(), strict=False)
    out = refined(*INPUTS, y)
    assert torch.equal(out, plain(*INPUTS, y))
    out[:, :4].square().sum().backward()
    assert refined.refiner is not None
    assert refined.refiner.exit.weight.grad.abs().max() > 0
    other = drawn(STDiT(REFINED))
    other(*INPUTS, y).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in other.parameters())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_changes_the_prediction_and_leaves_the_variance(dtype):
    y = torch.randn(2, 6, 12)
    plain, refined = drawn(STDiT(PLAIN)).to(dtype), drawn(STDiT(REFINED)).to(dtype)
    refined.load_state_dict(plain.state_dict(), strict=False)
    ours, theirs = refined(*INPUTS, y), plain(*INPUTS, y)
    assert ours.dtype == torch.float32
    assert torch.equal(ours[:, 4:], theirs[:, 4:])
    assert (ours[:, :4] - theirs[:, :4]).abs().mean() > 0.01


@torch.no_grad()
@pytest.mark.parametrize(("axis", "margin"), [(2, 4), (3, 5), (4, 5)])
def test_its_weights_are_the_same_everywhere(axis, margin):
    """What it sees moves by a latent pixel or a frame, so does what it draws, away from the borders."""
    refiner = drawn(Refiner(4, (1, 1, 1), 8, 8, 1))
    x, prediction, tokens = torch.randn(1, 4, 12, 14, 14), torch.randn(1, 4, 12, 14, 14), torch.randn(1, 8, 12, 14, 14)
    t = torch.randn(1, 8)

    def draw(*inputs):
        *seen, known = inputs
        return refiner(*seen, known.flatten(2).transpose(1, 2), t, (12, 14, 14))

    still = draw(x, prediction, tokens)
    moved = draw(*(value.roll(1, axis) for value in (x, prediction, tokens)))
    inside = (slice(None), slice(None), *(slice(margin + 1, -margin) if axis == k else slice(None) for k in (2, 3, 4)))
    assert torch.allclose(moved[inside], still.roll(1, axis)[inside], atol=1e-4)
    assert not torch.allclose(moved[inside], still[inside], atol=1e-2)


def test_tokens_go_back_to_their_places():
    latents = torch.arange(2 * 3 * 4 * 4 * 6.0).view(2, 3, 4, 4, 6)
    patches = latents.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 3, 3)  # (B, C, nt, nh, nw, pt, ph, pw)
    tokens = patches.permute(0, 2, 3, 4, 5, 6, 7, 1).flatten(4).flatten(1, 3)
    assert torch.equal(unpatch(tokens, (2, 2, 2), (2, 2, 3)), latents)


def finished(**changes):
    """The plain network, and the same one with a finisher."""
    plain, more = drawn(STDiT(PLAIN)), drawn(STDiT(dataclasses.replace(FINISHED, **changes)))
    more.load_state_dict(plain.state_dict(), strict=False)
    return plain, more


@torch.no_grad()
def test_a_finisher_acts_in_the_last_steps_alone():
    plain, more = finished()
    y = torch.randn(2, 6, 12)
    ours, theirs = more(*INPUTS, y), plain(*INPUTS, y)  # timesteps 5 and 400
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[:, 4:], theirs[:, 4:])  # the variance
    assert (ours[0, :4] - theirs[0, :4]).abs().mean() > 0.01
    x, schedule = INPUTS[0], NoiseSchedule.named("linear", 1000).respaced(50)
    for level in schedule.levels:
        same = torch.equal(more(x, level, more.prepare(y)), plain(x, level, plain.prepare(y)))
        assert same == (level.timestep >= 100)
    assert any(level.timestep < 100 for level in schedule.levels)


@torch.no_grad()
def test_a_finisher_reads_the_caption_and_ignores_its_padding():
    plain, more = finished()
    x, t = INPUTS[0][:1].expand(2, -1, -1, -1, -1), torch.tensor([5, 5])
    y = torch.randn(2, 6, 12)
    nothing = more.finisher.refiner  # the same blocks for both captions, so that only the finisher tells them apart
    seen = []
    for caption in (y[:1], y[1:]):
        prepared = more.prepare(caption)
        assert len(prepared.keys_values) == len(plain.prepare(caption).keys_values) + 1
        tokens, prediction = torch.ones(1, 16, 32), torch.ones(1, 4, 4, 8, 8)
        keys_values = prepared.keys_values[-1]
        seen.append(more.finisher(x[:1], prediction, tokens, torch.ones(1, 32), (1, 4, 4), keys_values, None))
        assert seen[-1].shape == prediction.shape
        assert not torch.equal(seen[-1], nothing(x[:1], prediction, tokens, torch.ones(1, 32), (1, 4, 4)))
    assert not torch.allclose(seen[0], seen[1])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)
    padded = torch.cat([y[:, :3], torch.randn(2, 3, 12)], dim=1)
    assert torch.allclose(more(x, t, y, mask), more(x, t, padded, mask), atol=1e-5)


def test_a_new_finisher_changes_nothing_and_learns():
    plain = drawn(STDiT(PLAIN))
    more = STDiT(FINISHED)
    more.load_state_dict(plain.state_dict(), strict=False)
    y = torch.randn(2, 6, 12)
    out = more(*INPUTS, y)
    assert torch.equal(out, plain(*INPUTS, y))
    out[:, :4].square().sum().backward()
    assert more.finisher.refiner.exit.weight.grad.abs().max() > 0
    other = drawn(STDiT(FINISHED))
    other(*INPUTS, y).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in other.parameters())


@torch.no_grad()
@pytest.mark.parametrize("end", [1000, 100])
@pytest.mark.parametrize("config", [REFINED, FINISHED])
def test_each_row_is_refined_at_its_own_timestep(config, end):
    """Training mixes timesteps in a batch, which sampling does not."""
    made = drawn(STDiT(dataclasses.replace(config, finisher_end=end, refiner_end=end)))
    (x, t), y = INPUTS, torch.randn(2, 6, 12)
    together = made(x, t, y)
    for row in range(2):
        alone = made(x[row : row + 1], t[row : row + 1], y[row : row + 1])
        assert torch.allclose(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_batch_that_the_refiner_leaves_alone_gives_gradients_of_zero_in_training():
    """Ranks sum the gradients of the same weights, whatever timesteps each has."""
    made = drawn(STDiT(dataclasses.replace(REFINED, refiner_end=10))).train()
    (x, _), y, t = INPUTS, torch.randn(2, 6, 12), torch.tensor([10, 500])
    out = made(x, t, y)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert not any(parameter.grad.any() for parameter in made.refiner.parameters())
    made.eval().refiner = torch.nn.Module()  # which is not called
    assert torch.equal(made(x, t, y), out)


@torch.no_grad()
def test_a_frame_is_refined_by_those_near_it_alone():
    refiner = drawn(Refiner(4, (1, 1, 1), 8, 8, 1))
    x, t, grid = torch.randn(1, 4, 12, 6, 6), torch.randn(1, 8), (12, 6, 6)
    tokens, other = torch.randn(1, 12 * 36, 8), x.clone()
    other[:, :, -1] += 1
    changed = (refiner(x, x, tokens, t, grid) != refiner(other, other, tokens, t, grid)).any(4).any(3).any(1)
    assert changed[0].tolist() == [False] * 9 + [True] * 3


@torch.no_grad()
@pytest.mark.parametrize("part", ["refiner", "finisher"])
def test_the_last_timestep_of_a_part_is_the_one_below_its_end(part):
    config, y = (REFINED if part == "refiner" else FINISHED), torch.randn(2, 6, 12)
    plain, more = drawn(STDiT(PLAIN)), drawn(STDiT(dataclasses.replace(config, **{f"{part}_end": 100})))
    more.load_state_dict(plain.state_dict(), strict=False)
    schedule = NoiseSchedule.named("linear", 1000)
    for timestep in (99, 100, 101):
        t = torch.tensor([timestep] * 2)
        for at in (t, schedule.levels[-1 - timestep]):
            same = torch.equal(more(INPUTS[0], at, more.prepare(y)), plain(INPUTS[0], at, plain.prepare(y)))
            assert same == (timestep >= 100), timestep


@torch.no_grad()
def test_a_refiner_is_told_what_the_blocks_are_told(monkeypatch):
    made, seen = drawn(STDiT(REFINED)), []
    refine, told = made.refiner.forward, torch.randn(2, 32)
    monkeypatch.setattr(made.refiner, "forward", lambda *given: seen.append(given[3]) or refine(*given))
    made(*INPUTS, dataclasses.replace(made.prepare(torch.randn(2, 6, 12)), told=told))
    assert torch.allclose(seen[0], made.t_embedder(INPUTS[1]) + told, atol=1e-6)
