"""The models that may be chosen, and what the page needs to know of one. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, setting
from ..guidance import Guidance
from ..guidance.rules.spelling import RULES
from ..metrics.bench import find_bench
from ..models import registry
from ..models.catalogue import presets
from ..pipeline.diffusers_planner import DiffusersPlanner, check_options
from ..pipeline.planner import Planner
from ..request import DIFFUSERS
from ..samplers import SAMPLERS
from .jobs import spelled
from .outputs import Absent

if TYPE_CHECKING:
    from ..pipeline.contract import ModelPlanner

FIRST = "guidon-small"
PROMPTS = 6  # captions that are proposed


class Models:
    """The presets, and the folders that were given at the start. A browser can name no other.

    Args:
        folders: folders of weights, and ``diffusers:FOLDER``.
        call: arguments of every call of the diffusers pipelines, such as ``{"height": 480}``.
        parts: how the first model is loaded, such as ``{"checkpoint": "DiT-XL-2-256x256.pt"}``.

    Raises:
        InputError: there is a call, and no diffusers pipeline.
    """

    def __init__(
        self, folders: Sequence[str] = (), call: Mapping[str, Any] | None = None, parts: Mapping[str, Any] | None = None
    ) -> None:
        self.call, self.of_first = dict(call or {}), dict(parts or {})
        if self.call and not any(name.startswith(DIFFUSERS) for name in folders):
            raise InputError(
                f"{setting('call')} is for diffusers pipelines: leave it out, or give {setting('model')} "
                f"{DIFFUSERS}FOLDER"
            )
        self.names = list(dict.fromkeys([*folders, FIRST, *presets()]))
        self.folders = tuple(folders)
        self._planners: dict[str, ModelPlanner] = {}

    def parts(self, name: str) -> dict[str, Any]:
        """How a model is loaded: arguments of ``guidon.load``."""
        parts = dict(self.of_first) if name == self.first else {}
        return parts | ({"call": self.call} if self.call and name.startswith(DIFFUSERS) else {})

    @property
    def first(self) -> str:
        """The model that is chosen at the start."""
        return self.names[0]

    def planner(self, name: str) -> ModelPlanner:
        """The planner of a model.

        Raises:
            Absent: it is not in the list.
            InputError: parts of it are missing.
        """
        if name not in self.names:
            raise Absent("this model is not in the list: choose one of it")
        if name not in self._planners:
            parts = self.parts(name)
            if name.startswith(DIFFUSERS):
                check_options(name, parts)
                self._planners[name] = DiffusersPlanner.find(
                    name.removeprefix(DIFFUSERS), call=self.call, dtype=parts.get("dtype")
                )
            else:
                self._planners[name] = Planner.find(name, **parts)
        return self._planners[name]

    def listed(self) -> list[dict[str, Any]]:
        """Every model, with what it is, and what is missing of it."""
        return [self._entry(name) for name in self.names]

    def _entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": name, "label": label_of(name), "summary": "", "ready": True, "missing": ""}
        own = presets().get(name)
        entry["summary"] = own.summary if own else "a folder of weights"
        if name.startswith(DIFFUSERS):
            entry["summary"] = "a diffusers pipeline"
        try:
            self.planner(name)
        except InputError as error:
            entry |= {"ready": False, "missing": spelled(error)}
        return entry

    def describe(self, name: str) -> dict[str, Any]:
        """What the page needs to know of a model: its channels, choices, own settings and words."""
        planner = self.planner(name)
        found: dict[str, Any] = {
            "name": name, "label": label_of(name), "channels": planner.channels, "scale": planner.cfg_scale,
            "rules": list(RULES), "bench": planner.bench, "guided": [True] * planner.channels, "timing": "constant",
            "sampler": None, "samplers": [], "steps": None, "fast": False, "words": {}, "prompts": [], "classes": False,
            "seeds": True,
        }  # fmt: skip
        if isinstance(planner, Planner):
            found |= self._own(planner)
        else:
            found |= {"steps": getattr(planner, "steps", None), "classes": bool(getattr(planner, "takes_classes", 0))}
        bench = find_bench(planner.bench)
        found["study"] = bench.examples is not None
        if bench.examples is not None:
            split = bench.examples.default_split
            found["prompts"] = [bench.examples.caption(split, 0, number) for number in range(PROMPTS)]
        return found

    def _own(self, planner: Planner) -> dict[str, Any]:
        preset, facts = planner.preset, planner.facts
        guided = Guidance(preset.cfg_scale, preset.cfg_channels).scales_for(facts.channels).guided
        return {
            "guided": [number in guided for number in range(facts.channels)], "timing": preset.timing,
            "sampler": preset.sampler, "samplers": list(SAMPLERS[facts.path]), "steps": preset.steps,
            "fast": preset.fast is not None,
            "fast_scale": (preset.fast and preset.fast.cfg_scale) or preset.cfg_scale, "classes": bool(preset.classes),
            "words": {
                kind: [word for word in words if facts.read_prompts([word], True)[0].refusal is None]
                for kind, words in words_of(registry.find_family(preset.family).describe_words(preset)).items()
            },
        }  # fmt: skip


def label_of(name: str) -> str:
    """A short name: of a folder its last part, so that a page tells nobody where it lies."""
    if name in presets():
        return name
    return Path(name.removeprefix(DIFFUSERS)).name or name


def words_of(described: Mapping[str, str]) -> dict[str, list[str]]:
    """The words of a model by kind, from the sentences that describe them: "red (scarlet, crimson); blue"."""
    found: dict[str, list[str]] = {}
    for kind, text in described.items():
        plain = re.sub(r"\([^)]*\)", "", text)
        words = [word.strip() for word in re.split(r"[;,]", plain)]
        found[kind] = [word for word in words if re.fullmatch(r"[a-z]+( [a-z]+)?", word)]
    return {kind: words for kind, words in found.items() if words}
