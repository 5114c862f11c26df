"""The section of a recipe that describes a user's own videos and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from ...core.errors import InputError
from .section import BelowOne, Section, must_divide

Rate = Annotated[float, Field(ge=0.1, le=1000)]
Size = tuple[PositiveInt, PositiveInt]
Wanted = Literal["captions", "classes", "nothing"]
"""What clips are trained with: their captions, their classes, or nothing, as those of an autoencoder."""


class Data(Section):
    """A user's own videos and pictures, and how clips are cut out of them."""

    folder: Path | Annotated[tuple[Path, ...], Field(min_length=1)]
    """Where they are, or a list of such places: a folder of files with captions, the file that lists them
    (metadata.jsonl or .csv), or a WebDataset shard (.tar)."""
    size: Size | None = None
    """Height and width of all clips, in pixels."""
    sizes: Annotated[tuple[Size, ...], Field(min_length=1)] | None = None
    """Several sizes in place of one. A clip gets the one nearest in shape, of those that are no larger than its file's
    pictures; the largest of these."""
    frames: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = 16
    """Frames of a clip; 1 for pictures. Of several numbers, a file gets the largest that it has the frames for."""
    fps: Rate | None = None
    """Frames per second of all clips. If it is not given, a clip has consecutive frames of its file."""
    crop: Literal["center", "none"] = "center"
    """How pictures of another shape get theirs: "center" cuts off what is too much at two sides; "none" cuts off
    nothing and distorts."""
    enlarge: bool = False
    """Whether pictures smaller than the size are enlarged. Otherwise their file is one that cannot be used."""
    clips_per_video: PositiveInt = 1
    """Clips that are cut out of a video, spread evenly over it. Of one, the middle is taken."""
    repeats: tuple[PositiveInt, ...] | None = None
    """How often the clips of each folder are drawn, relative to those of the others: one number for each folder."""
    validation: BelowOne | Path = 0.1
    """What is held out of training to measure it: a share of the files, or a folder of other files. A file is held out
    by its content, so it stays so when files are added. At least one is, unless the share is 0. A network is
    measured on 64 clips of them at most."""
    unreadable: Literal["refuse", "leave_out"] = "refuse"
    """What happens if files cannot be used: "refuse" ends with a list of them; "leave_out" trains on the others."""
    allow_empty: bool = False
    """Whether a file may have an empty caption, or none. It is then trained as a sample without a caption."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """All places of training files."""
        return self.folder if isinstance(self.folder, tuple) else (self.folder,)

    @property
    def all_sizes(self) -> tuple[Size, ...]:
        """All sizes of clips, (height, width) each."""
        if self.sizes is not None:
            return self.sizes
        assert self.size is not None  # the section was checked to have one of both
        return (self.size,)

    @property
    def is_square(self) -> bool:
        """Whether all clips have one size, which is a square."""
        return len(self.all_sizes) == 1 and len(set(self.all_sizes[0])) == 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """All lengths of clips, the longest first."""
        return tuple(sorted(self.frames, reverse=True)) if isinstance(self.frames, tuple) else (self.frames,)

    @field_validator("folder", mode="before")
    @classmethod
    def _folders(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if (self.size is None) == (self.sizes is None):
            raise InputError("data needs the size of clips: give either size: [height, width], or several sizes")
        for name, values in (("sizes", self.all_sizes), ("frames", self.lengths), ("folder", self.folders)):
            if len(set(values)) < len(values):
                raise InputError(f"{name} names one value twice: give each once")
        if self.repeats is not None and len(self.repeats) != len(self.folders):
            raise InputError(
                f"repeats has {len(self.repeats)} numbers for {len(self.folders)} folders: give one for each"
            )
        if self.repeats is not None and len(self.folders) == 1:
            raise InputError("repeats weighs folders against each other, and there is one: leave it out")
        if isinstance(self.validation, Path) and self.validation in self.folders:
            raise InputError(f"validation names {self.validation}, which is trained on: give another folder or a share")
        return self

    def require_multiple(self, part: int, what: str) -> None:
        """Refuse a size of which a number of pixels is no divisor.

        Args:
            part: pixels, such as those of a latent pixel.
            what: the requirement, such as "the autoencoder's downsampling must divide size".

        Raises:
            InputError: it does not divide one of the sizes.
        """
        for size in self.all_sizes:
            for side in size:
                must_divide(part, side, what)
