"""Prompt to video, top to bottom: encode, guide, sample, decode."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch

from .bridges.diffusers.networks import Frequencies, adopt
from .core.devices import cpu_threads, pick_device
from .core.errors import InputError, setting
from .core.progress import OnStep
from .core.settings import validated
from .core.version import VERSION
from .generation import Generation, decode, warn_of_fallback
from .guidance import GuidanceTrace
from .media import Video
from .models.catalogue import find_model, find_preset
from .models.family import Preset
from .models.model import Model
from .models.sources import Sources
from .models.text.prompts import PromptMemory
from .request import Choices, Computation, Planner, Request, latent_shape, require_room

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


class Pipeline:
    """A text encoder, a network and an autoencoder, one after the other, with a preset's recommended settings.

    Args:
        preset: the settings of what a call leaves out.
        model: the three stages, and the diffusion that the network was trained for.
        device: where they run.
    """

    def __init__(self, preset: Preset[Any], model: Model, device: torch.device) -> None:
        self.preset, self.model, self.device = preset, model, device
        self.planner = Planner(preset, model.facts)
        self.channels, self.hashes = model.facts.channels, model.hashes
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
        force: bool = False,
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
            force: sample a prompt that the model cannot follow, too, with a warning.
            choices: the settings; see ``guidon.request.Choices``.

        Raises:
            InputError: a choice is not valid for this model, it cannot follow a prompt, or the clips need more memory
                than there is.
        """
        single = isinstance(prompts, str) and num_samples == 1
        texts = (prompts,) if isinstance(prompts, str) else prompts
        request = self.plan(texts, range(num_samples), batch_size=batch_size, force=force, **choices)
        videos = self.generate(request, batch_size=batch_size, sequential=sequential, on_step=on_step, trace=trace)
        return videos[0] if single else videos

    def plan(
        self,
        prompts: Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = 8,
        force: bool = False,
        **choices: Unpack[Choices],
    ) -> Request:
        """The complete, validated request of some samples; the other arguments are those of a call.

        A warning says what of a prompt the model does not follow.

        Raises:
            InputError: a choice is not valid for this model, or it cannot follow a prompt.
        """
        return self.planner.plan(prompts, samples, batch_size=batch_size, device=self.device, force=force, **choices)

    def complete(
        self, prompts: Sequence[str], samples: Sequence[int] = (0,), *, batch_size: int = 8, **choices: Unpack[Choices]
    ) -> Request:
        """``plan`` for captions of a bench: whether the model can follow them is not asked.

        Raises:
            InputError: a choice is not valid for this model.
        """
        return self.planner.complete(prompts, samples, batch_size=batch_size, device=self.device, **choices)

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
        shape = latent_shape(self.preset, self.model.facts, request)
        require_room(self.model.facts, shape, count, batch_size, self.device)
        if trace is not None and count > batch_size:
            raise InputError(
                f"a trace needs its {count} clips in one batch: raise {setting('batch_size')} from {batch_size}"
            )
        if like is None:
            like = Computation(batch=min(batch_size, count), sequential=sequential)
        clips = [(prompt, sample) for prompt in range(len(request.prompts)) for sample in request.samples]
        texts, avoided = (tuple(map(request.text_of, each)) for each in (request.prompts, request.negatives))
        of_each = isinstance(request.negative_prompt, tuple)
        prompts = self._prompts.encode(texts, avoided if of_each else avoided[0] if avoided else None)
        if self.model.vae.keep:  # where stages are dropped after use, it waits for its turn
            self.model.vae.prepare_in_background()

        # latents, then frames
        with nullcontext() if like.threads is None else cpu_threads(like.threads):
            run = Generation(self.preset, self.model, self.device, request, prompts, trace)
            denoised, size = run.denoise(clips, like, on_step)
            latents = [clip.latent for clip in denoised]
            frames, micro_batch = decode(self.model.vae, latents, like.micro_batch, self.device)
            threads = torch.get_num_threads()
        found = [
            Computation(batch=clip.batch, sequential=clip.sequential, micro_batch=micro_batch, threads=threads)
            for clip in denoised
        ]
        warn_of_fallback(like, size, found, request.closeness)
        return [self._video(request, *made) for made in zip(clips, frames, found, strict=True)]

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
    given = {"checkpoint": checkpoint, "text_encoder": text_encoder, "vae": vae, "features": features}
    given |= {"text_dtype": text_dtype, "download": download, "offload": offload}
    preset, sources, place = find_preset(str(model)), validated(Sources, given, None), pick_device(device)
    return Pipeline(preset, find_model(preset, sources, place), place)


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
