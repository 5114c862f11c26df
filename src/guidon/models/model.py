"""Where a model's parts come from: the package, files the user names, or the hub; each read when it is needed."""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..checkpoints.component import (
    BOUNDARY,
    DENOISER,
    DIFFUSION,
    LOW_NOISE,
    TEXT,
    VAE,
    Component,
    load_component,
)
from ..checkpoints.files import read_tensors
from ..core.errors import InputError, first_line
from ..diffusion import NoiseSchedule, Process
from . import CaptionEncoder, CaptionEncoderConfig, Experts, FrameVAE, FrameVAEConfig, STDiT, STDiTConfig
from .catalogue import T5, Preset, Released
from .registry import recognise
from .released import load_checkpoint

P = TypeVar("P")
OFFLOAD = ("none", "stages")


class Encoder(Protocol):
    """Prompts to what ``model.prepare`` takes: features (B, L, F) and token mask, or class labels (B,) and None."""

    def encode(self, prompts: Any) -> tuple[Tensor, Tensor | None]: ...


class Stage(Generic[P]):
    """One stage of the pipeline, made when first used, and dropped after use unless it is to be kept.

    Of several ways to make it, only the last one is held.
    """

    def __init__(self, make: Callable[..., P], keep: bool) -> None:
        self.make, self.keep = make, keep
        self._held: tuple[tuple[Any, ...], P] | None = None

    @contextmanager
    def in_use(self, *how: Any) -> Iterator[P]:
        """The part, made by ``make(*how)``."""
        if self._held is None or self._held[0] != how:
            self._held = None
            self._held = how, self.make(*how)
        try:
            yield self._held[1]
        finally:
            if not self.keep:
                self._held = None
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()


@dataclass(frozen=True)
class Sources:
    """Files that the user names; what is None is looked for on the hub's local cache, or downloaded if allowed."""

    checkpoint: Path | None = None
    text_encoder: Path | None = None
    vae: Path | None = None
    features: Path | None = None
    text_dtype: str = "fp32"
    download: bool = False


@dataclass(frozen=True)
class Model:
    """All that a pipeline is made of.

    ``network`` is made for a dtype and has ``prepare``, ``null`` and ``latent_shape``. ``latent_shape`` is
    that of the size the model is for, ``patch`` its token along each axis but the first, and a latent pixel is
    ``downsampling`` pixels wide. ``bench`` names the bench (``guidon.metrics.bench``) that its videos are measured on.
    ``hashes`` tell the weights that are already read.
    """

    text: Stage[Encoder]
    network: Stage[Any]
    vae: Stage[FrameVAE]
    schedule: NoiseSchedule
    process: Process
    latent_shape: tuple[int, ...]
    patch: tuple[int, ...]
    downsampling: int
    bench: str
    hashes: dict[str, str] = field(default_factory=dict)


def find_model(preset: Preset, sources: Sources, device: torch.device, offload: str) -> Model:
    """The parts of a preset; what is small is read and checked at once, what is large when it is used.

    Raises:
        InputError: files are missing (which, and where to get them), or are not what the preset needs.
    """
    if offload not in OFFLOAD:
        raise InputError(f"offload {offload!r} does not exist; valid: {', '.join(OFFLOAD)}")
    if preset.released is not None:
        return _released(preset, preset.released, sources, device, keep=offload == "none")
    changed = [name for name, value in vars(sources).items() if value != getattr(Sources(), name)]
    if changed:
        raise InputError(f"model {preset.name!r} brings its own weights: leave out --{changed[0].replace('_', '-')}")
    return _own(preset, device, keep=offload == "none")


