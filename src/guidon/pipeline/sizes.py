"""The size and length of a request's clips, in pixels and in latents, and the memory that they need at least."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, setting
from ..core.limits import as_count, available_memory, require_memory
from ..media.conditioning import ClipShape
from ..models.family import Facts, Preset
from ..request import Request

if TYPE_CHECKING:
    import torch

_CLIP_BYTES = 4096  # what a clip takes beside its pixels: its manifest and its objects


def clip_shape(preset: Preset[Any], facts: Facts, request: Request) -> ClipShape | None:
    """What must be known to place frames in a request's clips; None where they are images."""
    if preset.is_image:
        return None
    return ClipShape(preset.name, clip_size(facts, request)[0], facts.latent_frames, facts.latents_together)


def own_size(facts: Facts, made: tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """(frames, height, width) in pixels of the clips that a model makes where nobody chooses; an image has one frame.

    Args:
        facts: of the model.
        made: the latent shape that the loaded network was made for; see ``latent_shape``.
    """
    made, unit = made or facts.latent_shape, facts.downsampling
    return facts.clip or (made[1] if len(made) == 4 else 1, made[-2] * unit, made[-1] * unit)


def clip_size(facts: Facts, request: Request, made: tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """(frames, height, width) of a request's clips as they were asked for, in pixels; an image has one frame.

    A size of a model for any size may be cut to whole latent pixels.

    Args:
        facts: what is made where nothing was chosen.
        request: what was chosen.
        made: the latent shape that the loaded network was made for; see ``latent_shape``.
    """
    frames, *size = own_size(facts, made)
    height, width = request.size or size
    return request.frames or frames, height, width


def latent_shape(
    preset: Preset[Any], facts: Facts, request: Request, made: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The latent (C, T, H, W) or (C, H, W) of a request: that of the model, with the size and length that were chosen.

    Args:
        preset: what may be chosen.
        facts: what sizes go with it.
        request: what was chosen.
        made: the shape that the loaded network was made for, where a user's checkpoint may differ from the preset.

    Raises:
        InputError: the model does not take other sizes, or not this one.
    """
    made, unit, patch = made or facts.latent_shape, facts.downsampling, facts.patch
    own = made[-2] * unit, made[-1] * unit
    for name, value in (("size", request.size), ("frames", request.frames)):
        if value is not None and name not in preset.sizes:
            only = f"{own[0]}x{own[1]}" if name == "size" else f"{made[1]} frames" if len(made) == 4 else "images"
            raise InputError(f"{preset.name} makes {only} only: leave out {setting(name)}")
    count, height, width = clip_size(facts, request, made)
    if facts.clip is not None:
        if min(height, width) < unit:
            raise InputError(f"{setting('size')} {height}x{width} is too small: give at least {unit}x{unit}")
        return made[0], facts.latent_frames(count), height // unit, width // unit
    sides = [("height", height, patch[-2] * unit), ("width", width, patch[-1] * unit)]
    frames = (count,) if len(made) == 4 else ()
    for name, length, grain in (*sides, *(("frames", count, patch[0]) for count in frames)):
        if length % grain:
            what = f"{setting('frames')} {length}" if name == "frames" else f"{setting('size')}: {name} {length}"
            below = length // grain * grain
            near = " or ".join(str(near) for near in (below, below + grain) if near)
            raise InputError(f"{what} is no multiple of {grain}, as {preset.name} needs: give {near}")
    return (made[0], *frames, height // unit, width // unit)


def require_room(
    facts: Facts, shape: tuple[int, ...], frames: int, clips: int, batch_size: int, device: torch.device | str | None
) -> None:
    """Refuse a run that needs more memory than there is, before anything is made.

    The estimate is a lower bound: the latents and the 8-bit frames of all clips, and one clip as the decoder gives it.

    Args:
        facts: says how many pixels a latent pixel is.
        shape: of one clip's latents, (C, T, H, W) or (C, H, W).
        frames: of one clip.
        clips: how many are asked for.
        batch_size: how many are to be denoised together.
        device: where the model runs; None where it is not known yet. Then only the finished clips are counted.

    Raises:
        InputError: the message holds the estimate, what there is, and what to lower.
    """
    height, width = (side * facts.downsampling for side in shape[-2:])
    latents, pixels = 4 * math.prod(shape), 3 * frames * height * width
    decoded = 2 * 4 * pixels  # fp32: the parts that were decoded, and the clip that they are joined to
    kept = pixels + _CLIP_BYTES
    host = available_memory()
    # what one clip needs, then all of them, then what was asked for at a time
    video, of = len(shape) == 4, f"{height}x{width} pixels"
    one = f"{frames} frames of {of}" if video else f"the {of} of an image"
    smaller = f"lower {setting('size')}" + (f" or {setting('frames')}" if video else "")
    fewer = f"lower {setting('num_samples')}, or give fewer prompts at a time"
    number = as_count(clips)
    what = f"{number} clips of {frames} frames of {of}" if video else f"{number} images of {of}"
    if device is None:
        require_memory(one, kept, have=host, lower=smaller)
        require_memory(what, clips * kept, have=host, lower=fewer)
        return
    same = str(device).startswith("cpu")
    place = host if same else available_memory(device)
    require_memory(one, latents + decoded + (kept if same else 0), device, have=place, lower=smaller)
    require_memory(what, clips * (latents + (kept if same else 0)) + decoded, device, have=place, lower=fewer)
    if not same:
        require_memory(what, clips * kept, have=host, lower=fewer)
    together = f"the latents of {as_count(batch_size)} clips that are denoised together"
    require_memory(together, batch_size * latents, device, have=place, lower="batch_size")
