"""Recipes are read from YAML."""

from __future__ import annotations

from pathlib import Path

from ...core.devices import check_device
from ...core.errors import InputError, nearest, setting
from ...core.settings import read_mapping, validated
from .kinds import RECIPES, Recipe
from .staged import StagedRecipe, no_task


def load_recipe(path: Path) -> Recipe | StagedRecipe:
    """Read and validate a recipe. A file with the key ``stages`` is a staged recipe; any other describes one run.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, missing, wrong or does not fit the others.
    """
    values = read_mapping(path, "a recipe")
    if "stages" in values:
        return validated(StagedRecipe, values, str(path))
    task = values.get("task")
    if not isinstance(task, str) or task not in RECIPES:
        raise InputError(f"{path}: {no_task(task)}")
    return validated(RECIPES[task], values, str(path))


def check_recipe(path: Path, stage: str | None = None) -> Recipe | StagedRecipe:
    """Read and validate a recipe, and the stage that is asked for. It needs no torch.

    Raises:
        InputError: as ``load_recipe``; or the recipe has no such stage.
    """
    recipe = load_recipe(path)
    if recipe.out.is_file():
        raise InputError(f"{path}: out is {recipe.out}, which is a file: give a folder")
    if not isinstance(recipe, StagedRecipe):
        if stage is not None:
            raise InputError(f"{path} has no stages: leave out {setting('stage')}")
        check_device(recipe.device)
        return recipe
    if stage is not None and stage not in recipe.stages:
        raise InputError(f"{setting('stage')} {stage!r} is not in {path}{nearest(stage, recipe.stages)}")
    for name in recipe.order(stage):
        check_device(recipe.settings(name).get("device", "auto"))
    return recipe
