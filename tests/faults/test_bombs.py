"""Small files that ask for very much, and names that are no files: refused in under two seconds of CPU and in one line."""

import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from faults.harness import child, trials
from faults.kinds import _diffusers, _networks
from guidon.checkpoints.component import _digest
from guidon.checkpoints.files import read_safetensors, read_tensors
from guidon.checkpoints.writing import safetensors_bytes
from guidon.cli import main
from guidon.core.settings import read_mapping
from guidon.media import load_video, save_video
from guidon.models.checkpoint import inspect_checkpoint, load_checkpoint

SECONDS = 2.0  # of CPU
MEMORY = 1 << 30  # bytes, above the base


def refused(work, *arguments):
    """Assert that ``work`` refuses its input in one line, quickly, and within the memory. Returns the line."""
    with trials("bombs") as found:
        ended = child(work, *arguments, cpu=10)
        held = ended.one_line and ended.cpu < SECONDS and ended.memory < MEMORY
        case = f"{getattr(work, '__name__', work)} {arguments}: {ended}"
        (found.refused if held else found.failed)(
            "" if held else f"{case}, {ended.cpu:.1f} s, {ended.memory >> 20} MB", ended
        )
    return ended.message or ended.output


# Clips


def still_video(path, frames, side, container):
    """A long clip of one colour, which is a few kilobytes."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
        for number in range(frames):
            picture.pts = number
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_small_video_of_gigabytes(tmp_path, container, monkeypatch):
    frames = 270 if container == "mp4" else 27
    if container != "mp4":  # a tenth of the video, and of the limit
        monkeypatch.setenv("GUIDON_MAX_PIXELS", "26000000")
    path = still_video(tmp_path / "a.mp4", frames, 1024, container)
    assert path.stat().st_size < 100_000
    assert "asks for" in refused(load_video, path)
    assert "GUIDON_MAX_PIXELS" in refused(load_video, path)
    short = still_video(tmp_path / "b.mp4", 3, 64, container)
    monkeypatch.setenv("GUIDON_MAX_PIXELS", "5000")
    assert "the limit is 5,000" in refused(load_video, short)
    monkeypatch.setenv("GUIDON_MAX_PIXELS", "500000")
    assert len(load_video(short)[0]) == 3
    monkeypatch.setenv("GUIDON_MAX_PIXELS", "-1")
    assert "GUIDON_MAX_PIXELS is '-1', expected a positive whole number" in refused(load_video, short)


@pytest.mark.parametrize(
    "comment", ["9999999999 frames at 8 fps", "1 frames at 0 fps", "1 frames at . fps", "9" * 5000 + " frames at 8 fps"]
)
def test_comments_of_clips(tmp_path, comment):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.gif", comment=comment.encode())
    ended = child(load_video, tmp_path / "a.gif")
    if comment.startswith("9999999999 "):
        assert "40,959,999,995,904 pixels" in refused(load_video, tmp_path / "a.gif")
    elif len(comment) < 100:
        refused(load_video, tmp_path / "a.gif")
    else:
        assert ended.how == "returned"


def png(width, height, rows=b"", **chunks):
    """A PNG that claims a size, with right checksums."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *((k.encode(), v) for k, v in chunks.items()),
    ]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


@pytest.mark.parametrize("side", [9000, 12_000, 20_000, 2**31 - 1])
def test_large_pictures(tmp_path, side):
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "a" / "0000.png"):
        path.write_bytes(png(side, side, bytes(1000)))
        refused(load_video, path if path.parent == tmp_path else path.parent)


@pytest.mark.faults
def test_many_large_frames(tmp_path):
    for number in range(9):
        (tmp_path / f"{number:04}.png").write_bytes(png(6000, 6000, bytes(6000 * 18001)))
    (tmp_path / "0000.png").write_bytes(png(6000, 5000, bytes(5000 * 18001)))
    refused(load_video, tmp_path)


def test_packed_text_in_a_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(png(8, 8, bytes(8 * 25), zTXt=b"x\0\0" + zlib.compress(bytes(1 << 26))))
    refused(load_video, tmp_path / "a.png")


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "ffconcat version 1.0\nfile a.mp4\n", "v=0\nm=video 1 RTP/AVP 96\n"]
)
def test_playlists_are_no_videos(tmp_path, text):
    save_video(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / "a.mp4")
    (tmp_path / "list.mp4").write_text(text)
    refused(load_video, tmp_path / "list.mp4")


