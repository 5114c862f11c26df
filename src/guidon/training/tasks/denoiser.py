"""The task that trains STDiT and its caption encoder on latents of the world, with and without captions."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from ... import world
from ...checkpoints import Component, load_component, load_weights, save_component
from ...core.broadcasting import per_sample
from ...core.hashing import hash_text
from ...core.ranks import ALONE, Ranks
from ...diffusion import DiscreteLevel, FlowPath, NoiseSchedule, Process, eps_from_x0, predicted_x0, q_sample
from ...models.small import BOUNDARY, DENOISER, FLOW, LOW_NOISE, TEXT, VAE
from ...models.stdit.network import STDiT, STDiTConfig
from ...models.text.captions import CaptionEncoder, CaptionEncoderConfig
from ...models.vae.frames import FrameVAE, FrameVAEConfig
from ..data.draws import draw_timesteps, swap_siblings
from ..data.latents import Batch, LatentClips
from ..demand import require_batch
from ..recipe import DIFFUSION_STEPS, SWAPPED_FROM, DenoiserRecipe
from ..rows import ALL, with_tensors
from ..terms import Term, TrainingStep, total_loss
from .blocks import prepare_blocks
from .export import model_folder
from .start import Start, read_start

HELD_OUT, HELD_OUT_SEED = 32, 2  # number and seed of the clips of the validation loss
N = TypeVar("N", bound=nn.Module)
E = TypeVar("E", bound="CaptionEncoder | None")
REFINER = "refiner."  # prefix of the names of its tensors


class Trained(nn.Module, Generic[N, E]):
    """The modules whose state a checkpoint holds: a network, what encodes its captions, and the terms of the loss."""

    def __init__(self, denoiser: N, text: E, terms: Mapping[str, Term]) -> None:
        super().__init__()
        self.denoiser, self.text, self.terms = denoiser, text, nn.ModuleDict(terms)


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """A batch of B clips with its random draws."""

    clips: Batch
    noise: Tensor
    """(B, C, T, h, w)"""
    t: Tensor
    """Timesteps (B,), whole ones of a diffusion."""
    dropped: Tensor
    """Which captions are replaced by the null caption, bool (B,)."""
    shown: Tensor
    """The latents to which noise is added, (B, C, T, h, w): the clips, with another clip mixed in where ``swapped``."""
    swapped: Tensor
    """Samples into which another clip of the family is mixed, bool (B,)."""


@dataclass(frozen=True, eq=False)
class DenoiserTask:
    """Trains a network on noisy latents, with captions dropped at random (Ho & Salimans 2207.12598).

    Made by ``prepare``.
    """

    recipe: DenoiserRecipe
    device: torch.device
    vae: Component
    config: STDiTConfig
    text_config: CaptionEncoderConfig
    start: Start | None
    module: Trained[STDiT, CaptionEncoder]
    clips: LatentClips
    held_out: tuple[Tensor, list[str]]
    """Latents and captions of clips that training does not see."""
    schedule: NoiseSchedule | FlowPath
    process: Process

    @classmethod
    def prepare(cls, recipe: DenoiserRecipe, device: torch.device, ranks: Ranks = ALONE) -> DenoiserTask:
        """Read the files that the recipe names, build the module, encode the clips.

        Args:
            recipe: the recipe.
            device: the device of the module.
            ranks: those that encode the clips together. All call this.

        Raises:
            InputError: a file is missing or does not fit. This is checked before clips are encoded.
            RankFailed, MemoryError, RankLost: another rank failed, or ended.
        """
        # Read the files that the recipe names.
        vae_file = load_component(recipe.vae, "vae")
        text_config = CaptionEncoderConfig(vocabulary=world.vocabulary(), **recipe.text.model_dump())
        start = None
        if recipe.start is not None:
            start = read_start(recipe.start, recipe.expert, diffusion_of(recipe), vae_file, text_config)
        # Build the module. Weights that do not fit are refused here.
        vae = vae_file.build(FrameVAE, FrameVAEConfig).to(device).eval().requires_grad_(False)
        config = network_config(recipe, vae.config)
        require_batch(recipe, (config.in_channels, *config.input_size), device)
        module = build_module(recipe, config, text_config, start).to(device)
        prepare_blocks(module.denoiser, checkpointing=False, compiling=recipe.compile)
        # Encode the clips, the slow part.
        clips = LatentClips.prepare(
            recipe.cache or recipe.out,
            vae,
            vae_file.sha256,
            recipe.clips,
            recipe.seed,
            family_size=recipe.family_size,
            areas=recipe.terms.need("areas"),
            ranks=ranks,
        )
        held_out = encode_held_out(vae)
        diffusion = None if recipe.flows else NoiseSchedule.named(recipe.noise_schedule, DIFFUSION_STEPS)
        schedule = FlowPath(DIFFUSION_STEPS) if diffusion is None else diffusion
        process = Process.trained(recipe.prediction)
        return cls(recipe, device, vae_file, config, text_config, start, module, clips, held_out, schedule, process)

    @property
    def identity(self) -> dict[str, object]:
        """See ``Task.identity``."""
        found: dict[str, object] = {**self.recipe.decisive, "vae": self.vae.sha256}
        if self.start:
            found["start_sha256"] = hash_text(f"{self.start.network.sha256} {self.start.text.sha256}")
        if self.recipe.expert and self.start:
            found["kept"] = self.start.hashes
        return found

    def draw(self, step: int, generator: torch.Generator, rows: slice = ALL) -> NoisyBatch:
        """Rows of the batch of a step. All clips of a family have the same noise, timestep and caption dropout."""
        recipe, each = self.recipe, self.clips.family_size
        read = ALL if recipe.first_swap else rows  # a clip may be mixed with another one of its family
        clips = self.clips.batch(step, recipe.batch_size, caption_noise=recipe.caption_noise, rows=read)
        x_0, draws = clips.latents, recipe.batch_size // each
        noise = torch.randn((draws, *x_0.shape[1:]), generator=generator)
        t = draw_timesteps(generator, draws, *recipe.timestep_range, recipe.timesteps, whole=not recipe.flows)
        dropped = torch.rand(draws, generator=generator) < recipe.caption_dropout
        noise, t, dropped = (value.repeat_interleave(each, 0)[read] for value in (noise, t, dropped))
        shown, swapped = x_0, torch.zeros(len(x_0), dtype=torch.bool)
        if recipe.first_swap:
            told = [bool(recipe.size_swap) and world.read_caption(text).size is not None for text in clips.captions]
            shown, swapped = swap_siblings(
                x_0,
                (t >= SWAPPED_FROM) & ~dropped,
                torch.tensor(told),
                generator,
                shapes=len(world.SHAPES),
                shape_share=recipe.shape_swap,
                size_share=recipe.size_swap,
            )
            clips = dataclasses.replace(with_tensors(clips, lambda value: value[rows]), captions=clips.captions[rows])
            noise, t, dropped, shown, swapped = (value[rows] for value in (noise, t, dropped, shown, swapped))
        return NoisyBatch(clips, noise, t, dropped, shown, swapped)

    def predict(self, batch: NoisyBatch) -> TrainingStep:
        """Add the noise, encode the captions, and run the network."""
        move = self._move
        x_0, t, swapped = move(batch.clips.latents), move(batch.t), move(batch.swapped)
        level = self.schedule.at(t, like=x_0)
        noise = move(batch.noise)
        x_t = q_sample(move(batch.shown), level, noise)
        # In a swapped sample the target is still x_0: the noise is redefined as the one that turns x_0 into x_t.
        if isinstance(level, DiscreteLevel):  # a rectified flow has no swapped samples
            noise = torch.where(per_sample(swapped, x_0), eps_from_x0(x_t, level, x_0), noise)
        features, mask = self.module.text(move(self.module.text.tokenize(batch.clips.captions)))
        dropped = move(batch.dropped)
        features = torch.where(per_sample(dropped, features), self.module.denoiser.y_embedder.y_embedding, features)
        prediction = self.module.denoiser(x_t, t, features, mask)
        gradients = batch.clips.area_gradients
        return TrainingStep(
            prediction=prediction,
            x_0=x_0,
            x_t=x_t,
            noise=noise,
            t=t,
            level=level,
            process=self.process,
            objects=move(batch.clips.objects),
            swapped=swapped,
            counts=move(caption_counts(batch.clips.captions, batch.dropped, self.recipe.shape_weights)),
            family_size=min(self.clips.family_size, len(world.SHAPES)),  # shapes are compared in one size
            area_gradients=None if gradients is None else move(gradients),
        )

    def loss(self, predicted: TrainingStep) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the recipe's terms, and values to log."""
        return total_loss(cast("Mapping[str, Term]", self.module.terms), predicted)

    @torch.inference_mode()
    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """MSE of x_0 on held-out clips with fixed noise, at the middle of each third of the trained timesteps."""
        x_0, captions = self.held_out
        denoiser, text = STDiT(self.config), CaptionEncoder(self.text_config)
        for model, prefix in ((denoiser, "denoiser."), (text, "text.")):
            model.load_state_dict(part_of(weights, prefix))
            model.to(self.device).eval()
        features, mask = text(text.tokenize(captions).to(self.device))
        first, end = self.recipe.timestep_range
        middles = [round(first + (k + 0.5) * (end - first) / 3) for k in range(3)]
        return validation_errors(denoiser, x_0, x_0, middles, self.schedule, self.process, features, mask)

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write the model folder: denoiser, text and vae. For an expert, also copy the other network, if any."""
        config, kept = dataclasses.asdict(self.config) | diffusion_of(self.recipe), {VAE: self.vae}
        expert, name = self.recipe.expert, DENOISER
        with model_folder(self.recipe.result) as folder:
            if expert and self.start:
                kept |= self.start.kept
                record = record | {"timesteps": list(expert.timesteps), "beside": self.start.hashes}
                if expert.noise == "low":
                    name, config = LOW_NOISE, config | {BOUNDARY: expert.boundary}
            else:
                text_config = self.text_config.stored
                save_component(folder / TEXT, "text", text_config, part_of(weights, "text."), record)
            save_component(folder / name, "denoiser", config, part_of(weights, "denoiser."), record)
            for file, component in kept.items():
                shutil.copyfile(component.path, folder / file)
        return self.recipe.result

    def _move(self, value: Tensor) -> Tensor:
        return value.to(self.device)


def diffusion_of(recipe: DenoiserRecipe) -> dict[str, str | int]:
    """The settings of the diffusion process that are written into a denoiser's file."""
    return {
        "noise_schedule": FLOW if recipe.flows else recipe.noise_schedule,
        "diffusion_steps": DIFFUSION_STEPS,
        "prediction": recipe.prediction,
    }


