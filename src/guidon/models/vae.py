"""The frame-wise autoencoder: each video frame alone to four latent channels and back.

diffusers' ``AutoencoderKL`` does the work; here it gets an optional pixel-unshuffle in front (cheap depth for small
frames), the video axes, one scalar scaling factor as in Stable Diffusion's VAE, and a decode in micro-batches.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FrameVAEConfig:
    """Shape of the autoencoder. ``scaling_factor`` brings its latents to unit standard deviation."""

    block_out_channels: tuple[int, ...] = (32, 64, 96)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 8
    mid_block_attention: bool = False
    pixel_unshuffle: int = 2
    scaling_factor: float = 0.18215

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel along one side."""
        return self.pixel_unshuffle * 2 ** (len(self.block_out_channels) - 1)


class FrameVAE(nn.Module):
    """Frames (B, 3, T, H, W) in [-1, 1] to scaled latents (B, C, T, H/f, W/f) and back."""

    def __init__(self, config: FrameVAEConfig) -> None:
        super().__init__()
        # seconds to import: only where frames are coded
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self.config = config
        levels = len(config.block_out_channels)
        pixels = 3 * config.pixel_unshuffle**2
        autoencoder: Any = AutoencoderKL  # its annotations are narrower than what it takes
        self.autoencoder = autoencoder(
            in_channels=pixels,
            out_channels=pixels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_block_attention,
            sample_size=64,
        )

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) in [-1, 1] -> mean and log variance of their unscaled latents, (N, C, h, w) each."""
        moments = self.autoencoder.quant_conv(self.autoencoder.encoder(self._fold(images)))
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Unscaled latents (N, C, h, w) -> images (N, 3, H, W)."""
        out = self.autoencoder.decoder(self.autoencoder.post_quant_conv(latents))
        return F.pixel_shuffle(out, self.config.pixel_unshuffle)

    def _fold(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.config.pixel_unshuffle)

    @torch.inference_mode()
    def encode(self, frames: Tensor, micro_batch: int = 64) -> Tensor:
        """The scaled posterior means of a video's frames; ``micro_batch`` frames are in memory at a time."""
        images = frames.transpose(1, 2).flatten(0, 1)
        means = torch.cat([self.posterior(part)[0] for part in images.split(micro_batch)])
        return (means * self.config.scaling_factor).unflatten(0, (frames.shape[0], -1)).transpose(1, 2)

    @torch.inference_mode()
    def decode(self, latents: Tensor, micro_batch: int = 32) -> Tensor:
        """Scaled latents (B, C, T, h, w) -> frames (B, 3, T, H, W) in [-1, 1], ``micro_batch`` frames at a time."""
        images = latents.transpose(1, 2).flatten(0, 1) / self.config.scaling_factor
        frames = torch.cat([self.reconstruct(part) for part in images.split(micro_batch)])
        return frames.clamp(-1, 1).unflatten(0, (latents.shape[0], -1)).transpose(1, 2)
