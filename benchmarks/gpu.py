"""The released architectures on one GPU, at full size with random weights: a guided step, and a step of training.

    python benchmarks/gpu.py --out gpu.md           # at most about 10 minutes; the table is written as it grows

Each step is one clip or image under guidance (two branches in one batch, bf16, fp32 arithmetic outside the network).
The share of peak is that of a product of two 8192 x 8192 bf16 matrices, measured first. Training is forward, backward
and AdamW on a batch, weights in fp32, under bf16 autocast. What does not fit in memory is a row that says so, and when
the minutes are over, what is left is not begun. --tiny runs all of it on small shapes, also without a GPU.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidon.analysis.speed import Arm, compare_speed, count, describe_machine, machine_line
from guidon.core.atomic import write_bytes, write_json
from guidon.core.limits import is_out_of_memory
from guidon.diffusion import NoiseSchedule, Process
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.parts.compiling import keep_rearranging_whole
from guidon.models.pixart.network import PixArt, PixArtConfig
from guidon.models.stdit.config import STDiTConfig
from guidon.models.stdit.network import STDiT
from guidon.models.stdit2.config import STDiT2Config
from guidon.models.stdit2.network import STDiT2
from guidon.models.stdit3.config import STDiT3Config
from guidon.models.stdit3.network import STDiT3
from guidon.samplers import ddpm_step

SECONDS = 6.0  # for the rounds of a table
TINY: dict[str, Any] = {"hidden_size": 48, "depth": 1, "num_heads": 4}


@dataclass(frozen=True)
class Model:
    """An architecture at one size."""

    name: str
    network: Callable[[Any], nn.Module]
    config: Any
    batch: int
    """Samples of a step of training."""
    compiled: bool = False
    """Whether it is also measured compiled, block by block, which takes half a minute."""

    @property
    def tiny(self) -> "Model":
        """The same with few small blocks and latents."""
        size = self.config.input_size
        small = (2, 4, 4) if isinstance(size, tuple) else 4
        captions = {} if isinstance(self.config, DiTConfig) else {"caption_channels": 16, "model_max_length": 8}
        return replace(self, config=replace(self.config, input_size=small, **TINY, **captions), batch=2)


MODELS = (
    Model("STDiT-XL/2 16x256x256", STDiT, STDiTConfig((16, 32, 32), space_scale=0.5), 8, compiled=True),
    Model("STDiT-XL/2 16x512x512", STDiT, STDiTConfig((16, 64, 64)), 2, compiled=True),
    Model("PixArt-XL/2 256x256", PixArt, PixArtConfig(32), 64, compiled=True),
    Model("DiT-XL/2 256x256", DiT, DiTConfig(32), 64),
    Model("STDiT2-XL/2 16x256x256", STDiT2, STDiT2Config((16, 32, 32)), 8),
    Model("STDiT3-XL/2 51x240x424", STDiT3, STDiT3Config((15, 30, 53)), 4),
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    what: str
    milliseconds: float | None = None
    """By the clock, the median over rounds."""
    share: float | None = None
    """Of the measured peak of matrix products."""
    samples: float | None = None
    """A second, in training."""
    gigabytes: float | None = None
    """The most memory of the GPU."""
    note: str = ""

    @property
    def cells(self) -> list[str]:
        numbers = (
            f"{self.milliseconds:.3g}" if self.milliseconds else "",
            f"{self.share:.1%}" if self.share else "",
            f"{self.samples:.3g}" if self.samples else "",
            f"{self.gigabytes:.1f}" if self.gigabytes else "",
        )
        return [self.model, self.what, *numbers, self.note]


HEAD = ["model", "what", "ms", "share of peak", "samples/s", "GB", "note"]


def made(model: Model, device: torch.device) -> Any:
    """A network with random weights."""
    torch.manual_seed(0)
    with device:
        network = model.network(model.config)
    return network.to(device).eval().requires_grad_(False)


def conditions(network: Any, rows: int, device: torch.device) -> Tensor:
    """What a batch of prompts is to the network: classes, or the features of full captions."""
    embedder = network.y_embedder
    if not hasattr(embedder, "y_embedding"):
        return torch.arange(rows, device=device)
    return torch.randn(rows, *embedder.y_embedding.shape, device=device)


def compiled_blocks(network: Any) -> Any:
    """The network on the same weights, its blocks compiled."""
    shared = {id(value): value for value in (*network.parameters(), *network.buffers())}
    network = copy.deepcopy(network, shared)
    for block in network.blocks:
        block.compile(dynamic=False)
    return network


def step_arm(name: str, network: Any, device: torch.device, *, counted: bool = True, **how: Any) -> Arm:
    """A guided step of ddpm; ``how`` goes to the guided denoiser, but ``scale``."""
    schedule, process = NoiseSchedule.named("linear", 1000).respaced(100), Process()
    level, scale = schedule.levels[50], how.pop("scale", 7.0)
    torch.manual_seed(1)
    x, noise = (torch.randn(1, *network.latent_shape, device=device) for _ in range(2))
    features = conditions(network, 1, device)
    cond, uncond = network.prepare(features), network.null(1)
    denoiser = GuidedDenoiser(network, Guidance(scale, 3), cond, None if scale == 1 else uncond, **how)
    return Arm(name, lambda: ddpm_step(denoiser(x, level), x, level, noise, process)[0], counted=counted)


def steps(model: Model, device: torch.device, peak: float) -> Iterator[Row]:
    """The rows of a guided step."""
    network = made(model, device).to(torch.bfloat16)
    with torch.inference_mode():
        arms = [
            step_arm("guided step", network, device),
            step_arm("guided step, one branch after the other", network, device, batched=False),
            step_arm("step without guidance", network, device, scale=1.0),
        ]
        if model.compiled:
            fast = compiled_blocks(network)
            arms.append(step_arm("guided step, compiled", fast, device, counted=False))
        memory = {arm.name: gigabytes(arm, device) for arm in arms}
        found = compare_speed(model.name, arms, device=device, clock="wall", seconds=SECONDS)
    for row in found.rows:
        counts = row.counts or found.rows[0].counts
        seconds = row.median("wall")
        share = counts.flops / seconds / peak if counts and peak else None
        note = f"A/A {found.twin}{', noisy' if found.noise else ''}" if row is found.rows[0] else f"{row.ratio} times"
        yield Row(model.name, row.name, 1e3 * seconds, share, None, memory[row.name], note)


def training_arm(name: str, network: Any, batch: int, device: torch.device) -> Arm:
    """A step of training on a batch."""
    schedule = NoiseSchedule.named("linear", 1000)
    torch.manual_seed(2)
    x_0, noise = (torch.randn(batch, *network.latent_shape, device=device) for _ in range(2))
    level = schedule.at(torch.linspace(0, 999, batch, device=device).long(), like=x_0)
    x_t, features = level.alpha * x_0 + level.sigma * noise, conditions(network, batch, device)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-6, fused=True)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            prediction = network(x_t, level, network.prepare(features))
        loss = (prediction[:, : x_t.shape[1]].float() - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return Arm(name, run, compared=False, counted=False)


def training(model: Model, device: torch.device, peak: float) -> Iterator[Row]:
    """The rows of a step of training."""
    for compiled in (False, True) if model.compiled else (False,):
        network = made(model, device).train().requires_grad_(True)
        arm = training_arm(f"training, batch {model.batch}{', compiled' * compiled}", network, model.batch, device)
        flops = 0 if compiled else count(arm.run).flops
        if compiled:
            for block in network.blocks:
                block.compile(dynamic=False)
        memory = gigabytes(arm, device)
        found = compare_speed(model.name, [arm], device=device, clock="wall", seconds=SECONDS)
        seconds = found.rows[0].median("wall")
        share = flops / seconds / peak if flops and peak else None
        yield Row(
            model.name, arm.name, 1e3 * seconds, share, model.batch / seconds, memory, f"A/A {found.twin}"
        )  # fmt: skip
        del network, arm, found
        release(device)


def gigabytes(arm: Arm, device: torch.device) -> float | None:
    """The most memory while an arm runs, weights included; None without a GPU."""
    arm.run()
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    arm.run()
    return torch.cuda.max_memory_allocated(device) / 1e9


def release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured_peak(device: torch.device, side: int) -> float:
    """FLOPs a second of a product of two bf16 matrices, the best of some."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    arm = Arm("product", lambda: a @ b, compared=False, counted=False)
    found = compare_speed("peak", [arm], rounds=10, device=device, clock="wall")
    return 2 * side**3 / min(found.rows[0].times.wall)


