"""The image families, each as its own diffusers pipeline states it (diffusers 0.42.1).

Every pipeline has the scheduler that its released checkpoints come with, except SD 1.5: PNDM calls its network twice at
one step. Latents are 8 by 12, so that a swap of height and width shows; DiT's are square.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .contract import Step, TinyPipeline, generator, noise, quiet, shaken

HEIGHT, WIDTH = 64, 96  # pixels; without an autoencoder a pipeline divides them by 8, Sana by 32
TOKENS = 6  # of every prompt
NO_ENCODER = {"tokenizer": None, "text_encoder": None, "vae": None}

Prompts = Callable[[int, torch.dtype], dict[str, Any]]
"""``prompts(batch, dtype)``: the prompts and the negative prompts as embeddings."""


def _called_with(prompts: Prompts, **fixed: Any) -> Callable[..., dict[str, Any]]:
    def arguments(
        *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        return {
            **prompts(batch, dtype),
            "height": HEIGHT,
            "width": WIDTH,
            "num_inference_steps": steps,
            "generator": generator(seed),
            "output_type": "latent",
            **fixed,
        }

    return arguments


def _embeddings(width: int, pooled: int | None = None) -> Prompts:
    """Embeddings of that width, and one pooled embedding a prompt where the pipeline wants it."""

    def prompts(batch: int, dtype: torch.dtype) -> dict[str, Any]:
        given: dict[str, Any] = {
            "prompt_embeds": noise(batch, TOKENS, width, seed=100, dtype=dtype),
            "negative_prompt_embeds": noise(batch, TOKENS, width, seed=200, dtype=dtype),
        }
        if pooled is not None:
            given["pooled_prompt_embeds"] = noise(batch, pooled, seed=300, dtype=dtype)
            given["negative_pooled_prompt_embeds"] = noise(batch, pooled, seed=400, dtype=dtype)
        return given

    return prompts


def _masked(prompts: Prompts, suffix: str = "prompt_attention_mask", dtype: torch.dtype = torch.long) -> Prompts:
    """The same with token masks that hide nothing."""

    def with_masks(batch: int, embeds_dtype: torch.dtype) -> dict[str, Any]:
        mask = torch.ones(batch, TOKENS, dtype=dtype)
        return {**prompts(batch, embeds_dtype), suffix: mask, f"negative_{suffix}": mask.clone()}

    return with_masks


# order of the branches


def _uncond_first(step: Step) -> tuple[Tensor, Tensor]:
    """One doubled batch, the unconditional half first."""
    uncond, cond = step.outputs[0][0].chunk(2)
    return cond, uncond


def _cond_call_first(step: Step) -> tuple[Tensor, Tensor]:
    """Two calls, the conditional one first."""
    (cond,), (uncond,) = step.outputs
    return cond, uncond


# layouts


def _same(prediction: Tensor) -> Tensor:
    """(B, C, H, W) needs no change."""
    return prediction


def _unpacked(tokens: Tensor) -> Tensor:
    """From 2x2 patches as tokens (B, H/2 W/2, 4 C) to (B, C, H, W): features 4c to 4c+3 are channel c."""
    height, width = HEIGHT // 16, WIDTH // 16
    patches = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, (height, width))  # (B, H/2, W/2, C, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


# what some pipelines do after the formula


def _renormalised(guided: Tensor, cond: Tensor) -> Tensor:
    """Qwen-Image, Lumina 2: the norm of cond over the last axis, which is a token's features or a row of pixels."""
    return guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


def _first_three(guided: Tensor, cond: Tensor) -> Tensor:
    """Lumina: only the first three channels are guided."""
    return torch.cat([guided[:, :3], cond[:, 3:]], dim=1)


# DiT: class labels; the conditional half first; the doubled batch goes through the scheduler


class _KeptLatents:
    """Stands for DiT's autoencoder, because DiTPipeline has no output_type="latent": it keeps what it is given."""

    config = SimpleNamespace(scaling_factor=1.0)

    def __init__(self) -> None:
        self.latents = torch.zeros(0)

    def decode(self, latents: Tensor) -> SimpleNamespace:
        self.latents = latents
        return SimpleNamespace(sample=latents)


def _make_dit() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8
        )
    )
    return quiet(
        diffusers.DiTPipeline(
            transformer=network, vae=_KeptLatents(), scheduler=diffusers.DDIMScheduler(clip_sample=False)
        )
    )


def _dit_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    labels = [1, 2][:batch]
    return {
        "class_labels": labels,
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
    noisy=lambda step: step.sample[: step.batch],
    latents=lambda pipe, output: pipe.vae.latents,
)


# PixArt: guides the variance channels too, then drops them


