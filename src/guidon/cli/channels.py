"""``guidon channels``: what each latent channel shows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .options import option

if TYPE_CHECKING:
    from ..analysis.channels import RGB, Channels

EXAMPLE = "guidon channels wan2.1"


def channels(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|FOLDER",
            help="A model whose channels are known, one that Guidon loads, or the folder of a pipeline of diffusers or "
            "of an AutoencoderKL; none lists the known ones.",
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Pictures or videos on which an autoencoder is measured."),
    ] = None,
    cfg_channels: Annotated[
        str, option("Guidance", "CHANNELS", "Guided channels, of which the rest is left out.", *options.CHANNELS)
    ] = "3",
    device: options.Device = "auto",
    json: Annotated[bool, option("Output", None, "Print JSON.", "--json")] = False,
) -> None:
    """Show what each latent channel carries, and what leaving some out of the guidance leaves out.

    For the autoencoders that people use, the factors from latent to RGB are published, and need no weights. For others
    they are fitted.
    """
    from ..analysis.channels import families

    if model is None:
        for name, title in families().items():
            print(f"{name:<14} {title}")
        return
    found = _find(model, files or [], device)
    summary = found.summary(cfg_channels)  # refuses a choice before anything is printed
    if json:
        import json as formats

        print(formats.dumps(found.as_json(cfg_channels), indent=1))
        return
    _print_table(found, found.left_out(cfg_channels))
    print(f"\n{summary}")
    if found.explained is not None:
        print(f"a linear map explains {found.explained:.0%} of how the decoded pictures vary")
    print(f"{found.title}; factors: {found.source}")


def _find(model: str, files: list[Path], device: str) -> Channels:
    """The channels of what the user named: published ones, or measured ones."""
    from ..analysis import channels as analysis
    from ..core.errors import InputError
    from ..media import load_video
    from ..models.catalogue import find_preset, presets
    from ..models.family import Released
    from ..request import DIFFUSERS

    if model.startswith(DIFFUSERS):
        model = model.removeprefix(DIFFUSERS)
        if not Path(model, "model_index.json").is_file():
            raise InputError(f"{model} is no folder of a diffusers pipeline: give one that holds model_index.json")
    folder, known = Path(model), presets().get(model)
    has_weights = known is not None and not isinstance(known.weights, Released)
    if not has_weights and (not folder.is_dir() or (folder / "model_index.json").is_file()):
        if files:
            raise InputError(f"the channels of {model} are published: leave out the files, or give its autoencoder")
        return analysis.published(model)
    alone = not has_weights and any((place / "config.json").is_file() for place in (folder, folder / "vae"))
    if not alone:
        find_preset(model)  # it is one, before torch is imported
    elif not files:
        raise InputError(f"the channels of {model} are measured on pictures: give some files after it")
    clips = [load_video(path)[0] for path in files]
    if alone:
        from ..core.devices import pick_device
        from ..models.vae.frames import FrameVAE

        place, vae = pick_device(device), FrameVAE.load(folder)
        return analysis.measure(
            vae.to(place), clips, step=vae.config.downsampling, device=place, name=str(folder),
            source=analysis.said_files(len(clips)),
        )  # fmt: skip
    from ..pipeline import load

    return analysis.measure_model(load(model, device=device), clips)


def _print_table(found: Channels, left_out: tuple[int, ...]) -> None:
    """One row for each channel, with the colours of its two ends where the terminal can show them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("channel", "less", "more", "R", "G", "B", "brightness", "colour", "carries", "more of it is", ""):
        table.add_column(
            head, justify="right" if head in ("channel", "R", "G", "B", "brightness", "colour") else "left"
        )
    for own in found.channels:
        ends = (Text(f" {_hex(colour)} ", style=f"{_ink(colour)} on {_hex(colour)}") for colour in own.swatch)
        table.add_row(
            str(own.number), *ends, *(f"{value:+.3f}" for value in own.factors), f"{found.brightness[own.number]:.0%}",
            f"{found.colour[own.number]:.0%}", ", ".join(own.carries), own.words,
            "left out" if own.number in left_out else "guided",
        )  # fmt: skip
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140).print(table)


def _hex(colour: RGB) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in colour)


def _ink(colour: RGB) -> str:
    """Black or white, whichever can be read on a colour."""
    return "black" if sum(colour) > 1.5 else "white"
