"""Prompt to video, top to bottom: encode, guide, sample, decode."""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .core.errors import InputError
from .core.settings import validated
from .guidance import (
    ChannelScale,
    GuidanceTrace,
    GuidedDenoiser,
    Unset,
    cfg_channels_from,
    parse_rule,
    parse_timing,
    random_rotation,
)
from .media.files import save_video
from .models.catalogue import Preset, find_preset
from .models.model import Model, Sources, find_model
from .request import EXACT, Generation
from .samplers import CudaGenerator, LegacyNoise, SampleNoise, sample_ddim, sample_ddpm, sample_dpm_solver
from .samplers.philox import BLOCKS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REMEMBERED = 16  # calls whose prompts are not encoded again; a study asks for the same ones at every setting
DECODER_LIBRARY = "diffusers.models.autoencoders.autoencoder_kl"
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Video:
    """One generated clip and all that made it. ``frames`` are uint8 (time, height, width, 3); an image has one."""

    frames: np.ndarray
    fps: float
    manifest: dict[str, Any]

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write the video, and beside it the JSON manifest that reproduces it (``guidon generate --from``)."""
        from .core.atomic import write_json

        path = Path(path)
        save_video(self.frames, path, self.fps, format)
        write_json(path.with_name(path.name + ".json"), self.manifest)
        return path


@dataclass(frozen=True)
class Encoded:
    """The prompts of a run for the network: features (P, L, F) or labels (P,), and their token mask (P, L).

    ``avoid`` is the one negative prompt; None leaves it to the network's null caption.
    """

    features: Tensor
    mask: Tensor | None
    avoid: Encoded | None = None

    def rows(self, prompts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Features and mask of a batch, one row for each number of a prompt."""
        index = list(prompts)
        return self.features[index].to(device), None if self.mask is None else self.mask[index].to(device)


