"""The ways to a pipeline: a preset's name or a folder of weights, a manifest, a diffusers pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast, overload

import torch

from ..core.devices import dtype_name, pick_device
from ..core.errors import InputError, quoted, setting
from ..core.settings import validated
from ..media import Video
from ..models.catalogue import find_model, find_preset
from ..models.finding import find_on_hub
from ..models.small import DENOISER
from ..models.sources import Sources
from ..models.trained.writing import HUB
from ..request import DIFFUSERS, DtypeName
from .calls import RunOptions
from .compilation import Compilation
from .diffusers_names import no_option_of_load
from .diffusers_planner import ELSEWHERE, check_options
from .manifests import Manifest
from .pipeline import Pipeline
from .precision import Arithmetic, choose, divided

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from ..bridges.diffusers.networks import Frequencies
    from .diffusers_pipeline import DiffusersPipeline


OF_A_MODEL = (*(name for name in HUB if name != "vae"), "vae/*", "model_index.json")
"""What is taken of a repository: all files that a model folder may hold, and the sign of a diffusers pipeline."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class LoadOptions(TypedDict, total=False):
    """The keywords of ``load``, which says what they mean."""

    device: str | torch.device
    checkpoint: str | Path | None
    text_encoder: str | Path | None
    vae: str | Path | None
    features: str | Path | None
    weak: str | Path | None
    lora: Any
    text_dtype: str
    dtype: str | torch.dtype | None
    decode_dtype: str | torch.dtype | None
    compile: bool
    download: bool
    offload: str | None


class ReproduceOptions(LoadOptions, RunOptions, total=False):
    """The keywords of ``reproduce``: those of ``load``, and how to run."""


class DiffusersOptions(TypedDict, total=False):
    """The keywords of ``load`` for the folder of a diffusers pipeline."""

    device: str | torch.device
    dtype: DtypeName | None
    offload: str | None
    call: Mapping[str, Any] | None


@overload
def load(
    model: str,
    *,
    call: Mapping[str, Any],
    device: str | torch.device = "auto",
    dtype: DtypeName | None = None,
    offload: str | None = None,
) -> DiffusersPipeline: ...
@overload
def load(model: str | Path = "guidon-small", **options: Unpack[LoadOptions]) -> Pipeline: ...
def load(model: str | Path = "guidon-small", **options: Any) -> Any:
    """The pipeline of a preset's name, of a folder of weights, or of a diffusers pipeline's folder.

    Args:
        model: a preset (``guidon models`` lists them), a folder that ``guidon train`` wrote, or ``diffusers:FOLDER``
            for a folder that diffusers' ``save_pretrained`` wrote. The last gives a ``DiffusersPipeline``, and takes
            the keywords ``device``, ``dtype``, ``offload`` and ``call`` alone.
        device: "auto" (the default), "cpu", "cuda", "cuda:N" or "mps".
        checkpoint: the released weights of a preset that the package does not hold.
        text_encoder, vae: folders in hub layout.
        features: caption features kept by ``guidon encode``, in place of the text encoder.
        weak: a weaker model for the rule "autoguidance": a model folder of the same latents and diffusion, or a
            checkpoint of the preset.
        lora: adapters of low rank, merged into the network's weights: a file or folder of peft or diffusers, also with
            its weight, ``"FOLDER=0.8"``; a list of them; or paths with their weights, ``{"FOLDER": 0.8}``.
        text_dtype: precision of T5: "fp32" as in Open-Sora (19 GB, the default), "bf16", "fp16" or "int8".
        download: True to fetch what is missing from the hub.
        offload: "stages" drops each stage after use, "none" keeps all of them. The model decides where it is left out.
            "blocks" is "stages" with the blocks of the network in the CPU's memory, two of them at a time on a GPU.
            Of a diffusers pipeline: "none" (the default), "model" or "sequential", as diffusers calls them.
        dtype: precision of the network where a call does not choose it: "fp32", "bf16", "fp16", or "auto": bf16 where
            this machine has a unit for it and a guided step is close to that in fp32, else fp32. A line on stderr says
            which, and why. Of a diffusers pipeline, which takes no "auto": that of all parts.
        decode_dtype: precision in which the autoencoder decodes where a call does not choose it: "fp32", "bf16" or
            "auto".
        compile: compile the blocks of the network by torch. Before a run it is measured what that costs and saves, and
            said on stderr. Predictions differ by rounding.
        call: of a diffusers pipeline: arguments of every call, such as ``{"height": 480, "num_frames": 81}``.

    Raises:
        InputError: unknown name; weights missing, truncated, foreign or not finite; a device that is not there.
    """
    if not isinstance(model, str | Path):
        raise InputError(f"model is {quoted(model)}: give the name of a preset, or a folder of weights")
    if str(model).startswith(DIFFUSERS):
        check_options(str(model), options)
        from .diffusers_pipeline import (
            load_folder,  # not above: it loads torch's compiler, which takes as long as torch
        )

        return load_folder(str(model).removeprefix(DIFFUSERS), **options)
    for name in options:
        if name not in LoadOptions.__annotations__:
            raise InputError(f"load has no {name!r}{no_option_of_load(name)}")
    own, files = divided(options)
    own = {name: dtype_name(value) or value for name, value in own.items()}
    asked = validated(Arithmetic, own, None)
    preset, place = find_preset(str(model)), pick_device(str(files.pop("device", "auto")))
    sources = validated(Sources, files, None)
    if asked.compile and sources.offload == "blocks":
        raise InputError(
            f"{setting('compile')} is for blocks that stay in place, {setting('offload')} is blocks: leave one out"
        )
    found = find_model(preset, sources, place)
    compilation = Compilation(place) if asked.compile else None
    return Pipeline(choose(asked, preset, found, place), found, place, sources, compilation)


