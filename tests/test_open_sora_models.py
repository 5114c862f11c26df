"""Open-Sora 1.1 and 1.2 end to end: from a prompt to a video, with tiny files in the layout of the released ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import guidon
from guidon import IDDPM, RFlow, cli
from guidon.core.errors import InputError
from guidon.media.files import load_video
from guidon.models.text.t5 import T5Encoder
from guidon.pipeline.planner import Planner
from guidon.pipeline.precision import read_error
from mp4 import assert_alike
from released import make_sized_checkpoints, make_t5, make_vae, make_video_vae

PROMPTS = ["a lighthouse in a storm", "waves roll over the rocks"]
PARTS = {
    "open-sora-1.1": {"checkpoint": "OpenSora-STDiT-v2-stage3", "vae": "vae", "tokens": 200},
    "open-sora-1.2": {"checkpoint": "OpenSora-STDiT-v3", "vae": "video-vae", "tokens": 300},
}
MODELS = list(PARTS)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Files as a user has them after downloading."""
    root = tmp_path_factory.mktemp("hub")
    make_t5(root / "t5"), make_vae(root / "vae"), make_video_vae(root / "video-vae"), make_sized_checkpoints(root)
    return root


def parts(hub, name, **other):
    found = {"checkpoint": hub / PARTS[name]["checkpoint"], "vae": hub / PARTS[name]["vae"], "text_encoder": hub / "t5"}
    return found | other


@pytest.fixture(scope="module")
def pipes(hub):
    """The pipeline of each model, loaded once."""
    return {name: guidon.load(name, device="cpu", offload="none", **parts(hub, name)) for name in MODELS}


class Text:
    """A text encoder as Open-Sora's schedulers call it."""

    def __init__(self, model, folder, tokens):
        self.model, self.encoder = model, T5Encoder.load(folder, max_length=tokens)

    def encode(self, prompts):
        features, mask = self.encoder.encode(prompts)
        return {"y": features[:, None], "mask": mask}

    def null(self, rows):
        return self.model.y_embedder.y_embedding[None].repeat(rows, 1, 1)[:, None]


@pytest.mark.parametrize(
    ("name", "frames", "dtype"),
    [
        *((name, frames, dtype) for name, frames in zip(MODELS, (3, 20), strict=True) for dtype in ("fp32", "bf16")),
        *((name, 1, "fp32") for name in MODELS),
        *(pytest.param(name, 1, "bf16", marks=pytest.mark.long) for name in MODELS),
    ],
)
def test_exact_is_open_soras_own_sample_call(hub, pipes, name, frames, dtype):
    height, width = 40, 68
    size, steps = {"size": (height, width), "frames": frames}, 3
    given = pipes[name](PROMPTS, steps=steps, exact=name, dtype=dtype, output_type="latent", seed=5, **size)

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = guidon.load_checkpoint(hub / PARTS[name]["checkpoint"], dtype=kind)
    text = Text(model, hub / "t5", PARTS[name]["tokens"])
    told = {
        "num_frames": frames,
        "height": height,
        "width": width,
        "ar": height / width,
        "fps": 24 if frames > 1 else 120,
    }
    told = {key: torch.tensor([value] * 2, dtype=kind) for key, value in told.items()}
    torch.manual_seed(5)
    latents = frames if name == MODELS[0] else -(-min(frames, 17) // 4) + -(-max(frames - 17, 0) // 4)
    z = torch.randn(2, 4, latents, height // 8, width // 8, dtype=kind)
    if name == MODELS[0]:
        scheduler, prompts = IDDPM(steps, cfg_scale=7.0, cfg_channel=3, version="1.1"), PROMPTS
    else:
        scheduler = RFlow(steps, cfg_scale=7.0, use_timestep_transform=True)
        prompts = [f"{prompt} aesthetic score: 6.5." for prompt in PROMPTS]
    with torch.no_grad():
        expected = scheduler.sample(
            model, text, z=z, prompts=prompts, device="cpu", additional_args=told, progress=False
        )
    error = (given.frames - expected).norm() / expected.norm()
    assert error < (1e-4 if dtype == "fp32" else 2e-2)


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_becomes_an_mp4_that_its_manifest_makes_again(hub, tmp_path, name, capsys):
    where = [f"--{key.replace('_', '-')}={value}" for key, value in parts(hub, name).items()]
    size = ["--size", "40x68", "--frames", "5", "--steps", "2", "--dtype", "fp32"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", PROMPTS[0], "--model", name, *where, *size, "--out", f"{tmp_path}/a"])
    assert stop.value.code == 0, capsys.readouterr().err
    (video,) = (tmp_path / "a").glob("*.mp4")
    assert load_video(video)[0].shape == (5, 40, 64, 3)  # cut to whole latents, as in Open-Sora
    manifest = json.loads(video.with_name(f"{video.name}.json").read_text())
    settings = manifest["generation"]
    assert (settings["size"], settings["frames"], settings["seed"], settings["cfg_scale"]) == ([40, 68], 5, 42, 7.0)
    assert settings["cfg_channels"] == {MODELS[0]: "3", MODELS[1]: "all"}[name]
    assert manifest["fps"] == {MODELS[0]: 8, MODELS[1]: 24}[name]
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "--from", f"{video}.json", *where, "--out", f"{tmp_path}/b"])
    assert stop.value.code == 0, capsys.readouterr().err
    first, again = (next((tmp_path / folder).glob("*-sheet.png")).read_bytes() for folder in "ab")
    assert again == first  # four of the frames, without loss
    assert_alike(video, next((tmp_path / "b").glob("*.mp4")))


def test_one_frame_is_an_image(hub, tmp_path):
    where = [f"--{key.replace('_', '-')}={value}" for key, value in parts(hub, MODELS[1]).items()]
    line = ["generate", "waves", "--model", MODELS[1], *where, "--size", "40x64", "--frames", "1", "--steps", "1"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*line, "--out", f"{tmp_path}"])
    assert stop.value.code == 0
    (image,) = (path for path in tmp_path.glob("*.png") if "sheet" not in path.name)
    assert Image.open(image).size == (64, 40)


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_are_told_of_the_clip(pipes, name):
    options = {"steps": 2, "output_type": "latent", "dtype": "fp32", "frames": 18}
    cut, whole, other = (pipes[name]("waves", size=size, **options).frames for size in ((40, 68), (40, 64), (47, 68)))
    assert cut.shape == whole.shape == other.shape
    assert not torch.equal(cut, whole)
    assert not torch.equal(cut, other)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_choice_size_and_length_are_those_of_the_configuration(hub, name):
    planner = Planner.find(name, **parts(hub, name))
    request = planner.plan("waves")
    assert planner.clip_size(request) == {MODELS[0]: (16, 240, 426), MODELS[1]: (51, 240, 426)}[name]
    assert planner.latent_shape(request) == (4, {MODELS[0]: 16, MODELS[1]: 15}[name], 30, 53)
    assert request.dtype == "bf16"