# Torch files


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_are_larger_than_their_values(tmp_path, zipped):
    path = tmp_path / "a.pth"
    torch.save(
        {"x_embedder.proj.weight": torch.zeros(1).expand(10**6, 10**6)}, path, _use_new_zipfile_serialization=zipped
    )
    assert "needs 4,000,000,000,000 bytes, 4 are stored" in refused(inspect_checkpoint, path)
    value = torch.zeros(1000, 1000)
    torch.save({str(k): value for k in range(1000)}, path, _use_new_zipfile_serialization=zipped)
    refused(load_checkpoint, path)


def repacked(path, extra=b""):
    """The zip file, compressed."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content + (extra if "data/" in name else b""))
    return path


def test_zip_bombs(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    repacked(tmp_path / "a.pth", bytes(1 << 26))
    assert "PyTorch never packs" in refused(inspect_checkpoint, tmp_path / "a.pth")


def test_values_that_repeat_values_in_a_pickle(tmp_path):
    nested = [torch.zeros(1)]
    for _ in range(60):
        nested = [nested, nested]
    for zipped in (True, False):
        torch.save({"a": torch.zeros(1), "b": nested}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        refused(inspect_checkpoint, tmp_path / "a.pth")


def doubled(times):
    """A pickle of a mapping whose key is a tuple that holds a tuple twice, and so on: to hash it takes 2 ** times steps."""
    tuples = b"K\x01\x85q\x00" + b"".join(b"h%c\x86q%c" % (k, k + 1) for k in range(times))
    return b"\x80\x02}" + tuples + b"K\x01s."


@pytest.mark.parametrize("zipped", [True, False])
def test_keys_that_take_years_to_hash(tmp_path, zipped):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, doubled(60) if name.endswith("data.pkl") else content)
    else:
        heads = [pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True})]
        path.write_bytes(b"".join([*heads, doubled(60), pickle.dumps([], 2)]))
    assert "a tuple of more than 1,000,000 values" in refused(inspect_checkpoint, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_mappings_that_hold_themselves_and_names_of_many_prefixes(tmp_path, zipped):
    circle = {}
    circle["model"] = circle
    prefixes = {"module." * 100_000 + "a": torch.zeros(1)}
    for content in (circle, prefixes):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        refused(inspect_checkpoint, tmp_path / "a.pth")


# Configurations


def good(path, **changes):
    """Change a component's configuration, and make its digest good."""
    weights, header = read_safetensors(path)
    weights = {name: value.clone() for name, value in weights.items()}
    header["config"] = json.dumps(json.loads(header["config"]) | changes)
    header["digest"] = _digest(header, weights)
    path.write_bytes(safetensors_bytes(weights, header))


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("denoiser", {"hidden_size": 40_000}),
        ("denoiser", {"hidden_size": 2**31 - 2}),
        ("denoiser", {"depth": 10**9}),
        ("denoiser", {"refiner_channels": 8, "refiner_depth": 10**9}),
        ("denoiser", {"input_size": [16, 10**6, 10**6]}),
        ("denoiser", {"model_max_length": 10**9}),
        ("denoiser", {"diffusion_steps": 10**9}),
        ("denoiser", {"mlp_ratio": 1e300}),
        ("denoiser", {"num_heads": 7}),
        ("text", {"layers": 10**9}),
        ("text", {"max_length": 10**9}),
        ("text", {"features": 10**6, "max_length": 10**6}),
        ("text", {"vocabulary": {str(k): str(k) for k in range(100_000)}}),
        ("vae", {"layers_per_block": 10**9}),
        ("vae", {"block_out_channels": [8] * 100_000}),
        ("vae", {"pixel_unshuffle": 10**9}),
        ("vae", {"latent_channels": 40_000}),
        ("vae", {"scaling_factor": 0.0}),
    ],
)
@pytest.mark.usefixtures("imported")
def test_components_that_ask_for_another_network(tiny_model, tmp_path, part, changes):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    good(folder / f"{part}.safetensors", **changes)
    refused(sampled, folder)


@pytest.fixture(scope="module")
def imported(tiny_model):
    """All that sampling imports is imported here, and not in each child."""
    sampled(tiny_model)


def sampled(folder):
    import guidon

    return guidon.load(folder, device="cpu")("a red circle moves left", steps=1, sampler="ddim").fps


