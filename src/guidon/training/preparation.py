"""Checks and encodes the videos of a recipe ahead of its training, which does the same where it was not done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..core.devices import pick_device
from ..core.errors import InputError
from .data.checking import check_data
from .data.defects import MEND, Defect, counted, refuse_or_tell
from .recipe import Recipe, StagedRecipe, check_recipe
from .recipe.data import Data, Wanted
from .stages import walk
from .tasks import prepare_data


def prepare_recipe(path: Path, *, stage: str | None = None, dry_run: bool = False, say: Callable[[str], None]) -> None:
    """Check the files of a recipe's data sections, and encode their clips and captions where it is not done.

    Any number of processes may prepare one recipe together, and one may train it meanwhile. Clips of a stage whose
    autoencoder is not trained yet are checked alone.

    Args:
        path: the recipe's file.
        stage: for a staged recipe, prepare only this stage and the stages that it needs.
        dry_run: check alone, and decode every clip once. Nothing is written. All defects are listed.
        say: told each line of the report.

    Raises:
        InputError: the recipe is wrong or has no data section, or files cannot be used.
    """
    found: dict[Defect, None] = {}  # stages of one recipe mostly have the same files
    told: set[str] = set()
    count = 0
    for name, recipe, done in _with_data(path, stage):
        count += 1
        data: Data = getattr(recipe, "data")  # noqa: B009
        wanted: Wanted = getattr(recipe, "wanted")  # noqa: B009
        prefix = f"{name}: " if name else ""
        if dry_run or not done:
            place: Path | None = None if dry_run else getattr(recipe, "cache", None)
            checked = check_data(data, wanted, place=place, thorough=dry_run)
            for note in checked.notes:
                if note not in told:
                    say(f"{prefix}{note}")
            told |= set(checked.notes)
        else:
            checked = prepare_data(recipe, pick_device(recipe.device))
            assert checked is not None
        for line in checked.report(recipe.batch_size):
            say(f"{prefix}{line}")
        if dry_run:
            for defect in checked.defects:
                if str(defect) not in told:
                    say(f"{prefix}cannot be used: {defect}")
            found |= {} if data.unreadable == "leave_out" else dict.fromkeys(checked.defects)
        elif not done:
            leave_out = data.unreadable == "leave_out"
            refuse_or_tell([each for each in checked.defects if not leave_out or str(each) not in told], leave_out)
            say(f"{prefix}its clips are encoded when the stages before it are trained")
        told |= set(map(str, checked.defects))
    if not count:
        raise InputError(f"{path} has no data section to prepare: it trains on the world's clips, or on a model's own")
    if found:
        raise InputError(f"{counted(found)} cannot be used, as listed. {MEND}")


def _with_data(path: Path, last: str | None) -> Iterator[tuple[str, Recipe, bool]]:
    """The runs of a recipe that have a data section: their stage, their recipe, and whether those before are done."""
    recipe = check_recipe(path, last)
    if not isinstance(recipe, StagedRecipe):
        if getattr(recipe, "data", None) is not None:
            yield "", recipe, True
        return
    for name, stage in walk(recipe, last):
        own = stage.recipe if stage is not None else recipe.draft(name)
        if getattr(own, "data", None) is not None:
            yield name, own, stage is not None
