"""``guidon calibrate-fast``: fast settings of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import InputError, setting
from . import options
from .options import given, option
from .outputs import prepare_folder, say, stopped
from .planning import find_planner

if TYPE_CHECKING:
    from ..analysis.calibration import Candidate

EXAMPLE = "guidon calibrate-fast --out fast"


def calibrate_fast(
    out: Annotated[
        Path,
        option(
            "Output", "FOLDER", "Folder for blocks, tables and plot; an interrupted run resumes in it.", *options.OUT
        ),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="Prompts to choose on, for a model that does not make the synthetic world; every second one verifies.",
            rich_help_panel="Prompt",
        ),
    ] = None,
    captions: Annotated[int, option("Measuring", "N", "Number of captions that choose.", min=2)] = 64,
    held_out: Annotated[
        int, option("Measuring", "N", "Number of other captions, which verify the choice.", min=2)
    ] = 200,
    metric: Annotated[
        list[str] | None,
        option(
            "Measuring", "NAME", "A metric that must be no worse; repeatable.", default="those that the bench guards"
        ),
    ] = None,
    margin: Annotated[
        list[str] | None,
        option(
            "Measuring",
            "NAME=X",
            "The loss of a metric that held-out captions must exclude, in its unit; repeatable.",
            default="too little to be seen, if the bench says it; else 0.05 of a share, 1 dB, or half of the own mean",
        ),
    ] = None,
    finalists: Annotated[int, option("Measuring", "N", "Number of settings that are verified at most.", min=1)] = 2,
    steps: Annotated[
        list[int] | None,
        option("Sampling", "N", "A number of steps to try first; repeatable.", default="a half, a third, a quarter"),
    ] = None,
    sampler: Annotated[
        list[str] | None,
        option(
            "Sampling",
            "NAME",
            "A sampler to try first; repeatable.",
            default="the model's own, and dpm-solver-sde for a diffusion model",
            values=options.SAMPLERS,
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        option(
            "Sampling",
            "SETTINGS",
            "Settings to try first, such as 'steps=18 reuse=3', in place of --steps and --sampler; repeatable.",
            default="none",
        ),
    ] = None,
    coarse: Annotated[
        bool, option("Sampling", None, "Try these alone, without a finer search around the best of them.", "--coarse")
    ] = False,
    dtype: Annotated[
        str | None,
        option(
            "Model and weights",
            "DTYPE",
            "Precision of the network in what is tried: fp32, bf16 or fp16.",
            default="bf16; with --candidate, the model's own",
            values=options.DTYPES,
        ),
    ] = None,
    cfg_scale: options.CfgScale = None,
    cfg_channels: Annotated[
        str | None,
        option("Guidance", "CHANNELS", "Guided channels.", *options.CHANNELS, default=options.of_model("3")),
    ] = None,
    block: options.Block = 16,
    model: options.Model = "guidon-small",
    checkpoint: options.Checkpoint = None,
    text_encoder: options.TextEncoder = None,
    vae: options.VAE = None,
    features: options.Features = None,
    text_dtype: options.TextDtype = None,
    download: options.Download = False,
    device: options.Device = "auto",
) -> None:
    """Search for sampling settings that cost less and are no worse.

    They are chosen on some captions and verified on others. Several processes may work in one folder.
    """
    shared: dict[str, Any] = given(cfg_scale=cfg_scale, cfg_channels=cfg_channels)
    parts = given(
        checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features, text_dtype=text_dtype,
        download=download or None,
    )  # fmt: skip

    # Check everything before torch is imported.
    planner = find_planner(model, device, parts)
    planner.complete([""], **shared)
    allowed = dict(parse_margin(text) for text in margin or ())
    from ..analysis import calibration, tuning
    from ..metrics.bench import find_bench

    bench = find_bench(planner.bench)
    calibration.check_margins(allowed, calibration.guarded_metrics(bench, metric or ()))
    if candidate:
        for name in given(steps=steps or None, sampler=sampler or None, dtype=dtype):
            raise InputError(
                f"{setting('candidate')} says all that is tried first: leave out {setting(name)}, or write "
                f"{name}=VALUE into {setting('candidate')}"
            )
        candidates = [calibration.Candidate.read(text) for text in candidate]
        for each in candidates:
            planner.complete([""], **each.choices)
    else:
        candidates = calibration.first_candidates(planner, steps or (), sampler or (), dtype or "bf16")
    choose, verify = tuning.split_prompts(prompts) if prompts else (captions, held_out)
    if not prompts:
        bench.own_examples()
    planner.check_prompts(prompts or (), follow=True)
    prepare_folder(out)

    from ..core.progress import progress
    from ..pipeline import load

    pipe = load(model, device=device, **parts)
    kept = f"what is measured is kept in {out}: the same command goes on"
    with stopped(kept), progress("sampling and measuring", "clips") as on_clip:
        found = calibration.calibrate(
            pipe, out / "blocks", prompts=choose, held_out=verify, candidates=candidates, finer=not coarse,
            metrics=metric or (), margins=allowed, finalists=finalists, block=block, say=say, on_clip=on_clip, **shared,
        )  # fmt: skip
    print(f"{found.table()}\n\n{found.verdict}")
    for path in found.write(out, pipe.preset):
        print(path)
    if found.found is not None:
        print(_how_to_use(model, found.found.measured.candidate))


def _how_to_use(model: str, chosen: Candidate) -> str:
    """What to do with the settings that were found."""
    if Path(model).is_dir():
        return f"for --fast, copy Guidon.fast.json into {model}"
    if "fast" in chosen.choices:
        return f"no cheaper settings were found than those of `--fast`, which {model} has"
    return f"--fast of {model} stays as it is: give these settings to `guidon generate` one by one"


def parse_margin(text: str) -> tuple[str, float]:
    """A metric's name and its margin, from a text such as ``joint=0.05``.

    Raises:
        InputError: it is another text.
    """
    name, _, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise InputError(
            f"{setting('margin')} {text[:80]!r} cannot be read: give NAME=NUMBER, such as joint=0.05"
        ) from None