def write(out: Path, title: str, machine: dict[str, Any], rows: list[Row]) -> None:
    """Write the table so far, and the same as JSON beside it."""
    lines = [HEAD, ["-"] * len(HEAD), *(row.cells for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    write_bytes(out, f"{title}\n\n{table}\n".encode())
    write_json(out.with_suffix(".json"), {"machine": machine, "title": title, "rows": [vars(row) for row in rows]})


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="the table; JSON is written beside it")
    parser.add_argument("--minutes", type=float, default=8.5, help="nothing is begun after so many")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of models")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    arguments = parser.parse_args(words)
    device, began = torch.device(arguments.device), time.monotonic()
    keep_rearranging_whole()
    models = [model for model in MODELS if any(part in model.name for part in arguments.only)]
    models = [model.tiny if arguments.tiny else model for model in models]
    models = [replace(model, compiled=False) if arguments.no_compile else model for model in models]
    machine = describe_machine(device)
    peak = measured_peak(device, 256 if arguments.tiny else 8192)
    title = f"{machine_line(machine)}; measured peak {peak / 1e12:.3g} TFLOP/s in bf16"
    print(title, flush=True)

    rows: list[Row] = []
    for task in (steps, training):
        for model in models:
            if time.monotonic() - began > 60 * arguments.minutes:
                rows.append(Row(model.name, task.__name__, note="not begun: the minutes were over"))
                write(arguments.out, title, machine, rows)
                continue
            try:
                for row in task(model, device, peak):
                    rows.append(row)
                    print(" | ".join(row.cells), flush=True)
                    write(arguments.out, title, machine, rows)
            except Exception as error:  # one model that fails must not lose the table of the others
                why = "it does not fit in memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
                rows.append(Row(model.name, task.__name__, note=" ".join(why.split())[:200]))
                print(" | ".join(rows[-1].cells), flush=True)
            release(device)
            write(arguments.out, title, machine, rows)
    print(f"{arguments.out}, in {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
