"""Prompt to video, top to bottom: encode, guide, sample, decode."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from .bridges.diffusers.networks import Frequencies, adopt
from .core.devices import pick_device
from .core.errors import InputError, setting
from .core.progress import OnStep, part_of
from .core.settings import validated
from .core.version import VERSION
from .diffusion import NoiseLevel
from .guidance import GuidanceTrace, GuidedDenoiser, RotatedGuidance, random_rotation
from .media import Video
from .models.catalogue import find_model, find_preset
from .models.family import Preset
from .models.model import Model
from .models.network import Network
from .models.registry import find_replay
from .models.sources import Sources
from .models.text.prompts import PromptMemory, Prompts
from .request import Choices, Request, latent_shape, make_request
from .samplers import LegacyNoise, SampleNoise, replayed_noise, sample_ddim, sample_ddpm, sample_dpm_solver

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Pipeline:
    """A text encoder, a network and an autoencoder, one after the other, with a preset's recommended settings.

    Args:
        preset: the settings of what a call leaves out.
        model: the three stages, and the diffusion that the network was trained for.
        device: where they run.
    """

    def __init__(self, preset: Preset[Any], model: Model, device: torch.device) -> None:
        self.preset, self.model, self.device = preset, model, device
        self.channels, self.hashes = model.latent_shape[0], model.hashes
        self._prompts = PromptMemory(model.text)

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
            sequential: run guidance's branches one after the other, in the memory of one branch.
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
        """The complete, validated request of some samples; the other arguments are those of a call.

        Raises:
            InputError: a choice is not valid for this model.
        """
        request = make_request(self.preset, self.model, prompts, samples, choices, batch_size)
        other = latent_shape(self.preset, self.model, request) != self.model.latent_shape
        if other and not self.preset.is_image:
            warnings.warn(
                f"{self.preset.name} was trained on another size or length: look at what it makes", stacklevel=2
            )
        return request

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
            InputError: weights cannot be read or do not fit, a class is not in the model, the clips of a trace do not
                fit one batch, or numbers overflow.
        """
        clips = [(prompt, sample) for prompt in range(len(request.prompts)) for sample in request.samples]
        batch_size = request.batch_size or batch_size
        if batch_size < 1:
            raise InputError(f"{setting('batch_size')} is {batch_size}: give at least 1")
        if trace is not None and len(clips) > batch_size:
            raise InputError(
                f"a trace needs its {len(clips)} clips in one batch: raise {setting('batch_size')} from {batch_size}"
            )
        prompts = self._prompts.encode(request.prompts, request.negative_prompt)
        if self.model.vae.keep:  # where stages are dropped after use, it waits for its turn
            self.model.vae.prepare_in_background()

        # latents, batch by batch
        batches = [clips[first : first + batch_size] for first in range(0, len(clips), batch_size)]
        replay = replayed_noise(request.seed, request.exact_noise, self.device) if request.exact else None
        latents: list[Tensor] = []
        guided = 0
        with self.model.network.in_use(DTYPES[request.dtype]) as network:
            for number, batch in enumerate(batches):
                numbers = [prompt for prompt, _ in batch]
                noise = replay or SampleNoise([request.seed_of(p) for p in numbers], [sample for _, sample in batch])
                report = part_of(on_step, number, len(batches))
                found, guided_steps = self._sample(network, request, prompts, numbers, noise, sequential, report, trace)
                latents.append(found)
                guided += guided_steps
            del network  # so that its stage can free it
        if not guided and not request.guidance.is_conditional:
            warnings.warn(
                f"no step was guided: none of the {request.steps} steps falls inside the timing "
                f"{request.guidance.timing.text}: widen it or take more steps",
                stacklevel=3,
            )
        if not all(bool(part.isfinite().all()) for part in latents):
            raise InputError(
                f"sampling gave numbers that are not finite ({request.sampler}, {request.steps} steps, "
                f"{request.dtype}): try more steps, a lower scale, or fp32"
            )

        # frames
        with self.model.vae.in_use() as vae:
            frames = torch.cat([_to_frames(vae.decode(part.float())) for part in latents]).numpy()
        return [self._video(request, *clip, pixels) for clip, pixels in zip(clips, frames, strict=True)]

    def _sample(
        self,
        network: Network[Any],
        request: Request,
        prompts: Prompts,
        numbers: Sequence[int],
        noise: LegacyNoise | SampleNoise,
        sequential: bool,
        on_step: OnStep | None,
        trace: GuidanceTrace | None,
    ) -> tuple[Tensor, int]:
        """Sample one batch: latents (B, C, ...), and the number of steps at which guidance acted."""
        # the conditions of the branches; the null caption is read under the prompts' mask, as in the originals
        features, mask = prompts.rows(numbers, self.device)
        cond, negative = network.prepare(features, mask), None
        if prompts.negative is not None:
            negative = network.prepare(*prompts.negative.rows([0] * len(numbers), self.device))
        if request.guidance.is_conditional:
            uncond = None
        elif negative is None or request.guidance.needs_negative:
            uncond = network.null(len(numbers), mask)
        else:
            uncond, negative = negative, None

        # guidance, in a study's rotated channels if asked
        guidance, observe = request.guidance, trace
        if request.rotation is not None:
            guidance = RotatedGuidance(guidance, random_rotation(self.channels, request.rotation).to(self.device))
            observe = guidance.observer(trace) if trace is not None else None

        # the noise levels and the noise to start from; an exact replay has its own precisions
        solver = request.sampler == "dpm-solver"  # it chooses its levels between those of the full schedule
        schedule = self.model.schedule if solver else self.model.schedule.respaced(request.steps)
        shape = latent_shape(self.preset, self.model, request, network.latent_shape)
        x = noise.initial(shape, self.device, len(numbers))
        called = network
        if request.exact:
            exact = find_replay(request.exact)
            schedule = schedule.single_precision() if exact.single_precision else schedule
            x = x.to(network.dtype).float() if exact.noise_in_dtype else x
            called = _with_rounded_timesteps(network)

        # from noise to latents
        denoiser = GuidedDenoiser(
            called, guidance, cond, uncond, negative=negative, batched=not sequential, observe=observe,
            parameterization=self.model.process.parameterization,
        )  # fmt: skip
        if solver:
            sample = partial(sample_dpm_solver, steps=request.steps)
        else:
            sample = partial(sample_ddim, eta=request.eta) if request.sampler == "ddim" else sample_ddpm
        latents = sample(denoiser, schedule, x, noise, process=self.model.process, on_step=on_step)
        return latents, denoiser.memory.guided

    def autoencode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) in [0, 1] through the autoencoder and back: the best that the model could show."""
        x = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None].to(self.device) * 2 - 1
        with self.model.vae.in_use() as vae:
            return ((vae.decode(vae.encode(x))[0] + 1) / 2).permute(1, 2, 3, 0).cpu().numpy()

    def _video(self, request: Request, prompt: int, sample: int, frames: np.ndarray) -> Video:
        manifest = {
            "guidon": VERSION,
            "generation": request.alone(prompt, sample).model_dump(mode="json"),
            "weights": self.hashes,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "device": str(self.device),
            "fps": self.preset.fps,
            "frames": list(frames.shape),
        }
        return Video(frames, self.preset.fps, manifest)


def _with_rounded_timesteps(network: Network[Any]) -> Callable[[Tensor, NoiseLevel, Any], Tensor]:
    """The network as the originals call it: timesteps rounded to its precision, which matters above 256 in bf16."""

    def call(x: Tensor, level: NoiseLevel, condition: Any) -> Tensor:
        timestep = float(torch.as_tensor(level.timestep).to(network.dtype))
        return network(x, dataclasses.replace(level, timestep=timestep), condition)

    return call


def _to_frames(decoded: Tensor) -> Tensor:
    """Video (B, 3, T, H, W) or images (B, 3, H, W) in [-1, 1] to uint8 frames (B, T, H, W, 3) on the CPU."""
    if decoded.ndim == 4:
        decoded = decoded[:, :, None]
    return ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()


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


def from_diffusers(
    pipe: DiffusionPipeline, *, features: str | Path | None = None, frequencies: Frequencies = "original"
) -> Pipeline:
    """The pipeline of the weights in a diffusers pipeline: Guidon's network, samplers and guidance on the same tensors.

    ``guidon.from_diffusers(DiTPipeline.from_pretrained("facebook/DiT-XL-2-256"))("white shark", cfg_channels=3)``

    Device, precision, autoencoder, text encoder and class names are the pipeline's. Weights are shared with it, except
    for the attention projections, which are copied joined. If you change the weights, call this function again.

    Args:
        pipe: a DiTPipeline, PixArtAlphaPipeline or PixArtSigmaPipeline, or one with the same parts.
        features: caption features kept by ``guidon encode``, in place of the text encoder.
        frequencies: those of DiT's timestep embedding, "original" or "diffusers". The released weights were trained
            with the original ones, which diffusers does not use; weights that were trained in diffusers need its own.

    Raises:
        InputError: the pipeline is of another family, or one of its parts is missing or unsuitable.
    """
    adopted = adopt(pipe, features=None if features is None else Path(features), frequencies=frequencies)
    return Pipeline(adopted.preset, adopted.model, adopted.device)
