"""What a full-size checkpoint costs: a network with random weights is written, inspected, loaded, and takes one step.

    python benchmarks/full_size.py --folder /tmp
    python benchmarks/full_size.py --network STDiT3 --formats .safetensors

Files of 3.0 GB (STDiT3: 4.8 GB) are written to the folder and removed. Each row is measured in a new process. Peak
memory includes the mapped pages of the file, which the system may drop; the process's own memory does not include them.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NETWORKS: dict[str, dict[str, Any]] = {
    "STDiT": {"input_size": (16, 32, 32), "space_scale": 0.5},  # Open-Sora 1.0, 16x256x256
    "STDiT2": {},  # Open-Sora 1.1
    "STDiT3": {},  # Open-Sora 1.2
}
REDUCED = (16, 8, 8)  # latents of the one step


def write(path: Path, name: str) -> None:
    import torch
    from safetensors.torch import save_file

    from guidon import models

    torch.manual_seed(0)
    with torch.device("meta"):
        model = getattr(models, name)(getattr(models, f"{name}Config")(**NETWORKS[name]))
    positions = model.position_tables()
    tensors = {
        name: positions[name] if name in positions else torch.randn(value.shape) * 0.02
        for name, value in model.state_dict().items()
    }
    torch.save(tensors, path) if path.suffix == ".pth" else save_file(tensors, path)


def inspect(path: Path) -> None:
    from guidon.models.checkpoint import inspect_checkpoint

    print(inspect_checkpoint(path), file=sys.stderr)


def step(path: Path, dtype: str, name: str) -> None:
    """One guided step on latents of reduced size; it reads every page of the weights."""
    import torch

    from guidon import load_checkpoint
    from guidon.diffusion import FlowPath, NoiseSchedule
    from guidon.guidance import Guidance, GuidedDenoiser
    from guidon.models.stdit3.velocity import Velocity
    from guidon.samplers import SampleNoise, sample_ddpm, sample_euler

    model = load_checkpoint(path, dtype=getattr(torch, dtype), input_size=REDUCED)
    tokens, flows = model.config.model_max_length, name == "STDiT3"
    features = torch.randn(1, tokens, 4096)
    with torch.inference_mode():
        mask = torch.ones(1, tokens, dtype=torch.long)
        denoiser = GuidedDenoiser(
            Velocity(model) if flows else model,
            Guidance(7.0, "all" if flows else 3),
            model.prepare(features, mask),
            model.null(1, mask),
            parameterization="flow" if flows else "eps",
        )
        noise = SampleNoise(0, [0])
        x = noise.initial((4, *REDUCED), torch.device("cpu"), 1)
        if flows:
            out = sample_euler(denoiser, FlowPath(steps=1), x, noise)
        else:
            out = sample_ddpm(denoiser, NoiseSchedule.named("linear", 1000).respaced(1), x, noise)
    assert out.shape == (1, 4, *REDUCED)
    assert out.isfinite().all()


def own_memory() -> float:
    """Bytes of this process that are backed by no file (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def load_and_look(path: Path, dtype: str) -> float:
    import torch

    from guidon import load_checkpoint

    model = load_checkpoint(path, dtype=getattr(torch, dtype))
    assert next(model.parameters()).dtype == getattr(torch, dtype)
    return own_memory()


def measured(stage: str, path: Path, dtype: str, name: str) -> dict[str, float]:
    """Seconds and memory of a stage, in a new process."""
    command = [sys.executable, __file__, "--stage", stage, "--file", str(path), "--dtype", dtype, "--network", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="a folder with 3 GB free")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="STDiT")
    parser.add_argument("--formats", nargs="+", choices=(".pth", ".safetensors"), default=(".pth", ".safetensors"))
    parser.add_argument("--stage", choices=("nothing", "write", "inspect", "load", "step"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        import torch  # noqa: F401  (its import is part of every row)

        import guidon.checkpoints  # noqa: F401

        began, used, own = time.perf_counter(), time.process_time(), 0.0
        if arguments.stage == "write":
            write(arguments.file, arguments.network)
        elif arguments.stage == "inspect":
            inspect(arguments.file)
        elif arguments.stage == "load":
            own = load_and_look(arguments.file, arguments.dtype)
        elif arguments.stage == "step":
            step(arguments.file, arguments.dtype, arguments.network)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "own": own or own_memory()}))
        return

    imports = measured("nothing", Path("none"), "float32", arguments.network)
    print(f"importing alone: {imports['peak'] / 1e9:.2f} GB\n")
    print("| file | stage | seconds | CPU seconds | peak (GB) | peak without imports / file | own memory after (GB) |")
    print("|---|---|---|---|---|---|---|")
    for suffix in arguments.formats:
        path = arguments.folder / f"guidon-full-size{suffix}"
        try:
            for stage, dtype in (
                ("write", ""), ("inspect", ""), ("load", "float32"), ("load", "bfloat16"),
                ("step", "float32"), ("step", "bfloat16"),
            ):  # fmt: skip
                row = measured(stage, path, dtype or "float32", arguments.network)
                size = path.stat().st_size
                ratio = (row["peak"] - imports["peak"]) / size
                print(
                    f"| {suffix}, {size / 1e9:.2f} GB | {stage} {dtype} | {row['seconds']:.1f} | {row['cpu']:.1f} | "
                    f"{row['peak'] / 1e9:.2f} | {ratio:.2f} | {row['own'] / 1e9:.2f} |",
                    flush=True,
                )
        finally:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
