"""Tiny random pipelines with all their parts, as ``save_pretrained`` writes them: tokenizer, text encoder, autoencoder.

They take prompts and give frames. ``write_pipeline(name, folder)`` writes one of ``WHOLE``. The weights are shaken, so
that prompts and channels differ.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contract import quiet, shaken

FEATURES = 16  # width of the text features
STD = 0.3  # how much the weights of the denoisers are shaken
SIDE = 32  # pixels
LETTERS = (*string.ascii_lowercase, *string.digits)


def _t5(kind: str = "T5EncoderModel", config: str = "T5Config") -> dict[str, Any]:
    import transformers

    vocabulary = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS, *(f"\u2581{letter}" for letter in LETTERS)]
    tokenizer = transformers.T5Tokenizer(vocab=[(word, -1.0) for word in vocabulary], extra_ids=0)
    settings = getattr(transformers, config)(
        vocab_size=len(vocabulary), d_model=FEATURES, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": shaken(lambda: getattr(transformers, kind)(settings), 0.1, seed=1),
    }


def _clip() -> dict[str, Any]:
    import transformers

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    settings = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=FEATURES, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )  # fmt: skip
    return {
        "tokenizer": transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16),
        "text_encoder": shaken(lambda: transformers.CLIPTextModel(settings), 0.1, seed=1),
    }


def _autoencoder(channels: int, **more: Any) -> Any:
    """Stable Diffusion's: a latent pixel is 8 x 8 pixels."""
    import diffusers

    settings: dict[str, Any] = {
        "block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "latent_channels": channels, "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    return shaken(lambda: diffusers.AutoencoderKL(**settings | more), 0.1, seed=2)


def _pixart() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
            cross_attention_dim=16, sample_size=4, caption_channels=FEATURES, use_additional_conditions=False,
        ), STD,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        transformer=network, scheduler=diffusers.DPMSolverMultistepScheduler(), vae=_autoencoder(4), **_t5()
    )


def _stable_diffusion() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=FEATURES, attention_head_dim=4,
        ), 0.1,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        unet=network, scheduler=diffusers.DDIMScheduler(clip_sample=False), vae=_autoencoder(4), **_clip(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _wan() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=FEATURES, freq_dim=8,
            ffn_dim=16, num_layers=1, rope_max_seq_len=16,
        ), STD,
    )  # fmt: skip
    vae = shaken(
        lambda: diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 1.2, 0.8],
        ), 0.1, seed=2,
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    return diffusers.WanPipeline(
        transformer=network, scheduler=scheduler, vae=vae, **_t5("UMT5EncoderModel", "UMT5Config")
    )


def _cogvideox() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=1, time_embed_dim=8,
            text_embed_dim=FEATURES, max_text_seq_length=8, sample_width=4, sample_height=4, sample_frames=5,
        ), STD,
    )  # fmt: skip
    vae = shaken(
        lambda: diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2,
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            temporal_compression_ratio=4,
        ), 0.1, seed=2,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    return diffusers.CogVideoXPipeline(transformer=network, scheduler=scheduler, vae=vae, **_t5())


def _ltx() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            num_layers=1, caption_channels=FEATURES,
        ), STD,
    )  # fmt: skip
    vae = shaken(
        lambda: diffusers.AutoencoderKLLTXVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
            patch_size=1, patch_size_t=1, timestep_conditioning=False,
        ), 0.1, seed=2,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    return diffusers.LTXPipeline(transformer=network, scheduler=scheduler, vae=vae, **_t5())


def _flux() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=FEATURES, pooled_projection_dim=FEATURES,
            axes_dims_rope=(4, 4, 8),
        ), STD,
    )  # fmt: skip
    second = {f"{name}_2": part for name, part in _t5().items()}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    vae = _autoencoder(4, scaling_factor=0.36, shift_factor=0.11, use_quant_conv=False, use_post_quant_conv=False)
    return diffusers.FluxPipeline(transformer=network, scheduler=scheduler, vae=vae, **_clip(), **second)


WHOLE: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "pixart": (_pixart, {"height": SIDE, "width": SIDE, "use_resolution_binning": False, "max_sequence_length": 8}),
    "sd": (_stable_diffusion, {"height": SIDE, "width": SIDE}),
    "wan": (_wan, {"height": SIDE, "width": SIDE, "num_frames": 5, "max_sequence_length": 8}),
    "cogvideox": (_cogvideox, {"height": SIDE, "width": SIDE, "num_frames": 5, "max_sequence_length": 8}),
    "ltx": (_ltx, {"height": SIDE, "width": 2 * SIDE, "num_frames": 9, "max_sequence_length": 8}),
    "flux": (_flux, {"height": SIDE, "width": 2 * SIDE, "max_sequence_length": 8}),
}
"""By name: what makes the pipeline, and the arguments of a small call."""


def make_pipeline(name: str) -> Any:
    """The pipeline of that name, on the CPU."""
    return quiet(WHOLE[name][0]())


def write_pipeline(name: str, folder: Path) -> Path:
    """Write the pipeline of that name into a folder, as its ``save_pretrained`` does."""
    make_pipeline(name).save_pretrained(folder)
    return folder
