"""Checkpoints of any family: describe a file (``inspect_checkpoint``), or load its network (``load_checkpoint``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import TensorFile, read_tensors, refuse_broken
from ..checkpoints.finding import AGAIN, WHAT, whole
from ..core.errors import InputError
from ..core.hashing import hash_files
from ..core.reading import reading
from . import registry
from .family import Checkpoint, Family
from .parts.others import describe_part


@dataclass(frozen=True)
class Report:
    """A description of a checkpoint for users."""

    path: Path
    """The file; of a folder, the file found in it."""
    format: str
    """How it is stored, such as "safetensors"."""
    wrapping: tuple[str, ...]
    """Keys and prefixes that its tensors were wrapped in."""
    architecture: str
    config: dict[str, Any]
    """The network's configuration; empty if it cannot be found out."""
    parameters: int
    """Number of parameters, without tensors that follow from the configuration."""
    dtypes: dict[str, int]
    """Number of tensors of each dtype."""
    learned_variance: bool
    """Whether the network predicts 2C channels."""
    sha256: str
    """SHA-256 of the file; for an index, of the index and all its shards."""
    remarks: tuple[str, ...]
    """Remarks on what is unusual about it."""

    def __str__(self) -> str:
        config = ", ".join(f"{name} {_short(value)}" for name, value in self.config.items())
        dtypes = ", ".join(f"{count} tensors of {dtype}" for dtype, count in self.dtypes.items())
        lines = [
            f"file              {self.path} ({self.format})",
            f"wrapped in        {', '.join(self.wrapping) or 'nothing'}",
            f"architecture      {self.architecture}, {self.parameters:,} parameters",
            f"configuration     {config}",
            f"learned variance  {'yes' if self.learned_variance else 'no'}",
            f"stored as         {dtypes}",
            f"sha256            {self.sha256}",
        ]
        return "\n".join(lines + [f"note              {remark}" for remark in self.remarks])


def _short(value: Any) -> str:
    """A value of a configuration. Of a long mapping, such as a vocabulary, the number of entries."""
    return f"of {len(value)} entries" if isinstance(value, dict) and len(value) > 8 else str(value)


def recognise(file: TensorFile) -> tuple[Family, Checkpoint]:
    """The family of a file, and the checkpoint in it.

    Raises:
        InputError: no family recognises it, or one does and the file is incomplete.
    """
    if (found := _recognised(file)) is not None:
        return found
    if (part := describe_part(file)) is not None:
        raise InputError(f"{file.path}: this is a {part.architecture}, not a denoiser; {part.remarks[0]}")
    related = (family.reader().explain(file) for family in registry.FAMILIES)
    unknown = f"an unknown architecture, its first names are {sorted(file.tensors)[:3]}"
    known = ", ".join(kind for family in registry.FAMILIES for kind in family.reads)
    raise InputError(f"{file.path}: this is {next(filter(None, related), unknown)}; known are {known}")


def _recognised(file: TensorFile) -> tuple[Family, Checkpoint] | None:
    for family in registry.FAMILIES:
        with reading(file.path, WHAT, AGAIN):
            checkpoint = family.reader().recognise(file)
        if checkpoint is not None:
            return family, checkpoint
    return None


def inspect_checkpoint(path: str | Path, **known: Any) -> Report:
    """Describe a checkpoint. Tensors that do not fit become remarks, not errors.

    Args:
        path: a file, or a folder in hub layout.
        known: configuration values that cannot be read from shapes, such as ``num_heads``.

    Raises:
        InputError: it is no checkpoint, or a checkpoint of an unknown family.
    """
    file = read_tensors(path)
    if _recognised(file) is None and (found := describe_part(file)) is not None:
        checkpoint = Checkpoint(file, file.tensors)
    else:
        family, checkpoint = recognise(file)
        with reading(file.path, WHAT, AGAIN):
            found = family.reader().describe(checkpoint, known)
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in file.tensors.values())
    remarks = list(found.remarks)
    try:
        refuse_broken(checkpoint.tensors, file.path)
    except InputError as error:
        remarks.append(str(error))
    if len(dtypes) > 1:
        remarks.append("it mixes precisions")
    return Report(
        path=file.path,
        format=file.format,
        wrapping=file.wrapping,
        architecture=found.architecture,
        config=dict(found.config),
        parameters=found.parameters,
        dtypes=dict(dtypes),
        learned_variance=found.learned_variance,
        sha256=hash_files(*whole(file.path)),
        remarks=tuple(remarks),
    )


def load_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    architecture: str | None = None,
    inflate: int | None = None,
    assumed: Mapping[str, Any] | None = None,
    **known: Any,
) -> Any:
    """The network in a checkpoint, such as ``STDiT``, ``PixArt`` or ``DiT``, ready to sample with.

    Weights are memory-mapped. They are not copied if the file is in ``dtype`` already. Positions are recomputed, at the
    scale that is found in the file.

    Args:
        path: a ``.pt``, ``.pth`` or safetensors file, an index of shards, or a folder in hub layout.
        dtype: what the network computes in.
        device: where it goes.
        architecture: refuse a file of any other family, such as "STDiT", "PixArt" or "DiT".
        inflate: make a video network with this many latent frames from an image network's weights, such as an STDiT
            from PixArt. The patch kernel becomes 3D. Temporal attention adds zero at first, so every frame is what the
            image network gives.
        assumed: configuration values that are used if neither the file nor ``known`` gives them, as in a file without
            positions.
        known: configuration values that win over those read from shapes, such as ``num_heads``, ``input_size`` or
            ``space_scale``.

    Raises:
        InputError: the file is no checkpoint, is damaged, or is of another architecture; or tensors are missing,
            unexpected or mis-shaped.
    """
    family, checkpoint = recognise(read_tensors(path))
    if architecture is not None and family.name != architecture:
        raise InputError(f"{checkpoint.file.path} holds a {family.name}, expected a {architecture}")
    reader = family.reader()
    with reading(checkpoint.file.path, WHAT, AGAIN):
        if inflate is None:
            network = reader.load(checkpoint, known, assumed or {}, dtype)
        else:
            network = reader.inflate(checkpoint, inflate, known, assumed or {}, dtype)
    return network.to(device).eval().requires_grad_(False)
