"""Reads the checkpoint of a released transformer: configuration from shapes, positions, strict loading.

A family describes its checkpoints with a ``TransformerReader``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from ...checkpoints import TensorFile, is_component, make_config, on_meta, refuse_broken, refuse_misfit, refuse_numbers
from ...core.errors import InputError, nearest
from ...core.limits import require_memory
from ..family import Checkpoint, Description, Reader
from .layers import refuse_heads

Tensors = Mapping[str, Tensor]
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by hidden size: sizes S, B, L and XL (2212.09748, table 1)
POSITIONS = ("pos_embed", "pos_embed_temporal", "rope.freqs")  # follow from the configuration: recomputed, never read
ACTIVATION = "gelu-approximate"  # diffusers' name for that of DiT and PixArt
AXES: Mapping[str, tuple[int, ...]] = {
    "x_embedder.proj.weight": (4, 5),
    "final_layer.linear.weight": (2,),
    "blocks.0.mlp.fc1.weight": (2,),
    "blocks.0.attn.q_norm.weight": (1,),
    "spatial_blocks.0.mlp.fc1.weight": (2,),
    "spatial_blocks.0.attn.q_norm.weight": (1,),
    "rope.freqs": (1,),
    "y_embedder.y_proj.fc1.weight": (2,),
    "y_embedder.y_embedding": (2,),
    "y_embedder.embedding_table.weight": (2,),
    "pos_embed": (3,),
    "pos_embed_temporal": (3,),
}
"""The number of axes that a tensor may have from whose shape the configuration is read."""
MOST_POSITIONS = 1 << 25
"""Values in a network's tables of positions, which are computed. 170 x 170 tokens of 1152 are as many."""
NEEDED = ("x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.mlp.fc1.weight")


