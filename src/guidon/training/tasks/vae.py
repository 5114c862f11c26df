"""The autoencoder's task: single frames of the world, reconstructed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import world
from ...checkpoints import load_component, load_weights, save_component
from ...models.vae.frames import FrameVAE, FrameVAEConfig
from ..data.latents import Prefetch
from ..recipe import VAERecipe


class VAETask:
    """L1 + MSE on frames with the foreground weighted, plus KL.

    With plain MSE a small network learns the background and loses the hue and shape of the object,
    which covers a fifteenth of the frame.
    """

    def __init__(self, recipe: VAERecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.config = FrameVAEConfig(**recipe.model.model_dump())
        self.module = FrameVAE(self.config).to(device)
        if recipe.start is not None:
            self._start_from(recipe.start)
        self.batch = Prefetch(self._frames)

    @torch.no_grad()
    def _start_from(self, path: Path) -> None:
        """Take an earlier run's weights; redrawn channels keep theirs, as sure as the others and of their spread."""
        inward, outward = self.module.autoencoder.quant_conv, self.module.autoencoder.post_quant_conv
        drawn = [part.detach().clone() for part in (inward.weight, inward.bias, outward.weight)]
        load_weights(self.module, load_component(path, "vae"))
        channels = self.config.latent_channels
        kept = [channel for channel in range(channels) if channel not in self.recipe.redraw]
        for channel in self.recipe.redraw:
            inward.weight[channel], inward.bias[channel] = drawn[0][channel], drawn[1][channel]
            outward.weight[:, channel] = drawn[2][:, channel]
            mean, log_variance = self.module.posterior(self._frames(0)[0].to(self.device))
            shrink = mean[:, kept].std() / mean[:, channel].std()
            inward.weight[channel] *= shrink
            inward.bias[channel] = (inward.bias[channel] - mean[:, channel].mean()) * shrink
            inward.weight[channels + channel] = 0
            inward.bias[channels + channel] = log_variance[:, kept].mean()

    def _frames(self, step: int) -> tuple[Tensor, Tensor]:
        """One random frame of each of the step's clips: images in [-1, 1] (B, 3, H, W), foreground (B, 1, H, W)."""
        size = self.recipe.batch_size
        images, masks = [], []
        for index in range(step * size, (step + 1) * size):
            scene = world.clip("train", self.recipe.seed, index).scene
            time = int(np.random.default_rng((self.recipe.seed, index)).integers(world.FRAMES))
            x, y = scene.things[0].centroids()[time]
            thing = dataclasses.replace(scene.things[0], start=(float(x), float(y)))
            frame = dataclasses.replace(scene, things=(thing,))
            images.append(world.render(frame, frames=1)[0])
            masks.append(world.foreground(frame, frames=1)[0])
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) * 2 - 1
        return x.contiguous(), F.max_pool2d(torch.from_numpy(np.stack(masks))[:, None], 3, 1, 1) > 0

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images, near = (part.to(self.device) for part in self.batch(step))
        weights = 1 + (self.recipe.foreground_weight - 1) * near
        mean, log_variance = self.module.posterior(images)
        noise = torch.randn(mean.shape, generator=generator).to(self.device)
        out = self.module.reconstruct(mean + (0.5 * log_variance).exp() * noise).float()
        mean, log_variance = mean.float(), log_variance.float()
        error = out - images
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

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Weights with the scaling factor that brings latents to unit standard deviation, and their PSNR."""
        latents, found = self._held_out(weights)
        config = dataclasses.replace(self.config, scaling_factor=round(1 / float(latents.std()), 5))
        record |= {name: round(value, 2) for name, value in found.items()}
        path = self.recipe.out / "vae.safetensors"
        save_component(path, "vae", dataclasses.asdict(config), weights, record)
        return path

    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """PSNR of frames that training did not reach, whole and on the foreground."""
        return self._held_out(weights)[1]

    @torch.inference_mode()
    def _held_out(self, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Unscaled latents of frames that training did not reach, and how well they come back."""
        model = FrameVAE(self.config).to(self.device).eval()
        model.load_state_dict(weights)
        latents, squared, weighted, area = [], 0.0, 0.0, 0.0
        for step in range(self.recipe.steps, self.recipe.steps + 16):
            images, near = (part.to(self.device) for part in self._frames(step))
            mean, _ = model.posterior(images)
            error = (model.reconstruct(mean) - images).square() / 4
            latents.append(mean)
            squared += float(error.mean()) / 16
            weighted += float((error * near).sum())
            area += float(near.sum()) * 3
        found = {"psnr": -10 * math.log10(squared), "foreground_psnr": -10 * math.log10(weighted / area)}
        return torch.cat(latents), found

    @property
    def identity(self) -> dict[str, object]:
        """What a checkpoint must share with the recipe to be resumed or exported."""
        return self.recipe.model_dump(mode="json", include={"task", "model", "seed", "start", "redraw"})
