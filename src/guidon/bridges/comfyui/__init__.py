"""Guidon in ComfyUI: what the nodes of ``integrations/comfyui`` do. Nothing of ComfyUI is imported.

ComfyUI's order at each call of the model: predict every conditioning, then the pre-CFG functions, then the sampler's
classifier-free guidance, then the post-CFG functions. The predictions are x_0 (``denoised``), (B, C, ...). Guidon acts
in a pre-CFG function on a clone of the model.
"""

from .guides import ChannelGuide, Guide, Patcher, RuleGuide, guide_of, patched
from .picture import trace_picture, trace_table
from .runs import Run, run_of
from .settings import UNOFFERED, channel_guide, offered_rules, rule_guide

__all__ = [
    "UNOFFERED", "ChannelGuide", "Guide", "Patcher", "RuleGuide", "Run", "channel_guide", "guide_of", "offered_rules",
    "patched", "rule_guide", "run_of", "trace_picture", "trace_table",
]  # fmt: skip
