"""Programs that a run reports to beside log.csv: TensorBoard, trackio and wandb. Each is imported where it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..core.extras import require

BOARD = "tensorboard"  # the folder of a run that TensorBoard reads


class Tracker(Protocol):
    """A program that is told what a run logs."""

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a row of the log."""
        ...

    def sheet(self, step: int, picture: Path) -> None:
        """Take a sheet of samples."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class TensorBoard:
    """Writes the folder ``tensorboard`` of a run. What is there of later steps is not shown any more."""

    def __init__(self, out: Path, begun: int) -> None:
        require("tensorboard", "the tracker tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(out / BOARD), purge_step=begun + 1)

    def row(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def sheet(self, step: int, picture: Path) -> None:
        self.writer.add_image("samples", pixels_of(picture), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class LikeWandb:
    """wandb, or trackio, which has its interface: a project named after the run's folder.

    A run that goes on is a new one there, with the steps that follow.
    """

    def __init__(self, name: str, out: Path, settings: Mapping[str, Any]) -> None:
        self.module: Any = require(name, f"the tracker {name}", name)
        self.module.init(project=out.resolve().name, config=dict(settings))

    def row(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log(dict(values), step=step)

    def sheet(self, step: int, picture: Path) -> None:
        self.module.log({"samples": self.module.Image(str(picture))}, step=step)

    def close(self) -> None:
        self.module.finish()


def open_trackers(names: tuple[str, ...], out: Path, settings: Mapping[str, Any], begun: int) -> list[Tracker]:
    """The trackers of a run.

    Args:
        names: "tensorboard", "trackio" or "wandb".
        out: the folder of the run.
        settings: the recipe, as plain data.
        begun: steps that are done before the first row.

    Raises:
        InputError: one is not installed.
    """
    kinds: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(out, begun),
        "trackio": lambda: LikeWandb("trackio", out, settings),
        "wandb": lambda: LikeWandb("wandb", out, settings),
    }
    return [kinds[name]() for name in names]


def pixels_of(picture: Path) -> np.ndarray:
    """A PNG as uint8 (height, width, 3)."""
    from PIL import Image

    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))
