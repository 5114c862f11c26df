"""One guided denoising step of a small STDiT: the original's behaviour, a strong baseline, each saving, and Guidon.

    python benchmarks/step.py                       # both lengths of captions, all tables: about 8 minutes
    python benchmarks/step.py --tokens 20 --tables exact --rounds 6 --without "original +"

The network is 384 wide and 12 deep (--depth), with 16 frames of 64 tokens: 1 clip, two branches, scale 7 on 3 of 4
channels. All arms share weights, inputs and noise. A step is the network, guidance, the reverse step and its noise.

Arms are compared by what they predict under guidance, beside x_{t-1} with noise that all are given.

To add an arm: a function of a ``Case`` that returns an ``Arm``, and its name in a table at the end of the file.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from plain import PlainSTDiT, PlainTables, Savings, guided, reverse_step
from torch import Tensor

from guidon.analysis.speed import Arm, Comparison, compare_speed, write_measurements
from guidon.core.devices import cpu_threads
from guidon.diffusion import DiscreteLevel, NoiseSchedule, Process
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.models.parts.compiling import keep_rearranging_whole
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.samplers import SampleNoise
from guidon.samplers.ddpm import ddpm_next

SCALE = 7.0
STEPS = 100


@dataclass(frozen=True, eq=False)
class Case:
    """The weights and inputs that all arms share."""

    network: STDiT
    half: STDiT
    """The same in bf16."""
    features: Tensor
    """Of the caption, (1, L, F)."""
    mask: Tensor
    """(1, L), 1 where a token counts."""
    x: Tensor
    """(1, C, T, H, W)."""
    noise: Tensor
    """Like x: what arms are compared with."""
    schedule: NoiseSchedule

    @property
    def level(self) -> DiscreteLevel:
        """A level in the middle of sampling."""
        return self.schedule.levels[STEPS // 2]

    def of(self, dtype: torch.dtype) -> STDiT:
        return self.network if dtype == torch.float32 else self.half


def random_network(config: STDiTConfig) -> STDiT:
    """STDiT with random weights that let every layer matter, and predict values of about 1."""
    torch.manual_seed(0)
    network = STDiT(config).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith(("cross_attn.proj.weight", "attn_temp.proj.weight", "final_layer.linear.weight")):
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return network


def make_case(tokens: int, depth: int = 12, width: int = 384, frames: int = 16, side: int = 16) -> Case:
    """The inputs for a caption of ``tokens`` of 120 tokens, on latents of ``frames`` x ``side`` x ``side``."""
    config = STDiTConfig((frames, side, side), hidden_size=width, depth=depth, num_heads=width // 64, space_scale=0.5)
    network = random_network(config)
    x, noise = (torch.randn(1, 4, frames, side, side) for _ in range(2))
    features = torch.randn(1, config.model_max_length, config.caption_channels)
    mask = torch.zeros(1, config.model_max_length, dtype=torch.long)
    mask[:, :tokens] = 1
    schedule = NoiseSchedule.named("linear", 1000).respaced(STEPS)
    return Case(network, copy.deepcopy(network).bfloat16(), features, mask, x, noise, schedule)


# arms


def original(
    name: str, savings: Savings, case: Case, dtype: torch.dtype = torch.float32, compiled: bool = False
) -> Arm:
    """The original's loop, with some of the savings."""
    model, tables = PlainSTDiT(case.of(dtype), savings, compiled), PlainTables(case.schedule)
    null = case.network.y_embedder.y_embedding[None]
    features, mask = torch.cat([case.features, null]), case.mask.repeat(2, 1)
    kept = model.captions(features, mask) if savings.captions_once else None
    doubled = torch.cat([case.x, case.x])

    def predicted(x: Tensor, timesteps: Tensor) -> Tensor:
        return guided(lambda both: model(both, timesteps, features, mask, kept), x, SCALE, savings)

    def step(predicted: Callable[[Tensor, Tensor], Tensor], noise: Callable[[Tensor], Tensor]) -> Tensor:
        return reverse_step(predicted, doubled, int(case.level.step), tables, noise, savings)

    def result() -> Tensor:
        given: list[Tensor] = []
        after = step(lambda *inputs: given.append(predicted(*inputs)) or given[0], case.noise.expand_as)
        return torch.cat([given[0][:1], after[:1]], dim=1)

    return Arm(name, lambda: step(predicted, torch.randn_like), result, counted=not compiled)


