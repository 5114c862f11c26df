"""The header of a file of caption features: which prompts it holds. It is read without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...checkpoints.finding import read_header
from ...core.errors import InputError, setting
from ...core.reading import is_there, parse_json

CAPTIONS = "caption features"
CAPTION_FORMATS = ("guidon captions 2", "guidon captions")
"""The format of a file of caption features: now, and in earlier versions, which wrote no digest."""


def caption_header(path: Path) -> dict[str, str]:
    """The text fields in the header of a file of caption features.

    Raises:
        InputError: it is not there, or is something else.
    """
    if not is_there(path, CAPTIONS):
        raise InputError(f"{path} is not there: make it with `guidon encode`, {setting('out')} {path}")
    header = read_header(path)
    if header.get("format") not in CAPTION_FORMATS:
        raise InputError(f"{path} is a safetensors file, but holds no caption features")
    return header


def stored_prompts(path: Path) -> list[str]:
    """The prompts in a file of caption features. The features are not read.

    Raises:
        InputError: it is not there, is damaged, or is something else.
    """
    prompts = parse_json(caption_header(path).get("prompts", ""), path, CAPTIONS)
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"{path} is damaged: its prompts are {prompts!r:.60}, expected a list of texts")
    return prompts


def refuse_unstored(path: Path, stored: Sequence[str], prompts: Sequence[str]) -> None:
    """Refuse prompts whose features a file does not hold.

    Raises:
        InputError: one of them is not stored.
    """
    missing = [prompt for prompt in prompts if prompt not in stored]
    if missing:
        raise InputError(
            f"{path} holds no features of {missing[0]!r}: add them with `guidon encode`, {setting('out')} {path}"
        )
