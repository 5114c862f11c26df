"""Prompt to video, top to bottom: encode, guide, sample, decode."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from .bridges.diffusers.networks import Frequencies, adopt
from .core.devices import cpu_threads, pick_device
from .core.errors import InputError, setting
from .core.limits import attempt
from .core.progress import OnStep, part_of
from .core.settings import validated
from .core.version import VERSION
from .core.warn import warn
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
from .models.vae import Autoencoder
from .request import Choices, Computation, Request, latent_shape, make_request, require_room
from .samplers import LegacyNoise, SampleNoise, replayed_noise, sample_ddim, sample_ddpm, sample_dpm_solver

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class _Denoised:
    """The latents of one clip, and how they were computed."""

    latent: Tensor
    """(1, C, ...)."""
    batch: int
    """Rows of its batch."""
    sequential: bool
    """Whether the branches ran one after the other."""


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
            batch_size: how many clips are denoised together. It changes memory, and pixels by at most 1/255; with
                ``exact`` it decides the samples.
            sequential: run guidance's branches one after the other, in the memory of one branch.
            on_step: called as ``on_step(done, total)`` after every denoising step.
            trace: collects what guidance did. All the clips must then fit one batch.
            choices: the settings; see ``guidon.request.Choices``.

        Raises:
            InputError: a choice is not valid for this model, or the clips need more memory than there is.
        """
        single = isinstance(prompts, str) and num_samples == 1
        texts = (prompts,) if isinstance(prompts, str) else prompts
        request = self.plan(texts, range(num_samples), batch_size=batch_size, **choices)
        videos = self.generate(request, batch_size=batch_size, sequential=sequential, on_step=on_step, trace=trace)
        return videos[0] if single else videos

    def plan(
        self, prompts: Sequence[str], samples: Sequence[int] = (0,), *, batch_size: int = 8, **choices: Unpack[Choices]
    ) -> Request:
        """The complete, validated request of some samples; the other arguments are those of a call.

        Raises:
            InputError: a choice is not valid for this model.
        """
        request = make_request(self.preset, self.model, prompts, samples, choices, batch_size, self.device)
        other = latent_shape(self.preset, self.model, request) != self.model.latent_shape
        if other and not self.preset.is_image:
            warn(f"{self.preset.name} was trained on another size or length: look at what it makes")
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
        like: Computation | None = None,
    ) -> list[Video]:
        """The videos of a complete request, prompts outermost; most arguments are those of a call.

        Where memory runs out, clips are denoised in smaller batches, then one branch after the other, then fewer frames
        are decoded at a time. A warning says so, and the manifests.

        Args:
            request: what to make.
            like: how the clip of the request was computed before, from its manifest. It is then computed in the same
                way, which gives the same bits. ``batch_size`` and ``sequential`` have no effect.

        Raises:
            InputError: weights cannot be read or do not fit, a class is not in the model, the clips of a trace do not
                fit one batch, numbers overflow, or there is not enough memory.
        """
        # what is asked for, and whether there is room for it
        count = len(request.prompts) * len(request.samples)
        batch_size = request.batch_size or (batch_size if like is None else like.batch)
        if batch_size < 1:
            raise InputError(f"{setting('batch_size')} is {batch_size}: give at least 1")
        require_room(self.model, latent_shape(self.preset, self.model, request), count, batch_size, self.device)
        if trace is not None and count > batch_size:
            raise InputError(
                f"a trace needs its {count} clips in one batch: raise {setting('batch_size')} from {batch_size}"
            )
        if like is None:
            like = Computation(batch=min(batch_size, count), sequential=sequential)
        clips = [(prompt, sample) for prompt in range(len(request.prompts)) for sample in request.samples]
        prompts = self._prompts.encode(request.prompts, request.negative_prompt)
        if self.model.vae.keep:  # where stages are dropped after use, it waits for its turn
            self.model.vae.prepare_in_background()

        # latents, then frames
        with nullcontext() if like.threads is None else cpu_threads(like.threads):
            denoised, size = self._denoise(request, prompts, clips, like, on_step, trace)
            frames, micro_batch = self._decode([clip.latent for clip in denoised], like.micro_batch)
            threads = torch.get_num_threads()
        found = [
            Computation(batch=clip.batch, sequential=clip.sequential, micro_batch=micro_batch, threads=threads)
            for clip in denoised
        ]
        _warn_of_fallback(like, size, found, request.closeness)
        return [self._video(request, *made) for made in zip(clips, frames, found, strict=True)]

    def _denoise(
        self,
        request: Request,
        prompts: Prompts,
        clips: Sequence[tuple[int, int]],
        like: Computation,
        on_step: OnStep | None,
        trace: GuidanceTrace | None,
    ) -> tuple[list[_Denoised], int]:
        """The latents of clips (prompt, sample), batch by batch, and the size of the last batches.

        Where memory runs out, it goes on in a way that needs less.
        """
        # A clip that was made beside others is made beside copies of itself: the number of rows alone decides the bits.
        copies = like.batch if len(clips) == 1 and request.exact is None and trace is None else 1
        size = request.batch_size or like.batch
        sequential, empty_trace = like.sequential, trace is not None and not len(trace)
        waiting, done, guided = list(clips), list[_Denoised](), 0
        replay = self._replay(request)
        with self.model.network.in_use(DTYPES[request.dtype]) as network:
            while waiting:
                batch = waiting[:size] * copies
                numbers = [prompt for prompt, _ in batch]
                noise = replay or SampleNoise([request.seed_of(p) for p in numbers], [sample for _, sample in batch])
                before, after = -(-len(done) // size), -(-len(waiting) // size)  # batches that are done, and to do
                report = part_of(on_step, before, before + after)
                found = attempt(
                    partial(self._sample, network, request, prompts, numbers, noise, sequential, report, trace)
                )
                if found is not None:
                    latents, guided_steps = found
                    done += [_Denoised(each[None], len(batch), sequential) for each in latents[: len(batch) // copies]]
                    guided, waiting = guided + guided_steps, waiting[size:]
                    continue
                # Memory ran out: do it again with fewer rows, then with one branch at a time.
                if trace is not None and empty_trace:
                    trace.forget()
                if len(batch) > 1 and request.exact is None and trace is None:
                    size, copies = max(1, len(batch) // copies // 2), 1
                elif not sequential and not request.guidance.is_conditional:
                    sequential = True
                    if replay is not None:  # its noise goes on from batch to batch: begin again
                        waiting, done, replay = list(clips), [], self._replay(request)
                else:
                    rows = "one clip" if len(batch) == 1 else f"{len(batch)} clips, which must be one batch,"
                    raise InputError(
                        f"the memory of {self.device} is full where {rows} and one branch is denoised at a time: lower "
                        f"{setting('size')} or {setting('frames')}, or free memory"
                    )
            del network  # so that its stage can free it
        if not guided and not request.guidance.is_conditional:
            warn(
                f"no step was guided: none of the {request.steps} steps falls inside the timing "
                f"{request.guidance.timing.text}: widen it or take more steps"
            )
        if not all(bool(clip.latent.isfinite().all()) for clip in done):
            raise InputError(
                f"sampling gave numbers that are not finite ({request.sampler}, {request.steps} steps, "
                f"{request.dtype}): try more steps, a lower scale, or fp32"
            )
        return done, size

    def _replay(self, request: Request) -> LegacyNoise | None:
        """The noise of an exact replay, from its beginning."""
        return replayed_noise(request.seed, request.exact_noise, self.device) if request.exact else None

    def _decode(self, latents: Sequence[Tensor], micro_batch: int) -> tuple[list[np.ndarray], int]:
        """The frames of clips, each decoded alone, and how many frames were decoded together at the least."""
        frames: list[np.ndarray] = []
        with self.model.vae.in_use() as vae:
            while len(frames) < len(latents):
                latent = latents[len(frames)].float()
                decoded = attempt(partial(_decode_clip, vae, latent, micro_batch))
                if decoded is not None:
                    frames.append(decoded)
                elif micro_batch > 1:
                    micro_batch = max(1, min(micro_batch, latent.shape[2] if latent.ndim == 5 else 1) // 2)
                else:
                    raise InputError(
                        f"the memory of {self.device} is full even where one frame is decoded at a time: lower "
                        f"{setting('size')} or {setting('frames')}, or free memory"
                    )
            del vae  # so that its stage can free it
        return frames, micro_batch

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
            parameterization=self.model.process.parameterization, steps=request.steps,
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

    def _video(self, request: Request, clip: tuple[int, int], frames: np.ndarray, computed: Computation) -> Video:
        manifest = {
            "guidon": VERSION,
            "generation": request.alone(*clip).model_dump(mode="json"),
            "computed": computed.model_dump(mode="json"),
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


def _decode_clip(vae: Autoencoder, latent: Tensor, micro_batch: int) -> np.ndarray:
    """The latents of one clip (1, C, T, h, w), or image (1, C, h, w), to uint8 frames (T, H, W, 3)."""
    decoded = vae.decode(latent, micro_batch)[0]
    if not bool(decoded.isfinite().all()):
        raise InputError("the autoencoder gave numbers that are not finite: look at its weights, or lower the scale")
    if decoded.ndim == 3:
        decoded = decoded[:, None]
    parts = [((part + 1) * 127.5).round().to(torch.uint8).cpu() for part in decoded.split(micro_batch, dim=1)]
    return torch.cat(parts, dim=1).permute(1, 2, 3, 0).numpy()


def _warn_of_fallback(asked: Computation, size: int, found: Sequence[Computation], closeness: str) -> None:
    """Say in one line how the clips were computed, if memory was too small for what was asked."""
    changes: list[str] = []
    if size < asked.batch:
        changes.append(f"{size} denoised together in place of {asked.batch}")
    if any(clip.sequential for clip in found) and not asked.sequential:
        changes.append("one branch after the other")
    if found[0].micro_batch < asked.micro_batch:
        changes.append(f"{found[0].micro_batch} frames decoded at a time")
    if changes:
        warn(
            f"memory ran out, so the clips were made in smaller parts: {', '.join(changes)}; they are the same up to "
            f"{closeness}"
        )


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
