"""Adapters of low rank that are trained in place of a network's weights (LoRA, Hu et al. 2106.09685), by peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...checkpoints.writing import safetensors_bytes
from ...core.atomic import write_bytes
from ...core.errors import InputError, nearest
from ...core.extras import require
from ...models.adapters.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from ...models.small import DENOISER
from ...models.trained.config import CONFIG
from ..recipe.videos import LoraShape
from ..terms import Term

PREFIX = "base_model.model."  # before the names of layers in a file of peft
ATTENTION = (".qkv", ".q_linear", ".kv_linear", "attn.proj", "attn_temp.proj")  # ends of the names of its layers
NAME = "default"  # of the adapter, in the names of its parameters


class RowDropout(nn.Module):
    """Dropout that draws a mask for each row of a batch, from a seed of that row.

    So a row has the same mask whatever rows are computed with it: in a part of the batch, and on a rank.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.seeds = [0, 0]
        """Of the rows that are computed, and last the one for an input that is the same for all rows."""

    def forward(self, x: Tensor) -> Tensor:
        """The input (B n, ...) for B rows of the batch, or any input that is the same for all of them."""
        return x * cast("Any", self._mask)(x) if self.training else x

    @torch.compiler.disable
    def _mask(self, x: Tensor) -> Tensor:
        """What the input is multiplied by."""
        *seeds, of_all = self.seeds
        if len(x) % len(seeds):
            seeds = [of_all]
        mask = x.new_empty(x.shape)
        for part, seed in zip(mask.view(len(seeds), -1), seeds, strict=True):
            part.bernoulli_(1 - self.share, generator=torch.Generator(x.device).manual_seed(seed))
        return mask.div_(1 - self.share)


class Adapters(nn.Module):
    """The adapters of a network, and the state of the loss terms: all that is trained, and that a checkpoint holds.

    The parameters are those in the network. Dots in their names are "/" here, because PyTorch keeps dots for modules.
    """

    def __init__(self, network: nn.Module, terms: Mapping[str, Term]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self._dropouts = [part for part in network.modules() if isinstance(part, RowDropout)]
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)

    def drop(self, seed: int, rows: Tensor, count: int) -> None:
        """Choose what adapters do not see in the next call of the network, and in its backward pass.

        Args:
            seed: of the batch.
            rows: which rows of the batch the network is called on, (B,), on the CPU.
            count: the rows of the whole batch.
        """
        generator = torch.Generator().manual_seed(seed)
        for part in self._dropouts:
            seeds = torch.randint(1 << 62, (count + 1,), generator=generator)
            part.seeds = [*seeds[rows].tolist(), int(seeds[-1])]


def add_adapters(network: nn.Module, shape: LoraShape, seed: int) -> list[str]:
    """Add new adapters to a network, which add nothing yet. All other weights are frozen.

    Returns:
        The names of the layers that got one.

    Raises:
        InputError: no layer has one of the names, or peft is missing.
    """
    peft = require("peft", "training adapters", "lora")
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    found = [name for name in linear if shape.targets is None and name.endswith(ATTENTION)]
    for target in shape.targets or ():
        own = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not own:
            valid = sorted({name.rpartition(".")[2] for name in linear})
            raise InputError(f"lora: targets names {target!r}, which no linear layer is called{nearest(target, valid)}")
        found += own
    found = sorted(set(found))
    network.requires_grad_(False)
    config = peft.LoraConfig(
        r=shape.rank, lora_alpha=shape.alpha or shape.rank, lora_dropout=shape.dropout, target_modules=found
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, network, NAME)
    if shape.dropout:
        for name in found:
            cast("Any", network.get_submodule(name)).lora_dropout[NAME] = RowDropout(shape.dropout)
    return found


def write_adapters(
    folder: Path, network: nn.Module, weights: Mapping[str, Tensor], shape: LoraShape, targets: list[str], base: Path
) -> None:
    """Write adapters as peft does: adapter_model.safetensors and adapter_config.json.

    Args:
        folder: where to.
        network: the network, whose class is written.
        weights: the state of ``Adapters``.
        shape: of the adapters.
        targets: the names of their layers.
        base: where the network's weights are.
    """
    tensors = {
        PREFIX + name.replace("/", ".").replace(f".{NAME}.", "."): value.detach().float().cpu().contiguous()
        for name, value in weights.items()
        if "/" in name
    }
    write_bytes(folder / ADAPTER_WEIGHTS, safetensors_bytes(tensors, {"format": "pt"}))
    alpha = shape.alpha or float(shape.rank)
    text = adapter_config(type(network).__name__, shape.rank, alpha, shape.dropout, targets, str(base))
    write_bytes(folder / ADAPTER_CONFIG, text.encode())


def card(base: Path, shown: str, network: str, values: Mapping[str, Any]) -> str:
    """The text of the card of a folder of adapters."""
    own = (base / CONFIG).is_file() or (base / DENOISER).is_file()
    model = f'"{base}"' if own else f'"the name of its preset", checkpoint="{base}"'
    called = [f'pipe = guidon.load({model}, lora="this folder")', f"pipe({shown!r}, seed=0)"]
    table = [f"| {name} | {value} |" for name, value in values.items()]
    lines = [
        "---", "library_name: peft", f"base_model: {base}", "tags: [lora, guidon]", "---", "",
        f"# Adapters of a {network}, trained with Guidon", "",
        "```python", "import guidon", "", *called, "```", "", "| | |", "|---|---|", *table,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
