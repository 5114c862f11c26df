"""Where the parts of a released model are: what the user names, or the hub's local cache. It needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path

from ..checkpoints.finding import locate
from ..core.errors import InputError, first_line, nearest, setting
from ..core.extras import require
from ..core.progress import lines
from .family import Facts, Preset, Released, any_prompts
from .sources import NetworkOnly, Sources
from .text.headers import refuse_unstored, stored_prompts

T5 = "DeepFloyd/t5-v1_1-xxl"
T5_DTYPES = ("fp32", "bf16", "fp16", "int8")
T5_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("spiece.model", "tokenizer.json")
AUTOENCODER = "stabilityai/sd-vae-ft-ema"
AUTOENCODER_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
DOWNSAMPLING = 8  # pixels per latent pixel in Stable Diffusion's autoencoder, along one side
DEPTH = 28  # blocks of the XL networks, which all released models have
TIMESTEPS = 1000  # of the diffusion that all released models were trained for


def released_facts(preset: Preset[Released], sources: Sources, *, patch: tuple[int, ...]) -> Facts:
    """What is known of a released model before its weights are read. Nothing is downloaded.

    Args:
        preset: the model.
        sources: what the user names, and whether the rest may be downloaded.
        patch: latent pixels of a token along each axis.

    Raises:
        InputError: parts are missing. The message names every one of them, and where to get it.
    """
    _check_parts(preset, sources)
    check = any_prompts
    if sources.features is not None:
        check = partial(refuse_unstored, sources.features, stored_prompts(sources.features))
    shape = preset.weights.latent_shape
    return Facts(shape, patch, DOWNSAMPLING, TIMESTEPS, preset.bench, check, blocks=DEPTH)


def _check_parts(preset: Preset[Released], sources: Sources) -> None:
    """Refuse a released model of which a part is missing; see ``released_facts``."""
    captions = not preset.classes  # read by T5
    if not captions:
        for part in ("text_encoder", "features"):
            if getattr(sources, part) is not None:
                raise InputError(f"{preset.name} is conditioned on classes: leave out {setting(part)}")
    if sources.text_dtype != Sources().text_dtype and (not captions or sources.features is not None):
        why = f"which {setting('features')} replaces" if captions else f"which {preset.name} has not"
        raise InputError(f"{setting('text_dtype')} {sources.text_dtype} is for T5, {why}: leave it out")
    # every part: what the user names, how it is looked at, and where it is published
    released = preset.weights
    parts: list[tuple[str, Path | None, Callable[[Path], object], str, str | None]] = [
        ("checkpoint", sources.checkpoint, locate, released.repository, released.file),
        ("vae", sources.vae, locate if released.video_vae else find_autoencoder, released.vae, None),
    ]
    if isinstance(sources, NetworkOnly):
        del parts[1:]
    elif captions and sources.features is not None:
        parts.append(("features", sources.features, stored_prompts, "", None))
    elif captions:
        parts.append(("text_encoder", sources.text_encoder, find_t5, T5, None))
    wrong, missing = list[str](), list[str]()
    for name, given, find, repository, file in parts:
        if given is None and name == "checkpoint" and file is None:
            wrong.append(f"weights of {preset.name} were never published: train some, and give {setting(name)}")
        elif given is None:
            if not sources.download and not is_cached(repository, file, name):
                missing.append(f"{_of(repository, file)} as {setting(name)}")
        else:
            try:
                find(given)
            except InputError as error:
                wrong.append(error.spelled(setting))
    if missing:
        ask = "its path" if len(missing) == 1 else "their paths"
        wrong.append(
            f"weights are missing: {', '.join(missing)} (huggingface.co); give {ask}, or set {setting('download')} to "
            "fetch what is missing into the hub's cache"
        )
    if wrong:
        raise InputError("; and ".join(wrong))


def find_autoencoder(folder: str | Path) -> Path:
    """The folder itself or its ``vae`` subfolder, whichever holds config.json and weights.

    Raises:
        InputError: neither does.
    """
    root = Path(folder)
    for place in (root, root / "vae"):
        if (place / "config.json").is_file() and any((place / name).is_file() for name in AUTOENCODER_WEIGHTS):
            return place
    raise InputError(
        f"{root} holds no autoencoder: give the folder of a hub repository, such as {AUTOENCODER}, with config.json "
        f"and {AUTOENCODER_WEIGHTS[0]}"
    )


def find_t5(folder: str | Path) -> tuple[Path, Path]:
    """Where a hub folder keeps the weights of T5's encoder, and its tokenizer.

    Raises:
        InputError: one of them is not there.
    """
    root = Path(folder)
    weights = _part(root, "text_encoder", ("config.json",), "its configuration")
    words = _part(root, "tokenizer", TOKENIZERS, "a tokenizer")
    if not any(any(weights.glob(pattern)) for pattern in T5_WEIGHTS):
        raise InputError(f"{weights} holds no weights ({' or '.join(T5_WEIGHTS)}): {_where(root)}")
    return weights, words


def check_t5(folder: str | Path, max_length: int, dtype: str) -> tuple[Path, Path]:
    """Where the weights of T5's encoder and its tokenizer are, after a check of how captions are to be encoded.

    Raises:
        InputError: one of them is not there, or a setting is not valid.
    """
    if dtype not in T5_DTYPES:
        raise InputError(f"{setting('dtype')} {dtype!r} does not exist for T5{nearest(dtype, T5_DTYPES)}")
    if max_length < 1:
        raise InputError(f"{setting('max_length')} {max_length} is not a number of tokens: give 120, 200 or 300")
    return find_t5(folder)


def _part(root: Path, name: str, files: Sequence[str], what: str) -> Path:
    """The folder itself or its subfolder, whichever holds one of the files."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: {_where(root)}")
    for folder in (root, root / name):
        if any((folder / file).is_file() for file in files):
            return folder
    raise InputError(f"{root} holds no {' or '.join(files)}, {what} of T5: {_where(root)}")


