"""The guidance spectrum: what guidance does in each latent channel, step and frame, and its effect on decoded video.

Energy and cosine are read from the trace of a sampling run. Influence is measured with the decoder: the latents are
moved a little in the direction in which guidance moves one channel at one step, and the change of the decoded video is
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import numpy as np

from ..core.atomic import atomic_path
from ..core.broadcasting import per_sample
from ..core.errors import InputError, setting
from ..core.extras import require
from ..core.progress import OnStep
from ..core.warn import warn
from ..guidance import guides_nothing
from ..request import Choices, Request

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline.contract import ModelPipeline

ASPECTS = {
    "luminance": "change of brightness, Rec. 709",
    "chroma": "change of the two colour differences, hue and saturation together",
    "structure": "change of the brightness gradient over space: edges",
    "motion": "change of the brightness difference of consecutive frames",
}
NUDGE = 0.05  # RMS of a channel's finite-difference step; latents have an RMS of about 1
LUMA = (0.2126, 0.7152, 0.0722)  # Rec. ITU-R BT.709
Decode: TypeAlias = "Callable[[Tensor], Tensor]"


@dataclass(frozen=True)
class Spectrum:
    """Measurements of guidance for P prompts, S guided steps, C channels and T frames (1 for an image)."""

    prompts: tuple[str, ...]
    weights: tuple[str, ...]
    """Each part of the model with the hash of its weights; an adapter is a part."""
    timestep: np.ndarray
    """(S,), original timesteps, falling."""
    scale: np.ndarray
    """(S, C), the guidance scale in effect."""
    difference: np.ndarray
    """(P, S, C, T), the norm of cond - uncond in the network's own parameterisation."""
    cosine: np.ndarray
    """(P, S, C, T), cos(cond - uncond, cond)."""
    looked_at: np.ndarray
    """(K,), the indices of the steps at which influence was measured."""
    moved: np.ndarray
    """(P, K, C), the RMS change of the channel's predicted x_0 per unit of scale."""
    gain: np.ndarray
    """(P, K, C, A), the change of each of ``ASPECTS`` in the decoded video per unit RMS of the channel.

    RMS over pixels of the change of intensities, clipped to [0, 1], in the direction in which guidance moves the
    channel. 0 if guidance does not move it; NaN for the motion of an image.
    """

    @property
    def influence(self) -> np.ndarray:
        """(P, K, C, A): the change of the video per unit of scale on a channel, if the step were the last one."""
        return self.gain * self.moved[..., None]

    @property
    def energy_share(self) -> np.ndarray:
        """(C,): each channel's share of the summed squared difference, averaged over the prompts that have any; NaN if
        none has."""
        energy = (self.difference**2).sum((1, 3))
        energy = energy[energy.sum(1) > 0]
        if not len(energy):
            return np.full(energy.shape[1], np.nan)
        return (energy / energy.sum(1, keepdims=True)).mean(0)

    def table(self) -> str:
        """A Markdown table, one row for each channel: share of energy, mean cosine, influence in 1/1000."""
        lines = [
            "| channel | energy | cosine with cond | " + " | ".join(ASPECTS) + " |",
            "|---" * (3 + len(ASPECTS)) + "|",
        ]
        with np.errstate(invalid="ignore"):
            seen = 1000 * self.influence.mean((0, 1))
        cosine = self.cosine.mean((0, 1, 3))
        for channel, share in enumerate(self.energy_share):
            values = " | ".join("undefined" if np.isnan(v) else f"{v:.1f}" for v in seen[channel])
            energy = "undefined" if np.isnan(share) else f"{100 * share:.0f}%"
            lines.append(f"| {channel} | {energy} | {cosine[channel]:+.2f} | {values} |")
        return "\n".join(lines)

    def write(self, out: Path) -> list[Path]:
        """Write spectrum.npz with all arrays, and spectrum.png."""
        arrays: dict[str, Any] = {name: np.array(getattr(self, name)) for name in self.__dataclass_fields__}
        with atomic_path(out / "spectrum.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, aspects=np.array(list(ASPECTS)), **arrays)
        return [out / "spectrum.npz", _draw(self, out / "spectrum.png")]


def check_spectrum(request: Request, channels: int, looks: int) -> None:
    """Refuse what cannot be measured. It needs neither the model's weights nor torch.

    Raises:
        InputError: the request guides nothing, or rotated channels, or no step is looked at.
    """
    if looks < 1:
        raise InputError(f"{setting('looks')} is {looks}: give at least 1 step at which influence is measured")
    if request.rotation is not None:
        raise InputError(
            f"{setting('rotation')} guides rotated channels, and the decoder's are not: the spectrum is of a latent's "
            "own channels, so leave it out"
        )
    if (scales := request.guidance.scales_for(channels)).is_identity:
        raise guides_nothing(scales, "measure")


def spectrum(
    pipe: ModelPipeline,
    prompts: str | Sequence[str],
    *,
    looks: int = 8,
    on_step: OnStep | None = None,
    force: bool = False,
    **choices: Unpack[Choices],
) -> Spectrum:
    """Sample each prompt once, and measure guidance by channel, step and frame.

    Args:
        pipe: any model, of Guidon or of diffusers (``guidon.load``, ``guidon.wrap``).
        prompts: the prompts, or one of them as a text.
        looks: number of steps, evenly spaced, at which influence is measured. Each costs two decoded clips per channel.
        on_step: called as ``on_step(done, total)`` after every denoising step, and after every look at a clip.
        force: sample prompts that the model cannot follow, too, with a warning.
        choices: see ``guidon.Choices``. All channels are measured, guided or not.

    Raises:
        InputError: a choice is not valid, or no step is guided.
    """
    from ..guidance import GuidanceTrace

    # Sample, and record a trace of guidance.
    prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    request = pipe.plan(prompts, force=force, **choices)
    check_spectrum(request, pipe.channels, looks)
    trace, report = GuidanceTrace(keep_x0=True), on_step or (lambda done, total: None)
    # How many steps are guided is known after sampling: the looks then share what was kept for them.
    sampling, looking = 0, min(looks, request.steps) * len(prompts)

    def on_sampled(done: int, total: int) -> None:
        nonlocal sampling
        sampling = total
        report(done, total + looking)

    pipe.generate(request, trace=trace, on_step=on_sampled)
    if not len(trace):
        raise InputError(
            f"{setting('timing')} {request.guidance.timing.text} guides none of the {request.steps} steps: widen it, "
            "or take more steps"
        )
    arrays = trace.as_arrays(by_frame=True)
    # Measure influence with the decoder at some of the steps.
    looked_at = np.unique(np.linspace(0, len(trace) - 1, looks).round().astype(int))
    cond, uncond = (branch.transpose(0, 1)[:, looked_at] for branch in trace.x0)  # (P, K, C, ...)
    if bool(cond.isfinite().all()):
        found = np.empty((*cond.shape[:3], len(ASPECTS)), np.float32)
        seen = list(np.ndindex(found.shape[:2]))  # prompts x looks
        with pipe.decoder(request) as decode:
            for done, at in enumerate(seen, 1):
                found[at] = gains(decode, cond[at], cond[at] - uncond[at])
                report(sampling + looking * done // len(seen), sampling + looking)
    else:  # a scheduler of diffusers whose noise levels are not known
        warn("the noise levels of the scheduler are not known, so that the influence on pixels is not measured")
        found = np.full((*cond.shape[:3], len(ASPECTS)), np.nan)
        report(sampling + looking, sampling + looking)
    return Spectrum(
        prompts=request.prompts,
        weights=tuple(f"{part} {digest}" for part, digest in pipe.hashes.items()),
        timestep=arrays["timestep"],
        scale=arrays["scale"],
        difference=arrays["difference"],
        cosine=arrays["cosine"],
        looked_at=looked_at,
        moved=(cond - uncond).flatten(3).square().mean(3).sqrt().numpy(),
        gain=found,
    )


def gains(decode: Decode, x0: Tensor, direction: Tensor) -> np.ndarray:
    """The change of the decoded video per unit RMS of each channel along a direction, by central differences.

    Args:
        decode: latents (B, C, ...) to video (B, 3, T, H, W) or images (B, 3, H, W) in [-1, 1].
        x0: latents (C, ...), the centre of the differences.
        direction: (C, ...). Each channel is moved alone, along its part of the direction, at an RMS of ``NUDGE``.

    Returns:
        (C, A), for each of ``ASPECTS``.
    """
    import torch

    channels = len(x0)
    size = direction.flatten(1).square().mean(1).sqrt()
    unit = direction / per_sample(size.clamp_min(1e-12), direction)
    steps = torch.zeros(channels, *x0.shape)
    for channel in range(channels):
        steps[channel, channel] = NUDGE * unit[channel]
    plus, minus = decode(torch.cat([x0 + steps, x0 - steps])).chunk(2)
    change = (plus - minus) / 2 / (2 * NUDGE)  # intensities in [0, 1]: half the range of the decoder's
    change = change if change.ndim == 5 else change[:, :, None]
    return _aspects(change).numpy()


def _aspects(change: Tensor) -> Tensor:
    """The RMS of a change of RGB (B, 3, T, H, W) in each of ``ASPECTS``: (B, A)."""
    import torch

    luma = torch.einsum("bcthw,c->bthw", change, torch.tensor(LUMA))
    blue, red = (change[:, 2] - luma) / 1.8556, (change[:, 0] - luma) / 1.5748  # Cb and Cr of Rec. 709
    edges = luma.diff(dim=2).square().flatten(1).mean(1) + luma.diff(dim=3).square().flatten(1).mean(1)
    moving = luma.diff(dim=1).square().flatten(1)
    motion = moving.mean(1) if moving.shape[1] else torch.full((len(change),), torch.nan)
    squares = [luma.square().flatten(1).mean(1), (blue**2 + red**2).flatten(1).mean(1), edges, motion]
    return torch.stack(squares, 1).sqrt()


def _draw(found: Spectrum, path: Path) -> Path:
    """Energy over channel x step and channel x frame, the cosine, and influence over the measured steps."""
    channels = range(found.difference.shape[2])
    figure = require("matplotlib.figure", "drawing", "study").Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots(2, 4)
    _draw_maps(found, figure, axes[0])
    # Share of energy of each channel.
    axes[0][3].bar(channels, 100 * found.energy_share, color=[f"C{c}" for c in channels])
    axes[0][3].set(title="share of energy, %", xlabel="latent channel", xticks=channels)
    # Influence, one panel for each aspect.
    influence = found.influence.mean(0)  # (K, C, A)
    for number, (axis, aspect) in enumerate(zip(axes[1], ASPECTS, strict=True)):
        for channel in channels:
            axis.plot(found.timestep[found.looked_at], influence[:, channel, number], marker=".", label=str(channel))
        axis.set(title=f"influence on {aspect}", xlabel="timestep")
        axis.invert_xaxis()
        axis.set_ylim(bottom=0)
    axes[1][0].set_ylabel("RMS intensity per unit of scale")
    axes[1][0].legend(title="channel", fontsize=7, title_fontsize=7)
    for axis in figure.axes:
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_fontsize(8)
        axis.yaxis.label.set_fontsize(8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    return path


def _draw_maps(found: Spectrum, figure: Any, axes: Any) -> None:
    """Energy by step and by frame, and the cosine, as colours on the axes of a matplotlib figure."""
    steps = [f"{t:.0f}" for t in found.timestep]
    maps = (
        ("energy: mean norm of cond - uncond", (found.difference**2).sum(3).mean(0).T ** 0.5, "timestep", "viridis"),
        ("energy of each frame", (found.difference**2).mean((0, 1)) ** 0.5, "frame", "viridis"),
        ("cosine of cond - uncond with cond", found.cosine.mean((0, 3)).T, "timestep", "RdBu_r"),
    )
    for axis, (title, values, across, colours) in zip(axes, maps, strict=False):
        limit = float(np.abs(values).max())
        low = -limit if colours == "RdBu_r" else 0
        shown = axis.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=limit or 1)
        axis.set(title=title, xlabel=across, ylabel="latent channel", yticks=range(len(values)))
        columns = values.shape[1]
        ticks = np.unique(np.linspace(0, columns - 1, 5).round().astype(int))
        axis.set_xticks(ticks, [steps[k] if across == "timestep" else str(k) for k in ticks])
        figure.colorbar(shown, ax=axis)
