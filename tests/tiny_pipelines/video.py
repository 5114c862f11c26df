"""The video families, each as its own diffusers pipeline states it (diffusers 0.42.1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .contract import Step, TinyPipeline, generator, noise, quiet, shaken

PROMPT, NEGATIVE = 100, 200  # seeds of the embeddings; the second prompt's rows differ from the first's
TOKENS, FEATURES = 3, 8  # size of the embeddings
STD = 0.3  # how much the weights are shaken


# what the families share


def _shared(steps: int, batch: int, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "prompt_embeds": noise(batch, TOKENS, FEATURES, seed=PROMPT, dtype=dtype),
        "negative_prompt_embeds": noise(batch, TOKENS, FEATURES, seed=NEGATIVE, dtype=dtype),
        "num_inference_steps": steps,
        "generator": generator(seed),
        "output_type": "latent",
    }


def _masks(batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    mask = torch.ones(batch, TOKENS, dtype=dtype)
    return {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


def _uncond_first(step: Step) -> tuple[Tensor, Tensor]:
    """One call on the doubled batch, joined in the network's dtype."""
    uncond, cond = step.outputs[0][0].chunk(2)
    return cond, uncond


def _uncond_first_in_fp32(step: Step) -> tuple[Tensor, Tensor]:
    uncond, cond = step.outputs[0][0].float().chunk(2)
    return cond, uncond


def _cond_then_uncond(step: Step) -> tuple[Tensor, Tensor]:
    """Two calls, joined in the network's dtype."""
    (cond, *_), (uncond, *_) = step.outputs
    return cond, uncond


def _same(prediction: Tensor) -> Tensor:
    """The layout (B, C, T, H, W), which needs no change."""
    return prediction


def _channels_third(prediction: Tensor) -> Tensor:
    """From (B, T, C, H, W)."""
    return prediction.movedim(2, 1)


def _channels_last(prediction: Tensor) -> Tensor:
    """From (B, T, H, W, C), or from packed tokens (B, N, C) of one latent pixel each."""
    return prediction.movedim(-1, 1)


# Latte: predicts a variance too, and guides it where its scheduler learns it


def _make_latte(scheduler: str, **settings: Any) -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.LatteTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
            cross_attention_dim=16, caption_channels=FEATURES, sample_size=4, patch_size=2, video_length=2,
            norm_type="ada_norm_single", num_embeds_ada_norm=1000, norm_elementwise_affine=False,
            attention_bias=True, activation_fn="gelu-approximate",
        ), STD,
    )  # fmt: skip
    return quiet(
        diffusers.LattePipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=network,
            scheduler=getattr(diffusers, scheduler)(**settings),
        )
    )


def _latte_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    # clean_caption=False: otherwise the pipeline asks for the negative prompt's text
    more = {"negative_prompt": None, "height": 32, "width": 32, "video_length": 2, "clean_caption": False}
    return _shared(steps, batch, seed, dtype) | more


def _latte_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = _uncond_first(step)
    return cond.chunk(2, dim=1)[0], uncond.chunk(2, dim=1)[0]


LATTE = TinyPipeline(
    name="latte",
    make=lambda: _make_latte("DDIMScheduler", clip_sample=False),
    arguments=_latte_arguments,
    branches=_latte_branches,
    to_channels=_same,
    channels=4,
)
LATTE_LEARNED_RANGE = TinyPipeline(
    name="latte-learned-range",
    make=lambda: _make_latte("DDPMScheduler", variance_type="learned_range", clip_sample=False),
    arguments=_latte_arguments,
    branches=_uncond_first,
    to_channels=lambda prediction: prediction[:, :4],
    channels=4,
)


# Allegro


def _make_allegro() -> Any:
    from diffusers import AllegroPipeline, AllegroTransformer3DModel, EulerAncestralDiscreteScheduler

    network = shaken(
        lambda: AllegroTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=1,
            cross_attention_dim=48, sample_height=4, sample_width=4, sample_frames=2, caption_channels=FEATURES,
        ), STD,
    )  # fmt: skip
    return quiet(
        AllegroPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=network,
            scheduler=EulerAncestralDiscreteScheduler(),
        )
    )


def _allegro_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    more = {"negative_prompt": None, "height": 32, "width": 32, "num_frames": 8, "clean_caption": False}
    return _shared(steps, batch, seed, dtype) | _masks(batch) | more


ALLEGRO = TinyPipeline(
    name="allegro",
    make=_make_allegro,
    arguments=_allegro_arguments,
    branches=_uncond_first,
    to_channels=_same,
    channels=4,
)


