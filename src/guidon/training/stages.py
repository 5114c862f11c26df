"""Run a recipe: a single run, or all stages of a staged recipe that are not done yet.

Each stage has its own folder, ``out/NAME-KEY``. KEY is a hash of its settings and of the weights that it starts from.
If a setting changes, that stage and the stages that start from it are trained again in new folders. Nothing is
overwritten. It is the same if the files of its data change once it is done: KEY is then a hash of these, too.

``out`` is locked while a recipe runs, and so is the folder of each stage: two runs cannot train into one folder.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..checkpoints.files import read_safetensors
from ..core.atomic import sweep, write_json
from ..core.devices import pick_device
from ..core.errors import InputError
from ..core.hashing import hash_files, hash_settings, hash_tensors, hash_text
from ..core.limits import is_out_of_memory
from ..core.locks import LOCK_NAME, held
from ..core.ranks import ALONE, Ranks, seen_in_time
from ..core.reading import read_object
from ..models.adapters.files import ADAPTER
from ..models.trained.config import CONFIG
from ..models.trained.writing import COMPONENTS, HUB, hub_folder
from .data.clips import DataState, data_state
from .demand import require_resources
from .loop import Look, train
from .recipe import Recipe, StagedRecipe, VAERecipe, check_recipe
from .sharded import step_of
from .tasks import prepare
from .tasks.export import model_folder

KEY_LENGTH = 8  # characters of the key in a folder's name
DONE = "stage.json"  # written into a stage's folder when it is done


@dataclass(frozen=True)
class Stage:
    """A stage whose parents are done. Its key and folder are known, because they depend on the parents' weights."""

    name: str
    recipe: Recipe
    """The stage as a recipe of one run, in the stage's folder."""
    lineage: tuple[dict[str, Any], ...]
    """One entry for each ancestor, then one for this stage: its name, key, settings, and the hashes of its parents."""

    @property
    def key(self) -> str:
        """The hash of its settings and of its parents' weights."""
        return self.lineage[-1]["key"]

    @property
    def done(self) -> bool:
        """Whether its training is complete."""
        return (self.recipe.out / DONE).is_file()

    def data(self, *, keep: bool) -> DataState | None:
        """What the files of its data are; None where it has none, or they cannot be read.

        Args:
            keep: write what was found, so that the next check is faster.
        """
        data, cache = getattr(self.recipe, "data", None), getattr(self.recipe, "cache", None)
        if data is None:
            return None
        return data_state(data, getattr(self.recipe, "wanted"), cache or self.recipe.out, keep=keep)  # noqa: B009

    @property
    def step(self) -> int:
        """The step of its checkpoint, 0 where there is none."""
        return step_of(self.recipe.out)

    def checked_weights(self) -> str:
        """The hash of the weights that its training exported. The stage must be done.

        Raises:
            InputError: a file is missing, damaged, or not the one that the training wrote.
        """
        found, record = weights_hash(self.recipe.result), self.recipe.out / DONE
        if read_object(record, "the record of a stage").get("weights") != found:
            raise InputError(
                f"{self.recipe.result} does not hold the weights that {record} names: delete {self.recipe.out} to "
                f"train the stage {self.name} again"
            )
        return found


@dataclass(frozen=True)
class PlannedStage:
    """What ``run_recipe`` would do with a stage of a staged recipe."""

    name: str
    state: Literal["done", "resume", "train", "later"]
    """"later": a stage that it starts from is not done, so its folder is not known yet."""
    steps: int
    """Number of training steps of the stage."""
    step: int = 0
    """The step from which training would resume."""
    folder: Path | None = None

    def __str__(self) -> str:
        does = {
            "done": f"done, in {self.folder}",
            "resume": f"goes on from step {self.step} of {self.steps}, in {self.folder}",
            "train": f"{self.steps} steps, in {self.folder}",
            "later": f"{self.steps} steps, after the stages before it",
        }
        return f"{self.name}: {does[self.state]}"