def _make_pixart(pipeline: str) -> Any:
    diffusers: Any = import_module("diffusers")

    network = shaken(
        lambda: diffusers.PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
            cross_attention_dim=16, sample_size=8, caption_channels=8, use_additional_conditions=False,
        )
    )  # fmt: skip
    kind, scheduler = getattr(diffusers, pipeline), diffusers.DPMSolverMultistepScheduler()
    return quiet(kind(transformer=network, scheduler=scheduler, **NO_ENCODER))


def _pixart_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = _uncond_first(step)
    return cond[:, :4], uncond[:, :4]


_pixart_arguments = _called_with(_masked(_embeddings(8)), negative_prompt=None, use_resolution_binning=False)

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


# Stable Diffusion: a U-Net. SDXL's Euler scheduler scales the network's input, so that it is not the latents


_UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 4,
}  # fmt: skip


def _make_sd15() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(lambda: diffusers.UNet2DConditionModel(**_UNET))
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return quiet(
        diffusers.StableDiffusionPipeline(
            unet=network, scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, **NO_ENCODER,
        )
    )  # fmt: skip


def _make_sdxl() -> Any:
    diffusers: Any = import_module("diffusers")
    # SDXL adds the pooled prompt (8) and six size numbers (8 features each) to the timestep
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56}  # fmt: skip
    network = shaken(lambda: diffusers.UNet2DConditionModel(**_UNET, **added))
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    return quiet(
        diffusers.StableDiffusionXLPipeline(
            unet=network, scheduler=scheduler, tokenizer_2=None, text_encoder_2=None, add_watermarker=False,
            **NO_ENCODER,
        )
    )  # fmt: skip


SD15 = TinyPipeline(
    name="sd-1.5",
    make=_make_sd15,
    arguments=_called_with(_embeddings(16)),
    branches=_uncond_first,
    to_channels=_same,
    channels=4,
    networks=("unet",),
)
SDXL = TinyPipeline(
    name="sdxl",
    make=_make_sdxl,
    arguments=_called_with(_embeddings(16, pooled=8)),
    branches=_uncond_first,
    to_channels=_same,
    channels=4,
    networks=("unet",),
)


# SD3


def _make_sd3() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=16, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=16,
        )
    )  # fmt: skip
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), tokenizer_2=None,
            tokenizer_3=None, text_encoder_2=None, text_encoder_3=None, **NO_ENCODER,
        )
    )  # fmt: skip


SD3 = TinyPipeline(
    name="sd3",
    make=_make_sd3,
    arguments=_called_with(_embeddings(16, pooled=8)),
    branches=_uncond_first,
    to_channels=_same,
    channels=16,
)


# Sana: latents are fp32 in any case, and the prediction becomes fp32 before the formula


def _make_sana() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.SanaTransformer2DModel(
            in_channels=32, out_channels=32, num_attention_heads=2, attention_head_dim=8, num_layers=1,
            num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
            sample_size=8,
        )
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    )
    return quiet(diffusers.SanaPipeline(transformer=network, scheduler=scheduler, **NO_ENCODER))


def _sana_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = _uncond_first(step)
    return cond.float(), uncond.float()


SANA = TinyPipeline(
    name="sana",
    make=_make_sana,
    arguments=_called_with(
        _masked(_embeddings(8)), negative_prompt=None, use_resolution_binning=False, height=4 * HEIGHT, width=4 * WIDTH
    ),
    branches=_sana_branches,
    to_channels=_same,
    channels=32,
)


# Lumina: the conditional half first; variance channels dropped; the first three channels guided; then negated


def _make_lumina() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.LuminaNextDiT2DModel(
            sample_size=8, in_channels=4, hidden_size=16, num_layers=1, num_attention_heads=2, num_kv_heads=1,
            multiple_of=16, cross_attention_dim=8,
        )
    )  # fmt: skip
    return quiet(
        diffusers.LuminaPipeline(
            transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **NO_ENCODER
        )
    )


def _lumina_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = (-step.outputs[0][0][:, :4]).chunk(2)
    return cond, uncond


LUMINA = TinyPipeline(
    name="lumina",
    make=_make_lumina,
    arguments=_called_with(_masked(_embeddings(8)), negative_prompt=None),
    branches=_lumina_branches,
    to_channels=_same,
    channels=4,
    normalise=_first_three,
)


# Lumina 2: renormalised by default, then negated


def _make_lumina_2() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=8, in_channels=16, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=2,
            num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 4, 4), axes_lens=(32, 32, 32), cap_feat_dim=8,
        )
    )  # fmt: skip
    return quiet(
        diffusers.Lumina2Pipeline(
            transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0), **NO_ENCODER
        )
    )


def _lumina_2_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = _cond_call_first(step)
    return -cond, -uncond


