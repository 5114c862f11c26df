"""What the commands share: the application, options that several take, and how errors end it."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import InputError

_UsageError: Any = typer.BadParameter.__bases__[0]  # what the argument parser raises, whichever parser typer carries
Checkpoint = Annotated[Path | None, typer.Option(help="Released weights, of a model that is not shipped.")]
TextEncoder = Annotated[Path | None, typer.Option(help="Folder of T5 in hub layout.")]
VAE = Annotated[Path | None, typer.Option(help="Folder of the autoencoder in hub layout.")]
Features = Annotated[Path | None, typer.Option(help="Caption features kept by `guidon encode`, in place of T5.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")]
Sampler = Annotated[str | None, typer.Option(help="ddpm, ddim or dpm-solver. [default: the model's]")]
Interval = Annotated[
    str | None,
    typer.Option(
        parser="interval:{}".format, metavar="A,B",
        help="Guide only from A to B of sampling, 0 noise, 1 video; 0,1 all of it. [default: the model's]",
    ),
]  # fmt: skip
WorldModel = Annotated[str, typer.Option(help="A model of the world: a preset or a folder of weights.")]
Model = Annotated[str, typer.Option(help="A preset or a folder of weights.")]
app = typer.Typer(
    name="guidon",
    help="Classifier-free guidance for latent video diffusion: prompt to video, and what guidance does on the way.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def example(text: str) -> str:
    """The end of a command's help."""
    return f"Example:\n\n  {text}"


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if context.invoked_subcommand is None and not version:
        print(context.get_help())
    if version:
        from .. import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. Bad input prints one line and exits with 2; Ctrl-C exits with 130."""
    warnings.showwarning = lambda message, *_: print(f"guidon: {message}", file=sys.stderr)  # type: ignore[assignment]
    try:
        code = app(arguments, standalone_mode=False)
    except _UsageError as error:
        _refuse(error.format_message())
        code = 2
    except InputError as error:
        _refuse(str(error))
        code = 2
    except OSError as error:
        if os.environ.get("GUIDON_DEBUG"):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _refuse(f"{error.strerror or error}{where}")
        code = 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or os.environ.get("GUIDON_DEBUG"):
            raise
        _refuse("the device's memory is full: denoise fewer clips together (--batch-size, --block, block in a study)")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        _refuse("stopped")
        code = 130
    sys.exit(code or 0)


def _refuse(message: str) -> None:
    print("guidon: " + " ".join(message.split()), file=sys.stderr)
