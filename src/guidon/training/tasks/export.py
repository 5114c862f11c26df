"""Writes a model folder as a whole: readers see the old one or the new one, never files of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...models.trained.writing import COMPONENTS, folder_with_others


@contextmanager
def model_folder(target: Path) -> Iterator[Path]:
    """A new folder for components, which replaces ``target`` if the block succeeds.

    Other files in ``target``, such as a user's notes, are copied to the new folder. Links are copied as links.
    """
    with folder_with_others(target, COMPONENTS) as folder:
        yield folder