@pytest.mark.parametrize(
    "name", ["blocks.999999999.x", "blocks.1000000000000000000.attn.qkv.weight", "blocks." + "9" * 5000 + ".x"]
)
@pytest.mark.parametrize("inflate", [None, 16])
def test_released_checkpoints_of_any_depth(tmp_path, name, inflate):
    weights = _networks()["pixart"].state_dict()
    save_file(weights | {name: torch.zeros(1)}, tmp_path / "a.safetensors")
    refused(partial(load_checkpoint, num_heads=4, inflate=inflate), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "changes", [{"sample_size": 10**9}, {"sample_size": 100_000}, {"num_attention_heads": 10**9}, {"sample_size": "x"}]
)
def test_configurations_in_hub_layout(tmp_path, changes):
    _diffusers(tmp_path)
    place = tmp_path / "pixart" / "config.json"
    weights, _ = read_safetensors(place.with_name("diffusion_pytorch_model.safetensors"))
    kept = {name: value.clone() for name, value in weights.items() if name != "pos_embed.pos_embed"}
    save_file(kept, place.with_name("diffusion_pytorch_model.safetensors"))
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    refused(load_checkpoint, place.parent)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": [40_000] * 4},
        {"layers_per_block": 10**9},
        {"latent_channels": 10**9},
        {"norm_num_groups": 0},
    ],
)
def test_autoencoders_in_hub_layout(tmp_path, changes):
    from guidon.models.vae.frames import FrameVAE
    from released import make_vae

    make_vae(tmp_path)
    place = tmp_path / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    refused(FrameVAE.load, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize(
    "changes", [{"d_model": 40_000}, {"num_layers": 10**9}, {"d_ff": 10**9}, {"vocab_size": 10**9}]
)
def test_text_encoders_in_hub_layout(tmp_path, changes):
    from guidon.models.text.t5 import T5Encoder
    from released import make_t5

    make_t5(tmp_path)
    T5Encoder.load(tmp_path)  # in this process, so that nothing is imported in the child
    place = tmp_path / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))
    refused(T5Encoder.load, tmp_path)


# Headers


@pytest.mark.parametrize("length", [0, 2**31, 2**63, 2**64 - 1, 100_000_000])
def test_headers_of_absurd_lengths(tmp_path, length):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    if length == 100_000_000:
        with path.open("r+b") as file:
            file.truncate(200_000_000)
    refused(read_tensors, path)


def test_headers_of_many_names(tmp_path):
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    header = ("{" + ",".join(f'"a{k}":{entry}' for k in range(400_000)) + "}").encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(read_tensors, tmp_path / "a.safetensors")


# Text


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in range(1, 12))
TEXTS = {
    "aliases.yaml": LAUGHS,
    "merges.yaml": MERGES,
    "circle.yaml": "a: &a [*a]",
    "deep.yaml": "[" * 100_000,
    "blocks.yaml": "- " * 100_000,
    "keys.yaml": "? " * 100_000,
    "sixties.yaml": "a: " + ":".join(["1"] * 300_000),
    "digits.yaml": "a: " + "9" * 500_000,
    "flat.yaml": "[" + "1," * 450_000 + "]",
    "long.yaml": "a: " + "x" * 2_000_000,
    "deep.json": "[" * 1_000_000,
    "objects.json": '{"a":' * 1_000_000,
    "digits.json": "9" * 1_000_000,
    "twice.json": '{"a": 1, "a": 2}',
    "long.json": '"' + "x" * 20_000_000 + '"',
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_expands(tmp_path, name):
    (tmp_path / name).write_text(TEXTS[name])
    refused(read_mapping, tmp_path / name)


# What is no file


def places(folder):
    """Names of what is no regular file."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "zero").symlink_to("/dev/zero")
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 40)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    server.close()
    return [folder / name for name in ("pipe", "folder", "loop", "zero", "huge", "socket")]


COMMANDS = {
    "prompts": ("generate", "--prompts-file", "FILE"),
    "manifest": ("generate", "--from", "FILE"),
    "checkpoint": (
        "generate",
        "a",
        "--model",
        "opensora-16x256",
        "--features",
        "FILE",
        "--checkpoint",
        "FILE",
        "--vae",
        "FILE",
    ),
    "recipe": ("train", "FILE"),
    "study": ("study", "run", "FILE"),
    "inspect": ("inspect", "FILE"),
    "evaluate": ("evaluate", "FILE"),
    "evaluate a gif": ("evaluate", "FILE.gif"),
    "features": ("encode", "a", "--out", "FILE", "--text-encoder", "FILE"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_file_is_not_opened(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = COMMANDS[command]
    with pytest.raises(SystemExit):  # imports what the command needs, so that it is not imported in each child
        main([word.replace("FILE", "missing") for word in words])
    for place in places(tmp_path):
        given = (
            place.rename(f"{place}.gif")
            if any(word.endswith(".gif") for word in words) and not place.is_dir()
            else place
        )
        refused(main, [word.replace("FILE.gif", str(given)).replace("FILE", str(given)) for word in words])
    assert not (tmp_path / "outputs").exists()


def test_a_component_of_a_folder_that_is_a_pipe(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for name in ("denoiser", "vae"):
        (folder / f"{name}.safetensors").unlink()
        os.mkfifo(folder / f"{name}.safetensors")
        refused(sampled, folder)
