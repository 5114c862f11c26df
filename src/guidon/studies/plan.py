"""What a study will do, decided and hashed before it starts: settings x prompts x seeds, and one primary contrast."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, PositiveInt

from .. import world
from ..analysis.evaluate import WORLD_SEED, of_the_world
from ..core.errors import InputError, nearest
from ..core.settings import Settings, read_mapping, validated
from ..guidance import ChannelScale, GuidanceTrace, added_energy
from ..metrics.statistics import pairs_needed, smallest_effect
from ..metrics.video import VIDEO_METRICS
from ..metrics.world import METRICS, Metric
from ..pipeline import Pipeline
from ..request import Generation

TUNING_SEED = WORLD_SEED + 1000  # of prompts on which scales are matched; results are reported on others
ENERGY_STEPS = 20
Channels = int | str | tuple[int, ...]
Text = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, int) else given)]  # a class


class Arm(Settings):
    """A setting, or with ``grid`` every combination of the lists in it; the study or the preset says what is left out.

    ``energy_of`` names another arm and takes cfg_scale's place: the scale is chosen at which both change the prediction
    by the same energy, sum over guided channels of ((s - 1) ||cond - uncond||)^2, as measured on tuning prompts.
    """

    name: str | None = None
    cfg_scale: float | tuple[float, ...] | None = None
    energy_of: str | None = None
    cfg_channels: Channels | None = None
    rotation: int | None = None
    guidance: str | None = None
    timing: str | None = None
    sampler: str | None = None
    steps: PositiveInt | None = None
    eta: float | None = None
    negative_prompt: str | None = None
    grid: dict[str, list[Any]] | None = None


class Contrast(Settings):
    """The one comparison that the study is for: is ``against`` another than ``baseline`` in ``metric``?"""

    metric: str
    baseline: str
    against: str


class Sources(Settings):
    """Where the parts of a model are that the package does not hold; options of ``guidon.load``."""

    checkpoint: Path | None = None
    text_encoder: Path | None = None
    vae: Path | None = None
    features: Path | None = None
    text_dtype: str = "fp32"
    offload: str | None = None


class Study(Settings):
    """STUDY.yaml. ``prompts`` is a number of captions of a split of the world, or the prompts themselves: texts, or the
    classes of a class-conditional model. The noise of prompt k is of seed ``seed + k``.
    """

    title: str = ""
    model: str = "guidon-small"
    sources: Sources = Sources()
    split: Literal["L0", "L1", "L2", "L3"] = "L0"
    prompts: PositiveInt | Annotated[tuple[Text, ...], Field(min_length=1)]
    tuning_prompts: PositiveInt = 8
    seeds: PositiveInt = 1
    seed: Annotated[int, Field(ge=0)] = 0
    sampler: str | None = None
    steps: PositiveInt | None = None
    timing: str | None = None
    block: PositiveInt = 16
    settings: Annotated[tuple[Arm, ...], Field(min_length=1)]
    primary: Contrast


def load_study(path: Path) -> Study:
    """The validated content of a STUDY.yaml."""
    return validated(Study, read_mapping(path), str(path))


def arms(study: Study) -> dict[str, dict[str, Any]]:
    """Every setting by its name, grids expanded: the choices that differ from the preset's.

    Raises:
        InputError: an empty grid, an unknown key in one, or two settings of one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in study.settings:
        common = arm.model_dump(exclude={"grid", "name"}, exclude_none=True)
        grid = arm.grid if arm.grid is not None else {}
        for key, values in grid.items():
            if key not in Arm.model_fields or key in ("name", "grid"):
                raise InputError(f"the grid's {key!r} is not a setting{nearest(key, Arm.model_fields)}")
            if not values:
                raise InputError(f"the grid's {key} is empty: give at least one value")
        if arm.grid is not None and not grid:
            raise InputError("a grid is empty: name a setting and its values")
        for values in itertools.product(*grid.values()):
            chosen = common | dict(zip(grid, values, strict=True))
            validated(Arm, chosen, "grid")
            label = _label(chosen)
            name = f"{arm.name}: {label}" if arm.name and grid else arm.name or label
            if name in found:
                raise InputError(f"two settings are called {name!r}: give them names, or leave one out")
            found[name] = chosen
    return found


