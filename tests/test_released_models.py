"""Released models end to end: checkpoints, T5 and autoencoder in the files of the real ones, by the same code."""

import gc
import json
import shlex
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import guidon
from guidon import IDDPM, cli
from guidon.core.errors import InputError
from guidon.media.files import load_video
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.text.t5 import T5Encoder
from guidon.models.vae.frames import FrameVAE
from guidon.samplers import LegacyNoise
from released import SMALL, make_checkpoints, make_t5, make_vae

PROMPTS = ["a lighthouse in a storm", "waves roll over the rocks"]
VIDEO, IMAGE, CLASS = "open-sora-1.0-16x256x256", "pixart-xl-2-256", "dit-xl-2-256"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Files as a user has them after downloading."""
    root = tmp_path_factory.mktemp("hub")
    make_t5(root / "t5"), make_vae(root / "vae"), make_checkpoints(root)
    return root


def guidon_command(line, code=0):
    with pytest.raises(SystemExit) as stop:
        cli.main(shlex.split(line))
    assert stop.value.code == code, line


def test_open_sora_from_prompt_to_mp4(hub, tmp_path, capsys):
    guidon_command(
        f"generate '{PROMPTS[0]}' --model {VIDEO} --checkpoint {hub}/video.pth --text-encoder {hub}/t5 --vae {hub}/vae "
        f"--steps 3 --out {tmp_path}"
    )
    assert "makes latents of 4 x 2 x 4 x 4, open-sora" in capsys.readouterr().err
    (video,) = tmp_path.glob("*.mp4")
    assert load_video(video)[0].shape == (2, 32, 32, 3)
    manifest = json.loads((tmp_path / f"{video.name}.json").read_text())["generation"]
    assert (manifest["seed"], manifest["cfg_scale"], manifest["cfg_channels"]) == (42, 7.0, "3")


@pytest.mark.filterwarnings("ignore:.*makes latents of")
@pytest.mark.parametrize("original", ["open-sora-1.0", "open-sora-1.1"])
def test_exact_is_open_soras_own_sample_call(hub, original):
    pipe = guidon.load(VIDEO, checkpoint=hub / "video.pth", text_encoder=hub / "t5", vae=hub / "vae", device="cpu")
    videos = pipe(PROMPTS, steps=4, exact=original)

    model, encoder = guidon.load_checkpoint(hub / "video.pth"), T5Encoder.load(hub / "t5", max_length=120)

    class Text:
        def encode(self, prompts):
            features, mask = encoder.encode(prompts)
            return {"y": features[:, None], "mask": mask}

        def null(self, rows):
            return model.y_embedder.y_embedding[None].repeat(rows, 1, 1)[:, None]

    torch.manual_seed(42)
    size = (4, 2, 4, 4)
    z = size if original == "open-sora-1.0" else torch.randn(2, *size)
    scheduler = IDDPM(4, cfg_scale=7.0, cfg_channel=3, version=original.removeprefix("open-sora-"))
    latents = scheduler.sample(model, Text(), z, PROMPTS, "cpu")
    expected = (FrameVAE.load(hub / "vae").decode(latents) + 1) * 127.5
    for video, clip in zip(videos, expected.permute(0, 2, 3, 4, 1), strict=True):
        assert (np.abs(video.frames - clip.numpy()) <= 1).mean() > 0.999
    assert videos[0].manifest["generation"]["prompts"] == PROMPTS
    other = pipe(PROMPTS, steps=4)
    assert not np.array_equal(other[0].frames, videos[0].frames)


@pytest.mark.filterwarnings("ignore:.*makes latents of")
@pytest.mark.parametrize(("original", "first"), [("open-sora-1.0", torch.float32), ("open-sora-1.1", torch.bfloat16)])
def test_in_bf16_open_sora_1_1_draws_the_latents_and_the_first_steps_noise_in_bf16(hub, monkeypatch, original, first):
    drawn, draw = [], LegacyNoise._draw

    def watched(noise, shape, device, dtype):
        drawn.append(dtype)
        return draw(noise, shape, device, dtype)

    monkeypatch.setattr(LegacyNoise, "_draw", watched)
    pipe = guidon.load(VIDEO, checkpoint=hub / "video.pth", text_encoder=hub / "t5", vae=hub / "vae", device="cpu")
    pipe(PROMPTS[0], steps=3, exact=original, dtype="bf16")
    assert drawn == [first, first, torch.float32, torch.float32]


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_an_exact_run_is_reproduced_from_its_manifest(hub, tmp_path, monkeypatch):
    where = f"--checkpoint {hub}/video.pth --text-encoder {hub}/t5 --vae {hub}/vae"
    prompts = " ".join(f"'{prompt}'" for prompt in PROMPTS)
    guidon_command(
        f"generate {prompts} --model {VIDEO} {where} --exact open-sora-1.0 --steps 2 --format webp --out {tmp_path}/a"
    )
    manifest = sorted((tmp_path / "a").glob("*.json"))[0]
    guidon_command(f"generate --from {manifest} {where} --format webp --out {tmp_path}/b")
    first, again = (sorted((tmp_path / run).glob("*.webp")) for run in "ab")
    assert [p.name for p in first] == [p.name for p in again]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_features_stand_in_for_t5(hub, tmp_path):
    captions = tmp_path / "captions.safetensors"
    guidon_command(f"encode '{PROMPTS[0]}' '' --text-encoder {hub}/t5 --out {captions}")
    options = {"steps": 2, "negative_prompt": ""}
    parts = {"checkpoint": hub / "video.pth", "vae": hub / "vae", "device": "cpu"}
    kept = guidon.load(VIDEO, features=captions, **parts)(PROMPTS[0], **options)
    encoded = guidon.load(VIDEO, text_encoder=hub / "t5", **parts)(PROMPTS[0], **options)
    assert np.array_equal(kept.frames, encoded.frames)
    with pytest.raises(InputError, match="holds no features of 'waves'"):
        guidon.load(VIDEO, features=captions, **parts)("waves", steps=2)


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_pixart_makes_png_and_dit_takes_classes(hub, tmp_path):
    guidon_command(
        f"generate waves --model {IMAGE} --checkpoint {hub}/image.pth --text-encoder {hub}/t5 --vae {hub}/vae "
        f"--steps 2 --sampler dpm-solver --dtype bf16 --out {tmp_path}/pixart"
    )
    guidon_command(
        f"generate --class 207 --class 3 --model {CLASS} --checkpoint {hub}/class.pt --vae {hub}/vae --exact dit "
        f"--steps 2 --out {tmp_path}/dit"
    )
    images = [p for p in tmp_path.rglob("*.png") if "sheet" not in p.name]
    assert len(images) == 3
    assert all(Image.open(path).size == (32, 32) for path in images)


@pytest.mark.filterwarnings("ignore:.*makes latents of", "ignore:.*was trained on another size")
def test_size_and_frames_are_chosen_where_the_model_takes_others(hub, tmp_path):
    where = f"--text-encoder {hub}/t5 --vae {hub}/vae --steps 1"
    guidon_command(
        f"generate waves --model pixart-xl-2-1024 --checkpoint {hub}/sizes.pth {where} --size 48x80 --out {tmp_path}/image"
    )
    (image,) = (p for p in (tmp_path / "image").glob("*.png") if "sheet" not in p.name)
    assert Image.open(image).size == (80, 48)
    guidon_command(
        f"generate waves --model {VIDEO} --checkpoint {hub}/video.pth {where} --size 16x48 --frames 5 --out {tmp_path}/video"
    )
    (video,) = (tmp_path / "video").glob("*.mp4")
    assert load_video(video)[0].shape == (5, 16, 48, 3)
    assert json.loads((tmp_path / "video" / f"{video.name}.json").read_text())["generation"]["size"] == [16, 48]


@pytest.mark.filterwarnings("ignore:.*makes latents of", "ignore:.*was trained on another size")
def test_a_checkpoint_without_positions_gets_the_presets(hub, tmp_path):
    weights = {k: v for k, v in torch.load(hub / "video.pth").items() if not k.startswith("pos_embed")}
    torch.save(weights, tmp_path / "bare.pth")
    with pytest.raises(InputError, match="no table of positions"):
        guidon.load_checkpoint(tmp_path / "bare.pth")
    parts = {"text_encoder": hub / "t5", "vae": hub / "vae", "device": "cpu"}
    options = {"steps": 1, "frames": 2, "size": (32, 32)}
    bare, whole = (
        guidon.load(VIDEO, checkpoint=path, **parts)("waves", **options).frames
        for path in (tmp_path / "bare.pth", hub / "video.pth")
    )
    assert np.array_equal(bare, whole)


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_features_of_another_length_are_refused(hub, tmp_path):
    captions = tmp_path / "long.safetensors"
    guidon_command(f"encode waves --text-encoder {hub}/t5 --max-length 200 --out {captions}")
    pipe = guidon.load(VIDEO, checkpoint=hub / "video.pth", vae=hub / "vae", features=captions, device="cpu")
    with pytest.raises(InputError, match="captions of 200 tokens, the model reads 120"):
        pipe("waves", steps=1)


@pytest.mark.parametrize("what", ["checkpoint", "vae"])
def test_download_asks_the_hub_for_what_is_missing_and_nothing_else(hub, tmp_path, monkeypatch, what):
    asked = []

    def snapshot_download(repository, *, allow_patterns, local_files_only):
        asked.append((repository, allow_patterns, local_files_only))
        source = hub / "vae" if what == "vae" else tmp_path
        if what == "checkpoint":
            (tmp_path / "OpenSora-v1-HQ-16x256x256.pth").write_bytes((hub / "video.pth").read_bytes())
        return str(source)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    given = {"checkpoint": hub / "video.pth", "text_encoder": hub / "t5", "vae": hub / "vae", "device": "cpu"}
    del given[what]
    with pytest.warns(UserWarning, match="makes latents of"):
        assert guidon.load(VIDEO, download=True, **given)("waves", steps=1).frames.shape == (2, 32, 32, 3)
    file = "OpenSora-v1-HQ-16x256x256.pth"
    expected = {
        "checkpoint": ("hpcai-tech/Open-Sora", [file, f"{file}/*"], False),
        "vae": ("stabilityai/sd-vae-ft-ema", None, False),
    }
    assert asked == [expected[what]]


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_parts_go_after_use_unless_they_are_to_stay(hub):
    parts = {"checkpoint": hub / "class.pt", "vae": hub / "vae", "device": "cpu"}
    for offload, held in ((None, False), ("stages", False), ("none", True)):
        pipe = guidon.load(CLASS, offload=offload, **parts)
        made, make = [], pipe.model.network.make

        def noted(dtype, made=made, make=make):
            network = make(dtype)
            made.append(weakref.ref(network))
            return network

        pipe.model.network.make = noted
        pipe("5", steps=1)
        pipe("5", steps=1, dtype="bf16")
        gc.collect()
        assert [network() is not None for network in made] == [False, held]  # not one of each precision


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_manifests_and_names_tell_weights_apart(hub, tmp_path, capsys):
    from released import make_vae

    make_vae(tmp_path / "other", seed=5)
    where = f"--checkpoint {hub}/class.pt --steps 1"
    for vae in (hub / "vae", tmp_path / "other"):
        guidon_command(f"generate --class 5 --model {CLASS} {where} --vae {vae} --out {tmp_path}/out")
    manifests = sorted((tmp_path / "out").glob("*.json"))
    assert len(manifests) == 2
    weights = [json.loads(path.read_text())["weights"] for path in manifests]
    assert weights[0]["checkpoint"] == weights[1]["checkpoint"]
    assert weights[0]["vae"] != weights[1]["vae"]
    for path in manifests:
        guidon_command(f"generate --from {path} --checkpoint {hub}/class.pt --vae {hub}/vae --out {tmp_path}/again")
    assert capsys.readouterr().err.count("was made with other vae weights") == 1


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_with_exact_every_sample_of_every_run_has_a_name_of_its_own(hub, tmp_path):
    where = f"--checkpoint {hub}/class.pt --vae {hub}/vae --steps 1 --exact dit --out {tmp_path}"
    for classes in ("--class 5 --class 5", "--class 5 --class 6", "--class 6 --class 5"):
        guidon_command(f"generate {classes} --model {CLASS} {where}")
    assert len([path for path in tmp_path.glob("*.png") if "sheet" not in path.name]) == 6
    assert len(list(tmp_path.glob("*-sheet.png"))) == 3


@pytest.mark.parametrize("gone", ["checkpoint", "text_encoder", "vae"])
def test_wrong_paths_are_refused_before_anything_is_computed(hub, gone):
    parts = {"checkpoint": hub / "video.pth", "text_encoder": hub / "t5", "vae": hub / "vae"} | {gone: hub / "nope"}
    with pytest.raises(InputError, match="nope"):
        guidon.load(VIDEO, device="cpu", **parts)


@pytest.mark.filterwarnings("ignore:.*makes latents of")
def test_parts_that_do_not_fit_each_other_are_named(hub, tmp_path):
    from released import make_t5

    pipe = guidon.load(
        VIDEO, checkpoint=hub / "video.pth", text_encoder=make_t5(tmp_path / "wide", 32), vae=hub / "vae", device="cpu"
    )
    with pytest.raises(InputError, match="features are 32 wide, this model reads 24"):
        pipe("waves", steps=1)
    few = DiT(DiTConfig(4, num_classes=10, **SMALL))
    torch.save(few.state_dict(), tmp_path / "few.pt")
    pipe = guidon.load(CLASS, checkpoint=tmp_path / "few.pt", vae=hub / "vae", device="cpu")
    with pytest.raises(InputError, match="class 500 is not in this model: it has 0 to 9"):
        pipe("500", steps=1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model {VIDEO} --checkpoint {hub}/image.pth --text-encoder {hub}/t5 --vae {hub}/vae", "holds a PixArt, expected a STDiT"),
        ("--model {VIDEO} --checkpoint {hub}/none.pth --text-encoder {hub}/t5 --vae {hub}/vae", "is not there"),
        ("--model {VIDEO} --checkpoint {hub}/video.pth --text-encoder {hub}/vae --vae {hub}/vae", "holds no spiece.model or tokenizer.json"),
        ("--model {VIDEO} --checkpoint {hub}/video.pth --text-encoder {hub}/t5 --vae {hub}/t5", "holds no autoencoder: give the folder of a hub repository"),
        ("--model {VIDEO} --checkpoint {hub}/video.pth", "weights are missing: stabilityai/sd-vae-ft-ema as --vae, DeepFloyd/t5-v1_1-xxl as --text-encoder (huggingface.co)"),
        ("--model {VIDEO}", "OpenSora-v1-HQ-16x256x256.pth of hpcai-tech/Open-Sora as --checkpoint, stabilityai/sd-vae-ft-ema as --vae, DeepFloyd/t5-v1_1-xxl as --text-encoder (huggingface.co)"),
        ("--model {CLASS} --checkpoint {hub}/class.pt --vae {hub}/vae", "is not a class of this model: give a number from 0 to 999"),
        ("--model {CLASS} --checkpoint {hub}/class.pt --vae {hub}/vae --text-encoder {hub}/t5", "conditioned on classes"),
        ("--model open-sora-1.0-16x512x512 --checkpoint {hub}/video.pth --text-encoder {hub}/t5 --vae {hub}/vae", "space_scale 0.5, open-sora-1.0-16x512x512 expects 1"),
        ("--checkpoint {hub}/video.pth", "brings its own weights: leave out --checkpoint"),
        ("--model {CLASS} --checkpoint {hub}/class.pt --vae {hub}/vae --size 64x64", "dit-xl-2-256 makes 256x256 only: leave out --size"),
        ("--model {VIDEO} --checkpoint {hub}/video.pth --text-encoder {hub}/t5 --vae {hub}/vae --size 40x64", "height 40 is no multiple of 16"),
        ("--size 64", "--size '64' is not a size: give HEIGHTxWIDTH"),
        ("--frames 17", "frames 17 is no multiple of 16"),
        ("--model {CLASS} --checkpoint {hub}/class.pt --vae {hub}/vae --exact pixart", "dit-xl-2-256 cannot replay --exact 'pixart'"),
        ("--model {CLASS} --checkpoint {hub}/class.pt --vae {hub}/vae --text-dtype bf16", "--text-dtype bf16 is for T5, which dit-xl-2-256 has not"),
        ("--exact dit", "guidon-small cannot replay --exact"),
        ("--exact-noise cuda", "has an effect only with --exact"),
        ("--exact dit --exact-noise cuda:h10", "did you mean 'cuda:h100'"),
        ("--eta 0.5", "--eta 0.5 is for ddim"),
        ("--download", "brings its own weights: leave out --download"),
        ("--text-dtype bf16", "leave out --text-dtype"),
        ("--exact open-sora-1", "did you mean 'open-sora-1.2'"),
        ("--offload all", "--offload is 'all': expected 'none', 'stages' or 'blocks'"),
        ("--format png", "--format png holds one image"),
    ],
)  # fmt: skip
def test_wrong_or_missing_parts_are_named_in_one_line(hub, tmp_path, capsys, monkeypatch, line, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    line = line.format(hub=hub, VIDEO=VIDEO, CLASS=CLASS)
    guidon_command(f"generate 'a red circle' {line} --steps 2 --out {tmp_path}/out", code=2)
    error = capsys.readouterr().err
    assert message in error
    assert len([row for row in error.splitlines() if "makes latents" not in row]) == 1


def test_inspect_prints_what_a_file_is(hub, capsys):
    guidon_command(f"inspect {hub}/video.pth")
    out = capsys.readouterr().out
    assert "STDiT" in out
    assert "space_scale 0.5" in out
    guidon_command(f"inspect {hub}/t5")
    assert "T5 text encoder" in capsys.readouterr().out
