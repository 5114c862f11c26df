"""DiT, the class-conditional diffusion transformer (Peebles & Xie 2212.09748; github.com/facebookresearch/DiT).

In every block, timestep and class modulate both residual branches (adaLN-Zero). The null class, for the
unconditional prediction, has index ``num_classes``. Parameter names are the released ones. Positions are a frozen
parameter, as in the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...core.errors import InputError
from ...diffusion import NoiseLevel
from ..parts.guided import ForwardWithCfg
from ..parts.layers import Attention, Mlp, PatchEmbed, TimestepEmbedder, modulate, sincos_2d, timesteps_of
from .config import DiTConfig


@dataclass(frozen=True)
class ClassEmbedding:
    """A batch of class labels, embedded."""

    embedding: Tensor
    """(B, D), or (B, blocks, D) where every block has an embedder of its own."""

    def cat(self, other: ClassEmbedding) -> ClassEmbedding:
        """Concatenate the rows: those of this object, then those of ``other``."""
        return ClassEmbedding(torch.cat([self.embedding, other.embedding]))


class LabelEmbedder(nn.Module):
    """Class labels, and the null class as the last row, to vectors."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        return self.embedding_table(labels)


class Modulation(nn.Sequential):
    """A vector (B, D) to ``parts`` modulation vectors (B, 1, D)."""

    def __init__(self, hidden_size: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(hidden_size, parts * hidden_size))
        self.parts = parts

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        return super().forward(input)[:, None].chunk(self.parts, dim=-1)


class Block(nn.Module):
    """Self-attention and MLP, both modulated by timestep and class.

    Args:
        config: the network's.
        embeds: whether it holds embedders of its own.
    """

    def __init__(self, config: DiTConfig, embeds: bool = False) -> None:
        super().__init__()
        d = config.hidden_size
        self.norm1 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(d, config.num_heads)
        self.norm2 = nn.LayerNorm(d, eps=config.mlp_norm_eps, elementwise_affine=False)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), d)
        self.adaLN_modulation = Modulation(d, 6)
        if embeds:
            self.t_embedder = TimestepEmbedder(d, config.frequency_shift)
            self.y_embedder = LabelEmbedder(config.num_classes, d)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, N, D), condition (B, D)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(condition)
        x = torch.addcmul(x, gate, self.attn(modulate(self.norm1(x), shift, scale)))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class Head(nn.Module):
    """Normalise, modulate by timestep and class, project to patches."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, out_features)
        self.adaLN_modulation = Modulation(hidden_size, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(ForwardWithCfg, nn.Module):
    """Noisy image latents to the noise in them (first C channels) and the variance interpolation (last C)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        d, patch = config.hidden_size, config.patch_size
        self.out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.x_embedder = PatchEmbed((patch, patch), config.in_channels, d)
        self.t_embedder = TimestepEmbedder(d, config.frequency_shift)
        self.y_embedder = LabelEmbedder(config.num_classes, d)
        self.pos_embed = nn.Parameter(self.position_tables()["pos_embed"], requires_grad=False)
        # the embedders of the network are the first block's, and the head's
        self.blocks = nn.ModuleList(Block(config, config.own_embedders and k > 0) for k in range(config.depth))
        self.final_layer = Head(d, patch**2 * self.out_channels)
        self._initialise()

    def position_tables(self) -> dict[str, Tensor]:
        """The frozen positions, which follow from the configuration alone."""
        side = self.config.input_size // self.config.patch_size
        return {"pos_embed": sincos_2d(self.config.hidden_size, side, side)[None]}

    def _initialise(self) -> None:
        """Xavier everywhere; modulations and the head start at zero, so that every block is the identity."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                silent = "adaLN_modulation" in name or name == "final_layer.linear"
                (nn.init.zeros_ if silent else nn.init.xavier_uniform_)(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.out_channels, -1))
        for name, parameter in self.named_parameters():
            if ("t_embedder" in name or "y_embedder" in name) and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; its output is fp32 whatever this is."""
        return self.final_layer.linear.weight.dtype

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one sample."""
        return self.config.in_channels, self.config.input_size, self.config.input_size

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> ClassEmbedding:
        """Class labels (B,), embedded; label ``num_classes`` is the null class.

        Raises:
            InputError: there is no such class, or a token mask was given, which classes do not have.
        """
        if mask is not None:
            raise InputError("DiT is conditioned on classes, which have no token mask: leave mask out")
        wrong = y[(y < 0) | (y > self.config.num_classes)]
        if len(wrong):
            raise InputError(
                f"class {int(wrong[0])} is not in this model: it has 0 to {self.config.num_classes - 1}, "
                f"and {self.config.num_classes} for none"
            )
        return ClassEmbedding(
            torch.stack([part.y_embedder(y) for part in self._embedding_parts()], dim=1)
            if self.config.own_embedders
            else self.y_embedder(y)
        )

    def _embedding_parts(self) -> list[Any]:
        """What holds the embedders of each block: the network itself for the first."""
        return [self, *self.blocks[1:]]

    def null(self, rows: int, mask: Tensor | None = None) -> ClassEmbedding:
        """The null class, ``rows`` times."""
        device = self.pos_embed.device
        return self.prepare(torch.full((rows,), self.config.num_classes, dtype=torch.long, device=device), mask)

    def forward(
        self, x: Tensor, timestep: Tensor | NoiseLevel, y: Tensor | ClassEmbedding, mask: Tensor | None = None
    ) -> Tensor:
        """Predict, with fp32 output (B, 2C, H, W), or (B, C, H, W) without a learned variance.

        Args:
            x: noisy latents (B, C, H, W).
            timestep: original timesteps (B,), or a noise level.
            y: labels (B,), or prepared ones.
            mask: must be None.

        Raises:
            InputError: latents of another size than the model's, or a label that it does not have.
        """
        label = y if isinstance(y, ClassEmbedding) else self.prepare(y, mask)
        size, patch = self.config.input_size, self.config.patch_size
        if x.shape[-2:] != (size, size):
            raise InputError(f"this DiT was made for latents of {size} x {size}, given {tuple(x.shape[-2:])}")
        h = self.x_embedder(x.to(self.dtype)) + self.pos_embed
        t = timesteps_of(timestep, x)
        if self.config.own_embedders:
            parts = zip(self._embedding_parts(), label.embedding.unbind(1), strict=True)
            conditions = [part.t_embedder(t) + embedding for part, embedding in parts]
        else:
            conditions = [self.t_embedder(t) + label.embedding] * len(self.blocks)
        for block, condition in zip(self.blocks, conditions, strict=True):
            h = block(h, condition)
        return rearrange(
            self.final_layer(h, conditions[0]).float(),
            "b (nh nw) (ph pw c) -> b c (nh ph) (nw pw)", nh=size // patch, nw=size // patch, ph=patch, pw=patch,
        )  # fmt: skip