def test_frames_of_1_2_become_fewer_latent_frames(hub):
    planner = Planner.find(MODELS[1], **parts(hub, MODELS[1]))
    lengths = {n: planner.latent_shape(planner.plan("waves", frames=n))[1] for n in (1, 2, 5, 17, 18, 34, 51, 102, 408)}
    assert lengths == {1: 1, 2: 1, 5: 2, 17: 5, 18: 6, 34: 10, 51: 15, 102: 30, 408: 120}


def test_prompts_of_1_2_end_in_a_score_unless_they_name_one(hub):
    planner = Planner.find(MODELS[1], **parts(hub, MODELS[1]))
    named = "waves aesthetic score: 5.0."
    request = planner.plan(["waves", named], negative_prompt="blurry")
    assert request.read_as == {"waves": "waves aesthetic score: 6.5."}
    assert planner.complete(["waves", named]).read_as == request.read_as
    assert Planner.find(MODELS[0], **parts(hub, MODELS[0])).plan(["waves"]).read_as == {}


def test_features_of_1_2_are_those_of_prompts_with_their_score(hub, pipes, tmp_path):
    captions = tmp_path / "captions.safetensors"
    texts = ["waves aesthetic score: 6.5.", "blurry"]
    with pytest.raises(SystemExit):
        cli.main(["encode", *texts, "--text-encoder", f"{hub}/t5", "--max-length", "300", "--out", f"{captions}"])
    options = {"steps": 1, "size": (32, 32), "frames": 1, "negative_prompt": "blurry", "output_type": "latent"}
    kept = guidon.load(MODELS[1], device="cpu", **parts(hub, MODELS[1], text_encoder=None, features=captions))
    assert torch.equal(kept("waves", **options).frames, pipes[MODELS[1]]("waves", **options).frames)
    with pytest.raises(InputError, match=r"holds no features of 'rocks aesthetic score: 6\.5\.'"):
        kept("rocks", steps=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_machine_chooses_the_precision_of_a_network(hub, name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("guidon.pipeline.precision.bf16_unit", lambda device: "amx_bf16")
    pipe = guidon.load(name, device="cpu", dtype="auto", **parts(hub, name))
    assert pipe.preset.dtype in ("fp32", "bf16")
    assert 0 < read_error(next((tmp_path / "guidon" / "precision").iterdir())) < 0.5


@pytest.mark.parametrize("reads", ["t5", "features"])
def test_a_saved_1_2_reads_prompts_and_draws_noise_as_before(hub, tmp_path, reads):
    given = {}
    if reads == "features":
        captions = tmp_path / "captions.safetensors"
        with pytest.raises(SystemExit):
            cli.main(
                [
                    "encode",
                    "waves aesthetic score: 6.5.",
                    "--text-encoder",
                    f"{hub}/t5",
                    "--max-length",
                    "300",
                    "--out",
                    f"{captions}",
                ]
            )
        given = {"text_encoder": None, "features": captions}
    pipe = guidon.load(MODELS[1], device="cpu", dtype="fp32", **parts(hub, MODELS[1], **given))
    again = guidon.from_pretrained(pipe.save_pretrained(tmp_path / "saved"), device="cpu", dtype="fp32")
    for own in ("seed", "sampler", "steps", "cfg_scale", "cfg_channels", "fps"):
        assert getattr(again.preset, own) == getattr(pipe.preset, own), own
    options = {"size": (32, 32), "frames": 1}
    assert again.plan("waves", **options).text_of("waves") == "waves aesthetic score: 6.5."
    clips = [each("waves", steps=1, output_type="latent", **options).frames for each in (pipe, again)]
    assert (clips[0] - clips[1]).abs().max() < 0.05  # stored in bf16
    if reads == "features":
        with pytest.raises(InputError, match=r"holds no features of 'rocks aesthetic score: 6\.5\.'"):
            again("rocks", steps=1)


@pytest.mark.parametrize(("rows", "remark"), [(120, "it is made longer by its last row"), (300, "it is cut")])
def test_null_captions_of_another_length_are_cut_or_repeat_their_last_row(hub, tmp_path, rows, remark):
    weights = load_file(hub / PARTS[MODELS[0]]["checkpoint"] / "model.safetensors")
    null = weights["y_embedder.y_embedding"]
    torch.manual_seed(0)
    weights["y_embedder.y_embedding"] = torch.randn(rows, null.shape[1])
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.warns(UserWarning, match=f"has {rows} tokens, captions have 200: {remark}"):
        pipe = guidon.load(MODELS[0], device="cpu", **parts(hub, MODELS[0], checkpoint=tmp_path / "other.safetensors"))
    with pipe.model.network.in_use(torch.float32) as network:
        given = network.y_embedder.y_embedding
    expected = weights["y_embedder.y_embedding"][:200]
    assert given.shape == null.shape
    assert torch.equal(given[: len(expected)], expected)
    assert torch.equal(given[len(expected) :], expected[-1:].expand(200 - len(expected), -1))


CONFIGS = [
    ({"depth": 28}, "says depth 28, its weights have 1: they are of two models"),
    ({"hidden_size": 1152}, "says hidden_size 1152, its weights have 24"),
    ({"pred_sigma": False}, "says pred_sigma False, its weights have True"),
    ({"patch_size": [1, 4, 4]}, r"says patch_size \(1, 4, 4\), its weights have \(1, 2, 2\)"),
    ({"model_type": "STDiT3"}, "is of a 'STDiT3', its weights are of an STDiT2"),
    ({"input_sq_size": "x"}, "input_sq_size is 'x'"),
    ({"skip_y_embedder": True}, "captions that are projected already are not read"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS)
def test_a_config_of_another_model_is_refused_in_one_line(hub, tmp_path, change, message):
    folder = tmp_path / "mixed"
    shutil.copytree(hub / PARTS[MODELS[0]]["checkpoint"], folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as error:
        guidon.load_checkpoint(folder)
    assert "\n" not in str(error.value)
    assert any(message.split(":")[0].split("\\")[0] in remark for remark in guidon.inspect_checkpoint(folder).remarks)


def test_configs_say_what_weights_do_not(hub, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(hub / PARTS[MODELS[0]]["checkpoint"], folder)
    config = json.loads((folder / "config.json").read_text())
    assert guidon.load_checkpoint(folder).config.qk_norm_legacy  # 1.1 does not say it
    (folder / "config.json").write_text(json.dumps(config | {"qk_norm_legacy": False, "input_sq_size": 256}))
    found = guidon.load_checkpoint(folder).config
    assert (found.qk_norm_legacy, found.input_sq_size) == (False, 256)
    (folder / "config.json").unlink()
    found = guidon.load_checkpoint(folder).config
    assert (found.qk_norm_legacy, found.input_sq_size, found.num_heads) == (True, 512, 2)


@pytest.mark.parametrize(
    ("name", "options", "choices", "message"),
    [
        (MODELS[0], {"checkpoint": "OpenSora-STDiT-v3"}, {}, "holds a STDiT3, expected a STDiT2"),
        (MODELS[1], {"checkpoint": "OpenSora-STDiT-v2-stage3"}, {}, "holds a STDiT2, expected a STDiT3"),
        (MODELS[1], {"vae": "vae"}, {}, "holds no autoencoder of Open-Sora 1.2"),
        (MODELS[0], {"vae": "video-vae"}, {}, "holds no autoencoder: give the folder of a hub repository"),
        (MODELS[1], {}, {"sampler": "ddpm"}, "ddpm does not go with open-sora-1.2, which is a rectified flow"),
        (MODELS[0], {}, {"sampler": "euler"}, "euler does not go with open-sora-1.1, which is a diffusion"),
        (MODELS[0], {}, {"size": (7, 64)}, "size 7x64 is too small: give at least 8x8"),
        (MODELS[1], {}, {"exact": "open-sora-1.1"}, "cannot replay exact 'open-sora-1.1'; valid: open-sora-1.2"),
        (MODELS[1], {}, {"exact": "open-sora-1.2", "frames": 16}, "no videos of 16 frames.*at least 17"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(hub, name, options, choices, message):
    paths = {key: hub / value for key, value in options.items()}
    with pytest.raises(InputError, match=message) as error:
        guidon.load(name, device="cpu", **parts(hub, name, **paths)).plan("waves", **choices)
    assert "\n" not in str(error.value)


def test_64_frames_of_1_0_need_weights_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"weights of open-sora-1\.0-64x512x512 were never published: train some"):
        Planner.find("open-sora-1.0-64x512x512", download=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_weaker_checkpoint_of_the_same_model_guides(hub, pipes, tmp_path, name):
    weights = load_file(hub / PARTS[name]["checkpoint"] / "model.safetensors")
    save_file({key: 0.9 * value for key, value in weights.items()}, tmp_path / "weak.safetensors")
    pipe = guidon.load(name, device="cpu", **parts(hub, name, weak=tmp_path / "weak.safetensors"))
    options = {"steps": 2, "size": (32, 32), "frames": 2, "dtype": "fp32", "output_type": "latent"}
    guided = pipe("waves", guidance="autoguidance", **options).frames
    assert guided.isfinite().all()
    assert not torch.equal(guided, pipes[name]("waves", **options).frames)


@pytest.mark.parametrize("name", MODELS)
def test_guided_channels_and_rules_act_on_these_networks(pipes, name):
    options = {"steps": 3, "size": (32, 32), "frames": 2, "dtype": "fp32", "output_type": "latent"}
    plain = pipes[name]("waves", **options).frames
    one, none = (pipes[name]("waves", cfg_channels=n, **options).frames for n in ("only:0", "none"))
    assert not torch.equal(one, plain)
    assert not torch.equal(one[:, 0], none[:, 0])
    for rule in ("apg", "stg:blocks=0"):
        assert not np.array_equal(pipes[name]("waves", guidance=rule, **options).frames, plain)


@pytest.mark.parametrize("name", MODELS)
def test_three_way_guidance_is_linear_in_the_scale_of_the_first_frame(pipes, name):
    picture = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    options = {"steps": 1, "size": (40, 64), "dtype": "fp32", "output_type": "latent", "seed": 3}
    options["frames"] = {MODELS[0]: 4, MODELS[1]: 34}[name]

    def made(rule="cfg", **other):
        given = {"first_frame": picture, "cfg_channels": "all"} | options | other
        return pipes[name]("waves", guidance=rule, **given).frames

    plain, half, whole = made(), made("three-way:image=51"), made("three-way:image=101")
    assert torch.equal(made("three-way:image=1"), plain)
    assert (half - plain).abs().max() > 1e-4
    assert torch.allclose(whole - plain, 2 * (half - plain), atol=1e-5)
    assert torch.equal(whole[:, :, 0], plain[:, :, 0])  # the given frame
    assert torch.allclose(made("three-way:image=101", sequential=True), whole, atol=1e-4)
    some = made("three-way:image=101", cfg_channels="1-3")
    assert torch.equal(some[:, 0], made(cfg_channels="1-3")[:, 0])  # the conditional prediction
    with pytest.raises(InputError, match="guides by given frames too, and none are: give first_frame"):
        made("three-way", first_frame=None)


def test_three_way_guidance_is_refused_where_the_network_is_not_told_of_given_frames():
    planner = Planner.find("guidon-small")
    with pytest.raises(InputError, match=r"the network of guidon-small is not told: .* such as open-sora-1\.2$"):
        planner.plan("a red circle moves left", guidance="three-way")


@pytest.mark.parametrize("frames", [5, 17])
def test_a_short_clip_of_1_2_begins_with_a_picture(pipes, frames):
    picture = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    options = {"steps": 1, "size": (40, 64), "dtype": "fp32", "output_type": "latent", "frames": frames}
    given = pipes[MODELS[1]]("waves", first_frame=picture, **options).frames
    free = pipes[MODELS[1]]("waves", **options).frames
    assert given.shape == free.shape
    assert not torch.equal(given[:, :, 0], free[:, :, 0])