def _label(chosen: dict[str, Any]) -> str:
    """A name made of the choices themselves."""
    if chosen.get("cfg_scale") == 1 and len(chosen) == 1:
        return "no guidance"
    words = {"cfg_scale": "scale", "cfg_channels": "channels", "energy_of": "energy of", "negative_prompt": "negative"}
    parts = []
    for key in (key for key in Arm.model_fields if key in chosen):
        value = chosen[key]
        text = ",".join(f"{v:g}" for v in value) if isinstance(value, list | tuple) else value
        parts.append(f"{words.get(key, key)} {text:g}" if isinstance(text, float) else f"{words.get(key, key)} {text}")
    return ", ".join(parts) or "preset"


class Plan(Settings):
    """A frozen study. ``settings`` hold every choice of ``Generation`` but prompts and samples.

    ``threads`` is of torch: sums split over another number of threads, on another kind of device or by another version
    differ in their last bits.
    """

    format: Literal["guidon study 1"] = "guidon study 1"
    title: str
    model: str
    weights: dict[str, str]
    of_the_world: bool
    captions: tuple[str, ...]
    seeds: PositiveInt
    block: PositiveInt
    threads: PositiveInt
    device: str
    torch: str
    settings: dict[str, dict[str, Any]]
    primary: Contrast

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What is measured: against exact truth where there is one, by the pixels alone elsewhere."""
        return METRICS if self.of_the_world else VIDEO_METRICS

    @property
    def hash(self) -> str:
        """SHA-256 of everything that decides the results."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def cells(self) -> int:
        return len(self.settings) * len(self.captions) * self.seeds

    def generation(self, setting: str, prompts: slice) -> Generation:
        """What is generated for a setting and some of the prompts."""
        own = self.settings[setting]
        chosen = {"prompts": self.captions[prompts], "samples": tuple(range(self.seeds))}
        seed = {"seed": own["seed"] + prompts.indices(len(self.captions))[0]}
        return validated(Generation, own | chosen | seed, setting)


def make_plan(study: Study, pipe: Pipeline, *, threads: int | None = None) -> Plan:
    """Expand, validate and complete a study, so that nothing is left to defaults that may change.

    ``threads`` are those that an interrupted run of it had; all of the machine's if left out.

    Raises:
        InputError: a setting is not valid for the model, names that do not exist, or a model that is not of the world
            with captions of the world.
    """
    worldly = of_the_world(pipe)
    if isinstance(study.prompts, int):
        if not worldly:
            raise InputError(f"{study.model} does not make the world's videos: give prompts as a list of texts")
        captions = tuple(world.clip(study.split, WORLD_SEED, index).caption for index in range(study.prompts))
    else:
        captions = study.prompts
        repeated = [text for text in captions if captions.count(text) > 1]
        if repeated:
            raise InputError(f"the prompt {repeated[0]!r} is given twice: prompts are the unit, each counts once")
        if worldly:
            for text in captions:
                try:
                    world.read_caption(text)
                except ValueError as error:
                    raise InputError(str(error)) from None
    chosen = arms(study)
    _check_primary(study.primary, chosen, worldly)
    shared: dict[str, Any] = study.model_dump(include={"sampler", "steps", "timing", "seed"})
    shared["seed_per_prompt"] = True
    complete: dict[str, dict[str, Any]] = {}
    waiting = [name for name in chosen if "energy_of" in chosen[name]]
    for name in [name for name in chosen if name not in waiting] + waiting:
        choices = shared | chosen[name]
        if name in waiting:
            choices["cfg_scale"] = _same_energy(name, choices, complete, study, pipe, captions)
        plan = pipe.plan(captions[:1], **{k: v for k, v in choices.items() if k != "energy_of"})
        complete[name] = plan.model_dump(mode="json", exclude={"prompts", "samples"})
    ordered = {name: complete[name] for name in chosen}
    return Plan(
        title=study.title, model=study.model, weights=pipe.hashes, of_the_world=worldly, captions=captions,
        seeds=study.seeds, block=study.block, threads=threads or os.cpu_count() or 1, device=pipe.device.type,
        torch=torch.__version__, settings=ordered, primary=study.primary,
    )  # fmt: skip


