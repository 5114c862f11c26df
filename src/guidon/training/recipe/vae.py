"""The recipe of a frame autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.errors import InputError
from ...world import SIZE
from .data import Data, Wanted
from .run import Run
from .section import NotNegative, Section, must_divide


class VAEShape(Section):
    """Shape of the frame autoencoder."""

    block_out_channels: tuple[PositiveInt, ...] = (32, 64, 96)
    """Channels of each level; each after the first halves the size."""
    layers_per_block: PositiveInt = 1
    """Residual layers in a level."""
    latent_channels: PositiveInt = 4
    """Channels of the latents."""
    norm_num_groups: PositiveInt = 8
    """Groups of the group normalisation; divides every number of channels."""
    mid_block_attention: bool = False
    """Whether the innermost level has self-attention."""
    pixel_unshuffle: PositiveInt = 2
    """Side of the squares of pixels that become channels before the first level; 1 for none."""
    padding: Literal["zeros", "replicate"] = "zeros"
    """What convolutions see beyond the border: zeros, which leave ticks in the corners, or the border itself."""
    decoder_padding: Literal["zeros", "replicate"] | None = None
    """What the decoder's convolutions see there. The same as the encoder's if it is not given."""

    @model_validator(mode="after")
    def _divides(self) -> VAEShape:
        for channels in self.block_out_channels:
            must_divide(self.norm_num_groups, channels, "norm_num_groups must divide block_out_channels")
        return self

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel along one side."""
        return self.pixel_unshuffle * 2 ** (len(self.block_out_channels) - 1)


class VAERecipe(Run):
    """A run that trains the frame autoencoder. The loss is L1 + MSE with a weighted foreground, plus a KL term of the
    encoder."""

    task: Literal["vae"]
    data: Data | None = None
    """A user's own videos or pictures, of whose frames it is trained; the world's frames if it is not given."""
    start: Path | None = None
    """Autoencoder file of an earlier run, whose weights this one starts from."""
    redraw: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Latent channels that start from new weights, not from those of ``start``. Use it for a channel that a strong KL
    term has made constant: such a channel does not recover by itself."""
    train: Literal["all", "decoder"] = "all"
    """What is trained. With the decoder alone, the latents of an earlier run stay as they are, and networks that were
    trained on them fit."""
    model: VAEShape = VAEShape()
    """Shape of the network."""
    foreground_weight: PositiveFloat = 10.0
    """Weight of an error on the object, relative to 1 on the background. Frames of ``data`` have no object."""
    kl_weight: NotNegative = 1e-4
    """Weight of the KL term."""
    cache: Path | None = None
    """Folder of the decoded frames of ``data``, which several runs may share. ``out`` if it is not given."""

    changeable: ClassVar[frozenset[str]] = Run.changeable | {"data"}

    @property
    def result(self) -> Path:
        """The exported file."""
        return self.out / "vae.safetensors"

    wanted: ClassVar[Wanted] = "nothing"
    """What is trained with the frames of ``data``."""

    @property
    def decisive(self) -> dict[str, Any]:
        """See ``Run``. What decides of ``data`` is the content of files, which the task knows."""
        return {name: value for name, value in super().decisive.items() if name != "data"}

    @model_validator(mode="after")
    def _fits_frames(self) -> VAERecipe:
        if self.data is None:
            must_divide(self.model.downsampling, SIZE, "its downsampling must divide frames")
            if self.cache is not None:
                raise InputError("cache is the folder of decoded frames of data: give data, or leave it out")
            return self
        self.data.require_multiple(self.model.downsampling, "the autoencoder's downsampling must divide data: size")
        if "foreground_weight" in self.model_fields_set:
            raise InputError("foreground_weight weighs the world's object, and frames of data have none: leave it out")
        return self

    @model_validator(mode="after")
    def _trains(self) -> VAERecipe:
        if self.train == "all":
            return self
        if self.start is None:
            raise InputError("train: decoder keeps the encoder of an earlier run: give its start")
        if wrong := {"redraw", "kl_weight"} & self.model_fields_set:
            raise InputError(f"{min(wrong)} is of the encoder, and train: decoder keeps it: leave {min(wrong)} out")
        return self

    @model_validator(mode="after")
    def _redraws(self) -> VAERecipe:
        channels = self.model.latent_channels
        if self.redraw and self.start is None:
            raise InputError("redraw leaves out weights of an earlier run: give its start")
        if len(set(self.redraw)) >= channels:
            raise InputError("redraw names every latent channel: leave one out, whose spread the new ones are given")
        if wrong := [channel for channel in self.redraw if channel >= channels]:
            raise InputError(f"redraw names latent channel {wrong[0]}, they are 0 to {channels - 1}")
        return self