def _own(preset: Preset, device: torch.device, keep: bool) -> Model:
    """The parts in a folder that ``guidon train`` wrote."""
    assert preset.folder is not None
    kinds = {DENOISER: "denoiser", TEXT: "text", VAE: "vae"}
    missing = [name for name in kinds if not (preset.folder / name).is_file()]
    if missing:
        raise InputError(
            f"{preset.folder} holds no {', '.join(missing)}: a model folder has denoiser, text and vae .safetensors"
        )
    parts = {kind: load_component(preset.folder / name, kind) for name, kind in kinds.items()}
    denoiser = parts["denoiser"]
    if BOUNDARY in denoiser.config:
        raise InputError(f"{denoiser.path} is an expert for low noise: it belongs beside a denoiser, as {LOW_NOISE}")
    unsaid = [name for name in DIFFUSION if name not in denoiser.config]
    if unsaid:
        raise InputError(f"{denoiser.path}: its configuration lacks {', '.join(unsaid)}: train or export it again")
    low = _low_noise(preset.folder / LOW_NOISE, denoiser)
    if low is not None:
        parts["denoiser-low"] = low

    def network(dtype: torch.dtype) -> STDiT | Experts:
        high = denoiser.build(STDiT, STDiTConfig, *DIFFUSION).to(device, dtype).eval()
        if low is None:
            return high
        other = low.build(STDiT, STDiTConfig, *DIFFUSION, BOUNDARY).to(device, dtype).eval()
        return Experts(high, other, low.config[BOUNDARY])

    def text() -> CaptionEncoder:
        return parts["text"].build(CaptionEncoder, CaptionEncoderConfig).to(device).eval()

    def vae() -> FrameVAE:
        return parts["vae"].build(FrameVAE, FrameVAEConfig).to(device).eval()

    stage = Stage(network, keep)
    with stage.in_use(torch.float32):  # a file that does not fit is refused now
        pass
    return Model(
        Stage(text, keep),
        stage,
        Stage(vae, keep),
        NoiseSchedule.named(denoiser.config["noise_schedule"], denoiser.config["diffusion_steps"]),
        Process.trained(denoiser.config["prediction"]),
        (denoiser.config["in_channels"], *denoiser.config["input_size"]),
        tuple(denoiser.config["patch_size"]),
        parts["vae"].configure(FrameVAEConfig).downsampling,
        "world",
        {kind: part.sha256 for kind, part in parts.items()},
    )


def _low_noise(path: Path, denoiser: Component) -> Component | None:
    """The network for low noise that a folder may hold beside its denoiser.

    Raises:
        InputError: it is no such network, or diffuses otherwise than the denoiser.
    """
    if not path.is_file():
        return None
    low = load_component(path, "denoiser")
    boundary, steps = low.config.get(BOUNDARY), denoiser.config["diffusion_steps"]
    if not isinstance(boundary, int) or not 0 < boundary < steps:
        raise InputError(
            f"{path}: its boundary is {boundary!r}, an expert for low noise has a timestep between 0 and {steps}"
        )
    for name in DIFFUSION:
        if low.config.get(name) != denoiser.config[name]:
            raise InputError(
                f"{path}: its {name} is {low.config.get(name)!r}, that of {denoiser.path.name} "
                f"{denoiser.config[name]!r}: give two of one model"
            )
    return low


