"""The image families, each as its own diffusers pipeline states it (diffusers 0.42.1)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .contract import Step, TinyPipeline, generator, noise, quiet, shaken

PROMPT, NEGATIVE = 100, 200  # seeds of the embeddings; the second prompt's rows differ from the first's


# order of the branches


def _uncond_first(step: Step) -> tuple[Tensor, Tensor]:
    uncond, cond = step.outputs[0][0].chunk(2)
    return cond, uncond


def _same(prediction: Tensor) -> Tensor:
    """The layout (B, C, H, W), which needs no change."""
    return prediction


# DiT: class labels, the conditional half first, and the whole doubled batch goes through the scheduler


class _KeepLatents:
    """In the place of DiT's autoencoder, because DiTPipeline has no output_type="latent": it keeps what it is given."""

    config = SimpleNamespace(scaling_factor=1.0)

    def __init__(self) -> None:
        self.latents = torch.zeros(0)

    def decode(self, latents: Tensor) -> SimpleNamespace:
        self.latents = latents
        return SimpleNamespace(sample=latents)


def _make_dit() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    network = shaken(
        lambda: DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8
        )
    )
    return quiet(DiTPipeline(transformer=network, vae=_KeepLatents(), scheduler=DDIMScheduler(clip_sample=False)))


def _dit_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    return {
        "class_labels": [1, 2][:batch],
        "num_inference_steps": steps,
        "generator": generator(seed),
        "output_type": "pt",
    }


def _dit_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = step.outputs[0][0][:, :4].chunk(2)
    return cond, uncond


DIT = TinyPipeline(
    name="dit",
    make=_make_dit,
    arguments=_dit_arguments,
    branches=_dit_branches,
    to_channels=_same,
    channels=4,
    received=lambda step: step.model_output[: step.batch],
    latents=lambda pipe, output: pipe.vae.latents,
)


# PixArt: guides the variance channels too, then drops them


def _make_pixart(pipeline: str) -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
            cross_attention_dim=16, sample_size=8, caption_channels=8, use_additional_conditions=False,
        )
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler()
    kind = getattr(diffusers, pipeline)
    return quiet(kind(tokenizer=None, text_encoder=None, vae=None, transformer=network, scheduler=scheduler))


def _pixart_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    mask = torch.ones(batch, 6, dtype=torch.long)
    return {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": noise(batch, 6, 8, seed=PROMPT, dtype=dtype),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": noise(batch, 6, 8, seed=NEGATIVE, dtype=dtype),
        "negative_prompt_attention_mask": mask,
        "height": 64,
        "width": 64,
        "use_resolution_binning": False,
        "num_inference_steps": steps,
        "generator": generator(seed),
        "output_type": "latent",
    }


def _pixart_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = _uncond_first(step)
    return cond.chunk(2, dim=1)[0], uncond.chunk(2, dim=1)[0]


PIXART_ALPHA = TinyPipeline(
    name="pixart-alpha",
    make=lambda: _make_pixart("PixArtAlphaPipeline"),
    arguments=_pixart_arguments,
    branches=_pixart_branches,
    to_channels=_same,
    channels=4,
)
PIXART_SIGMA = TinyPipeline(
    name="pixart-sigma",
    make=lambda: _make_pixart("PixArtSigmaPipeline"),
    arguments=_pixart_arguments,
    branches=_pixart_branches,
    to_channels=_same,
    channels=4,
)


IMAGE: tuple[TinyPipeline, ...] = (DIT, PIXART_ALPHA, PIXART_SIGMA)
