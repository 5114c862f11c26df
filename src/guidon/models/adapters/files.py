"""Where adapters are, and what their settings say. It is read without torch."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from ...checkpoints.finding import read_header
from ...core.errors import InputError, quoted, setting
from ...core.hashing import hash_files
from ...core.reading import is_there, parse_json, read_object, regular_file
from ...core.settings import Settings

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""The files of a folder of adapters, as peft names them."""
OF_DIFFUSERS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # field of a header in which diffusers keeps the settings
WHAT = "adapters"
DIFFUSERS_NETWORKS = {"DiTTransformer2DModel": "DiT", "PixArtTransformer2DModel": "PixArt"}  # theirs -> ours
MOVES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""How the names of peft's starts begin that change the weights under adapters, which their file does not hold."""
UNKNOWN = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "layer_replication")
"""Settings of peft that change what an adapter adds, in ways that are not computed here."""


class AdapterSource(Settings):
    """Adapters that a user names."""

    path: Path
    """A file, or a folder that holds one."""
    scale: FiniteFloat = 1.0
    """What they are multiplied by."""

    @classmethod
    def parse(cls, text: str) -> AdapterSource:
        """Adapters as text: a path, or ``PATH=0.8``.

        Raises:
            InputError: what follows the last "=" is no number, and there is no file of the whole name.
        """
        path, equals, scale = text.rpartition("=")
        if not equals or Path(text).exists():
            return cls(path=Path(text))
        try:
            number = float(scale)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{setting('lora')} {text}: {quoted(scale)} is no number: give FOLDER, or FOLDER=0.8")
        return cls(path=Path(path), scale=number)

    def find(self) -> AdapterFile:
        """Its file and settings.

        Raises:
            InputError: there is none, or its settings ask for what is not computed here.
        """
        place, name = self.path, setting("lora")
        if not is_there(place, WHAT):
            raise InputError(f"{name} {place} is not there: give a folder with {ADAPTER_WEIGHTS}, or such a file")
        if place.is_dir():
            found = next((place / file for file in (ADAPTER_WEIGHTS, OF_DIFFUSERS) if (place / file).is_file()), None)
            if found is None:
                raise InputError(f"{name} {place} holds no {ADAPTER_WEIGHTS} and no {OF_DIFFUSERS}")
            place = found
        regular_file(place, WHAT)
        if place.suffix != ".safetensors":
            raise InputError(f"{name} {place} is no safetensors file: give {ADAPTER_WEIGHTS}, as peft writes it")
        config, beside = _settings_in(place), place.parent / ADAPTER_CONFIG
        files = [place]
        if place.name == ADAPTER_WEIGHTS and beside.is_file():
            config = read_object(beside, "the configuration of adapters")
            files.append(beside)
        for key in UNKNOWN:
            if config.get(key):
                raise InputError(f"{place}: its configuration has {key}, which is not read: merge it with peft first")
        begun = config.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(MOVES_WEIGHTS):
            raise InputError(
                f"{place}: its configuration has init_lora_weights {begun}, whose start changed the weights that it is "
                "for: merge it with peft first"
            )
        return AdapterFile(place, self.scale, config, hash_files(*files))


@dataclass(frozen=True)
class AdapterFile:
    """A file of adapters and its settings."""

    path: Path
    """The file of tensors."""
    scale: float
    """What the adapters are multiplied by."""
    config: dict[str, Any]
    """The settings that peft or diffusers wrote; {} where there are none."""
    sha256: str
    """Of the file and its settings."""

    @property
    def name(self) -> str:
        """What it is called in a manifest."""
        return self.path.parent.name if self.path.name in (ADAPTER_WEIGHTS, OF_DIFFUSERS) else self.path.stem

    def part(self, number: int) -> str:
        """The part of a model that it is in a manifest, as the adapters of that number; ``adapter_in`` reads it."""
        short = f"{self.scale:g}"
        scale = short if float(short) == self.scale else repr(self.scale)
        return f"lora {number}: {self.name}*{scale}"

    @property
    def network(self) -> str | None:
        """The class of the network that it is for, if its settings say it."""
        mapping = self.config.get("auto_mapping")
        found = mapping.get("base_model_class") if isinstance(mapping, dict) else None
        return DIFFUSERS_NETWORKS.get(found, found) if isinstance(found, str) else None

    def factor(self, rank: int) -> float:
        """What the product of the matrices of an adapter of this rank is multiplied by.

        Raises:
            InputError: its alpha is no number.
        """
        alpha = self.config.get("lora_alpha", rank)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise InputError(f"{self.path}: its lora_alpha is {quoted(alpha)}, expected a number: save it again")
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def adapter_in(part: str) -> tuple[str, str] | None:
    """Name and scale of the adapters that a part of a model is in a manifest; None for another part."""
    found = re.fullmatch(r"lora \d+: (.*)\*(.*)", part, re.DOTALL)
    return found and (found[1], found[2])


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings in the header of a file that diffusers wrote; {} where there are none."""
    text = read_header(path).get(METADATA)
    if text is None:
        return {}
    found = parse_json(text, path, "the settings of adapters")
    if not isinstance(found, dict):
        raise InputError(f"{path}: its settings are {quoted(found)}, expected an object: save it again")
    return {key.removeprefix("transformer."): value for key, value in found.items()}


def adapter_config(network: str, rank: int, alpha: float, dropout: float, targets: list[str], base: str) -> str:
    """The text of adapter_config.json, as peft reads it.

    Args:
        network: the class of the network.
        rank, alpha, dropout: of the adapters.
        targets: the names of the layers.
        base: where the network's weights are.
    """
    values = {
        "peft_type": "LORA",
        "auto_mapping": {"base_model_class": network, "parent_library": "guidon.models"},
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }
    return json.dumps(values, indent=2) + "\n"
