"""Rules as text: what a user writes, and what manifests hold."""

from __future__ import annotations

from dataclasses import fields

from ...core.errors import InputError, nearest, quoted, setting
from .contract import Rule
from .frequencies import FrequencyDecoupled, TemporalFrequencies
from .image import ThreeWay
from .norms import Renormalised, Rescale
from .plain import CFG
from .projections import APG, CFGZero, PerpendicularNegative, TangentialDamping
from .steps import CFGPlusPlus, Momentum
from .strengths import MagnitudeAware, SpatialAdaptive
from .weak import Autoguidance, SkipGuidance

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        CFG, Rescale, APG, CFGZero, CFGPlusPlus, FrequencyDecoupled, PerpendicularNegative, TangentialDamping,
        MagnitudeAware, Momentum, SpatialAdaptive, Renormalised, TemporalFrequencies, Autoguidance,
        SkipGuidance, ThreeWay,
    )
}  # fmt: skip


def parse_rule(text: str) -> Rule:
    """A rule from its name, with settings where they are not its defaults: ``"apg:momentum=0,norm_limit=2.5"``.

    Raises:
        InputError: the rule or a setting does not exist, or a value is out of range.
    """
    name, _, rest = text.partition(":")
    if name.replace(".", "", 1).isdecimal():
        raise InputError(
            f"{setting('guidance')} names a rule, and {quoted(text)} is a number: give it as {setting('cfg_scale')}"
        )
    if name.partition("=")[0].strip() in RULES and "=" in name:
        raise InputError(
            f"{setting('guidance')} {quoted(text)} cannot be read: settings have names and follow a colon, as in "
            "apg:eta=0.5"
        )
    if name not in RULES:
        raise InputError(f"{setting('guidance')} rule {name!r} does not exist{nearest(name, RULES)}")
    rule = RULES[name]()
    settings: dict[str, object] = {option.name: getattr(rule, option.name) for option in fields(rule)}
    given: dict[str, int | float | str] = {}
    for part in rest.split(",") if rest else ():
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if option not in settings:
            known = f"{name} has {', '.join(settings)}" if settings else f"{name} has no settings"
            raise InputError(f"{setting('guidance')} {name}: {option!r} is not a setting: {known}")
        try:
            if not equals or option in given:
                raise ValueError
            given[option] = _read(value, settings[option])
        except ValueError:
            what = "NAME" if isinstance(settings[option], str) else "NUMBER"
            raise InputError(
                f"{setting('guidance')} {name}: {part!r} cannot be read: give {option}={what}, once"
            ) from None
    return RULES[name](**given)


def rule_text(rule: Rule) -> str:
    """The canonical form of a rule, with all its settings; ``parse_rule`` reads it back."""
    settings = [f"{s.name}={getattr(rule, s.name)!s}".removesuffix(".0") for s in fields(rule)]
    return rule.name + (":" + ",".join(settings) if settings else "")


def _read(value: str, default: object) -> int | float | str:
    """The value of a setting, of the kind that its default has."""
    if isinstance(default, str):
        return value
    return int(value) if isinstance(default, int) else float(value)
