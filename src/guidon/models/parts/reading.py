"""How the checkpoint of a released transformer is read: configuration by shapes, positions, a strict load.

A family describes its checkpoints by a ``TransformerReader``.
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

from ...checkpoints import TensorFile, refuse_broken, refuse_misfit
from ...checkpoints.component import FORMAT
from ...core.errors import InputError, nearest
from ..family import Checkpoint, Description, Reader

Tensors = Mapping[str, Tensor]
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by hidden size: sizes S, B, L and XL (2212.09748, table 1)
POSITIONS = ("pos_embed", "pos_embed_temporal")  # follow from the configuration: recomputed, never read
NEEDED = ("x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.mlp.fc1.weight")


class Config(Protocol):
    """The part of a configuration that is asked for here; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def learn_sigma(self) -> bool: ...


class Transformer(Protocol):
    """The part of a network that is asked for here; an ``nn.Module``."""

    def position_tables(self) -> dict[str, Tensor]:
        """Tensors of its state dict that follow from the configuration."""
        ...


K = TypeVar("K", bound=Config)
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class TransformerReader(Reader, Generic[K, N]):
    """How the checkpoints of one family are told from others, and what is read off them."""

    name: str
    """The family's name."""
    network: Callable[[K], N]
    config: type[K]
    marks: tuple[str, ...]
    """Tensors that only this family has together."""
    shapes: Callable[[Tensors, Mapping[str, Any]], dict[str, Any]]
    """Configuration values that its tensors, and diffusers' ``config.json``, tell beside those of ``common_values``."""
    size: str
    """How ``input_size`` is given, for people."""
    lacks: tuple[str, ...] = ()
    """Tensors that it has not, and a relative has."""
    needed: tuple[str, ...] = NEEDED
    """Tensors that the configuration is read off."""
    null: str | None = None
    """The null caption, which a file may lack."""
    from_diffusers: Callable[[Tensors], tuple[Tensors, tuple[str, ...]] | None] = lambda _: None
    """Tensors in diffusers' names under the released ones, and remarks; None where the names are not those."""
    inflated: Callable[[Checkpoint, int, Mapping[str, Any], Mapping[str, Any], torch.dtype], nn.Module] | None = None
    """See ``Reader.inflate``; None where it has no video network."""
    relatives: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tensors of relatives that it cannot read, and what a file is that has them."""

    def recognise(self, file: TensorFile) -> Checkpoint | None:
        if file.metadata.get("format") == FORMAT:  # a file of our own has the same names
            return None
        tensors, remarks = self.from_diffusers(file.tensors) or (file.tensors, ())
        if not all(mark in tensors for mark in self.marks) or any(name in tensors for name in self.lacks):
            return None
        missing = [name for name in self.needed if name not in tensors]
        if missing:
            raise InputError(f"this {self.name} is incomplete: it lacks {', '.join(missing)}")
        return Checkpoint(file, tensors, remarks)

    def configure(
        self, tensors: Tensors, hub: Mapping[str, Any], given: Mapping[str, Any], assumed: Mapping[str, Any]
    ) -> K:
        """The configuration that shapes tell, with ``given`` values over them.

        Args:
            tensors: under the released names.
            hub: diffusers' ``config.json``, or {}.
            given: settings that the caller knows better, by their names in the configuration.
            assumed: settings for what neither the file nor the caller tells.

        Raises:
            InputError: something that shapes do not tell was not given; or a given name does not exist.
        """
        values = common_values(tensors, hub, given) | self.shapes(tensors, hub)
        valid = [setting.name for setting in dataclasses.fields(self.config)]
        for name in given:
            if name not in valid:
                raise InputError(f"{name!r} is no setting of {self.name}{nearest(name, valid)}")
        values = {**assumed, **values, **given}
        if "input_size" not in values:
            raise InputError(f"it has no table of positions, so its size is unknown: give input_size, {self.size}")
        return self.config(**values)

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
        """The network around the tensors themselves, which are not copied where they are of the dtype.

        Raises:
            InputError: tensors are missing, unexpected or mis-shaped.
        """
        model, given = self._fitting(config, tensors, where)
        filled = {name: value.to(dtype) for name, value in given.items()}
        parameters = {name for name, _ in model.named_parameters()}
        for name, table in cast("Transformer", model).position_tables().items():
            filled[name] = table.to(dtype) if name in parameters else table  # buffers stay precise
        model.load_state_dict(filled, assign=True)
        return model

    def _fitting(self, config: K, tensors: Tensors, where: str) -> tuple[N, dict[str, Tensor]]:
        """The network without weights, and the tensors that fill it."""
        with torch.device("meta"):
            model = self.network(config)
        expected = {name: value for name, value in model.state_dict().items() if name not in POSITIONS}
        given = {name: value for name, value in tensors.items() if name not in POSITIONS}
        if self.null is not None and self.null not in given:
            given[self.null] = torch.full(expected[self.null].shape, float("nan"))  # so that its use is noticed
        refuse_misfit(expected, given, f"{where} does not fit {self.name}")
        return model, given


def common_values(tensors: Tensors, hub: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration values that all the released transformers tell in the same way.

    Raises:
        InputError: the number of attention heads is unknown, or does not divide the hidden size.
    """
    hidden, in_channels = tensors["x_embedder.proj.weight"].shape[:2]
    blocks = (re.match(r"blocks\.(\d+)\.", name) for name in tensors)
    heads = given.get("num_heads", hub.get("num_attention_heads", HEADS.get(hidden)))
    if heads is None:
        raise InputError(f"a hidden size of {hidden} does not tell the number of attention heads: give num_heads")
    if heads < 1 or hidden % heads:
        raise InputError(f"{heads} attention heads do not divide a hidden size of {hidden}")
    return {
        "hidden_size": hidden,
        "in_channels": in_channels,
        "depth": 1 + max(int(found[1]) for found in blocks if found),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / hidden,
        "learn_sigma": learns_variance(tensors),
        "num_heads": heads,
    }


def caption_values(tensors: Tensors) -> dict[str, Any]:
    """Configuration values that the embedder of captions tells."""
    values: dict[str, Any] = {"caption_channels": tensors["y_embedder.y_proj.fc1.weight"].shape[1]}
    if "y_embedder.y_embedding" in tensors:
        values["model_max_length"] = tensors["y_embedder.y_embedding"].shape[0]
    return values


def image_values(tensors: Tensors, hub: Mapping[str, Any]) -> dict[str, Any]:
    """The patch of an image model, and the side of its latents where positions or ``config.json`` tell it.

    Raises:
        InputError: the positions are not of a square.
    """
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
    """How many numbers there are, without positions."""
    return sum(math.prod(value.shape) for name, value in tensors.items() if name not in POSITIONS)


def grid(table: Tensor) -> tuple[int, int]:
    """Rows and columns of a position table (1, S, D): its first half, the x part, starts again with every row."""
    across = table[0, :, : table.shape[2] // 2]
    columns = next((k for k in range(1, len(across)) if torch.equal(across[k], across[0])), len(across))
    return len(across) // columns, columns


def position_scale(table: Tensor, axes: int = 2) -> float:
    """What positions were divided by, read off the sinusoids of position 1 in a table (1, P, D)."""
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
