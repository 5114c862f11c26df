"""What each latent channel shows: its direction in RGB, and its share of a picture's brightness and colour.

A linear map from latent channels to RGB explains most of what an autoencoder decodes. For the autoencoders that people
use, such maps are published (``latent_rgb.json``, with the source of each); for an autoencoder that is at hand one is
fitted. The published ones need no weights and no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, nearest
from ..core.reading import read_object, reading
from ..guidance.channels import ChannelChoice
from ..models.catalogue import presets
from ..models.family import Released

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..models.vae import Autoencoder
    from ..pipeline import Pipeline

RGB = tuple[float, float, float]
AXES: dict[str, RGB] = {
    "brightness": (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    "red-green": (1 / math.sqrt(2), -1 / math.sqrt(2), 0.0),
    "blue-yellow": (-1 / math.sqrt(6), -1 / math.sqrt(6), 2 / math.sqrt(6)),
}
"""Three directions of RGB at right angles. The last two are colour."""
ENDS = {"brightness": ("darker", "brighter"), "red-green": ("greener", "redder"), "blue-yellow": ("yellower", "bluer")}
"""What the low and the high end of an axis are called."""
NAMED = 0.15  # the least share of a channel's energy in an axis that its description names
SHOWN = 3  # channels that a summary names of those left out
CLIPS = 8  # clips of the bench on which an autoencoder is measured
FRAMES = 8  # of a file, evenly spread, on which an autoencoder is measured
LARGEST = 512  # px, the longest side of the files on which an autoencoder is measured; larger ones are cut


@dataclass(frozen=True)
class Channel:
    """What one latent channel shows."""

    number: int
    factors: RGB
    """What the picture's RGB, in [-1, 1], gains per unit of the latent as the network sees it."""
    spread: float
    """The standard deviation of the latent over places; 1 where it is not known."""

    @property
    def along(self) -> dict[str, float]:
        """By axis, the strength: factor times spread, with its sign."""
        return {
            name: self.spread * sum(a * b for a, b in zip(self.factors, axis, strict=True))
            for name, axis in AXES.items()
        }

    @property
    def carries(self) -> tuple[str, ...]:
        """The axes that it mainly moves, the strongest first."""
        along = self.along
        energy = sum(value**2 for value in along.values())
        strongest = sorted(along, key=lambda name: -abs(along[name]))
        return tuple(name for name in strongest if energy and along[name] ** 2 >= NAMED * energy)

    @property
    def words(self) -> str:
        """What more of it does to a picture: "brighter and bluer"."""
        along = self.along
        return " and ".join(ENDS[name][along[name] > 0] for name in self.carries) or "nothing"

    @property
    def swatch(self) -> tuple[RGB, RGB]:
        """Two colours in [0, 1] that show its direction: less of it, and more of it, around grey."""
        most = max(map(abs, self.factors)) or 1.0
        less, more = (tuple(0.5 + sign * 0.5 * value / most for value in self.factors) for sign in (-1, 1))
        return (less[0], less[1], less[2]), (more[0], more[1], more[2])


