"""A Guidon model folder: what is in it, what is refused, and its files as checkpoints."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

import guidon
from guidon.checkpoints import load_component, save_component
from guidon.core.errors import InputError
from guidon.diffusion import FlowPath, NoiseSchedule
from guidon.models.catalogue import find_preset
from guidon.models.small import DIFFUSION, SMALL
from guidon.models.small.folder import (
    CUT_FROM,
    different_diffusion,
    find_model,
    load_denoiser,
    read_folder,
    without_unused,
)
from guidon.models.sources import Sources
from guidon.models.stdit.network import STDiT, STDiTConfig
from tiny_model import write_tiny_model

CPU = torch.device("cpu")


def test_a_folder_gets_the_settings_of_guidon_small_and_its_own_name(tiny_model):
    preset = find_preset(str(tiny_model))
    shared = ("sampler", "steps", "cfg_scale", "cfg_channels", "timing", "bench", "family")
    assert all(getattr(preset, name) == getattr(SMALL, name) for name in shared)
    assert (preset.name, preset.weights, preset.measured) == (str(tiny_model), tiny_model, "")


@pytest.mark.parametrize("missing", ["denoiser", "text", "vae"])
def test_a_folder_that_lacks_a_file_is_refused_by_name(tiny_model, tmp_path, missing):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / f"{missing}.safetensors").unlink()
    with pytest.raises(InputError, match=rf"holds no {missing}\.safetensors: a model folder has"):
        guidon.load(folder, device="cpu")


def test_a_folder_takes_no_other_weights_but_may_be_offloaded(tiny_model):
    preset = find_preset(str(tiny_model))
    for given in ({"vae": tiny_model}, {"text_dtype": "bf16"}, {"download": True}):
        with pytest.raises(InputError, match=f"brings its own weights: leave out {next(iter(given))}"):
            find_model(preset, Sources(**given), CPU)
    for offload, keep in ((None, True), ("none", True), ("stages", False)):
        assert find_model(preset, Sources(offload=offload), CPU).network.keep == keep


def test_a_denoiser_that_does_not_say_how_it_diffuses_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    old = load_component(folder / "denoiser.safetensors", "denoiser")
    config = {name: value for name, value in old.config.items() if name != "prediction"}
    save_component(old.path, "denoiser", config, old.weights, old.record)
    with pytest.raises(InputError, match="its configuration lacks prediction: train or export it again"):
        read_folder(folder)


def changed(folder, to, **config):
    """A copy of a model folder whose denoiser says something else."""
    shutil.copytree(folder, to)
    old = load_component(to / "denoiser.safetensors", "denoiser")
    save_component(old.path, "denoiser", old.config | config, old.weights, old.record)
    return to


def test_a_folder_of_a_rectified_flow_gets_its_sampler(tiny_flow, tiny_model, tmp_path):
    preset = find_preset(str(tiny_flow))
    assert (preset.sampler, preset.steps, preset.cfg_scale) == ("euler", 30, SMALL.cfg_scale)
    assert find_model(preset, Sources(), CPU).schedule == FlowPath()
    # a network that predicts flow may also have been trained on a diffusion
    folder = changed(tiny_model, tmp_path / "diffusion", prediction="flow")
    preset = find_preset(str(folder))
    assert preset.sampler == "ddpm"
    assert isinstance(find_model(preset, Sources(), CPU).schedule, NoiseSchedule)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction": "eps"}, "its noise_schedule is flow, its prediction eps: a rectified flow predicts flow"),
        ({"diffusion_steps": 0}, "diffusion_steps"),
        ({"noise_schedule": "flo"}, "noise schedule 'flo' does not exist"),
    ],
)
def test_a_flow_that_does_not_fit_together_is_refused_in_one_line(tiny_flow, tmp_path, config, message):
    with pytest.raises(InputError) as error:
        guidon.load(changed(tiny_flow, tmp_path / "model", **config), device="cpu")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_of_the_other_path_cannot_be_the_weak_one(tiny_flow, tiny_model):
    with pytest.raises(InputError, match=r"cannot be the weak model: its path is flow, that of .* is diffusion"):
        guidon.load(tiny_model, weak=tiny_flow, device="cpu")


def test_a_flow_may_be_the_weak_model_of_a_flow(tiny_flow, tmp_path):
    other = write_tiny_model(tmp_path / "weaker", seed=5, flows=True)
    pipe = guidon.load(tiny_flow, weak=other, device="cpu")
    clip = pipe("a red circle stays still on a white background", guidance="autoguidance", steps=2, timing="constant")
    assert clip.frames.shape == (16, 64, 64, 3)


def test_the_first_difference_of_two_diffusion_processes_is_named():
    config = {"noise_schedule": "linear", "diffusion_steps": 1000, "prediction": "v", "depth": 3}
    assert different_diffusion(config, config | {"depth": 4}) is None
    assert different_diffusion(config, config | {"prediction": "eps", "diffusion_steps": 10}) == "diffusion_steps"
    assert different_diffusion({}, config) == "noise_schedule"


def test_its_denoiser_is_loaded_as_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = STDiT(STDiTConfig((2, 4, 4), hidden_size=24, depth=1, num_heads=4, caption_channels=10)).eval()
    path = tmp_path / "denoiser.safetensors"
    config = dataclasses.asdict(model.config) | {"noise_schedule": "linear", "diffusion_steps": 10, "prediction": "v"}
    save_component(path, "denoiser", config, model.state_dict(), {}, torch.float32)
    loaded = guidon.load_checkpoint(path)
    assert loaded.config == model.config
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    report = guidon.inspect_checkpoint(path)
    assert report.architecture == "Guidon's own denoiser"
    assert report.config["prediction"] == "v"
    assert report.learned_variance
    with pytest.raises(InputError, match="carries its own configuration: leave out num_heads"):
        guidon.load_checkpoint(path, num_heads=4)
    with pytest.raises(InputError, match="holds a Guidon, expected a STDiT"):
        guidon.load_checkpoint(path, architecture="STDiT")


def test_building_a_component_draws_no_random_numbers_and_shares_no_memory(tiny_model):
    text = read_folder(tiny_model).text
    from guidon.models.text.captions import CaptionEncoder, CaptionEncoderConfig

    before = torch.get_rng_state()
    one, two = (text.build(CaptionEncoder, CaptionEncoderConfig) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.positions.device == CPU
    with torch.no_grad():
        one.embedding.weight.zero_()
    assert two.embedding.weight.abs().max() > 0
    assert text.weights["embedding.weight"].abs().max() > 0


def test_a_file_may_leave_out_what_clips_of_one_token_never_use(tmp_path, tiny_model):
    """Queries and keys of attention along time: the clips and the hash of the weights stay as they were."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        shutil.copytree(tiny_model, folder)
    made = load_component(tiny_model / "denoiser.safetensors", "denoiser")
    tall = dataclasses.replace(made.configure(STDiTConfig, *DIFFUSION), patch_size=(16, 4, 4))
    config = made.config | {"patch_size": [16, 4, 4]}
    torch.manual_seed(0)
    save_component(whole / "denoiser.safetensors", "denoiser", config, STDiT(tall).state_dict(), {})
    before = load_denoiser(whole / "denoiser.safetensors")
    less = without_unused(before)
    save_component(cut / "denoiser.safetensors", "denoiser", config, less, {CUT_FROM: before.sha256})
    sizes = [(folder / "denoiser.safetensors").stat().st_size for folder in (whole, cut)]
    assert sizes[1] < sizes[0]
    after = load_denoiser(cut / "denoiser.safetensors")
    assert after.sha256 == before.sha256
    assert {name: value.shape for name, value in after.weights.items()} == {
        name: value.shape for name, value in before.weights.items()
    }
    prompt = "a red circle moves left on a white background"
    clips = [guidon.load(folder, device="cpu")(prompt, steps=2) for folder in (whole, cut)]
    assert np.array_equal(clips[0].frames, clips[1].frames)
    assert clips[0].manifest["weights"] == clips[1].manifest["weights"]
    with pytest.raises(InputError, match="several tokens along time"):
        without_unused(load_denoiser(tiny_model / "denoiser.safetensors"))
