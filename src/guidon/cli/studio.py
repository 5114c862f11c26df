"""``guidon studio``: the local page that shows what guidance does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..core.errors import InputError, setting
from ..core.extras import require
from . import options
from .options import given, option
from .outputs import prepare_folder, stopped
from .values import parse_call

EXAMPLE = "guidon studio"
MOST_PORT = 65535


def studio(
    model: Annotated[
        list[str] | None,
        option(
            "Model and weights",
            "NAME|FOLDER",
            "A model that the page offers beside the presets, a folder of weights or diffusers:FOLDER; repeatable. The "
            "first one is chosen first, and the options of weights are for it; it can also be a name of the presets.",
            values=options.models,
            default="guidon-small",
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    text_encoder: options.TextEncoder = None,
    vae: options.VAE = None,
    features: options.Features = None,
    weak: options.Weak = None,
    lora: options.Lora = None,
    text_dtype: options.TextDtype = None,
    dtype: options.Dtype = None,
    offload: options.Offload = None,
    download: options.Download = False,
    call: options.Call = None,
    device: options.Device = "auto",
    address: Annotated[
        str, option("Options", "ADDRESS", "The address to serve at; one that other machines reach needs --token.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, option("Options", "N", "The port.", default="the first free one from 7860 on", min=1)
    ] = None,
    token: Annotated[
        str | None,
        option("Options", "TEXT", "What browsers must know; it becomes a part of the address.", default="none"),
    ] = None,
    host: Annotated[
        list[str] | None,
        option("Options", "NAME", "A further name that browsers may call the server by; repeatable.", default="none"),
    ] = None,
    browser: Annotated[bool, option("Options", None, "Open the page in a browser.", "--browser/--no-browser")] = True,
    out: Annotated[Path, option("Output", "FOLDER", "Folder for studies.", *options.OUT)] = Path("outputs/studio"),
) -> None:
    """Open a page that shows what guidance does to each latent channel.

    Compare settings side by side, look inside a run, and take its command, its Python and its manifest along. Nothing
    leaves this machine. Clips are deleted when it stops; studies stay in the folder.
    """
    # Check everything before a library is imported that takes long.
    from ..core.devices import check_device
    from ..studio.guard import Rules

    check_device(device)
    if port is not None and port > MOST_PORT:
        raise InputError(f"{setting('port')} is {port}: give a number from 1 to {MOST_PORT}")
    hosts = tuple(host or ())
    Rules.of(address, token, hosts)
    require("jinja2", "the studio", "studio")
    from ..studio.models import Models

    arguments = parse_call(call)
    files = given(checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features, weak=weak)
    parts = {name: str(path) for name, path in files.items()}
    parts |= given(
        lora=lora or None, text_dtype=text_dtype, dtype=dtype, offload=offload, download=download or None
    )  # fmt: skip
    models = Models(model or (), arguments, parts)
    models.planner(models.first)
    require("gradio", "the studio", "studio")
    prepare_folder(out)

    from ..studio.engine import Studio
    from ..studio.server import serve

    with stopped("clips were deleted, studies are kept"):
        made = Studio(models, device=device, out=out)
        try:
            serve(made, browser=browser, say=_tell, address=address, port=port, token=token, hosts=hosts)
        finally:
            made.close()


def _tell(line: str) -> None:
    print(line, flush=True)