def run_recipe(
    path: Path, *, stage: str | None = None, export_only: bool = False, look: Look | None = None, ranks: Ranks = ALONE
) -> Path | None:
    """Train what a recipe describes, except what is done already. An interrupted run is resumed.

    Args:
        path: the recipe's file.
        stage: for a staged recipe, train only this stage and the stages that it needs; None for all stages.
        export_only: do not train; export the averaged weights of the last checkpoint. For a staged recipe it is the
            checkpoint of the first stage that is not done.
        look: measures a model folder every ``evaluate_every`` steps; its result is logged.
        ranks: those that train together; each calls this. All must see the folders.

    Returns:
        The exported file or folder; None if the run was interrupted, after its checkpoint was saved.

    Raises:
        InputError: the recipe, a file that it names or a checkpoint is wrong, another run uses the folder, memory ran
            out, or another rank failed or ended.
    """
    recipe = check_recipe(path, stage)
    with ranks.sharing_errors(lambda: f"the last checkpoint in {recipe.out} is kept"):
        if isinstance(recipe, StagedRecipe):
            return _run_stages(recipe, stage, export_only=export_only, look=look, ranks=ranks)
        return _run(recipe, export_only=export_only, look=look, ranks=ranks)


def plan_recipe(path: Path, *, stage: str | None = None) -> list[PlannedStage]:
    """What ``run_recipe`` would do with each stage of a staged recipe. Nothing is trained or written.

    Raises:
        InputError: the recipe is wrong, or has no stages.
    """
    recipe = check_recipe(path, stage)
    if not isinstance(recipe, StagedRecipe):
        raise InputError(f"{path} has no stages to plan: it is the recipe of one run")
    planned: list[PlannedStage] = []
    for name, found in walk(recipe, stage):
        if found is None:
            planned.append(PlannedStage(name, "later", recipe.settings(name)["steps"]))
            continue
        step = found.step
        state = "done" if found.done else "resume" if step else "train"
        planned.append(PlannedStage(name, state, found.recipe.steps, step, found.recipe.out))
    return planned


def weights_hash(path: Path) -> str:
    """SHA-256 of exported weights and their configuration, for a file or for all components in a folder.

    The training record is left out, because it holds the duration, which differs from run to run.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    hashes: list[str] = []
    for file in files:
        weights, header = read_safetensors(file)
        hashes.append(hash_tensors(weights, header.get("config", "")))
    return hashes[0] if path.is_file() else hash_text(" ".join(hashes))


def _run(
    recipe: Recipe, *, export_only: bool, look: Look | None, ranks: Ranks, record: dict[str, object] | None = None
) -> Path | None:
    """Do a single run."""
    device = pick_device(recipe.device)
    require_resources(recipe, device, ranks)
    look = None if isinstance(recipe, VAERecipe) else look  # an autoencoder is no model to sample from
    with _own_folder(recipe.out, ranks):
        try:
            task = prepare(recipe, device, ranks)
            return train(recipe, task, device, export_only=export_only, look=look, record=record, ranks=ranks)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"training ran out of the memory of {device}: lower batch_size; what {recipe.out} holds is kept"
            ) from error


def _run_stages(
    recipe: StagedRecipe, last: str | None, *, export_only: bool, look: Look | None, ranks: Ranks
) -> Path | None:
    """Train the stages that are not done, then export the result."""
    for name in recipe.order(last):  # before hours are spent on the first stage
        stage = recipe.draft(name)
        require_resources(stage, pick_device(stage.device), ranks)
    found: dict[str, Stage] = {}
    with _own_folder(recipe.out, ranks):
        for name, stage in walk(recipe, last, ranks, keep=True):
            assert stage is not None  # its parents were trained earlier in this loop
            found[name] = stage
            if stage.done:
                ranks.from_first(partial(sweep, stage.recipe.out))
                print(f"{name}: done, in {stage.recipe.out}", file=sys.stderr)
                continue
            print(f"{name}: {stage.recipe.steps} steps, in {stage.recipe.out}", file=sys.stderr)
            record: dict[str, object] = {"lineage": list(stage.lineage)}
            data = ranks.from_first_at_length(partial(stage.data, keep=True))  # what changes while it trains is new
            trained = _run(stage.recipe, export_only=export_only, look=look, ranks=ranks, record=record)
            if trained is None or export_only:
                return trained
            ranks.from_first(partial(_note_done, stage, trained, data))
            _see(stage.recipe.out / DONE, ranks)
        if last not in (None, recipe.export.stage):
            return found[last].recipe.result
        found[recipe.export.stage].checked_weights()
        result = found[recipe.export.stage].recipe.result
        return ranks.from_first(lambda: _export(result, recipe.out / recipe.export.folder))


def _note_done(stage: Stage, trained: Path, data: DataState | None) -> None:
    found = {"lineage": list(stage.lineage), "weights": weights_hash(trained)}
    noted = {} if data is None else {"data": data.hash, "away": list(data.away)}
    write_json(stage.recipe.out / DONE, found | noted)


def _see(path: Path, ranks: Ranks) -> None:
    """Wait on all other ranks until they see what the first one has written.

    Raises:
        InputError: a rank does not see it.
    """

    def seen() -> None:
        if not seen_in_time(path.exists):
            raise InputError(
                f"{platform.node()} does not see {path}, which the first rank wrote: out must be a folder that all "
                "machines share"
            )

    if len(ranks) > 1:
        ranks.agreed(seen)


@contextmanager
def _own_folder(folder: Path, ranks: Ranks) -> Iterator[None]:
    """The folder of a run, which the first rank makes and locks during the block, and which all ranks see.

    Raises:
        InputError: another run has locked it, or a rank does not see it.
    """
    with ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(_locked(folder)))
        _see(folder / LOCK_NAME, ranks)
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder if there is none, and lock it during the block. If it is empty at the end, it is removed again.

    What killed runs left half-written in it is deleted.

    Raises:
        InputError: another run has locked it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(folder, "training"):
            sweep(folder)
            yield
    finally:
        with suppress(OSError):  # it is not empty, as after any training
            for place in made:
                place.rmdir()


def _export(source: Path, target: Path) -> Path:
    """Copy what a stage exported, unless equal files are there already."""
    hub = any((source / name).is_file() for name in (CONFIG, *ADAPTER))
    names, written = (HUB, hub_folder) if hub else (COMPONENTS, model_folder)
    files, there = _files(source, names), _files(target, names)
    same = [path.relative_to(target) for path in there] == [path.relative_to(source) for path in files]
    if not same or hash_files(*there) != hash_files(*files):
        with written(target) as folder:
            for file in files:
                copy = folder / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)
    return target


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of these names in a folder, and those in its folders of these names."""
    found = [folder / name for name in names if (folder / name).is_file()]
    return sorted(found + [path for name in names for path in (folder / name).glob("*") if path.is_file()])


