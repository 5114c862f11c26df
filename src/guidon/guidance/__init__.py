"""Classifier-free guidance by channel; knows no network and no sampler."""

from . import rules
from .channels import UNSET, CfgChannels, ChannelScale, Unset, cfg_channels_from, parse_channels
from .denoiser import GuidedDenoiser
from .timing import constant, cosine_ramp, interval, linear_ramp, parse_timing
from .trace import GuidanceTrace

__all__ = [
    "UNSET",
    "CfgChannels",
    "ChannelScale",
    "GuidanceTrace",
    "GuidedDenoiser",
    "Unset",
    "cfg_channels_from",
    "constant",
    "cosine_ramp",
    "interval",
    "linear_ramp",
    "parse_channels",
    "parse_timing",
    "rules",
]  # fmt: skip
