"""What a run on a user's clips begins from: a new network, released weights, or a model folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...checkpoints import Component, load_component, make_config, read_tensors, refuse_broken
from ...checkpoints.finding import whole
from ...core.errors import InputError
from ...core.hashing import hash_files
from ...models.checkpoint import recognise
from ...models.family import Checkpoint
from ...models.small import BOUNDARY, DENOISER, DIFFUSION, LOW_NOISE
from ...models.text.captions import CaptionEncoder, CaptionEncoderConfig, words_of
from ...models.trained.config import (
    CHECKPOINT,
    CONFIGS,
    FAMILIES,
    IMAGES,
    NetworkConfig,
    NetworkName,
    Prediction,
    read_model_config,
    read_network_config,
)
from ...models.trained.networks import new_network, reader_of
from ..recipe import VideosRecipe

TEXT = "text.safetensors"
CLASSES = "y_embedder.embedding_table.weight"  # of a DiT: a row for each class, and the last for none


@dataclass(frozen=True, eq=False)
class Beginning:
    """A network and its process, before the data is known."""

    family: NetworkName
    """The network."""
    tensors: Mapping[str, Tensor] | None
    """The weights to start from; None for new ones."""
    config: dict[str, Any]
    """The settings of its configuration that do not follow from the data."""
    prediction: Prediction
    """What it predicts."""
    noise_schedule: str
    """The noise schedule; "flow" for a rectified flow."""
    place: Path | None
    """The file of the weights to start from."""
    sha256: str | None
    """Its hash."""
    components: bool = False
    """Whether it is from a folder of components, whose tables of positions are read as they are stored, in 16 bits."""
    text: Component | None = None
    """The small encoder to start from."""
    classes: tuple[str, ...] = ()
    """The names of the classes of the weights to start from."""
    by_size: bool = False
    """See ``ModelConfig``."""
    knows_given_frames: bool = False
    """See ``ModelConfig``."""

    @property
    def flows(self) -> bool:
        """Whether it is a rectified flow."""
        return self.prediction == "flow"

    def known_classes(self, shown: Sequence[str]) -> tuple[str, ...]:
        """The classes of the weights to start from, by number.

        Released weights know theirs by number alone: the names of as many classes of the data are theirs, in order.

        Args:
            shown: the classes of the data, by number.
        """
        if self.tensors is None or self.classes or CLASSES not in self.tensors:
            return self.classes
        count = len(self.tensors[CLASSES]) - 1
        if len(shown) == count:
            return tuple(shown)
        return tuple(map(str, range(count))) if all(map(str.isdecimal, shown)) else ()

    def configured(self, derived: Mapping[str, Any]) -> NetworkConfig:
        """The network's configuration, with the values that follow from the data."""
        of: Any = CONFIGS[self.family]
        names = {each.name for each in dataclasses.fields(of)}
        values = {name: value for name, value in {**self.config, **derived}.items() if name in names}
        return make_config(of, values, "network" if self.place is None else f"start: {self.place}")

    def build(self, config: NetworkConfig, seed: int) -> nn.Module:
        """The network, on the CPU.

        Raises:
            InputError: there is no network of this shape, or the weights do not fit it.
        """
        if self.tensors is None:
            return new_network(self.family, config, seed)
        network = reader_of(self.family).assemble(config, self.tensors, str(self.place), torch.float32)
        for parameter in network.parameters():  # they may be the file's own memory
            parameter.data = parameter.data.clone()
        if self.components:
            tables = {name: value for name, value in network.named_buffers() if name in self.tensors}
            for name, table in tables.items():
                if table.shape == self.tensors[name].shape:
                    table.copy_(self.tensors[name])
        null = getattr(getattr(network, "y_embedder", None), "y_embedding", None)
        if isinstance(null, Tensor) and null.isnan().any():  # a checkpoint without a null caption
            null.data.zero_()
        return network


def find_beginning(recipe: VideosRecipe) -> Beginning:
    """What a recipe begins from.

    Raises:
        InputError: the weights to start from are missing or damaged, or do not go with the recipe.
    """
    start = recipe.start
    if start is None:
        family = cast("NetworkName", recipe.family)
        prediction = recipe.prediction or ("flow" if family == "stdit3" else "eps")
        config = recipe.shape
        if family != "stdit3":  # its released weights have channels for a variance that nothing was trained on
            config |= {"learn_sigma": prediction != "flow"}
        schedule = "flow" if prediction == "flow" else recipe.noise_schedule
        return Beginning(family, None, config, prediction, schedule, None, None)
    if (start / DENOISER).is_file():
        found = _own_components(start)
    elif start.is_dir() and (own := read_model_config(start)) is not None:
        shape = dataclasses.asdict(read_network_config(start, own.network))
        file = read_tensors(start / CHECKPOINT)
        refuse_broken(file.tensors, file.path)
        text = load_component(start / TEXT, "text") if own.text.kind == "words" else None
        found = Beginning(
            own.network, file.tensors, shape, own.prediction, own.noise_schedule, file.path,
            hash_files(*whole(file.path)), text=text, classes=own.text.classes, by_size=own.by_size,
            knows_given_frames=own.knows_given_frames,
        )  # fmt: skip
    else:
        found = _released(start, recipe)
    _refuse_unfit(found, recipe)
    return found


