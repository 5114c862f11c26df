"""A distilled network: it draws a clip in a few steps of one call each, and is told how strong guidance is.

It is a network of the model, changed by matrices of low rank (LoRA, Hu et al. 2106.09685), which are added to its
weights when it is built: a call costs what one branch of the network costs. The file holds these matrices, the biases
and tables that were trained, and an embedder of the strength of guidance on every latent channel, which takes the place
of a second branch (Meng et al. 2210.03142, sec. 3.1).

It runs where guidance acts, at high noise. Below a timestep, the model's own network or networks run, without guidance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...checkpoints import Component
from ...core.errors import InputError
from ...diffusion import NoiseLevel
from ..parts.captioned import Caption
from ..stdit.network import STDiT, STDiTConfig
from .distilled_config import DistilledConfig
from .experts import Experts

UNIT = 3.0
"""Strengths are told in this unit, as their distance from 1, which is no guidance."""
WHOLE = ("refiner.", "finisher.")
"""Parts of a network that have no matrices of low rank."""


class StrengthEmbedder(nn.Module):
    """Embeds the strengths of guidance: (B, C) -> (B, D). A new one gives zero."""

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        last = self.mlp[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, strengths: Tensor) -> Tensor:
        return self.mlp(((strengths - 1) / UNIT).to(next(self.parameters()).dtype))


class LowRank(nn.Module):
    """Adds a matrix of low rank, up @ down, to a weight. A new one adds zero."""

    def __init__(self, shape: torch.Size, rank: int) -> None:
        super().__init__()
        columns = math.prod(shape[1:])
        self.down = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view(weight.shape)


class Distilled(nn.Module):
    """A network and what is trained of it: ``denoiser`` with matrices of low rank, and the embedder."""

    def __init__(self, denoiser: STDiT, config: DistilledConfig) -> None:
        super().__init__()
        self.config = config
        self.told = StrengthEmbedder(config.channels, config.hidden_size)
        self.denoiser = denoiser.requires_grad_(False)
        for name, module in list(denoiser.named_modules()):
            if isinstance(module, nn.Linear | nn.Conv3d) and not name.startswith(WHOLE):
                added = LowRank(module.weight.shape, config.rank)
                parametrize.register_parametrization(module, "weight", added)
                module.parametrizations["weight"].original.requires_grad_(False)  # type: ignore[index,union-attr]
                if module.bias is not None:
                    module.bias.requires_grad_(True)
        for name, parameter in denoiser.named_parameters():
            if "scale_shift_table" in name:
                parameter.requires_grad_(True)

    def adapter(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What is trained, by name: out of these weights, or as it is now."""
        found = dict(self.named_parameters()) if weights is None else weights
        return {name: found[name] for name, parameter in self.named_parameters() if parameter.requires_grad}

    def merge(self) -> STDiT:
        """The network with the matrices added to its weights. This object is not to be used any more."""
        for module in self.denoiser.modules():
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight")
        return self.denoiser


def start_distilled(denoiser: Component, config: DistilledConfig, *leave: str) -> Distilled:
    """A new distilled network of a denoiser's file, whose prediction is the denoiser's own.

    Args:
        denoiser: the file.
        config: the shape.
        leave: keys of the file's configuration that do not describe the network.
    """
    shape = dataclasses.replace(denoiser.configure(STDiTConfig, *leave), refiner_end=config.refiner_end)
    network = STDiT(shape)
    network.load_state_dict(denoiser.weights)
    return Distilled(network, config)


def build_distilled(denoiser: Component, distilled: Component, *leave: str) -> Distilled:
    """The distilled network of two files.

    Raises:
        InputError: the file of the distilled network belongs to another denoiser, or does not fit.
    """
    config = distilled.configure(DistilledConfig)
    if config.denoiser != denoiser.sha256:
        raise InputError(
            f"{distilled.path} was distilled from other weights than {denoiser.path}: take both files of one folder"
        )
    made = start_distilled(denoiser, config, *leave)
    expected = made.adapter()
    wrong = sorted(expected.keys() ^ distilled.weights.keys())
    wrong += [name for name, value in expected.items() if not wrong and distilled.weights[name].shape != value.shape]
    if wrong:
        raise InputError(f"{distilled.path} does not fit {denoiser.path}: look at {wrong[0]}; train or copy it again")
    made.load_state_dict({**made.state_dict(), **distilled.weights})
    return made


@dataclass(frozen=True)
class DistilledCaption:
    """A batch of prompts for the distilled network and for the model's own, the same rows in each."""

    distilled: Caption
    own: Any


class DistilledNetwork:
    """A ``Network`` that is told the strengths of guidance, and runs one branch.

    Args:
        distilled: the distilled network, merged.
        told: the embedder.
        own: the model's own network, which runs at the timesteps below ``config.end``.
        config: the shape.
    """

    def __init__(self, distilled: STDiT, told: StrengthEmbedder, own: STDiT | Experts, config: DistilledConfig) -> None:
        self.distilled, self.told, self.own, self.config = distilled, told, own, config

    @property
    def networks(self) -> tuple[STDiT, ...]:
        """The distilled network and the model's own."""
        return (self.distilled, *(self.own.networks if isinstance(self.own, Experts) else (self.own,)))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T, H, W) of one sample at the size the networks were made for."""
        return self.own.latent_shape

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in."""
        return self.own.dtype

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> DistilledCaption:
        """All that depends on the prompts alone; arguments as of ``STDiT.prepare``."""
        return DistilledCaption(self.distilled.prepare(y, mask), self.own.prepare(y, mask))

    def null(self, rows: int, mask: Tensor | None = None) -> DistilledCaption:
        """The null caption, ``rows`` times."""
        return DistilledCaption(self.distilled.null(rows, mask), self.own.null(rows, mask))

    def network_at(self, level: NoiseLevel) -> STDiT:
        """The network for a level.

        Raises:
            InputError: the samples have different noise levels.
        """
        if isinstance(level.timestep, Tensor):
            raise InputError("a distilled network needs one noise level for the whole batch")
        if level.timestep >= self.config.end:
            return self.distilled
        return self.own.network_at(level) if isinstance(self.own, Experts) else self.own

    def __call__(self, x: Tensor, level: NoiseLevel, cond: DistilledCaption, /) -> Tensor:
        """The prediction: x (B, C, T, H, W) -> fp32 (B, 2C, T, H, W). The condition holds what the network is told.

        Raises:
            InputError: the samples have different noise levels.
        """
        if self.network_at(level) is self.distilled:
            return self.distilled(x, level, cond.distilled)
        return self.own(x, level, cond.own)

    def under(self, strengths: Tensor) -> Callable[[Tensor, NoiseLevel, DistilledCaption], Tensor]:
        """The network under guidance of these strengths, (C,): ``(x, level, condition)`` -> the guided prediction."""
        told = self.told(strengths.to(next(self.told.parameters()).device)[None])

        def guided(x: Tensor, level: NoiseLevel, cond: DistilledCaption) -> Tensor:
            return self(x, level, dataclasses.replace(cond, distilled=dataclasses.replace(cond.distilled, told=told)))

        return guided
