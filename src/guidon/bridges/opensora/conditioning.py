"""Open-Sora's conditioning on images and videos: its mask strategies, prompts, size tensors and tables of sizes.

The functions have the names, the arguments and the results of ``opensora.utils.inference_utils`` and
``opensora.datasets.aspect`` of Open-Sora 1.2, so that a script of theirs runs with these in their place. Where 1.1's
``inference-long.py`` differs, ``version="1.1"`` does what it does. Values that the originals would fail at, or read as
something else, are refused in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Literal

from ...core.errors import InputError, nearest, quoted, setting
from ...media.placing import Placement, nearest_multiple, parse_placements, place_all, split_json, text_of_loop
from ...models.stdit3 import CHUNK, CHUNK_LATENTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Version = Literal["1.1", "1.2"]
__all__ = [
    "append_generated",
    "append_score_to_prompts",
    "apply_mask_strategy",
    "dframe_to_frame",
    "extract_json_from_prompts",
    "extract_prompts_loop",
    "find_nearest_point",
    "get_image_size",
    "get_num_frames",
    "parse_mask_strategy",
    "prepare_multi_resolution_info",
]
IMG_FPS = 120
"""The rate that the networks are told for a single image."""
SIZED = ("STDiT2", "OpenSora", "PixArtMS")

RATIOS = (
    "3:8", "9:21", "12:25", "1:2", "9:17", "27:50", "9:16", "5:8", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "17:9",
    "2:1", "50:27",
)  # fmt: skip
"""Height to width of the tables."""
_SIZES = {
    "144p": "117x312 125x291 133x277 135x270 139x262 141x260 144x256 151x241 156x234 166x221 192x192 221x165 235x156 "
    "256x144 263x139 271x135 277x132",
    "240p": "196x522 210x490 222x462 226x452 232x438 236x436 240x426 252x404 262x393 276x368 320x320 370x278 392x262 "
    "426x240 440x232 452x226 462x222",
    "360p": "294x784 314x732 332x692 340x680 350x662 352x652 360x640 380x608 392x588 416x554 480x480 554x416 588x392 "
    "640x360 660x350 678x340 692x332",
    "480p": "392x1046 420x980 444x925 452x904 466x880 470x870 480x854 506x810 522x784 554x738 640x640 740x555 784x522 "
    "854x480 880x466 906x454 924x444",
    "720p": "588x1568 628x1466 666x1388 678x1356 698x1318 706x1306 720x1280 758x1212 784x1176 832x1110 960x960 "
    "1108x832 1176x784 1280x720 1320x698 1358x680 1386x666",
    "1080p": "882x2352 942x2198 998x2080 1018x2036 1048x1980 1058x1958 1080x1920 1138x1820 1176x1764 1248x1664 "
    "1440x1440 1662x1246 1764x1176 1920x1080 1980x1048 2036x1018 2078x998",
    "2k": "1176x3136 1256x2930 1330x2770 1358x2716 1398x2640 1412x2612 1440x2560 1518x2428 1568x2352 1662x2216 "
    "1920x1920 2218x1664 2352x1568 2560x1440 2638x1396 2716x1358 2772x1330",
    "4k": "1764x4704 1886x4400 1996x4158 2036x4072 2096x3960 2118x3918 2160x3840 2276x3642 2352x3528 2494x3326 "
    "2880x2880 3326x2494 3528x2352 3840x2160 3958x2096 4072x2036 4156x1994",
}
SIZES: dict[str, dict[str, tuple[int, int]]] = {
    name: {
        ratio: (int(height), int(width))
        for ratio, (height, width) in zip(RATIOS, (size.split("x") for size in sizes.split()), strict=True)
    }
    for name, sizes in _SIZES.items()
} | {
    # PixArt's tables, of which the names of ratios choose one size
    name: {"12:25": size}
    for name, size in {"256": (176, 368), "512": (352, 736), "1024": (704, 1472), "2048": (1408, 2944)}.items()
}
"""Height and width by resolution and ratio."""
LENGTHS = {
    **{f"{times}x": 51 * times for times in (1, 2, 4, 8, 16)},
    **{f"{2 * times}s": 51 * times for times in (1, 2, 4, 8, 16)},
}
"""Frames by their names: multiples of 51, or seconds at 24 frames per second, each rounded to whole parts of 17."""


def parse_mask_strategy(mask_strategy: str | None) -> list[list[Any]]:
    """The placements of a strategy, each ``[loop, reference, reference start, target start, length, edit]``.

    Raises:
        InputError: a placement has no number or more than six, or one is out of its range.
    """
    return [list(astuple(each)) for each in parse_placements(mask_strategy or "")]


def apply_mask_strategy(
    z: Tensor,
    refs_x: Sequence[Sequence[Tensor] | None],
    mask_strategys: Sequence[str | None],
    loop_i: int,
    align: int | None = None,
    *,
    version: Version = "1.2",
) -> Tensor | None:
    """Write frames of references into the noise, and return which frames are made.

    Args:
        z: the noise (B, C, T, H, W). It is changed.
        refs_x: the latents (C, T, H, W) of the references of each row.
        mask_strategys: the strategy of each row; None or an empty text for none.
        loop_i: which clip of a video that is extended.
        align: starts are moved to multiples of it, as 1.2 does; it cuts lengths to what fits, too.
        version: "1.1" repeats a picture over the whole length, and refuses other lengths that do not fit.

    Returns:
        (B, T): 0 for frames that are kept, 1 for those that are made, between them for those that are edited. None
        where there are no rows.

    Raises:
        InputError: a strategy cannot be read, or does not fit.
    """
    import torch

    if version == "1.1" and align is not None:
        raise InputError(f"align is {quoted(align)}, and Open-Sora 1.1 does not align: leave it out")
    if align is not None and (not isinstance(align, int) or align < 1):
        raise InputError(f"align is {quoted(align)}: give a whole number of at least 1")
    masks: list[Tensor] = []
    for row, strategy in enumerate(mask_strategys):
        mask = torch.ones(z.shape[2], dtype=torch.float, device=z.device)
        refs = refs_x[row] or ()
        lengths = [ref.shape[1] for ref in refs]
        for each in place_all(
            parse_placements(strategy or ""), loop_i, lengths, z.shape[2], align, cut=version != "1.1"
        ):
            put = slice(each.target, each.target + each.length)
            z[row, :, put] = refs[each.reference][:, each.start : each.start + each.length]
            mask[put] = each.edit
        masks.append(mask)
    return torch.stack(masks) if masks else None


def find_nearest_point(value: int, point: int, max_value: int) -> int:
    """The multiple of ``point`` nearest to ``value``, at which a whole part begins before ``max_value``."""
    return nearest_multiple(value, point, max_value)


def extract_prompts_loop(prompts: Sequence[str], num_loop: int) -> list[str]:
    """The texts of loop ``num_loop`` of prompts such as ``"|0|a cat|2|a dog"``; other prompts are the same in all.

    Raises:
        InputError: the numbers between the bars are none, or do not grow.
    """
    return [text_of_loop(prompt, num_loop) for prompt in prompts]


def append_score_to_prompts(
    prompts: Sequence[str],
    aes: float | None = None,
    flow: float | None = None,
    camera_motion: str | None = None,
) -> list[str]:
    """Prompts that end in the scores that 1.2 was trained with. A score that a prompt names already is not added.

    Args:
        prompts: texts.
        aes: aesthetic score, about 4 to 7; None to name none.
        flow: how much moves, about 0 to 10.
        camera_motion: how the camera moves, such as "pan right".
    """
    scores = (
        ("aesthetic score", None if aes is None else f"{aes:.1f}"),
        ("motion score", None if flow is None else f"{flow:.1f}"),
        ("camera motion", camera_motion),
    )
    return [
        prompt
        + "".join(f" {name}: {value}." for name, value in scores if value is not None and f"{name}:" not in prompt)
        for prompt in prompts
    ]


def extract_json_from_prompts(
    prompts: Sequence[str],
    reference: Sequence[str | None] | None = None,
    mask_strategy: Sequence[str | None] | None = None,
) -> tuple[list[str], list[Any], list[Any]]:
    """Texts, references and mask strategies of prompts that end in JSON: ``a cat{"reference_path": "a.png"}``.

    Args:
        prompts: texts. The JSON begins at the first ``{``.
        reference: paths of the references, joined by ``;``, for prompts whose JSON does not name them.
        mask_strategy: the same for strategies.

    Raises:
        InputError: the JSON cannot be read, holds other keys than these two, or values that are no text.
    """
    references: list[Any] = list(reference) if reference is not None else [""] * len(prompts)
    strategies: list[Any] = list(mask_strategy) if mask_strategy is not None else [""] * len(prompts)
    for name, given in (("reference", references), ("mask_strategy", strategies)):
        if len(given) != len(prompts):
            raise InputError(f"{name} holds {len(given)} values for {len(prompts)} prompts: give one for each")
    texts: list[str] = []
    for row, prompt in enumerate(prompts):
        text, found = split_json(prompt)
        texts.append(text)
        references[row] = found.get("reference_path", references[row])
        strategies[row] = found.get("mask_strategy", strategies[row])
    return texts, references, strategies


def prepare_multi_resolution_info(
    info_type: str | None,
    batch_size: int,
    image_size: Sequence[int],
    num_frames: int,
    fps: float,
    device: torch.device | str,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The tensors that tell a network the size, length and rate of a clip, ``batch_size`` rows each.

    Args:
        info_type: "STDiT2" or "OpenSora": height, width, num_frames, ar and fps; "PixArtMS": hw and ar; None: nothing.
        batch_size: rows.
        image_size: height and width in pixels.
        num_frames: of the video. One frame is an image, whose rate is ``IMG_FPS``.
        fps: frames per second of the source.
        device: where the tensors are.
        dtype: of the tensors. The originals' scripts make them in bfloat16, which rounds them.

    Raises:
        InputError: there is no such ``info_type``.
    """
    import torch

    if info_type is None:
        return {}
    if info_type not in SIZED:
        raise InputError(f"info_type {quoted(info_type)} does not exist{nearest(str(info_type), SIZED)}")
    height, width = image_size
    if info_type == "PixArtMS":
        values: dict[str, list[float]] = {"ar": [height / width], "hw": [height, width]}
        return {
            name: torch.tensor([value], device=device, dtype=dtype).repeat(batch_size, 1)
            for name, value in values.items()
        }
    numbers = {
        "height": height, "width": width, "num_frames": num_frames, "ar": height / width,
        "fps": fps if num_frames > 1 else IMG_FPS,
    }  # fmt: skip
    return {
        name: torch.tensor([value], device=device, dtype=dtype).repeat(batch_size) for name, value in numbers.items()
    }


def get_image_size(resolution: str, ar_ratio: str) -> tuple[int, int]:
    """Height and width in pixels, such as (240, 426) of "240p" and "9:16".

    Raises:
        InputError: there is no such resolution, or no such ratio of it.
    """
    if resolution not in SIZES:
        raise InputError(
            f"{setting('resolution')} {quoted(resolution)} does not exist{nearest(str(resolution), SIZES)}"
        )
    if ar_ratio not in SIZES[resolution]:
        raise InputError(
            f"{setting('aspect_ratio')} {quoted(ar_ratio)}, height to width, does not exist at {resolution}"
            f"{nearest(str(ar_ratio), SIZES[resolution])}"
        )
    return SIZES[resolution][ar_ratio]


def get_num_frames(num_frames: int | str) -> int:
    """Frames of a length such as "2s" (51), "1x" (51), "102" or 102.

    Raises:
        InputError: it is no length.
    """
    if isinstance(num_frames, str) and num_frames in LENGTHS:
        return LENGTHS[num_frames]
    text = str(num_frames).strip()
    if isinstance(num_frames, bool) or not text.isdecimal() or len(text) > 9 or not int(text):
        raise InputError(
            f"num_frames {quoted(num_frames)} is no length: give a whole number, or one of {', '.join(LENGTHS)}"
        )
    return int(text)


def dframe_to_frame(num: int) -> int:
    """Frames of the video that a number of latent frames of 1.2's autoencoder stands for: 17 for each 5.

    Raises:
        InputError: it is no multiple of 5.
    """
    if num % CHUNK_LATENTS:
        raise InputError(
            f"{num} latent frames are no multiple of {CHUNK_LATENTS}, which stand for {CHUNK} frames: give one"
        )
    return num // CHUNK_LATENTS * CHUNK


def append_generated(
    vae: Any,
    generated_video: Tensor,
    refs_x: list[Any],
    mask_strategy: list[Any],
    loop_i: int,
    condition_frame_length: int,
    condition_frame_edit: float = 0.0,
) -> tuple[list[Any], list[Any]]:
    """Make a clip the last reference of its row, and its last frames the first ones of the next loop.

    Args:
        vae: has ``encode(video)`` -> latents (B, C, T, H, W).
        generated_video: the clip of the loop before, (B, 3, T, H, W) in [-1, 1].
        refs_x: the references of each row. The lists are changed.
        mask_strategy: the strategy of each row. The list is changed.
        loop_i: the next loop.
        condition_frame_length: latent frames that it takes over.
        condition_frame_edit: how much of its sampling edits them.
    """
    for row, latents in enumerate(vae.encode(generated_video)):
        refs_x[row] = [*(refs_x[row] or ()), latents]
        before = f"{mask_strategy[row]};" if mask_strategy[row] else ""
        taken = Placement(
            loop_i, len(refs_x[row]) - 1, -condition_frame_length, 0, condition_frame_length, condition_frame_edit
        )
        mask_strategy[row] = f"{before}{taken}"
    return refs_x, mask_strategy
