"""Classifier-free guidance by channel; knows no network and no sampler."""

from .channels import UNSET, CfgChannels, ChannelScale, Unset, cfg_channels_from, parse_channels, random_rotation
from .denoiser import GuidedDenoiser
from .rules import RULES, Branches, Rule, parse_rule, rule_text
from .timing import constant, cosine_ramp, interval, linear_ramp, oscillation, parse_timing
from .trace import GuidanceTrace, added_energy

__all__ = [
    "RULES", "UNSET", "Branches", "CfgChannels", "ChannelScale", "GuidanceTrace", "GuidedDenoiser", "Rule", "Unset",
    "added_energy",
    "cfg_channels_from", "constant", "cosine_ramp", "interval", "linear_ramp", "oscillation", "parse_channels",
    "parse_rule", "parse_timing", "random_rotation", "rule_text",
]  # fmt: skip
