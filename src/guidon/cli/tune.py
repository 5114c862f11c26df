"""``guidon tune``: a scale per channel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from . import options
from .options import option
from .outputs import prepare_folder, stopped
from .planning import find_planner
from .values import parse_timing

if TYPE_CHECKING:
    from ..request import Choices

EXAMPLE = "guidon tune --cfg-scale 3 --evaluations 40 --out tuned"


def tune(
    captions: Annotated[int, option("Measuring", "N", "Number of captions that choose.", min=2)] = 24,
    held_out: Annotated[
        int, option("Measuring", "N", "Number of other captions, which verify the choice.", min=2)
    ] = 48,
    evaluations: Annotated[int, option("Measuring", "N", "Number of settings that are sampled at most.")] = 60,
    cfg_scale: options.CfgScale = None,
    cfg_channels: Annotated[
        str, option("Guidance", "CHANNELS", "Channels that are guided at the start.", *options.CHANNELS)
    ] = "all",
    interval: options.Interval = None,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    model: options.Model = "guidon-small",
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        option(
            "Output",
            "FOLDER",
            "Folder for the journal; an interrupted run resumes in it.",
            *options.OUT,
            default="none",
        ),
    ] = None,
) -> None:
    """Search a guidance scale per channel.

    The search starts from --cfg-scale and wants less oversaturation and drift at the same alignment with the prompt.
    """
    sampling: dict[str, Any] = {"steps": steps, "sampler": sampler, "timing": parse_timing(interval)}

    # Check everything before torch is imported.
    from ..models.catalogue import find_preset
    from ..models.family import Released

    preset = find_preset(model)
    if isinstance(preset.weights, Released):  # before weights are asked for that could not be tuned
        from ..analysis import tuning

        tuning.goal_of(preset.bench)
    planner = find_planner(model, device)
    scale = planner.preset.cfg_scale if cfg_scale is None else cfg_scale
    planner.complete([""], cfg_scale=scale, cfg_channels=cfg_channels, **sampling)  # first: what measures needs numpy
    from ..analysis import tuning

    tuning.check_tuning(planner, scale, cfg_channels, evaluations=evaluations, choices=cast("Choices", sampling))
    if out is not None:
        prepare_folder(out)

    from ..core.progress import progress
    from ..pipeline import load

    pipe = load(model, device=device)
    kept = "nothing is kept" if out is None else f"what is measured is kept in {out}: the same command goes on"
    with stopped(kept), progress(f"tuning over {evaluations} settings", "settings") as on_evaluation:
        found = tuning.tune(
            pipe, scale, cfg_channels, prompts=captions, held_out=held_out, evaluations=evaluations,
            journal=None if out is None else out / "tuning.json", on_evaluation=on_evaluation, **sampling,
        )  # fmt: skip
    print(f"--cfg-scale {found.cfg_scale}\n{found.verdict}")
