"""Saves a pipeline as a folder in the Hub's form, and sends such a folder to the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..checkpoints import load_component, save_component
from ..core.atomic import write_bytes, write_json
from ..core.devices import torch_dtype
from ..core.errors import InputError, first_line
from ..core.extras import require
from ..diffusion import FlowPath
from ..models.adapters.merging import network_of
from ..models.finding import find_on_hub
from ..models.small import DENOISER, DISTILLED, FAST
from ..models.trained.autoencoders import AutoencoderSource
from ..models.trained.config import (
    CARD,
    CONFIG,
    FAMILIES,
    FEATURES,
    ClipFormat,
    ModelConfig,
    NetworkName,
    SamplingSettings,
    TextSource,
)
from ..models.trained.writing import HUB, hub_folder, write_card, write_config, write_network
from .sizes import own_size

if TYPE_CHECKING:
    from ..models.family import Released
    from .pipeline import Pipeline


def save(pipe: Pipeline, target: Path) -> Path:
    """Save the model of a pipeline; see ``Pipeline.save_pretrained``."""
    if pipe.sources is None:
        raise InputError("the weights are a diffusers pipeline's: call save_pretrained of that one")
    place = pipe.preset.weights
    with hub_folder(target) as folder:
        if isinstance(place, Path):
            _copy_own(pipe, place, folder)
        else:
            _write_released(pipe, folder)
    return target


def push(pipe: Pipeline, repository: str, *, private: bool, token: str | None, message: str | None) -> str:
    """Send the model of a pipeline to the Hub; see ``Pipeline.push_to_hub``."""
    hub, errors = (require(name, "push_to_hub", "video") for name in ("huggingface_hub", "huggingface_hub.errors"))
    with TemporaryDirectory() as temporary:
        folder = save(pipe, Path(temporary) / "model")
        api = hub.HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            sent = api.upload_folder(
                repo_id=repository, folder_path=str(folder), commit_message=message or "Upload a model of Guidon"
            )
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
            raise InputError(f"cannot send the model to {repository} on the hub: {first_line(error)}") from None
    return str(getattr(sent, "commit_url", sent))


def _copy_own(pipe: Pipeline, source: Path, folder: Path) -> None:
    """Copy a model folder. Where adapters are merged, its network's file is written anew, without a distilled one."""
    merges = pipe.sources is not None and bool(pipe.sources.lora)
    left_out = set[str]()
    if merges:  # a distilled network is of the weights without adapters
        fast = pipe.preset.fast
        left_out = {DISTILLED, FAST} if fast is not None and fast.distilled else {DISTILLED}
    for name in HUB:
        if name in left_out:
            continue
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        elif (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
    if not (folder / CONFIG).is_file():  # a model of the world, whose files say everything
        write_json(folder / CONFIG, {"model_type": "guidon"})
    if not (folder / CARD).is_file():
        text = "---\nlibrary_name: guidon\npipeline_tag: text-to-video\n---\n\n# A model of Guidon\n"
        write_bytes(folder / CARD, text.encode())
    if not merges:
        return
    adapters = {name: value for name, value in pipe.hashes.items() if " " in name}
    with pipe.model.network.in_use(torch.float32) as network:
        weights = module_of(pipe, network).state_dict()
    if (folder / DENOISER).is_file():
        own = load_component(source / DENOISER, "denoiser")
        save_component(folder / DENOISER, "denoiser", own.config, weights, own.record | {"merged": adapters})
    else:
        write_network(folder, weights, {"merged": adapters}, torch.float32)


def _write_released(pipe: Pipeline, folder: Path) -> None:
    """Write the folder of a released model: its network with what it needs to generate."""
    preset, model, sources = pipe.preset, pipe.model, pipe.sources
    assert sources is not None
    released = cast("Released", preset.weights)
    names = {family: name for name, family in FAMILIES.items()}
    if preset.family not in names:
        raise InputError(f"a {preset.family} cannot be saved: its files are those that you gave")
    # Network.
    with model.network.in_use(torch_dtype(preset.dtype)) as network:
        module = module_of(pipe, network)
        write_network(folder, module.state_dict(), {"weights": pipe.hashes}, torch_dtype(preset.dtype))
        shape = cast("Any", module).config
    # Autoencoder, and what reads prompts.
    place = sources.vae or find_on_hub(released.vae, None, sources.download, "vae")
    vae = AutoencoderSource.find(place)
    vae.copy_to(folder)
    text = TextSource(kind="t5", folder=sources.text_encoder, tokens=getattr(shape, "model_max_length", None))
    if preset.classes:
        text = TextSource(kind="classes", classes=tuple(map(str, range(preset.classes))))
    elif sources.features is not None:
        shutil.copyfile(sources.features, folder / FEATURES)
        text = text.model_copy(update={"kind": "features"})
    if model.facts.rewrites:
        text = text.model_copy(update={"scored": True})
    # How it is sampled.
    frames, height, width = own_size(model.facts)
    flows = isinstance(model.schedule, FlowPath)
    config = ModelConfig(
        network=cast("NetworkName", names[preset.family]),
        layout="released",
        noise_schedule="flow" if flows else "linear",
        diffusion_steps=model.facts.timesteps,
        prediction=model.process.parameterization,
        by_size=isinstance(model.schedule, FlowPath) and model.schedule.by_size,
        text=text,
        vae=vae.kind,
        downsampling=model.facts.downsampling,
        clip=ClipFormat(height=height, width=width, frames=frames, fps=preset.source_fps, played=preset.fps),
        sampling=SamplingSettings(
            sampler=preset.sampler,
            steps=preset.steps,
            cfg_scale=preset.cfg_scale,
            cfg_channels=preset.cfg_channels,
            timing=preset.timing,
        ),
        seed=preset.seed,
        knows_given_frames=model.facts.knows_given_frames,
    )
    write_config(folder, config, shape)
    write_card(folder, config, None, {})


def module_of(pipe: Pipeline, network: Any) -> nn.Module:
    """The module of a network that is sampled from.

    Raises:
        InputError: there are several.
    """
    several = f"{pipe.preset.name} has several networks, which are not saved with adapters: leave out lora"
    return network_of(network, several)
