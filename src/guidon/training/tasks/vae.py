"""The task that trains the autoencoder to reconstruct single frames of the world."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import world
from ...checkpoints import load_component, load_weights, save_component
from ...core.errors import InputError
from ...models.vae.frames import FrameVAE, FrameVAEConfig
from ..recipe import VAERecipe
from ..rows import ALL

HELD_OUT = 16  # number of held-out batches that are measured


@dataclass(frozen=True, eq=False)
class Frames:
    """A batch of frames."""

    images: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    near: Tensor
    """The object and one pixel around it, bool (B, 1, H, W)."""
    noise: Tensor
    """Standard normal noise with which latents are sampled, (B, C, h, w)."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Frames after they were encoded and decoded, fp32."""

    error: Tensor
    """Output minus input, (B, 3, H, W)."""
    near: Tensor
    """See ``Frames.near``."""
    mean: Tensor
    """Mean of the latents, (B, C, h, w)."""
    log_variance: Tensor
    """Their log variance, (B, C, h, w)."""


@dataclass(frozen=True, eq=False)
class VAETask:
    """Trains with L1 + MSE with a weighted foreground, plus a KL term. Made by ``prepare``.

    The object covers 1/15 of the frame. With plain MSE a small network learns the background and loses the object's
    hue and shape.
    """

    recipe: VAERecipe
    device: torch.device
    config: FrameVAEConfig
    module: FrameVAE

    @classmethod
    def prepare(cls, recipe: VAERecipe, device: torch.device) -> VAETask:
        """Build the autoencoder, with the weights of an earlier run if the recipe starts from one.

        Raises:
            InputError: those weights are missing or do not fit.
        """
        config = FrameVAEConfig(**recipe.model.model_dump())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            module = FrameVAE(config)
        if recipe.start is not None:
            start_from(module, recipe.start, recipe)
        return cls(recipe, device, config, module.to(device))

    @property
    def identity(self) -> dict[str, object]:
        """See ``Task.identity``."""
        return self.recipe.decisive

    def draw(self, step: int, generator: torch.Generator, rows: slice = ALL) -> Frames:
        """Rows of the batch of a step: a random frame of each of its clips."""
        images, near = frames_of(step, self.recipe.batch_size, self.recipe.seed, rows)
        side = world.SIZE // self.config.downsampling
        noise = torch.randn((self.recipe.batch_size, self.config.latent_channels, side, side), generator=generator)
        return Frames(images, near, noise[rows])

    def predict(self, batch: Frames) -> Reconstruction:
        """Encode, sample and decode."""
        images, near, noise = (value.to(self.device) for value in (batch.images, batch.near, batch.noise))
        mean, log_variance = self.module.posterior(images)
        out = self.module.reconstruct(mean + (0.5 * log_variance).exp() * noise).float()
        return Reconstruction(out - images, near, mean.float(), log_variance.float())

    def loss(self, predicted: Reconstruction) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted error of the frames plus the KL term, and values to log."""
        error, near, mean, log_variance = predicted.error, predicted.near, predicted.mean, predicted.log_variance
        weights = 1 + (self.recipe.foreground_weight - 1) * near
        reconstruction = (weights * (error.abs() + error.square())).sum() / (weights.sum() * 3)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        with torch.no_grad():
            squared = error.square() / 4  # frames span [-1, 1]: peak-to-peak 2
            logs = {
                "psnr": -10 * squared.mean().log10(),
                "foreground_psnr": -10 * ((squared * near).sum() / (near.sum() * 3)).log10(),
                "kl": kl.detach(),
                "latent_std": mean.std(),
            }
        return reconstruction + self.recipe.kl_weight * kl, logs

    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """PSNR on held-out frames: of whole frames, and of the foreground."""
        return self._held_out(weights)[1]

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write the weights, with their held-out PSNR and the factor that scales latents to unit standard deviation."""
        latents, found = self._held_out(weights)
        spread = float(latents.std())
        if not 0 < spread < math.inf:
            raise InputError(
                f"the autoencoder encodes frames to latents with a standard deviation of {spread}, which no factor can "
                "scale to 1: nothing was exported; lower kl_weight or optimiser.lr, and train again"
            )
        config = dataclasses.replace(self.config, scaling_factor=round(1 / spread, 5))
        record = record | {name: round(value, 2) for name, value in found.items()}
        save_component(self.recipe.result, "vae", dataclasses.asdict(config), weights, record)
        return self.recipe.result

    @torch.inference_mode()
    def _held_out(self, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Unscaled latents of frames whose clips come after those of the last training step, and their PSNR."""
        model = FrameVAE(self.config).to(self.device).eval()
        model.load_state_dict(weights)
        latents: list[Tensor] = []
        squared, weighted, area = 0.0, 0.0, 0.0
        for step in range(self.recipe.steps, self.recipe.steps + HELD_OUT):
            frames = frames_of(step, self.recipe.batch_size, self.recipe.seed)
            images, near = (value.to(self.device) for value in frames)
            mean, _ = model.posterior(images)
            error = (model.reconstruct(mean) - images).square() / 4
            latents.append(mean)
            squared += float(error.mean()) / HELD_OUT
            weighted += float((error * near).sum())
            area += float(near.sum()) * 3
        found = {"psnr": -10 * math.log10(squared), "foreground_psnr": -10 * math.log10(weighted / area)}
        return torch.cat(latents), found


def frames_of(step: int, size: int, seed: int, rows: slice = ALL) -> tuple[Tensor, Tensor]:
    """A random frame of each of the ``size`` clips of a step, or of some of them.

    Returns:
        Images in [-1, 1], (B, 3, H, W); and the object with one pixel around it, bool (B, 1, H, W).
    """
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for index in range(step * size, (step + 1) * size)[rows]:
        scene = world.clip("train", seed, index).scene
        time = int(np.random.default_rng((seed, index)).integers(world.FRAMES))
        x, y = scene.things[0].centroids()[time]
        thing = dataclasses.replace(scene.things[0], start=(float(x), float(y)))
        frame = dataclasses.replace(scene, things=(thing,))
        images.append(world.render(frame, frames=1)[0])
        masks.append(world.foreground(frame, frames=1)[0])
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) * 2 - 1
    return x.contiguous(), F.max_pool2d(torch.from_numpy(np.stack(masks))[:, None], 3, 1, 1) > 0


@torch.no_grad()
def start_from(module: FrameVAE, path: Path, recipe: VAERecipe) -> None:
    """Load the weights of an earlier run. Channels in ``redraw`` keep new weights, scaled so that latents spread alike.

    Raises:
        InputError: the weights are missing or do not fit.
    """
    inward, outward = module.autoencoder.quant_conv, module.autoencoder.post_quant_conv
    new_in, new_bias, new_out = (part.detach().clone() for part in (inward.weight, inward.bias, outward.weight))
    load_weights(module, load_component(path, "vae"))
    channels = recipe.model.latent_channels
    kept = [channel for channel in range(channels) if channel not in recipe.redraw]
    images, _ = frames_of(0, recipe.batch_size, recipe.seed)
    for channel in recipe.redraw:
        inward.weight[channel], inward.bias[channel] = new_in[channel], new_bias[channel]
        outward.weight[:, channel] = new_out[:, channel]
        mean, log_variance = module.posterior(images)
        shrink = mean[:, kept].std() / mean[:, channel].std()
        inward.weight[channel] *= shrink
        inward.bias[channel] = (inward.bias[channel] - mean[:, channel].mean()) * shrink
        inward.weight[channels + channel] = 0
        inward.bias[channels + channel] = log_variance[:, kept].mean()