def _check_primary(primary: Contrast, chosen: dict[str, Any], worldly: bool) -> None:
    metrics = METRICS if worldly else VIDEO_METRICS
    if primary.metric not in metrics:
        raise InputError(f"primary: the metric {primary.metric!r} does not exist{nearest(primary.metric, metrics)}")
    for name in (primary.baseline, primary.against):
        if name not in chosen:
            raise InputError(f"primary: no setting is called {name!r}{nearest(name, chosen)}")
    if primary.baseline == primary.against:
        raise InputError(f"primary: {primary.baseline!r} is compared with itself: name two settings")


def _same_energy(
    name: str,
    choices: dict[str, Any],
    complete: dict[str, Any],
    study: Study,
    pipe: Pipeline,
    captions: tuple[str, ...],
) -> float:
    """The scale at which an arm changes the prediction by the energy of the arm that it names."""
    if choices.get("cfg_scale") is not None:
        raise InputError(f"{name!r} gives cfg_scale and energy_of: choose one")
    other = choices["energy_of"]
    if other not in complete:
        raise InputError(f"{name!r} matches the energy of {other!r}, which is no setting{nearest(other, complete)}")
    if isinstance(study.prompts, int):
        prompts = tuple(world.clip("L0", TUNING_SEED, index).caption for index in range(study.tuning_prompts))
    else:
        prompts = captions[: study.tuning_prompts]
    energy = [0.0, 0.0]
    for number, arm in enumerate((complete[other], choices | {"cfg_scale": 2.0})):
        settings: dict[str, Any] = {k: v for k, v in arm.items() if v is not None and k not in ("model", "energy_of")}
        settings["steps"] = ENERGY_STEPS
        for start in range(0, len(prompts), study.block):
            own = settings | {"seed": study.seed + start}
            plan = pipe.plan(prompts[start : start + study.block], (0,), **own)
            if ChannelScale.parse(plan.cfg_scale, plan.cfg_channels, channels=pipe.channels).is_identity:
                raise InputError(f"{name!r} matches the energy of {other!r}, which guides nothing: name another")
            if plan.guidance != "cfg":
                raise InputError(f"{name!r} matches energies, which tell what plain cfg adds, not {plan.guidance}")
            trace = GuidanceTrace()
            pipe.generate(plan, batch_size=study.block, trace=trace)
            energy[number] += added_energy(trace.as_arrays())
    if not all(energy):
        raise InputError(
            f"{name!r} matches the energy of {other!r}, but its timing guides none of {ENERGY_STEPS} steps"
        )
    return round(1 + float(np.sqrt(energy[0] / energy[1])), 3)


def outline(plan: Plan, seconds_per_cell: float) -> str:
    """What a dry run prints: the settings, the cells, what they cost and the smallest effect they can see."""
    count = len(plan.captions)
    lines = [f"{plan.title or 'study'}: plan {plan.hash[:12]}", *(f"  {name}" for name in plan.settings)]
    minutes = plan.cells * seconds_per_cell / 60
    primary, visible = plan.primary, smallest_effect(count)
    sees = f"see d_z = {visible:.2f} or more with 80% power" if math.isfinite(visible) else "cannot reach p = 0.05"
    lines += [
        f"{len(plan.settings)} settings x {count} prompts x {plan.seeds} seeds = {plan.cells} cells, about "
        f"{minutes:.0f} minutes here" if minutes >= 1 else f"{plan.cells} cells, under a minute here",
        f"primary: {primary.metric} of {primary.against!r} against {primary.baseline!r}; {count} prompts "
        f"{sees} (d_z = 0.3 needs {pairs_needed(0.3)})",
    ]  # fmt: skip
    return "\n".join(lines)