def walk(
    recipe: StagedRecipe, last: str | None, ranks: Ranks = ALONE, *, keep: bool = False
) -> Iterator[tuple[str, Stage | None]]:
    """Yield the stages in order. A stage is None if one of its parents is not done when it is reached.

    Args:
        recipe: the recipe.
        last: the last stage; None for all stages.
        ranks: those that call this together. The first one alone reads the data of stages.
        keep: write what was found in files of data, so that the next check is faster.
    """
    found: dict[str, Stage] = {}
    for name in recipe.order(last):
        parents = recipe.parents(name)
        if all(parent in found and found[parent].done for parent in parents.values()):
            draft = _stage(recipe, name, {field: found[parent] for field, parent in parents.items()})
            changed = ranks.from_first_at_length(partial(_changed_data, draft(), keep=keep))
            found[name] = draft() if changed is None else draft(data=changed)
        yield name, found.get(name)


def _stage(recipe: StagedRecipe, name: str, parents: dict[str, Stage]) -> Callable[..., Stage]:
    """What computes the key and folder of a stage. ``parents``: field -> stage; all of them are done.

    It takes what else belongs into the key, by name.
    """
    results = {field: parent.recipe.result for field, parent in parents.items()}
    hashes = {field: parent.checked_weights() for field, parent in parents.items()}
    draft = recipe.recipe(name, recipe.out / name, results)
    left_out = set(draft.incidental) | set(parents)
    given = draft.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
    settings = draft.model_dump(mode="json", exclude=left_out)
    earlier = {entry["stage"]: entry for parent in parents.values() for entry in parent.lineage}
    lineage = [earlier[other] for other in recipe.order() if other in earlier]

    def stage(**more: str) -> Stage:
        key = hash_settings({"settings": given, "parents": hashes, **more})
        own = {"stage": name, "key": key, "settings": settings, "parents": hashes}
        folder = recipe.out / f"{name}-{key[:KEY_LENGTH]}"
        return Stage(name, recipe.recipe(name, folder, results), (*lineage, own))

    return stage


def _changed_data(stage: Stage, *, keep: bool) -> str | None:
    """The hash of the data of a stage that is done, if it was trained on other data; else None.

    It is None, too, if files are away that were there: what is left of the data says nothing then.
    """
    if not stage.done:
        return None
    record = read_object(stage.recipe.out / DONE, "the record of a stage")
    if "data" not in record:  # earlier versions did not note the data
        return None
    now = stage.data(keep=keep)
    if now is None or now.hash == record["data"] or not set(now.away) <= set(record.get("away", ())):
        return None
    return now.hash