class Config(Protocol):
    """The part of a configuration that is used here; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def learn_sigma(self) -> bool: ...


class Transformer(Protocol):
    """The part of a network that is used here; an ``nn.Module``."""

    def position_tables(self) -> dict[str, Tensor]:
        """Tensors of its state dict that follow from the configuration."""
        ...


K = TypeVar("K", bound=Config)
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class TransformerReader(Reader, Generic[K, N]):
    """Recognises the checkpoints of one family, and reads the configuration from them."""

    name: str
    """The family's name."""
    network: Callable[[K], N]
    config: type[K]
    marks: tuple[str, ...]
    """Names of tensors. A file that has all of them is of this family."""
    shapes: Callable[[Tensors, Mapping[str, Any]], dict[str, Any]]
    """(tensors, ``config.json``) -> configuration values, besides those of ``common_values``."""
    size: str | None
    """How ``input_size`` is given, for people; None if the network takes any size, so that it need not be known."""
    stack: str = "blocks"
    """Name of the list of blocks."""
    stored: Mapping[str, str] = field(default_factory=dict[str, str])
    """Keys of ``config.json`` and the fields that they must agree with."""
    lacks: tuple[str, ...] = ()
    """Names of tensors that a similar family has and this one does not."""
    needed: tuple[str, ...] = NEEDED
    """Names of tensors from which the configuration is read."""
    null: str | None = None
    """Name of the null caption's tensor, which a file may lack."""
    from_diffusers: Callable[[Tensors], tuple[Tensors, tuple[str, ...]] | None] = lambda _: None
    """Renames tensors from diffusers' names to the released ones, with remarks; None if they have other names."""
    inflated: Callable[[Checkpoint, int, Mapping[str, Any], Mapping[str, Any], torch.dtype], nn.Module] | None = None
    """See ``Reader.inflate``; None if the family has no video network."""
    relatives: Mapping[str, str] = field(default_factory=dict[str, str])
    """Similar models that it cannot read: name of a tensor -> what a file with that tensor is."""

    def recognise(self, file: TensorFile) -> Checkpoint | None:
        if is_component(file.metadata):  # a file of our own has the same names
            return None
        tensors, remarks = self.from_diffusers(file.tensors) or (file.tensors, ())
        if not all(mark in tensors for mark in self.marks) or any(name in tensors for name in self.lacks):
            return None
        missing = [name for name in self.needed if name not in tensors]
        if missing:
            raise InputError(f"this {self.name} is incomplete: it lacks {', '.join(missing)}")
        for name, axes in AXES.items():
            if name in tensors and (tensors[name].ndim not in axes or 0 in tensors[name].shape):
                expected = " or ".join(map(str, axes))
                raise InputError(
                    f"this {self.name} is damaged: {name} has the shape {tuple(tensors[name].shape)}, expected "
                    f"{expected} axes, none of length 0"
                )
        return Checkpoint(file, tensors, remarks)

    def configure(
        self, tensors: Tensors, hub: Mapping[str, Any], given: Mapping[str, Any], assumed: Mapping[str, Any]
    ) -> K:
        """The configuration from the tensors' shapes. Values in ``given`` win over it.

        Args:
            tensors: under the released names.
            hub: the ``config.json`` beside the file, or {}.
            given: configuration values from the caller, by name.
            assumed: configuration values that are used if neither the file nor the caller gives them.

        Raises:
            InputError: a value that shapes do not give is missing, a given name does not exist, or ``config.json`` is
                another model's.
        """
        values = common_values(tensors, hub, given, self.stack) | self.shapes(tensors, hub)
        for key, name in self.stored.items():
            told, found = hub.get(key), values.get(name)
            told = tuple(told) if isinstance(told, list) else told
            if told is not None and found is not None and told != found:
                raise InputError(
                    f"config.json beside it says {key} {told!r:.40}, its weights have {found!r:.40}: they are of two "
                    "models"
                )
        valid = [setting.name for setting in dataclasses.fields(self.config)]
        for name in given:
            if name not in valid:
                raise InputError(f"{name!r} is no setting of {self.name}{nearest(name, valid)}")
        values = {**assumed, **values, **given}
        if "input_size" not in values and self.size is not None:
            raise InputError(f"it has no table of positions, so its size is unknown: give input_size, {self.size}")
        return make_config(self.config, values, f"this {self.name} cannot be configured")

    def describe(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> Description:
        tensors, remarks = checkpoint.tensors, list(checkpoint.remarks)
        values: dict[str, Any] = {}
        learned = learns_variance(tensors)
        try:
            config = self.configure(tensors, checkpoint.file.config, known, {})
            values, learned = dataclasses.asdict(config), config.learn_sigma
            self._fitting(config, tensors, f"{checkpoint.file.path}")
        except InputError as error:
            remarks.append(str(error))
        if tensors["x_embedder.proj.weight"].ndim == 4:
            remarks.append("its patch kernel is 2D: an image model")
        if self.null is not None and self.null not in tensors:
            remarks.append("it has no null caption: guidance needs the encoded empty prompt instead")
        return Description(self.name, values, count(tensors), learned, tuple(remarks))

    def load(
        self, checkpoint: Checkpoint, known: Mapping[str, Any], assumed: Mapping[str, Any], dtype: torch.dtype
    ) -> N:
        config = self.configure(checkpoint.tensors, checkpoint.file.config, known, assumed)
        refuse_broken(checkpoint.tensors, checkpoint.file.path)
        return self.assemble(config, checkpoint.tensors, f"{checkpoint.file.path}", dtype)

    def inflate(
        self,
        checkpoint: Checkpoint,
        frames: int,
        known: Mapping[str, Any],
        assumed: Mapping[str, Any],
        dtype: torch.dtype,
    ) -> nn.Module:
        if self.inflated is None:
            return super().inflate(checkpoint, frames, known, assumed, dtype)
        return self.inflated(checkpoint, frames, known, assumed, dtype)

    def explain(self, file: TensorFile) -> str | None:
        return next((what for name, what in self.relatives.items() if name in file.tensors), None)

    def assemble(self, config: K, tensors: Tensors, where: str, dtype: torch.dtype) -> N:
        """The network with these tensors as its weights. A tensor that has the dtype already is not copied.

        Raises:
            InputError: tensors are missing, unexpected or mis-shaped.
        """
        model, given = self._fitting(config, tensors, where)
        refuse_numbers(given, where)
        copied = sum(value.numel() for value in given.values() if value.dtype != dtype) * dtype.itemsize
        require_memory(f"the weights of {where} in {str(dtype).removeprefix('torch.')}", copied)
        filled = {name: value.to(dtype) for name, value in given.items()}
        parameters = {name for name, _ in model.named_parameters()}
        for name, table in cast("Transformer", model).position_tables().items():
            filled[name] = table.to(dtype) if name in parameters else table  # buffers keep their precision
        model.load_state_dict(filled, assign=True)
        return model

    def _fitting(self, config: K, tensors: Tensors, where: str) -> tuple[N, dict[str, Tensor]]:
        """The network without weights, and the tensors that fill it."""
        with on_meta(len(tensors)):
            model = self.network(config)
        expected = {name: value for name, value in model.state_dict().items() if name not in POSITIONS}
        positions = sum(value.numel() for name, value in model.state_dict().items() if name in POSITIONS)
        if positions > MOST_POSITIONS:
            raise InputError(
                f"{where} asks for a table of {positions:,} positions, at most {MOST_POSITIONS:,} are possible: give a "
                "smaller input_size"
            )
        given = {name: value for name, value in tensors.items() if name not in POSITIONS}
        if self.null is not None and self.null not in given:
            given[self.null] = torch.full(expected[self.null].shape, float("nan"))  # so that its use is noticed
        elif self.null is not None:
            given[self.null] = of_length(given[self.null], len(expected[self.null]))
        refuse_misfit(expected, given, f"{where} does not fit {self.name}")
        return model, given


def of_length(null: Tensor, tokens: int) -> Tensor:
    """A null caption (L, F) for captions of another length: cut, or with its last row repeated, as in Open-Sora."""
    more = tokens - len(null)
    return null[:tokens] if more <= 0 else torch.cat([null, null[-1:].expand(more, -1)])


def common_values(
    tensors: Tensors, hub: Mapping[str, Any], given: Mapping[str, Any], stack: str = "blocks"
) -> dict[str, Any]:
    """Configuration values that are read in the same way for all released transformers.

    ``stack`` is the name of the list of blocks.

    Raises:
        InputError: the number of attention heads is unknown, or does not divide the hidden size.
    """
    hidden, in_channels = tensors["x_embedder.proj.weight"].shape[:2]
    blocks = (re.match(rf"{stack}\.(\d+)\.", name) for name in tensors)
    heads = given.get("num_heads", hub.get("num_attention_heads", hub.get("num_heads", HEADS.get(hidden))))
    if "num_heads" not in given and (width := head_width(tensors, stack)):
        heads = hidden // width
    if heads is None:
        raise InputError(f"a hidden size of {hidden} does not tell the number of attention heads: give num_heads")
    if not isinstance(heads, int):
        raise InputError(f"the number of attention heads is {heads!r:.40}, expected a whole number: give num_heads")
    refuse_heads(hidden, heads)
    depth = 1 + max(int(found[1]) for found in blocks if found)
    if depth > len(tensors):
        raise InputError(f"its blocks are numbered up to {depth - 1:,}, and it has only {len(tensors):,} tensors")
    return {
        "hidden_size": hidden,
        "in_channels": in_channels,
        "depth": depth,
        "mlp_ratio": tensors[f"{stack}.0.mlp.fc1.weight"].shape[0] / hidden,
        "learn_sigma": learns_variance(tensors),
        "num_heads": heads,
    }


def head_width(tensors: Tensors, stack: str) -> int | None:
    """Width of an attention head, where the norm of queries or the rotary frequencies give it."""
    if (norm := tensors.get(f"{stack}.0.attn.q_norm.weight")) is not None:
        return len(norm)
    return 2 * len(tensors["rope.freqs"]) if "rope.freqs" in tensors else None


def caption_values(tensors: Tensors) -> dict[str, Any]:
    """Configuration values that are read from the caption embedder."""
    values: dict[str, Any] = {"caption_channels": tensors["y_embedder.y_proj.fc1.weight"].shape[1]}
    if "y_embedder.y_embedding" in tensors:
        values["model_max_length"] = tensors["y_embedder.y_embedding"].shape[0]
    return values


def image_values(tensors: Tensors, hub: Mapping[str, Any]) -> dict[str, Any]:
    """The patch size of an image model; also the side of its latents if positions or ``config.json`` give it.

    Raises:
        InputError: the positions are not of a square, or ``config.json`` names another activation.
    """
    if (activation := hub.get("activation_fn", ACTIVATION)) != ACTIVATION:
        raise InputError(f"its activation is {activation!r}, the networks here have {ACTIVATION!r}")
    patch = tensors["x_embedder.proj.weight"].shape[2]
    values: dict[str, Any] = {"patch_size": patch}
    if "pos_embed" in tensors:
        rows, columns = grid(tensors["pos_embed"])
        if rows != columns:
            raise InputError(f"its position table is of {rows} x {columns} tokens, expected a square: give input_size")
        values["input_size"] = rows * patch
    elif "sample_size" in hub:
        values["input_size"] = hub["sample_size"]
    return values


def learns_variance(tensors: Tensors) -> bool:
    """Whether the head gives two values for each latent value of a patch."""
    return tensors["final_layer.linear.weight"].shape[0] == 2 * math.prod(tensors["x_embedder.proj.weight"].shape[1:])


def count(tensors: Tensors) -> int:
    """Number of parameters, without positions."""
    return sum(math.prod(value.shape) for name, value in tensors.items() if name not in POSITIONS)


def grid(table: Tensor) -> tuple[int, int]:
    """Rows and columns of a position table (1, S, D): its first half, the x part, starts again with every row."""
    across = table[0, :, : table.shape[2] // 2]
    columns = next((k for k in range(1, len(across)) if torch.equal(across[k], across[0])), len(across))
    return len(across) // columns, columns


def position_scale(table: Tensor, axes: int = 2) -> float:
    """The divisor of positions, computed from the sinusoids of position 1 in a table (1, P, D)."""
    if table.shape[1] < 2:
        return 1.0
    row = table[0, 1].double()
    waves = row.shape[0] // (2 * axes)  # sines, then cosines, of each axis
    index = waves // 4
    omega = 10000.0 ** (-index / waves)
    angle = math.atan2(row[index].item(), row[waves + index].item())
    scale = omega / angle if angle > 0 else 1.0
    simple = float(Fraction(scale).limit_denominator(8))
    rounding = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(table.dtype, 1e-5)
    return simple if abs(scale - simple) < rounding * scale else round(scale, 4)
