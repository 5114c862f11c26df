"""The task that distils a model into one that draws in a few steps of one branch, told how strong guidance is."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints import load_component, save_component
from ...core.broadcasting import per_sample
from ...core.errors import InputError, quoted
from ...core.hashing import hash_text
from ...core.ranks import ALONE, Ranks
from ...diffusion import DiscreteLevel, NoiseSchedule, q_sample
from ...diffusion.spacing import Explicit
from ...models.small import BOUNDARY, DIFFUSION, DISTILLED, FAMILY
from ...models.small.distilled import Distilled, build_distilled, start_distilled
from ...models.small.distilled_config import DISTILLED_KIND, DistilledConfig
from ...models.small.folder import ModelFolder, find_model, read_folder
from ...models.sources import Sources
from ...models.text.captions import CaptionEncoder, CaptionEncoderConfig
from ...samplers.consistency import HIDDEN
from ...samplers.ddim import ddim_towards
from ..data.pairs import Pairs
from ..demand import require_batch
from ..recipe import DistillRecipe
from ..rows import ALL
from .export import model_folder

HELD_OUT = 32  # the last pairs, which are not trained on
OBJECT = 0.35  # a latent pixel is of the object where a channel is so far from the clip's median
OUTLIER = 0.3  # mean square of an error from which a sample counts less
LATER = 0.5  # by how much more each step counts than the one before


@dataclass(frozen=True, eq=False)
class PairBatch:
    """A batch of B pairs. Latents are (B, C, T, h, w); of each step, (B, steps, C, T, h, w)."""

    clips: Tensor
    """What should be drawn."""
    before: Tensor
    """Where the model's own steps began; the first is noise."""
    guided: Tensor
    """Its guided predictions there."""
    captions: list[str]
    strengths: Tensor
    """(B, C)"""
    imitating: Tensor
    """Samples that learn these predictions, bool (B,); the others learn the clips."""
    forced: Tensor
    """Samples whose steps begin where the model's own began, bool (B,)."""
    renewed: Tensor
    """Which of these have new noise where it no longer hides the clip, bool (B,)."""
    noise: Tensor
    """The new noise of each step, like ``before``."""


@dataclass(frozen=True, eq=False)
class Steps:
    """What the network predicts in the steps of sampling."""

    predictions: list[Tensor]
    """x_0 (B, C, T, h, w) of each step."""
    targets: list[Tensor]
    """What should have been predicted."""
    clips: Tensor
    """What should be drawn."""
    imitating: Tensor
    """See ``PairBatch``."""


