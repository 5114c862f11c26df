"""Inference configurations of Open-Sora: read as data, and turned into commands."""

import pytest

from guidon import InputError
from guidon.bridges.opensora.commands import translate
from guidon.bridges.opensora.config import read_config

V1_0 = """
num_frames = 16
fps = 24 // 3
image_size = (256, 256)
model = dict(type="STDiT-XL/2", space_scale=0.5, time_scale=1.0, enable_flashattn=True, from_pretrained="w.pth")
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema")
text_encoder = dict(type="t5", from_pretrained="./t5", model_max_length=120)
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0)
dtype = "fp16"
batch_size = 2
seed = 42
prompt_path = "./prompts.txt"
save_dir = "./samples/"
"""


@pytest.fixture
def translated(tmp_path):
    """The translation of a configuration's text."""

    def translated(text, version=None):
        path = tmp_path / "config.py"
        path.write_text(text)
        return translate(read_config(path), path, version)

    return translated


def test_a_configuration_of_1_0_is_one_command(translated):
    found = translated(V1_0)
    (command,) = found.commands
    assert command.prompts == ()
    assert command.settings == [
        ("prompts_file", "./prompts.txt"), ("model", "open-sora-1.0-16x256x256"), ("checkpoint", "w.pth"),
        ("text_encoder", "./t5"), ("download", None), ("sampler", "ddpm"), ("steps", "100"), ("cfg_scale", "7"),
        ("cfg_channels", "3"), ("dtype", "fp16"), ("seed", "42"), ("batch_size", "2"), ("out", "./samples/"),
        ("exact", "open-sora-1.0"),
    ]  # fmt: skip
    assert found.left_out == {}


@pytest.mark.parametrize(
    ("change", "channels", "version"),
    [
        (("enable_flashattn", "enable_flashattn"), "3", "1.0"),
        (("enable_flashattn", "enable_flash_attn"), "all", "1.1"),
        (("cfg_scale=7.0", "cfg_scale=7.0, cfg_channel=2"), "2", "1.1"),
        (("cfg_scale=7.0", "cfg_scale=7.0, cfg_channel=None"), "all", "1.1"),
    ],
)
def test_channels_that_are_not_named_are_those_of_the_version(translated, change, channels, version):
    found = translated(V1_0.replace(*change))
    (command,) = found.commands
    assert dict(command.settings)["cfg_channels"] == channels
    assert found.version == version
    assert dict(command.settings)["exact"] == f"open-sora-{version}"


def test_prompts_keep_their_references_scores_and_loops(translated):
    text = V1_0.replace('prompt_path = "./prompts.txt"', "loop = 3") + (
        'condition_frame_length = 4\ncondition_frame_edit = 0.1\naes = 6.5\nreference_path = ["a.png;b.mp4", None, None]\n'
        'mask_strategy = ["0;0,1,0,-1", None, None]\n'
        """prompt = ["a cat", '|0|a dog|2|a cow{"reference_path": "http://x.org/c.png", "mask_strategy": "0"}', "a pig"]\n"""
    )
    found = translated(text)
    loops = [("loop", "3"), ("condition_frames", "4"), ("condition_edit", "0.1")]
    assert [command.prompts for command in found.commands] == [
        ("a cat aesthetic score: 6.5.",),
        ("|0|a dog aesthetic score: 6.5.|2|a cow aesthetic score: 6.5.",),
        ("a pig aesthetic score: 6.5.",),
    ]
    given = [command.settings[command.settings.index(("out", "./samples/")) + 1 :] for command in found.commands]
    assert given == [
        [("reference", "a.png"), ("reference", "b.mp4"), ("mask_strategy", "0;0,1,0,-1"), *loops],
        [("reference", "c.png"), ("mask_strategy", "0"), *loops],
        loops,
    ]
    assert found.left_out == {"reference_path": "fetch http://x.org/c.png as c.png first: Guidon reads files"}


def test_a_configuration_above_another_changes_only_what_it_says(translated, tmp_path):
    (tmp_path / "base.py").write_text(V1_0)
    found = translated("_base_ = ['base.py']\nseed = 7 * 6 - 2**3\nscheduler = {'cfg_scale': 3.5}\n")
    (command,) = found.commands
    assert dict(command.settings)["seed"] == "34"
    assert dict(command.settings)["cfg_scale"] == "3.5"
    assert dict(command.settings)["steps"] == "100"


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        (V1_0.replace("STDiT-XL/2", "Latte-XL/2"), "model", "Latte-XL/2 is none of the networks that Guidon has"),
        (V1_0.replace("STDiT-XL/2", "PixArt-XL/2"), "model", "for images, the configuration asks for 16 frames"),
        (V1_0.replace('"iddpm"', '"rflow"'), "scheduler.type", "were trained for diffusion"),
    ],
)
def test_what_no_command_does_is_said(translated, text, key, why):
    found = translated(text)
    assert found.commands == []
    assert why in found.left_out[key]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("llm_refine = True", "llm_refine"),
        ("watermark = True", "watermark"),
        ("unheard_of = 3", "unheard_of"),
        ('mask_strategy = ["0"]', "mask_strategy"),
    ],
)
def test_what_is_left_out_is_named(translated, line, key):
    found = translated(f"{V1_0}\n{line}")
    assert len(found.commands) == 1
    assert list(found.left_out) == [key]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os", "line 1: an inference configuration of Open-Sora holds assignments"),
        ("seed = open('x')", "line 1: seed cannot be read as data (\"open('x')\" is no text, number"),
        ("seed = nothing", "the name 'nothing' has no value above"),
        ("seed = 9**9**9", "is too high"),
        ("seed = 'a' * 1000000000", "arithmetic needs numbers"),
        ("seed = 1 // 0", "cannot be read as data"),
        ("seed = dict(**other)", "** is not read"),
        ("seed =", "line 1: this is no Python"),
        ("a, b = 1, 2", "holds assignments"),
        ("_base_ = 'config.py'", "more than 8 configurations below it"),
        ("_base_ = 'missing.py'", "it is not there"),
        ("seed = 3", "it has no model = dict(type=...)"),
        ("model = dict(type='STDiT-XL/2')", "it has no scheduler = dict(type=...)"),
        (V1_0.replace("(256, 256)", "'large'"), "image_size is 'large': give (height, width)"),
        (V1_0 + "seed = 'x'", "seed is 'x', expected a whole number"),
        (V1_0 + "prompt = 3", "prompt is 3, expected a text or a list of texts"),
        (V1_0.replace("7.0", "'high'"), "cfg_scale is 'high', expected a number"),
        ("_base_ = 3", "_base_ is 3, expected a text or a list"),
        (V1_0 + "prompt = ['a']\nreference_path = ['a.png']\nmask_strategy = ['9,x']", "mask_strategy"),
    ],
)
def test_what_is_no_configuration_is_refused_and_nothing_is_run(translated, text, said):
    with pytest.raises(InputError) as error:
        translated(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_deep_nesting_is_refused(translated):
    with pytest.raises(InputError, match=r"nested too deeply|no Python"):
        translated("seed = " + "-" * 100_000 + "1")
