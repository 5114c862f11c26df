"""Which scale do three of many latent channels need? In closed form, and on guidon-small seen in 32 channels.

python benchmarks/more_channels.py mixture
python benchmarks/more_channels.py model --prompts 96 --out FOLDER

``mixture``: classes are Gaussians in a latent of 4 to 32 channels that carry the same evidence each, so that the
predictions of both branches are exact. ``model``: the latent of guidon-small (4 channels, 16 frames, 16 x 16) is
rearranged into 32 channels (8 frames, 8 x 8), which are its values at the 2 x 2 x 2 places of a cell; ``rotated`` mixes
the 32 by a random rotation. Noise and network are the same in every such basis, only the channels to choose from
differ. So it is a trained model with a latent of 32 channels.

Both find the scale on the first three channels that equals a scale on all, by what it does: by the energy of guidance,
sum over steps and guided channels of ((s - 1) ||cond - uncond||)^2, and by how often the prompt is obeyed.
"""

import argparse
import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

import guidon
from guidon.core.atomic import atomic_path
from guidon.core.progress import progress
from guidon.diffusion import NoiseLevel, NoiseSchedule, Parameterization, Process
from guidon.guidance import START, Guidance, GuidedDenoiser, Memory, random_rotation
from guidon.metrics.bench import find_bench
from guidon.metrics.statistics import compare
from guidon.samplers import SampleNoise, sample_ddpm

CHANNELS = 32
Change = Callable[[Tensor], Tensor]


@dataclass
class Rearranged:
    """Guidance on the channels of a rearranged latent. It combines as ``Guidance`` does, and sums up the energy."""

    guidance: Guidance
    into: Change
    """Latents (B, C, ...) to the channels that are chosen from, (B, ``channels``, ...); the norm stays."""
    back: Change
    channels: int
    energy: Tensor = field(init=False)
    """(``channels``,): the sum over samples, steps and places of (cond - uncond)^2."""
    needs_negative = needs_weak = False
    needs_uncond = True

    def __post_init__(self) -> None:
        self.energy = torch.zeros(self.channels, dtype=torch.float64)

    @property
    def is_conditional(self) -> bool:
        return self.guidance.is_conditional

    def acts(self, level: NoiseLevel, memory: Memory, channels: int) -> bool:
        return self.guidance.acts(level, memory, self.channels)

    def scale_at(self, level: NoiseLevel, memory: Memory, channels: int) -> Any:
        return self.guidance.scale_at(level, memory, self.channels)

    def combine(
        self, cond: Tensor, uncond: Tensor | None, x: Tensor, level: NoiseLevel, memory: Memory = START,
        *, negative: Tensor | None = None, weak: Tensor | None = None, parameterization: Parameterization = "eps",
    ) -> tuple[Tensor, Memory]:  # fmt: skip
        if uncond is None:
            return cond, memory
        own = x.shape[1]  # further channels of a prediction are a learned variance
        c, u = self.into(cond[:, :own]), self.into(uncond[:, :own])
        self.energy += (c - u).square().transpose(0, 1).flatten(1).double().sum(1)
        guided, memory = self.guidance.combine(c, u, self.into(x), level, memory, parameterization=parameterization)
        return torch.cat([self.back(guided), cond[:, own:]], 1), memory

    @property
    def added(self) -> float:
        """The energy of guidance, with the scale of each channel."""
        scales = torch.tensor(self.guidance.scales_for(self.channels).scales, dtype=torch.float64)
        return float((((scales - 1) ** 2) * self.energy).sum())


# in closed form


@dataclass(frozen=True)
class Mixture:
    """Equally likely classes, each a Gaussian of variance 1 in (channels, places): predictions of x_0, exact."""

    means: Tensor
    """(K, C, N)."""

    def __call__(self, x: Tensor, level: NoiseLevel, classes: "Classes") -> Tensor:
        alpha, sigma = float(level.alpha), float(level.sigma)
        kept = alpha / (alpha**2 + sigma**2)  # x_0 given x_t and class k is mean_k + kept (x_t - alpha mean_k)
        away = x[:, None] - alpha * self.means  # (B, K, C, N)
        logits = -away.square().flatten(2).sum(2) / (2 * (alpha**2 + sigma**2))
        weights = torch.where(classes.known[:, None], classes.one_hot, logits.softmax(1))
        return kept * x + (1 - kept * alpha) * torch.einsum("bk,kcn->bcn", weights, self.means)

    def logits(self, x: Tensor) -> Tensor:
        """The log-likelihood of each class given x_0, up to a constant, (B, K)."""
        return -(x[:, None] - self.means).square().flatten(2).sum(2) / 2


