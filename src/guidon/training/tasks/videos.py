"""The task that trains any of the released networks on a user's own videos or pictures."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...checkpoints import save_component
from ...core.atomic import write_bytes
from ...core.errors import InputError
from ...core.hashing import hash_settings
from ...diffusion import FlowPath, NoiseSchedule, Process, predicted_x0, q_sample, target
from ...diffusion.flow import clip_shift, shifted
from ...models.dit.classes import ClassLabels
from ...models.model import Model
from ...models.small import DENOISER, DIFFUSION, TEXT
from ...models.stages import Stage
from ...models.text import TextEncoder
from ...models.text.captions import CaptionEncoder, CaptionEncoderConfig
from ...models.trained.autoencoders import AutoencoderSource
from ...models.trained.config import (
    CARD,
    FEATURES,
    PICTURE,
    ClipFormat,
    ModelConfig,
    NetworkConfig,
    TextSource,
)
from ...models.trained.facts import facts_of_network, preset_of
from ...models.trained.networks import new_network
from ...models.trained.writing import hub_folder, write_card, write_config, write_network
from ..data.clips import OwnBatch, PreparedClips, tell_of_small
from ..data.draws import draw_timesteps
from ..preview import Preview
from ..recipe import DIFFUSION_STEPS, VideosRecipe
from ..rows import ALL
from ..terms import Term, TrainingStep, total_loss
from .adapters import Adapters, add_adapters, card, write_adapters
from .beginning import CLASSES, Beginning, words_encoder
from .blocks import prepare_blocks
from .conditioned import Conditioned
from .denoiser import Trained, part_of
from .inputs import Inputs

SHEETS = "sheets"  # the folder of a run that holds the sheets of samples


@dataclass(frozen=True, eq=False)
class NoisyClips:
    """Rows of a batch, with their random draws."""

    clips: OwnBatch
    noise: Tensor
    """Shaped like the latents."""
    t: Tensor
    """Timesteps (B,), whole ones of a diffusion."""
    dropped: Tensor
    """Which captions are replaced by the null caption, bool (B,)."""
    rows: Tensor
    """Which rows of the whole batch these are, (B,)."""
    count: int
    """Rows of the whole batch."""
    seed: int
    """Of what is drawn inside the network: the inputs that adapters do not see."""


@dataclass(frozen=True, eq=False)
class VideosTask:
    """Trains a network on noisy latents of a user's clips, with captions dropped at random. Made by ``prepare``."""

    recipe: VideosRecipe
    device: torch.device
    vae: AutoencoderSource
    beginning: Beginning
    config: NetworkConfig
    """The network's."""
    text_config: CaptionEncoderConfig | None
    """The small encoder's, if it reads the captions."""
    network: Conditioned
    """The network that is trained, and what reads its captions."""
    module: nn.Module
    """What is trained: network and encoder, and the state of the loss terms."""
    clips: PreparedClips
    schedule: NoiseSchedule | FlowPath
    process: Process
    targets: tuple[str, ...]
    """The layers that have adapters, where only these are trained."""

    @classmethod
    def prepare(cls, recipe: VideosRecipe, device: torch.device) -> VideosTask:
        """Read the files that the recipe names, encode the clips, build the network.

        Raises:
            InputError: a file is missing or does not fit. What can be checked is checked before clips are encoded.
        """
        inputs = Inputs.find(recipe, device)
        beginning, derived, kind = inputs.beginning, dict(inputs.derived), recipe.text.kind
        clips = inputs.clips(device)
        tell_of_small(clips.buckets, recipe.batch_size)
        if clips.classes is not None:  # those that are known keep their numbers
            known = beginning.known_classes(clips.classes)
            clips.number_classes([*known, *(name for name in clips.classes if name not in known)])
            beginning = _with_classes(beginning, known, len(clips.classes))
        # Build what is trained.
        text_config, weights = None, None
        if kind == "words":
            text_config, weights = words_encoder(recipe, clips.captions, beginning.text)
            derived |= {"caption_channels": text_config.features, "model_max_length": text_config.max_length}
        if kind == "classes":
            derived["num_classes"] = len(clips.classes or ())
        config = beginning.configured(derived)
        denoiser = beginning.build(config, recipe.seed)
        encoder = None if text_config is None else _encoder(text_config, weights, recipe.seed)
        terms = recipe.terms.build(has_variance=not beginning.flows)
        denoiser = denoiser.to(device).requires_grad_(True)
        encoder = encoder if encoder is None else encoder.to(device)
        _freeze_positions(denoiser)
        targets: tuple[str, ...] = ()
        if recipe.lora is None:
            module: nn.Module = Trained(denoiser, encoder, terms)
        else:
            _refuse_new_parts(inputs.beginning, clips, text_config)
            targets = tuple(add_adapters(denoiser, recipe.lora, recipe.seed))
            denoiser.to(device)
            module = Adapters(denoiser, terms)
            if encoder is not None:
                encoder.eval().requires_grad_(False)
        module = module.to(device)
        prepare_blocks(denoiser, checkpointing=recipe.gradient_checkpointing, compiling=recipe.compile)
        diffusion = None if beginning.flows else NoiseSchedule.named(beginning.noise_schedule, DIFFUSION_STEPS)
        schedule = FlowPath(DIFFUSION_STEPS, by_size=beginning.by_size) if diffusion is None else diffusion
        process = Process.trained(beginning.prediction)
        conditioned = Conditioned(beginning.family, denoiser, encoder, len(clips.classes or ()), device)
        return cls(
            recipe, device, inputs.vae, beginning, config, text_config, conditioned, module, clips, schedule, process,
            targets,
        )  # fmt: skip

    @property
    def identity(self) -> dict[str, object]:
        """See ``Task.identity``."""
        found: dict[str, object] = {**self.recipe.decisive, "vae": self.vae.sha256, "data": self.clips.digest}
        if self.beginning.sha256 is not None:
            found["start"] = self.beginning.sha256
        # Rows of the weights belong to these, in this order.
        if self.network.text is not None:
            found["words"] = hash_settings(list(self.network.text.tokenizer.ids))
        if self.clips.classes is not None:
            found["classes"] = hash_settings(self.clips.classes)
        # Rules that earlier versions did not have: a run of theirs goes on by these, and a line says so.
        if self.beginning.by_size:
            found["timestep_shift"] = "by size"
        if self.recipe.lora is not None and self.recipe.lora.dropout:
            found["dropout_masks"] = "for each row"
        return found

    @cached_property
    def held_out(self) -> list[OwnBatch]:
        """Batches of held-out clips."""
        return self.clips.validation

    def draw(self, step: int, generator: torch.Generator, rows: slice = ALL) -> NoisyClips:
        """Rows of the batch of a step."""
        recipe, count = self.recipe, self.recipe.batch_size
        clips = self.clips.batch(step, count, rows)
        noise = torch.randn((count, *clips.latents.shape[1:]), generator=generator)
        t = draw_timesteps(generator, count, 0, DIFFUSION_STEPS, recipe.timesteps, whole=not self.beginning.flows)
        if self.beginning.by_size:  # as in sampling
            shift = clip_shift(clips.clip.height, clips.clip.width, clips.clip.frames)
            t = shifted(t / DIFFUSION_STEPS, shift) * DIFFUSION_STEPS
        dropped = torch.rand(count, generator=generator) < recipe.caption_dropout
        own = torch.arange(count)[rows]
        return NoisyClips(clips, noise[rows], t[rows], dropped[rows], own, count, generator.initial_seed())

    def predict(self, batch: NoisyClips) -> TrainingStep:
        """Add the noise, and run the network."""
        x_0, noise, t = (value.to(self.device) for value in (batch.clips.latents, batch.noise, batch.t))
        level = self.schedule.at(t, like=x_0)
        x_t = q_sample(x_0, level, noise)
        if isinstance(self.module, Adapters):
            self.module.drop(batch.seed, batch.rows.cpu(), batch.count)
        condition = self.network.condition(batch.clips, batch.dropped)
        prediction = self.network.told(batch.clips)(x_t, level, condition)
        if x_0.ndim == 4:  # an image, as a clip of one frame
            prediction, x_0, x_t, noise = (value[:, :, None] for value in (prediction, x_0, x_t, noise))
            level = self.schedule.at(t, like=x_0)
        rows, _, *size = x_0.shape
        return TrainingStep(
            prediction=prediction,
            x_0=x_0,
            x_t=x_t,
            noise=noise,
            t=t,
            level=level,
            process=self.process,
            objects=torch.zeros(rows, 1, *size, dtype=torch.bool, device=self.device),
            swapped=torch.zeros(rows, dtype=torch.bool, device=self.device),
            counts=torch.ones(rows, device=self.device),
            family_size=1,
            area_gradients=None,
        )

    def loss(self, predicted: TrainingStep) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the recipe's terms, and values to log."""
        return total_loss(cast("Mapping[str, Term]", self.module.terms), predicted)

    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """The loss of the prediction on held-out clips, and the MSE of x_0 at low, middle and high noise.

        Noise and timesteps are fixed.
        """
        batches = self.held_out
        if not batches:
            return {}
        found: dict[str, float] = dict.fromkeys(("val_low", "val_mid", "val_high", "val_mse"), 0.0)
        clips = sum(len(batch.latents) for batch in batches)
        with self._evaluated(weights) as network, torch.no_grad():
            for number, batch in enumerate(batches):
                generator = torch.Generator().manual_seed(number)
                noise = torch.randn(batch.latents.shape, generator=generator).to(self.device)
                x_0, share = batch.latents.to(self.device), len(batch.latents) / clips
                condition = network.condition(batch, torch.zeros(len(x_0), dtype=torch.bool))
                for name, part in (("val_low", 1), ("val_mid", 3), ("val_high", 5)):
                    t = torch.full((len(x_0),), part * DIFFUSION_STEPS // 6, device=self.device)
                    level = self.schedule.at(t, like=x_0)
                    x_t = q_sample(x_0, level, noise)
                    output = network.told(batch)(x_t, level, condition)[:, : x_0.shape[1]]
                    wanted = target(x_0, noise, level, self.process.parameterization)
                    found[name] += share * float((predicted_x0(output, x_t, level, self.process) - x_0).square().mean())
                    found["val_mse"] += share * float((output - wanted).square().mean()) / 3
        return found

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write the model folder, or that of the adapters."""
        config = self.model_config
        sheets = sorted((self.recipe.out / SHEETS).glob("*.png"))
        if self.recipe.lora is not None:
            return self._export_adapters(weights, sheets[-1] if sheets else None, record)
        denoiser = part_of(weights, "denoiser.")
        with hub_folder(self.recipe.result) as folder:
            self.vae.copy_to(folder)
            if config.layout == "components":
                values = dataclasses.asdict(self.config) | diffusion_of(self.beginning)
                save_component(folder / DENOISER, "denoiser", values, denoiser, record)
            else:
                write_network(folder, denoiser, record)
            if self.text_config is not None:
                save_component(folder / TEXT, "text", self.text_config.stored, part_of(weights, "text."), record)
            if self.recipe.text.features is not None:
                (folder / FEATURES).write_bytes(self.recipe.text.features.read_bytes())
            write_config(folder, config, self.config)
            write_card(folder, config, sheets[-1] if sheets else None, record)
        return self.recipe.result

    def _export_adapters(self, weights: dict[str, Tensor], sheet: Path | None, record: dict[str, object]) -> Path:
        """Write the folder of the adapters."""
        recipe, denoiser = self.recipe, self.network.denoiser
        assert recipe.lora is not None
        assert recipe.start is not None
        told = {"rank": recipe.lora.rank, **{name: record[name] for name in ("steps", "batch_size") if name in record}}
        shown = self.shown[0] if self.shown else "a caption"
        with hub_folder(recipe.result) as folder:
            write_adapters(folder, denoiser, weights, recipe.lora, list(self.targets), recipe.start)
            text = card(recipe.start, shown, type(denoiser).__name__, told)
            if sheet is not None:
                shutil.copyfile(sheet, folder / PICTURE)
                text += f"\n![samples]({PICTURE})\n"
            write_bytes(folder / CARD, text.encode())
        return recipe.result

    @property
    def model_config(self) -> ModelConfig:
        """What config.json of the model folder says."""
        begun, recipe, kind = self.beginning, self.recipe, self.recipe.text.kind
        components = begun.family == "stdit" and kind == "words" and self.vae.kind == "frames"
        height, width = recipe.data.all_sizes[0]
        tokens = getattr(self.config, "model_max_length", None)
        source = TextSource(
            kind=kind,
            folder=recipe.text.t5,
            tokens=tokens if kind in ("t5", "features") else None,
            classes=tuple(self.clips.classes or ()),
        )
        frames = recipe.data.lengths[0]
        return ModelConfig(
            network=begun.family,
            layout="components" if components else "released",
            noise_schedule=begun.noise_schedule,
            diffusion_steps=DIFFUSION_STEPS,
            prediction=begun.prediction,
            by_size=begun.by_size,
            text=source,
            vae=self.vae.kind,
            downsampling=self.vae.downsampling,
            clip=ClipFormat(height=height, width=width, frames=frames, fps=self._told_of[0].clip.fps),
            sampling=recipe.sampling,
            knows_given_frames=begun.knows_given_frames,
            shown=self.shown,
        )

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The prompts of sheets: captions of held-out clips, or of trained ones where none is held out."""
        batches = self._told_of
        if self.clips.classes is not None:
            classes = self.clips.classes
            labels = [int(label) for batch in batches for label in cast("Tensor", batch.labels)]
            found = [classes[label] for label in labels]
        else:
            found = [caption for batch in batches for caption in batch.captions if caption.strip()]
            if (text := self.network.text) is not None:
                found = [caption for caption in found if bool((text.known_ids([caption]) > 0).any())]
        return tuple(dict.fromkeys(found))[: self.recipe.samples]

    @contextmanager
    def preview(self, weights: dict[str, Tensor]) -> Iterator[Preview]:
        """The model with these weights, ready to be sampled, during the block."""
        config = self.model_config
        preset = dataclasses.replace(preset_of(self.recipe.result, config, self.config), dtype="fp32")
        with self._evaluated(weights) as network:
            model = Model(
                text=Stage(lambda: self._reader(network.text), keep=True),
                network=Stage(lambda dtype: network.network, keep=True),
                vae=Stage(partial(self.vae.load_on, self.device), keep=False),
                schedule=self.schedule,
                process=self.process,
                facts=facts_of_network(config, self.config),
            )
            yield Preview(preset, model, self.device, self.shown, self.recipe.out / SHEETS)

    def _reader(self, text: CaptionEncoder | None) -> TextEncoder:
        """What reads the prompts of sheets."""
        if self.clips.classes is not None:
            names = {name: number for number, name in enumerate(self.clips.classes)}
            return ClassLabels(len(names), names)
        return Known.of(self._told_of) if text is None else text

    @property
    def _told_of(self) -> list[OwnBatch]:
        """The batches whose captions sheets show: held-out ones, or trained ones where none is held out."""
        return self.held_out or [self.clips.batch(0, self.recipe.batch_size)]

    @contextmanager
    def _evaluated(self, weights: Mapping[str, Tensor]) -> Iterator[Conditioned]:
        """A network with other weights, in evaluation, during the block.

        It is a copy, because that of training may be sharded. Adapters are exchanged in the network itself.
        """
        if self.recipe.lora is not None:
            now = {name: value.clone() for name, value in self.module.state_dict().items()}
            self.module.load_state_dict(weights)
            self.network.denoiser.eval()
            try:
                yield self.network
            finally:
                self.network.denoiser.train()
                self.module.load_state_dict(now)
            return
        denoiser = new_network(self.beginning.family, self.config, 0)
        denoiser.load_state_dict(part_of(weights, "denoiser."))
        text = None
        if self.text_config is not None:
            text = CaptionEncoder(self.text_config)
            text.load_state_dict(part_of(weights, "text."))
            text = text.to(self.device).eval()
        denoiser = denoiser.to(self.device).eval().requires_grad_(False)
        yield dataclasses.replace(self.network, denoiser=denoiser, text=text)


@dataclass(frozen=True)
class Known:
    """A ``TextEncoder`` that knows the features of some captions."""

    rows: Mapping[str, tuple[Tensor, Tensor]]
    """Features (L, F) and mask (L,) by caption."""

    @classmethod
    def of(cls, batches: Sequence[OwnBatch]) -> Known:
        """That of the captions of some batches."""
        rows: dict[str, tuple[Tensor, Tensor]] = {}
        for batch in batches:
            assert batch.features is not None
            masks = torch.ones(batch.features.shape[:2]) if batch.mask is None else batch.mask
            rows |= zip(batch.captions, zip(batch.features, masks, strict=True), strict=True)
        return cls(rows)

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (B, L, F) and mask (B, L)."""
        found = [self.rows[prompt] for prompt in prompts]
        return torch.stack([features for features, _ in found]), torch.stack([mask for _, mask in found])


def diffusion_of(beginning: Beginning) -> dict[str, str | int]:
    """The settings of the diffusion process that are written into a denoiser's file."""
    values = (beginning.noise_schedule, DIFFUSION_STEPS, beginning.prediction)
    return dict(zip(DIFFUSION, values, strict=True))


def _encoder(config: CaptionEncoderConfig, weights: Mapping[str, Tensor] | None, seed: int) -> CaptionEncoder:
    """The small encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CaptionEncoder(config)
    if weights is not None:
        encoder.load_state_dict(weights)
    return encoder


def _with_classes(beginning: Beginning, known: Sequence[str], count: int) -> Beginning:
    """Weights to start from with a row for each of ``count`` classes, of which those after the known ones are new."""
    if beginning.tensors is None or CLASSES not in beginning.tensors:
        return beginning
    table = beginning.tensors[CLASSES]
    new = torch.randn(count + 1, table.shape[1], generator=torch.Generator().manual_seed(0)) * 0.02
    new[: len(known)], new[-1] = table[: len(known)], table[-1]
    return dataclasses.replace(beginning, tensors={**beginning.tensors, CLASSES: new})


def _refuse_new_parts(beginning: Beginning, clips: PreparedClips, text_config: CaptionEncoderConfig | None) -> None:
    """Refuse classes and words that the weights to start from do not know: adapters do not train them."""
    known, classes = set(beginning.classes), clips.classes or []
    if known and (new := [name for name in classes if name not in known]):
        raise InputError(f"lora trains no new classes, and {new[0]!r} is one: leave out lora, or its clips")
    table = (beginning.tensors or {}).get(CLASSES)
    if clips.classes is not None and not known and table is not None and len(table) != len(classes) + 1:
        raise InputError(
            f"lora trains no new classes: {beginning.place} has {len(table) - 1}, the clips have {len(classes)}: leave "
            "out lora"
        )
    if text_config is not None and beginning.text is not None:
        before = beginning.text.configure(CaptionEncoderConfig).vocabulary
        if new := sorted(set(text_config.vocabulary) - set(before)):
            raise InputError(
                f"lora trains no new words, and captions say {new[0]!r}, which {beginning.text.path} does not know: "
                "leave out lora, or write other captions"
            )


def _freeze_positions(denoiser: nn.Module) -> None:
    """Leave tables of positions as they are: they follow from the configuration."""
    tables = cast("Any", denoiser).position_tables()
    for name, parameter in denoiser.named_parameters():
        if name in tables:
            parameter.requires_grad_(False)
