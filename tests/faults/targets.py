"""What writes files: the targets of the tests of I/O faults."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch

from faults.shim import Target
from guidon.cli import main
from guidon.core import atomic
from guidon.core.atomic import atomic_file, atomic_folder, recover, write_json
from guidon.media.files import save_video
from released import make_t5
from tiny_model import write_tiny_model

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3)).astype(np.uint8)  # several writes a picture


def _json(folder: Path, text: str) -> None:
    write_json(folder / "a.json", {"text": text})


write_json_over_an_old_one = Target("write_json", partial(_json, text="new"), partial(_json, text="old"))
write_json_in_a_new_folder = Target("write_json in a new folder", lambda folder: write_json(folder / "a" / "b", 1))


def _folder(folder: Path, text: str, steps: bool = False) -> None:
    if steps:
        atomic._exchange_call = lambda: None
    with atomic_folder(folder / "a") as temporary:
        (temporary / "nested").mkdir()
        (temporary / "b").write_text(text)
        (temporary / "nested" / text).write_text(text)


def _recover(folder: Path) -> None:
    recover(folder / "a")


folder = Target("atomic_folder", partial(_folder, text="new"), partial(_folder, text="old"))
new_folder = Target("atomic_folder without an old one", partial(_folder, text="new"))
folder_in_two_steps = Target(
    "atomic_folder, two steps", partial(_folder, text="new", steps=True), partial(_folder, text="old"), _recover
)


def _video(folder: Path, format: str, frames: np.ndarray) -> None:
    save_video(frames, folder / f"a.{format}", 8, format)


def _save(format: str) -> Target:
    frames = FRAMES[:1] if format == "png" else FRAMES
    return Target(
        f"save_video, {format}", partial(_video, format=format, frames=frames),
        partial(_video, format=format, frames=255 - frames[:2]), warm=True,
    )  # fmt: skip


save_mp4, save_gif, save_webp, save_frames, save_png = map(_save, ("mp4", "gif", "webp", "frames", "png"))


def _torch(folder: Path, value: float) -> None:
    with atomic_file(folder / "a.pt") as file:
        torch.save({"weights": torch.full((100_000,), value), "step": torch.tensor(value)}, file)


torch_save = Target("torch.save into atomic_file", partial(_torch, value=1.0), partial(_torch, value=0.0))


def _generate(folder: Path, format: str) -> None:
    model = folder.parent / "model"
    main([
        "generate", "a red circle moves left on a white background", "--model", str(model), "--steps", "2", "--device",
        "cpu", "--out", str(folder), "--format", format, "--trace",
    ])  # fmt: skip


def _old_output(folder: Path, format: str) -> None:
    """Files of the same names with another content."""
    write_tiny_model(folder.parent / "model")
    with suppress(SystemExit):
        _generate(folder, format)
    for path in list(folder.rglob("*")):
        if path.name == "0000.png":
            path.unlink()
        elif path.is_file():
            path.write_bytes(b"old")


def _command(format: str) -> Target:
    new, old = partial(_generate, format=format), partial(_old_output, format=format)
    return Target(f"guidon generate, {format}", new, old, warm=True)


generate_frames, generate_mp4 = map(_command, ("frames", "mp4"))


def _encode(folder: Path, caption: str) -> None:
    model = folder.parent / "t5"
    main([
        "encode", caption, "--text-encoder", str(model), "--out", str(folder / "captions.safetensors"), "--max-length",
        "20", "--device", "cpu",
    ])  # fmt: skip


def _encoded_before(folder: Path) -> None:
    make_t5(folder.parent / "t5")
    with suppress(SystemExit):
        _encode(folder, "a lighthouse")


encode = Target("guidon encode, one more caption", partial(_encode, caption="waves"), _encoded_before, warm=True)
