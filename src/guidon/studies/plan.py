"""The frozen plan that is made from a study file, and that identifies its results.

A plan holds everything that decides the results, and its hash identifies them. No clip is sampled to make a plan: the
scales of settings with ``energy_of`` are solved at the start of the run (``guidon.studies.energy``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ..core.errors import InputError, nearest
from ..core.hashing import hash_settings
from ..core.settings import Settings, validated
from ..metrics.choice import Weights
from ..request import Request
from .study import Contrast, check_size

if TYPE_CHECKING:
    from ..metrics.metric import Metric

FIRST_FORMAT = "guidon study 1"  # "of_the_world" in place of "bench"; solved scales are in its settings
EARLIER_FORMATS = (FIRST_FORMAT, "guidon study 2")  # "world" is the bench that is called "world-1" now
EARLIER_BENCHES = {"world": "world-1"}  # name in plans of the earlier formats -> name now
ANY_SCALE = 2.0  # placeholder for a scale that is not solved yet
LONGEST_CHAIN = 100  # settings from one with energy_of to the one whose scale decides


class Plan(Settings):
    """A frozen study. Every value is written out, so later changes of defaults do not affect it."""

    format: Literal["guidon study 1", "guidon study 2", "guidon study 3"] = "guidon study 3"
    title: str
    model: str
    """A preset, or a folder of weights."""
    weights: dict[str, str]
    """The hash of each part of the model. Of the distilled network and of a weak model: if a setting asks for it."""
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
        check_texts(plan)
        from ..metrics.bench import find_bench

        find_bench(plan.bench).find_metric(plan.primary.metric)
        check_names(plan.primary, plan.settings)
        energy_of = {name: own.get("energy_of") for name, own in plan.settings.items()}
        for name, own in plan.settings.items():
            if "energy_of" in own and len(check_chain(name, energy_of, plan.settings)) == 1:
                raise InputError(f"{name!r} matches the energy of no setting: name one")
            _placeholder_request(own, name)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def check_texts(plan: Plan) -> None:
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


def check_names(primary: Contrast, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a primary contrast of settings that do not exist, or of one with itself.

    Args:
        primary: the contrast.
        settings: those that there are, as a plan holds them.

    Raises:
        InputError: the message has the nearest name.
    """
    for name in (primary.baseline, primary.against):
        if name not in settings:
            raise InputError(f"primary: no setting is called {name!r}{_hint(name, settings)}")
    if primary.baseline == primary.against:
        raise InputError(f"primary: {primary.baseline!r} is compared with itself: name two settings")


def _hint(name: str, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """``nearest``; of a name as answers and reports print it, the setting's own."""
    from .words import spell_settings  # needs numpy

    own = {words: each for each, words in spell_settings(settings).items()}.get(name)
    return nearest(name, settings) if own is None else f", which is its name in reports: give {own!r}"


def check_chain(name: str, energy_of: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings from ``name`` along energy_of, which must end at one with a scale of its own.

    ``settings``: as in ``check_names``.
    """
    seen = [name]
    while (other := energy_of[seen[-1]]) is not None:
        if not isinstance(other, str) or other not in energy_of:
            hint = _hint(other, settings) if isinstance(other, str) else nearest(other, energy_of)
            raise InputError(f"{seen[-1]!r} matches the energy of {other!r}, which is no setting{hint}")
        if other in seen:
            raise InputError(f"{other!r} matches its own energy: name a setting that has a cfg_scale")
        if len(seen) > LONGEST_CHAIN:
            raise InputError(
                f"{name!r} matches an energy through more than {LONGEST_CHAIN} settings: name a nearer one"
            )
        seen.append(other)
    return seen
