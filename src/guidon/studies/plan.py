"""A study file, and the frozen plan that is made from it: settings x prompts x seeds, and one primary contrast.

A plan holds everything that decides the results, and its hash identifies them. No clip is sampled to make a plan: the
scales of settings with ``energy_of`` are solved at the start of the run (``guidon.studies.energy``).
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, field_validator, model_validator

from ..core.errors import InputError, nearest
from ..core.hashing import hash_settings
from ..core.limits import as_text
from ..core.reading import Limit
from ..core.settings import Settings, read_mapping, validated
from ..metrics.choice import BenchChoice, Weights, describe_weights, find_weights
from ..models.sources import Sources
from ..request import DIFFUSERS, Choices, DecodeDtype, DtypeName, Request

if TYPE_CHECKING:
    import torch

    from ..metrics.metric import Bench, Metric
    from ..pipeline.contract import ModelDescription, ModelPlanner

FIRST_FORMAT = "guidon study 1"  # "of_the_world" in place of "bench"; solved scales are in its settings
EARLIER_FORMATS = (FIRST_FORMAT, "guidon study 2")  # "world" is the bench that is called "world-1" now
EARLIER_BENCHES = {"world": "world-1"}  # name in plans of the earlier formats -> name now
ANY_SCALE = 2.0  # placeholder for a scale that is not solved yet
CELLS = Limit("GUIDON_MAX_CELLS", 1_000_000, "cells")
"""The clips of a study."""
SETTINGS = Limit("GUIDON_MAX_SETTINGS", 10_000, "settings")
"""The settings of a study, grids expanded."""
LONGEST_CHAIN = 100  # settings from one with energy_of to the one whose scale decides
CELL_BYTES = 6 * 4096
"""What a cell takes on a disk at the least: a block of the usual size for its folder and for each of its five files."""
Channels = int | str | tuple[int, ...]
Text = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, int) else given)]
"""A prompt; the number of a class is read as text."""


class Arm(Settings):
    """One setting of a study, or several with ``grid``. A missing value is the study's, else the model's."""

    name: str | None = None
    """The name of the setting. If it is missing, the name is made from the choices."""
    cfg_scale: float | tuple[float, ...] | None = None
    """Guidance scale, one number or one per latent channel."""
    energy_of: str | None = None
    """Use it in place of cfg_scale: the name of a setting whose energy this one matches.

    The scale is solved so that both settings add the same energy on the tuning prompts. Energy is the sum over steps
    and guided channels of ((s - 1) ||cond - uncond||)^2.
    """
    cfg_channels: Channels | None = None
    """Guided latent channels: 3, "all", "none", [0, 2], "0-2", "only:3"."""
    rotation: int | None = None
    """Seed of a random rotation of the latent channels. cfg_channels then chooses among the rotated channels. This is a
    control experiment."""
    guidance: str | None = None
    """The rule, such as "apg:momentum=0"."""
    timing: str | None = None
    """When guidance acts, such as "interval:0,0.5"."""
    sampler: str | None = None
    steps: PositiveInt | None = None
    """Denoising steps."""
    spacing: str | None = None
    """Where the steps lie, such as "quadratic"."""
    fast: bool | None = None
    """The model's calibrated fast settings; sampler, steps, timing and dtype of the study then have no effect on it."""
    adaptive: float | None = None
    """Stop guiding a clip once its branches agree: the cosine from which they do, such as 0.99."""
    reuse: PositiveInt | None = None
    """Call the unconditional branch at every so many guided steps."""
    dtype: DtypeName | None = None
    """Precision of the network."""
    eta: float | None = None
    """How much noise ddim adds, 0 to 1."""
    negative_prompt: str | None = None
    """A prompt to steer away from. It replaces the null caption."""
    decode_dtype: DecodeDtype | None = None
    """Precision in which the autoencoder decodes."""
    grid: dict[str, list[Any]] | None = None
    """Keys of a setting, each with a list of values. Every combination of the values becomes a setting."""


class Contrast(Settings):
    """The main comparison of the study: does ``against`` differ from ``baseline`` in ``metric``?"""

    metric: Annotated[str, Field(examples=["joint"])]
    baseline: Annotated[str, Field(examples=["scale 2, channels 3"])]
    """The name of a setting; reports compare all others with it."""
    against: Annotated[str, Field(examples=["scale 2, channels all"])]
    """The name of another setting."""


