"""The denoiser's task: STDiT and its caption encoder on the world's latents, conditional and not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from ... import world
from ...checkpoints.component import (
    BOUNDARY,
    DENOISER,
    LOW_NOISE,
    TEXT,
    VAE,
    Component,
    load_component,
    load_weights,
    save_component,
)
from ...core.atomic import atomic_path
from ...diffusion import NoiseSchedule, Process, eps_from_x0, predicted_x0, q_sample, training_losses
from ...models.stdit.network import STDiT, STDiTConfig
from ...models.text.captions import CaptionEncoder, CaptionEncoderConfig
from ...models.vae.frames import FrameVAE, FrameVAEConfig
from ..data.latents import LatentClips, Prefetch
from ..recipe import DIFFUSION_STEPS, SWAPPED_FROM, DenoiserRecipe
from .start import Start, read_start

HELD_OUT, HELD_OUT_SEED = 32, 2  # clips of the validation loss
REFINER = "refiner."  # how names of its tensors begin


class LossLevel(nn.Module):
    """A running mean of the loss per band of timesteps; dividing by it lets every noise level count alike.

    An eps loss spans three orders of magnitude over the timesteps, and is smallest where position and motion are
    decided. This is the uncertainty weighting of EDM2 (Karras et al. 2312.02696, eq. 21), by bands instead of an MLP.
    """

    level: Tensor
    seen: Tensor

    def __init__(self, floor: float = 0.001, bands: int = 50, decay: float = 0.99) -> None:
        super().__init__()
        self.floor, self.decay = floor, decay
        self.register_buffer("level", torch.zeros(bands))
        self.register_buffer("seen", torch.zeros(bands))  # the share of ``level`` that losses make up, as in Adam

    @torch.no_grad()
    def weights(self, loss: Tensor, t: Tensor) -> Tensor:
        """Weight per sample, (B,), of losses (B,) at timesteps t (B,); takes note of the losses."""
        band = t * len(self.level) // DIFFUSION_STEPS
        count = torch.bincount(band, minlength=len(self.level))
        mean = torch.bincount(band, loss, minlength=len(self.level)) / count.clamp_min(1)
        for running, now in ((self.level, mean), (self.seen, torch.ones_like(self.seen))):
            running.lerp_(torch.where(count > 0, now, running).to(running.dtype), 1 - self.decay)
        return 1 / (self.level / self.seen)[band].clamp_min(self.floor)


def within_family(value: Tensor, each: int) -> Tensor:
    """Mean square (B,) of how far each row of ``value`` (B, ...) is from the mean of its family of ``each`` rows."""
    families = value.unflatten(0, (-1, each))
    return (families - families.mean(1, keepdim=True)).flatten(0, 1).square().flatten(1).mean(1)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to go with ``like`` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


class Trained(nn.Module):
    """All that a checkpoint of this task holds."""

    def __init__(self, denoiser: STDiT, text: CaptionEncoder) -> None:
        super().__init__()
        self.denoiser, self.text, self.level = denoiser, text, LossLevel()
        self.area_level = LossLevel(floor=1e-7)


class DenoiserTask:
    """Weighted MSE of the recipe's prediction, a learned variance (Nichol & Dhariwal 2021, eq. 16), caption dropout
    (Ho & Salimans 2207.12598).
    """

    def __init__(self, recipe: DenoiserRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.diffusion = {
            "noise_schedule": recipe.noise_schedule,
            "diffusion_steps": DIFFUSION_STEPS,
            "prediction": recipe.prediction,
        }
        self.vae = load_component(recipe.vae, "vae")
        self.text_config = CaptionEncoderConfig(vocabulary=world.vocabulary(), **recipe.text.model_dump())
        self.start: Start | None = None
        if recipe.start is not None:
            self.start = read_start(recipe.start, recipe.expert, self.diffusion, self.vae, self.text_config)
        vae = self.vae.build(FrameVAE, FrameVAEConfig)
        torch.manual_seed(recipe.seed)
        side = world.SIZE // vae.config.downsampling
        self.config = STDiTConfig(
            input_size=(world.FRAMES, side, side),
            in_channels=vae.config.latent_channels,
            caption_channels=recipe.text.features,
            model_max_length=recipe.text.max_length,
            **recipe.model.model_dump(),
        )
        # built before clips are encoded, so that what does not fit is refused at once
        self.module = Trained(STDiT(self.config), CaptionEncoder(self.text_config)).to(device)
        self.first, self.end = recipe.expert.timesteps if recipe.expert else (0, DIFFUSION_STEPS)
        if self.start is not None:
            self._load(self.start.network)
            load_weights(self.module.text, self.start.text)
            self.module.text.requires_grad_(recipe.expert is None)  # experts share it
        if recipe.train == "refiner":
            self.module.requires_grad_(False)
            assert self.module.denoiser.refiner is not None
            self.module.denoiser.refiner.requires_grad_(True)
        vae.to(device).eval().requires_grad_(False)
        self.clips = LatentClips(
            recipe.out,
            vae,
            self.vae.sha256,
            recipe.clips,
            recipe.seed,
            families=recipe.shape_contrast is not None,
            areas=recipe.area_weight > 0,
        )
        self.held_out = self._encode_held_out(vae)
        if recipe.compile:
            for block in self.module.denoiser.blocks:
                block.compile()
        self.process = Process.trained(recipe.prediction)
        self.tables = NoiseSchedule.named(recipe.noise_schedule, DIFFUSION_STEPS).tables(device)
        noise = recipe.caption_noise
        self.batch = Prefetch(lambda step: self.clips.batch(step, recipe.batch_size, caption_noise=noise))

    def _load(self, network: Component) -> None:
        """The network to start from; one without a refiner gets the new one, which changes nothing yet."""
        if self.config.refiner_channels and not network.config.get("refiner_channels"):
            made = {k: v for k, v in self.module.denoiser.state_dict().items() if k.startswith(REFINER)}
            network = dataclasses.replace(network, weights={**made, **network.weights})
        load_weights(self.module.denoiser, network)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x_0, captions, objects, area_gradients = self.batch(step)
        each = self.clips.family_size
        draws = len(x_0) // each  # of noise, timestep and dropout: one for a whole family
        noise = torch.randn((draws, *x_0.shape[1:]), generator=generator)
        # stratified: the batch's timesteps cover all noise levels evenly
        u = (torch.rand(1, generator=generator) + torch.arange(draws) / draws) % 1
        if self.recipe.timesteps:
            mean, std = self.recipe.timesteps
            u = torch.sigmoid(mean + std * torch.special.ndtri(u.double())).float()
        t = (self.first + u * (self.end - self.first)).long().clamp(max=self.end - 1)
        dropped = torch.rand(draws, generator=generator) < self.recipe.caption_dropout
        noise, t, dropped = (value.repeat_interleave(each, 0).to(self.device) for value in (noise, t, dropped))

        x_0 = x_0.to(self.device)
        shown, swapped = self._misled(x_0, t, dropped, generator)
        x_t = q_sample(shown, t, noise, self.tables)
        noise = torch.where(_rows(swapped, x_0), eps_from_x0(x_t, t, x_0, self.tables), noise)
        features, mask = self.module.text(self.module.text.tokenize(captions).to(self.device))
        null = self.module.denoiser.y_embedder.y_embedding
        features = torch.where(dropped[:, None, None], null, features)
        prediction = self.module.denoiser(x_t, t, features, mask)
        importance = self._importance(objects.to(self.device), t)
        terms = training_losses(
            prediction, x_0, x_t, t, noise, self.tables, self.process, kind="mse", importance=importance
        )
        weights = self._weights(terms["mse"].detach(), t)
        counts = self._counts(captions, dropped)
        loss = (counts * weights * terms["mse"]).mean() + (counts * terms["vb"] * ~swapped).mean()
        logs = {"mse": terms["mse"].detach().mean(), "vb": terms["vb"].detach().mean()}
        bands = {"low": t < 250, "mid": (t >= 250) & (t < 600), "high": t >= 600}
        logs |= {f"mse_{name}": terms["mse"].detach()[band].mean() for name, band in bands.items()}
        error = predicted_x0(prediction[:, : x_0.shape[1]], x_t, t, self.tables, self.process) - x_0
        if area_gradients is not None:
            # how far the decoded object's area would vary over the frames, to first order: its squared CV
            varies = (error * area_gradients.to(self.device)).sum((1, 3, 4)).var(1, correction=0)
            balanced = self.module.area_level.weights(varies.detach(), t)
            loss = loss + self.recipe.area_weight * (counts * self._visible(t) * balanced * varies).mean()
            logs |= {f"area_cv_{name}": varies.detach()[band].mean().sqrt() for name, band in bands.items()}
        if self.recipe.shape_contrast is not None:
            within, whole = (within_family(value, each) for value in (error, x_0))
            loss = loss + (self.recipe.shape_contrast - 1) * (counts * weights * self._per_x0(t) * within).mean()
            # of what sets a family's shapes apart, the share that the prediction misses
            logs |= {
                f"missed_{name}": within.detach()[band].mean() / whole[band].mean() for name, band in bands.items()
            }
        return loss, logs

    def _misled(self, x_0: Tensor, t: Tensor, dropped: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What noise is added to, and in which rows (B,) it is not x_0: there a sibling of another shape shows through.

        Given its caption, a sample's shape is known whatever x_t looks like; but a network that sees the shape in every
        x_t that it is trained on does not learn to read the word, and when it samples nobody draws the shape.
        """
        rows, each = len(x_0), self.clips.family_size
        if not self.recipe.shape_swap:
            return x_0, torch.zeros(rows, dtype=torch.bool, device=self.device)
        swapped = torch.rand(rows, generator=generator) < self.recipe.shape_swap
        share, other = torch.rand(rows, generator=generator), int(torch.randint(1, each, (), generator=generator))
        swapped = swapped.to(self.device) & (t >= SWAPPED_FROM) & ~dropped
        sibling = x_0.unflatten(0, (-1, each)).roll(other, 1).flatten(0, 1)
        return x_0 + _rows(share.to(self.device) * swapped, x_0) * (sibling - x_0), swapped

    def _counts(self, captions: list[str], dropped: Tensor) -> Tensor:
        """How much each row counts by the shape that it is told, (B,): 1 where it is told nothing, and on average."""
        if not self.recipe.shape_weights:
            return torch.ones_like(dropped, dtype=torch.float32)
        told = {shape: self.recipe.shape_weights.get(shape, 1.0) for shape in world.SHAPES}
        mean = sum(told.values()) / len(told)
        counts = torch.tensor([told[str(world.read_caption(caption).shape)] / mean for caption in captions])
        return torch.where(dropped, 1.0, counts.to(self.device))

    def _importance(self, objects: Tensor, t: Tensor) -> Tensor:
        """Weight of each place, of mean 1 in every sample, more on the object.

        Where noise hides its place (alpha_bar under about 0.1) all places count alike: weights that know more than x_t
        does would move the prediction away from E[x_0 | x_t].
        """
        weights = 1 + (self.recipe.foreground_weight - 1) * _rows(self._visible(t), objects) * objects
        return weights / weights.mean((1, 2, 3, 4), keepdim=True)

    def _visible(self, t: Tensor) -> Tensor:
        """How far x_t tells where the object is, (B,) from 0 to 1."""
        return (self.tables.alphas_cumprod[t] / 0.1).clamp(max=1)

    def _weights(self, mse: Tensor, t: Tensor) -> Tensor:
        if self.recipe.loss_weighting == "balanced":
            return self.module.level.weights(mse, t)
        if self.recipe.loss_weighting == "min-snr":  # Hang et al. 2303.09556, gamma = 5: min(SNR, 5) on x_0
            return self._snr(t).clamp(max=5) / self._per_x0(t)
        return torch.ones_like(mse)

    def _snr(self, t: Tensor) -> Tensor:
        return self.tables.alphas_cumprod[t] / (1 - self.tables.alphas_cumprod[t])

    def _per_x0(self, t: Tensor) -> Tensor:
        """The squared error of the recipe's prediction for one of x_0, (B,)."""
        snr = self._snr(t)
        return {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[self.recipe.prediction]

    @property
    def identity(self) -> dict[str, object]:
        """What a checkpoint must share with the recipe to be resumed or exported."""
        shared = {
            "task",
            "model",
            "text",
            "prediction",
            "noise_schedule",
            "seed",
            "start",
            "train",
            "batch_size",
            "clips",
        }
        found = {**self.recipe.model_dump(mode="json", include=shared), "vae": self.vae.sha256}
        if self.recipe.expert and self.start:
            found |= {"expert": self.recipe.expert.model_dump(), "kept": self.start.hashes}
        return found

    @staticmethod
    @torch.inference_mode()
    def _encode_held_out(vae: FrameVAE) -> tuple[Tensor, list[str]]:
        """Latents and captions of clips with new seeds (split L0)."""
        clips = [world.clip("L0", HELD_OUT_SEED, index) for index in range(HELD_OUT)]
        device = next(vae.parameters()).device
        frames = [torch.from_numpy(clip.frames()).permute(3, 0, 1, 2)[None].to(device) * 2 - 1 for clip in clips]
        return torch.cat([vae.encode(part) for part in frames]), [clip.caption for clip in clips]

    @torch.inference_mode()
    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """MSE of x_0 on held-out clips, the noise always the same, in the middle of each third of the timesteps."""
        x_0, captions = self.held_out
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x_0.shape, generator=generator).to(self.device)
        model = Trained(STDiT(self.config), CaptionEncoder(self.text_config)).to(self.device).eval()
        model.load_state_dict(weights)
        features, mask = model.text(model.text.tokenize(captions).to(self.device))
        found, third = {}, (self.end - self.first) / 3
        for k, name in enumerate(("val_low", "val_mid", "val_high")):
            step = round(self.first + (k + 0.5) * third)
            t = torch.full((len(x_0),), step, device=self.device)
            x_t = q_sample(x_0, t, noise, self.tables)
            prediction = model.denoiser(x_t, t, features, mask)
            found[name] = float(
                (predicted_x0(prediction[:, : x_0.shape[1]], x_t, t, self.tables, self.process) - x_0).square().mean()
            )
        return found

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """The model folder: denoiser, text and vae; of an expert, the other side's network too if there is one."""
        folder = self.recipe.out / "model"
        folder.mkdir(exist_ok=True)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

        config, kept = dataclasses.asdict(self.config) | self.diffusion, {VAE: self.vae}
        expert, name = self.recipe.expert, DENOISER
        if expert and self.start:
            kept |= self.start.kept
            record = record | {"timesteps": list(expert.timesteps), "beside": self.start.hashes}
            if expert.noise == "low":
                name, config = LOW_NOISE, config | {BOUNDARY: expert.boundary}
        else:
            save_component(folder / TEXT, "text", dataclasses.asdict(self.text_config), part("text."), record)
            (folder / LOW_NOISE).unlink(missing_ok=True)  # of another recipe that exported here
        save_component(folder / name, "denoiser", config, part("denoiser."), record)
        for file, component in kept.items():
            with atomic_path(folder / file) as temporary:
                shutil.copyfile(component.path, temporary)
        return folder
