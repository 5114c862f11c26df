import pytest

from guidon import world
from guidon.models.catalogue import find_preset


def test_every_model_is_listed_with_its_settings(run):
    code, out, err = run("models")
    assert (code, err) == (0, "")
    preset = find_preset("guidon-small")
    assert f"guidon-small: {preset.summary}\n" in out
    assert f"{preset.sampler}, {preset.steps} steps, scale {preset.cfg_scale:g}, channels {preset.cfg_channels}" in out
    assert "dit-xl-2-256: " in out
    assert "colours" not in out


@pytest.mark.parametrize("own", [False, True])
def test_a_model_of_the_world_is_described_by_what_its_prompts_may_say(run, tiny_model, own):
    code, out, err = run("models", tiny_model if own else "guidon-small")
    assert (code, err) == (0, "")
    for words in (world.COLOURS, world.SHAPES, world.BACKGROUNDS, world.AREAS, world.SPEEDS, ("left", "stays still")):
        assert all(word in out for word in words)
    assert "circle (ball, disk, disc, dot, sphere" in out
    examples = [line.split('"')[1] for line in out.splitlines() if "guidon generate" in line]
    assert len(examples) == 2
    assert all(world.PromptReader()(example).faults == () for example in examples)
    assert (f"--model {tiny_model}" in out) == own
    assert max(map(len, out.splitlines())) <= 140 or own


def test_a_released_model_is_described_by_its_files(run):
    _, out, _ = run("models", "open-sora-1.0-16x256x256")
    assert "--checkpoint     OpenSora-v1-HQ-16x256x256.pth of hpcai-tech/Open-Sora\n" in out
    assert "--text-encoder   DeepFloyd/t5-v1_1-xxl" in out
    _, out, _ = run("models", "dit-xl-2-512")
    assert "--text-encoder" not in out
    assert "guidon generate --class NUMBER --model dit-xl-2-512 --checkpoint PATH --vae PATH\n" in out
    assert "from 0 to 999" in out


def test_a_name_that_does_not_exist_is_refused_with_the_nearest(refused, tmp_path):
    assert "did you mean 'guidon-small'" in refused("models", "guidon-smal")
    assert "is not a model folder" in refused("models", tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    assert "holds adapters: give it as lora, and the model" in refused("models", tmp_path)
    (tmp_path / "model_index.json").touch()
    assert f"is a pipeline of diffusers: give diffusers:{tmp_path}" in refused("models", tmp_path)
