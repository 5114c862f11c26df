"""What frames a clip is to hold, and how it goes on from clip to clip: as settings that a manifest keeps.

What a caller says, such as "begin with this picture", becomes references and placements in the grammar of Open-Sora
(``placing``), so that all of it is one thing to the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from ..core.errors import InputError, quoted, setting
from ..core.settings import Settings
from .placing import CONDITION_FRAMES, EDIT_STRENGTH, Placement, numbered, parse_placements, place_all

if TYPE_CHECKING:
    import numpy as np

    from .references import Frames

CHOICES = (
    "first_frame", "last_frame", "continue_from", "connect_to", "edit", "edit_strength", "reference", "mask_strategy",
    "loop", "condition_frames", "condition_edit",
)  # fmt: skip
"""The names of the choices that ``choose_conditioning`` reads."""
FRAMES = ("first_frame", "last_frame", "continue_from", "connect_to", "edit", "reference")
"""Those of them that are pictures or videos."""
Count = Annotated[int, Field(ge=1, lt=2**31)]


class Reference(Settings):
    """A picture or a video that frames are taken from."""

    file: str | None
    """Its path, as it was given; None where its frames were given in Python."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """The hash of the file, or of the frames. Frames of another hash are refused."""
    part: tuple[Annotated[int, Field(ge=0)], Count] | None = None
    """The first of its frames that are used, and how many; None for all."""


class Conditioning(Settings):
    """Frames that clips keep or edit, and how many clips are joined to a long one."""

    references: tuple[Reference, ...] = ()
    """What frames are taken from, by number."""
    strategy: str = ""
    """Which frames go where, in Open-Sora's grammar: latent frames; see ``guidon.media.placing``."""
    loop: Count = 1
    """How many clips are made, each of which begins with the last frames of the one before."""
    condition_frames: Count | None = None
    """How many frames of the video those are; None where there is one clip."""
    condition_edit: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much of the sampling edits them: 0 keeps them."""

    @field_validator("strategy")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_placements(value)
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.loop > 1 and self.condition_frames is None:
            raise InputError(f"{setting('loop')} {self.loop} needs {setting('condition_frames')}: give both")
        if not self.strategy and self.loop == 1:
            raise InputError(
                f"the conditioning has no {setting('mask_strategy')} and one {setting('loop')}: leave it out"
            )
        if parse_placements(self.strategy) and not self.references:
            raise InputError(f"{setting('mask_strategy')} is given without {setting('reference')}: give both")
        return self

    def up_to(self, loop: int) -> Self | None:
        """The conditioning of the first clips of a long one; None where there is none left."""
        kept = [each for each in parse_placements(self.strategy) if each.loop < loop]
        if loop == 1 and not kept:
            return None
        used = sorted({each.reference % len(self.references) for each in kept})
        moved = [replace(each, reference=used.index(each.reference % len(self.references))) for each in kept]
        return self.model_copy(
            update={
                "references": tuple(self.references[number] for number in used),
                "strategy": ";".join(map(str, moved)),
                "loop": loop,
                "condition_frames": self.condition_frames if loop > 1 else None,
                "condition_edit": self.condition_edit if loop > 1 else 0.0,
            }
        )


@dataclass(frozen=True)
class ClipShape:
    """What must be known of a model to place frames."""

    name: str
    """The model's."""
    frames: int
    """Frames of a clip."""
    latent_frames: Callable[[int], int]
    """Frames of a video -> frames of its latents."""
    together: int = 1
    """Latent frames that the autoencoder decodes together: placements begin at multiples of it."""

    @property
    def align(self) -> int | None:
        """What placements are aligned to."""
        return self.together if self.together > 1 else None

    @property
    def unit(self) -> int:
        """Frames of the video that are decoded together."""
        return self.video_frames(self.together)

    def video_frames(self, latents: int) -> int:
        """The most frames of a video whose latents are so many frames."""
        count = latents
        while self.latent_frames(count + 1) <= latents:
            count += 1
        return count

    def joined(self, conditioning: Conditioning | None) -> int:
        """Frames of the video of all loops: every further clip shares some with the one before."""
        if conditioning is None or conditioning.condition_frames is None:
            return self.frames
        return self.frames + (conditioning.loop - 1) * (self.frames - conditioning.condition_frames)

    @property
    def condition_frames(self) -> int:
        """How many frames the next clip takes over, where nobody chooses."""
        return -(-min(CONDITION_FRAMES, max(1, self.frames // 2)) // self.unit) * self.unit


@dataclass
class _Placed:
    """References and placements that are being put together."""

    clip: ClipShape
    references: list[Reference] = field(default_factory=list[Reference])
    lengths: list[int] = field(default_factory=list[int])
    """Latent frames of each reference."""
    placements: list[Placement] = field(default_factory=list[Placement])
    names: list[str] = field(default_factory=list[str])
    """The choice that each placement is of."""

    def add(self, found: Frames, part: tuple[int, int] | None = None) -> int:
        """Add a reference, or a part of it: its number."""
        count = len(found.frames) if part is None else part[1]
        whole = part is None or part == (0, len(found.frames))
        self.references.append(Reference(file=found.file, sha256=found.sha256, part=None if whole else part))
        self.lengths.append(self.clip.latent_frames(count))
        return len(self.references) - 1

    def put(self, name: str, number: int, loop: int, target: int, edit: float = 0.0) -> None:
        """Put the whole of a reference into a clip.

        Raises:
            InputError: the clip is too short for it.
        """
        length = self.lengths[number]
        if length > self.clip.latent_frames(self.clip.frames):
            raise InputError(
                f"{setting(name)} gives more frames than the {self.clip.frames} of a clip: lower "
                f"{setting('condition_frames')}"
            )
        self.placements.append(Placement(loop, number, 0, target, length, edit))
        self.names.append(name)


def choose_conditioning(choices: Mapping[str, Any], clip: ClipShape | None, name: str) -> Conditioning | None:
    """The conditioning that was chosen; None where nothing was.

    Args:
        choices: what the caller chose, by the names in ``CHOICES``.
        clip: what is known of the model; None where it makes images.
        name: the model's.

    Raises:
        InputError: a file cannot be read, a choice does not fit the model or another choice, or has no effect.
    """
    chosen = {key: choices[key] for key in CHOICES if choices.get(key) is not None}
    if not chosen:
        return None
    from .references import read_frames  # imports numpy, which nothing else needs here

    if clip is None:
        raise InputError(f"{name} makes images: leave out {setting(next(iter(chosen)))}, which is for video")
    loop = _read_count("loop", chosen.get("loop", 1))
    _refuse_idle(chosen, loop)
    takes = loop > 1 or any(key in chosen for key in ("condition_frames", "continue_from", "connect_to"))
    taken = _read_condition_frames(chosen.get("condition_frames"), clip) if takes else 0
    found = _Placed(clip)
    # references by number come first, so that the numbers of the strategy are right
    for each in _several(chosen.get("reference", ())):
        found.add(read_frames(each, "reference"))
    own = len(found.references)
    placed = [each.among(own) for each in parse_placements(chosen.get("mask_strategy", ""))]
    if "edit" in chosen:
        strength = _read_strength("edit_strength", chosen.get("edit_strength", EDIT_STRENGTH))
        video = read_frames(chosen["edit"], "edit")
        if len(video.frames) < clip.frames:
            count = "1 frame" if len(video.frames) == 1 else f"{len(video.frames)} frames"
            raise InputError(
                f"{setting('edit')} has {count}, a clip has {clip.frames}: give a longer video, or fewer "
                f"{setting('frames')}"
            )
        found.put("edit", found.add(video, (0, clip.frames)), 0, 0, strength)
    # a later placement wins, and an edit is of all frames: what the strategy places comes after it
    found.placements += placed
    found.names += ["mask_strategy"] * len(placed)
    if "continue_from" in chosen:
        video = _at_least(taken, read_frames(chosen["continue_from"], "continue_from"), "continue_from")
        found.put("continue_from", found.add(video, (len(video.frames) - taken, taken)), 0, 0)
    if "connect_to" in chosen:
        video = _at_least(taken, read_frames(chosen["connect_to"], "connect_to"), "connect_to")
        number = found.add(video, (0, taken))
        found.put("connect_to", number, loop - 1, -found.lengths[number])
    for key, target, which in (("first_frame", 0, 0), ("last_frame", -1, loop - 1)):
        if key in chosen:
            found.put(key, found.add(_one(read_frames(chosen[key], key), key)), which, target)
    _refuse_overlap(chosen, found, loop, taken)
    made = Conditioning(
        references=tuple(found.references),
        strategy=";".join(map(str, found.placements)),
        loop=loop,
        condition_frames=taken if loop > 1 else None,
        condition_edit=_read_strength("condition_edit", chosen.get("condition_edit", 0.0)),
    )
    check_conditioning(made, clip, name, found.lengths)
    _refuse_two_of_a_frame(found)
    _refuse_taken_over(found, taken)
    return made


def check_conditioning(
    conditioning: Conditioning, clip: ClipShape | None, name: str, lengths: Sequence[int] | None = None
) -> None:
    """Refuse a conditioning that does not fit a model.

    Args:
        conditioning: what was asked for.
        clip: what is known of the model; None where it makes images.
        name: the model's.
        lengths: latent frames of the references, where they are known.

    Raises:
        InputError: the message says what does not fit.
    """
    if clip is None:
        raise InputError(f"{name} makes images, and the request places frames of a video: choose a model of videos")
    if conditioning.condition_frames is not None:
        _read_condition_frames(conditioning.condition_frames, clip)
    if lengths is not None:
        placements = parse_placements(conditioning.strategy)
        late = next((each for each in placements if each.loop >= conditioning.loop), None)
        if late is not None:
            raise InputError(
                f"{setting('mask_strategy')} '{late}' is for loop {late.loop}, and "
                f"{numbered('loop', conditioning.loop)}: raise {setting('loop')}"
            )
        for loop in sorted({each.loop for each in placements}):
            place_all(placements, loop, lengths, clip.latent_frames(clip.frames), clip.align)
        idle = set(range(len(lengths))) - {each.reference % len(lengths) for each in placements}
        if idle:
            raise InputError(
                f"reference {min(idle)} is not placed anywhere: name it in {setting('mask_strategy')}, such as "
                f"'0,{min(idle)}', or leave it out"
            )


def find_references(
    conditioning: Conditioning, given: Mapping[str, np.ndarray], folders: Sequence[Path] = ()
) -> Iterator[np.ndarray]:
    """The frames of each reference, uint8 (time, height, width, 3), the part that is used.

    Args:
        conditioning: names them.
        given: frames that a caller gives in place of files, by their hash.
        folders: where files are looked for too.

    Raises:
        InputError: a file is not there, cannot be read, or has other content.
    """
    from .references import find_frames

    for each in conditioning.references:
        frames = find_frames(each.file, each.sha256, given, folders)
        start, count = each.part or (0, len(frames))
        if start + count > len(frames):
            raise InputError(
                f"{each.file or 'a reference'} has {len(frames)} frames, its part ends at {start + count}: correct it"
            )
        yield frames[start : start + count]


def frames_in(choices: Mapping[str, Any]) -> list[Any]:
    """The pictures and videos among choices that were given as frames, not as paths."""
    given = [each for name in FRAMES for each in (_several if name == "reference" else _alone)(choices.get(name))]
    return [each for each in given if each is not None and not isinstance(each, str | Path)]


def _several(given: Any) -> list[Any]:
    """References as a list; a single path, array or image is one."""
    return list(given) if isinstance(given, list | tuple) else [given]


def _alone(given: Any) -> list[Any]:
    return [given]


def _one(found: Frames, name: str) -> Frames:
    if len(found.frames) > 1:
        instead = "continue_from" if name == "first_frame" else "connect_to"
        raise InputError(
            f"{setting(name)} has {len(found.frames)} frames: give a picture, or the video as {setting(instead)}"
        )
    return found


def _at_least(count: int, found: Frames, name: str) -> Frames:
    if len(found.frames) < count:
        raise InputError(
            f"{setting(name)} has {len(found.frames)} frame{'s' * (len(found.frames) > 1)}, and {count} are taken of "
            f"it: give a longer video, or lower {setting('condition_frames')}"
        )
    return found


def _read_count(name: str, value: Any) -> int:
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count < 2**31:
        raise InputError(f"{setting(name)} is {quoted(value)}: give a whole number of at least 1")
    return count


def _read_strength(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InputError(
            f"{setting(name)} is {quoted(value)}: give 0, which keeps the frames, to 1, which redraws them"
        )
    return float(value)


def _read_condition_frames(value: Any, clip: ClipShape) -> int:
    """How many frames of a video the next clip takes over.

    Raises:
        InputError: they are no whole number of what the autoencoder decodes together, or all of a clip.
    """
    count = clip.condition_frames if value is None else _read_count("condition_frames", value)
    if count % clip.unit:
        raise InputError(
            f"{setting('condition_frames')} {count} is no multiple of {clip.unit}, as {clip.name} needs: give "
            f"{-(-count // clip.unit) * clip.unit}"
        )
    if count >= clip.frames:
        raise InputError(f"{setting('condition_frames')} {count} leaves nothing to make of {clip.frames}: give fewer")
    return count


def _refuse_idle(chosen: Mapping[str, Any], loop: int) -> None:
    """Refuse choices that would have no effect.

    Raises:
        InputError: the message names the choice that is missing.
    """
    videos = {"continue_from", "connect_to"} & chosen.keys()
    if "edit_strength" in chosen and "edit" not in chosen:
        raise InputError(f"{setting('edit_strength')} has an effect only with {setting('edit')}: give both")
    if "condition_frames" in chosen and loop == 1 and not videos:
        raise InputError(
            f"{setting('condition_frames')} has an effect only with {setting('loop')}, {setting('continue_from')} or "
            f"{setting('connect_to')}: give one of them"
        )
    if "condition_edit" in chosen and loop == 1:
        raise InputError(f"{setting('condition_edit')} has an effect only with {setting('loop')}: give both")
    for one, other in (("reference", "mask_strategy"), ("mask_strategy", "reference")):
        if one in chosen and other not in chosen:
            raise InputError(f"{setting(one)} is given without {setting(other)}: give both")


def _refuse_overlap(chosen: Mapping[str, Any], found: _Placed, loop: int, taken: int) -> None:
    """Refuse two choices that keep the same frame, or that leave no frame to make between them.

    Raises:
        InputError: the message names both.
    """
    for one, other in (("first_frame", "continue_from"), ("last_frame", "connect_to")):
        if one in chosen and other in chosen:
            raise InputError(
                f"{setting(one)} and {setting(other)} both say how the clip {_WHERE[one]}: give one of them"
            )
    before = "continue_from" if loop == 1 else "loop"  # what the last clip begins with
    length, begins = found.clip.latent_frames(found.clip.frames), found.clip.latent_frames(taken)
    for after, frames in (("connect_to", taken), ("last_frame", 1)):
        if after in chosen and before in chosen and begins + found.clip.latent_frames(frames) >= length:
            raise InputError(
                f"{setting(before)} and {setting(after)} leave no frame to make between them: lower "
                f"{setting('condition_frames')}"
            )


def _refuse_two_of_a_frame(found: _Placed) -> None:
    """Refuse two choices that keep the same frame. Within a mask strategy the later placement wins, as in Open-Sora.

    Raises:
        InputError: the message names both.
    """
    kept: dict[tuple[int, int], str] = {}
    clip = found.clip
    frames = clip.latent_frames(clip.frames)
    for placement, name in zip(found.placements, found.names, strict=True):
        if placement.edit:
            continue
        own = placement.within(found.lengths[placement.reference], frames, clip.align)
        for frame in range(own.target, own.target + own.length):
            other = kept.setdefault((own.loop, frame), name)
            if other != name:
                lower = {"continue_from", "connect_to"} & {other, name}
                raise InputError(
                    f"{setting(other)} and {setting(name)} both give frame {frame}, counted from 0: give one of them"
                    + (f", or lower {setting('condition_frames')}" if lower else "")
                )


def _refuse_taken_over(found: _Placed, taken: int) -> None:
    """Refuse placements in a further clip that lie in the frames that it takes over, which win, as in Open-Sora.

    Raises:
        InputError: the message names the placement.
    """
    clip = found.clip
    frames, begins = clip.latent_frames(clip.frames), clip.latent_frames(taken)
    for placement in found.placements:
        own = placement.within(found.lengths[placement.reference], frames, clip.align)
        if own.loop and own.target + own.length <= begins:
            raise InputError(
                f"{setting('mask_strategy')} '{placement}' ends before frame {begins} of loop {own.loop}, whose first "
                f"{begins} are those of the clip before: place it at frame {begins} or later, or lower "
                f"{setting('condition_frames')}"
            )


_WHERE = {"first_frame": "begins", "last_frame": "ends"}