# CogVideoX: channels in the third place


def _make_cogvideox() -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    network = shaken(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=1,
            time_embed_dim=8, text_embed_dim=FEATURES, max_text_seq_length=TOKENS, sample_width=4, sample_height=4,
            sample_frames=5,
        ), STD,
    )  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    return quiet(
        CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=network, scheduler=scheduler)
    )


def _cogvideox_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    more = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": TOKENS}
    return _shared(steps, batch, seed, dtype) | more


def _dynamic_scale(step: Step, scale: float) -> float:
    share = (step.steps - step.timestep.item()) / step.steps
    return 1 + scale * ((1 - math.cos(math.pi * share**5.0)) / 2)


COGVIDEOX = TinyPipeline(
    name="cogvideox",
    make=_make_cogvideox,
    arguments=_cogvideox_arguments,
    branches=_uncond_first_in_fp32,
    to_channels=_channels_third,
    channels=4,
)
COGVIDEOX_DYNAMIC = TinyPipeline(
    name="cogvideox-dynamic-cfg",
    make=_make_cogvideox,
    arguments=lambda **given: _cogvideox_arguments(**given) | {"use_dynamic_cfg": True},
    branches=_uncond_first_in_fp32,
    to_channels=_channels_third,
    channels=4,
    scale_at=_dynamic_scale,
)


# Mochi: joins the branches in fp32, and its timesteps rise from 0


def _make_mochi() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

    network = shaken(
        lambda: MochiTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=8, in_channels=12,
            text_embed_dim=FEATURES, time_embed_dim=8, max_sequence_length=TOKENS,
        ), STD,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return quiet(MochiPipeline(scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=network))


def _mochi_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    more = {"height": 32, "width": 32, "num_frames": 7, "max_sequence_length": TOKENS}
    return _shared(steps, batch, seed, dtype) | _masks(batch, torch.bool) | more


MOCHI = TinyPipeline(
    name="mochi",
    make=_make_mochi,
    arguments=_mochi_arguments,
    branches=_uncond_first_in_fp32,
    to_channels=_same,
    channels=12,
)


# LTX-Video: packed tokens of one latent pixel, channels last


def _make_ltx() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    network = shaken(
        lambda: LTXVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            num_layers=1, caption_channels=FEATURES,
        ), STD,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )
    return quiet(LTXPipeline(scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=network))


def _ltx_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    more = {"height": 64, "width": 64, "num_frames": 9}  # latents of 2 x 2 x 2 pixels
    return _shared(steps, batch, seed, dtype) | _masks(batch) | more


LTX = TinyPipeline(
    name="ltx",
    make=_make_ltx,
    arguments=_ltx_arguments,
    branches=_uncond_first_in_fp32,
    to_channels=_channels_last,
    channels=4,
)


# LTX-2: video and audio at once; joins the branches as x_0 and goes back to a velocity


class _Tokenizer:
    """LTX-2 asks its tokenizer for these two facts even where the prompts are embeddings."""

    padding_side = "left"
    model_max_length = TOKENS


def _make_ltx2() -> Any:
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    network = shaken(
        lambda: diffusers.LTX2VideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=2, audio_attention_head_dim=4,
            audio_cross_attention_dim=8, num_layers=2, caption_channels=FEATURES,
        ), STD,
    )  # fmt: skip
    connectors = shaken(
        lambda: LTX2TextConnectors(
            caption_channels=FEATURES, text_proj_in_factor=2,
            video_connector_num_attention_heads=2, video_connector_attention_head_dim=4,
            video_connector_num_layers=1, video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=4,
            audio_connector_num_layers=1, audio_connector_num_learnable_registers=None,
        ), STD,
    )  # fmt: skip
    vae = shaken(
        lambda: diffusers.AutoencoderKLLTX2Video(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1),
            spatial_compression_ratio=32, temporal_compression_ratio=8,
        )
    )  # fmt: skip
    audio_vae = shaken(
        lambda: diffusers.AutoencoderKLLTX2Audio(
            base_channels=8, latent_channels=2, ch_mult=(1,), num_res_blocks=1, mel_bins=16
        )
    )
    return quiet(
        diffusers.LTX2Pipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
            ),
            vae=vae,
            audio_vae=audio_vae,
            text_encoder=None,
            tokenizer=_Tokenizer(),
            connectors=connectors,
            transformer=network,
            vocoder=None,
        )
    )