class ClassLabels:
    """DiT's conditioning behind the protocol of text encoders: a prompt is a class number."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def encode(self, prompts: Any) -> tuple[Tensor, None]:
        """Labels (B,)."""
        labels = [int(prompt) if str(prompt).strip().isdecimal() else -1 for prompt in prompts]
        for prompt, label in zip(prompts, labels, strict=True):
            if not 0 <= label < self.classes:
                raise InputError(f"{prompt!r} is not a class of this model: give a number from 0 to {self.classes - 1}")
        return torch.tensor(labels), None


def _released(preset: Preset, released: Released, sources: Sources, device: torch.device, keep: bool) -> Model:
    checkpoint = sources.checkpoint or _on_hub(
        released.repository, released.file, sources.download, f"--checkpoint FILE: {released.file}"
    )
    vae_folder = sources.vae or _on_hub(released.vae, None, sources.download, "--vae DIR")
    if released.text_length is None and (sources.text_encoder or sources.features):
        raise InputError(f"{preset.name} is conditioned on classes: leave out --text-encoder and --features")
    if released.text_length is None or sources.features is not None:
        text_folder = None
        if sources.text_dtype != Sources.text_dtype:
            raise InputError(f"--text-dtype {sources.text_dtype} has no T5 to act on here: leave it out")
    else:
        text_folder = sources.text_encoder or _on_hub(T5, None, sources.download, "--text-encoder DIR")
    hashes = _fingerprints(checkpoint, vae_folder, text_folder, sources, released)

    def network(dtype: torch.dtype) -> Any:
        # what positions tell, for files that hold none
        assumed = {"input_size": released.input_size, **released.config}
        model = load_checkpoint(
            checkpoint, dtype=dtype, device=device, architecture=released.architecture, assumed=assumed
        )
        for name, value in released.config.items():
            if abs(getattr(model.config, name) - value) > 1e-3:
                raise InputError(
                    f"{checkpoint} has {name} {getattr(model.config, name):g}, {preset.name} expects {value:g}: "
                    "it is another size's checkpoint"
                )
        if model.latent_shape != released.latent_shape:
            made, expected = (" x ".join(map(str, shape)) for shape in (model.latent_shape, released.latent_shape))
            warnings.warn(f"{checkpoint} makes latents of {made}, {preset.name} is for {expected}", stacklevel=2)
        return model

    def text() -> Encoder:
        if released.text_length is None:
            return ClassLabels(1000)
        if sources.features is not None:
            from .text.features import load_features

            return load_features(sources.features, released.text_length)
        from .text.t5 import T5Encoder

        assert text_folder is not None
        return T5Encoder.load(text_folder, max_length=released.text_length, dtype=sources.text_dtype, device=device)

    def vae() -> FrameVAE:
        return FrameVAE.load(vae_folder).to(device).eval()

    return Model(
        Stage(text, keep),
        Stage(network, keep),
        Stage(vae, keep),
        NoiseSchedule.named("linear", 1000),
        Process(),
        released.latent_shape,
        (1, 2, 2)[-len(released.latent_shape[1:]) :],
        8,
        "video",
        hashes,
    )


def _fingerprints(
    checkpoint: Path, vae: Path, text: Path | None, sources: Sources, released: Released
) -> dict[str, str]:
    """What tells the files apart, read before any of them is used; what is missing or another kind is refused here."""
    kind = recognise(read_tensors(checkpoint).tensors)[0].name
    if kind != released.architecture:
        raise InputError(f"{checkpoint} holds a {kind}, expected a {released.architecture}")
    files = {"checkpoint": _weights(checkpoint), "vae": _weights(FrameVAE.find(vae))}
    if text is not None:
        from .text.t5 import T5Encoder

        files["text"] = _weights(T5Encoder.find(text)[0])
    elif sources.features is not None:
        files["text"] = [sources.features]
    found = {name: _fingerprint(paths) for name, paths in files.items()}
    return found | ({"text_dtype": sources.text_dtype} if text is not None else {})


def _weights(place: Path) -> list[Path]:
    """The files of weights in a folder, or the file itself."""
    if place.is_file():
        return [place]
    return sorted(path for path in place.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))


def _fingerprint(paths: Sequence[Path], blocks: int = 64, size: int = 65536) -> str:
    """A hash of files' sizes and of blocks spread evenly over each: gigabytes are told apart in milliseconds."""
    digest = hashlib.sha256()
    for path in paths:
        length = path.stat().st_size
        digest.update(f"{length} ".encode())
        with path.open("rb") as file:
            for k in range(blocks):
                file.seek(k * max(0, length - size) // max(1, blocks - 1))
                digest.update(file.read(size))
    return digest.hexdigest()


def _on_hub(repository: str, file: str | None, download: bool, flag: str) -> Path:
    """A file or folder of a hub repository, from the local cache, or fetched when that is allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = None if file is None else [file, f"{file}/*"]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=not download))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        if download:
            raise InputError(f"cannot download {repository} from the hub: {first_line(error)}") from None
        folder = None
    if folder is None or (file is not None and not (folder / file).exists()):
        what = f"{file} of {repository}" if file else repository
        raise InputError(
            f"weights are missing: {what} (huggingface.co); give {flag}, or --download to fetch it into the hub's cache"
        )
    return folder if file is None else folder / file