def _own_components(start: Path) -> Beginning:
    """The network and the text encoder of a folder of components."""
    if (start / LOW_NOISE).is_file():
        raise InputError(f"start: {start} holds two expert networks: give the folder of a single one")
    denoiser, text = load_component(start / DENOISER, "denoiser"), load_component(start / TEXT, "text")
    config = {name: value for name, value in denoiser.config.items() if name not in (*DIFFUSION, BOUNDARY)}
    return Beginning(
        "stdit", denoiser.weights, config, denoiser.config["prediction"], denoiser.config["noise_schedule"],
        denoiser.path, denoiser.sha256, components=True, text=text,
    )  # fmt: skip


def _released(start: Path, recipe: VideosRecipe) -> Beginning:
    """The network in a released checkpoint."""
    family, checkpoint = recognise(read_tensors(start))
    names: dict[str, NetworkName] = {of: name for name, of in FAMILIES.items()}
    if family.name not in names:
        raise InputError(f"start: {start} holds a {family.name}, which cannot be trained; give {', '.join(names)}")
    name, file = names[family.name], checkpoint.file
    refuse_broken(checkpoint.tensors, file.path)
    flows, sized = name == "stdit3", name in ("stdit2", "stdit3")
    return Beginning(
        name, checkpoint.tensors, _released_config(name, checkpoint), "flow" if flows else "eps",
        "flow" if flows else "linear", file.path, hash_files(*whole(file.path)), by_size=flows,
        knows_given_frames=sized,
    )  # fmt: skip


def _released_config(name: NetworkName, checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration that a released checkpoint tells; its size is the recipe's."""
    assumed = {} if name in ("stdit2", "stdit3") else {"input_size": 32 if name in IMAGES else (16, 32, 32)}
    config = reader_of(name).configure(checkpoint.tensors, checkpoint.file.config, {}, assumed)
    return dataclasses.asdict(config)


def _refuse_unfit(found: Beginning, recipe: VideosRecipe) -> None:
    """Refuse weights that do not go with a recipe."""
    name, where = found.family, f"start: {found.place}"
    if recipe.prediction not in (None, found.prediction):
        raise InputError(f"{where} predicts {found.prediction}, the recipe says {recipe.prediction}: leave it out")
    if found.flows:
        recipe.refuse_diffusion(where)
    elif "noise_schedule" in recipe.model_fields_set and recipe.noise_schedule != found.noise_schedule:
        raise InputError(
            f"{where} has the noise_schedule {found.noise_schedule}, the recipe says {recipe.noise_schedule}: leave it "
            "out"
        )
    elif not found.config.get("learn_sigma"):
        raise InputError(f"{where} learns no variance, which training needs: give weights that do")
    if (name == "dit") != recipe.text.classes:
        wanted = "classes: give text: {classes: true}" if name == "dit" else "captions: leave out text: classes"
        raise InputError(f"{where} is a {FAMILIES[name]}, which is conditioned on {wanted}")
    if recipe.text.kind == "words" and found.text is None:
        raise InputError(f"{where} reads features of T5: give text: {{t5: folder}}, or text: {{features: file}}")
    if recipe.text.kind in ("t5", "features") and found.text is not None:
        raise InputError(f"{where} reads captions by its own small encoder: leave out text")
    if recipe.text.kind == "words":
        _refuse_other_encoder(found, recipe)
    if name in IMAGES and recipe.data.lengths != (1,):
        raise InputError(f"{where} makes images: give data: {{frames: 1}}")
    any_size = found.config.get("micro_condition") or found.config.get("any_size")
    if name in IMAGES and not any_size and not recipe.data.is_square:
        raise InputError(f"{where} takes images of one square size: give one, such as size: [256, 256]")


def _refuse_other_encoder(found: Beginning, recipe: VideosRecipe) -> None:
    """Refuse a shape of the small encoder that is not the one of the encoder to start from."""
    assert found.text is not None
    before, text = found.text.configure(CaptionEncoderConfig), recipe.text
    has_all = {"width": before.features, "layers": before.layers, "heads": before.heads}
    for name, has in (has_all | {"max_length": before.max_length}).items():
        if name in text.model_fields_set and (said := getattr(text, name)) not in (None, has):
            raise InputError(f"start: {found.text.path} has the {name} {has}, text says {said}: leave it out")


def words_encoder(
    recipe: VideosRecipe, captions: Sequence[str], start: Component | None
) -> tuple[CaptionEncoderConfig, dict[str, Tensor] | None]:
    """The small encoder for captions, and the weights that it starts from; None for new ones.

    Words that the encoder of ``start`` does not know are added to it, with new weights.

    Raises:
        InputError: no caption has a word.
    """
    lengths = [len(words_of(caption)) for caption in captions]
    words = sorted({word for caption in captions for word in words_of(caption)})
    if not words:
        raise InputError("no caption has a word, so that a text encoder has nothing to learn: write captions")
    text = recipe.text
    if start is None:
        shape = CaptionEncoderConfig(
            {word: word for word in words}, features=text.width, layers=text.layers, heads=text.heads,
            max_length=text.max_length or max(lengths), own=True,
        )  # fmt: skip
        return shape, None
    before = start.configure(CaptionEncoderConfig)
    vocabulary = {**{word: word for word in words}, **before.vocabulary}
    own = before.own or len(vocabulary) > len(before.vocabulary)
    shape = dataclasses.replace(before, vocabulary=vocabulary, own=own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        fresh = CaptionEncoder(shape)
    ids = CaptionEncoder(before).tokenizer.ids
    table = fresh.embedding.weight.detach().clone()
    known = start.weights["embedding.weight"].to(table)
    table[0] = known[0]
    for word, number in fresh.tokenizer.ids.items():
        if word in ids:
            table[number] = known[ids[word]]
    return shape, {**start.weights, "embedding.weight": table}