LUMINA_2 = TinyPipeline(
    name="lumina-2",
    make=_make_lumina_2,
    arguments=_called_with(_masked(_embeddings(8), dtype=torch.bool)),
    branches=_lumina_2_branches,
    to_channels=_same,
    channels=16,
    normalise=_renormalised,
)


# Flux: true guidance beside the embedded one (guidance_scale)


def _shifting_scheduler(**settings: Any) -> Any:
    diffusers: Any = import_module("diffusers")
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **settings)


def _make_flux() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        )
    )  # fmt: skip
    return quiet(
        diffusers.FluxPipeline(
            transformer=network, scheduler=_shifting_scheduler(shift=3.0), tokenizer_2=None, text_encoder_2=None,
            **NO_ENCODER,
        )
    )  # fmt: skip


FLUX = TinyPipeline(
    name="flux",
    make=_make_flux,
    arguments=_called_with(_embeddings(16, pooled=8)),
    branches=_cond_call_first,
    to_channels=_unpacked,
    channels=16,
    scale_argument="true_cfg_scale",
)


# Flux 2 Klein: latents are normalised per patch feature; the pipeline undoes it, and unpacks even "latent" output


def _make_flux_2_klein() -> Any:
    diffusers: Any = import_module("diffusers")
    # the pipeline reads the autoencoder's batch norm, and the length of block_out_channels
    autoencoder = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    network = shaken(
        lambda: diffusers.Flux2Transformer2DModel(
            in_channels=128, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        std=0.2,
    )  # fmt: skip
    return quiet(
        diffusers.Flux2KleinPipeline(
            transformer=network, scheduler=_shifting_scheduler(shift=3.0), is_distilled=False,
            **{**NO_ENCODER, "vae": autoencoder},
        )
    )  # fmt: skip


FLUX_2_KLEIN = TinyPipeline(
    name="flux-2-klein",
    make=_make_flux_2_klein,
    arguments=_called_with(_embeddings(16)),
    branches=_cond_call_first,
    to_channels=_unpacked,
    channels=32,
)


# Chroma


def _make_chroma() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.ChromaTransformer2DModel(
            in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(4, 6, 6), approximator_num_channels=8,
            approximator_hidden_dim=16, approximator_layers=1,
        )
    )  # fmt: skip
    return quiet(diffusers.ChromaPipeline(transformer=network, scheduler=_shifting_scheduler(), **NO_ENCODER))


CHROMA = TinyPipeline(
    name="chroma",
    make=_make_chroma,
    arguments=_called_with(_masked(_embeddings(16), dtype=torch.bool)),
    branches=_cond_call_first,
    to_channels=_unpacked,
    channels=16,
)


# Qwen-Image: renormalised per token


def _make_qwen_image() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.QwenImageTransformer2DModel(
            in_channels=64, out_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
        )
    )  # fmt: skip
    scheduler = _shifting_scheduler(base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02)
    return quiet(diffusers.QwenImagePipeline(transformer=network, scheduler=scheduler, **NO_ENCODER))


QWEN_IMAGE = TinyPipeline(
    name="qwen-image",
    make=_make_qwen_image,
    arguments=_called_with(_masked(_embeddings(16), "prompt_embeds_mask")),
    branches=_cond_call_first,
    to_channels=_unpacked,
    channels=16,
    scale_argument="true_cfg_scale",
    normalise=_renormalised,
)


# Z-Image: lists of samples (16, 1, H, W), the conditional ones first; fp32 before the formula; then negated


def _make_z_image() -> Any:
    diffusers: Any = import_module("diffusers")
    network = shaken(
        lambda: diffusers.ZImageTransformer2DModel(
            in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
            axes_dims=[4, 6, 6], axes_lens=[64, 16, 16],
        )
    )  # fmt: skip
    return quiet(
        diffusers.ZImagePipeline(
            transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0), **NO_ENCODER
        )
    )


def _listed(batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {name: list(embeddings) for name, embeddings in _embeddings(8)(batch, dtype).items()}


def _z_image_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = (-torch.stack(step.outputs[0][0]).float().squeeze(2)).chunk(2)
    return cond, uncond


Z_IMAGE = TinyPipeline(
    name="z-image",
    make=_make_z_image,
    arguments=_called_with(_listed),
    branches=_z_image_branches,
    to_channels=_same,
    channels=16,
    unguided_scale=0.0,
    formula="c + s (c - u)",
)


IMAGE: tuple[TinyPipeline, ...] = (
    DIT, PIXART_ALPHA, PIXART_SIGMA, SD15, SDXL, SD3, SANA, LUMINA, LUMINA_2, FLUX, FLUX_2_KLEIN, CHROMA, QWEN_IMAGE,
    Z_IMAGE,
)  # fmt: skip
