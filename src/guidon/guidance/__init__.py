"""Classifier-free guidance by channel; knows no network and no sampler."""

from . import rules
from .channels import UNSET, ChannelScale, cfg_channels_from, parse_channels
from .denoiser import GuidedDenoiser
from .timing import constant, cosine_ramp, interval, linear_ramp, parse_timing
from .trace import GuidanceTrace

__all__ = [
    "UNSET", "ChannelScale", "GuidanceTrace", "GuidedDenoiser", "cfg_channels_from", "constant", "cosine_ramp",
    "interval", "linear_ramp", "parse_channels", "parse_timing", "rules",
]  # fmt: skip
