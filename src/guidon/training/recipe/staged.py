"""A recipe of several runs in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, model_validator

from ...core.errors import InputError, nearest, quoted
from ...core.reading import is_there
from ...core.settings import validated
from .kinds import FROM_FILES, PARENTS, RECIPES, RESULTS, Recipe
from .section import Section

StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]  # it is part of a folder's name


class Common(Section):
    """Settings that stages share. A stage's own settings win over those of its task, and these win over ``every``."""

    every: dict[str, Any] = Field(default_factory=dict)
    """Settings of every stage."""
    vae: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: vae``."""
    denoiser: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: denoiser``."""
    rollout: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: rollout``."""
    distill: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: distill``."""
    videos: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: videos``."""


class Export(Section):
    """The result of a staged recipe."""

    stage: str
    """The stage whose model folder is the result."""
    folder: StageName = "model"
    """The folder inside ``out`` to which it is copied."""


class StagedRecipe(Section):
    """Several runs in order. A run can start from what an earlier one exported."""

    out: Path
    """Folder of all stages. Each stage has its own folder in it, named after the stage and a hash (see ``stages``)."""
    common: Common = Common()
    """Settings that stages share."""
    stages: dict[StageName, dict[str, Any]] = Field(min_length=1)
    """The stages in order, each as a recipe without ``out``; ``vae`` and ``start`` name earlier stages."""
    export: Export
    """The result."""

    def settings(self, name: str) -> dict[str, Any]:
        """A stage's settings, merged with those of ``common``. Sections are merged key by key."""
        own = self.stages[name]
        task = own.get("task")
        if not isinstance(task, str) or task not in RECIPES:
            raise InputError(f"stages.{name}: {no_task(task)}")
        return _merged(_merged(self.common.every, getattr(self.common, task)), own)

    def parents(self, name: str) -> dict[str, str]:
        """The earlier stages whose results a stage takes: field -> name of the stage."""
        settings = self.settings(name)
        task = settings["task"]
        given = {field: settings[field] for field in PARENTS[task] if settings.get(field) is not None}
        if task not in FROM_FILES:
            return given
        return {field: parent for field, parent in given.items() if parent in self.stages}

    def order(self, last: str | None = None) -> list[str]:
        """All stages in order, or only ``last`` and those that it needs."""
        if last is None:
            return list(self.stages)
        needed = [last]
        for name in needed:  # the list grows during this loop
            needed += self.parents(name).values()
        return [name for name in self.stages if name in needed]

    def recipe(self, name: str, out: Path, parents: Mapping[str, Path]) -> Recipe:
        """One stage as the recipe of a single run in the folder ``out``. ``parents``: field -> the parent's result."""
        settings = self.settings(name)
        task: str = settings["task"]
        shared = {"cache": self.out / "clips"} if task in RESULTS or "data" in settings else {}
        return validated(RECIPES[task], {**shared, **settings, "out": out, **parents}, f"stages.{name}")

    def draft(self, name: str) -> Recipe:
        """One stage as the recipe of a single run whose parents need not be trained yet."""
        return self.recipe(name, self.out / name, {field: Path(p) for field, p in self.parents(name).items()})

    @model_validator(mode="after")
    def _stages_fit(self) -> StagedRecipe:
        earlier: dict[str, str] = {}  # the tasks of the stages read so far
        for name in self.stages:
            settings = self.settings(name)
            if "out" in settings:
                raise InputError(f"stages.{name}: out is given once, for the whole recipe: leave it out here")
            for field, parent in self.parents(name).items():
                wanted = PARENTS[settings["task"]][field]
                fitting = [other for other, task in earlier.items() if task in wanted]
                if parent not in fitting:
                    kind = " or ".join(wanted)
                    hint = nearest(str(parent), fitting) if fitting else f"; there is no {kind} before it"
                    raise InputError(f"stages.{name}: {field} is {parent!r}, expected an earlier {kind} stage{hint}")
                if self.settings(parent).get("lora"):
                    raise InputError(
                        f"stages.{name}: {field} is {parent!r}, which trains adapters and no model: give the stage "
                        "that they are for"
                    )
            if settings["task"] in FROM_FILES:
                for field in PARENTS[settings["task"]]:
                    _refuse_misspelt(name, field, settings.get(field), list(earlier))
            self.draft(name)
            earlier[name] = settings["task"]
        if earlier.get(self.export.stage) not in RESULTS:
            hint = nearest(self.export.stage, [name for name, task in earlier.items() if task in RESULTS])
            kind = " or ".join(RESULTS)
            raise InputError(f"export.stage is {self.export.stage!r}, expected a {kind} stage{hint}")
        return self


def no_task(task: object) -> str:
    """The message for settings whose task is missing or unknown."""
    if task is None:
        return f"the key 'task' is missing: give one of {', '.join(RECIPES)}"
    return f"task is {quoted(task)}{nearest(str(task), RECIPES)}"


def _refuse_misspelt(stage: str, field: str, place: Any, earlier: list[str]) -> None:
    """Refuse what is neither a stage nor there, before the stages above it are trained.

    Raises:
        InputError: it is so.
    """
    if isinstance(place, str) and place not in earlier and not is_there(Path(place), "trained weights"):
        hint = nearest(place, earlier) if earlier else ""
        raise InputError(f"stages.{stage}: {field} {place!r} is no stage before it, and no file or folder{hint}")


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``common``; mappings that both have are merged in the same way."""
    both = {
        name: _merged(common[name], own[name]) for name in common.keys() & own.keys() if _mappings(common, own, name)
    }
    return {**common, **own, **cast("dict[str, Any]", both)}


def _mappings(common: Mapping[str, Any], own: Mapping[str, Any], name: str) -> bool:
    return isinstance(common[name], dict) and isinstance(own[name], dict)
