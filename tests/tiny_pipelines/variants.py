"""Pipelines that start from an image or a video, and others that share a family's loop (diffusers 0.42.1)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import image, video
from .contract import Step, TinyPipeline, generator, noise, quiet, shaken
from .image import HEIGHT, NO_ENCODER, WIDTH

FRAMES, SIDE = 5, 32  # pixels of the videos; 2 latent frames of 4 x 4

Arguments = Callable[..., dict[str, Any]]


def _same(prediction: Tensor) -> Tensor:
    return prediction


class _Encoder(nn.Module):
    """Stands for an autoencoder: it keeps one pixel of 8 x 8, and one frame of 4, in random mixtures of the colours."""

    dtype = torch.float32

    def __init__(self, channels: int, space: int = 8, time: int = 4, **config: Any) -> None:
        super().__init__()
        self.space, self.time = space, time
        self.spatial_compression_ratio, self.temporal_compression_ratio = space, time
        halvings = space.bit_length() - 1
        self.temperal_downsample = [halving >= halvings - 2 for halving in range(halvings)]
        self.mixture = nn.Parameter(noise(channels, 3, seed=7), requires_grad=False)
        self.latents_mean, self.latents_std = torch.zeros(channels), torch.ones(channels)
        self.config = SimpleNamespace(
            **{
                "scaling_factor": 0.5, "shift_factor": 0.1, "block_out_channels": (1,) * 4, "z_dim": channels,
                "latent_channels": channels, "latents_mean": [0.1] * channels, "latents_std": [1.5] * channels,
                "scale_factor_spatial": space, "scale_factor_temporal": time, "temporal_compression_ratio": time,
                "spatial_compression_ratio": space, "invert_scale_latents": False, "force_upcast": False, **config,
            }
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.mixture.device

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        pixels = pixels[..., :: self.space, :: self.space].float()
        pixels = pixels[:, :, :: self.time] if pixels.ndim == 5 else pixels
        latents = torch.einsum("cd,bd...->bc...", self.mixture.float(), pixels).to(self.mixture.dtype)
        distribution = SimpleNamespace(sample=lambda generator=None: latents, mode=lambda: latents)
        return SimpleNamespace(latent_dist=distribution)


def _after_first(frames: Tensor) -> Tensor:
    """(B, C, T, H, W) without the first frame: it is given, and what is predicted of it is dropped."""
    return frames[:, :, 1:]


def _pixels(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(11))


def _image(batch: int, height: int = SIDE, width: int = SIDE) -> dict[str, Any]:
    return {"image": _pixels(1, 3, height, width).repeat(batch, 1, 1, 1)}


def _with(arguments: Arguments, more: Callable[[int], dict[str, Any]], without: tuple[str, ...] = ()) -> Arguments:
    """The same arguments and more, which depend on the batch."""

    def called(*, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        given = arguments(steps=steps, batch=batch, seed=seed, dtype=dtype) | more(batch)
        return {name: value for name, value in given.items() if name not in without}

    return called


def _strong(arguments: Arguments) -> Arguments:
    """Half of twice as many steps: the run begins in the middle of its schedule."""

    def called(**given: Any) -> dict[str, Any]:
        found = arguments(**given)
        return found | {"num_inference_steps": 2 * found["num_inference_steps"], "strength": 0.5}

    return called


# Wan: an image beside the latents, or in their first frame; a video as the start; a video as a condition


def _wan_network(kind: str = "WanTransformer3DModel", seed: int = 0, **more: Any) -> Any:
    import diffusers

    settings = {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
        "text_dim": video.FEATURES, "freq_dim": 8, "ffn_dim": 16, "num_layers": 1, "rope_max_seq_len": 16,
    }  # fmt: skip
    return shaken(lambda: getattr(diffusers, kind)(**settings | more), video.STD, seed)


def _make_wan(kind: str, network: Any, **more: Any) -> Any:
    import diffusers

    return quiet(
        getattr(diffusers, kind)(
            tokenizer=None, text_encoder=None, vae=_Encoder(4), transformer=network,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **more,
        )
    )  # fmt: skip


def _wan(name: str, make: Callable[[], Any], arguments: Arguments, **more: Any) -> TinyPipeline:
    shared: dict[str, Any] = {"branches": video._cond_then_uncond, "to_channels": _same, "channels": 4}
    return TinyPipeline(name=name, make=make, arguments=arguments, **shared | more)


WAN_I2V = _wan(
    "wan-2.2-image-to-video",
    # 4 channels of latents, 4 of the mask, 4 of the image; one expert for high noise and one for low noise
    lambda: _make_wan(
        "WanImageToVideoPipeline", _wan_network(in_channels=12), transformer_2=_wan_network(in_channels=12, seed=1),
        image_encoder=None, image_processor=None, boundary_ratio=0.875,
    ),
    _with(video._wan_arguments, lambda batch: _image(1) | {"guidance_scale_2": video._WAN_SCALE_2}),
    networks=("transformer", "transformer_2"),
    scale_at=video._wan22_scale,
)  # fmt: skip
WAN_I2V_5B = _wan(
    "wan-2.2-5b-image-to-video",
    lambda: _make_wan(
        "WanImageToVideoPipeline", _wan_network(), image_encoder=None, image_processor=None, expand_timesteps=True
    ),
    _with(video._wan_arguments, lambda batch: _image(1)),
    to_channels=_after_first,
)
WAN_V2V = _wan(
    "wan-video-to-video",
    lambda: _make_wan("WanVideoToVideoPipeline", _wan_network()),
    _strong(
        _with(
            video._wan_arguments,
            lambda batch: {"video": _pixels(1, FRAMES, 3, SIDE, SIDE).repeat(batch, 1, 1, 1, 1)},
            without=("num_frames",),
        )
    ),
)
WAN_VACE = _wan(
    "wan-vace",
    lambda: _make_wan(
        "WanVACEPipeline",
        _wan_network("WanVACETransformer3DModel", num_layers=2, vace_layers=[0], vace_in_channels=8 + 64),
    ),
    _with(video._wan_arguments, lambda batch: {"video": _pixels(1, FRAMES, 3, SIDE, SIDE)}),
    most=1,
)


# Stable Diffusion: an image as the start, a mask, a control network. An inpainting network has 9 input channels


def _picture(batch: int) -> dict[str, Any]:
    return {"image": _pixels(1, 3, HEIGHT, WIDTH)}


def _masked_picture(batch: int) -> dict[str, Any]:
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., WIDTH // 2 :] = 1
    return _picture(batch) | {"mask_image": mask}


_ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56}
_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_XL = {"tokenizer_2": None, "text_encoder_2": None, "add_watermarker": False}


def _make_sd(kind: str, more: dict[str, Any], **network: Any) -> Any:
    import diffusers

    euler = kind.startswith(("StableDiffusionXL", "Kolors"))
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = (
        diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **settings)
        if euler
        else diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **settings)
    )
    if "ControlNet" in kind:
        shared = {name: value for name, value in image._UNET.items() if name not in
                  ("sample_size", "out_channels", "up_block_types")} | {"conditioning_embedding_out_channels": (4, 8, 8, 8)}  # fmt: skip
        more = more | {"controlnet": shaken(lambda: diffusers.ControlNetModel(**shared, **network), seed=1)}
    unet = shaken(lambda: diffusers.UNet2DConditionModel(**image._UNET | network))
    return quiet(getattr(diffusers, kind)(unet=unet, scheduler=scheduler, **NO_ENCODER | {"vae": _Encoder(4)} | more))


def _sd(name: str, make: Callable[[], Any], arguments: Arguments, **more: Any) -> TinyPipeline:
    shared: dict[str, Any] = {
        "branches": image._uncond_first,
        "to_channels": _same,
        "channels": 4,
        "networks": ("unet",),
    }
    return TinyPipeline(name=name, make=make, arguments=arguments, **shared | more)


_SIZES = ("height", "width")
_sd_arguments = image._called_with(image._embeddings(16))
_xl_arguments = image._called_with(image._embeddings(16, pooled=8))

SD_IMG2IMG = _sd(
    "sd-1.5-image-to-image",
    lambda: _make_sd("StableDiffusionImg2ImgPipeline", _NO_CHECKER),
    _strong(_with(_sd_arguments, _picture, without=_SIZES)),
)
SD_INPAINT = _sd(
    "sd-1.5-inpaint",
    # 4 channels of latents, 1 of the mask, 4 of the masked image
    lambda: _make_sd("StableDiffusionInpaintPipeline", _NO_CHECKER, in_channels=9),
    _strong(_with(_sd_arguments, _masked_picture)),
)
SD_INPAINT_4 = _sd(
    "sd-1.5-inpaint-of-4-channels",
    lambda: _make_sd("StableDiffusionInpaintPipeline", _NO_CHECKER),
    _strong(_with(_sd_arguments, _masked_picture)),
)
SD_CONTROL = _sd(
    "sd-1.5-controlnet",
    lambda: _make_sd("StableDiffusionControlNetPipeline", _NO_CHECKER),
    _with(_sd_arguments, _picture),
)
SDXL_IMG2IMG = _sd(
    "sdxl-image-to-image",
    lambda: _make_sd("StableDiffusionXLImg2ImgPipeline", _XL, **_ADDED),
    _strong(_with(_xl_arguments, _picture, without=_SIZES)),
)
SDXL_INPAINT = _sd(
    "sdxl-inpaint",
    lambda: _make_sd("StableDiffusionXLInpaintPipeline", _XL, in_channels=9, **_ADDED),
    _strong(_with(_xl_arguments, _masked_picture)),
)
SDXL_CONTROL = _sd(
    "sdxl-controlnet",
    lambda: _make_sd("StableDiffusionXLControlNetPipeline", _XL, **_ADDED),
    _with(_xl_arguments, _picture),
)
KOLORS = _sd("kolors", lambda: _make_sd("KolorsPipeline", {}, **_ADDED), _xl_arguments)


def _make_animatediff() -> Any:
    import diffusers

    unet = shaken(
        lambda: diffusers.UNetMotionModel(
            sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=16,
            down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
            up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"), num_attention_heads=2,
            motion_num_attention_heads=2,
        )
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    return quiet(diffusers.AnimateDiffPipeline(unet=unet, motion_adapter=None, scheduler=scheduler, **NO_ENCODER))


ANIMATEDIFF = _sd("animatediff", _make_animatediff, _with(_sd_arguments, lambda batch: {"num_frames": 2}))


# Stable Diffusion 3


def _make_sd3(kind: str) -> Any:
    import diffusers

    made = image._make_sd3().components
    return quiet(getattr(diffusers, kind)(**made | {"vae": _Encoder(16)}))


SD3_IMG2IMG = TinyPipeline(
    name="sd3-image-to-image",
    make=lambda: _make_sd3("StableDiffusion3Img2ImgPipeline"),
    arguments=_strong(_with(image.SD3.arguments, _picture)),
    branches=image._uncond_first,
    to_channels=_same,
    channels=16,
)


# AuraFlow, CogView 4, HunyuanDiT


def _make_auraflow() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=16, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, out_channels=4,
            pos_embed_max_size=256,
        )
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73)
    return quiet(diffusers.AuraFlowPipeline(transformer=network, scheduler=scheduler, **NO_ENCODER))


AURAFLOW = TinyPipeline(
    name="auraflow",
    make=_make_auraflow,
    arguments=image._called_with(image._masked(image._embeddings(16))),
    branches=image._uncond_first,
    to_channels=_same,
    channels=4,
)


def _make_cogview4() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.CogView4Transformer2DModel(
            in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            text_embed_dim=16, time_embed_dim=8, condition_dim=4, rope_axes_dim=(16, 16),
        )
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return quiet(diffusers.CogView4Pipeline(transformer=network, scheduler=scheduler, **NO_ENCODER))


COGVIEW4 = TinyPipeline(
    name="cogview-4",
    make=_make_cogview4,
    arguments=image._called_with(image._embeddings(16)),
    branches=image._cond_call_first,
    to_channels=_same,
    channels=4,
)


def _make_hunyuan_dit() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.HunyuanDiT2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=32,
            num_layers=2, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=8,
            text_len=image.TOKENS, text_len_t5=image.TOKENS,
        )
    )  # fmt: skip
    return quiet(
        diffusers.HunyuanDiTPipeline(
            transformer=network, scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False),
            **NO_ENCODER, **_NO_CHECKER,
        )
    )  # fmt: skip


def _hunyuan_dit_prompts(batch: int, dtype: torch.dtype) -> dict[str, Any]:
    first = image._masked(image._embeddings(8))(batch, dtype)
    return first | {f"{name}_2": -value if value.dtype.is_floating_point else value for name, value in first.items()}


HUNYUAN_DIT = TinyPipeline(
    name="hunyuan-dit",
    make=_make_hunyuan_dit,
    arguments=image._called_with(_hunyuan_dit_prompts, use_resolution_binning=False),
    branches=image._pixart_branches,
    to_channels=_same,
    channels=4,
)


# packed images: Flux, Chroma, Qwen-Image. Reference tokens follow those of the latents


def _made_of(kind: str, tiny: TinyPipeline, vae: _Encoder, **more: Any) -> Any:
    """A pipeline with the network and the scheduler of another."""
    import diffusers

    return quiet(getattr(diffusers, kind)(**{**tiny.make().components, "vae": vae, **more}))


def _packed(name: str, make: Callable[[], Any], arguments: Arguments, like: TinyPipeline, **more: Any) -> TinyPipeline:
    shared: dict[str, Any] = {
        "branches": like.branches, "to_channels": like.to_channels, "channels": like.channels,
        "scale_argument": like.scale_argument, "normalise": like.normalise,
    }  # fmt: skip
    return TinyPipeline(name=name, make=make, arguments=arguments, **shared | more)


def _first_tokens(step: Step) -> tuple[Tensor, Tensor]:
    """Two calls; reference tokens come after those of the latents."""
    tokens = HEIGHT // 16 * WIDTH // 16
    (cond,), (uncond,) = step.outputs
    return cond[:, :tokens], uncond[:, :tokens]


FLUX_IMG2IMG = _packed(
    "flux-image-to-image",
    lambda: _made_of("FluxImg2ImgPipeline", image.FLUX, _Encoder(16)),
    _strong(_with(image.FLUX.arguments, _picture)),
    image.FLUX,
)
FLUX_KONTEXT = _packed(
    "flux-kontext",
    lambda: _made_of("FluxKontextPipeline", image.FLUX, _Encoder(16)),
    # the reference image is larger than the one that is made
    _with(
        image.FLUX.arguments,
        lambda batch: {"image": _pixels(1, 3, 2 * HEIGHT, WIDTH), "max_area": HEIGHT * WIDTH, "_auto_resize": False},
    ),
    image.FLUX,
    branches=_first_tokens,
)
CHROMA_IMG2IMG = _packed(
    "chroma-image-to-image",
    lambda: _made_of("ChromaImg2ImgPipeline", image.CHROMA, _Encoder(16)),
    _strong(_with(image.CHROMA.arguments, _picture)),
    image.CHROMA,
)
QWEN_IMG2IMG = _packed(
    "qwen-image-to-image",
    lambda: _made_of("QwenImageImg2ImgPipeline", image.QWEN_IMAGE, _Encoder(16)),
    _strong(_with(image.QWEN_IMAGE.arguments, _picture)),
    image.QWEN_IMAGE,
)


def _colours(batch: int) -> dict[str, Any]:
    from PIL import Image

    pixels = (_pixels(32, 32, 3) * 255).to(torch.uint8)
    # the encoder of this tiny pipeline keeps one pixel of 64 x 64, because the pipeline makes the image 1024 x 1024
    return {"image": Image.fromarray(pixels.numpy()), "height": 8 * HEIGHT, "width": 8 * WIDTH}


QWEN_EDIT = _packed(
    "qwen-image-edit",
    lambda: _made_of("QwenImageEditPipeline", image.QWEN_IMAGE, _Encoder(16, space=64), processor=None),
    _with(image.QWEN_IMAGE.arguments, _colours),
    image.QWEN_IMAGE,
    branches=_first_tokens,
)


# Z-Image

Z_IMAGE_IMG2IMG = _packed(
    "z-image-to-image",
    lambda: _made_of("ZImageImg2ImgPipeline", image.Z_IMAGE, _Encoder(16)),
    _strong(_with(image.Z_IMAGE.arguments, _picture)),
    image.Z_IMAGE,
    unguided_scale=0.0,
    formula="c + s (c - u)",
)


# video: Sana, CogVideoX, ConsisID, LTX-Video, HunyuanVideo, Kandinsky 5, SkyReels-V2


def _make_sana_video() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.SanaVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
            num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24,
            caption_channels=video.FEATURES, sample_size=4, rope_max_seq_len=16,
        ), video.STD,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0, final_sigmas_type="zero"
    )
    return quiet(diffusers.SanaVideoPipeline(transformer=network, scheduler=scheduler, **NO_ENCODER))


def _sana_video_arguments(
    *, steps: int = 3, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    return video._shared(steps, batch, seed, dtype)


def _sana_video_more(batch: int) -> dict[str, Any]:
    size = {"height": SIDE, "width": SIDE, "frames": FRAMES, "use_resolution_binning": False}
    return size | {"negative_prompt": None} | video._masks(batch)


SANA_VIDEO = TinyPipeline(
    name="sana-video",
    make=_make_sana_video,
    arguments=_with(_sana_video_arguments, _sana_video_more),
    branches=video._uncond_first_in_fp32,
    to_channels=_same,
    channels=4,
)


def _make_cogvideox(kind: str, network: str) -> Any:
    import diffusers

    made = shaken(
        lambda: getattr(diffusers, network)(
            num_attention_heads=2, attention_head_dim=8, in_channels=8, out_channels=4, num_layers=1,
            time_embed_dim=8, text_embed_dim=video.FEATURES, max_text_seq_length=video.TOKENS, sample_width=4,
            sample_height=4, sample_frames=FRAMES,
        ), video.STD,
    )  # fmt: skip
    return _made_of(kind, video.COGVIDEOX, _Encoder(4), transformer=made)


COGVIDEOX_I2V = TinyPipeline(
    name="cogvideox-image-to-video",
    make=lambda: _make_cogvideox("CogVideoXImageToVideoPipeline", "CogVideoXTransformer3DModel"),
    arguments=_with(video._cogvideox_arguments, _image),
    branches=video._uncond_first_in_fp32,
    to_channels=video._channels_third,
    channels=4,
)
CONSISID = TinyPipeline(
    name="consisid",
    make=lambda: _make_cogvideox("ConsisIDPipeline", "ConsisIDTransformer3DModel"),
    arguments=_with(video._cogvideox_arguments, _image),
    branches=video._uncond_first_in_fp32,
    to_channels=video._channels_third,
    channels=4,
)


def _ltx_branches(step: Step) -> tuple[Tensor, Tensor]:
    # 2 frames of 2 x 2 tokens; the first frame is given
    cond, uncond = (branch.movedim(-1, 1).unflatten(2, (2, 2, 2)) for branch in video._uncond_first_in_fp32(step))
    return _after_first(cond), _after_first(uncond)


LTX_I2V = TinyPipeline(
    name="ltx-image-to-video",
    make=lambda: _made_of("LTXImageToVideoPipeline", video.LTX, _Encoder(4, space=32, time=8)),
    arguments=_with(video._ltx_arguments, lambda batch: _image(batch, 64, 64)),
    branches=_ltx_branches,
    to_channels=_same,
    channels=4,
)


def _make_ltx_condition() -> Any:
    import diffusers

    return _made_of(
        "LTXConditionPipeline", video.LTX, _Encoder(4, space=32, time=8),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


LTX_CONDITION = TinyPipeline(
    name="ltx-condition",
    make=_make_ltx_condition,
    arguments=_with(video._ltx_arguments, lambda batch: {"image": _pixels(1, 3, 64, 64)}),
    branches=video._uncond_first,
    # the first 4 tokens are the frame that is given
    to_channels=lambda tokens: tokens[:, 4:].movedim(-1, 1),
    channels=4,
    # a step whose tokens have timesteps of their own takes the opposite sign
    received=lambda step: -step.model_output,
)


def _make_hunyuan_video(way: str) -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    network = shaken(
        lambda: HunyuanVideoTransformer3DModel(
            in_channels=4 if way == "token_replace" else 9, out_channels=4, num_attention_heads=2,
            attention_head_dim=8, num_layers=1, num_single_layers=1, num_refiner_layers=1,
            text_embed_dim=video.FEATURES, pooled_projection_dim=video.FEATURES, rope_axes_dim=(2, 2, 4),
            image_condition_type=way, guidance_embeds=way == "token_replace",
        ), video.STD,
    )  # fmt: skip
    kind, more = "HunyuanVideoImageToVideoPipeline", {"transformer": network, "image_processor": None}
    return _made_of(kind, video.HUNYUAN_VIDEO, _Encoder(4), **more)


def _dropped_first(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = video._cond_then_uncond(step)
    return _after_first(cond), _after_first(uncond)


HUNYUAN_VIDEO_CONCAT = TinyPipeline(
    name="hunyuan-image-to-video-concat",
    make=lambda: _make_hunyuan_video("latent_concat"),
    arguments=_with(video._hunyuan_video_arguments, _image),
    branches=video._cond_then_uncond,
    to_channels=_same,
    channels=4,
    scale_argument="true_cfg_scale",
)
HUNYUAN_VIDEO_REPLACE = TinyPipeline(
    name="hunyuan-image-to-video-replace",
    make=lambda: _make_hunyuan_video("token_replace"),
    arguments=_with(video._hunyuan_video_arguments, _image),
    branches=_dropped_first,
    to_channels=_same,
    channels=4,
    scale_argument="true_cfg_scale",
)


def _make_kandinsky5_t2i() -> Any:
    pipe = _made_of("Kandinsky5T2IPipeline", video.KANDINSKY5, _Encoder(4))
    pipe.resolutions = [(SIDE, SIDE)]
    return pipe


def _make_kandinsky5_i2v() -> Any:
    from diffusers import Kandinsky5Transformer3DModel

    network = shaken(
        lambda: Kandinsky5Transformer3DModel(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=video.FEATURES, in_text_dim2=video.FEATURES, time_dim=8,
            model_dim=16, ff_dim=16, num_text_blocks=1, num_visual_blocks=1, axes_dims=(2, 2, 4), visual_cond=True,
        ), video.STD,
    )  # fmt: skip
    return _made_of("Kandinsky5I2VPipeline", video.KANDINSKY5, _Encoder(4), transformer=network)


def _kandinsky5_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = video._cond_then_uncond(step)
    return cond[:, 1:], uncond[:, 1:]


KANDINSKY5_T2I = TinyPipeline(
    name="kandinsky-5-image",
    make=_make_kandinsky5_t2i,
    arguments=_with(video._kandinsky5_arguments, lambda batch: {}, without=("num_frames",)),
    branches=video._cond_then_uncond,
    to_channels=video._channels_last,
    channels=4,
)
KANDINSKY5_I2V = TinyPipeline(
    name="kandinsky-5-image-to-video",
    make=_make_kandinsky5_i2v,
    # the pipeline adjusts the mean of the first frame to those from the sixth on
    arguments=_with(video._kandinsky5_arguments, lambda batch: _image(batch) | {"num_frames": 25}),
    branches=_kandinsky5_branches,
    to_channels=video._channels_last,
    channels=4,
)


def _make_skyreels() -> Any:
    import diffusers

    network = shaken(
        lambda: diffusers.SkyReelsV2Transformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=video.FEATURES,
            freq_dim=8, ffn_dim=16, num_layers=1, rope_max_seq_len=16,
        ), video.STD,
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(**video._WAN_UNIPC)
    return quiet(diffusers.SkyReelsV2Pipeline(transformer=network, scheduler=scheduler, **NO_ENCODER))


SKYREELS = _wan("skyreels-v2", _make_skyreels, video._wan_arguments)


# Cosmos 2: the first latent frame is given


def _make_cosmos2() -> Any:
    import diffusers

    return quiet(
        diffusers.Cosmos2VideoToWorldPipeline(
            text_encoder=None, tokenizer=None, vae=_Encoder(4), safety_checker=video._NothingToCheck(),
            # one input channel more: the mask of the frames that are given
            transformer=video._cosmos_network(in_channels=5, extra_pos_embed_type=None),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        )
    )  # fmt: skip


def _cosmos2_branches(step: Step) -> tuple[Tensor, Tensor]:
    cond, uncond = video._cosmos2_branches(step)
    return _after_first(cond), _after_first(uncond)


COSMOS2_V2W = TinyPipeline(
    name="cosmos-2-video-to-world",
    make=_make_cosmos2,
    arguments=_with(video._cosmos_arguments, lambda batch: _image(1)),
    branches=_cosmos2_branches,
    to_channels=_same,
    channels=4,
    formula="c + s (c - u)",
    received=lambda step: _after_first(video._cosmos2_received(step)),
    noisy=lambda step: _after_first(step.sample),
    tolerance=1e-5,
)


VARIANTS: tuple[TinyPipeline, ...] = (
    WAN_I2V, WAN_I2V_5B, WAN_V2V, WAN_VACE, SD_IMG2IMG, SD_INPAINT, SD_INPAINT_4, SD_CONTROL, SDXL_IMG2IMG,
    SDXL_INPAINT, SDXL_CONTROL, KOLORS, ANIMATEDIFF, SD3_IMG2IMG, AURAFLOW, COGVIEW4, HUNYUAN_DIT, FLUX_IMG2IMG,
    FLUX_KONTEXT, CHROMA_IMG2IMG, QWEN_IMG2IMG, QWEN_EDIT, Z_IMAGE_IMG2IMG, SANA_VIDEO, COGVIDEOX_I2V, CONSISID,
    LTX_I2V, LTX_CONDITION, HUNYUAN_VIDEO_CONCAT, HUNYUAN_VIDEO_REPLACE, KANDINSKY5_T2I, KANDINSKY5_I2V, SKYREELS,
    COSMOS2_V2W,
)  # fmt: skip
