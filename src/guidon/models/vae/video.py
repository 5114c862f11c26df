"""Open-Sora 1.2's autoencoder: every frame by itself to latents, then several of these to one in time.

``VideoVAE`` is an ``Autoencoder`` of the pipeline, and takes the place of Open-Sora's ``VideoAutoencoderPipeline``.
Time is cut into parts of 17 frames, which are 5 latent frames; no part sees another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from ...core.errors import InputError, quoted, setting
from . import FRAMES_TOGETHER
from .convolutions import between
from .temporal import Posterior, TemporalVAE

Draws = Callable[[Tensor], Tensor]
"""Gives standard normal values shaped like its argument."""
TOGETHER: Final = 4
"""Frames that the original encodes and decodes in one pass."""
SPATIAL_SCALE: Final = 0.18215
"""What the latents of single frames are multiplied by: Stable Diffusion's factor, with SDXL's weights."""
SHIFT: Final = (-0.10, 0.34, 0.27, 0.98)
SCALE: Final = (3.85, 2.32, 2.33, 3.06)
"""Mean and standard deviation of each latent channel (Open-Sora v1.2.0, ``OpenSoraVAE_V1_2``)."""


class SpatialVAE(nn.Module):
    """diffusers' ``AutoencoderKL`` for each frame: video (B, 3, T, H, W) to latents (B, C, T, h, w), and back.

    Args:
        module: the autoencoder.
        scale: what its latents are multiplied by.
    """

    def __init__(self, module: nn.Module, scale: float = SPATIAL_SCALE) -> None:
        super().__init__()
        self.module: Any = module
        self.scale = scale

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel along one side."""
        return 2 ** (len(self.module.config.block_out_channels) - 1)

    def get_latent_size(self, input_size: Sequence[int | None]) -> list[int | None]:
        """(T, H, W) in pixels -> (T, h, w). None stays None."""
        frames, *sides = input_size
        return [frames, *(None if side is None else side // self.downsampling for side in sides)]

    def encode(self, frames: Tensor, draws: Draws | None = None, together: int = TOGETHER) -> Tensor:
        """The scaled latents of frames: means, or one draw of each where ``draws`` is given."""

        def encoded(images: Tensor) -> Tensor:
            posterior = Posterior.of(between(self.module.quant_conv, self.module.encoder(images)))
            return posterior.mean if draws is None else posterior.sample(draws)

        return self._each(frames, encoded, together) * self.scale

    def decode(self, latents: Tensor, together: int = TOGETHER) -> Tensor:
        """Frames of scaled latents. They may leave [-1, 1] a little."""

        def decoded(part: Tensor) -> Tensor:
            return self.module.decoder(between(self.module.post_quant_conv, part))

        return self._each(latents / self.scale, decoded, together)

    @staticmethod
    def _each(x: Tensor, convert: Callable[[Tensor], Tensor], together: int) -> Tensor:
        images = x.transpose(1, 2).flatten(0, 1)
        converted = torch.cat([convert(part) for part in images.split(together)])
        return converted.unflatten(0, (len(x), -1)).transpose(1, 2)


class VideoVAE(nn.Module):
    """Video (B, 3, T, H, W) in [-1, 1] to normalised latents (B, C, T', h, w), and back. Images have no T.

    Args:
        spatial: the autoencoder of single frames: an ``AutoencoderKL`` of diffusers, whose posterior is sampled; an
            object with ``encode`` and ``decode`` between video and latents (B, C, T, h, w); or None, where what comes
            in is such latents already.
        temporal: the autoencoder over time.
        micro_frame_size: frames that are encoded together; None for all.
        shift, scale: latents are (z - shift) / scale: a number each, or one for each channel.
        posterior: what ``encode`` gives. "sample" draws from torch's global generator, as the original does. "mean"
            draws nothing.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        spatial: Any = None,
        temporal: TemporalVAE | None = None,
        micro_frame_size: int | None = 17,
        shift: float | Sequence[float] = SHIFT,
        scale: float | Sequence[float] = SCALE,
        posterior: Literal["sample", "mean"] = "sample",
    ) -> None:
        super().__init__()
        if micro_frame_size is not None and micro_frame_size < 1:
            raise InputError(f"micro_frame_size is {micro_frame_size}: give frames that are encoded together, or None")
        if posterior not in ("sample", "mean"):
            raise InputError(f"posterior is {quoted(posterior)}: give 'sample' or 'mean'")
        self.temporal_vae = TemporalVAE() if temporal is None else temporal
        if isinstance(spatial, nn.Identity):
            spatial = None
        is_kl = isinstance(spatial, nn.Module) and hasattr(spatial, "encoder") and not isinstance(spatial, VideoVAE)
        self.spatial_vae: Any = SpatialVAE(spatial) if is_kl else spatial
        self.micro_frame_size, self.posterior = micro_frame_size, posterior
        channels = self.temporal_vae.config.embed_dim
        for name, given in (("scale", scale), ("shift", shift)):
            values = torch.as_tensor(given, dtype=torch.float32, device="cpu")
            if values.ndim > 1 or (values.ndim == 1 and len(values) != channels):
                raise InputError(
                    f"{name} has {values.numel()} values for {channels} latent channels: give one for each"
                )
            self.register_buffer(name, values[None, :, None, None, None] if values.ndim else values)

    @classmethod
    def load(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> VideoVAE:
        """The released autoencoder (hpcai-tech/OpenSora-VAE-v1.2) from its folder or file. It encodes to means.

        Raises:
            InputError: there is no such file, it is damaged or incomplete, or it holds something else.
        """
        from .checkpoint import load_video_vae

        return load_video_vae(path, dtype)

    # sizes

    def latent_frames(self, frames: int) -> int:
        """The latent frames of so many frames: parts of ``micro_frame_size``, and what is left."""
        count = self.temporal_vae.latent_frames
        if self.micro_frame_size is None:
            return count(frames)
        whole, rest = divmod(frames, self.micro_frame_size)
        return whole * count(self.micro_frame_size) + count(rest)

    def frames_of(self, latent_frames: int) -> int:
        """The most frames that so many latent frames may stand for; one, an image, for one."""
        if latent_frames == 1:
            return 1
        compression = self.temporal_vae.config.compression
        if self.micro_frame_size is None:
            return latent_frames * compression
        whole, rest = divmod(latent_frames, self.temporal_vae.latent_frames(self.micro_frame_size))
        return whole * self.micro_frame_size + rest * compression

    def get_latent_size(self, input_size: Sequence[int | None]) -> list[int | None]:
        """(T, H, W) in pixels -> (T', h, w) of the latents. None stays None."""
        of_frames = getattr(self.spatial_vae, "get_latent_size", None)
        frames, *sides = input_size if of_frames is None else of_frames(input_size)
        return [None if frames is None else self.latent_frames(frames), *sides]

    # pixels to latents and back

    @torch.no_grad()
    def encode(self, frames: Tensor, *, draws: Draws | None = None) -> Tensor:
        """Normalised latents of video (B, 3, T, H, W), or of images without T.

        Args:
            frames: pixels in [-1, 1].
            draws: gives the noise with which both posteriors are sampled, in the place of ``posterior``.
        """
        if frames.ndim == 4:
            return self.encode(frames[:, :, None], draws=draws)[:, :, 0]
        of_space, of_time = (_drawn_globally, _drawn_on_cpu) if self.posterior == "sample" else (None, None)
        if draws is not None:
            of_space = of_time = draws
        x = frames.to(self.dtype)
        if isinstance(self.spatial_vae, SpatialVAE):
            x = self.spatial_vae.encode(x, of_space)
        elif self.spatial_vae is not None:
            x = self.spatial_vae.encode(x)
        parts: list[Tensor] = []
        for part in x.split(self.micro_frame_size or x.shape[2], dim=2):
            found = self.temporal_vae.encode(part)
            parts.append(found.mean if of_time is None else found.sample(of_time))
        z = torch.cat(parts, dim=2)
        return (z - self.shift.to(z.dtype)) / self.scale.to(z.dtype)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        micro_batch: int = FRAMES_TOGETHER,
        frames: int | None = None,
        *,
        num_frames: int | None = None,
    ) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] of normalised latents (B, C, T', h, w), or images of latents without T'.

        Args:
            latents: the latents.
            micro_batch: frames that pass together through the autoencoder of single frames, at most the original's 4.
            frames: how many frames were encoded; None for the most that the latents may stand for.
            num_frames: the original's name for ``frames``. With it the result is the original's: not clamped to
                [-1, 1], and ``micro_batch`` is 4.

        Raises:
            InputError: so many frames give another number of latents.
        """
        if num_frames is not None:
            return self.reconstruct(latents, num_frames)
        if latents.ndim == 4:
            return self.decode(latents[:, :, None], micro_batch, 1)[:, :, 0]
        count = self.frames_of(latents.shape[2]) if frames is None else frames
        return self.reconstruct(latents, count, min(micro_batch, TOGETHER)).clamp(-1, 1)

    def reconstruct(self, latents: Tensor, frames: int, together: int = TOGETHER) -> Tensor:
        """``decode`` without the last clamp."""
        expected = self.latent_frames(frames)
        if frames < 1 or expected != latents.shape[2]:
            raise InputError(
                f"{setting('frames')} {frames} are {expected} latent frames, and {latents.shape[2]} were given: give "
                f"the number that was encoded, such as {self.frames_of(latents.shape[2])}"
            )
        z = latents.to(self.dtype)
        z = z * self.scale.to(z.dtype) + self.shift.to(z.dtype)
        size = self.micro_frame_size or frames
        parts: list[Tensor] = []
        for start, part in zip(
            range(0, frames, size), z.split(self.temporal_vae.latent_frames(size), dim=2), strict=True
        ):
            parts.append(self.temporal_vae.decode(part, num_frames=min(size, frames - start)))
        x = torch.cat(parts, dim=2)
        if isinstance(self.spatial_vae, SpatialVAE):
            return self.spatial_vae.decode(x, together)
        return x if self.spatial_vae is None else self.spatial_vae.decode(x)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights. Frames and latents are converted to it."""
        return self.temporal_vae.dtype


def _drawn_globally(mean: Tensor) -> Tensor:
    """As diffusers draws: on the device of the mean."""
    return torch.randn(mean.shape, device=mean.device, dtype=mean.dtype)


def _drawn_on_cpu(mean: Tensor) -> Tensor:
    """As Open-Sora's temporal autoencoder draws: in fp32 on the CPU."""
    return torch.randn(mean.shape).to(mean.device, mean.dtype)
