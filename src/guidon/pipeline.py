"""Prompt to video, top to bottom: encode, guide, sample, decode."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .core.devices import pick_device
from .core.errors import InputError, setting
from .core.progress import OnStep
from .core.settings import validated
from .diffusion import NoiseLevel
from .guidance import (
    UNSET,
    Guidance,
    GuidanceTrace,
    GuidedDenoiser,
    RotatedGuidance,
    cfg_channels_from,
    random_rotation,
)
from .media import Video
from .models.catalogue import find_preset
from .models.family import Network, Preset
from .models.model import Model, Sources, find_model
from .models.registry import replays
from .request import GUIDANCE_KEYS, Choices, Request
from .samplers import LegacyNoise, SampleNoise, replayed_noise, sample_ddim, sample_ddpm, sample_dpm_solver

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KEYWORDS = frozenset(Choices.__annotations__)
REMEMBERED = 16  # requests whose prompts are not encoded again: a study asks for the same ones at every setting


class Pipeline:
    """A text encoder, a network and an autoencoder, one after the other, with a preset's recommended settings.

    Args:
        preset: the settings of what a call leaves out.
        model: the three stages, and the diffusion that the network was trained for.
        device: where they run.
    """

    def __init__(self, preset: Preset, model: Model, device: torch.device) -> None:
        self.preset, self.model, self.device = preset, model, device
        self.channels, self.hashes = model.latent_shape[0], model.hashes
        self._encoded: dict[tuple[tuple[str, ...], str | None], Encoded] = {}

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num_samples: int = 1,
        batch_size: int = 8,
        sequential: bool = False,
        on_step: OnStep | None = None,
        trace: GuidanceTrace | None = None,
        **choices: Unpack[Choices],
    ) -> Video | list[Video]:
        """Videos of the prompts. One prompt and one sample give a Video, else a list with prompts outermost.

        Args:
            prompts: what to show; for a class-conditional model, the class numbers as text.
            num_samples: samples 0 to ``num_samples - 1`` of the seed, for each prompt.
            batch_size: how many clips are denoised together. It changes memory, not the samples, except with ``exact``.
            sequential: run guidance's branches one after the other, in half the memory.
            on_step: called as ``on_step(done, total)`` after every denoising step.
            trace: collects what guidance did. All the clips must then fit one batch.
            choices: the settings; see ``guidon.request.Choices``.

        Raises:
            InputError: a choice is not valid for this model; the message says what would be.
        """
        single = isinstance(prompts, str) and num_samples == 1
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        request = self.plan(texts, tuple(range(num_samples)), batch_size=batch_size, **choices)
        videos = self.generate(request, batch_size=batch_size, sequential=sequential, on_step=on_step, trace=trace)
        return videos[0] if single else videos

    def plan(
        self, prompts: Sequence[str], samples: Sequence[int] = (0,), *, batch_size: int = 8, **choices: Unpack[Choices]
    ) -> Request:
        """The complete, validated request: what was chosen, and the preset for the rest.

        Args:
            prompts: what to show.
            samples: sample indices.
            batch_size: as in a call.
            choices: the settings; see ``guidon.request.Choices``.

        Raises:
            InputError: a choice is not valid for this model.
        """
        values = {name: value for name, value in choices.items() if name not in GUIDANCE_KEYS}
        values = {name: value for name, value in values.items() if value is not None or name not in KEYWORDS}
        own = {name: getattr(self.preset, name) for name in ("sampler", "steps", "seed")}
        fixed = {"model": self.preset.name, "prompts": tuple(prompts), "samples": tuple(samples)}
        if choices.get("exact"):
            fixed["batch_size"] = min(batch_size, len(prompts) * len(samples))
        request = validated(Request, own | values | fixed | {"guidance": self._guidance(choices)}, None)
        self._check(request)
        return request

    def _guidance(self, choices: Choices) -> Guidance:
        """The guidance that was chosen; the preset's scale, channels and timing where nothing was."""
        given = choices.get("guidance")
        parts = [name for name in GUIDANCE_KEYS if name in choices and (choices[name] is not None or "cfg_ch" in name)]
        if isinstance(given, Guidance):
            if parts:
                raise InputError(f"{setting('guidance')} holds the {setting(parts[0])} already: leave one of them out")
            return given.resolved(self.channels)
        scale, timing = choices.get("cfg_scale"), choices.get("timing")
        scale = self.preset.cfg_scale if scale is None else scale
        channels = cfg_channels_from(choices)
        if channels is UNSET and not isinstance(scale, Sequence):
            channels = self.preset.cfg_channels
        timing = self.preset.timing if timing is None else timing
        return Guidance(scale, channels, given or "cfg", timing).resolved(self.channels)

    def _check(self, request: Request) -> None:
        """Refuse what this model cannot do.

        Raises:
            InputError: the replay, the steps or the size are not this model's.
        """
        originals = self.preset.originals
        if request.exact is not None and request.exact not in originals:
            valid = f"valid: {', '.join(originals)}" if originals else "leave it out"
            raise InputError(f"{self.preset.name} cannot replay {setting('exact')} {request.exact!r}; {valid}")
        self.model.schedule.respaced(str(request.steps))
        other = self.model.shape_for(self.preset, request.size, request.frames) != self.model.latent_shape
        if other and not self.preset.is_image:
            warnings.warn(
                f"{self.preset.name} was trained on another size or length: look at what it makes", stacklevel=3
            )

    @torch.inference_mode()
    def generate(
        self,
        request: Request,
        *,
        batch_size: int = 8,
        sequential: bool = False,
        on_step: OnStep | None = None,
        trace: GuidanceTrace | None = None,
    ) -> list[Video]:
        """The videos of a complete request, prompts outermost; the other arguments are those of a call.

        Raises:
            InputError: weights cannot be read or do not fit, a class is not in the model, or numbers overflow.
        """
        rows = [(prompt, sample) for prompt in range(len(request.prompts)) for sample in request.samples]
        batch_size = request.batch_size or batch_size
        if batch_size < 1:
            raise InputError(f"{setting('batch_size')} is {batch_size}: give at least 1")
        if trace is not None and len(rows) > batch_size:
            raise InputError(
                f"a trace needs its {len(rows)} clips in one batch: raise {setting('batch_size')} from {batch_size}"
            )
        # the prompts, all at once, so that the encoder can be dropped before the network is read
        captions = self._encode(request)
        self.model.vae.warm()  # the decoder is read while the first steps run
        # the latents, batch by batch
        batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
        replay = replayed_noise(request.seed, request.exact_noise, self.device) if request.exact else None
        latents: list[Tensor] = []
        guided = 0
        with self.model.network.in_use(DTYPES[request.dtype]) as network:
            for number, batch in enumerate(batches):
                report = _within(on_step, number * request.steps, len(batches) * request.steps)
                noise = replay or SampleNoise([request.seed_of(p) for p, _ in batch], [sample for _, sample in batch])
                run = self._sample(network, request, captions, [p for p, _ in batch], noise, sequential, report, trace)
                latents.append(run.latents)
                guided += run.guided_steps
        if not guided and not request.guidance.is_conditional:
            warnings.warn(
                f"no step was guided: the timing {request.guidance.timing.text} holds none of the "
                f"{request.steps} steps: widen it or take more steps",
                stacklevel=3,
            )
        # the frames
        if not all(bool(part.isfinite().all()) for part in latents):
            raise InputError(
                f"sampling gave numbers that are not finite ({request.sampler}, {request.steps} steps, "
                f"{request.dtype}): try more steps, a lower scale, or fp32"
            )
        with self.model.vae.in_use() as vae:
            frames = torch.cat([_to_frames(vae.decode(part.float())) for part in latents]).numpy()
        return [self._video(request, *row, clip) for row, clip in zip(rows, frames, strict=True)]

    def _encode(self, request: Request) -> Encoded:
        """All prompts, encoded together; kept for the next request of the same prompts."""
        key = request.prompts, request.negative_prompt
        if key not in self._encoded:
            with self.model.text.in_use() as text:
                negative = None if request.negative_prompt is None else Encoded(*text.encode([request.negative_prompt]))
                found = Encoded(*text.encode(request.prompts), negative)
            if len(self._encoded) >= REMEMBERED:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[key] = found
        return self._encoded[key]

    def _sample(
        self,
        network: Network,
        request: Request,
        captions: Encoded,
        prompts: Sequence[int],
        noise: LegacyNoise | SampleNoise,
        sequential: bool,
        on_step: OnStep | None,
        trace: GuidanceTrace | None,
    ) -> Run:
        """Captions to guided latents, one row a sample: the whole of guided sampling."""
        # the branches' conditions; the null caption is read under the prompts' mask, as in the originals
        features, mask = captions.rows(prompts, self.device)
        cond, negative = network.prepare(features, mask), None
        if captions.negative is not None:
            negative = network.prepare(*captions.negative.rows([0] * len(prompts), self.device))
        if negative is None or request.guidance.needs_negative:
            uncond = network.null(len(prompts), mask)
        else:
            uncond, negative = negative, None
        # the levels; dpm-solver chooses its own between those of the full schedule
        solver = request.sampler == "dpm-solver"
        schedule = self.model.schedule if solver else self.model.schedule.respaced(request.steps)
        # what an exact replay does otherwise
        replay = replays()[request.exact] if request.exact else None
        if replay and replay.single_precision:
            schedule = schedule.single_precision()
        x = noise.initial(self.model.shape_for(self.preset, request.size, request.frames), self.device, len(prompts))
        if replay and replay.noise_in_dtype:
            x = x.to(network.dtype).float()
        # guidance
        guidance, observe = request.guidance, trace
        if request.rotation is not None:
            rotation = random_rotation(self.channels, request.rotation).to(self.device)
            guidance = RotatedGuidance(request.guidance, rotation)
            observe = guidance.observer(trace) if trace is not None else None
        denoiser = GuidedDenoiser(
            _timesteps_rounded(network) if replay else network,
            guidance,
            cond,
            uncond,
            negative=negative,
            parameterization=self.model.process.parameterization,
            batched=not sequential,
            observe=observe,
        )
        # from noise to latents
        if solver:
            sample = partial(sample_dpm_solver, steps=request.steps)
        else:
            sample = partial(sample_ddim, eta=request.eta) if request.sampler == "ddim" else sample_ddpm
        latents = sample(denoiser, schedule, x, noise, process=self.model.process, on_step=on_step)
        return Run(latents, denoiser.memory.guided)

    def autoencode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) in [0, 1] through the autoencoder and back: the best that the model could show."""
        x = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None].to(self.device) * 2 - 1
        with self.model.vae.in_use() as vae:
            return ((vae.decode(vae.encode(x))[0] + 1) / 2).permute(1, 2, 3, 0).cpu().numpy()

    def _video(self, request: Request, prompt: int, sample: int, frames: np.ndarray) -> Video:
        manifest = {
            "guidon": __version__,
            "generation": request.alone(prompt, sample).model_dump(mode="json"),
            "weights": self.hashes,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "device": str(self.device),
            "fps": self.preset.fps,
            "frames": list(frames.shape),
        }
        return Video(frames, self.preset.fps, manifest)


@dataclass(frozen=True)
class Encoded:
    """Prompts as a network reads them."""

    features: Tensor
    """Token features (P, L, F), or class labels (P,)."""
    mask: Tensor | None
    """Which tokens count, (P, L)."""
    negative: Encoded | None = None
    """The one negative prompt; None where the network's null caption serves."""

    def rows(self, prompts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Features and mask of a batch, one row for each prompt number."""
        index = list(prompts)
        return self.features[index].to(device), None if self.mask is None else self.mask[index].to(device)


@dataclass(frozen=True)
class Run:
    """What one batch of sampling gave."""

    latents: Tensor
    """(B, C, ...)"""
    guided_steps: int
    """Steps at which guidance acted."""


def _timesteps_rounded(network: Network) -> Callable[[Tensor, NoiseLevel, Any], Tensor]:
    """The network as the originals call it: timesteps rounded to its precision, which matters above 256 in bf16."""

    def call(x: Tensor, level: NoiseLevel, condition: Any) -> Tensor:
        timestep = float(torch.tensor(level.timestep).to(network.dtype))
        return network(x, dataclasses.replace(level, timestep=timestep), condition)

    return call


def _to_frames(decoded: Tensor) -> Tensor:
    """Video (B, 3, T, H, W) or images (B, 3, H, W) in [-1, 1] to uint8 frames (B, T, H, W, 3) on the CPU."""
    if decoded.ndim == 4:
        decoded = decoded[:, :, None]
    return ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()


def _within(on_step: OnStep | None, before: int, total: int) -> OnStep | None:
    """The progress of one batch as progress of the whole request, of which ``before`` steps are done."""
    return on_step and (lambda done, _: on_step(before + done, total))


def load(
    model: str | Path = "guidon-small",
    *,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    text_encoder: str | Path | None = None,
    vae: str | Path | None = None,
    features: str | Path | None = None,
    text_dtype: str = "fp32",
    download: bool = False,
    offload: str | None = None,
) -> Pipeline:
    """The pipeline of a preset's name, or of a folder of weights.

    Args:
        model: a preset (``guidon models`` lists them), or a folder that ``guidon train`` wrote.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        checkpoint: the released weights of a preset that the package does not hold.
        text_encoder, vae: folders in hub layout.
        features: caption features kept by ``guidon encode``, in place of the text encoder.
        text_dtype: precision of T5: "fp32" as in Open-Sora (19 GB), "bf16", "fp16" or "int8".
        download: fetch what is missing from the hub.
        offload: "stages" drops each stage after use, "none" keeps all of them. The model decides where it is left out.

    Raises:
        InputError: unknown name; weights missing, truncated, foreign or not finite; a device that is not there.
    """
    preset, place = find_preset(str(model)), pick_device(device)
    given = {"checkpoint": checkpoint, "text_encoder": text_encoder, "vae": vae, "features": features}
    given |= {"text_dtype": text_dtype, "download": download, "offload": offload}
    return Pipeline(preset, find_model(preset, validated(Sources, given, None), place), place)