def from_pretrained(model: str | Path, **options: Unpack[LoadOptions]) -> Pipeline:
    """The pipeline of a model folder, or of one on the Hub, such as ``save_pretrained`` and ``push_to_hub`` write.

    Args:
        model: a folder; or "user/repository" of the Hub, which is taken from its local cache, or with
            ``download=True`` fetched there.
        options: the keywords of ``load``.

    Raises:
        InputError: there is no such folder, and it is not in the Hub's cache or cannot be downloaded; and as ``load``.
    """
    if not isinstance(model, str | Path):
        raise InputError(f"model is {quoted(model)}: give a folder, or user/repository")
    if Path(model).is_dir():
        return load(model, **options)
    if not REPOSITORY.fullmatch(str(model)):
        raise InputError(f"model {str(model)!r} is neither a folder nor a repository: give user/repository")
    place = find_on_hub(str(model), None, bool(options.get("download")), "model", OF_A_MODEL)
    if (place / "model_index.json").is_file() and not (place / DENOISER).is_file():
        raise InputError(
            f"{model} is a pipeline of diffusers: download all of it, as by snapshot_download of huggingface_hub, and "
            "give load 'diffusers:FOLDER'"
        )
    if (place / DENOISER).is_file():  # a folder that brings its own weights, all of them
        options.pop("download", None)
    return load(place, **options)


def reproduce(manifest: str | Path | Mapping[str, Any], **options: Unpack[ReproduceOptions]) -> Video | list[Video]:
    """Make a clip again from its manifest, as ``guidon generate`` does with a manifest.

    The frames are the same bit for bit on the same version of torch, with as many threads and on the same kind of
    device. Elsewhere pixels may differ by 1/255 in fp32. A warning says what differs: versions, weights, device.

    Args:
        manifest: its file, the clip that it lies beside, or its content, such as ``video.manifest``.
        options: the keywords of ``load`` and of ``Pipeline.reproduce``. The model is the manifest's. Where it is loaded
            already, ``pipe.reproduce(manifest)`` does not load it again.

    Returns:
        The clip; for an exact replay of several clips, the list of them.

    Raises:
        InputError: it is no manifest of a clip; and as ``load`` and ``Pipeline.generate``.
    """
    found = Manifest.read(manifest)
    of_load = (*LoadOptions.__annotations__, *DiffusersOptions.__annotations__)
    parts = {name: value for name, value in options.items() if name in of_load}
    run = {name: value for name, value in options.items() if name not in parts}
    for name in ("dtype", "decode_dtype"):
        if name in parts:
            raise InputError(f"{name} is the manifest's: leave it out")
    if found.request.model.startswith(DIFFUSERS):
        if run:
            raise InputError(f"{next(iter(run))!r} is not for a clip of a diffusers pipeline: leave it out")
        parts["dtype"] = found.request.dtype
        parts.setdefault("call", {key: value for key, value in found.request.call.items() if key not in ELSEWHERE})
    elif found.computed is not None and found.computed.compiled:
        parts.setdefault("compile", True)
    pipe = load(found.request.model, **cast("LoadOptions", parts))
    videos = pipe.reproduce(found, **cast("RunOptions", run))
    return videos[0] if len(videos) == 1 else videos


def from_diffusers(
    pipe: DiffusionPipeline, *, features: str | Path | None = None, frequencies: Frequencies | None = None
) -> Pipeline:
    """The pipeline of the weights in a diffusers pipeline: Guidon's network, samplers and guidance on the same tensors.

    ``guidon.from_diffusers(DiTPipeline.from_pretrained("facebook/DiT-XL-2-256"))("white shark", cfg_channels=3)``

    Device, precision, autoencoder, text encoder and class names are the pipeline's. Weights are shared with it, except
    for the attention projections, which are copied joined. If you change the weights, call this function again.

    Args:
        pipe: a DiTPipeline, PixArtAlphaPipeline or PixArtSigmaPipeline, or one with the same parts.
        features: caption features kept by ``guidon encode``, in place of the text encoder.
        frequencies: those of DiT's timestep embedding, "original" or "diffusers". The released weights were trained
            with the original ones, which diffusers does not use; weights that were trained in diffusers need its own.
            Left out: diffusers' where the embedders of the blocks differ, which only training in diffusers makes,
            and the original ones elsewhere.

    Raises:
        InputError: the pipeline is of another family, or one of its parts is missing or unsuitable.
    """
    from ..bridges.diffusers.networks import adopt

    adopted = adopt(pipe, features=None if features is None else Path(features), frequencies=frequencies)
    return Pipeline(adopted.preset, adopted.model, adopted.device)
