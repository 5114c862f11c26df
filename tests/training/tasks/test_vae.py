import math
import shutil

import pytest
import torch

from guidon import world
from guidon.checkpoints import load_component, save_component
from guidon.core.errors import InputError
from guidon.training import run_recipe
from guidon.training.tasks.vae import Reconstruction, frames_of
from panned_clips import write_clips
from recipes import VAE_SHAPE, assert_rows_are_those_of_the_batch, rows_of, vae_recipe, vae_task


def test_it_is_trained_exported_and_logged(tmp_path):
    path = run_recipe(vae_recipe(tmp_path))
    component = load_component(path, "vae")
    assert component.record["steps"] == 4
    assert component.record["psnr"] > 0
    assert component.config["scaling_factor"] > 0
    assert [row["step"] for row in rows_of(tmp_path / "vae")] == ["2", "4"]


def test_a_rank_draws_its_rows_of_the_batch(tmp_path):
    assert_rows_are_those_of_the_batch(vae_task(tmp_path), 4)


def test_it_learns(tmp_path):
    run_recipe(vae_recipe(tmp_path, steps=20, batch_size=8, log_every=5, optimiser={"lr": 0.01, "warmup_steps": 1}))
    rows = rows_of(tmp_path / "vae")
    assert float(rows[-1]["psnr"]) > float(rows[0]["psnr"]) + 0.8


def test_the_loss_is_the_weighted_error_of_frames_and_the_divergence_of_latents(tmp_path):
    """Of frames whose left quarter is the object, with twice the error there."""
    task = vae_task(tmp_path, foreground_weight=3.0, kl_weight=0.5)
    near = (torch.arange(8) < 2).expand(2, 1, 8, 8)
    error = torch.where(near, -0.4, 0.2).expand(2, 3, 8, 8)
    latents = torch.full((2, 4, 2, 2), 0.6), torch.full((2, 4, 2, 2), math.log(0.25))
    kl = 0.5 * (0.36 + 0.25 - 1 - math.log(0.25))
    own, other = 0.4 + 0.16, 0.2 + 0.04
    loss, logs = task.loss(Reconstruction(error, near, *latents))
    assert loss.item() == pytest.approx((3 * own + 3 * other) / 6 + 0.5 * kl)
    assert logs["kl"].item() == pytest.approx(kl)
    assert logs["psnr"].item() == pytest.approx(-10 * math.log10((0.16 + 3 * 0.04) / 4 / 4), rel=1e-4)
    assert logs["foreground_psnr"].item() == pytest.approx(-10 * math.log10(0.16 / 4), rel=1e-4)
    loss, logs = task.loss(Reconstruction(error, None, *latents))
    assert loss.item() == pytest.approx((own + 3 * other) / 4 + 0.5 * kl)
    assert "foreground_psnr" not in logs