class Pipeline:
    """A text encoder, a denoiser and its VAE, one after the other, with the preset's recommended settings as defaults.

    Args:
        preset: settings for what is not chosen.
        model: the three stages and the diffusion they were trained for.
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
        **choices: Any,
    ) -> Video | list[Video]:
        """Videos of the prompts; one prompt and one sample give a Video, else a list with prompts outermost.

        Args:
            prompts: what to show; of a class-conditional model, the class numbers as text.
            num_samples: samples 0 to ``num_samples - 1`` of the seed, for each prompt.
            batch_size: how many clips are denoised together; it changes memory, not the samples (with ``exact`` it
                does, as in the originals).
            sequential: guidance's two branches one after the other, in half the memory.
            on_step: called as ``on_step(done, total)`` after every denoising step.
            trace: collects what guidance did (only where all the clips fit one batch).
            choices: any field of ``Generation``: seed, seed_per_prompt, size, frames, steps, sampler, eta, cfg_scale,
                cfg_channels, rotation, guidance, timing, negative_prompt, dtype, exact, exact_noise; ``cfg_channel`` is
                Open-Sora's name for cfg_channels. What is left out is the preset's.

        Raises:
            InputError: a choice is not valid for this model; the message says what would be.
        """
        single = isinstance(prompts, str) and num_samples == 1
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        generation = self.plan(texts, tuple(range(num_samples)), batch_size=batch_size, **choices)
        videos = self.generate(generation, batch_size=batch_size, sequential=sequential, on_step=on_step, trace=trace)
        return videos[0] if single else videos

    def plan(
        self, prompts: Sequence[str], samples: Sequence[int] = (0,), *, batch_size: int = 8, **choices: Any
    ) -> Generation:
        """The complete, validated settings of a run: what was chosen, and the preset for the rest.

        Args are those of a call; ``samples`` are sample indices.

        Raises:
            InputError: a choice is not valid for this model.
        """
        given = {name: value for name, value in choices.items() if value is not None}
        chosen = cfg_channels_from(choices)
        given.pop("cfg_channel", None)
        if not isinstance(chosen, Unset):
            given["cfg_channels"] = chosen
        scale: Any = given.get("cfg_scale", self.preset.cfg_scale)
        if "cfg_channels" not in given and not isinstance(scale, Sequence):
            given["cfg_channels"] = self.preset.cfg_channels
        channels = {"cfg_channels": given["cfg_channels"]} if "cfg_channels" in given else {}
        parsed = ChannelScale.parse(scale, channels=self.channels, **channels)
        values = {
            "model": self.preset.name,
            "sampler": self.preset.sampler,
            "steps": self.preset.steps,
            "seed": self.preset.seed,
            "timing": self.preset.timing,
            **given,
            "cfg_scale": scale,
            "cfg_channels": parsed.text if "cfg_channels" in channels else "all",
            "prompts": tuple(prompts),
            "samples": tuple(samples),
        }
        if values.get("exact"):
            values["batch_size"] = min(batch_size, len(prompts) * len(samples))
        generation = validated(Generation, values, "generate")
        originals = self.preset.originals
        if generation.exact is not None and generation.exact not in originals:
            valid = f"valid: {', '.join(originals)}" if originals else "it has no original"
            raise InputError(f"{self.preset.name} is not of {generation.exact!r}, which --exact replays; {valid}")
        self.model.schedule.respaced(str(generation.steps))
        if (
            self._latent_shape(self.model.latent_shape, generation) != self.model.latent_shape
            and not self.preset.is_image
        ):
            warnings.warn(
                f"{self.preset.name} was trained on another size or length: look at what it makes", stacklevel=2
            )
        return generation

    def _latent_shape(self, made: tuple[int, ...], generation: Generation) -> tuple[int, ...]:
        """The latent (C, T, H, W) or (C, H, W) that a model was made for, with what was chosen in its place.

        Raises:
            InputError: the model does not take other sizes, or not this one.
        """
        unit, patch = self.model.downsampling, self.model.patch
        own = made[-2] * unit, made[-1] * unit
        for name in ("size", "frames"):
            if getattr(generation, name) is not None and name not in self.preset.sizes:
                only = f"{own[0]}x{own[1]}" if name == "size" else f"{made[1]} frames" if len(made) == 4 else "images"
                raise InputError(f"{self.preset.name} makes {only} only: leave out --{name}")
        height, width = generation.size or own
        sides = {"height": (height, patch[-2] * unit), "width": (width, patch[-1] * unit)}
        frames = (generation.frames or made[1],) if len(made) == 4 else ()
        for name, (length, grain) in (sides | ({"frames": (frames[0], patch[0])} if frames else {})).items():
            if length % grain:
                raise InputError(f"{name} {length} is no multiple of {grain}, as {self.preset.name} needs")
        return (made[0], *frames, height // unit, width // unit)

    @torch.inference_mode()
    def generate(
        self,
        generation: Generation,
        *,
        batch_size: int = 8,
        sequential: bool = False,
        on_step: OnStep | None = None,
        trace: GuidanceTrace | None = None,
    ) -> list[Video]:
        """The videos of a complete plan, prompts outermost; the other arguments are those of a call.

        Raises:
            InputError: weights cannot be read or do not fit, a class is not in the model, or numbers overflow.
        """
        rows = [(prompt, sample) for prompt in range(len(generation.prompts)) for sample in generation.samples]
        batch_size = generation.batch_size or batch_size
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give at least 1")
        if trace is not None and len(rows) > batch_size:
            raise InputError(f"a trace needs its {len(rows)} clips in one batch: raise batch_size from {batch_size}")
        captions = self._encode(generation)
        importing = threading.Thread(target=importlib.import_module, args=(DECODER_LIBRARY,))
        importing.start()  # it loads while the first steps run
        chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        legacy = LegacyNoise(2, self._legacy_generator(generation)) if generation.exact else None
        latents: list[Tensor] = []
        with self.model.network.in_use(DTYPES[generation.dtype]) as model:
            for number, chunk in enumerate(chunks):
                report = partial(_report, on_step, number * generation.steps, len(chunks) * generation.steps)
                prompts = [prompt for prompt, _ in chunk]
                noise = legacy or SampleNoise(
                    [_seed_of(generation, prompt) for prompt in prompts], [sample for _, sample in chunk]
                )
                latents.append(
                    self._denoise(model, generation, captions, prompts, noise, not sequential, report, trace)
                )
        importing.join()
        if not all(bool(part.isfinite().all()) for part in latents):
            raise InputError(
                f"sampling gave numbers that are not finite ({generation.sampler}, {generation.steps} steps, "
                f"{generation.dtype}): try more steps, a lower scale, or fp32"
            )
        with self.model.vae.in_use() as vae:
            frames = torch.cat([_to_frames(vae.decode(part.float())) for part in latents]).numpy()
        return [self._video(generation, *row, clip) for row, clip in zip(rows, frames, strict=True)]

    def _legacy_generator(self, generation: Generation) -> torch.Generator | CudaGenerator:
        """What the originals' global generator was, without touching ours."""
        if generation.exact_noise != "device":
            gpu = generation.exact_noise.removeprefix("cuda").removeprefix(":") or "a100"
            return CudaGenerator(generation.seed, BLOCKS[gpu])
        return torch.Generator(self.device).manual_seed(generation.seed)

    def _encode(self, generation: Generation) -> Encoded:
        """All prompts at once, so that the encoder can go before the denoiser comes; and once for all settings."""
        negative = generation.negative_prompt
        key = generation.prompts, negative
        if key not in self._encoded:
            with self.model.text.in_use() as text:
                avoid = None if negative is None else Encoded(*text.encode([negative]))
                found = Encoded(*text.encode(generation.prompts), avoid)
            if len(self._encoded) >= REMEMBERED:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[key] = found
        return self._encoded[key]

    def _denoise(
        self,
        model: Any,
        generation: Generation,
        captions: Encoded,
        prompts: Sequence[int],
        noise: LegacyNoise | SampleNoise,
        batched: bool,
        report: Callable[[int, int, Tensor], None],
        trace: GuidanceTrace | None,
    ) -> Tensor:
        """Captions to guided latents (B, C, ...), one row a sample: the whole of guided sampling."""
        features, mask = captions.rows(prompts, self.device)
        cond = model.prepare(features, mask)
        rule, negative = parse_rule(generation.guidance), None
        if captions.avoid is not None:
            negative = model.prepare(*captions.avoid.rows([0] * len(prompts), self.device))
        if (
            negative is None or rule.needs_negative
        ):  # as in the originals, the null caption is read under the prompts' mask
            uncond = model.null(len(prompts), mask)
        else:
            uncond, negative = negative, None
        solver = generation.sampler == "dpm-solver"  # it chooses its own times, between those of the full schedule
        schedule = self.model.schedule if solver else self.model.schedule.respaced(generation.steps)
        exact = generation.exact and EXACT[generation.exact]
        if exact and exact.single_precision:
            schedule = schedule.single_precision()
        network = partial(_in_whole_precision, model) if exact else model
        rotation = None
        if generation.rotation is not None:
            rotation = random_rotation(self.channels, generation.rotation).to(self.device)
        denoiser = GuidedDenoiser(
            network,
            cond,
            uncond,
            ChannelScale.parse(generation.cfg_scale, generation.cfg_channels, channels=self.channels),
            schedule,
            rule=rule,
            timing=parse_timing(generation.timing),
            batched=batched,
            trace=trace,
            negative=negative,
            parameterization=self.model.process.parameterization,
            rotation=rotation,
        )
        x = noise.initial(self._latent_shape(model.latent_shape, generation), self.device, len(prompts))
        if exact and exact.noise_in_dtype:
            x = x.to(model.dtype).float()
        if solver:
            sample = partial(sample_dpm_solver, steps=generation.steps)
        else:
            sample = partial(sample_ddim, eta=generation.eta) if generation.sampler == "ddim" else sample_ddpm
        latents = sample(denoiser, schedule, x, noise, process=self.model.process, on_step=report)
        if denoiser.idle:
            warnings.warn(
                f"no step was guided: guidance {generation.timing} holds none of the {generation.steps} steps: "
                "widen it or take more steps",
                stacklevel=4,
            )
        return latents

    def autoencode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) in [0, 1] through the VAE and back: the ceiling of what the model can show."""
        x = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None].to(self.device) * 2 - 1
        with self.model.vae.in_use() as vae:
            return ((vae.decode(vae.encode(x))[0] + 1) / 2).permute(1, 2, 3, 0).cpu().numpy()

    def _video(self, generation: Generation, prompt: int, sample: int, frames: np.ndarray) -> Video:
        only = generation
        if not generation.exact:  # there a sample depends on its batch mates, and only the whole run reproduces it
            own = {"prompts": (generation.prompts[prompt],), "samples": (sample,)}
            seed = {"seed": _seed_of(generation, prompt), "seed_per_prompt": False}
            only = generation.model_copy(update=own | seed)
        manifest = {
            "guidon": __version__,
            "generation": only.model_dump(mode="json"),
            "weights": self.hashes,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "device": str(self.device),
            "fps": self.preset.fps,
            "frames": list(frames.shape),
        }
        return Video(frames, self.preset.fps, manifest)


def _seed_of(generation: Generation, prompt: int) -> int:
    """The seed of the noise of a prompt's samples."""
    return generation.seed + (prompt if generation.seed_per_prompt else 0)