def _where(root: Path) -> str:
    return f"download the hub repository {T5} (config.json, spiece.model, weights) and give its folder"


def _of(repository: str, file: str | None) -> str:
    return f"{file} of {repository}" if file else repository


def is_cached(repository: str, file: str | None, source: str, only: Sequence[str] = ()) -> bool:
    """Whether the hub's local cache holds a part. The hub's library, which is slow, is asked only if it may. The
    arguments are those of ``find_on_hub``."""
    try:
        constants = import_module("huggingface_hub.constants")
    except ImportError:
        return False
    if not (Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}").is_dir():
        return False
    try:
        return bool(find_on_hub(repository, file, False, source, only))
    except InputError:
        return False


def find_on_hub(repository: str, file: str | None, download: bool, source: str, only: Sequence[str] = ()) -> Path:
    """A file or folder of a hub repository, from the local cache, or downloaded if that is allowed.

    Args:
        repository: its name on the hub.
        file: a file or folder in it; None for all of it.
        download: whether it may be downloaded.
        source: the setting with which a user can name it.
        only: patterns of the files to take, where ``file`` is None; if empty, all of them.

    Raises:
        InputError: it is not in the cache, or cannot be downloaded.
    """
    purpose = f"looking for {repository} on the hub, as {setting(source)} is not given,"
    hub, errors = (require(name, purpose, "video") for name in ("huggingface_hub", "huggingface_hub.errors"))
    patterns = [file, f"{file}/*"] if file is not None else list(only) or None
    folder, what = None, f"downloading {_of(repository, file)} from huggingface.co"
    try:
        with lines(what) if download else nullcontext():
            folder = Path(hub.snapshot_download(repository, allow_patterns=patterns, local_files_only=not download))
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError, ValueError) as error:
        if download:
            raise InputError(f"cannot download {repository} from the hub: {first_line(error)}") from None
    if folder is None or (file is not None and not (folder / file).exists()):
        raise InputError(
            f"weights are missing: {_of(repository, file)} (huggingface.co); give its path as {setting(source)}, or "
            f"set {setting('download')} to fetch it into the hub's cache"
        )
    return folder if file is None else folder / file
