"""Which bench measures, and with which weights. It needs neither numpy nor torch, so that a mistake costs no time.

A bench is a base, ``world`` or ``video``, and any learned parts: ``video+clip+dino``. Learned parts are never measured
without a base: a frozen clip is perfectly consistent, and only a measure of motion beside it shows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import field_validator

from ..checkpoints.finding import locate, whole
from ..core.errors import InputError, nearest, setting
from ..core.extras import Later
from ..core.hashing import hash_samples
from ..core.reading import read_object
from ..core.settings import Settings
from ..models.finding import find_on_hub, is_cached

BASES = ("world", "world-1", "video")
"""The benches that need no weights."""
LEARNED = "learned"
"""The name that stands for all learned parts."""
TEXT_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
              "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model")  # fmt: skip
"""The files of a folder of transformers that decide a measurement, besides the weights."""
FRAMES_AND_TEXT = ("clip", "siglip")
"""Networks of frames and texts, as ``model_type`` of a config.json."""
FRAMES_ALONE = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
"""Networks of frames; "vit" is the first DINO."""
BACKBONES = ("alexnet*.pth", "vgg16*.pth")
"""LPIPS: the files of the backbone, as torchvision publishes them."""
HEADS = ("alex.pth", "vgg.pth")
"""LPIPS: the files of its linear layers, as the package lpips holds them; by backbone."""
LPIPS_PLACES = (
    "alexnet-owt-7be5be79.pth (download.pytorch.org/models) and alex.pth (lpips/weights/v0.1 of the package lpips)"
)


@dataclass(frozen=True)
class Part:
    """A learned part of a bench: the weights that it needs."""

    what: str
    """What the weights are, with an article."""
    repository: str | None
    """Where they are published on the hub; None if they are not."""
    files: tuple[str, ...] = ()
    """Patterns of the files to take from the repository."""


_NETWORK = (*TEXT_FILES, "model.safetensors")
PARTS: dict[str, Part] = {
    "clip": Part("a CLIP or SigLIP", "openai/clip-vit-large-patch14", _NETWORK),
    "dino": Part("a DINOv2", "facebook/dinov2-base", _NETWORK),
    "lpips": Part("the weights of LPIPS", None),
    "aesthetic": Part("an aesthetic head for that CLIP", "trl-lib/ddpo-aesthetic-predictor", ("aesthetic-model.pth",)),
}


class BenchChoice(Settings):
    """What measures the clips. A part whose weights are given is measured, whether ``name`` names it or not."""

    name: str | None = None
    """A bench, or several joined by "+": "video", "video+clip", "learned" for all learned parts. None for the
    model's own."""
    clip: Path | None = None
    """A CLIP or SigLIP with its tokenizer, a folder in hub layout. It compares frames with the prompt and with each
    other."""
    dino: Path | None = None
    """A DINOv2 (or DINO, or DINOv3), a folder in hub layout. It compares frames with each other."""
    lpips: Path | None = None
    """A folder with the two files of LPIPS: torchvision's AlexNet or VGG-16, and the linear layers."""
    aesthetic: Path | None = None
    """A file with LAION's aesthetic head, of version 1 or 2, for the CLIP that is given."""
    download: bool = False
    """Fetch what is missing from the hub."""

    @field_validator("name")
    @classmethod
    def _names_benches(cls, name: str | None) -> str | None:
        if name is not None:
            _names(name)
        return name

    def full_name(self, default: str) -> str:
        """The name of the bench with all of its parts, such as "video+clip+dino".

        Args:
            default: the base that holds if ``name`` names none: that of the model.

        Raises:
            InputError: two bases are named.
        """
        names = set(_names(self.name) if self.name else ()) | {p for p in PARTS if getattr(self, p) is not None}
        if "aesthetic" in names:  # it reads the features of CLIP
            names.add("clip")
        bases = [base for base in BASES if base in names] or [default]
        if len(bases) > 1:
            raise InputError(f"{setting('bench')} names {' and '.join(bases)}: name one of them")
        return "+".join([*bases, *(part for part in PARTS if part in names)])