def test_latents_are_sampled_with_their_own_spread(tmp_path):
    task = vae_task(tmp_path)
    batch = task.draw(0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_variance = task.module.posterior(batch.images)
        out = task.module.reconstruct(mean + log_variance.exp().sqrt() * batch.noise)
        assert torch.allclose(task.predict(batch).error, out - batch.images, atol=1e-5)


def test_frames_are_of_all_times_and_those_held_out_of_other_clips(tmp_path):
    images, _ = frames_of(0, 32, 0)
    times = []
    for index, image in enumerate(images):
        away = torch.from_numpy(world.clip("train", 0, index).frames()).permute(0, 3, 1, 2) * 2 - 1 - image
        times.append(int(away.abs().amax((1, 2, 3)).argmin()))
        assert away[times[-1]].abs().max() < 1e-4
    assert len(set(times)) > 10
    task = vae_task(tmp_path)
    trained = {
        row.numpy().tobytes() for step in range(4) for row in task.draw(step, torch.Generator().manual_seed(0)).images
    }
    held = [row.numpy().tobytes() for images, _ in task._held_out_batches() for row in images]
    assert len(held) == 8
    assert trained.isdisjoint(held)


def test_it_starts_from_an_earlier_one_but_for_channels_drawn_anew(tmp_path, tiny_model):
    """Of the two 1x1 convolutions next to the latents, only what the redrawn channel's mean has of its own."""
    values = {"model": VAE_SHAPE, "start": str(tiny_model / "vae.safetensors")}
    old = load_component(tiny_model / "vae.safetensors", "vae").weights
    for redraw in ((), (3,)):
        task = vae_task(tmp_path, **values, redraw=list(redraw))
        changed = {name: value != old[name] for name, value in task.module.state_dict().items()}
        inward, outward, bias = (
            changed.pop(f"autoencoder.{name}")
            for name in ("quant_conv.weight", "post_quant_conv.weight", "quant_conv.bias")
        )
        assert not any(part.any() for part in changed.values())
        ours = [row for channel in redraw for row in (channel, 4 + channel)]  # mean and log variance
        assert inward.flatten(1).any(1).nonzero().flatten().tolist() == ours
        assert bias.nonzero().flatten().tolist() == ours
        assert outward.flatten(1).any(0).nonzero().flatten().tolist() == list(redraw)
    with torch.no_grad():
        mean, log_variance = task.module.posterior(frames_of(0, 4, 0)[0])
    assert float(mean[:, 3].std()) == pytest.approx(float(mean[:, :3].std()), rel=1e-3)
    assert float(mean[:, 3].mean()) == pytest.approx(0, abs=1e-3)
    assert float(log_variance[:, 3].mean()) == pytest.approx(float(log_variance[:, :3].mean()), abs=1e-3)


def test_the_decoder_alone_is_trained_and_latents_stay_as_they_are(tmp_path, tiny_model):
    before = load_component(tiny_model / "vae.safetensors", "vae")
    shape = VAE_SHAPE | {"decoder_padding": "replicate"}
    values = {"model": shape, "start": str(tiny_model / "vae.safetensors"), "train": "decoder"}
    after = load_component(run_recipe(vae_recipe(tmp_path, **values, ema_decay=0.5)), "vae")
    changed = {name for name, value in after.weights.items() if not torch.equal(value, before.weights[name])}
    assert changed
    assert all(name.startswith(("autoencoder.decoder.", "autoencoder.post_quant_conv.")) for name in changed)
    assert after.config == before.config | {"decoder_padding": "replicate"}


def test_it_does_not_go_on_from_another_file_of_the_same_name(tmp_path, tiny_model):
    start = shutil.copyfile(tiny_model / "vae.safetensors", tmp_path / "start.safetensors")
    values = {"model": VAE_SHAPE, "start": str(start)}
    run_recipe(vae_recipe(tmp_path, **values, steps=1))
    earlier = load_component(start, "vae")
    save_component(start, "vae", earlier.config, {k: v + 1 for k, v in earlier.weights.items()}, {})
    with pytest.raises(InputError, match="the recipe's start_sha256 changed since"):
        run_recipe(vae_recipe(tmp_path, **values, steps=2))


def test_a_decoder_that_sees_the_border_itself_keeps_a_plain_frame_plain(tmp_path, tiny_model):
    latents = torch.randn(1, 4, 1, 1).expand(-1, -1, 8, 8)
    values = {"start": str(tiny_model / "vae.safetensors"), "train": "decoder"}
    for padding, plain in (("replicate", True), ("zeros", False)):
        module = vae_task(tmp_path, model=VAE_SHAPE | {"decoder_padding": padding}, **values).module
        with torch.no_grad():
            parts = module.reconstruct(latents).unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
        assert torch.allclose(parts, parts[:, :, :1, :, :1], atol=1e-5) is plain


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give its start"),
        ({"start": "vae", "kl_weight": 0.1}, "kl_weight is of the encoder"),
        ({"start": "vae", "redraw": [1]}, "redraw is of the encoder"),
        ({"start": "vae", "model": VAE_SHAPE | {"padding": "replicate"}}, "describes another one: give model"),
    ],
)
def test_what_a_decoder_alone_cannot_have_is_refused(tmp_path, tiny_model, values, message):
    if "start" in values:
        values = values | {"start": str(tiny_model / "vae.safetensors")}
    with pytest.raises(InputError, match=message):
        vae_task(tmp_path, **{"model": VAE_SHAPE} | values, train="decoder")


def test_a_foreground_that_counts_as_much_is_still_measured(tmp_path):
    path = run_recipe(vae_recipe(tmp_path, foreground_weight=1.0, steps=2))
    assert load_component(path, "vae").record["foreground_psnr"] > 0


def test_latents_without_spread_are_not_exported(tmp_path):
    task = vae_task(tmp_path)
    (tmp_path / "vae").mkdir()
    flat = {name: torch.zeros_like(value) for name, value in task.module.state_dict().items()}
    with pytest.raises(InputError, match=r"standard deviation of 0\.0, .* nothing was exported"):
        task.export(flat, {})
    assert not list((tmp_path / "vae").iterdir())


def test_another_seed_begins_with_other_weights(tmp_path):
    first, again, other = (vae_task(tmp_path, seed=seed).module.state_dict() for seed in (0, 0, 1))
    name = "autoencoder.quant_conv.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_the_global_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    vae_task(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# On a user's own clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips") / "clips", 8, frames=4, height=32, width=48)