@dataclass(frozen=True)
class Classes:
    one_hot: Tensor
    """(B, K)."""
    known: Tensor
    """(B,): whether the prediction is told the class."""

    def cat(self, other: "Classes") -> "Classes":
        return Classes(torch.cat([self.one_hot, other.one_hot]), torch.cat([self.known, other.known]))


def mixture(arguments: argparse.Namespace) -> None:
    schedule = NoiseSchedule.named().respaced(25)
    scales, whole = (1.5, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32), 4
    print("| channels | guided | scale | energy, of all | obeyed | evidence, nats |\n|---|---|---|---|---|---|")
    for channels in (4, 8, 16, 32):
        network, classes = Mixture(_means(8, channels, 4, distance=2.0)), torch.arange(arguments.samples) % 8
        run = partial(_sampled_mixture, network, classes, schedule)
        nothing, everything = run(1, "all"), run(whole, "all")
        tried = [run(scale, 3) for scale in scales]
        rows = [
            ("none", 1, nothing),
            ("all", whole, everything),
            *(("3", *each) for each in zip(scales, tried, strict=True)),
        ]
        for chosen, scale, (added, obeyed, evidence) in rows:
            print(f"| {channels} | {chosen} | {scale} | {added / everything[0]:.2f} | {obeyed:.1%} | {evidence:.2f} |")
        equal = [np.interp(everything[k], np.maximum.accumulate([each[k] for each in tried]), scales) for k in (0, 2)]
        print(f"{channels} channels: all at {whole} is three at {equal[0]:.1f} by energy, {equal[1]:.1f} by evidence; "
              f"the root of the share says {1 + (whole - 1) * (channels / 3) ** 0.5:.1f}, the share "
              f"{1 + (whole - 1) * channels / 3:.1f}")  # fmt: skip


def _sampled_mixture(
    network: Mixture, classes: Tensor, schedule: NoiseSchedule, scale: float, chosen: str | int
) -> tuple[float, float, float]:
    """The energy of guidance, how often the class is the one asked for, and the evidence for that class."""
    count, channels, places = network.means.shape
    one_hot = torch.nn.functional.one_hot(classes, count).float()
    told, not_told = (Classes(one_hot, torch.full((len(classes),), known)) for known in (True, False))
    guidance = Rearranged(Guidance(scale, chosen), lambda x: x, lambda x: x, channels)
    generator = torch.Generator().manual_seed(0)
    denoiser = GuidedDenoiser(network, guidance, told, not_told, parameterization="x0")
    x = torch.randn(len(classes), channels, places, generator=generator)
    noise = partial(_noise_like, generator=generator)
    x = sample_ddpm(denoiser, schedule, x, noise, process=Process("x0", "fixed_small"))
    logits = network.logits(x)
    asked = logits.gather(1, classes[:, None])[:, 0]
    others = logits.masked_fill(one_hot.bool(), -torch.inf).logsumexp(1)
    return guidance.added, float((logits.argmax(1) == classes).float().mean()), float((asked - others).mean())


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator)


def _means(classes: int, channels: int, places: int, distance: float) -> Tensor:
    """Means (K, C, N) with the same evidence in every channel; two of them are ``distance`` apart on average."""
    drawn = torch.randn(classes, channels, places, generator=torch.Generator().manual_seed(0))
    drawn = drawn - drawn.mean(0)
    drawn = drawn / drawn.square().sum((0, 2), keepdim=True).sqrt()  # (K, C, N), every channel of energy 1
    apart = torch.pdist(drawn.flatten(1)).square().mean().sqrt()
    return drawn * distance / apart


# on guidon-small


def bases() -> dict[str, tuple[Change, Change]]:
    """Ways to see a latent (B, 4, T, h, w) as 32 channels (B, 32, T/2, h/2, w/2), and back."""
    turn = random_rotation(CHANNELS, 1)

    def split(x: Tensor) -> Tensor:
        return rearrange(x, "b c (t i) (h j) (w k) -> b (i j k c) t h w", i=2, j=2, k=2)

    def joined(x: Tensor) -> Tensor:
        return rearrange(x, "b (i j k c) t h w -> b c (t i) (h j) (w k)", i=2, j=2, k=2)

    return {
        "split": (split, joined),
        "rotated": (
            lambda x: torch.einsum("oc,bcthw->bothw", turn, split(x)),
            lambda x: joined(torch.einsum("oc,bothw->bcthw", turn, x)),
        ),
    }