def _names(text: str) -> list[str]:
    """The names in "a+b", with ``LEARNED`` written out.

    Raises:
        InputError: one of them is no bench.
    """
    known, found = (*BASES, *PARTS, LEARNED), list[str]()
    for name in text.split("+"):
        if name not in known:
            raise InputError(f"the bench {name!r} does not exist{nearest(name, known)}")
        found += PARTS if name == LEARNED else [name]
    return found


def learned_parts(bench: str) -> list[str]:
    """The learned parts in the full name of a bench."""
    return [name for name in bench.split("+") if name in PARTS]


class Weights(Settings):
    """Which weights a part measures with."""

    name: str
    """The repository on the hub, or the name of the folder or file."""
    hash: str
    """SHA-256 over samples of its files."""


def find_weights(choice: BenchChoice, bench: str) -> dict[str, Path]:
    """Where the weights of each learned part are. Nothing is downloaded unless ``choice.download`` allows it.

    Args:
        choice: what the user names.
        bench: the full name.

    Raises:
        InputError: weights are missing or of another kind, or a library is not installed. The message names every
            part that misses weights, and where to get them.
    """
    found, missing = dict[str, Path](), list[str]()
    for name in learned_parts(bench):
        part, given = PARTS[name], getattr(choice, name)
        if given is not None:
            found[name] = given
        elif part.repository is None:
            missing.append(f"{setting(name)}, a folder with {LPIPS_PLACES}")
        elif choice.download or is_cached(part.repository, None, name, part.files):
            found[name] = find_on_hub(part.repository, None, choice.download, name, part.files)
        else:
            missing.append(f"{setting(name)}, {part.what} such as {part.repository} (huggingface.co)")
    if missing:
        rest = "" if choice.download else f"; or set {setting('download')} to fetch what is published on the hub"
        raise InputError(f"the bench {bench} misses weights: give {'; '.join(missing)}{rest}")
    for name, place in found.items():
        files_of(name, place)
        if name in ("clip", "dino"):
            Later("transformers", f"the part {name} of a bench", "metrics")  # refuses if it is not installed
    return found


def files_of(part: str, place: Path) -> list[Path]:
    """The files that decide what a part measures, weights last.

    Raises:
        InputError: one is missing, or is of another kind.
    """
    if part == "lpips":
        return list(lpips_files(place))
    if part == "aesthetic":
        return [locate(aesthetic_file(place))]
    kinds = FRAMES_AND_TEXT if part == "clip" else FRAMES_ALONE
    config = read_object(place / "config.json", f"the configuration of {PARTS[part].what}")
    if config.get("model_type") not in kinds:
        raise InputError(
            f"{place} holds a {config.get('model_type')!r:.40} model, {setting(part)} takes {PARTS[part].what} "
            f"({', '.join(kinds)})"
        )
    return [*(place / name for name in TEXT_FILES if (place / name).is_file()), *whole(locate(place))]


def aesthetic_file(place: Path) -> Path:
    """The file of an aesthetic head: the one that the repository on the hub holds, or what the user named."""
    inside = place / PARTS["aesthetic"].files[0]
    return inside if inside.is_file() else place


def lpips_files(folder: Path) -> tuple[Path, Path]:
    """The backbone of LPIPS and its linear layers.

    Raises:
        InputError: the folder does not hold both.
    """
    for backbone, head in zip(BACKBONES, HEADS, strict=True):
        if folder.is_dir() and (found := sorted(folder.glob(backbone))) and (folder / head).is_file():
            return found[0], folder / head
    raise InputError(f"{folder} does not hold the two files of LPIPS: give a folder with {LPIPS_PLACES}")


def describe_weights(choice: BenchChoice, places: Mapping[str, Path]) -> dict[str, Weights]:
    """The names and hashes of the weights that ``find_weights`` found."""
    described: dict[str, Weights] = {}
    for part, place in places.items():
        name = place.resolve().name if getattr(choice, part) is not None else PARTS[part].repository
        described[part] = Weights(name=name or part, hash=hash_samples(files_of(part, place)))
    return described