def _ltx2_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    return (
        _shared(steps, batch, seed, dtype)
        | _masks(batch)
        | {
            "prompt_embeds": noise(batch, TOKENS, 2 * FEATURES, seed=PROMPT, dtype=dtype),
            "negative_prompt_embeds": noise(batch, TOKENS, 2 * FEATURES, seed=NEGATIVE, dtype=dtype),
            "height": 64,
            "width": 64,
            "num_frames": 9,
            # classifier-free guidance alone; by default the pipeline adds two more guidances and a rescale
            "stg_scale": 0.0,
            "modality_scale": 1.0,
            "guidance_rescale": 0.0,
            # None: the same for audio as for video
            "audio_guidance_scale": None,
            "audio_stg_scale": None,
            "audio_modality_scale": None,
            "audio_guidance_rescale": None,
        }
    )


def _ltx2_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = _uncond_first_in_fp32(step)
    sigma = torch.tensor(step.sigma)
    return step.sample - cond * sigma, step.sample - uncond * sigma


def _ltx2_received(step: Step) -> Tensor:
    return step.sample - step.model_output * torch.tensor(step.sigma)


LTX2 = TinyPipeline(
    name="ltx-2",
    make=_make_ltx2,
    arguments=_ltx2_arguments,
    branches=_ltx2_branches,
    to_channels=_channels_last,
    channels=4,
    formula="c + (s - 1) (c - u)",
    received=_ltx2_received,
    tolerance=1e-5,
    more={
        "all guidances": {
            "stg_scale": 1.0,
            "modality_scale": 3.0,
            "guidance_rescale": 0.7,
            "spatio_temporal_guidance_blocks": [1],
        }
    },
)


# Wan: two calls; 2.2 has an expert for high noise and one for low noise, and its 5B model a timestep for every token


def make_wan(
    experts: int = 1, scheduler: str = "FlowMatchEulerDiscreteScheduler", channels: int = 4, **settings: Any
) -> Any:
    import diffusers

    networks = [
        shaken(
            lambda: diffusers.WanTransformer3DModel(
                num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=channels,
                text_dim=FEATURES, freq_dim=8, ffn_dim=16, num_layers=1, rope_max_seq_len=16,
            ), STD, seed,
        )
        for seed in range(experts)
    ]  # fmt: skip
    flow = {"shift": 3.0} if scheduler.startswith("Flow") else _WAN_UNIPC
    return quiet(
        diffusers.WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=getattr(diffusers, scheduler)(**flow),
            transformer=networks[0],
            transformer_2=networks[1] if experts == 2 else None,
            **settings,
        )
    )


_WAN_UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_WAN_SCALE_2 = 2.5


def _wan_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    return _shared(steps, batch, seed, dtype) | {"height": 32, "width": 32, "num_frames": 5}


def _wan22_scale(step: Step, scale: float) -> float:
    return scale if step.networks[0] == "transformer" else _WAN_SCALE_2


WAN21 = TinyPipeline(
    name="wan-2.1",
    make=make_wan,
    arguments=_wan_arguments,
    branches=_cond_then_uncond,
    to_channels=_same,
    channels=4,
)
WAN22 = TinyPipeline(
    name="wan-2.2",
    make=lambda: make_wan(experts=2, scheduler="UniPCMultistepScheduler", boundary_ratio=0.875),
    arguments=lambda **given: _wan_arguments(**given) | {"guidance_scale_2": _WAN_SCALE_2},
    branches=_cond_then_uncond,
    to_channels=_same,
    channels=4,
    networks=("transformer", "transformer_2"),
    scale_at=_wan22_scale,
)
WAN22_5B = TinyPipeline(
    name="wan-2.2-5b",
    make=lambda: make_wan(scheduler="UniPCMultistepScheduler", expand_timesteps=True),
    arguments=_wan_arguments,
    branches=_cond_then_uncond,
    to_channels=_same,
    channels=4,
)


# HunyuanVideo: its guidance_scale is an input of the network; true_cfg_scale guides


def _make_hunyuan_video() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

    network = shaken(
        lambda: HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, text_embed_dim=FEATURES, pooled_projection_dim=FEATURES,
            rope_axes_dim=(2, 2, 4),
        ), STD,
    )  # fmt: skip
    return quiet(
        HunyuanVideoPipeline(
            text_encoder=None,
            tokenizer=None,
            transformer=network,
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=None,
            tokenizer_2=None,
        )
    )


