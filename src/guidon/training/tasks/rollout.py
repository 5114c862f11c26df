"""The task that trains a finisher on what the model itself draws, with the renderer as its teacher."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ...checkpoints import Component, save_component
from ...core.broadcasting import per_sample
from ...core.errors import InputError
from ...core.hashing import hash_text
from ...core.ranks import ALONE, Ranks
from ...diffusion import NoiseSchedule, Process, eps_from_x0, q_sample
from ...models.small import BOUNDARY, DIFFUSION, FAMILY
from ...models.small.folder import ModelFolder, find_model, read_folder
from ...models.sources import Sources
from ...models.stdit.network import STDiT, STDiTConfig
from ...models.text.captions import CaptionEncoder, CaptionEncoderConfig
from ..data.draws import draw_timesteps
from ..data.rollouts import Rollouts
from ..demand import require_batch
from ..recipe import RolloutRecipe
from ..rows import ALL
from ..terms import Term, TrainingStep, total_loss
from .blocks import prepare_blocks
from .denoiser import Trained, part_of, validation_errors
from .export import model_folder

FINISHER = "finisher."  # prefix of the names of its tensors
USUAL = 0.03  # mean square of what a clip's drawing usually misses, over all latents of the clip
HELD_OUT = 32  # the last rollouts, which are not trained on


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """A batch of B rollouts with its random draws. Latents are (B, C, T, h, w)."""

    shown: Tensor
    """The latents to which noise is added: rollouts, some of them mixed with their clean version."""
    clean: Tensor
    """The latents that should have been drawn."""
    objects: Tensor
    """Latent pixels at the object, bool (B, 1, T, h, w)."""
    captions: list[str]
    noise: Tensor
    t: Tensor
    """Timesteps, long (B,)."""
    dropped: Tensor
    """Which captions are replaced by the null caption, bool (B,)."""


@dataclass(frozen=True, eq=False)
class RolloutTask:
    """Trains a finisher on noisy rollouts, whose target is the clean rendering. Made by ``prepare``."""

    recipe: RolloutRecipe
    device: torch.device
    start: ModelFolder
    own: Component
    """The network that gets the finisher."""
    config: STDiTConfig
    module: Trained
    rollouts: Rollouts
    trained: int
    """How many rollouts are trained on, from the first. The others are held out."""
    schedule: NoiseSchedule
    process: Process

    @classmethod
    def prepare(cls, recipe: RolloutRecipe, device: torch.device, ranks: Ranks = ALONE) -> RolloutTask:
        """Read the model, add a finisher to its network, and sample rollouts.

        Raises:
            InputError: the model folder is not valid, or its network does not predict x_0 or has another finisher.
        """
        # Read the model.
        preset = FAMILY.adopt(recipe.start)
        if preset is None:
            raise InputError(f"start: {recipe.start} is no model folder: give one that `guidon train` wrote")
        start = read_folder(recipe.start)
        own = start.low or start.denoiser
        if own.config["prediction"] != "x0":  # the noise from the clean clip to a noisy rollout has no bound
            raise InputError(
                f"start: {own.path} predicts {own.config['prediction']}, a finisher corrects x0: train a network that "
                "predicts x0"
            )
        end = own.config.get(BOUNDARY, own.config["diffusion_steps"])
        if recipe.finisher.end > end:
            raise InputError(
                f"finisher.end is {recipe.finisher.end}, {own.path.name} ends at timestep {end}: give {end} or less"
            )
        # Build the network with a finisher; everything else stays as it is.
        config, module = build_module(recipe, start, own)
        require_batch(recipe, (config.in_channels, *config.input_size), device)
        module.to(device)
        prepare_blocks(module.denoiser, checkpointing=False, compiling=recipe.compile)
        # Sample rollouts, the slow part.
        model = find_model(preset, Sources(), device)
        assert isinstance(model.schedule, NoiseSchedule)  # a rectified flow predicts flow
        weights = hash_text(" ".join(f"{name} {value}" for name, value in sorted(start.hashes.items())))
        folder = recipe.cache or recipe.out
        rollouts = Rollouts.prepare(
            folder, model, weights, recipe.rollouts, recipe.seed, recipe.sampling, device, ranks
        )
        held = min(HELD_OUT, len(rollouts) // 4)
        return cls(
            recipe, device, start, own, config, module, rollouts, len(rollouts) - held, model.schedule, model.process
        )

    @property
    def identity(self) -> dict[str, object]:
        """See ``Task.identity``."""
        return {**self.recipe.decisive, "start": self.start.hashes}

    def draw(self, step: int, generator: torch.Generator, rows: slice = ALL) -> RolloutBatch:
        """Rows of the batch of a step. Half of the rollouts are played backwards, if the caption can be told so."""
        size, recipe = self.recipe.batch_size, self.recipe
        chosen = torch.randint(self.trained, (size,), generator=generator).tolist()
        turned = torch.rand(size, generator=generator) < 0.5
        drawn, clean, objects, captions = self._read(chosen[rows], turned.tolist()[rows])
        share = torch.rand(size, generator=generator) * (torch.rand(size, generator=generator) < recipe.blend)
        share = share[rows]
        return RolloutBatch(
            shown=torch.lerp(drawn, clean, per_sample(share, drawn)),
            clean=clean,
            objects=objects,
            captions=captions,
            noise=torch.randn((size, *drawn.shape[1:]), generator=generator)[rows],
            t=draw_timesteps(generator, size, 0, recipe.finisher.end, None)[rows],
            dropped=(torch.rand(size, generator=generator) < recipe.caption_dropout)[rows],
        )

    def _read(self, chosen: list[int], turned: list[bool]) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """Rollouts by number: drawn and clean latents, objects and captions. Some may be played backwards."""
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        captions: list[str] = []
        for index, turn in zip(chosen, turned, strict=True):
            backwards = self.rollouts.backwards[index] if turn else None
            row = self.rollouts.drawn[index].float(), self.rollouts.clean[index].float(), self.rollouts.objects[index]
            rows.append(row if backwards is None else (row[0].flip(1), row[1].flip(1), row[2].flip(0)))
            captions.append(backwards or self.rollouts.captions[index])
        drawn, clean, objects = (torch.stack(part) for part in zip(*rows, strict=True))
        return drawn, clean, objects[:, None], captions

    def predict(self, batch: RolloutBatch) -> TrainingStep:
        """Add the noise, encode the captions, and run the network."""
        x_0, t, shown = (value.to(self.device) for value in (batch.clean, batch.t, batch.shown))
        level = self.schedule.at(t, like=x_0)
        x_t = q_sample(shown, level, batch.noise.to(self.device))
        # Few clips, drawn in a wrong size, have most of the error. They would hide the lumps of all others.
        missed = (shown - x_0).square().flatten(1).mean(1)
        with torch.no_grad():
            features, mask = self.module.text(self.module.text.tokenize(batch.captions).to(self.device))
        dropped = batch.dropped.to(self.device)
        features = torch.where(per_sample(dropped, features), self.module.denoiser.y_embedder.y_embedding, features)
        return TrainingStep(
            prediction=self.module.denoiser(x_t, t, features, mask),
            x_0=x_0,
            x_t=x_t,
            noise=eps_from_x0(x_t, level, x_0),  # the one that turns the clean latents into x_t
            t=t,
            level=level,
            process=self.process,
            objects=batch.objects.to(self.device),
            swapped=torch.ones_like(dropped),  # the variance is not trained: x_t is not distributed as q(x_t | x_0)
            counts=USUAL / (USUAL + missed),
            family_size=1,
            area_gradients=None,
        )

    def loss(self, predicted: TrainingStep) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the recipe's terms, and values to log."""
        return total_loss(cast("Mapping[str, Term]", self.module.terms), predicted)

    @torch.inference_mode()
    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """MSE of x_0 on held-out rollouts with fixed noise, at the middle of each third of the finisher's timesteps."""
        held = list(range(self.trained, len(self.rollouts)))
        if not held:
            return {}
        drawn, x_0, _, captions = self._read(held, [False] * len(held))
        drawn, x_0 = drawn.to(self.device), x_0.to(self.device)
        denoiser = STDiT(self.config)
        denoiser.load_state_dict(part_of(weights, "denoiser."))
        denoiser.to(self.device).eval()
        features, mask = self.module.text(self.module.text.tokenize(captions).to(self.device))
        middles = [int((k + 0.5) * self.recipe.finisher.end / 3) for k in range(3)]
        return validation_errors(denoiser, drawn, x_0, middles, self.schedule, self.process, features, mask)

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write the model folder of the start, with the finisher in its network."""
        parts = (self.start.denoiser, self.start.low, self.start.text, self.start.vae)
        kept = {name: self.own.config[name] for name in (*DIFFUSION, BOUNDARY) if name in self.own.config}
        record = record | {"finishes": self.start.hashes}
        config = dataclasses.asdict(self.config) | kept
        with model_folder(self.recipe.result) as folder:
            for part in parts:
                if part is not None and part is not self.own:
                    shutil.copyfile(part.path, folder / part.path.name)
            save_component(folder / self.own.path.name, "denoiser", config, part_of(weights, "denoiser."), record)
        return self.recipe.result


def build_module(recipe: RolloutRecipe, start: ModelFolder, own: Component) -> tuple[STDiTConfig, Trained]:
    """The network with a finisher, of which only the finisher is trained, and the caption encoder.

    A new finisher outputs zero. If the network has one of the same shape already, its training continues.

    Raises:
        InputError: the network has a finisher of another shape.
    """
    shape = recipe.finisher
    own_config = own.configure(STDiTConfig, *DIFFUSION, BOUNDARY)
    config = dataclasses.replace(
        own_config, finisher_channels=shape.channels, finisher_depth=shape.depth, finisher_end=shape.end
    )
    if own_config.finisher_channels and config != own_config:
        raise InputError(f"start: {own.path} has a finisher of another shape: give the same finisher")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        denoiser = STDiT(config)
    new = {name: value for name, value in denoiser.state_dict().items() if name.startswith(FINISHER)}
    denoiser.load_state_dict({**new, **own.weights})
    text = start.text.build(CaptionEncoder, CaptionEncoderConfig)
    module = Trained(denoiser, text, recipe.terms.build())
    module.requires_grad_(False)
    assert denoiser.finisher is not None  # its channels are positive
    denoiser.finisher.requires_grad_(True)
    return config, module
