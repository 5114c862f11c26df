"""Prompt to video: how a pipeline is loaded, called and run, and what the manifests of its clips say.

loading            the ways to a pipeline: a name, a folder, a manifest, a diffusers pipeline
contract           what studies and analyses ask of a model, whoever samples
pipeline           a call, from top to bottom
diffusers_pipeline a diffusers pipeline that fulfils the contract
diffusers_planner  its requests, checked before torch is imported
planner            the requests of Guidon's own models, checked before torch is imported
sizes              the size and length of a request's clips, and the memory that they need
calls              every keyword of a call, with its type
diffusers_names    what diffusers calls these, and what a pipeline of diffusers has that this one has not
saving             folders in the Hub's form, and the Hub
steering           latents that a caller gives, and changes after a step
generation         the clips of a complete request, in the memory that there is
kept               frames of the clips that are given, not made
manifests          what a manifest says, and how its clip is computed again
"""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later

if TYPE_CHECKING:
    from .diffusers_pipeline import DiffusersPipeline, wrap
    from .loading import from_diffusers, from_pretrained, load, reproduce
    from .pipeline import Pipeline

__all__ = ["DiffusersPipeline", "Pipeline", "from_diffusers", "from_pretrained", "load", "reproduce", "wrap"]
__getattr__ = imported_later(__name__, "pipeline", "loading", "diffusers_pipeline")
