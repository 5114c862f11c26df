"""How good can a sample be? Truth, and truth through an autoencoder, by every metric on many clips.

python benchmarks/ceilings.py --clips 1000
"""

import argparse
from pathlib import Path

import numpy as np

from guidon import world
from guidon.metrics.world import METRICS, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, help="a vae.safetensors in place of guidon-small's")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--split", default="L0")
    arguments = parser.parse_args()

    import torch

    from guidon.checkpoints import load_component
    from guidon.models.catalogue import find_preset
    from guidon.models.vae.frames import FrameVAE, FrameVAEConfig

    folder = find_preset("guidon-small").weights
    vae = load_component(arguments.vae or folder / "vae.safetensors", "vae").build(FrameVAE, FrameVAEConfig).eval()
    rows: dict[str, list[dict[str, np.ndarray]]] = {"truth": [], "truth through the VAE": []}
    squared, near, area = 0.0, 0.0, 0.0
    for first in range(0, arguments.clips, 25):
        clips = [world.clip(arguments.split, 1, k) for k in range(first, min(first + 25, arguments.clips))]
        wanted = [world.read_caption(clip.caption) for clip in clips]
        truth = np.stack([clip.frames() for clip in clips])
        x = torch.from_numpy(truth).permute(0, 4, 1, 2, 3) * 2 - 1
        through = ((vae.decode(vae.encode(x)) + 1) / 2).permute(0, 2, 3, 4, 1).numpy()
        rows["truth"].append(measure(truth, wanted))
        rows["truth through the VAE"].append(measure(through, wanted))
        error = (through - truth) ** 2
        mask = np.stack([world.foreground(clip.scene) for clip in clips])[..., None] > 0
        squared += float(error.mean()) * len(clips) / arguments.clips
        near, area = near + float((error * mask).sum()), area + 3 * float(mask.sum())
    print(f"PSNR {-10 * np.log10(squared):.1f} dB, foreground {-10 * np.log10(near / area):.1f} dB")
    print(f"| metric | unit | truth, mean (worst) | through the VAE, mean (worst) |\n|{'---|' * 4}")
    for name, metric in METRICS.items():
        cells = []
        for found in rows.values():
            values = np.concatenate([row[name] for row in found])
            values = values[np.isfinite(values)]
            worst = values.min() if metric.better == "higher" else values.max()
            cells.append(f"{values.mean():.3g} ({worst:.3g})")
        print(f"| {name} | {metric.unit} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