def network_config(recipe: DenoiserRecipe, vae: FrameVAEConfig) -> STDiTConfig:
    """The network's configuration, for the latents of an autoencoder."""
    side = world.SIZE // vae.downsampling
    return STDiTConfig(
        input_size=(world.FRAMES, side, side),
        in_channels=vae.latent_channels,
        caption_channels=recipe.text.features,
        model_max_length=recipe.text.max_length,
        learn_sigma=not recipe.flows,
        **recipe.model.model_dump(),
    )


def build_module(
    recipe: DenoiserRecipe, config: STDiTConfig, text_config: CaptionEncoderConfig, start: Start | None
) -> Trained[STDiT, CaptionEncoder]:
    """The network, caption encoder and loss terms, with the weights to start from.

    Raises:
        InputError: those weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = Trained(
            STDiT(config), CaptionEncoder(text_config), recipe.terms.build(has_variance=config.learn_sigma)
        )
    if start is not None:
        network = start.network
        if config.refiner_channels and not network.config.get("refiner_channels"):
            # Add a new refiner to a network without one. A new refiner outputs zero, so predictions do not change.
            new = {k: v for k, v in module.denoiser.state_dict().items() if k.startswith(REFINER)}
            network = dataclasses.replace(network, weights={**new, **network.weights})
        load_weights(module.denoiser, network)
        load_weights(module.text, start.text)
        module.text.requires_grad_(recipe.expert is None)  # two experts share the text encoder, so it must not change
    if recipe.train == "refiner":
        assert module.denoiser.refiner is not None  # the recipe was checked to have refiner_channels
        module.requires_grad_(False)
        module.denoiser.refiner.requires_grad_(True)
    return module


@torch.inference_mode()
def encode_held_out(vae: FrameVAE) -> tuple[Tensor, list[str]]:
    """Latents and captions of clips with new seeds (split L0)."""
    clips = [world.clip("L0", HELD_OUT_SEED, index) for index in range(HELD_OUT)]
    device = next(vae.parameters()).device
    frames = [torch.from_numpy(clip.frames()).permute(3, 0, 1, 2)[None].to(device) * 2 - 1 for clip in clips]
    return torch.cat([vae.encode(part) for part in frames]), [clip.caption for clip in clips]


def caption_counts(captions: list[str], dropped: Tensor, shape_weights: Mapping[str, float]) -> Tensor:
    """Weight of each sample by the shape in its caption, (B,). The mean over shapes is 1; a dropped caption has 1."""
    if not shape_weights:
        return torch.ones_like(dropped, dtype=torch.float32)
    of = {shape: shape_weights.get(shape, 1.0) for shape in world.SHAPES}
    mean = sum(of.values()) / len(of)
    counts = torch.tensor([of[str(world.read_caption(caption).shape)] / mean for caption in captions])
    return torch.where(dropped, 1.0, counts)


def part_of(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``. The prefix is removed from the names."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def validation_errors(
    denoiser: STDiT,
    shown: Tensor,
    x_0: Tensor,
    timesteps: Sequence[int],
    schedule: NoiseSchedule | FlowPath,
    process: Process,
    features: Tensor,
    mask: Tensor,
) -> dict[str, float]:
    """MSE of a network's x_0 at three timesteps, with fixed noise.

    Args:
        denoiser: the network, in evaluation.
        shown: the latents that are noised, (N, C, T, H, W).
        x_0: what the network is to predict, shaped like ``shown``.
        timesteps: low, middle and high.
        schedule, process: those of training.
        features, mask: the encoded captions.
    """
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)).to(x_0.device)
    found: dict[str, float] = {}
    for name, timestep in zip(("val_low", "val_mid", "val_high"), timesteps, strict=True):
        t = torch.full((len(x_0),), timestep, device=x_0.device)
        level = schedule.at(t, like=x_0)
        x_t = q_sample(shown, level, noise)
        output = denoiser(x_t, t, features, mask)[:, : x_0.shape[1]]
        found[name] = float((predicted_x0(output, x_t, level, process) - x_0).square().mean())
    return found
