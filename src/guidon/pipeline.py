"""Prompt to video, top to bottom: encode, guide, sample, decode."""

from __future__ import annotations

import copy
import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import __version__
from .checkpoints import DIFFUSION, Component, load_component, load_weights
from .diffusion import NoiseSchedule, Process
from .errors import InputError
from .generation import Generation
from .guidance import ChannelScale, GuidanceTrace, GuidedDenoiser, parse_timing
from .guidance.rules import RULES
from .models.stdit import STDiT, STDiTConfig
from .models.text import CaptionEncoder, CaptionEncoderConfig, TextEncoder
from .models.vae import FrameVAE, FrameVAEConfig
from .presets import Preset, find_preset
from .samplers import SampleNoise, sample_ddim, sample_ddpm, sample_dpm_solver
from .settings import validated
from .video import save_video

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DECODER_LIBRARY = "diffusers.models.autoencoders.autoencoder_kl"
OnStep = Callable[[int, int], None]
Encoded = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Video:
    """One generated clip and all that made it. ``frames`` are uint8 (time, height, width, 3)."""

    frames: np.ndarray
    fps: float
    manifest: dict[str, Any]

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write the video, and beside it the JSON manifest that reproduces it (``guidon generate --from``)."""
        from .atomic import write_json

        path = Path(path)
        save_video(self.frames, path, self.fps, format)
        write_json(path.with_name(path.name + ".json"), self.manifest)
        return path


class Pipeline:
    """A denoiser, its text encoder and its VAE, with the preset's recommended settings as defaults."""

    def __init__(
        self,
        preset: Preset,
        model: STDiT,
        text: TextEncoder,
        vae: Component,
        schedule: NoiseSchedule,
        process: Process,
        device: torch.device,
        hashes: dict[str, str],
    ) -> None:
        self.preset, self.model, self.text, self._vae, self.schedule = preset, model, text, vae, schedule
        self.process, self.device, self.hashes = process, device, hashes
        self._converted: dict[str, STDiT] = {}
        self.channels = model.config.in_channels

    @cached_property
    def vae(self) -> FrameVAE:
        """The autoencoder, built when frames are first wanted: what it needs takes seconds to import."""
        vae = FrameVAE(self._vae.configure(FrameVAEConfig))
        load_weights(vae, self._vae)
        return vae.to(self.device).eval()

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        num_samples: int = 1,
        batch_size: int = 8,
        on_step: OnStep | None = None,
        trace: GuidanceTrace | None = None,
        **choices: Any,
    ) -> Video | list[Video]:
        """Videos of the prompts; one prompt and one sample give a Video, else a list with prompts outermost.

        Args:
            prompts: what to show.
            num_samples: samples 0 to ``num_samples - 1`` of the seed, for each prompt.
            batch_size: how many clips are denoised together; it changes memory, not the samples.
            on_step: called as ``on_step(done, total)`` after every denoising step.
            trace: collects what guidance did (only where all the clips fit one batch).
            choices: any field of ``Generation``: seed, steps, sampler, eta, cfg_scale, cfg_channels,
                guidance, timing, negative_prompt, dtype. What is left out is the preset's.

        Raises:
            InputError: a choice is not valid for this model; the message says what would be.
        """
        single = isinstance(prompts, str) and num_samples == 1
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        generation = self.plan(texts, tuple(range(num_samples)), **choices)
        videos = self.generate(generation, batch_size=batch_size, on_step=on_step, trace=trace)
        return videos[0] if single else videos

    def plan(self, prompts: Sequence[str], samples: Sequence[int] = (0,), **choices: Any) -> Generation:
        """The complete, validated settings of a run: what was chosen, and the preset for the rest."""
        given = {name: value for name, value in choices.items() if value is not None or name == "cfg_channels"}
        if "cfg_channel" in given:
            given["cfg_channels"] = given.pop("cfg_channel")
        scale: Any = given.get("cfg_scale", self.preset.cfg_scale)
        if "cfg_channels" not in given and isinstance(scale, int | float):
            given["cfg_channels"] = self.preset.cfg_channels
        channels = {"cfg_channels": given["cfg_channels"]} if "cfg_channels" in given else {}
        parsed = ChannelScale.parse(scale, channels=self.channels, **channels)
        values = {
            "model": self.preset.name,
            "sampler": self.preset.sampler,
            "steps": self.preset.steps,
            **given,
            "cfg_scale": scale,
            "cfg_channels": parsed.text if "cfg_channels" in channels else "all",
            "prompts": tuple(prompts),
            "samples": tuple(samples),
        }
        generation = validated(Generation, values, "generate")
        self.schedule.respaced(str(generation.steps))
        parse_timing(generation.timing)
        return generation

    @torch.inference_mode()
    def generate(
        self,
        generation: Generation,
        *,
        batch_size: int = 8,
        on_step: OnStep | None = None,
        trace: GuidanceTrace | None = None,
    ) -> list[Video]:
        """The videos of a complete plan, prompts outermost."""
        rows = [(prompt, sample) for prompt in range(len(generation.prompts)) for sample in generation.samples]
        if trace is not None and len(rows) > batch_size:
            raise InputError(f"a trace needs its {len(rows)} clips in one batch: raise batch_size from {batch_size}")
        captions = self.text.encode(generation.prompts)
        negative = self.text.encode([generation.negative_prompt]) if generation.negative_prompt else None
        importing = threading.Thread(target=importlib.import_module, args=(DECODER_LIBRARY,))
        importing.start()  # it loads while the first steps run
        chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        latents: list[Tensor] = []
        for number, chunk in enumerate(chunks):
            report = partial(_report, on_step, number * generation.steps, len(chunks) * generation.steps)
            features, mask = (part[[prompt for prompt, _ in chunk]] for part in captions)
            samples = [sample for _, sample in chunk]
            latents.append(self._denoise(generation, features, mask, negative, samples, report, trace))
        importing.join()
        frames = torch.cat([self._decode(part) for part in latents]).numpy()
        return [self._video(generation, *row, clip) for row, clip in zip(rows, frames, strict=True)]

    def _denoise(
        self,
        generation: Generation,
        features: Tensor,
        mask: Tensor,
        negative: Encoded | None,
        samples: Sequence[int],
        report: Callable[[int, int, Tensor], None],
        trace: GuidanceTrace | None,
    ) -> Tensor:
        """Captions to guided latents (B, C, T, h, w), one row a sample: the whole of guided sampling."""
        model = self._network(generation.dtype)
        cond = model.prepare(features, mask)
        if negative is None:  # as in the originals, the null caption is read under the prompts' mask
            uncond = model.null(len(mask), mask)
        else:
            uncond = model.prepare(*(part.expand(len(mask), *part.shape[1:]) for part in negative))
        solver = generation.sampler == "dpm-solver"  # it chooses its own times, between those of the full schedule
        schedule = self.schedule if solver else self.schedule.respaced(generation.steps)
        scale = ChannelScale.parse(generation.cfg_scale, generation.cfg_channels, channels=self.channels)
        rule, timing = RULES[generation.guidance], parse_timing(generation.timing)
        denoiser = GuidedDenoiser(model, cond, uncond, scale, schedule, rule=rule, timing=timing, trace=trace)
        noise = SampleNoise(generation.seed, samples)
        x = noise.initial((self.channels, *model.config.input_size), self.device)
        if solver:
            sample = partial(sample_dpm_solver, steps=generation.steps)
        else:
            sample = partial(sample_ddim, eta=generation.eta) if generation.sampler == "ddim" else sample_ddpm
        return sample(denoiser, schedule, x, noise, process=self.process, on_step=report)

    def _network(self, dtype: str) -> STDiT:
        """The denoiser in a precision; the weights as loaded are kept."""
        if dtype == "fp32":
            return self.model
        if dtype not in self._converted:
            self._converted[dtype] = copy.deepcopy(self.model).to(DTYPES[dtype])
        return self._converted[dtype]

    def autoencode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) in [0, 1] through the VAE and back: the ceiling of what the model can show."""
        x = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None].to(self.device) * 2 - 1
        return ((self.vae.decode(self.vae.encode(x))[0] + 1) / 2).permute(1, 2, 3, 0).cpu().numpy()

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents to uint8 frames (B, T, H, W, 3) on the CPU."""
        frames = self.vae.decode(latents.float())
        return ((frames + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()

    def _video(self, generation: Generation, prompt: int, sample: int, frames: np.ndarray) -> Video:
        only = generation.model_copy(update={"prompts": (generation.prompts[prompt],), "samples": (sample,)})
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


def _report(on_step: OnStep | None, base: int, total: int, done: int, _steps: int, _x: Tensor) -> None:
    """A sampler's step as a step of the whole run, whose chunks before this one took ``base``."""
    if on_step:
        on_step(base + done, total)


def load(model: str | Path = "guidon-small", *, device: str = "auto") -> Pipeline:
    """The pipeline of a preset's name or of a folder of weights.

    Raises:
        InputError: unknown name; weights missing, truncated, foreign or not finite; a device that is not there.
    """
    from .devices import pick_device

    preset, place = find_preset(str(model)), pick_device(device)
    paths = {kind: preset.folder / f"{kind}.safetensors" for kind in ("denoiser", "text", "vae")}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise InputError(
            f"{preset.folder} holds no {', '.join(missing)}: a model folder has denoiser, text and vae .safetensors"
        )
    parts = {kind: load_component(path, kind) for kind, path in paths.items()}
    denoiser, text = parts["denoiser"], parts["text"]
    schedule = NoiseSchedule.named(denoiser.config["noise_schedule"], denoiser.config["diffusion_steps"])
    process = Process(denoiser.config["prediction"])
    stdit = STDiT(denoiser.configure(STDiTConfig, *DIFFUSION))
    load_weights(stdit, denoiser)
    encoder = CaptionEncoder(text.configure(CaptionEncoderConfig))
    load_weights(encoder, text)
    hashes = {kind: part.sha256 for kind, part in parts.items()}
    return Pipeline(
        preset, stdit.to(place).eval(), encoder.to(place).eval(), parts["vae"], schedule, process, place, hashes
    )