def model(arguments: argparse.Namespace) -> None:
    pipe = guidon.load(arguments.model)
    bench = find_bench(pipe.model.facts.bench)
    captions = bench.captions(None, arguments.seed, arguments.prompts)
    everywhere = [("all", 1.0), ("all", arguments.scale)]
    few = [("3", scale) for scale in arguments.scales]
    some = [(f"0-{count - 1}", arguments.scale) for count in (8, 16, 24)]
    some += [(f"{count}-31", arguments.scale) for count in (3, 8, 16, 24)]
    tried = list(itertools.product(bases(), everywhere + few + some))
    values: dict[tuple[str, str, float], dict[str, np.ndarray]] = {}
    energies: dict[tuple[str, str, float], tuple[float, np.ndarray]] = {}
    with progress("sampling") as on_step:
        for number, (basis, (chosen, scale)) in enumerate(tried):
            key = basis, chosen, scale
            twin = "split", chosen, scale
            if chosen == "all" and twin in values:  # all channels are the same in every basis
                values[key] = values[twin]
            else:
                values[key], energies[key] = _sampled(pipe, bench, captions, bases()[basis], chosen, scale, arguments)
            on_step(number + 1, len(tried))
    _report(values, energies, arguments)


def _sampled(
    pipe: Any, bench: Any, captions: Sequence[str], basis: tuple[Change, Change], chosen: str, scale: float,
    arguments: argparse.Namespace,
) -> tuple[dict[str, np.ndarray], tuple[float, np.ndarray]]:  # fmt: skip
    """The metrics of a clip of every caption, and the energy of guidance: added, and of each channel."""
    model, schedule = pipe.model, pipe.model.schedule.respaced(arguments.steps)
    channels: Any = int(chosen) if chosen.isdecimal() else chosen
    guidance = Rearranged(Guidance(scale, channels), *basis, CHANNELS)
    frames: list[np.ndarray] = []
    with torch.inference_mode(), model.network.in_use(torch.float32) as network, model.text.in_use() as text:
        for first in range(0, len(captions), arguments.block):
            block = captions[first : first + arguments.block]
            features, mask = text.encode(tuple(block))
            cond, uncond = network.prepare(features, mask), network.null(len(block), mask)
            noise = SampleNoise(range(first, first + len(block)), [0] * len(block))
            denoiser = GuidedDenoiser(network, guidance, cond, uncond, parameterization=model.process.parameterization)
            x = sample_ddpm(denoiser, schedule, noise.initial(network.latent_shape), noise, process=model.process)
            with model.vae.in_use() as vae:
                decoded = vae.decode(x)
            frames += [
                ((clip + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy() for clip in decoded
            ]
    values = bench.measure(np.stack(frames), list(captions))
    return {name: np.asarray(column) for name, column in values.items()}, (guidance.added, guidance.energy.numpy())


SHOWN = ("joint", "law_residual", "area_cv", "colour_drift")


def _report(values: Any, energies: Any, arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(arguments.out / "more_channels.csv") as path, path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["basis", "channels", "scale", "metric", *range(arguments.prompts)])
        for (basis, chosen, scale), columns in values.items():
            for name in SHOWN:
                table.writerow([basis, chosen, scale, name, *columns[name]])
    everything = energies["split", "all", arguments.scale][1]
    print(f"all at {arguments.scale}: energy by channel of 'split', first 8: "
          f"{np.round(100 * everything / everything.sum(), 1)[:8]}")  # fmt: skip
    print("| basis | guided | scale | share | energy, of all | " + " | ".join(SHOWN) + " | joint - all | p |")
    print("|---" * (len(SHOWN) + 7) + "|")
    for (basis, chosen, scale), columns in values.items():
        base = values[basis, "all", arguments.scale]
        key = (basis, chosen, scale) if (basis, chosen, scale) in energies else ("split", chosen, scale)
        added, by_channel = energies[key]
        guided = Guidance(2, int(chosen) if chosen.isdecimal() else chosen).scales_for(CHANNELS).guided
        share = by_channel[list(guided)].sum() / max(by_channel.sum(), 1e-12)
        found = compare(base["joint"], columns["joint"])
        means = " | ".join(f"{np.nanmean(columns[name]):.4f}" for name in SHOWN)
        whole = energies["split", "all", arguments.scale][0]
        print(f"| {basis} | {chosen} | {scale:g} | {share:.3f} | {added / whole:.2f} | {means} | "
              f"{100 * found.difference.value:+.1f} | {found.p:.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    in_closed_form = commands.add_parser("mixture")
    in_closed_form.set_defaults(run=mixture)
    in_closed_form.add_argument("--samples", type=int, default=2048)
    of_model = commands.add_parser("model")
    of_model.set_defaults(run=model)
    of_model.add_argument("--model", default="guidon-small")
    of_model.add_argument("--out", type=Path, required=True, help="a folder for the values of every clip")
    of_model.add_argument("--prompts", type=int, default=96)
    of_model.add_argument("--seed", type=int, default=5000)
    of_model.add_argument("--steps", type=int, default=25)
    of_model.add_argument("--block", type=int, default=16)
    of_model.add_argument("--scale", type=float, default=2.0, help="the scale on all channels")
    of_model.add_argument("--scales", type=float, nargs="+", default=[2, 4, 6, 8, 12, 16])
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
