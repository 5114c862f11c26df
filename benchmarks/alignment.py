"""Does guidance make guidon-small obey its prompts? Samples held-out-seed prompts at several settings and measures.

    python benchmarks/alignment.py --prompts 100 --steps 50 --setting 1:3 --setting 4:3 --setting 4:all

A setting is cfg_scale:cfg_channels. Every attribute is read off the pixels and compared with the scene behind the
caption; what cannot be read counts as wrong. The same prompts and the same noise serve every setting.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from guidon import world

PALETTE = np.array(list(world.COLOURS.values()))
GROUNDS = np.array(list(world.BACKGROUNDS.values()))


def read_clip(frames: np.ndarray) -> dict | None:
    """What a clip (T, H, W, 3) in [0, 1] shows, or None when no single object is visible in every frame."""
    background = np.median(frames.reshape(len(frames), -1, 3), axis=1)
    difference = frames - background[:, None, None]
    distance = np.linalg.norm(difference, axis=-1)
    core = distance > 0.6 * distance.max()
    if distance.max() < 0.15:
        return None
    colour = np.median(frames[core], axis=0)
    axis = colour - background  # (T, 3)
    alpha = np.clip((difference * axis[:, None, None]).sum(-1) / (axis**2).sum(-1)[:, None, None], 0, 1)
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]] + 0.5
    centroids, scores, areas = [], dict.fromkeys(world.SHAPES, 0.0), []
    for a in alpha:
        labels, count = ndimage.label(a > 0.4)
        sizes = ndimage.sum_labels(np.ones_like(a), labels, range(1, count + 1))
        if count == 0 or sizes.max() < 6 or (sizes >= 12).sum() != 1:
            return None
        near = ndimage.binary_dilation(labels == 1 + int(np.argmax(sizes)), iterations=2)
        mass = a * near
        area = mass.sum()
        centre = (x * mass).sum() / area, (y * mass).sum() / area
        centroids.append(centre)
        areas.append(area)
        for shape in scores:
            template = world.coverage(shape, area, np.array([centre]))[0]
            scores[shape] += np.minimum(template, mass).sum() / np.maximum(template, mass).sum()
    centroids = np.array(centroids)
    time_axis = np.arange(len(frames))
    velocity = np.polyfit(time_axis, centroids, 1)[0]
    fitted = (
        np.polyval(np.polyfit(time_axis, centroids[:, 0], 1), time_axis),
        np.polyval(np.polyfit(time_axis, centroids[:, 1], 1), time_axis),
    )
    return {
        "colour": list(world.COLOURS)[int(np.argmin(((PALETTE - colour) ** 2).sum(1)))],
        "background": list(world.BACKGROUNDS)[int(np.argmin(((GROUNDS - np.median(background, axis=0)) ** 2).sum(1)))],
        "shape": max(scores, key=lambda shape: scores[shape]),
        "velocity": velocity,
        "residual": float(np.sqrt(np.mean(np.sum((centroids - np.stack(fitted, 1)) ** 2, axis=1)))),
        "area_cv": float(np.std(areas) / np.mean(areas)),
    }


def moves_right(velocity: np.ndarray, thing: world.Thing) -> bool:
    """Within 22.5 degrees and at least half the speed asked for; or still, under half of the slowest speed."""
    speed = float(np.hypot(*velocity))
    slowest = min(world.SPEEDS.values())
    if thing.motion == world.STILL:
        return speed < 0.5 * slowest
    wanted = np.array(thing.velocity)
    cosine = float(velocity @ wanted) / max(1e-9, speed * float(np.hypot(*wanted)))
    return speed >= 0.5 * slowest and cosine >= math.cos(math.radians(22.5))


def judge(frames: np.ndarray, scene: world.Scene) -> dict[str, float]:
    thing, seen = scene.things[0], read_clip(frames)
    if seen is None:
        return dict.fromkeys(("one_object", "colour", "shape", "direction", "background", "all"), 0.0) | {
            "residual": math.nan,
            "area_cv": math.nan,
        }
    right = {
        "one_object": 1.0,
        "colour": float(seen["colour"] == thing.colour),
        "shape": float(seen["shape"] == thing.shape),
        "direction": float(moves_right(seen["velocity"], thing)),
        "background": float(seen["background"] == scene.background),
    }
    return right | {"all": float(all(right.values())), "residual": seen["residual"], "area_cv": seen["area_cv"]}


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="guidon-small")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--split", default="L0")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sampler", default="ddpm")
    parser.add_argument("--setting", action="append", default=[])
    parser.add_argument("--sheet", type=Path, help="where to write a picture of the first prompts at every setting")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    import guidon

    pipe = guidon.load(arguments.model)
    clips = [world.clip(arguments.split, 1, index) for index in range(arguments.prompts)]
    rows = {"truth": [judge(clip.frames(), clip.scene) for clip in clips]}
    rows["truth through the VAE"] = [judge(pipe.autoencode(clip.frames()), clip.scene) for clip in clips]
    pictures = {}
    for setting in arguments.setting or ["1:3", "4:3", "4:all"]:
        scale, channels = setting.split(":")
        began = time.perf_counter()
        videos = pipe(
            [clip.caption for clip in clips],
            cfg_scale=float(scale),
            cfg_channels=channels,
            steps=arguments.steps,
            sampler=arguments.sampler,
            batch_size=25,
        )
        name = f"scale {scale}, channels {channels}"
        rows[name] = [judge(video.frames / 255, clip.scene) for video, clip in zip(videos, clips, strict=True)]
        pictures[name] = [video.frames for video in videos[:8]]
        print(f"{name}: {(time.perf_counter() - began) / len(videos):.2f} s a clip", flush=True)
    names = list(next(iter(rows.values()))[0])
    print("| setting | " + " | ".join(names) + " |\n|---" * 1 + "|---" * len(names) + "|")
    for setting, judged in rows.items():
        means = summary(judged)
        print(
            f"| {setting} | "
            + " | ".join(f"{means[n]:.2f}" if n in ("residual", "area_cv") else f"{100 * means[n]:.0f}%" for n in names)
            + " |"
        )
    if arguments.sheet:
        from guidon.video import contact_sheet

        contact_sheet(
            [list(row) for row in zip(*pictures.values(), strict=True)],
            [clip.caption for clip in clips[:8]],
            list(pictures),
            path=arguments.sheet,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({setting: summary(judged) for setting, judged in rows.items()}, indent=1))


if __name__ == "__main__":
    main()
