"""Guidon: classifier-free guidance for latent video and image diffusion, by channel, measured.

    import guidon
    pipe = guidon.load("guidon-small")
    video = pipe("a red circle moves left on a white background", cfg_scale=3, cfg_channels=3, seed=0)
    video.save("circle.mp4")

Models and clips:
    load: a model's pipeline, by its name or from a folder of weights.
    from_pretrained: that of a model folder, or of a repository on the Hub.
    Pipeline: a text encoder, a network and an autoencoder; call it with a prompt.
    Choices: the settings of a clip; help(guidon.Choices) lists them.
    CallOptions: every keyword of a call, with those of diffusers.
    reproduce: make a clip again from its manifest.
    Video: a clip and its manifest.
    Request: all choices that decide the frames.
    Ranks: the processes that torchrun started, which share the work of a call.

Guidance:
    Guidance: channel scales, rule and timing; ``combine`` joins the predictions of a step.
    ChannelScale: one scale per latent channel.
    GuidanceTrace: collects what guidance did.
    Sparing: which calls of the other branches guidance leaves out.
    GuidedDenoiser: a network under guidance, for a sampler.

Pipelines of diffusers:
    apply, remove: put guidance on a pipeline, and take it off.
    channel_scale: scales per channel in the place of a pipeline's number.
    ChannelGuidance: a guider for modular pipelines.
    IDDPMScheduler: the sampler of IDDPM as a scheduler.
    wrap: a pipeline as a model that studies and analyses can measure.
    from_diffusers: Guidon's pipeline on the weights of a diffusers pipeline.

Other:
    IDDPM: Open-Sora's scheduler, with ``cfg_channels``.
    RFlow: Open-Sora 1.2's scheduler, rectified flow, with ``cfg_channels``.
    iddpm: the module that holds it, and the other names that scripts of Open-Sora, DiT and PixArt import.
    rflow: the module that holds it, and the other names of rectified flow in Open-Sora.
    conditioning: Open-Sora's mask strategies, prompts and tables of sizes.
    inspect_checkpoint, load_checkpoint: what a checkpoint is, and its network.
    NoiseLevel, NoiseSchedule, FlowPath: how noisy a sample is, and the levels of a diffusion or a rectified flow.
    InputError: bad input; the message says what to do.

Names are imported when they are first used, so that importing guidon costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .core.version import VERSION

__version__ = VERSION

_ROOMS = {
    "CallOptions": "pipeline.calls",
    "ChannelGuidance": "bridges.diffusers.guider",
    "ChannelScale": "guidance",
    "Choices": "pipeline.calls",
    "FlowPath": "diffusion",
    "Guidance": "guidance",
    "GuidanceTrace": "guidance",
    "Sparing": "guidance",
    "GuidedDenoiser": "guidance",
    "IDDPM": "bridges.opensora.iddpm",
    "IDDPMScheduler": "bridges.diffusers.scheduler",
    "InputError": "core.errors",
    "NoiseLevel": "diffusion",
    "NoiseSchedule": "diffusion",
    "Pipeline": "pipeline",
    "Ranks": "core.ranks",
    "RFlow": "bridges.opensora.rflow",
    "Request": "request",
    "Video": "media",
    "apply": "bridges.diffusers.apply",
    "channel_scale": "bridges.diffusers.scale",
    "from_diffusers": "pipeline",
    "from_pretrained": "pipeline",
    "inspect_checkpoint": "models.checkpoint",
    "load": "pipeline",
    "load_checkpoint": "models.checkpoint",
    "remove": "bridges.diffusers.apply",
    "reproduce": "pipeline",
    "wrap": "pipeline",
}
_MODULES = ("conditioning", "iddpm", "rflow")
__all__ = [
    "IDDPM",
    "CallOptions",
    "ChannelGuidance",
    "ChannelScale",
    "Choices",
    "FlowPath",
    "Guidance",
    "GuidanceTrace",
    "GuidedDenoiser",
    "IDDPMScheduler",
    "InputError",
    "NoiseLevel",
    "NoiseSchedule",
    "Pipeline",
    "RFlow",
    "Ranks",
    "Request",
    "Sparing",
    "Video",
    "apply",
    "channel_scale",
    "conditioning",
    "from_diffusers",
    "from_pretrained",
    "iddpm",
    "inspect_checkpoint",
    "load",
    "load_checkpoint",
    "remove",
    "reproduce",
    "rflow",
    "wrap",
]

if TYPE_CHECKING:
    from . import conditioning, iddpm, rflow
    from .bridges.diffusers.apply import apply, remove
    from .bridges.diffusers.guider import ChannelGuidance
    from .bridges.diffusers.scale import channel_scale
    from .bridges.diffusers.scheduler import IDDPMScheduler
    from .bridges.opensora.iddpm import IDDPM
    from .bridges.opensora.rflow import RFlow
    from .core.errors import InputError
    from .core.ranks import Ranks
    from .diffusion import FlowPath, NoiseLevel, NoiseSchedule
    from .guidance import ChannelScale, Guidance, GuidanceTrace, GuidedDenoiser, Sparing
    from .media import Video
    from .models.checkpoint import inspect_checkpoint, load_checkpoint
    from .pipeline import Pipeline, from_diffusers, from_pretrained, load, reproduce, wrap
    from .pipeline.calls import CallOptions
    from .request import Choices, Request


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _ROOMS:
        return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module 'guidon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
