"""What a user writes in the nodes, as guides."""

from __future__ import annotations

from ...core.errors import InputError
from ...guidance import RULES, UNSET, ChannelChoice, Guidance, Interval, Unset
from ...guidance.channels import parse_scale
from .guides import ChannelGuide, Patcher, RuleGuide, named

UNOFFERED = {
    "cfg++": "its sampler is ComfyUI's own: euler_cfg_pp and its relatives",
    "perp-neg": "it combines three predictions: use ComfyUI's PerpNegGuider",
    "three-way": "it combines three predictions: use ComfyUI's DualCFGGuider",
    "autoguidance": "it runs a second model, which a pre-CFG function cannot",
    "stg": "it runs the model again with blocks skipped: use ComfyUI's SkipLayerGuidanceDiT",
}
"""The rules that a pre-CFG function cannot do, and what does them in ComfyUI."""


def offered_rules() -> list[str]:
    """The names of the rules that "Guidance rule" offers."""
    return [name for name in RULES if name not in UNOFFERED]


def channel_guide(
    model: Patcher, channels: str, scales: str = "", start_percent: float = 0.0, end_percent: float = 1.0
) -> ChannelGuide:
    """What "Channel guidance" does.

    Args:
        model: the MODEL that is to be patched.
        channels: ``3`` the first three, ``all``, ``none``, ``0,2``, ``0-2``, ``only:3``; may be empty where ``scales``
            gives every channel's.
        scales: empty for the sampler's cfg; one number for every guided channel; or one per latent channel.
        start_percent, end_percent: the share of sampling in which guidance acts, from 0 (noise) to 1.

    Raises:
        InputError: a value cannot be read.
    """
    try:
        values = parse_scales(scales)
        choice = _choice(channels, needed=not isinstance(values, tuple))
        whole = start_percent <= 0 and end_percent >= 1
        interval = None if whole else Interval(start_percent, end_percent)
        return ChannelGuide(choice, values, interval, model.get_model_object("model_sampling"))
    except InputError as error:
        raise named(ChannelGuide.name, error, timing="start_percent, end_percent") from None


def rule_guide(
    model: Patcher,
    rule: str,
    scale: float,
    channels: str = "all",
    timing: str = "constant",
    settings: str = "",
    scales: str = "",
) -> RuleGuide:
    """What "Guidance rule" does.

    Args:
        model: the MODEL that is to be patched.
        rule: one of ``offered_rules()``.
        scale: the scale of every guided channel.
        channels: as in ``channel_guide``.
        timing: ``constant``, ``linear``, ``cosine``, ``exponential:0.7``, ``interval:0.1,0.8`` or ``oscillation:10``.
        settings: the rule's settings where they are not its defaults, such as ``momentum=0,norm_limit=10``.
        scales: one scale per latent channel, in ``scale``'s place; empty for ``scale``.

    Raises:
        InputError: a value cannot be read, or the rule is not offered.
    """
    try:
        if rule in UNOFFERED:
            raise InputError(f"{rule} is not offered here: {UNOFFERED[rule]}")
        values = parse_scales(scales)
        choice = _choice(channels, needed=not isinstance(values, tuple))
        text = f"{rule}:{settings.strip()}" if settings.strip() else rule
        guidance = Guidance(scale if values is None else values, choice, text, timing.strip())
        return RuleGuide(guidance, model.get_model_object("model_sampling"))
    except InputError as error:
        raise named(RuleGuide.name, error, cfg_scale="scales" if scales.strip() else "scale") from None


def parse_scales(text: str) -> float | tuple[float, ...] | None:
    """Scales such as ``7, 7, 7, 1``: None where the text is empty, a float where it is one number.

    Raises:
        InputError: a part is no number of at least 0.
    """
    if not text.strip():
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"scales {text!r} cannot be read: give one number, or one per channel such as 7,7,7,1"
        ) from None
    return parse_scale(values[0] if len(values) == 1 else values, "scales")


def _choice(channels: str, *, needed: bool) -> ChannelChoice | Unset:
    """The choice of channels; unset where the text is empty and the scales say all."""
    if not channels.strip() and not needed:
        return UNSET
    return ChannelChoice.parse(channels, "channels")
