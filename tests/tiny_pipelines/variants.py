"""Pipelines that start from an image or a video, and others that share a family's loop (diffusers 0.42.1)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import video
from .contract import TinyPipeline, generator, noise, quiet, shaken

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
        self.temperal_downsample = [False, True, True]
        self.mixture = nn.Parameter(noise(channels, 3, seed=7), requires_grad=False)
        self.latents_mean, self.latents_std = torch.zeros(channels), torch.ones(channels)
        self.config = SimpleNamespace(
            **{
                "scaling_factor": 0.5, "shift_factor": 0.1, "block_out_channels": (1,) * 4, "z_dim": channels,
                "latent_channels": channels, "latents_mean": [0.1] * channels, "latents_std": [1.5] * channels,
                "scale_factor_spatial": space, "scale_factor_temporal": time, "temporal_compression_ratio": time,
                "invert_scale_latents": False, **config,
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


VARIANTS: tuple[TinyPipeline, ...] = (WAN_I2V, WAN_I2V_5B, WAN_V2V, WAN_VACE)
