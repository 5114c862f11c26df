"""The task that trains the autoencoder to reconstruct single frames: the world's, or those of a user's own videos."""

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
from ...checkpoints import Component, load_component, load_weights, save_component
from ...core.errors import InputError
from ...core.hashing import hash_files
from ...models.vae.frames import FrameVAE, FrameVAEConfig
from ..data.clips import tell_of_small
from ..data.frames import OwnFrames
from ..recipe import VAERecipe
from ..rows import ALL

HELD_OUT = 16  # number of held-out batches that are measured


@dataclass(frozen=True, eq=False)
class Frames:
    """A batch of frames."""

    images: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    near: Tensor | None
    """The object and one pixel around it, bool (B, 1, H, W); None of a user's own frames."""
    noise: Tensor
    """Standard normal noise with which latents are sampled, (B, C, h, w)."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Frames after they were encoded and decoded, fp32."""

    error: Tensor
    """Output minus input, (B, 3, H, W)."""
    near: Tensor | None
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
    own: OwnFrames | None
    """Frames of a user's own videos; None for those of the world."""
    start_sha256: str | None
    """The hash of the file that it starts from."""

    @classmethod
    def prepare(cls, recipe: VAERecipe, device: torch.device) -> VAETask:
        """Build the autoencoder, with the weights of an earlier run if the recipe starts from one.

        Raises:
            InputError: those weights are missing or do not fit, or files of the recipe's data cannot be used.
        """
        own = prepare_frames(recipe)
        if own is not None:
            tell_of_small(own.buckets, recipe.batch_size)
        config = FrameVAEConfig(**recipe.model.model_dump())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            module = FrameVAE(config)
        start_sha256 = None
        if recipe.start is not None:
            images = frames_of(0, recipe.batch_size, recipe.seed)[0] if own is None else own.batch(0, recipe.batch_size)
            config = start_from(module, recipe.start, recipe, images)
            start_sha256 = hash_files(recipe.start)
        return cls(recipe, device, config, module.to(device), own, start_sha256)

    @property
    def identity(self) -> dict[str, object]:
        """See ``Task.identity``."""
        found: dict[str, object] = dict(self.recipe.decisive)
        if self.own is not None:
            found["data"] = self.own.digest
        if self.start_sha256 is not None:
            found["start_sha256"] = self.start_sha256
        return found

    def draw(self, step: int, generator: torch.Generator, rows: slice = ALL) -> Frames:
        """Rows of the batch of a step: a random frame of each of its clips."""
        size, near = self.recipe.batch_size, None
        if self.own is None:
            images, near = frames_of(step, size, self.recipe.seed, rows)
        else:
            images = self.own.batch(step, size, rows)
        sides = (side // self.config.downsampling for side in images.shape[2:])
        noise = torch.randn((size, self.config.latent_channels, *sides), generator=generator)
        return Frames(images, near, noise[rows])

    def predict(self, batch: Frames) -> Reconstruction:
        """Encode, sample and decode."""
        images, noise = batch.images.to(self.device), batch.noise.to(self.device)
        near = None if batch.near is None else batch.near.to(self.device)
        mean, log_variance = self.module.posterior(images)
        out = self.module.reconstruct(mean + (0.5 * log_variance).exp() * noise).float()
        return Reconstruction(out - images, near, mean.float(), log_variance.float())

    def loss(self, predicted: Reconstruction) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted error of the frames plus the KL term, and values to log."""
        error, near, mean, log_variance = predicted.error, predicted.near, predicted.mean, predicted.log_variance
        wrong = error.abs() + error.square()
        if near is None:
            reconstruction = wrong.mean()
        else:
            weights = 1 + (self.recipe.foreground_weight - 1) * near
            reconstruction = (weights * wrong).sum() / (weights.sum() * 3)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        with torch.no_grad():
            squared = error.square() / 4  # frames span [-1, 1]: peak-to-peak 2
            logs = {"psnr": -10 * squared.mean().log10()}
            if near is not None:
                logs["foreground_psnr"] = -10 * ((squared * near).sum() / (near.sum() * 3)).log10()
            logs |= {"kl": kl.detach(), "latent_std": mean.std()}
        return reconstruction + self.recipe.kl_weight * kl, logs

    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """PSNR on held-out frames: of whole frames, and of the world's foreground."""
        return self._held_out(weights)[1]

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write the weights, with their held-out PSNR and the factor that scales latents to unit standard deviation."""
        latents, found = self._held_out(weights)
        spread, config = float(latents.std()), self.config
        if not 0 < spread < math.inf:
            raise InputError(
                f"the autoencoder encodes frames to latents with a standard deviation of {spread}, which no factor can "
                "scale to 1: nothing was exported; lower kl_weight or optimiser.lr, and train again"
            )
        if self.recipe.train == "all":
            config = dataclasses.replace(config, scaling_factor=round(1 / spread, 5))
        record = record | {name: round(value, 2) for name, value in found.items()}
        save_component(self.recipe.result, "vae", dataclasses.asdict(config), weights, record)
        return self.recipe.result

    @torch.inference_mode()
    def _held_out(self, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Unscaled latents of held-out frames, one after the other, and their PSNR."""
        model = FrameVAE(self.config).to(self.device).eval()
        model.load_state_dict(weights)
        latents: list[Tensor] = []
        squared, weighted, area = 0.0, 0.0, 0.0
        batches = self._held_out_batches()
        count = sum(len(images) for images, _ in batches)
        for images, near in batches:
            images = images.to(self.device)
            mean, _ = model.posterior(images)
            error = (model.reconstruct(mean) - images).square() / 4
            latents.append(mean.flatten())
            squared += float(error.mean()) * len(images) / count
            if near is not None:
                weighted += float((error * near.to(self.device)).sum())
                area += float(near.sum()) * 3
        found = {"psnr": -10 * math.log10(squared)}
        if area:
            found["foreground_psnr"] = -10 * math.log10(weighted / area)
        return torch.cat(latents), found

    def _held_out_batches(self) -> list[tuple[Tensor, Tensor | None]]:
        """Frames that are not trained on: of held-out files, or of the world's clips after those of the last step."""
        size, steps = self.recipe.batch_size, self.recipe.steps
        if self.own is not None:
            return [(images, None) for images in self.own.held_out(HELD_OUT, size)]
        return [frames_of(step, size, self.recipe.seed) for step in range(steps, steps + HELD_OUT)]


def prepare_frames(recipe: VAERecipe) -> OwnFrames | None:
    """The frames of a recipe's data, decoded; None if it has none.

    Raises:
        InputError: files cannot be used.
    """
    if recipe.data is None:
        return None
    return OwnFrames.prepare(recipe.data, recipe.cache or recipe.out, seed=recipe.seed)


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
def start_from(module: FrameVAE, path: Path, recipe: VAERecipe, images: Tensor) -> FrameVAEConfig:
    """Load the weights of an earlier run. Channels in ``redraw`` keep new weights, scaled so that the latents of
    ``images`` spread alike. If the recipe trains the decoder alone, all else is frozen.

    Returns:
        The configuration, with the scaling factor of the earlier run where that is kept.

    Raises:
        InputError: the weights are missing or do not fit.
    """
    earlier = load_component(path, "vae")
    if recipe.train == "decoder":
        return _keep_encoder(module, earlier)
    inward, outward = module.autoencoder.quant_conv, module.autoencoder.post_quant_conv
    new_in, new_bias, new_out = (part.detach().clone() for part in (inward.weight, inward.bias, outward.weight))
    load_weights(module, earlier)
    channels = recipe.model.latent_channels
    kept = [channel for channel in range(channels) if channel not in recipe.redraw]
    for channel in recipe.redraw:
        inward.weight[channel], inward.bias[channel] = new_in[channel], new_bias[channel]
        outward.weight[:, channel] = new_out[:, channel]
        mean, log_variance = module.posterior(images)
        shrink = mean[:, kept].std() / mean[:, channel].std()
        inward.weight[channel] *= shrink
        inward.bias[channel] = (inward.bias[channel] - mean[:, channel].mean()) * shrink
        inward.weight[channels + channel] = 0
        inward.bias[channels + channel] = log_variance[:, kept].mean()
    return module.config


def _keep_encoder(module: FrameVAE, earlier: Component) -> FrameVAEConfig:
    """Load the weights of an earlier run and freeze all but the decoder. Latents and their scale stay as they are."""
    config = earlier.configure(FrameVAEConfig)
    wanted = dataclasses.replace(module.config, scaling_factor=config.scaling_factor)
    if dataclasses.replace(wanted, decoder_padding=config.decoder_padding) != config:
        raise InputError(
            f"train: decoder keeps the encoder of {earlier.path}, and model describes another one: "
            "give model the settings of that run; only decoder_padding may differ"
        )
    load_weights(module, earlier)
    module.requires_grad_(False)
    module.autoencoder.decoder.requires_grad_(True)
    module.autoencoder.post_quant_conv.requires_grad_(True)
    return wanted