def _in_whole_precision(model: Any, x: Tensor, timestep: Tensor, condition: Any) -> Tensor:
    """The network as the originals call it: timesteps in its own precision, rounded above 256 in bf16."""
    return model(x, timestep.to(model.dtype), condition)


def _to_frames(decoded: Tensor) -> Tensor:
    """Video (B, 3, T, H, W) or images (B, 3, H, W) in [-1, 1] to uint8 frames (B, T, H, W, 3) on the CPU."""
    if decoded.ndim == 4:
        decoded = decoded[:, :, None]
    return ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()


def _report(on_step: OnStep | None, base: int, total: int, done: int, _steps: int, _x: Tensor) -> None:
    """A sampler's step as a step of the whole run, whose chunks before this one took ``base``."""
    if on_step:
        on_step(base + done, total)


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
    """The pipeline of a preset's name or of a folder of weights.

    Args:
        model: a preset (``guidon models`` lists them) or a folder that ``guidon train`` wrote.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        checkpoint: the released weights of a preset that the package does not hold.
        text_encoder, vae: folders in hub layout.
        features: caption features kept by ``guidon encode``, in place of the text encoder.
        text_dtype: precision of T5: "fp32" as in Open-Sora (19 GB), "bf16", "fp16" or "int8".
        download: fetch what is missing from the hub.
        offload: "stages" drops each stage after use (the default of released models), "none" keeps all.

    Raises:
        InputError: unknown name; weights missing, truncated, foreign or not finite; a device that is not there.
    """
    from .core.devices import pick_device

    preset, place = find_preset(str(model)), pick_device(device)
    given = {"checkpoint": checkpoint, "text_encoder": text_encoder, "vae": vae, "features": features}
    sources = Sources(
        **{name: Path(path) for name, path in given.items() if path is not None},
        text_dtype=text_dtype,
        download=download,
    )
    offload = offload or ("none" if preset.released is None else "stages")
    return Pipeline(preset, find_model(preset, sources, place, offload), place)