@dataclass(frozen=True)
class Channels:
    """What all latent channels of an autoencoder show."""

    name: str
    title: str
    """The models that use it."""
    source: str
    """Where the factors come from."""
    channels: tuple[Channel, ...]
    explained: float | None = None
    """The share of the decoded picture's variation that the linear map explains; None where it was not measured."""
    brightness: tuple[float, ...] = field(init=False)
    """Each channel's share of the brightness, as if the channels varied independently."""
    colour: tuple[float, ...] = field(init=False)
    """Each channel's share of the colour, likewise."""

    def __post_init__(self) -> None:
        along = [channel.along for channel in self.channels]
        light = [own["brightness"] ** 2 for own in along]
        colour = [own["red-green"] ** 2 + own["blue-yellow"] ** 2 for own in along]
        for name, energy in (("brightness", light), ("colour", colour)):
            total = sum(energy)
            object.__setattr__(self, name, tuple(value / total if total else 0.0 for value in energy))

    def left_out(self, cfg_channels: Any) -> tuple[int, ...]:
        """The channels that a choice leaves unguided.

        Raises:
            InputError: the choice cannot be read, or names channels that do not exist.
        """
        guided = ChannelChoice.parse(cfg_channels).indices_for(len(self.channels))
        return tuple(number for number in range(len(self.channels)) if number not in guided)

    def summary(self, cfg_channels: Any = 3) -> str:
        """What a choice of guided channels leaves out, in a sentence.

        Raises:
            InputError: as ``left_out``.
        """
        out, text = self.left_out(cfg_channels), ChannelChoice.parse(cfg_channels).text
        guided = [n for n in range(len(self.channels)) if n not in out]
        head = f"cfg_channels {text} guides {_numbers(guided)}"
        if not out:
            return f"{head}; nothing is left out"
        light, colour = (sum(shares[n] for n in out) for shares in (self.brightness, self.colour))
        shares = f"{light:.0%} of the brightness and {colour:.0%} of the colour"
        strongest = sorted(out, key=lambda n: -(self.brightness[n] + self.colour[n]))[:SHOWN]
        named = ", ".join(f"channel {n} ({', '.join(self.channels[n].carries) or 'nothing'})" for n in strongest)
        if len(out) <= SHOWN:
            return f"{head}; left out: {named}, with {shares}"
        return f"{head}; left out: {len(out)} of {len(self.channels)} channels, with {shares}, most of it in {named}"

    def as_json(self, cfg_channels: Any = 3) -> dict[str, Any]:
        """All of it as data for JSON."""
        out = self.left_out(cfg_channels)
        return {
            "name": self.name, "title": self.title, "source": self.source, "explained": self.explained,
            "cfg_channels": ChannelChoice.parse(cfg_channels).text,
            "left_out": {
                "channels": list(out), "brightness": sum(self.brightness[n] for n in out),
                "colour": sum(self.colour[n] for n in out),
            },
            "channels": [
                {
                    "channel": own.number, "rgb": list(own.factors), "spread": own.spread, "carries": list(own.carries),
                    "more_of_it": own.words, "brightness": self.brightness[own.number],
                    "colour": self.colour[own.number],
                }
                for own in self.channels
            ],
        }  # fmt: skip


def _numbers(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no channel"
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"channels {numbers[0]} to {numbers[-1]}"
    return f"channel{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


@lru_cache
def _published() -> dict[str, dict[str, Any]]:
    return json.loads(resources.files(__package__ or "guidon.analysis").joinpath("latent_rgb.json").read_text("utf-8"))


def families() -> dict[str, str]:
    """The names of the published autoencoders, each with the models that use it."""
    return {name: found["title"] for name, found in _published().items()}


def published(name: str) -> Channels:
    """The published factors of an autoencoder.

    Args:
        name: a name of ``families``, of a model that uses one ("qwen-image", or on the hub
            "black-forest-labs/FLUX.1-dev"), of a preset with released weights, or of a pipeline class of diffusers
            ("WanPipeline"); or the folder of a diffusers pipeline.

    Raises:
        InputError: no factors are published for it; the message has the nearest name.
    """
    key = _family_of_folder(Path(name)) if (Path(name) / "model_index.json").is_file() else _family(name)
    found = _published()[key]
    channels = tuple(Channel(k, (r, g, b), 1.0) for k, (r, g, b) in enumerate(found["factors"]))
    return Channels(key, found["title"], found["source"], channels)


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.lower())


def _family(name: str) -> str:
    preset = presets().get(name)
    if preset is not None and isinstance(preset.weights, Released):
        return "sdxl" if "sdxl" in preset.weights.vae.lower() else "sd"
    aliases = {alias: key for key, found in _published().items() for alias in (key, *found["names"])}
    known = {_plain(alias): key for alias, key in aliases.items()}
    plain = _plain(name.rpartition("/")[2].removesuffix("-Diffusers").removesuffix("-diffusers"))  # without the owner
    if plain in known:
        return known[plain]
    if name.endswith("Pipeline") and (key := _family_of_class(name)) is not None:
        return key
    hint = nearest(name, (*aliases, *presets()))
    hint = hint if hint.startswith(" (") else ""
    raise InputError(
        f"no latent channels of {name!r} are known{hint}; known: {', '.join(_published())}; of others the folder of an "
        "AutoencoderKL can be measured"
    )


def _family_of_class(name: str, channels: int | None = None) -> str | None:
    """The family of a pipeline class of diffusers, by the longest beginning; only of so many channels, if given."""
    fitting = [
        (len(start), key)
        for key, found in _published().items()
        for start in found["pipelines"]
        if re.match(rf"{start}(?!\d)", name) and channels in (None, len(found["factors"]))
    ]
    return max(fitting, key=lambda own: own[0])[1] if fitting else None


def _family_of_folder(folder: Path) -> str:
    """The family of the folder of a diffusers pipeline, by its class and by how many channels its autoencoder has."""
    index, config = folder / "model_index.json", folder / "vae" / "config.json"
    name = read_object(index, "the index of a pipeline").get("_class_name")
    values = read_object(config, "the configuration of an autoencoder")
    with reading(config, "the configuration of an autoencoder"):
        channels = int(values.get("latent_channels", values.get("z_dim", 0)))
    key = _family_of_class(str(name), channels)
    if key is None:
        raise InputError(
            f"no factors are known for the autoencoder of {folder}, a {name or 'pipeline'!s:.60} with {channels} "
            f"latent channels; known: {', '.join(_published())}; of others the folder of an AutoencoderKL can be "
            "measured"
        )
    return key


