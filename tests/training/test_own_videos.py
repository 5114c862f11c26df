"""A folder of small videos, or of pictures, trained from nothing: its autoencoder, then a network, by one recipe.

The clips look unlike the world: textures in two palettes, over which a camera pans.
"""

import json
from itertools import pairwise

import numpy as np
import pytest
import yaml

import guidon
from guidon.media.files import save_video
from guidon.training import run_recipe
from recipes import rows_of

PALETTES = {"warm": ((250, 190, 60), (150, 20, 30)), "cool": ((80, 220, 230), (20, 30, 150))}
TEXTURES = ("waves", "dots")
PANS = {"left": 4, "right": -4}  # pixels that a texture moves to the right in each frame
SIDE = 32


def texture(kind, width, rng):
    """Values (SIDE, width) in [0, 1] that go on at the right where they begin at the left."""
    y, x = np.mgrid[:SIDE, :width].astype(float)
    turns = 2 * np.pi / width
    if kind == "waves":
        return 0.5 + 0.5 * np.sin(4 * turns * x + 2 * np.sin(0.3 * y + rng.uniform(0, 6)) + rng.uniform(0, 6))
    centres = rng.uniform(0, [SIDE, width], (10, 2))
    across = np.abs(x - centres[:, 1, None, None])
    far = (y - centres[:, 0, None, None]) ** 2 + np.minimum(across, width - across) ** 2
    return np.exp(-far / 14).max(0)


def clip_of(palette, kind, pan, rng, frames):
    """Frames uint8 (T, SIDE, SIDE, 3)."""
    width = 2 * SIDE
    values = texture(kind, width, rng)
    first, second = (np.array(colour, float) for colour in PALETTES[palette])
    start = int(rng.integers(width))
    shown = [np.roll(values, start + pan * t, 1)[:, :SIDE, None] for t in range(frames)]
    return np.stack([second + (first - second) * each for each in shown]).round().astype(np.uint8)


def write_folder(folder, frames, count=20):
    """Twenty files: all palettes, textures and pans, with captions that say them."""
    folder.mkdir()
    rows = []
    for k in range(count):
        palette, kind = list(PALETTES)[k % 2], TEXTURES[k // 4 % 2]
        pan = list(PANS)[k // 2 % 2]
        made = clip_of(palette, kind, PANS[pan], np.random.default_rng(k), frames)
        name = f"{k:02}.{'png' if frames == 1 else 'mp4'}"
        save_video(made, folder / name, 8)
        caption = f"{palette} {kind}" + ("" if frames == 1 else f", the camera pans {pan}")
        rows.append({"file_name": name, "caption": caption})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def warmth(frames):
    """How much more red than blue there is, in 8-bit values."""
    return float(frames[..., 0].astype(float).mean() - frames[..., 2].astype(float).mean())


def motion(frames):
    """The shift to the right in pixels a frame at which neighbouring frames fit best, on average."""
    grey, found = frames.astype(float).mean(-1), []
    shifts = range(-6, 7)
    for before, after in pairwise(grey):
        errors = [np.abs(after[:, 6:-6] - np.roll(before, shift, 1)[:, 6:-6]).mean() for shift in shifts]
        found.append(shifts[int(np.argmin(errors))])
    return float(np.mean(found))


def recipe(folder, clips, frames, network, vae_steps, steps):
    """The file of a recipe of two stages."""
    data = {"folder": str(clips), "size": [SIDE, SIDE], "frames": frames, "validation": 0.1}
    if frames > 1:
        data["clips_per_video"] = 3
    values = {
        "out": str(folder / "run"),
        "common": {"every": {"device": "cpu", "batch_size": 8, "ema_decay": 0.99, "data": data}},
        "stages": {
            "vae": {
                "task": "vae", "steps": vae_steps, "log_every": 50, "optimiser": {"lr": 2e-3, "warmup_steps": 20},
                "model": {"block_out_channels": [16, 32], "norm_num_groups": 8, "latent_channels": 4},
            },
            "network": {
                "task": "videos", "vae": "vae", "steps": steps, "log_every": 50, "evaluate_every": steps // 20,
                "optimiser": {"name": "muon", "lr": 2e-3, "muon_lr": 0.01, "warmup_steps": 20}, "network": network,
                "prediction": "v", "timesteps": [0.4, 1.2], "sampling": {"sampler": "ddim", "steps": 20, "cfg_scale": 3},
            },
        },
        "export": {"stage": "network"},
    }  # fmt: skip
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def logged(folder, stage, column):
    """The values of a column in the log of a stage."""
    (run,) = (folder / "run").glob(f"{stage}-*")
    return [float(row[column]) for row in rows_of(run) if row.get(column)]


@pytest.mark.long
def test_twenty_videos_train_to_clips_of_their_palette_and_pan(tmp_path):
    clips = write_folder(tmp_path / "clips", 24)
    network = {"family": "stdit", "hidden_size": 128, "depth": 4, "num_heads": 4, "patch_size": [6, 2, 2]}
    model = run_recipe(recipe(tmp_path, clips, 6, network, 200, 1200))
    found = logged(tmp_path, "network", "val_mse")
    print(f"psnr {logged(tmp_path, 'vae', 'psnr')[-1]:.1f} dB, val_mse {found}")
    assert min(found) < 0.7 * found[0]
    pipe = guidon.load(model, device="cpu")
    hits = {"palette": 0, "pan": 0}
    prompts = [(palette, kind, pan) for palette in PALETTES for kind in TEXTURES for pan in PANS]
    for palette, kind, pan in prompts:
        frames = pipe(f"{palette} {kind}, the camera pans {pan}", seed=1).frames
        print(palette, kind, pan, f"warmth {warmth(frames):.0f}, motion {motion(frames):.2f}")
        hits["palette"] += (warmth(frames) > 0) == (palette == "warm")
        hits["pan"] += motion(frames) * PANS[pan] > 0
    print(hits, "of", len(prompts))
    assert hits["palette"] == len(prompts)
    assert hits["pan"] >= 0.75 * len(prompts)


@pytest.mark.long
def test_twenty_pictures_train_to_pictures_of_their_palette(tmp_path):
    clips = write_folder(tmp_path / "pictures", 1)
    network = {"family": "pixart", "hidden_size": 64, "depth": 3, "num_heads": 4}
    model = run_recipe(recipe(tmp_path, clips, 1, network, 200, 300))
    found = logged(tmp_path, "network", "val_mse")
    print(f"psnr {logged(tmp_path, 'vae', 'psnr')[-1]:.1f} dB, val_mse {found}")
    assert min(found) < 0.85 * found[0]  # eighteen pictures are soon known by heart
    pipe = guidon.load(model, device="cpu")
    shown = {p: [warmth(pipe(f"{p} {kind}", seed=1).frames) for kind in TEXTURES] for p in PALETTES}
    print(shown)
    assert min(shown["warm"]) > 0 > max(shown["cool"])


def test_the_measures_tell_palettes_and_pans_of_the_files_themselves():
    for k, (palette, pan) in enumerate((palette, pan) for palette in PALETTES for pan in PANS):
        for kind in TEXTURES:
            frames = clip_of(palette, kind, PANS[pan], np.random.default_rng(k), 8)
            assert (warmth(frames) > 0) == (palette == "warm")
            assert motion(frames) == pytest.approx(PANS[pan], abs=1)
