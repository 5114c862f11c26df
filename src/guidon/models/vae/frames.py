"""The frame-wise autoencoder: encodes and decodes every video frame separately.

The layers are those of diffusers' ``AutoencoderKL``. Added are an optional pixel-unshuffle in front (depth that costs
little, for small frames), the video axes, one scaling factor as in Stable Diffusion's autoencoder, and micro-batches.
Released autoencoders, such as stabilityai/sd-vae-ft-ema, are read from a folder in hub layout by the library itself.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoints import count_values, make_config, on_meta, read_tensors, refuse_broken, refuse_numbers
from ...checkpoints.finding import AGAIN
from ...core.errors import InputError
from ...core.extras import require
from ...core.limits import require_memory
from ...core.reading import read_object, reading
from ..finding import AUTOENCODER, AUTOENCODER_WEIGHTS, find_autoencoder
from . import FRAMES_TOGETHER
from .config import FrameVAEConfig
from .convolutions import Convolutions, between

PADDINGS = ("zeros", "replicate")


def autoencoder_kl() -> Any:
    """diffusers' class. Its import takes seconds, so it happens only where a released autoencoder is read.

    The import runs in another thread, because ``with torch.device("meta")`` around the caller does not affect other
    threads. Tensors that the library makes at import must have real memory.
    """
    with ThreadPoolExecutor(1) as thread:
        module = "diffusers.models.autoencoders.autoencoder_kl"
        return thread.submit(require, module, "the autoencoder", "video").result().AutoencoderKL


def refuse_shifted(config: Any, where: str) -> None:
    """Refuse an autoencoder of diffusers whose latents need more than one scaling factor.

    Args:
        config: its configuration.
        where: the subject of the message.

    Raises:
        InputError: they do.
    """
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if getattr(config, name, None) is not None:
            raise InputError(
                f"{where} has a {name}: its latents need more than the one scaling factor of {AUTOENCODER}, "
                "which is what the models here are trained on"
            )


class FrameVAE(nn.Module):
    """An ``Autoencoder``: frames (B, 3, T, H, W) in [-1, 1] to scaled latents (B, C, T, H/f, W/f) and back.

    Images, which have no T, are taken as well.
    """

    def __init__(self, config: FrameVAEConfig, autoencoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.autoencoder: Any = self._build(config) if autoencoder is None else autoencoder

    @staticmethod
    def _build(config: FrameVAEConfig) -> nn.Module:
        for name, padding in (("padding", config.padding), ("decoder_padding", config.decoder_padding or PADDINGS[0])):
            if padding not in PADDINGS:
                raise InputError(f"{name} is {padding!r}, expected {' or '.join(PADDINGS)}")
        return Convolutions(config)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> FrameVAE:
        """A released autoencoder from a folder in hub layout (config.json and weights), or from its ``vae`` subfolder.

        Raises:
            InputError: a file is missing, damaged or incomplete, the model is no AutoencoderKL, or its latents are
                not brought to unit scale by one factor alone.
        """
        logging = require("diffusers.utils", "the autoencoder", "video").logging
        place = find_autoencoder(folder)
        weights = place / next(name for name in AUTOENCODER_WEIGHTS if (place / name).is_file())
        values = read_object(place / "config.json", "the configuration of an autoencoder")
        if values.get("_class_name") != "AutoencoderKL":
            raise InputError(f"{place} holds a {values.get('_class_name')!r:.60}, expected an AutoencoderKL")
        given = read_tensors(weights).tensors
        refuse_broken(given, weights)
        refuse_numbers(given, weights)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            with reading(place, "an autoencoder", AGAIN):
                # The library would fill a model of any size with random numbers before it reads the weights.
                with on_meta(len(given)):
                    wanted = count_values(autoencoder_kl().from_config(values).state_dict())
                if wanted > 2 * count_values(given):
                    raise ValueError(f"config.json asks for {wanted:,} values, there are {count_values(given):,}")
                require_memory(f"the weights in {place}", wanted * dtype.itemsize)
                model, found = autoencoder_kl().from_pretrained(
                    place,
                    local_files_only=True,
                    torch_dtype=dtype,
                    low_cpu_mem_usage=False,
                    use_safetensors=weights.name == AUTOENCODER_WEIGHTS[0],
                    output_loading_info=True,
                )
        finally:
            logging.set_verbosity(verbosity)
        if found["missing_keys"]:  # the library has filled them with random numbers
            raise InputError(
                f"the weights in {place} are incomplete or another model's: {len(found['missing_keys'])} of the "
                f"tensors that its config.json asks for are missing, such as {min(found['missing_keys'])}"
            )
        stored = model.config
        refuse_shifted(stored, f"{place}")
        shape = {
            "block_out_channels": stored.block_out_channels,
            "layers_per_block": stored.layers_per_block,
            "latent_channels": stored.latent_channels,
            "norm_num_groups": stored.norm_num_groups,
            "mid_block_attention": stored.mid_block_add_attention,
            "pixel_unshuffle": 1,
            "scaling_factor": stored.scaling_factor,
        }
        config = make_config(FrameVAEConfig, shape, f"{place} cannot be read as an autoencoder")
        return cls(config, model.to(dtype)).eval().requires_grad_(False)  # the library keeps other types of the file

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) in [-1, 1] -> mean and log variance of their unscaled latents, (N, C, h, w) each."""
        moments = between(self.autoencoder.quant_conv, self.autoencoder.encoder(self._fold(images)))
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Unscaled latents (N, C, h, w) -> images (N, 3, H, W)."""
        out = self.autoencoder.decoder(between(self.autoencoder.post_quant_conv, latents))
        return F.pixel_shuffle(out, self.config.pixel_unshuffle)

    def _fold(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.config.pixel_unshuffle)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights. Frames and latents are converted to it."""
        return next(self.parameters()).dtype

    @torch.inference_mode()
    def encode(self, frames: Tensor, micro_batch: int = 64) -> Tensor:
        """The scaled posterior means of frames; ``micro_batch`` frames are encoded at a time."""
        if frames.ndim == 4:
            return self.encode(frames[:, :, None], micro_batch)[:, :, 0]
        images = frames.to(self.dtype).transpose(1, 2).flatten(0, 1)
        means = torch.cat([self.posterior(part)[0] for part in images.split(micro_batch)])
        return (means * self.config.scaling_factor).unflatten(0, (frames.shape[0], -1)).transpose(1, 2)

    @torch.inference_mode()
    def decode(self, latents: Tensor, micro_batch: int = FRAMES_TOGETHER, frames: int | None = None) -> Tensor:
        """Scaled latents (B, C, T, h, w) -> frames (B, 3, T, H, W) in [-1, 1], ``micro_batch`` frames at a time.

        ``frames`` is not needed: there are as many as latent frames.
        """
        if latents.ndim == 4:
            return self.decode(latents[:, :, None], micro_batch)[:, :, 0]
        images = latents.to(self.dtype).transpose(1, 2).flatten(0, 1) / self.config.scaling_factor
        decoded = torch.cat([self.reconstruct(part) for part in images.split(micro_batch)])
        return decoded.clamp(-1, 1).unflatten(0, (latents.shape[0], -1)).transpose(1, 2)
