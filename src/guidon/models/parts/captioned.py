"""Code that PixArt and STDiT share: the caption as a condition, and the base class of a captioned transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import InputError, setting
from .guided import ForwardWithCfg
from .layers import Absorbed, CaptionEmbedder, CrossAttention, FinalLayer, TimestepEmbedder, absorbs
from .products import LEAST_ROWS, LEAST_WIDTH, Arranged
from .tables import Kept, is_compiled, kept

T = TypeVar("T")
GROUP = 16
"""Padding is left out in groups of so many tokens: what is left is added in the same order as before."""


@dataclass(frozen=True)
class Caption:
    """A batch of prompts, as the blocks of a transformer read them."""

    keys_values: tuple[Tensor, ...]
    """Keys and values for each of the network's ``crossings``, (2, B, H, L, D / H)."""
    mask: Tensor | None
    """(B, 1, 1, L), True where a token counts; None where all do."""
    told: Tensor | None = None
    """(B, D), added to the embedding of the timestep: what a network is told besides; None for nothing."""
    kept: dict[str, Kept] = field(default_factory=dict[str, Kept], compare=False, repr=False)
    """What a network has computed from the caption and its weights, for the steps that follow."""

    def __len__(self) -> int:
        return self.keys_values[0].shape[1]

    def cat(self, other: Caption) -> Caption:
        """Concatenate the rows: those of this object, then those of ``other``. Each row keeps its token mask.

        Rows that are told something are not concatenated: a network that is told of guidance runs one branch.
        """
        assert self.told is other.told is None
        tokens = max(each.keys_values[0].shape[3] for each in (self, other))
        first, second = self._padded(tokens), other._padded(tokens)
        mask = None
        if first.mask is not None or second.mask is not None:
            mask = torch.cat([first._full_mask(), second._full_mask()])
        pairs = zip(first.keys_values, second.keys_values, strict=True)
        return Caption(tuple(torch.cat(pair, dim=1) for pair in pairs), mask)

    def _padded(self, tokens: int) -> Caption:
        """The same with so many tokens; those that are added do not count."""
        more = tokens - self.keys_values[0].shape[3]
        if not more:
            return self
        return Caption(
            tuple(F.pad(pair, (0, 0, 0, more)) for pair in self.keys_values), F.pad(self._full_mask(), (0, more))
        )

    def short(self, doubling: bool = False) -> Caption:
        """The same without the padding at the end, as far as it fills groups of ``GROUP`` tokens.

        Attention to it is the same bit for bit: a token that does not count adds zero. It asks the device once how many
        tokens count.

        Args:
            doubling: leave 1, 2, 4, 8, ... groups, so that few lengths occur.
        """
        if self.mask is None:
            return self
        counting = self.mask.flatten(1).any(0).nonzero()
        groups = int(counting[-1]) // GROUP + 1 if len(counting) else self.mask.shape[-1]
        end = GROUP * (1 << (groups - 1).bit_length() if doubling else groups)
        if end >= self.mask.shape[-1]:
            return self
        return Caption(
            tuple(pair[:, :, :, :end].contiguous() for pair in self.keys_values), self.mask[..., :end].contiguous()
        )

    def _full_mask(self) -> Tensor:
        if self.mask is not None:
            return self.mask
        tokens = self.keys_values[0].shape[3]
        return torch.ones(len(self), 1, 1, tokens, dtype=torch.bool, device=self.keys_values[0].device)


def repeated(x: Tensor, rows: int) -> Tensor:
    """x (B, ...) again and again, until there are so many rows; itself where it has as many or more."""
    return x if len(x) >= rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def for_all(keys_values: Tensor | Absorbed, *shared: Tensor) -> tuple[Tensor, ...]:
    """What branches have shared so far, repeated for all rows of the caption that a block reads now."""
    rows = len(keys_values.values) if isinstance(keys_values, Absorbed) else keys_values.shape[1]
    return tuple(repeated(each, rows) for each in shared)