@dataclass(frozen=True, eq=False)
class DistillTask:
    """Trains a distilled network on its own steps. Made by ``prepare``."""

    recipe: DistillRecipe
    device: torch.device
    start: ModelFolder
    hashes: dict[str, str]
    """The hashes of all files that training starts from."""
    module: Distilled
    text: CaptionEncoder
    pairs: Pairs
    trained: int
    """How many pairs are trained on, from the first. The others are held out."""
    levels: tuple[DiscreteLevel, ...]
    """The noise levels of the steps that are trained, from noise to data."""

    @classmethod
    def prepare(cls, recipe: DistillRecipe, device: torch.device, ranks: Ranks = ALONE) -> DistillTask:
        """Read the model, and sample the pairs.

        Raises:
            InputError: the model folder is not valid, its network does not predict x_0, or no step is its own.
        """
        preset = FAMILY.adopt(recipe.start)
        if preset is None:
            raise InputError(f"start: {recipe.start} is no model folder: give one that `guidon train` wrote")
        start = read_folder(recipe.start)
        own = start.denoiser
        if own.config["prediction"] != "x0":  # of noise, a small error would be a large one of x_0 in the first step
            raise InputError(
                f"start: {own.path} predicts {own.config['prediction']}, a distilled network predicts x0: train a "
                "network that predicts x0"
            )
        if recipe.timesteps[0] >= (most := own.config["diffusion_steps"]):
            raise InputError(f"timesteps begin at {recipe.timesteps[0]}, those of the model end at {most - 1}")
        first = 0 if start.low is None else start.low.config[BOUNDARY]
        if recipe.end < first:
            raise InputError(f"end is {recipe.end}, the network for high noise begins at {first}: give {first} or more")
        steps = sum(timestep >= recipe.end for timestep in recipe.timesteps)
        if not steps:
            raise InputError(f"timesteps {list(recipe.timesteps)} are all below {recipe.end}: give some from there on")
        model = find_model(preset, Sources(), device)
        require_batch(recipe, model.facts.latent_shape, device)
        config = DistilledConfig(
            rank=recipe.rank,
            channels=model.facts.channels,
            hidden_size=own.config["hidden_size"],
            timesteps=recipe.timesteps,
            end=recipe.end,
            refiner_end=recipe.refiner_end,
            denoiser=own.sha256,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            module = start_distilled(own, config, *DIFFUSION).to(device)
        if (earlier := recipe.start / DISTILLED).is_file():
            made = load_component(earlier, DISTILLED_KIND)
            if (shape := made.configure(DistilledConfig)) != config:
                name, value = next(pair for pair in vars(config).items() if getattr(shape, pair[0]) != pair[1])
                told = quoted(getattr(shape, name))
                raise InputError(f"start: {earlier} has the {name} {told}, the recipe {quoted(value)}: give the same")
            module = build_distilled(own, made, *DIFFUSION).to(device)
        text = start.text.build(CaptionEncoder, CaptionEncoderConfig).to(device).eval().requires_grad_(False)
        hashes = start.hashes | model.distilled_hashes
        weights = hash_text(" ".join(f"{name} {value}" for name, value in sorted(hashes.items())))
        pairs = Pairs.prepare(recipe.cache or recipe.out, model, weights, recipe, steps, device, ranks)
        schedule = model.schedule.spaced_by(len(recipe.timesteps), Explicit(tuple(map(float, recipe.timesteps))))
        assert isinstance(schedule, NoiseSchedule)  # a rectified flow predicts flow
        held = min(HELD_OUT, len(pairs) // 4)
        return cls(recipe, device, start, hashes, module, text, pairs, len(pairs) - held, schedule.levels[:steps])

    @property
    def identity(self) -> dict[str, object]:
        """See ``Task.identity``."""
        return {**self.recipe.decisive, "start": self.hashes}

    def draw(self, step: int, generator: torch.Generator, rows: slice = ALL) -> PairBatch:
        """Rows of the batch of a step.

        Nothing is played backwards: from noise that is turned round, a network does not draw the clip turned round.
        """
        size = self.recipe.batch_size
        chosen = torch.randint(self.trained, (size,), generator=generator).tolist()
        forced = torch.rand(size, generator=generator) < self.recipe.forced
        imitating = self.pairs.varied[chosen] | (step < self.recipe.imitation)
        renewed = (torch.rand(size, generator=generator) < self.recipe.renewed) & ~imitating
        noise = torch.randn(size, *self.pairs.before.shape[1:], generator=generator)
        return self._read(chosen[rows], imitating[rows], (forced | imitating)[rows], renewed[rows], noise[rows])

    def _read(self, chosen: list[int], imitating: Tensor, forced: Tensor, renewed: Tensor, noise: Tensor) -> PairBatch:
        """Pairs by number."""
        pairs = self.pairs
        clips, before, guided = (part[chosen].float() for part in (pairs.clips, pairs.before, pairs.guided))
        captions = [pairs.captions[index] for index in chosen]
        strengths = pairs.strengths[chosen]
        return PairBatch(clips, before, guided, captions, strengths, imitating, forced, renewed, noise)

    def predict(self, batch: PairBatch) -> Steps:
        """Run the steps of sampling, each on the result of the one before. Gradients stay within a step."""
        clips, before, guided, strengths = (
            value.to(self.device) for value in (batch.clips, batch.before, batch.guided, batch.strengths)
        )
        imitating, forced, renewed, noise = (
            value.to(self.device) for value in (batch.imitating, batch.forced, batch.renewed, batch.noise)
        )
        with torch.no_grad():
            features, mask = self.text(self.text.tokenize(batch.captions).to(self.device))
        denoiser, x, predictions = self.module.denoiser, before[:, 0], list[Tensor]()
        for k, level in enumerate(self.levels):
            caption = dataclasses.replace(denoiser.prepare(features, mask), told=self.module.told(strengths))
            predictions.append(denoiser(x, level, caption)[:, : x.shape[1]].float())
            if k + 1 < len(self.levels):
                drawn = ddim_towards(predictions[-1].detach(), x, level, None, 0.0)
                stored = before[:, k + 1]
                if float(level.alphas_cumprod) >= HIDDEN**2:
                    again = q_sample(guided[:, k], self.levels[k + 1], noise[:, k + 1])
                    stored = torch.where(per_sample(renewed, x), again, stored)
                x = torch.where(per_sample(forced, x), stored, drawn)
        targets = [torch.where(per_sample(imitating, x), guided[:, k], clips) for k in range(len(self.levels))]
        return Steps(predictions, targets, clips, imitating)

    def loss(self, predicted: Steps) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the steps' mean squared errors, in which the object weighs more."""
        clips, imitating = predicted.clips, predicted.imitating
        median = clips.flatten(2).median(2).values[..., None, None, None]
        objects = (clips - median).abs().amax(1, keepdim=True) > OBJECT
        weights = 1 + (self.recipe.foreground - 1) * objects
        weights = weights / weights.mean()
        total, logs = clips.new_zeros(()), dict[str, Tensor]()
        steps = zip(self.levels, predicted.predictions, predicted.targets, strict=True)
        for k, (level, prediction, target) in enumerate(steps):
            errors = ((prediction - target).square() * weights).flatten(1).mean(1)
            known = errors.detach()
            # few clips in which another place was chosen would hide the errors of all others
            total = total + (1 + LATER * k) * (errors * (OUTLIER / (OUTLIER + known))).mean()
            logs[f"mse_{int(level.timestep)}"] = known[~imitating].mean()
            logs[f"imitation_{int(level.timestep)}"] = known[imitating].mean()
        return total, logs

    @torch.inference_mode()
    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """MSE of the last step that is trained on held-out pairs, mean and median."""
        held = list(range(self.trained, len(self.pairs)))
        if not held:
            return {}
        now = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(weights)
        neither = torch.zeros(len(held), dtype=torch.bool)
        predicted = self.predict(self._read(held, neither, neither, neither, self.pairs.before[held]))
        self.module.load_state_dict(now)
        errors = (predicted.predictions[-1] - predicted.clips).square().flatten(1).mean(1)
        return {"val_mse": float(errors.mean()), "val_mse_median": float(errors.median())}

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write the model folder of the start, with the file of the distilled network."""
        record = record | {"distils": self.hashes}
        config = dataclasses.asdict(self.module.config)
        with model_folder(self.recipe.result) as folder:
            for part in (self.start.denoiser, self.start.low, self.start.text, self.start.vae):
                if part is not None:
                    shutil.copyfile(part.path, folder / part.path.name)
            save_component(folder / DISTILLED, DISTILLED_KIND, config, self.module.adapter(weights), record)
        return self.recipe.result