class DiffusersModel(Settings):
    """A diffusers pipeline, in the folder that its ``save_pretrained`` wrote."""

    diffusers: Annotated[str, Field(min_length=1)]
    """The folder."""
    dtype: DtypeName | None = None
    """The precision to load it in; None for that of its weights."""
    offload: Literal["none", "model", "sequential"] = "none"
    """What stays on the device: everything, the part that computes, or the layer that computes."""


class Study(Settings):
    """The content of a STUDY.yaml."""

    title: str = ""
    """The heading of reports."""
    model: str | DiffusersModel = "guidon-small"
    """A preset, a folder of weights, or ``{diffusers: FOLDER}``."""
    call: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Arguments of every call of a diffusers pipeline, such as height and num_frames."""
    sources: Sources = Sources()
    """Where to find the parts of a released model that do not come with the package."""
    split: str | None = None
    """The split of the bench from which captions are taken; None for its default split."""
    prompts: Annotated[
        PositiveInt | Annotated[tuple[Text, ...], Field(min_length=1)],
        Field(examples=["12, or a list of texts"]),
    ]
    """The number of captions to take from the bench; or a list of prompts, as texts or class numbers."""
    bench: Annotated[
        BenchChoice, BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given)
    ] = BenchChoice()
    """What measures the clips, and with which weights; its name alone is enough where it needs none."""
    tuning_prompts: PositiveInt = 8
    """Number of prompts on which scales are solved, if a setting gives energy_of."""
    seeds: PositiveInt = 1
    """Samples of each prompt."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The noise of prompt k has the seed ``seed + k``."""
    sampler: str | None = None
    """Sampler of settings that name none; None for the model's own."""
    steps: PositiveInt | None = None
    """Denoising steps of settings that name none; None for the model's own."""
    timing: str | None = None
    """When guidance acts, for settings that do not say it; None for the model's own."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """Precision of the network, for settings that do not say it; None for the model's own. "auto" lets the machine that
    plans the study choose fp32 or bf16; the plan holds which."""
    decode_dtype: Literal["auto", "fp32", "bf16"] | None = None
    """Precision in which the autoencoder decodes, as ``dtype``; None for fp32."""
    compile: Annotated[bool | None, AfterValidator(lambda given: given or None)] = None
    """True to compile the blocks of the network. Results then differ by rounding."""
    block: PositiveInt | None = None
    """Clips that are denoised together; None for 16, or 1 of a diffusers pipeline."""
    settings: Annotated[
        tuple[Arm, ...],
        Field(min_length=1, examples=["[{cfg_scale: 2, cfg_channels: 3}, {cfg_scale: 2, cfg_channels: all}]"]),
    ]
    """The settings that are compared."""
    primary: Annotated[
        Contrast,
        Field(examples=['{metric: joint, baseline: "scale 2, channels 3", against: "scale 2, channels all"}']),
    ]
    """The main comparison, chosen before the study runs."""

    @property
    def model_name(self) -> str:
        """The model as ``guidon.load`` takes it."""
        return self.model if isinstance(self.model, str) else f"{DIFFUSERS}{self.model.diffusers}"

    @property
    def parts(self) -> dict[str, Any]:
        """How the model is loaded: arguments of ``guidon.load``."""
        found = self.sources.model_dump(exclude_unset=True)
        found |= {} if isinstance(self.model, str) else self.model.model_dump(exclude={"diffusers"}, exclude_unset=True)
        found |= self.model_dump(include={"dtype", "decode_dtype", "compile"}, exclude_none=True)
        return found | ({"call": self.call} if self.call else {})

    @field_validator("model", mode="before")
    @classmethod
    def _read_model(cls, value: Any) -> Any:
        """One message for each fault, not one for each form of a model."""
        return validated(DiffusersModel, dict(value), None) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _of_a_size_that_can_be_run(self) -> Study:
        """Count before anything is expanded: a short grid can stand for billions of settings."""
        settings = sum(math.prod(map(len, arm.grid.values())) if arm.grid else 1 for arm in self.settings)
        prompts = self.prompts if isinstance(self.prompts, int) else len(self.prompts)
        check_size(settings, prompts, self.seeds)
        if self.tuning_prompts > CELLS.value:
            raise InputError(f"tuning_prompts is {self.tuning_prompts:,}, the limit is {CELLS.value:,}: give fewer")
        return self


def check_size(settings: int, prompts: int, seeds: int) -> None:
    """Refuse a study that is larger than the limits. Nothing is expanded.

    Raises:
        InputError: the message says how many cells and how much disk it would take, and how to raise the limit.
    """
    cells = settings * prompts * seeds
    asked = f"{settings:,} settings x {prompts:,} prompts x {seeds:,} seeds = {cells:,} cells"
    for limit, count in ((SETTINGS, settings), (CELLS, cells)):
        if count > limit.value:
            raise InputError(
                f"{asked} need at least {as_text(cells * CELL_BYTES)} of disk, and the limit is {limit.value:,} "
                f"{limit.unit}: ask for fewer, or set the environment variable {limit.variable} to a higher number"
            )


def load_study(path: Path) -> Study:
    """The validated content of a STUDY.yaml."""
    return validated(Study, read_mapping(path, "a study"), str(path))


def with_arithmetic(study: Study, choices: Mapping[str, Any]) -> Study:
    """A study with ``dtype``, ``decode_dtype`` and ``compile`` of a caller in the place of its own.

    Raises:
        InputError: there is no such precision.
    """
    return validated(Study, study.model_dump(exclude_unset=True) | dict(choices), None) if choices else study


def arms(study: Study) -> dict[str, Arm]:
    """Every setting by its name, grids expanded.

    Raises:
        InputError: an empty grid, an unknown key in one, or two settings of one name.
    """
    found: dict[str, Arm] = {}
    for arm in study.settings:
        for chosen in _expanded(arm):
            label = _label(chosen)
            name = f"{arm.name}: {label}" if arm.name and arm.grid else arm.name or label
            if name in found:
                raise InputError(f"two settings are called {name!r}: give them names, or leave one out")
            found[name] = chosen
    return found


def _expanded(arm: Arm) -> list[Arm]:
    """The arm itself, or the arms of its grid."""
    if arm.grid is None:
        return [arm]
    if not arm.grid:
        raise InputError("a grid is empty: name a setting and its values")
    for key, values in arm.grid.items():
        if key not in Arm.model_fields or key in ("name", "grid"):
            raise InputError(f"the grid's {key!r} is not a setting{nearest(key, Arm.model_fields)}")
        if not values:
            raise InputError(f"the grid's {key} is empty: give at least one value")
    common = arm.model_dump(exclude={"grid", "name"}, exclude_none=True)
    combinations = itertools.product(*arm.grid.values())
    return [validated(Arm, common | dict(zip(arm.grid, values, strict=True)), "grid") for values in combinations]


def _label(arm: Arm) -> str:
    """A name made from the choices."""
    chosen = arm.model_dump(exclude={"grid", "name"}, exclude_none=True)
    if chosen == {"cfg_scale": 1}:
        return "no guidance"
    words = {"cfg_scale": "scale", "cfg_channels": "channels", "energy_of": "energy of", "negative_prompt": "negative"}
    parts = []
    for key, value in chosen.items():
        text = ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        parts.append(f"{words.get(key, key)} {text:g}" if isinstance(text, float) else f"{words.get(key, key)} {text}")
    return ", ".join(parts) or "preset"


class Plan(Settings):
    """A frozen study. Every value is written out, so later changes of defaults do not affect it."""

    format: Literal["guidon study 1", "guidon study 2", "guidon study 3"] = "guidon study 3"
    title: str
    model: str
    """A preset, or a folder of weights."""
    weights: dict[str, str]
    """The hash of each part of the model; of the distilled network only where a setting samples with it."""
    compile: bool = False
    """Whether the blocks of the network are compiled. Results then differ by rounding."""
    bench: str
    """The bench that measures its clips."""
    bench_weights: dict[str, Weights] = Field(default_factory=dict[str, Weights])
    """By learned part of the bench, the weights that it measures with."""
    captions: Annotated[tuple[str, ...], Field(min_length=1)]
    """The prompts."""
    tuning: tuple[str, ...] = ()
    """The prompts on which scales are solved; empty where no setting gives energy_of."""
    seeds: PositiveInt
    """Samples of each prompt."""
    block: PositiveInt
    """Clips that are denoised together."""
    threads: Annotated[int, Field(ge=1, le=4096)]
    """Threads of torch. Another number of threads, device or version of torch can change the last bits of results."""
    device: str
    """The kind of device: cpu, cuda or mps."""
    torch: str
    """The version of torch."""
    settings: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """By name: all keys of a request's JSON except prompts and samples. ``energy_of`` may replace cfg_scale."""
    primary: Contrast
    scales: dict[str, float] = Field(default_factory=dict[str, float], exclude=True)
    """The solved scale of each setting that gives energy_of. They are in scales.json and not part of the hash."""

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_formats(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("format") not in EARLIER_FORMATS:
            return values
        found = dict(values)
        if "of_the_world" in found:
            found["bench"] = "world" if found.pop("of_the_world") else "video"
        return found | {"bench": EARLIER_BENCHES.get(found.get("bench", ""), found.get("bench"))}

    @property
    def content(self) -> dict[str, Any]:
        """What plan.json holds, in the plan's own format."""
        values = self.model_dump(mode="json")
        if self.format in EARLIER_FORMATS:
            values["bench"] = _name_of_then(self.bench)
        if self.format == FIRST_FORMAT:
            values["of_the_world"] = values.pop("bench") == "world"
            del values["tuning"]
        if not self.bench_weights:  # plans of earlier versions do not have them
            del values["bench_weights"]
        if not self.compile:
            del values["compile"]
        return values

    @property
    def hash(self) -> str:
        """SHA-256 of everything that decides the results."""
        return hash_settings(self.content)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """What is measured."""
        from ..metrics.bench import find_bench

        return find_bench(self.bench).metrics

    @property
    def distilled(self) -> bool:
        """Whether a setting samples with the model's distilled network."""
        return any(own.get("distilled") for own in self.settings.values())

    @property
    def cells(self) -> int:
        """How many clips the study has."""
        return len(self.settings) * len(self.captions) * self.seeds

    @property
    def unsolved(self) -> list[str]:
        """Settings whose scale is not solved yet, in an order in which they can be solved."""
        waiting = [name for name, own in self.settings.items() if "energy_of" in own and name not in self.scales]
        return sorted(waiting, key=self._depth)

    def _depth(self, name: str) -> int:
        """How many scales must be solved before this one's."""
        other = self.settings[name].get("energy_of")
        return 0 if other is None else 1 + self._depth(other)  # at most LONGEST_CHAIN

    def with_scales(self, scales: Mapping[str, float]) -> Plan:
        """A copy of the plan with these solved scales added."""
        return self.model_copy(update={"scales": self.scales | dict(scales)})

    def choices(self, setting: str) -> dict[str, Any]:
        """The complete choices of a setting, as JSON.

        Raises:
            InputError: its scale is not solved yet.
        """
        own = self.settings[setting]
        if "energy_of" not in own:
            return own
        if setting not in self.scales:
            raise InputError(f"the scale of {setting!r} is not solved yet: run `guidon study run` first")
        return {key: value for key, value in own.items() if key != "energy_of"} | {"cfg_scale": self.scales[setting]}

    def request(self, setting: str, prompts: slice) -> Request:
        """What is generated for a setting and some of the prompts; raises as ``choices`` does."""
        first = prompts.indices(len(self.captions))[0]
        return make_request(self.choices(setting), self.captions[prompts], range(self.seeds), first, setting)

    def differences(self, other: Plan) -> list[str]:
        """The fields in which two plans differ; empty if this plan may resume in the other one's folder.

        The formats may differ. The first format holds solved scales and no tuning prompts. Its scales are then accepted
        for settings with energy_of, and tuning prompts are not compared. A study of an earlier format goes on with the
        metrics of then.
        """
        first = FIRST_FORMAT in (self.format, other.format)
        left_out = {"format", "scales", "settings", "bench_weights"} | ({"tuning"} if first else set())
        ours, theirs = self, other
        if {self.format, other.format} & set(EARLIER_FORMATS):
            ours, theirs = (plan.model_copy(update={"bench": _name_of_then(plan.bench)}) for plan in (self, other))
        fields = [name for name in Plan.model_fields if name not in left_out]
        found = [name for name in fields if getattr(ours, name) != getattr(theirs, name)]
        same = list(self.settings) == list(other.settings) and all(
            _same_setting(own, other.settings[name], first) for name, own in self.settings.items()
        )
        hashes = [{part: own.hash for part, own in plan.bench_weights.items()} for plan in (self, other)]
        if hashes[0] != hashes[1]:  # folders may be renamed
            found.append("bench_weights")
        return found if same else [*found, "settings"]


def _name_of_then(bench: str) -> str:
    """The name of a bench in plans of the earlier formats."""
    return next((then for then, now in EARLIER_BENCHES.items() if now == bench), bench)


def _same_setting(a: dict[str, Any], b: dict[str, Any], may_be_solved: bool) -> bool:
    """Whether two settings are equal. With ``may_be_solved``, a solved scale counts as equal to an energy_of."""
    matched = {own.get("energy_of") for own in (a, b)} - ({None} if may_be_solved else set())
    if len(matched) > 1:
        return False
    matched -= {None}
    also = {"energy_of": matched.pop()} if matched else {}
    return _placeholder_request(a | also, "settings") == _placeholder_request(b | also, "settings")


def make_request(
    choices: Mapping[str, Any], prompts: Sequence[str], samples: Sequence[int], first: int, source: str
) -> Request:
    """The request for consecutive prompts of a study; ``first`` is the number of the first one."""
    seed = choices.get("seed")
    if not isinstance(seed, int):
        raise InputError(f"{source}: seed is {str(seed)[:80]!r}, expected a whole number")
    own = {"prompts": tuple(prompts), "samples": tuple(samples), "seed": seed + first}
    return validated(Request, dict(choices) | own, source)


def check_plan(plan: Plan, source: str) -> None:
    """Refuse a plan that could not be run, whatever its hash says. Nothing is expanded and nothing is loaded.

    Args:
        plan: a plan from a file.
        source: the file, for the message.

    Raises:
        InputError: it is too large, or names a bench, a metric or a setting that does not exist, or a setting is not
            valid, or scales cannot be solved one after the other.
    """
    try:
        check_size(len(plan.settings), len(plan.captions), plan.seeds)
        _check_texts(plan)
        from ..metrics.bench import find_bench

        find_bench(plan.bench).find_metric(plan.primary.metric)
        _check_names(plan.primary, plan.settings)
        energy_of = {name: own.get("energy_of") for name, own in plan.settings.items()}
        for name, own in plan.settings.items():
            if "energy_of" in own and len(_check_chain(name, energy_of)) == 1:
                raise InputError(f"{name!r} matches the energy of no setting: name one")
            _placeholder_request(own, name)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _check_texts(plan: Plan) -> None:
    """Refuse texts that no file can hold: JSON can write half of a surrogate pair, which is no character."""
    try:
        json.dumps(plan.content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a text holds {error.object[error.start]!r}, which is no character: delete it") from None


def _placeholder_request(own: Mapping[str, Any], source: str) -> Request:
    """The request of a setting for one prompt; a scale that is not solved yet is ``ANY_SCALE``."""
    scale = {"cfg_scale": ANY_SCALE} if own.get("energy_of") is not None else {}
    choices = {key: value for key, value in own.items() if key != "energy_of"} | scale
    return make_request(choices, ("",), (0,), 0, source)


@dataclass(frozen=True)
class CheckedStudy:
    """A study whose settings are valid for its model. Neither the weights nor torch were needed to find out."""

    bench: Bench
    """It measures only if it has no learned parts; see ``metrics.bench.open_bench``."""
    weights: dict[str, Path]
    """Where the weights of its learned parts are."""
    captions: tuple[str, ...]
    """The prompts."""
    tuning: tuple[str, ...]
    """The prompts on which scales are solved."""
    settings: dict[str, dict[str, Any]]
    """See ``Plan.settings``."""


def check_study(study: Study, planner: ModelPlanner, device: torch.device | None = None) -> CheckedStudy:
    """Expand and validate a study.

    Args:
        study: the content of a study file.
        planner: that of its model.
        device: where the model runs; None where it is not known yet.

    Raises:
        InputError: a setting is not valid for the model, a name does not exist, or the bench cannot measure a prompt.
    """
    # The settings first: the metrics need numpy.
    chosen = arms(study)
    _check_names(study.primary, chosen)
    requests: dict[str, Request] = {}
    for name, arm in chosen.items():
        try:
            requests[name] = planner.complete(("",), device=device, **_choices(study, arm))
        except InputError as error:
            raise InputError(f"the setting {name!r}: {error.args[0]}") from None  # with the names of settings marked
    if study.sources.weak is not None and all(request.guidance.rule.weak != "model" for request in requests.values()):
        raise InputError("sources gives weak, and no setting has guidance: autoguidance: add one, or leave it out")
    from ..metrics.bench import find_bench

    bench = find_bench(study.bench.full_name(planner.bench))
    weights = find_weights(study.bench, bench.name)
    solves = any(arm.energy_of is not None for arm in chosen.values())
    if isinstance(study.prompts, int):
        bench.own_examples(study.split)
    metric = bench.find_metric(study.primary.metric)
    if planner.is_image and metric.kind == "temporal":
        raise InputError(
            f"primary: {metric.name} is of several frames, and a clip of {study.model_name} has one: give "
            f"{', '.join(bench.for_images())}"
        )
    captions, tuning = _prompts(study, bench, solves)
    planner.check_prompts(captions)
    settings: dict[str, dict[str, Any]] = {}
    energy_of = {name: arm.energy_of for name, arm in chosen.items()}
    for name, arm in chosen.items():
        settings[name] = requests[name].model_dump(mode="json", exclude={"prompts", "samples"})
        if arm.energy_of is not None:
            _check_energy(_check_chain(name, energy_of), chosen[name], requests, planner.channels)
            del settings[name]["cfg_scale"]
            settings[name]["energy_of"] = arm.energy_of
    return CheckedStudy(bench, weights, captions, tuning, settings)


def make_plan(study: Study, pipe: ModelDescription, *, threads: int | None = None) -> Plan:
    """Expand, validate and complete a study.

    Args:
        study: the content of a study file.
        pipe: its model, loaded here or elsewhere.
        threads: threads of torch; to resume a run, give its number. None for one per CPU core.

    Raises:
        InputError: a setting is not valid for the model, a name does not exist, or the bench cannot measure a prompt.
    """
    import torch

    checked = check_study(study, pipe.planner, pipe.device)
    distilled = any(own.get("distilled") for own in checked.settings.values())
    plan = Plan(
        title=study.title, model=study.model_name, weights=pipe.hashes | (pipe.distilled_hashes if distilled else {}),
        compile=pipe.compiles, bench=checked.bench.name,
        bench_weights=describe_weights(study.bench, checked.weights), captions=checked.captions, tuning=checked.tuning,
        seeds=study.seeds, block=study.block or pipe.planner.block, threads=threads or os.cpu_count() or 1,
        device=pipe.device.type, torch=torch.__version__, settings=checked.settings, primary=study.primary,
    )  # fmt: skip
    _check_texts(plan)
    return plan


def _choices(study: Study, arm: Arm) -> Choices:
    """The choices of an arm for the pipeline, with the study's values where the arm has none."""
    shared = study.model_dump(include={"sampler", "steps", "timing", "seed"}) | {"seed_per_prompt": True}
    for name in ("dtype", "decode_dtype"):  # a diffusers pipeline is loaded in its precision, "auto" is chosen then
        if isinstance(study.model, str) and getattr(study, name) not in (None, "auto"):
            shared[name] = getattr(study, name)
    own = arm.model_dump(exclude={"name", "energy_of", "grid"}, exclude_none=True)
    if arm.fast:
        kept = ("seed", "seed_per_prompt", "decode_dtype")
        shared = {name: value for name, value in shared.items() if name in kept}
    if arm.energy_of is not None:
        own.setdefault("cfg_scale", ANY_SCALE)
    return cast("Choices", shared | own)


def _prompts(study: Study, bench: Bench, solves: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prompts for results, and the prompts on which scales are solved, if any are."""
    from ..metrics.metric import EVALUATION_SEED, TUNING_SEED

    tuning = study.tuning_prompts if solves else 0
    if isinstance(study.prompts, int):
        captions = bench.captions(study.split, EVALUATION_SEED, study.prompts)
        return captions, bench.captions(None, TUNING_SEED, tuning)
    text, times = Counter(study.prompts).most_common(1)[0]
    if times > 1:
        raise InputError(f"the prompt {text!r} is given twice: prompts are the unit, each counts once")
    for text in study.prompts:
        bench.check_prompt(text)
    return study.prompts, study.prompts[:tuning]


def _check_names(primary: Contrast, chosen: Mapping[str, Any]) -> None:
    """Refuse a primary contrast of settings that do not exist, or of one with itself."""
    for name in (primary.baseline, primary.against):
        if name not in chosen:
            raise InputError(f"primary: no setting is called {name!r}{nearest(name, chosen)}")
    if primary.baseline == primary.against:
        raise InputError(f"primary: {primary.baseline!r} is compared with itself: name two settings")


def _check_chain(name: str, energy_of: Mapping[str, Any]) -> list[str]:
    """The settings from ``name`` along energy_of, which must end at one with a scale of its own."""
    seen = [name]
    while (other := energy_of[seen[-1]]) is not None:
        if not isinstance(other, str) or other not in energy_of:
            hint = nearest(other, energy_of)
            raise InputError(f"{seen[-1]!r} matches the energy of {other!r}, which is no setting{hint}")
        if other in seen:
            raise InputError(f"{other!r} matches its own energy: name a setting that has a cfg_scale")
        if len(seen) > LONGEST_CHAIN:
            raise InputError(
                f"{name!r} matches an energy through more than {LONGEST_CHAIN} settings: name a nearer one"
            )
        seen.append(other)
    return seen


def _check_energy(chain: Sequence[str], arm: Arm, requests: Mapping[str, Request], channels: int) -> None:
    """Refuse an arm whose scale could not be solved. ``chain``: the settings along energy_of, its own first."""
    name, other = chain[:2]
    if arm.cfg_scale is not None:
        raise InputError(f"{name!r} gives cfg_scale and energy_of: choose one")
    # Guidance: both settings must add energy, and with the rule cfg, because the trace defines energy only for it.
    for guidance in (requests[other].guidance, requests[name].guidance):
        if guidance.scales_for(channels).is_identity:
            raise InputError(f"{name!r} matches the energy of {other!r}, which guides nothing: name another")
        if guidance.rule.name != "cfg":
            raise InputError(f"{name!r} matches energies, which only the rule cfg has, not {guidance.rule.name}")
    for each in (other, name):
        if requests[each].distilled:
            raise InputError(
                f"{name!r} matches energies, which are those of two branches, and the distilled network of {each!r} "
                "runs one: give cfg_scale"
            )


def outline(plan: Plan, seconds_per_cell: float) -> str:
    """The text that a dry run prints: settings, number of cells, time, and the effects that can be detected."""
    from ..metrics.statistics import pairs_needed

    count, minutes = len(plan.captions), plan.cells * seconds_per_cell / 60
    seeds = f"{plan.seeds} seed{'' if plan.seeds == 1 else 's'}"
    cells = f"{len(plan.settings)} settings x {count} prompts x {seeds} = {plan.cells} cells"
    cost = f"about {minutes:.0f} minutes here" if minutes >= 1 else "under a minute here"
    cost += f", at least {as_text(plan.cells * CELL_BYTES)} of disk"
    primary = plan.primary
    return "\n".join(
        [
            f"{plan.title or 'study'}: plan {plan.hash[:12]}",
            *(f"  {name}{_how_solved(plan, name)}" for name in plan.settings),
            *(f"{part} measures with {own.name}, SHA-256 {own.hash[:12]}" for part, own in plan.bench_weights.items()),
            f"{cells}, {cost}",
            f"primary: {primary.metric} of {primary.against!r} against {primary.baseline!r}; {detectable(count)} "
            f"(an effect of d_z = 0.3 needs {pairs_needed(0.3)} prompts)",
            *_in_points(plan),
        ]
    )


def _how_solved(plan: Plan, name: str) -> str:
    other = plan.settings[name].get("energy_of")
    if other is None:
        return ""
    return f": the scale that adds the energy of {other!r}; it is solved at the start of the run"


def _in_points(plan: Plan) -> list[str]:
    """The smallest difference that can be detected in points, where a prompt's value is yes or no."""
    metric, prompts = plan.metrics[plan.primary.metric], len(plan.captions)

    import numpy as np

    from ..metrics.metric import SHARE
    from ..metrics.statistics import detectable_difference
    from .words import round_points

    smallest = detectable_difference(np.zeros(prompts), share=True) if prompts > 1 else math.inf
    if metric.unit != SHARE or metric.kind != "alignment" or plan.seeds > 1 or not math.isfinite(smallest):
        return []
    return [
        f"in points: a difference in {metric.label} ({metric.name}) must be at least about {round_points(smallest)} "
        "to be detected with 80% power"
    ]


def detectable(prompts: int) -> str:
    """A sentence that says which effects a study with this number of prompts can detect."""
    from ..metrics.statistics import smallest_effect

    smallest = smallest_effect(prompts)
    if not math.isfinite(smallest):
        return f"with {prompts} prompts no effect can reach p = 0.05"
    return f"with {prompts} prompts, effects of d_z = {smallest:.2f} or more are detected with 80% power"
