"""Training on several GPUs beside one: the same losses, and samples a second, by DDP and by FSDP2. It needs two GPUs.

    torchrun --nproc-per-node 2 benchmarks/several_gpus.py --out several     # a few minutes

Every run trains the same recipe, an STDiT of --width and --depth on clips of Guidon's world. The first rank trains it
alone first. Then all ranks train it together: with all weights on each (DDP), and divided (FSDP2). The last run begins
on all ranks, is stopped after half of its steps, and goes on on one. A line says how far the losses of a run are from
those of the first, and what it took. It ends with exit code 1 if losses differ by more than --most.

--tiny --device cpu runs all of it on processes of a CPU, as the tests do. On GPUs it has not run yet.
"""

import argparse
import csv
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from guidon.core.errors import InputError
from guidon.core.ranks import Ranks
from guidon.training import run_recipe
from guidon.training.step import Steps

VAE = {"block_out_channels": [16, 32], "norm_num_groups": 8, "pixel_unshuffle": 2}


def write_recipe(folder: Path, name: str, values: dict[str, Any]) -> Path:
    """A recipe whose run is ``folder/name``."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"out": str(folder / name)} | values))
    return path


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's log."""
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def difference(one: Path, other: Path) -> float:
    """The largest relative difference between the losses of two runs."""
    ours, theirs = rows_of(one), rows_of(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    return max(abs(float(a["loss"]) / float(b["loss"]) - 1) for a, b in zip(ours, theirs, strict=True))


class StopAfter:
    """Stops a run on all ranks, as SIGTERM does, after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.call = steps, Steps.__call__

    def __enter__(self) -> None:
        call, steps = self.call, self.steps

        def stopping(own: Steps, batch: Any, step: int) -> Any:
            done = call(own, batch, step)
            if step + 1 == steps:
                signal.raise_signal(signal.SIGTERM)
            return done

        Steps.__call__ = stopping

    def __exit__(self, *_: object) -> None:
        Steps.__call__ = self.call


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder that all ranks see")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--most", type=float, default=1e-3, help="largest relative difference of a loss")
    parser.add_argument("--tiny", action="store_true", help="a tiny network and few steps")
    given = parser.parse_args(words)
    if given.tiny:
        given.steps, given.batch, given.width, given.depth = 4, 4, 16, 1
    if given.device == "cuda" and torch.cuda.device_count() < 2:
        raise InputError(f"this machine has {torch.cuda.device_count()} GPUs: two are needed")
    common: dict[str, Any] = {"device": given.device, "batch_size": given.batch, "log_every": 1}
    network = {
        "task": "denoiser", "steps": given.steps, "clips": 4 * given.batch, "cache": str(given.out / "clips"),
        "vae": str(given.out / "vae" / "vae.safetensors"), "optimiser": {"warmup_steps": 2},
        "model": {"hidden_size": given.width, "depth": given.depth, "num_heads": max(2, given.width // 64)},
        "terms": {"mse": {"weighting": "balanced"}},
    }  # fmt: skip
    if given.tiny:
        network["model"] |= {"patch_size": [4, 4, 4]}
    failed = False
    with Ranks.join() as ranks:
        if len(ranks) < 2:
            raise InputError("it needs several ranks: start it with torchrun --nproc-per-node 2")

        def told(name: str, seconds: float) -> None:
            nonlocal failed
            far = difference(given.out / "one", given.out / name)
            failed |= not far <= given.most
            speed = given.steps * given.batch / seconds
            print(f"{name}: losses within {far:.1e} of one rank, {speed:.1f} samples/s with start and end", flush=True)

        def alone(name: str, values: dict[str, Any]) -> str:
            return str(run_recipe(write_recipe(given.out, name, common | values)))

        vae = {"task": "vae", "steps": 20, "model": VAE}
        ranks.from_first_at_length(lambda: alone("vae", vae))
        begun = time.monotonic()
        ranks.from_first_at_length(lambda: alone("one", network))
        if ranks.first:
            told("one", time.monotonic() - begun)
        for name, more in (("ddp", {}), ("fsdp2", {"shard_above": 1})):
            recipe = given.out / f"{name}.yaml"
            ranks.from_first(lambda name=name, more=more: str(write_recipe(given.out, name, common | network | more)))
            begun = time.monotonic()
            run_recipe(recipe, ranks=ranks)
            if ranks.first:
                told(name, time.monotonic() - begun)
        ranks.from_first(lambda: str(write_recipe(given.out, "fewer", common | network | {"shard_above": 1})))
        begun = time.monotonic()
        with StopAfter(given.steps // 2):
            run_recipe(given.out / "fewer.yaml", ranks=ranks)
        ranks.from_first_at_length(lambda: str(run_recipe(given.out / "fewer.yaml")))
        if ranks.first:
            told("fewer", time.monotonic() - begun)
            print(f"tensors went by {ranks.backend}")
        return int(ranks.any(failed))


if __name__ == "__main__":
    sys.exit(main())
