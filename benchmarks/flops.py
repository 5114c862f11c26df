"""Where the FLOPs of one guided step go in the released architectures, counted without weights, in seconds.

    python benchmarks/flops.py

A step is two branches of one clip or image. FLOPs are two for each multiply-add, of products, convolutions and
attention. The last column is what depends on the prompts alone, and is computed once for each of them. STDiT2 and
STDiT3 look at the numbers of their inputs, which are not there: gpu.py counts them.
"""

import argparse
from collections import defaultdict

import torch
from gpu import MODELS, Model, conditions
from torch.utils.flop_counter import FlopCounterMode

from guidon.diffusion import NoiseSchedule
from guidon.models.dit.network import ClassEmbedding, DiT
from guidon.models.pixart.network import PixArt
from guidon.models.stdit.network import STDiT

PARTS = {  # the last name of a module, or the one before it -> the column
    "attn": "attention in space",
    "attn_temp": "attention in time",
    "cross_attn": "to the caption",
    "mlp": "MLP",
}
COUNTED = (STDiT, PixArt, DiT)
COLUMNS = (*PARTS.values(), "the rest")


def shares(model: Model) -> tuple[int, dict[str, float], int]:
    """FLOPs of a guided step, the share of each part, and FLOPs once for each prompt."""
    meta = torch.device("meta")
    with meta:
        network = model.network(model.config).eval()
    level = NoiseSchedule.named("linear", 1000).levels[500]
    with torch.no_grad():
        with FlopCounterMode(display=False) as prompt:
            if isinstance(network, DiT):  # which looks at its classes, and here they have no values
                cond = ClassEmbedding(torch.randn(1, model.config.hidden_size, device=meta))
            else:
                cond = network.prepare(conditions(network, 1, meta))
            cond = cond.cat(cond)
        with FlopCounterMode(display=False) as step:
            rows = 1 if getattr(network, "branches_share_rows", False) else 2
            network(torch.randn(rows, *network.latent_shape, device=meta), level, cond)
    total, found = step.get_total_flops(), defaultdict[str, float](float)
    for name, counts in step.get_flop_counts().items():
        *path, last = name.split(".")
        if last in PARTS and "blocks" in name:
            part = "attention in time" if last == "attn" and "temporal_blocks" in path else PARTS[last]
            found[part] += sum(counts.values()) / total
    found["the rest"] = 1 - sum(found.values())
    return total, found, prompt.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(f"| guided step of | TFLOP | {' | '.join(COLUMNS)} | TFLOP once a prompt |")
    print(f"|---|---|{'---|' * len(COLUMNS)}---|")
    for model in (model for model in MODELS if model.network in COUNTED):
        total, found, once = shares(model)
        cells = " | ".join(f"{found[column]:.1%}" if found[column] else "" for column in COLUMNS)
        print(f"| {model.name} | {total / 1e12:.2f} | {cells} | {once / 1e12:.3f} |", flush=True)


if __name__ == "__main__":
    main()
