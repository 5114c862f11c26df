"""Writes a model folder as a whole: readers see the old one or the new one, never files of both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.atomic import atomic_folder
from ...models.adapters.files import ADAPTER
from ...models.small import DENOISER, DISTILLED, LOW_NOISE, TEXT, VAE
from ...models.trained.config import CARD, CHECKPOINT, CONFIG, FEATURES, PICTURE

COMPONENTS = (DENOISER, LOW_NOISE, DISTILLED, TEXT, VAE)
HUB = (*COMPONENTS, CONFIG, CARD, PICTURE, CHECKPOINT, FEATURES, "vae", *ADAPTER)
"""All files and folders of a model folder in the Hub's form, or of a folder of adapters."""


@contextmanager
def model_folder(target: Path) -> Iterator[Path]:
    """A new folder for components, which replaces ``target`` if the block succeeds.

    Other files in ``target``, such as a user's notes, are copied to the new folder. Links are copied as links.
    """
    with _with_others(target, COMPONENTS) as folder:
        yield folder


@contextmanager
def own_folder(target: Path) -> Iterator[Path]:
    """As ``model_folder``, for a model folder in the Hub's form, or a folder of adapters."""
    with _with_others(target, HUB) as folder:
        yield folder


@contextmanager
def _with_others(target: Path, own: tuple[str, ...]) -> Iterator[Path]:
    """A new folder in place of ``target``, to which files of it are copied that are not named in ``own``."""
    with atomic_folder(target) as folder:
        yield folder
        others = [path for path in target.iterdir() if path.name not in own] if target.is_dir() else []
        for path in others:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, folder / path.name, symlinks=True)
            else:
                shutil.copy2(path, folder / path.name, follow_symlinks=False)
