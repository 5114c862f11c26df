"""Sampling of Open-Sora 2.0: its schedule, the oscillation of its scales, and its three-way guidance.

``sample_mmdit`` does what the original's image-to-video denoiser does, with any choice of channels. It is Euler's
method on rectified flow with the rule "three-way".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError, nearest
from ...diffusion import NoiseLevel
from ...diffusion.flow import levels_at
from ...guidance import CfgChannels, ChannelChoice, Guidance, GuidedDenoiser, Timing
from ...guidance.rules import ThreeWay
from ...models.mmdit.network import pack, unpack

OSCILLATES_FROM = 10
"""The step from which the original's scales oscillate."""
ROUNDING = 1e-6  # by how much the first timestep of a shifted schedule may exceed 1, in fp32
GIVEN = {
    "t2v": (0, 0), "i2v_head": (1, 0), "i2v_tail": (0, 1), "i2v_loop": (1, 1), "v2v_head": (1, 0), "v2v_tail": (0, 1),
    "v2v_head_easy": (1, 0), "v2v_tail_easy": (0, 1),
}  # fmt: skip
"""Whether frames are given at the head and at the tail of a clip, by the original's name."""


def mmdit_schedule(
    num_steps: int,
    image_seq_len: int,
    num_frames: int,
    shift_alpha: float | None = None,
    shift: bool = True,
) -> list[float]:
    """The timesteps of a run, ``num_steps`` + 1 numbers from 1 (noise) to 0 (data), in fp32 arithmetic.

    Even steps u become r u / (1 + (r - 1) u). r grows with the size of the clip: it lies on the line through (256, 1)
    and (4096, 3) at the number of tokens, times the root of the number of frames.

    Args:
        num_steps: steps of the run.
        image_seq_len: tokens of one latent frame.
        num_frames: latent frames.
        shift_alpha: r itself, in place of that of the size.
        shift: whether the timesteps are shifted at all.

    Raises:
        InputError: there are no steps, tokens or frames, or r is not above 0.
    """
    for name, value in (("num_steps", num_steps), ("image_seq_len", image_seq_len), ("num_frames", num_frames)):
        if value < 1:
            raise InputError(f"{name} is {value}: give at least 1")
    even = torch.linspace(1, 0, num_steps + 1)
    if not shift:
        return even.tolist()
    if shift_alpha is None:
        slope = (3 - 1) / (4096 - 256)
        shift_alpha = (slope * image_seq_len + (1 - slope * 256)) * math.sqrt(num_frames)
    if not 0 < shift_alpha < math.inf:
        raise InputError(f"shift_alpha is {shift_alpha:g}: give a number above 0, 1 for no shift")
    return (shift_alpha * even / (1 + (shift_alpha - 1) * even)).tolist()


def oscillate(scale: float, step: int, start: int = OSCILLATES_FROM) -> float:
    """The scale at a step, counted from 0: 1 at every odd step from ``start`` on."""
    return 1.0 if step >= start and step % 2 else scale


def mmdit_condition(
    z: Tensor,
    mask_cond: str = "t2v",
    ref_list: Sequence[Sequence[Tensor] | None] | None = None,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """The given frames of a clip, as ``masks`` (B, 1, T, H, W) and ``masked_ref`` (B, C, T, H, W) of ``sample_mmdit``.

    Args:
        z: latents (B, C, T, H, W) of the clips. Only their shape, dtype and device are used.
        mask_cond: which frames are given: "t2v" none, "i2v_head" the first, "i2v_tail" the last, "i2v_loop" both;
            "v2v_head" and "v2v_tail" nine of them, the names with "_easy" behind 17.
        ref_list: for each clip its references, latents (C, T', H, W): that of the head first, that of the tail last.
            None for a clip without. A clip of one latent frame is given none.
        causal: whether the autoencoder codes the first frame alone; else 8 and 16 frames are given.

    Raises:
        InputError: ``mask_cond`` does not exist, or references are missing, too short, or of another size.
    """
    if mask_cond not in GIVEN:
        raise InputError(f"mask_cond {mask_cond!r:.40} does not exist{nearest(str(mask_cond), GIVEN)}")
    several = 8 * ("v2v" in mask_cond) * (1 + ("easy" in mask_cond))
    head, tail = ((several + (causal or not several)) * given for given in GIVEN[mask_cond])
    if 1 < z.shape[2] < max(head, tail):
        raise InputError(f"{mask_cond} gives {max(head, tail)} latent frames, and the clips have {z.shape[2]}")
    references = [None] * len(z) if ref_list is None else ref_list
    if len(references) != len(z):
        raise InputError(f"ref_list is of {len(references)} clips, z of {len(z)}: give one list for each, or None")
    masks, shown = torch.zeros_like(z[:, :1]), torch.zeros_like(z)
    for row, given in enumerate(references):
        if not given or z.shape[2] == 1:
            continue
        last = given[0] if several else given[-1]
        for count, reference, here in ((head, given[0], slice(head)), (tail, last, slice(z.shape[2] - tail, None))):
            wanted, found = (z.shape[1], count, *z.shape[3:]), tuple(reference.shape)
            if count and (len(found) != 4 or found[1] < count or (found[0], count, *found[2:]) != wanted):
                raise InputError(f"a reference is {found}, {mask_cond} needs {wanted}, or more frames")
            if count:
                masks[row, :, here] = 1
                shown[row, :, here] = reference[:, :count] if here.stop else reference[:, -count:]
    return masks, shown


@dataclass(frozen=True)
class Tokens:
    """What the network is told of a batch beside the noisy latents: a condition of guidance."""

    txt: Tensor
    txt_ids: Tensor
    img_ids: Tensor
    y_vec: Tensor
    image: Tensor
    """Mask and latents of the image, (B, 1 + C, T, H, W)."""

    def cat(self, other: Tokens, /) -> Tokens:
        """The rows of both, these first."""
        names = ("txt", "txt_ids", "img_ids", "y_vec", "image")
        return Tokens(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in names))

    def without_image(self) -> Tokens:
        """The same without the image: mask and latents are zero."""
        return Tokens(self.txt, self.txt_ids, self.img_ids, self.y_vec, torch.zeros_like(self.image))