class CaptionedConfig(Protocol):
    """The part of a configuration that the base class reads."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def caption_channels(self) -> int: ...
    @property
    def model_max_length(self) -> int: ...


class CaptionedTransformer(ForwardWithCfg, nn.Module):
    """Base with adaLN-single modulation (2310.00426, sec. 2.3) and captions by cross-attention.

    A model adds ``x_embedder`` and ``blocks``, each with a ``cross_attn``.
    """

    branches_share_rows = False
    """Whether a caption may have a multiple of the rows of x. They are then those of several branches, each of which is
    given x; what comes before the first attention to the caption is computed once for all branches."""

    def __init__(self, config: CaptionedConfig, out_features: int) -> None:
        super().__init__()
        d = config.hidden_size
        self.t_embedder = TimestepEmbedder(d)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        self.y_embedder = CaptionEmbedder(config.caption_channels, d, config.model_max_length)
        self.final_layer = FinalLayer(d, out_features)
        self.arranged = Arranged()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's ``forward``, with weights that are arranged once for all steps of a run."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return super().__call__(*args, **kwargs)
        with self.arranged.in_use():
            return super().__call__(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; its output is fp32 whatever this is."""
        return self.final_layer.linear.weight.dtype

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> Caption:
        """All that depends on the prompts alone.

        Args:
            y: caption features (B, L, caption_channels), or (B, 1, L, caption_channels) as in the original.
            mask: (B or fewer, L), or (B or fewer, 1, 1, L), nonzero where a token counts; fewer rows are repeated to
                the batch.

        Raises:
            InputError: the features are of another encoder.
        """
        y = y.flatten(1, 2) if y.ndim == 4 else y
        width = self.y_embedder.y_embedding.shape[-1]
        if y.shape[-1] != width:
            raise InputError(
                f"caption features are {y.shape[-1]} wide, this model reads {width}: use the text encoder that the "
                "model was trained with"
            )
        self.arranged.forget()
        tokens = self.y_embedder(y.to(self.dtype))
        if mask is not None:
            mask = mask.to(torch.bool).flatten(1).repeat(y.shape[0] // mask.shape[0], 1)[:, None, None]
        caption = Caption(tuple(cross.keys_values(tokens) for cross in self.crossings()), mask)
        if torch.is_grad_enabled():
            return caption
        if not is_compiled(self):
            return caption.short()
        # it is compiled anew for every length, so there are few, and only where products are saved
        short = caption.short(doubling=True)
        return short if absorbs(self.crossings()[0], short.keys_values[0], LEAST_ROWS) else caption

    def read_caption(self, caption: Caption, tokens: int) -> Sequence[Tensor | Absorbed]:
        """What each of the ``crossings`` reads of a caption, for attention of ``tokens`` tokens a row.

        Where captions are short, a block's projections of queries and of the result are multiplied with the keys and
        values, once for all steps: see ``Absorbed``.
        """
        crossings = CaptionedTransformer.crossings(self)  # those of the blocks; others have few queries
        pairs = caption.keys_values
        if not absorbs(crossings[0], pairs[0], tokens):
            return pairs
        whole = is_compiled(self)
        weights = [weight for cross in crossings for weight in (*cross.q_linear.parameters(), *cross.proj.parameters())]

        def absorb() -> list[Tensor | Absorbed]:
            absorbed = [cross.absorb(pair, caption.mask, whole) for cross, pair in zip(crossings, pairs, strict=False)]
            return [*absorbed, *pairs[len(absorbed) :]]

        return kept(caption.kept, "absorbed", weights, absorb)

    def shared(self, x: Tensor, timestep: T, caption: Caption) -> tuple[Tensor, T]:
        """x and its timesteps, repeated for all rows of the caption unless branches share the first layers.

        Products of fewer rows may differ in their last bits, so narrow networks share nothing.
        """
        shares = caption.told is None and not torch.is_grad_enabled()
        wide = self.final_layer.linear.weight.shape[1] >= LEAST_WIDTH
        if len(x) >= len(caption) or (shares and wide):
            return x, timestep
        rows = len(caption)
        return repeated(x, rows), repeated(timestep, rows) if isinstance(timestep, Tensor) else timestep

    def crossings(self) -> list[CrossAttention]:
        """The layers that read the caption: that of each block, then others."""
        return [block.cross_attn for block in cast("Any", self).blocks]

    def null(self, rows: int, mask: Tensor | None = None) -> Caption:
        """The null caption, ``rows`` times. As in the original, it uses the prompts' token mask.

        Raises:
            InputError: the checkpoint has none.
        """
        if self.y_embedder.y_embedding.isnan().any():
            raise InputError(
                f"this checkpoint has no null caption: give the empty prompt as {setting('negative_prompt')}"
            )
        return self.prepare(self.y_embedder.y_embedding[None].expand(rows, -1, -1), mask)

    def initialise(self) -> None:
        """Xavier everywhere; the layers that add to the residual stream (temporal, cross, head) start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight.view(module.out_channels, -1))
        for stem in (self.t_embedder, self.t_block, self.y_embedder.y_proj):
            for layer in stem.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("cross_attn.proj.weight", "attn_temp.proj.weight", "final_layer.linear.weight")):
                nn.init.zeros_(parameter)
