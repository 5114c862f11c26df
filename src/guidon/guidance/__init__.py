"""Classifier-free guidance by channel; knows no network and no sampler."""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later
from .channels import (
    UNSET,
    CfgChannels,
    ChannelChoice,
    ChannelScale,
    Unset,
    cfg_channels_from,
    guides_nothing,
    parse_channels,
    plain_scale,
)
from .combine import START, Combines, Guidance, GuidedStep, Memory, Observe
from .rules import RULES, Branches, Rule, parse_rule, rule_text
from .sparing import Sparing
from .timing import (
    CONSTANT,
    Constant,
    CosineRamp,
    Exponential,
    Interval,
    LinearRamp,
    Oscillation,
    Timing,
    parse_timing,
)

if TYPE_CHECKING:
    from .denoiser import Condition, GuidedDenoiser, WeakModel
    from .imageless import WithoutFrames
    from .rotation import RotatedGuidance, random_rotation
    from .skipping import BlockSkip
    from .trace import GuidanceTrace, added_energy

__all__ = [
    "CONSTANT", "RULES", "START", "UNSET", "BlockSkip", "Branches", "CfgChannels", "ChannelChoice", "ChannelScale",
    "Combines", "Condition", "Constant", "CosineRamp", "Exponential", "Guidance", "GuidanceTrace", "GuidedDenoiser",
    "GuidedStep", "Interval", "LinearRamp", "Memory", "Observe", "Oscillation", "RotatedGuidance", "Rule", "Sparing",
    "Timing", "Unset", "WeakModel", "WithoutFrames", "added_energy", "cfg_channels_from", "guides_nothing",
    "parse_channels", "parse_rule", "parse_timing", "plain_scale", "random_rotation", "rule_text",
]  # fmt: skip
__getattr__ = imported_later(__name__, "denoiser", "imageless", "rotation", "skipping", "trace")
