"""A step outside the network: guidance, the reverse step, its noise. The network's output is there already.

    python benchmarks/outside.py                    # clips of 16x64x64 and 64x64x64 latents: about 2 minutes

The original's loop, Guidon's with its own noise and with the original's, a step by hand in a few passes over memory,
and the parts of Guidon's. To add an arm: a function of a ``Case``, and its name in ``ARMS``.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from plain import PlainTables, Savings, fused_reverse_step, guided, reverse_step
from torch import Tensor

from guidon.analysis.speed import Arm, Comparison, compare_speed, write_measurements
from guidon.core.devices import cpu_threads
from guidon.diffusion import DiscreteLevel, NoiseSchedule, Process
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.samplers import LegacyNoise, SampleNoise
from guidon.samplers.ddpm import ddpm_guided_next, ddpm_next

SCALE = 7.0
STEPS = 100
SHAPES = ((2, 4, 16, 64, 64), (2, 4, 64, 64, 64))  # clips, channels, frames, height, width


@dataclass(frozen=True)
class Given:
    """A condition of which only the number of rows is read."""

    rows: int

    def cat(self, other: "Given") -> "Given":
        return Given(self.rows + other.rows)


@dataclass(frozen=True, eq=False)
class Case:
    """The inputs that all arms share."""

    x: Tensor
    """(n, C, T, H, W)."""
    prediction: Tensor
    """Of both branches, (2n, 2C, T, H, W)."""
    noise: Tensor
    """Like x: what arms are compared with."""
    schedule: NoiseSchedule

    @property
    def level(self) -> DiscreteLevel:
        return self.schedule.levels[STEPS // 2]


class Predicted:
    """A network whose prediction is there already. ``branches_share_rows`` is as of Guidon's networks from a width of
    256; narrow ones are given the latents of each branch."""

    def __init__(self, case: Case, shares: bool) -> None:
        self.prediction, self.branches_share_rows = case.prediction, shares

    def __call__(self, x: Tensor, level: object, condition: Given) -> Tensor:
        return self.prediction[: condition.rows]


def make_case(shape: tuple[int, ...]) -> Case:
    torch.manual_seed(0)
    x, noise = torch.randn(shape), torch.randn(shape)
    prediction = torch.randn(2 * shape[0], 2 * shape[1], *shape[2:])
    return Case(x, prediction, noise, NoiseSchedule.named("linear", 1000).respaced(STEPS))


def original(name: str, savings: Savings, case: Case) -> Arm:
    """The loop in plain words, with some of the savings."""
    tables, doubled = PlainTables(case.schedule), torch.cat([case.x, case.x])

    def predicted(x: Tensor, timesteps: Tensor) -> Tensor:
        return guided(lambda both: case.prediction, x, SCALE, savings)

    def step(noise: Callable[[Tensor], Tensor]) -> Tensor:
        return reverse_step(predicted, doubled, int(case.level.step), tables, noise, savings)[: len(case.x)]

    def fixed(x: Tensor) -> Tensor:
        return torch.cat([case.noise] * (len(x) // len(case.noise)))

    return Arm(name, lambda: step(torch.randn_like), lambda: step(fixed))


def guidon(name: str, case: Case, scale: float = SCALE, legacy: bool = False, shares: bool = True) -> Arm:
    """What Guidon's samplers do around the network."""
    rows, process = len(case.x), Process()
    own = LegacyNoise(2, torch.Generator().manual_seed(0)) if legacy else SampleNoise(0, range(rows))
    denoiser = GuidedDenoiser(Predicted(case, shares), Guidance(scale, 3), Given(rows), Given(rows))
    memory: list[Tensor] = []

    def step(noise: Callable[[Tensor], Tensor]) -> Tensor:
        return ddpm_guided_next(denoiser, case.x, case.level, noise, process, memory)

    return Arm(name, lambda: step(own), lambda: step(lambda x: case.noise))


def fused(name: str, case: Case) -> Arm:
    """By hand: no check of the numbers, one draw for all clips, all memory used again."""
    out, memory, noise = torch.empty_like(case.x), case.prediction.clone(), torch.empty_like(case.x)

    def result() -> Tensor:
        return fused_reverse_step(case.prediction.clone(), case.x, case.level, case.noise.clone(), SCALE, out)

    def run() -> Tensor:
        # The variance channels are overwritten again and again; their values stay finite and do not change the cost.
        return fused_reverse_step(memory, case.x, case.level, noise.normal_(), SCALE, out)

    return Arm(name, run, result)


def guidance_alone(name: str, case: Case) -> Arm:
    cond, uncond = case.prediction.chunk(2)
    guidance = Guidance(SCALE, 3)
    return Arm(name, lambda: guidance.combine(cond, uncond, case.x, case.level)[0], compared=False)


def reverse_step_alone(name: str, case: Case) -> Arm:
    prediction, process = case.prediction[: len(case.x)], Process()
    return Arm(name, lambda: ddpm_next(prediction, case.x, case.level, case.noise, process), compared=False)


def noise_alone(name: str, case: Case) -> Arm:
    own = SampleNoise(0, range(len(case.x)))
    return Arm(name, lambda: own(case.x), compared=False)


ARMS: dict[str, Callable[[Case], Arm]] = {
    "original": partial(original, "original", Savings()),
    "original + one half after the network": partial(
        original, "original + one half after the network", Savings(one_half=True)
    ),
    "guidon": partial(guidon, "guidon"),
    "guidon, latents given for each branch": partial(guidon, "guidon, latents given for each branch", shares=False),
    "guidon with the original's noise": partial(guidon, "guidon with the original's noise", legacy=True),
    "guidon, conditional only": partial(guidon, "guidon, conditional only", scale=1.0),
    "fused by hand": partial(fused, "fused by hand"),
    "guidon's guidance alone": partial(guidance_alone, "guidon's guidance alone"),
    "guidon's reverse step alone": partial(reverse_step_alone, "guidon's reverse step alone"),
    "guidon's noise alone": partial(noise_alone, "guidon's noise alone"),
}


def measure(shape: tuple[int, ...], rounds: int | None, seconds: float) -> Comparison:
    case = make_case(shape)
    title = f"## A step outside the network, {'x'.join(map(str, shape))}"
    with torch.inference_mode():
        return compare_speed(title, [make(case) for make in ARMS.values()], rounds=rounds, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default: as many as fit in --seconds, 3 to 15")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the rounds of one table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write all times as JSON")
    arguments = parser.parse_args()
    found: list[Comparison] = []
    with cpu_threads(arguments.threads):
        for shape in SHAPES:
            found.append(measure(shape, arguments.rounds, arguments.seconds))
            print(f"{found[-1].table()}\n", flush=True)
            if arguments.json:
                write_measurements(arguments.json, found)


if __name__ == "__main__":
    main()