def _hunyuan_video_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    more = {
        "pooled_prompt_embeds": noise(batch, FEATURES, seed=PROMPT + 1, dtype=dtype),
        "negative_pooled_prompt_embeds": noise(batch, FEATURES, seed=NEGATIVE + 1, dtype=dtype),
        "height": 32,
        "width": 32,
        "num_frames": 5,
    }
    return _shared(steps, batch, seed, dtype) | _masks(batch) | more


HUNYUAN_VIDEO = TinyPipeline(
    name="hunyuan-video",
    make=_make_hunyuan_video,
    arguments=_hunyuan_video_arguments,
    branches=_cond_then_uncond,
    to_channels=_same,
    channels=4,
    scale_argument="true_cfg_scale",
)


# HunyuanVideo 1.5: a guider joins the branches; the network also gets the latents of an image and their mask


def _make_hunyuan_video_15() -> Any:
    import diffusers
    from diffusers.guiders import ClassifierFreeGuidance

    network = shaken(
        lambda: diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
            num_refiner_layers=1, text_embed_dim=FEATURES, text_embed_2_dim=FEATURES, image_embed_dim=FEATURES,
            rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
        ), STD,
    )  # fmt: skip
    vae = shaken(
        lambda: diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, spatial_compression_ratio=8
        )
    )
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=network,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipe.vision_num_semantic_tokens = 2
    return quiet(pipe)


def _hunyuan_video_15_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    mask = torch.ones(batch, TOKENS)
    more = {
        "prompt_embeds_2": noise(batch, TOKENS, FEATURES, seed=PROMPT + 1, dtype=dtype),
        "negative_prompt_embeds_2": noise(batch, TOKENS, FEATURES, seed=NEGATIVE + 1, dtype=dtype),
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds_mask": mask,
        "prompt_embeds_mask_2": mask,
        "negative_prompt_embeds_mask_2": mask,
        "height": 32,
        "width": 32,
        "num_frames": 5,
    }
    return _shared(steps, batch, seed, dtype) | more


HUNYUAN_VIDEO_15 = TinyPipeline(
    name="hunyuan-video-1.5",
    make=_make_hunyuan_video_15,
    arguments=_hunyuan_video_15_arguments,
    branches=_cond_then_uncond,
    to_channels=_same,
    channels=4,
    scale_argument=None,
)


# Kandinsky 5: channels last; the pipeline writes every step into one latents tensor


def _make_kandinsky5() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel

    network = shaken(
        lambda: Kandinsky5Transformer3DModel(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=FEATURES, in_text_dim2=FEATURES, time_dim=8,
            model_dim=16, ff_dim=16, num_text_blocks=1, num_visual_blocks=1, axes_dims=(2, 2, 4),
        ), STD,
    )  # fmt: skip
    return quiet(
        Kandinsky5T2VPipeline(
            transformer=network,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        )
    )


def _kandinsky5_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    given = _shared(steps, batch, seed, dtype)
    ends = torch.arange(batch + 1, dtype=torch.int32) * TOKENS
    return given | {
        "prompt_embeds_qwen": given.pop("prompt_embeds"),
        "negative_prompt_embeds_qwen": given.pop("negative_prompt_embeds"),
        "prompt_embeds_clip": noise(batch, FEATURES, seed=PROMPT + 1, dtype=dtype),
        "negative_prompt_embeds_clip": noise(batch, FEATURES, seed=NEGATIVE + 1, dtype=dtype),
        "prompt_cu_seqlens": ends,
        "negative_prompt_cu_seqlens": ends,
        "height": 32,
        "width": 32,
        "num_frames": 5,
    }


KANDINSKY5 = TinyPipeline(
    name="kandinsky-5",
    make=_make_kandinsky5,
    arguments=_kandinsky5_arguments,
    branches=_cond_then_uncond,
    to_channels=_channels_last,
    channels=4,
)


# Cosmos: needs a safety checker, and torchvision only to resize a padding mask that the network need not have


class _NothingToCheck:
    """Stands for the guardrail, which sees only the texts and frames that these tests do not have."""

    def to(self, device: Any) -> _NothingToCheck:
        return self


def _cosmos_network(**more: Any) -> Any:
    from diffusers import CosmosTransformer3DModel

    return shaken(
        lambda: CosmosTransformer3DModel(
            out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, mlp_ratio=2.0,
            text_embed_dim=FEATURES, adaln_lora_dim=4, max_size=(4, 8, 8), patch_size=(1, 2, 2),
            concat_padding_mask=False, **more,
        ), STD,
    )  # fmt: skip


