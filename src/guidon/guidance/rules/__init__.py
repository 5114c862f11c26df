"""Guidance rules: how the predictions of a step become one.

contract      what a rule is, and what it sees
plain         cfg
norms         rescale, renorm: the size of the conditional prediction is kept
projections   apg, cfg-zero, tcfg, perp-neg: a direction is taken away
strengths     mambo-g, samg: the scale follows from how far apart the branches are
steps         cfg++, momentum: the steps before or after
frequencies   fdg, fdg-time: slow and fast variations over a frame or over time
image         three-way: by text and by an image
weak          autoguidance, stg: a third, weaker prediction
spelling      rules as text
"""

from .contract import Branches, Rule, Scale, Space
from .frequencies import FrequencyDecoupled, TemporalFrequencies
from .image import ThreeWay
from .norms import Renormalised, Rescale
from .plain import CFG, cfg
from .projections import APG, CFGZero, PerpendicularNegative, TangentialDamping
from .spelling import RULES, parse_rule, rule_text
from .steps import CFGPlusPlus, Momentum
from .strengths import MagnitudeAware, SpatialAdaptive
from .weak import Autoguidance, SkipGuidance

__all__ = [
    "APG", "CFG", "RULES", "Autoguidance", "Branches", "CFGPlusPlus", "CFGZero", "FrequencyDecoupled", "MagnitudeAware",
    "Momentum", "PerpendicularNegative", "Renormalised", "Rescale", "Rule", "Scale", "SkipGuidance", "Space",
    "SpatialAdaptive", "TangentialDamping", "TemporalFrequencies", "ThreeWay", "cfg", "parse_rule", "rule_text",
]  # fmt: skip
