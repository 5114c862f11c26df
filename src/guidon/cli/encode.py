"""``guidon encode``: captions to T5 features, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError, setting
from . import options
from .options import option
from .outputs import prepare_folder, stopped

EXAMPLE = 'guidon encode "a lighthouse" --text-encoder t5-v1_1-xxl --out captions.safetensors'


def encode(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT", help="Captions; '' is the empty one.", rich_help_panel="Prompt"),
    ],
    text_encoder: Annotated[Path, option("Model and weights", "FOLDER", "T5 in the hub's layout.")],
    out: Annotated[Path, option("Output", "FILE", "Safetensors file to write, or to add captions to.", *options.OUT)],
    max_length: Annotated[
        int,
        option(
            "Model and weights",
            "N",
            "Number of tokens: 120 for Open-Sora 1.0 and PixArt, 200 for Open-Sora 1.1, 300 for PixArt-Sigma.",
            min=1,
        ),
    ] = 120,
    dtype: Annotated[
        str,
        option("Model and weights", "TYPE", "Precision of T5: fp32, bf16, fp16 or int8.", values=options.TEXT_DTYPES),
    ] = "fp32",
    device: options.Device = "auto",
) -> None:
    """Encode captions with T5 once and keep the features.

    `guidon generate` takes the file in place of T5 (--features).
    """
    # Check everything before torch is imported and gigabytes are read.
    from ..core.devices import check_device, pick_device
    from ..models.finding import check_t5
    from ..models.text.headers import caption_header

    check_device(device)
    check_t5(text_encoder, max_length, dtype)
    if out.exists():
        caption_header(out)
    prepare_folder(out.parent)

    from ..core.progress import progress
    from ..models.text.features import load_features, save_features
    from ..models.text.t5 import T5Encoder

    if out.exists():
        before = load_features(out, max_length).encoder
        if before.get("dtype") != dtype:
            raise InputError(
                f"{out} was encoded in {before.get('dtype')}, {setting('dtype')} is {dtype}: write to a new file"
            )
    encoder = T5Encoder.load(text_encoder, max_length=max_length, dtype=dtype, device=pick_device(device))
    what = f"encoding {len(prompts)} {'caption' if len(prompts) == 1 else 'captions'}"
    with stopped(f"nothing was added to {out}"), progress(what, "captions") as on_caption:
        features, mask = encoder.encode(prompts, on_caption)
    print(save_features(out, prompts, features, mask, encoder=encoder.description))
