"""The frames of clips that are not made from noise: encoded, and put where a request says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.broadcasting import per_frame
from ..core.errors import InputError, quoted, setting
from ..core.limits import attempt
from ..core.warn import warn
from ..diffusion import NoiseLevel, Parameterization, convert
from ..media.conditioning import ClipShape, Conditioning, find_references
from ..media.placing import Placement, parse_placements, place_all
from ..media.references import read_frames, resize_to_fill
from ..models.stages import Stage
from ..models.vae import Autoencoder
from ..samplers import CheckedDenoiser, Denoiser, FrameMask

STEERED_BELOW = 0.3
"""Frames that are made are steered while alpha / sigma is below this: later, where things are is decided."""


class Kept(NamedTuple):
    """The frames of one clip that are not made from noise."""

    made: Tensor
    """(T,): how much of every frame is made; see ``FrameMask``."""
    clean: Tensor
    """(C, T, h, w): the latents of frames that are kept or edited, and zeros."""


class HeldFrames:
    """A denoiser whose predictions are right for the frames that are kept, for a network that does not know them.

    All frames then go from noise to data together, those that are kept on the way to what they are to be (Wang et al.
    2212.00490, eq. 13). The network does not look at the kept frames enough to go on from them. So where there is much
    noise, the x_0 of the other frames is corrected by the gradient of the error that the network makes in the kept
    ones: reconstruction guidance (Ho et al. 2204.03458, eq. 7), with the weight of Song et al. (2023, "Pseudoinverse-
    guided diffusion models for inverse problems", eq. 7), 1 / alpha where alpha^2 + sigma^2 = 1. In no clip is the
    root mean square of the correction larger than that of the error, because gradients are rough at the first levels.

    Args:
        denoiser: predicts all frames.
        kept: where frames are kept, so that it broadcasts against them.
        clean: what they are to be, (B, C, T, h, w).
        parameterization: what the denoiser predicts.
        conditional: the prediction without guidance, whose gradient steers; None steers nothing.
    """

    def __init__(
        self,
        denoiser: CheckedDenoiser,
        kept: Tensor,
        clean: Tensor,
        parameterization: Parameterization,
        conditional: Denoiser | None = None,
    ) -> None:
        self.denoiser, self.kept, self.clean, self.conditional = denoiser, kept, clean, conditional
        self.parameterization: Parameterization = parameterization

    def __call__(self, x: Tensor, level: NoiseLevel, /) -> Tensor:
        correction = self._correction(x, level)  # before the prediction, so that its memory is free again
        prediction, rest = self.denoiser(x, level).tensor_split([x.shape[1]], dim=1)
        if correction is not None:
            x_0 = convert(prediction, x, level, self.parameterization, "x0") + correction
            prediction = convert(x_0, x, level, "x0", self.parameterization)
        right = convert(self.clean, x, level, "x0", self.parameterization)
        return torch.cat([torch.where(self.kept, right, prediction), rest], dim=1)

    def finish(self) -> None:
        self.denoiser.finish()

    def _correction(self, x: Tensor, level: NoiseLevel) -> Tensor | None:
        """What is added to the predicted x_0 of the frames that are made."""
        alpha, sigma = float(level.alpha), float(level.sigma)
        if self.conditional is None or not 0 < alpha < STEERED_BELOW * sigma:
            return None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            prediction = self.conditional(x, level)[:, : x.shape[1]]
            if not prediction.requires_grad:
                warn("the network gives no gradients: there may be a jump beside the frames that are kept")
                self.conditional = None
                return None
            x_0 = convert(prediction, x, level, self.parameterization, "x0")
            error = torch.where(self.kept, self.clean - x_0, 0)
            (gradient,) = torch.autograd.grad(error.square().sum() / 2, x)
        correction = torch.where(self.kept, 0, -(alpha**2 + sigma**2) / alpha * gradient)
        wrong, change = _mean_square(error.detach(), self.kept), _mean_square(correction, ~self.kept)
        return correction * (wrong / change.clamp_min(1e-12)).sqrt().clamp(max=1)


def hold(
    denoiser: CheckedDenoiser,
    kept: Sequence[Kept],
    knows: bool,
    parameterization: Parameterization,
    device: torch.device,
    conditional: Denoiser | None = None,
) -> tuple[CheckedDenoiser, FrameMask]:
    """A batch's denoiser and frame mask.

    Args:
        denoiser: predicts all frames.
        kept: the frames that each clip keeps.
        knows: whether the network is told which frames are kept.
        parameterization: what the denoiser predicts.
        device: where sampling runs.
        conditional: the prediction without guidance; see ``HeldFrames``.
    """
    made, clean = _stacked(kept, device)
    if knows:
        return denoiser, FrameMask(made, clean)
    held = made == 0
    frames = FrameMask(torch.where(held, 1, made), clean, replace=True)
    steering = conditional if bool(held.any()) else None
    return HeldFrames(denoiser, per_frame(held), clean, parameterization, steering), frames


def _mean_square(values: Tensor, of: Tensor) -> Tensor:
    """The mean square of each clip's values (B, C, T, h, w) in some of its frames, (B, 1, 1, 1, 1); 0 without any."""
    count = of.expand_as(values).sum((1, 2, 3, 4), keepdim=True)
    return torch.where(of, values, 0).square().sum((1, 2, 3, 4), keepdim=True) / count.clamp_min(1)


def put_back(latents: Tensor, kept: Sequence[Kept]) -> Tensor:
    """Latents (B, C, T, h, w) with the frames that are kept as they were: the last step may change them a little."""
    made, clean = _stacked(kept, latents.device)
    return torch.where(per_frame(made == 0), clean, latents)


def _stacked(kept: Sequence[Kept], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) and (B, C, T, h, w)."""
    return torch.stack([each.made for each in kept]).to(device), torch.stack([each.clean for each in kept]).to(device)


def encode(
    stage: Stage[[], Autoencoder], clips: Iterable[np.ndarray], size: Sequence[int], device: torch.device
) -> list[Tensor]:
    """The scaled latents (C, T, h, w) of pictures and videos, each encoded alone, in fp32 on the CPU.

    Args:
        stage: the autoencoder.
        clips: uint8 (time, height, width, 3) each; they are resized to fill the size.
        size: height and width in pixels.
        device: where the autoencoder is.

    Raises:
        InputError: the autoencoder gives numbers that are not finite, or memory is full.
    """
    found: list[Tensor] = []
    with stage.in_use() as vae:
        for frames in clips:
            x = torch.from_numpy(np.require(resize_to_fill(frames, size[0], size[1]), requirements=["C", "W"])).to(
                device
            )
            latents = attempt(partial(vae.encode, x.permute(3, 0, 1, 2)[None].float() / 127.5 - 1))
            if latents is None:
                raise InputError(
                    f"the memory of {device} is full where a reference is encoded: lower {setting('size')}, or give a "
                    "shorter one"
                )
            if not bool(latents.isfinite().all()):
                raise InputError(
                    "the autoencoder gave numbers that are not finite for a reference: look at its weights"
                )
            found.append(latents[0].float().cpu())
        del vae  # so that its stage can free it
    return found


def place(
    placements: Sequence[Placement],
    *,
    loop: int,
    references: Sequence[Tensor],
    shape: Sequence[int],
    align: int | None,
) -> Kept:
    """The frames that placements put into a clip.

    Args:
        placements: those of all loops.
        loop: which clip.
        references: latents (C, T, h, w).
        shape: (C, T, h, w) of the clip's latents.
        align: what placements are aligned to.

    Raises:
        InputError: one does not fit.
    """
    made, clean = torch.ones(shape[1]), torch.zeros(tuple(shape))
    for each in place_all(placements, loop, [ref.shape[1] for ref in references], shape[1], align):
        put = slice(each.target, each.target + each.length)
        clean[:, put] = references[each.reference][:, each.start : each.start + each.length]
        made[put] = each.edit
    return Kept(made, clean)


class Keeper:
    """The frames that the clips of a run keep, loop by loop.

    Args:
        conditioning: what the request says.
        clip: what is known of the model.
        shape: (C, T, h, w) of a clip's latents.
        size: height and width in pixels that references are resized to.
        stage: the autoencoder.
        device: where it is.

    Raises:
        InputError: a file is not there, cannot be read, or has other content.
    """

    def __init__(
        self,
        conditioning: Conditioning,
        clip: ClipShape,
        shape: Sequence[int],
        size: Sequence[int],
        stage: Stage[[], Autoencoder],
        device: torch.device,
        given: Any = None,
        folders: Sequence[Path] = (),
    ) -> None:
        self.conditioning, self.clip, self.shape = conditioning, clip, shape
        count = len(conditioning.references)
        # counted from the beginning: the references of a further loop have another one at their end
        self.placements = [each.among(count) for each in parse_placements(conditioning.strategy)]
        self.encode = partial(encode, stage, device=device)
        found = list(find_references(conditioning, frames_by_hash(given), folders))
        self.references = self.encode(found, size) if found else []
        self.before: list[Tensor] = []
        """The latents of the last frames of each clip of the loop before."""

    def of_loop(self, loop: int, clips: int) -> list[Kept]:
        """The frames that each of so many clips keeps in a loop."""
        put = partial(place, loop=loop, shape=self.shape, align=self.clip.align)
        if not self.before:
            return [put(self.placements, references=self.references)] * clips
        edit = self.conditioning.condition_edit
        taken = Placement(loop, len(self.references), 0, 0, self.before[0].shape[1], edit)
        return [put([*self.placements, taken], references=[*self.references, last]) for last in self.before]

    def take(self, clips: Sequence[np.ndarray]) -> None:
        """Let the next loop begin with the last frames of these clips, uint8 (time, height, width, 3) each."""
        last = [frames[-(self.conditioning.condition_frames or 0) :] for frames in clips]
        self.before = self.encode(last, last[0].shape[1:3])


def frames_by_hash(given: Any) -> Mapping[str, np.ndarray]:
    """Frames that a caller gives in place of files, by their hash.

    Raises:
        InputError: they are no list of arrays or images.
    """
    if given is None:
        return {}
    if not isinstance(given, list | tuple):
        raise InputError(f"reference_frames is {quoted(given)}: give a list of the frames that the clip was made with")
    found = [read_frames(each, "reference_frames") for each in given]
    return {each.sha256: each.frames for each in found}