def guidon(
    name: str,
    case: Case,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    batched: bool = True,
    scale: float = SCALE,
) -> Arm:
    """What Guidon does in a step of ddpm, as its pipeline calls it."""
    network = case.of(dtype)
    if compiled:
        shared = {id(value): value for value in (*network.parameters(), *network.buffers())}
        network = copy.deepcopy(network, shared)  # the same weights under blocks of its own
        for block in network.blocks:
            block.compile(dynamic=False)
    cond, uncond = network.prepare(case.features, case.mask), network.null(1, case.mask)
    guidance = Guidance(scale, 3)
    denoiser = GuidedDenoiser(network, guidance, cond, None if scale == 1 else uncond, batched=batched)
    process, own = Process(), SampleNoise(0, [0])

    def step(prediction: Tensor, noise: Tensor) -> Tensor:
        return ddpm_next(prediction, case.x, case.level, noise, process)

    def result() -> Tensor:
        prediction = denoiser(case.x, case.level)
        return torch.cat([prediction, step(prediction, case.noise)], dim=1)

    return Arm(name, lambda: step(denoiser(case.x, case.level), own(case.x)), result, counted=not compiled)


Make = Callable[[Case], Arm]
ALL = Savings(**{field.name: True for field in fields(Savings)})
BF16 = torch.bfloat16

PLAIN: dict[str, Savings] = {
    "original": Savings(),
    "strong baseline (fused attention)": Savings(fused_attention=True),
    "original + captions once": Savings(captions_once=True),
    "original + patches as a product": Savings(patches_as_product=True),
    "original + fused modulation": Savings(fused_modulation=True),
    "original + shared start": Savings(shared_start=True),
    "original + one half after the network": Savings(one_half=True),
    "original + all of these": ALL,
}
EXACT: dict[str, Make] = {name: partial(original, name, savings) for name, savings in PLAIN.items()} | {
    "guidon": partial(guidon, "guidon"),
    "guidon, one branch after the other": partial(guidon, "guidon, one branch after the other", batched=False),
}
LOSSY: dict[str, Make] = {
    "original": EXACT["original"],
    "original, bf16": partial(original, "original, bf16", Savings(), dtype=BF16),
    "guidon": EXACT["guidon"],
    "guidon, bf16": partial(guidon, "guidon, bf16", dtype=BF16),
    "guidon, conditional only": partial(guidon, "guidon, conditional only", scale=1.0),
    "guidon, bf16, conditional only": partial(guidon, "guidon, bf16, conditional only", dtype=BF16, scale=1.0),
}
COMPILED: dict[str, Make] = {
    "original": EXACT["original"],
    "original, compiled": partial(original, "original, compiled", Savings(), compiled=True),
    "original, bf16, compiled": partial(original, "original, bf16, compiled", Savings(), dtype=BF16, compiled=True),
    "guidon, compiled": partial(guidon, "guidon, compiled", compiled=True),
    "guidon, bf16, compiled": partial(guidon, "guidon, bf16, compiled", dtype=BF16, compiled=True),
}
TABLES: dict[str, dict[str, Make]] = {"exact": EXACT, "lossy": LOSSY, "compiled": COMPILED}
PAIRS = (  # other ratios that are printed: how many times faster the second is than the first
    ("strong baseline (fused attention)", "guidon"),
    ("original, bf16", "guidon, bf16"),
    ("original, compiled", "guidon, compiled"),
    ("original, bf16, compiled", "guidon, bf16, compiled"),
)


def measure(
    case: Case, title: str, table: str, rounds: int | None, seconds: float, without: Sequence[str] = ()
) -> Comparison:
    """One table of a case, without the arms whose names hold one of these texts."""
    with torch.inference_mode():
        makes = TABLES[table].items()
        arms = [make(case) for name, make in makes if not any(text in name for text in without)]
        return compare_speed(title, arms, rounds=rounds, seconds=seconds)


def pairs(found: Comparison) -> str:
    """The ratios of ``PAIRS`` that a table holds, a line each."""
    names = {row.name for row in found.rows}
    lines = [f"{b} against {a}: {found.ratio(a, b)}" for a, b in PAIRS if {a, b} <= names]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[120, 20], help="caption tokens of 120 that count")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--without", nargs="+", default=[], help="leave out arms whose names hold one of these texts")
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--rounds", type=int, help="default: as many as fit in --seconds, 3 to 15")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the rounds of one table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write all times as JSON")
    arguments = parser.parse_args()
    keep_rearranging_whole()
    found: list[Comparison] = []
    with cpu_threads(arguments.threads):
        for tokens in arguments.tokens:
            case = make_case(tokens, arguments.depth)
            for table in arguments.tables:
                title = f"## One guided step, {table}, 384/{arguments.depth}, {tokens} of 120 tokens"
                found.append(measure(case, title, table, arguments.rounds, arguments.seconds, arguments.without))
                print(f"{found[-1].table()}\n{pairs(found[-1])}\n", flush=True)
                if arguments.json:
                    write_measurements(arguments.json, found)


if __name__ == "__main__":
    main()
