"""The manifest of a clip: what it says, and how its clip is computed again. It is read without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, quoted, setting
from ..core.reading import is_there, reading
from ..core.settings import read_mapping, validated
from ..media.conditioning import find_references
from ..models.sources import WEAK
from ..request import Computation, Output, Request

if TYPE_CHECKING:
    import torch

VIDEOS = (".mp4", ".gif", ".webp", ".png")  # what a manifest lies beside, but for a folder of frames
MOST_THREADS = 4  # for each core: a manifest that asks for more is not followed


@dataclass(frozen=True)
class Manifest:
    """What a manifest says about its clip."""

    request: Request
    computed: Computation | None
    """How the clip was computed; None if an earlier version wrote the manifest."""
    output: Output
    """How the clip was written."""
    weights: dict[str, str]
    """The hash of each part of its model."""
    torch: str | None
    """The version of torch."""
    device: str | None
    """Where it was made, such as "cuda:0"."""
    folder: Path | None = None
    """Where it lies; None where it was read from no file."""

    @classmethod
    def read(cls, given: Any) -> Manifest:
        """A manifest from its file, from the clip that it lies beside, or from its content, such as ``video.manifest``.

        Raises:
            InputError: it is no manifest of a clip.
        """
        if isinstance(given, Manifest):
            return given
        if isinstance(given, Mapping):
            return cls._from(dict(given), None)
        if not isinstance(given, str | Path):
            raise InputError(f"the manifest is {quoted(given)}: give its path, the path of its clip, or its content")
        path = manifest_of(Path(given))
        return cls._from(read_mapping(path, "a manifest"), str(path))

    @classmethod
    def _from(cls, found: dict[str, Any], source: str | None) -> Manifest:
        name = source or "the mapping"
        if "generation" not in found:
            what = "is not a manifest that `guidon generate` wrote" if source else "is not the whole manifest of a clip"
            raise InputError(f"{name} {what}: it has no 'generation'")
        weights = found.get("weights", {})
        if not isinstance(weights, dict):
            raise InputError(f"{name}: weights is {weights!r:.40}, expected hashes by name")
        request = validated(Request, found["generation"], source)
        computed = validated(Computation, found["computed"], source) if "computed" in found else None
        output = validated(Output, found.get("output", {}), source)
        torch, device = (value if isinstance(value := found.get(key), str) else None for key in ("torch", "device"))
        return cls(request, computed, output, weights, torch, device, Path(source).parent if source else None)

    def computed_on(self, device: torch.device) -> Computation | None:
        """How the clip is computed on a device: as before. Threads are followed on a CPU, if they are not too many."""
        if self.computed is None:
            return None
        threads = self.computed.threads
        followed = device.type == "cpu" and (threads is None or threads <= MOST_THREADS * (os.cpu_count() or 1))
        return self.computed if followed else self.computed.model_copy(update={"threads": None})

    def find_references(self, given: Mapping[str, Any] = {}) -> None:
        """Refuse a clip whose pictures and videos are not there.

        Args:
            given: frames that a caller gives in their place, by hash.

        Raises:
            InputError: one is neither at its path nor beside the manifest, or has other content.
        """
        if self.request.conditioning is not None:
            for _ in find_references(self.request.conditioning, given, [self.folder] if self.folder else []):
                pass

    def refuse_other_weak(self, hashes: Mapping[str, str]) -> None:
        """Refuse a weak model other than the one that the clip was made with.

        Args:
            hashes: those of the model's parts, the weak model's included.

        Raises:
            InputError: it has other weights.
        """
        for name, value in self.weights.items():
            if name.startswith(WEAK) and hashes.get(name) != value:
                part = name.removeprefix(WEAK)
                raise InputError(
                    f"{setting('weak')} has other {part} weights than the weak model of the manifest: give the one "
                    "that the clip was made with"
                )

    def differences(
        self, like: Computation | None, device: torch.device, hashes: Mapping[str, str], *, compiled: bool = False
    ) -> list[str]:
        """How a run differs from the one that made the clip, a line for each kind of difference.

        Args:
            like: how the clip is computed; None for another way than the manifest says.
            device: where the model runs.
            hashes: those of the model's parts.
            compiled: whether the networks are compiled.
        """
        import torch

        lines: list[str] = []
        # other weights: other frames
        for name in other_weights(self.weights, hashes) if self.weights else ():
            other = f"another {name}" if name == "text_dtype" else f"other {name} weights"
            lines.append(f"the manifest was made with {other}: frames will differ")
        # another arithmetic: other last bits
        others: list[str] = []
        if self.torch not in (None, torch.__version__):
            others.append(f"torch {self.torch}")
        if self.device is not None and self.device.partition(":")[0] != device.type:
            others.append(f"the device {self.device}")
        if (computed := self.computed) is not None:
            if compiled != computed.compiled:
                others.append("compiled blocks" if computed.compiled else "blocks that were not compiled")
            if like is None:
                branches = "one branch after the other" if computed.sequential else "its branches together"
                others.append(f"{computed.batch} clip{'s' * (computed.batch > 1)} together, {branches}")
            elif device.type == "cpu" and like.threads != computed.threads:
                others.append(f"{computed.threads} threads")
        if others:
            how = f"frames may differ by {self.request.closeness}"
            lines.append(f"the manifest was made with {', '.join(others)}: {how}")
        return lines


def manifest_of(path: Path) -> Path:
    """The manifest that a path means: itself, or the one beside a video or a folder of frames.

    Raises:
        InputError: it is a video or a folder without one.
    """
    named = path if path.name else path.resolve()  # "." and ".." have a name of their own
    beside = named.with_name(f"{named.name}.json") if named.name else named
    if path.suffix != ".json" and is_there(beside, "a manifest"):
        return beside
    what = "a folder" if path.is_dir() else "a video" if path.suffix.lower() in VIDEOS else None
    if what:
        inside = _first_inside(path) if path.is_dir() else None
        raise InputError(
            f"{path} is {what} without its manifest, {beside.name or 'FILE.json'}: give the JSON file that was written "
            f"beside a clip, or the clip itself{f', such as {inside}' if inside else ''}"
        )
    return path


def _first_inside(folder: Path) -> Path | None:
    """The first manifest in a folder: a JSON file with the name of what lies beside it. None if there is none."""
    with reading(folder, "a folder of clips"):
        return min((path for path in folder.glob("*.json") if path.with_suffix("").exists()), default=None)


def read_computation(given: Any) -> Computation | None:
    """How a clip was computed, from a ``Computation`` or from the part "computed" of a manifest.

    Raises:
        InputError: it is neither.
    """
    if given is None or isinstance(given, Computation):
        return given
    if not isinstance(given, Mapping):
        raise InputError(f"{setting('like')} is {quoted(given)}: give the part 'computed' of a manifest")
    if "computed" in given:
        raise InputError(f"{setting('like')} is a whole manifest: give its part 'computed'")
    return validated(Computation, dict(given), None)


def other_weights(written: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of the hashes of weights that differ from written ones.

    Earlier versions wrote no precision of T5 for a trained model. What they left out is not compared.

    Args:
        written: the hashes of a manifest or a plan.
        found: those of a model.
    """
    names = written.keys() | {name for name in found if name.removeprefix(WEAK) != "text_dtype"}
    return sorted(name for name in names if found.get(name) != written.get(name))