def own(clips, **data):
    return {"data": {"folder": str(clips), "size": [32, 48], "frames": 3, "validation": 0.25} | data}


def test_it_learns_frames_of_own_clips(tmp_path, clips):
    values = own(clips) | {"steps": 30, "batch_size": 8, "log_every": 15, "optimiser": {"lr": 0.008, "warmup_steps": 1}}
    path = run_recipe(vae_recipe(tmp_path, ema_decay=0.9, **values))
    rows = rows_of(tmp_path / "vae")
    assert float(rows[-1]["psnr"]) > float(rows[0]["psnr"]) + 1
    assert "foreground_psnr" not in rows[-1]
    component = load_component(path, "vae")
    assert component.record["psnr"] > 10
    assert "foreground_psnr" not in component.record
    task = vae_task(tmp_path, **values)
    task.module.load_state_dict(component.weights)
    with torch.no_grad():
        latents = torch.cat([task.module.posterior(images)[0].flatten() for images in task.own.held_out(16, 8)])
    assert float(latents.std()) * component.config["scaling_factor"] == pytest.approx(1, rel=0.05)


def test_rows_of_own_frames_are_those_of_the_batch(tmp_path, clips):
    task = vae_task(tmp_path, **own(clips), batch_size=6)
    assert_rows_are_those_of_the_batch(task, 6)
    assert task.draw(0, torch.Generator()).images.shape == (6, 3, 32, 48)


def test_few_clips_are_told_before_processes_draw(tmp_path, clips, capsys):
    task = vae_task(tmp_path, **own(clips), batch_size=16)
    assert capsys.readouterr().err.count("fewer than a batch of 16") == 1
    task.draw(0, torch.Generator())
    assert not capsys.readouterr().err


def test_held_out_frames_count_alike_in_batches_of_any_size(tmp_path, clips):
    task = vae_task(tmp_path, **own(clips), batch_size=2)
    batches = task.own.held_out(16, 2)
    assert len({len(images) for images in batches}) > 1
    images = torch.cat(batches)
    with torch.no_grad():
        error = (task.module.reconstruct(task.module.posterior(images)[0]) - images).square().mean() / 4
    assert task.validate(task.module.state_dict())["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-3)


def test_clips_may_be_moved_and_others_are_told(tmp_path, clips, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)
    run_recipe(vae_recipe(tmp_path, **own(clips), steps=2))
    run_recipe(vae_recipe(tmp_path, **own(moved), steps=3))
    assert "other settings: steps 2, now 3\n" in capsys.readouterr().err
    (moved / "00.mp4").unlink()
    (moved / "metadata.jsonl").unlink()
    run_recipe(vae_recipe(tmp_path, **own(moved), steps=4))
    assert "goes on with other settings: data " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"folder": "x", "size": [32, 32]}, "foreground_weight": 2.0}, "foreground_weight weighs the world's object"),
        ({"data": {"folder": "x", "size": [36, 32]}}, "36 is no multiple of 8"),
        ({"data": {"folder": "x"}}, "data needs the size of clips"),
        ({"data": {"folder": "x", "size": [32, 32], "sizes": [[32, 32]]}}, "data needs the size of clips"),
        ({"data": {"folder": "x", "sizes": [[32, 32], [32, 32]]}}, "sizes names one value twice"),
        ({"data": {"folder": ["x", "y"], "size": [32, 32], "repeats": [1]}}, "repeats has 1 numbers for 2 folders"),
        ({"data": {"folder": "x", "size": [32, 32], "repeats": [2]}}, "repeats weighs folders against each other"),
        ({"data": {"folder": "x", "size": [32, 32], "validation": "x"}}, "validation names x, which is trained on"),
        ({"data": {"folder": "x", "size": [32, 32], "validation": 1.5}}, "validation"),
        ({"data": {"folder": [], "size": [32, 32]}}, "folder"),
        ({"data": {"folder": "x", "size": [32, 0]}}, "size"),
        ({"data": {"folder": "x", "size": [32, 32], "fps": 0}}, "fps"),
        ({"data": {"folder": "x", "size": [32, 32], "crop": "centre"}}, "crop"),
        ({"data": {"foldr": "x", "size": [32, 32]}}, "did you mean 'folder'"),
        ({"cache": "x"}, "cache is the folder of decoded frames of data"),
        ({"data": {"folder": "x", "size": [10**6, 10**6]}, "batch_size": 10**6}, "batches of 1000000 frames need at least"),
    ],
)  # fmt: skip
def test_bad_data_sections_are_refused_in_one_line(tmp_path, values, message):
    with pytest.raises(InputError) as error:
        run_recipe(vae_recipe(tmp_path, **values))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "vae").exists()