def _make_cosmos1() -> Any:
    from diffusers import CosmosTextToWorldPipeline, EDMEulerScheduler

    return quiet(
        CosmosTextToWorldPipeline(
            text_encoder=None,
            tokenizer=None,
            transformer=_cosmos_network(in_channels=4, extra_pos_embed_type="learnable"),
            vae=None,
            scheduler=EDMEulerScheduler(
                sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule="karras", final_sigmas_type="sigma_min"
            ),
            safety_checker=_NothingToCheck(),
        )
    )


def _cosmos_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    return _shared(steps, batch, seed, dtype) | {"height": 32, "width": 32, "num_frames": 9}


def _cosmos1_branches(step: Step) -> tuple[Tensor, Tensor]:
    # Karras et al. 2022, table 1: from the network's output to x_0
    sigma, data = torch.tensor(step.sigma), 0.5
    skip = data**2 / (sigma**2 + data**2)
    out = sigma * data / (sigma**2 + data**2) ** 0.5
    cond, uncond = _cond_then_uncond(step)
    return skip * step.sample + out * cond, skip * step.sample + out * uncond


COSMOS1 = TinyPipeline(
    name="cosmos-1",
    make=_make_cosmos1,
    arguments=_cosmos_arguments,
    branches=_cosmos1_branches,
    to_channels=_same,
    channels=4,
    formula="c + s (c - u)",
    scheduler_calls=2,
)


def _make_cosmos2() -> Any:
    from diffusers import Cosmos2TextToImagePipeline, FlowMatchEulerDiscreteScheduler

    return quiet(
        Cosmos2TextToImagePipeline(
            text_encoder=None,
            tokenizer=None,
            transformer=_cosmos_network(in_channels=4, extra_pos_embed_type=None),
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
            safety_checker=_NothingToCheck(),
        )
    )


def _cosmos2_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    return _shared(steps, batch, seed, dtype) | {"height": 32, "width": 32}


def _cosmos2_branches(step: Step) -> tuple[Tensor, Tensor]:
    sigma = torch.tensor(step.sigma)
    noisy = sigma / (sigma + 1)

    def data(output: Tensor) -> Tensor:
        return ((1 - noisy) * step.sample + -noisy * output.float()).to(output.dtype)

    cond, uncond = _cond_then_uncond(step)
    return data(cond), data(uncond)


def _cosmos2_received(step: Step) -> Tensor:
    # the pipeline goes on with a slope, in fp32
    (output, *_), _ = step.outputs
    return (step.sample - step.model_output * torch.tensor(step.sigma)).to(output.dtype)


COSMOS2 = TinyPipeline(
    name="cosmos-2",
    make=_make_cosmos2,
    arguments=_cosmos2_arguments,
    branches=_cosmos2_branches,
    to_channels=_same,
    channels=4,
    formula="c + s (c - u)",
    received=_cosmos2_received,
    tolerance=1e-5,
)


def _make_cosmos25() -> Any:
    from diffusers import AutoencoderKLWan, Cosmos2_5_PredictBasePipeline, UniPCMultistepScheduler

    vae = shaken(
        lambda: AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        )
    )
    return quiet(
        Cosmos2_5_PredictBasePipeline(
            text_encoder=None,
            tokenizer=None,
            # one input channel more: the mask of the frames that are given
            transformer=_cosmos_network(in_channels=5, extra_pos_embed_type=None),
            vae=vae,
            scheduler=UniPCMultistepScheduler(**_WAN_UNIPC),
            safety_checker=_NothingToCheck(),
        )
    )


def _cosmos25_branches(step: Step) -> tuple[Tensor, Tensor]:
    # no frame is given, so that the mask leaves the numbers alone, but not their dtype
    cond, uncond = _cond_then_uncond(step)
    return cond.float(), uncond.float()


COSMOS25 = TinyPipeline(
    name="cosmos-2.5",
    make=_make_cosmos25,
    arguments=_cosmos_arguments,
    branches=_cosmos25_branches,
    to_channels=_same,
    channels=4,
    formula="c + s (c - u)",
)


VIDEO: tuple[TinyPipeline, ...] = (
    LATTE, LATTE_LEARNED_RANGE, ALLEGRO, COGVIDEOX, COGVIDEOX_DYNAMIC, MOCHI, LTX, LTX2, WAN21, WAN22, WAN22_5B,
    HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, KANDINSKY5, COSMOS1, COSMOS2, COSMOS25,
)  # fmt: skip
