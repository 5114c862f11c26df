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


V1_1 = """
num_frames = 16
frame_interval = 3
fps = 24
image_size = (240, 426)
multi_resolution = "STDiT2"
model = dict(
    type="STDiT2-XL/2", from_pretrained="hpcai-tech/OpenSora-STDiT-v2-stage2", input_sq_size=512, qk_norm=True,
    qk_norm_legacy=True, enable_flash_attn=True,
)
vae = dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/sd-vae-ft-ema", micro_batch_size=4)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=200)
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0, cfg_channel=3)
dtype = "bf16"
prompt_path = "./prompts.txt"
aes = 6.5
"""
V1_2 = """
resolution = "240p"
aspect_ratio = "9:16"
num_frames = 51
fps = 24
frame_interval = 2
loop = 2
condition_frame_length = 5
align = 5
num_sample = 2
multi_resolution = "STDiT2"
model = dict(
    type="STDiT3-XL/2", from_pretrained="hpcai-tech/OpenSora-STDiT-v3", input_sq_size=512, qk_norm=True,
    qk_norm_legacy=False, enable_flash_attn=True,
)
vae = dict(type="OpenSoraVAE_V1_2", from_pretrained="hpcai-tech/OpenSora-VAE-v1.2", micro_frame_size=17)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=300)
scheduler = dict(type="rflow", use_timestep_transform=True)
dtype = "bf16"
aes = 6.5
prompt = ["a cat"]
reference_path = ["not used without a strategy.png"]
"""
IMAGE = """
num_frames = 1
image_size = (512, 512)
model = dict(type="PixArt-XL/2", space_scale=1.0, time_scale=1.0, from_pretrained="PixArt-XL-2-512x512.pth")
scheduler = dict(type="dpm-solver", cfg_scale=4.5)
prompt_path = "./prompts.txt"
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
    ("text", "version", "prompts", "settings"),
    [
        (V1_1, "1.1", (), [
            ("prompts_file", "./prompts.txt"), ("model", "open-sora-1.1-stage2"), ("download", None),
            ("size", "240x426"), ("frames", "16"), ("sampler", "ddpm"), ("steps", "100"), ("cfg_scale", "7"),
            ("cfg_channels", "3"), ("dtype", "bf16"), ("seed", "42"), ("batch_size", "1"), ("exact", "open-sora-1.1"),
        ]),
        (V1_2, "1.2", ("a cat aesthetic score: 6.5.",), [
            ("model", "open-sora-1.2"), ("download", None), ("size", "240x426"), ("frames", "51"),
            ("sampler", "euler"), ("steps", "10"), ("cfg_scale", "4"), ("cfg_channels", "all"), ("dtype", "bf16"),
            ("seed", "1024"), ("batch_size", "1"), ("num_samples", "2"), ("fps", "12"), ("loop", "2"),
            ("condition_frames", "17"),
        ]),
        (IMAGE, "1.0", (), [
            ("prompts_file", "./prompts.txt"), ("model", "pixart-xl-2-512"), ("checkpoint", "PixArt-XL-2-512x512.pth"),
            ("sampler", "dpm-solver"), ("steps", "20"), ("cfg_scale", "4.5"), ("cfg_channels", "all"),
            ("dtype", "fp32"), ("seed", "42"), ("batch_size", "1"),
        ]),
    ],
    ids=["1.1", "1.2", "image"],
)  # fmt: skip
def test_configurations_of_later_versions_and_of_images(translated, text, version, prompts, settings):
    found = translated(text)
    (command,) = found.commands
    assert (found.version, command.prompts, found.left_out) == (version, prompts, {})
    assert command.settings == settings
    assert translated(text, version) == found  # it may be named


def test_the_nearest_preset_has_the_length_before_the_size(translated):
    long = V1_0.replace("num_frames = 16", "num_frames = 64").replace("scale=0.5, time_scale=1.0", "scale=1.0")
    found = translated(long.replace("space_scale=1.0", "space_scale=1.0, time_scale=2 / 3"))
    (command,) = found.commands
    assert dict(command.settings)["model"] == "open-sora-1.0-64x512x512"
    assert dict(command.settings)["size"] == "256x256"
    assert found.left_out == {}
    (command,) = translated(V1_0.replace("num_frames = 16", "num_frames = 1")).commands
    assert dict(command.settings)["model"] == "open-sora-1.0-16x256x256"  # a network for videos makes images, too
    assert dict(command.settings)["frames"] == "1"


def test_draws_are_replayed_only_where_nothing_else_is_drawn(translated):
    given = "prompt = ['a cat']\nreference_path = ['a.png']\nmask_strategy = ['0']\n"
    for text in (V1_0 + given, V1_0 + "loop = 2\n", V1_0.replace('"iddpm"', '"dpm-solver"')):
        (command,) = translated(text).commands
        assert "exact" not in dict(command.settings)
    assert translated(V1_0.replace('"iddpm"', '"iddpm-speed"')).commands == translated(V1_0).commands


@pytest.mark.parametrize(
    ("change", "channels", "version"),
    [
        (("enable_flashattn", "enable_flashattn"), "3", "1.0"),
        (("enable_flashattn", "enable_flash_attn"), "all", "1.1"),
        (("cfg_scale=7.0", "cfg_scale=7.0, cfg_channel=2"), "2", "1.1"),
        (("cfg_scale=7.0", "cfg_scale=7.0, cfg_channel=0"), "none", "1.1"),
        (("cfg_scale=7.0", "cfg_scale=7.0, cfg_channel=None"), "all", "1.1"),
        (('"fp16"', '"bf16"'), "all", "1.1"),
        (('prompt_path = "./prompts.txt"', 'prompt = ["a cat"]'), "all", "1.1"),
    ],
)
def test_channels_that_are_not_named_are_those_of_the_version(translated, change, channels, version):
    found = translated(V1_0.replace(*change))
    (command,) = found.commands
    assert dict(command.settings)["cfg_channels"] == channels
    assert found.version == version
    assert dict(command.settings)["exact"] == f"open-sora-{version}"


@pytest.mark.parametrize(("kind", "steps"), [("iddpm", "1000"), ("iddpm-speed", "1000"), ("dpm-solver", "20")])
def test_steps_that_are_not_named_are_those_of_the_scheduler(translated, kind, steps):
    (command,) = translated(V1_0.replace('"iddpm", num_sampling_steps=100', f'"{kind}"')).commands
    assert dict(command.settings)["steps"] == steps


def test_prompts_keep_their_references_scores_and_loops(translated):
    text = V1_0.replace('prompt_path = "./prompts.txt"', "loop = 3") + (
        'condition_frame_length = 4\ncondition_frame_edit = 0.1\naes = 6.5\nreference_path = ["a.png;b.mp4", None, "d.png"]\n'
        'mask_strategy = ["0;0,1,0,-1", None, "0"]\n'
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
        [("reference", "d.png"), ("mask_strategy", "0"), *loops],
    ]
    assert found.left_out == {"reference_path": "fetch http://x.org/c.png as c.png first: Guidon reads files"}


def test_a_reference_that_is_one_text_is_for_every_prompt(translated):
    prompts = """prompt = ["a cat", 'a dog{"reference_path": "b.png"}', "a pig"]\n"""
    found = translated(V1_0 + prompts + 'reference_path = "a.png"\nmask_strategy = "0"\n')
    assert [command.prompts for command in found.commands] == [("a cat", "a pig"), ("a dog",)]
    for command, path in zip(found.commands, ("a.png", "b.png"), strict=True):
        assert command.settings[-2:] == [("reference", path), ("mask_strategy", "0")]
    (command,) = translated(V1_0 + 'prompt = "a cat"\nreference_path = "a.png"\nmask_strategy = "0"\n').commands
    assert dict(command.settings)["reference"] == "a.png"


def test_a_configuration_above_another_changes_only_what_it_says(translated, tmp_path):
    (tmp_path / "base.py").write_text(V1_0)
    (tmp_path / "above.py").write_text("batch_size = 5\n")
    found = translated("_base_ = ['base.py', 'above.py']\nseed = 7 * 6 - 2**3\nscheduler = {'cfg_scale': 3.5}\n")
    (command,) = found.commands
    assert dict(command.settings)["seed"] == "34"
    assert dict(command.settings)["cfg_scale"] == "3.5"
    assert dict(command.settings)["steps"] == "100"
    assert dict(command.settings)["batch_size"] == "5"


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        (V1_0.replace("STDiT-XL/2", "Latte-XL/2"), "model", "Latte-XL/2 is none of the networks that Guidon has"),
        (V1_0.replace("STDiT-XL/2", "PixArt-XL/2"), "model", "for images, the configuration asks for 16 frames"),
        (V1_0.replace('"iddpm"', '"rflow"'), "scheduler.type", "were trained for diffusion"),
        (V1_2.replace('"rflow"', '"iddpm"'), "scheduler.type", "were trained for rectified flow"),
        (IMAGE.replace("PixArt-XL/2", "DiT-XL/2"), "model", "takes classes of ImageNet"),
    ],
)
def test_what_no_command_does_is_said(translated, text, key, why):
    found = translated(text)
    assert found.commands == []
    assert why in found.left_out[key]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (V1_0 + "llm_refine = True", "llm_refine"),
        (V1_0 + "watermark = True", "watermark"),
        (V1_0 + "unheard_of = 3", "unheard_of"),
        (V1_0 + 'mask_strategy = ["0"]', "mask_strategy"),
        (V1_1 + "aes = 7", "aes, flow, camera_motion"),
        (V1_2 + "align = 8", "align"),
        (V1_2 + "condition_frame_length = 15", "condition_frame_length"),  # all 51 frames of a clip
        (V1_2.replace("form=True", "form=False"), "scheduler.use_timestep_transform"),
        (V1_2.replace("VAE-v1.2", "VAE-v9"), "vae.from_pretrained"),
        (V1_2.replace("size=512", "size=256"), "model.input_sq_size"),
    ],
)
def test_what_is_left_out_is_named(translated, text, key):
    found = translated(text)
    assert len(found.commands) == 1
    assert list(found.left_out) == [key]


def test_a_score_that_the_model_adds_and_the_configuration_does_not_is_named(translated):
    without = V1_2.replace("aes = 6.5\n", "")
    of_file = without.replace('prompt = ["a cat"]', 'prompt_path = "p.txt"').replace("reference_path", "# ")
    for text in (without, of_file):
        found = translated(text)
        assert list(found.left_out) == ["aes"]
        assert "reads a prompt without an aesthetic score with 6.5" in found.left_out["aes"]
    (command,) = translated(without).commands
    assert command.prompts == ("a cat",)
    assert translated(without.replace("a cat", "a cat aesthetic score: 5.5.")).left_out == {}
    assert translated(V1_1.replace("aes = 6.5\n", "")).left_out == {}


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
        (V1_0 + "seed = 4.5", "seed is 4.5, expected a whole number"),
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