def fit(latents: np.ndarray, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The linear map from latents to RGB, by least squares.

    Args:
        latents: (N, C), one row for each place.
        pictures: (N, 3), the RGB of each place in [-1, 1].

    Returns:
        Factors (C, 3), the constant (3,), and the share of the pictures' variance that the map explains.

    Raises:
        InputError: there are fewer places than unknowns, or the pictures do not vary.
    """
    import numpy as np

    count, channels = latents.shape
    if count <= channels:
        raise InputError(f"{count} places are too few to fit {channels} channels: give more or larger pictures")
    given = np.concatenate((latents, np.ones((count, 1))), axis=1).astype(np.float64)
    solution = np.linalg.lstsq(given, pictures.astype(np.float64), rcond=None)[0]
    rest, spread = pictures - given @ solution, pictures - pictures.mean(0)
    if not (spread**2).sum():
        raise InputError("the pictures do not vary: give others")
    return solution[:-1], solution[-1], float(1 - (rest**2).sum() / (spread**2).sum())


def measure(
    vae: Autoencoder, clips: Sequence[np.ndarray], *, step: int, device: torch.device | str, name: str, source: str
) -> Channels:
    """What the channels of an autoencoder show, fitted on clips that it encodes and decodes.

    Args:
        vae: the autoencoder.
        step: pixels of a latent pixel, along one side.
        device: where the autoencoder is.
        clips: uint8 frames (T, H, W, 3) each. What is beyond ``LARGEST`` px is cut off.
        name: what to call it.
        source: what the clips are.

    Raises:
        InputError: there is no clip, or they are too small or do not vary.
    """
    import numpy as np
    import torch
    from torch.nn import functional as F

    if not clips:
        raise InputError("there is no picture on which the channels can be measured: give some")
    rows, pictures = list[np.ndarray](), list[np.ndarray]()
    with torch.inference_mode():
        for clip in clips:
            height, width = (min(side, LARGEST) // step * step for side in clip.shape[1:3])
            if not height or not width:
                raise InputError(
                    f"a picture of {clip.shape[2]}x{clip.shape[1]} is too small: give at least {step}x{step}"
                )
            chosen = np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)
            cut = np.ascontiguousarray(clip[chosen, :height, :width])
            x = torch.from_numpy(cut).float().permute(3, 0, 1, 2)[None].to(device) / 127.5 - 1
            latents = vae.encode(x)  # (1, C, T, h, w)
            t, h, w = latents.shape[2:]
            shown = F.adaptive_avg_pool3d(vae.decode(latents, frames=x.shape[2]), (t, h, w))
            rows.append(latents[0].flatten(1).T.cpu().numpy())
            pictures.append(shown[0].flatten(1).T.cpu().numpy())
    latents, shown = np.concatenate(rows), np.concatenate(pictures)
    factors, _, explained = fit(latents, shown)
    channels = tuple(
        Channel(k, (float(r), float(g), float(b)), float(spread))
        for k, ((r, g, b), spread) in enumerate(zip(factors, latents.std(0), strict=True))
    )
    return Channels(name, name, source, channels, explained)


def said_files(count: int) -> str:
    """The source of factors that were fitted on files."""
    return f"least squares on {count} file{'' if count == 1 else 's'}"


def measure_model(pipe: Pipeline, clips: Sequence[np.ndarray] = ()) -> Channels:
    """``measure`` for the autoencoder of a model.

    Args:
        pipe: the model.
        clips: as ``measure`` takes them; if there is none, clips of the model's own bench.

    Raises:
        InputError: as ``measure``; or there is no clip, and the bench has none.
    """
    import numpy as np

    from ..metrics.bench import find_bench
    from ..metrics.metric import EVALUATION_SEED

    source = said_files(len(clips))
    if not clips:
        examples, split = find_bench(pipe.model.facts.bench).own_examples()
        frames = [examples.frames(split, EVALUATION_SEED, k) for k in range(CLIPS)]
        clips = [(255 * own).round().astype(np.uint8) for own in frames]
        source = f"least squares on {CLIPS} clips of the bench {pipe.model.facts.bench}"
    with pipe.model.vae.in_use() as vae:
        step, device = pipe.model.facts.downsampling, pipe.device
        return measure(vae, clips, step=step, device=device, name=pipe.preset.name, source=source)
