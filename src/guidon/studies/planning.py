"""From a study file to its plan: every setting is checked with its model, and every value is written out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import InputError
from ..guidance import parse_rule
from ..metrics.choice import describe_weights, find_weights
from ..models.sources import WEAK
from ..request import Choices, Request
from .plan import ANY_SCALE, Plan, check_chain, check_names, check_texts
from .study import Arm, Study, arms

if TYPE_CHECKING:
    import torch

    from ..metrics.metric import Bench
    from ..pipeline.contract import ModelDescription, ModelPlanner


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
    requests: dict[str, Request] = {}
    for name, arm in chosen.items():
        try:
            requests[name] = planner.complete(("",), device=device, **_choices(study, arm))
        except InputError as error:
            raise InputError(f"the setting {name!r}: {error.args[0]}") from None  # with the names of settings marked
    settings: dict[str, dict[str, Any]] = {
        name: request.model_dump(mode="json", exclude={"prompts", "samples", "read_as"})
        for name, request in requests.items()
    }
    check_names(study.primary, settings)
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
    planner.check_prompts(captions, follow=not isinstance(study.prompts, int))
    some = _choices(study, next(iter(chosen.values())))
    read_as = planner.complete(tuple(dict.fromkeys(captions + tuning)), device=device, **some).read_as
    energy_of = {name: arm.energy_of for name, arm in chosen.items()}
    for name, arm in chosen.items():
        read = {text: to for text, to in requests[name].read_as.items() if text} | read_as  # its own negative prompt
        settings[name] |= {"read_as": read} if read else {}
        if arm.energy_of is not None:
            _check_energy(check_chain(name, energy_of, settings), chosen[name], requests, planner.channels)
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
    plan = Plan(
        title=study.title, model=study.model_name, weights=weights_of(pipe, checked.settings),
        compile=pipe.compiles, bench=checked.bench.name,
        bench_weights=describe_weights(study.bench, checked.weights), captions=checked.captions, tuning=checked.tuning,
        seeds=study.seeds, block=study.block or pipe.planner.block, threads=threads or os.cpu_count() or 1,
        device=pipe.device.type, torch=torch.__version__, settings=checked.settings, primary=study.primary,
    )  # fmt: skip
    check_texts(plan)
    return plan


def weights_of(pipe: ModelDescription, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The hashes of the weights that decide the clips of a plan's settings; see ``Plan.weights``."""
    distilled = any(own.get("distilled") for own in settings.values())
    weak = any(parse_rule(own.get("guidance", "cfg")).weak == "model" for own in settings.values())
    hashes = pipe.hashes | (pipe.distilled_hashes if distilled else {})
    return {part: digest for part, digest in hashes.items() if weak or not part.startswith(WEAK)}


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