@torch.no_grad()
def sample_mmdit(
    net: Callable[..., Tensor],
    *,
    img: Tensor,
    img_ids: Tensor,
    txt: Tensor,
    txt_ids: Tensor,
    y_vec: Tensor,
    masks: Tensor,
    masked_ref: Tensor,
    timesteps: Sequence[float],
    guidance: float = 7.5,
    guidance_img: float = 3.0,
    text_osci: bool = False,
    image_osci: bool = False,
    scale_temporal_osci: bool = False,
    patch_size: int = 2,
    cfg_channels: CfgChannels | ChannelChoice = None,
    timing: str | Timing = "constant",
) -> Tensor:
    """Guided samples of an MMDiT as tokens, (B, N, C patch patch). No noise is drawn.

    Args:
        net: called as ``net(img=, img_ids=, txt=, txt_ids=, timesteps=, y_vec=, cond=, guidance=)``.
        img: the initial noise as tokens: B rows, or 3 B of which the first B are taken.
        img_ids: coordinates of the tokens, 3 B rows, or B.
        txt, y_vec: text features of 3 B rows: the prompts, then their negative prompts twice.
        txt_ids: coordinates of the text, zeros, 3 B rows.
        masks: 1 where latents are given, (B, 1, T, H, W); see ``mmdit_condition``.
        masked_ref: the given latents, zero elsewhere, (B, C, T, H, W).
        timesteps: from noise to data; see ``mmdit_schedule``.
        guidance: scale of the text.
        guidance_img: scale of the image.
        text_osci, image_osci: whether these scales oscillate; see ``oscillate``.
        scale_temporal_osci: whether the image's scale grows over the frames; see the rule "three-way".
        patch_size: side of a patch in latent pixels.
        cfg_channels: which latent channels are guided, all unless given: any form that ``ChannelScale.parse`` takes.
        timing: when guidance acts.

    Raises:
        InputError: shapes do not fit each other, a setting is not valid, or a prediction is not finite.
    """
    rows, channels = masked_ref.shape[:2]
    size: Any = tuple(masked_ref.shape[2:])
    tokens = size[0] * (size[1] // patch_size) * (size[2] // patch_size)
    _check(rows, tokens, channels * patch_size**2, img=img, img_ids=img_ids, txt=txt, txt_ids=txt_ids, y_vec=y_vec)
    if masks.shape != (rows, 1, *size):
        raise InputError(f"masks are {tuple(masks.shape)}, expected {(rows, 1, *size)}, one value a latent pixel")
    steps = [float(t) for t in timesteps]
    if len(steps) < 2 or steps[0] > 1 + ROUNDING or not all(t > after >= 0 for t, after in pairwise(steps)):
        raise InputError("timesteps do not fall from 1 (noise) to 0 (data): give those of mmdit_schedule")

    # the three branches: prompt and image, negative prompt and image, negative prompt alone
    image = torch.cat([masks, masked_ref], dim=1)
    thirds = [slice(k * rows, (k + 1) * rows) for k in range(3)]
    cond, uncond, neither = (Tokens(txt[r], txt_ids[r], img_ids[:rows], y_vec[r], image) for r in thirds)
    both = text_osci and image_osci
    oscillates = "none" if both or not (text_osci or image_osci) else "text" if text_osci else "image"
    if both and timing != "constant":
        raise InputError("text_osci and image_osci are a timing already: leave out timing")
    rule = ThreeWay(guidance_img, oscillates, OSCILLATES_FROM, int(scale_temporal_osci and guidance_img > 1))
    how = Guidance(guidance, cfg_channels, rule, f"oscillation:{OSCILLATES_FROM}" if both else timing)

    def network(x: Tensor, level: NoiseLevel, told: Tokens) -> Tensor:
        packed = pack(x, patch_size).to(img.dtype)
        t, scale = (packed.new_full((len(x),), value) for value in (float(level.timestep), guidance))
        out = net(
            img=packed, img_ids=told.img_ids, txt=told.txt, txt_ids=told.txt_ids, timesteps=t, y_vec=told.y_vec,
            cond=pack(told.image, patch_size), guidance=scale,
        )  # fmt: skip
        return unpack(out, size, patch_size)

    denoiser = GuidedDenoiser(
        network, how, cond, uncond, imageless=neither.without_image(), parameterization="flow", steps=len(steps) - 1
    )
    x = unpack(img[:rows], size, patch_size)
    for level, (t, after) in zip(levels_at(steps[:-1], 1), pairwise(steps), strict=True):
        x = x + (after - t) * denoiser(x, level)
    denoiser.finish()
    return pack(x, patch_size).to(img.dtype)


def _check(rows: int, tokens: int, values: int, **given: Tensor) -> None:
    """Refuse arguments whose rows or tokens do not fit."""
    for name, value in given.items():
        allowed = (rows, 3 * rows) if name in ("img", "img_ids") else (3 * rows,)
        if len(value) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise InputError(f"{name} has {len(value)} rows, expected {expected} for {rows} clips: three branches run")
        if name in ("img", "img_ids") and value.shape[1] != tokens:
            raise InputError(f"{name} has {value.shape[1]} tokens, the latents of masked_ref are {tokens}")
    if given["img"].shape[2] != values:
        raise InputError(f"img has tokens of {given['img'].shape[2]} values, those of masked_ref are of {values}")
