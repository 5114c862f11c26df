"""Findings: which channels a guidance combination acts on, in words and as a call of Guidon."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Literal

from .axes import PACKED, is_tokens
from .combinations import Combination, Combinations, Site
from .module import Module, defaults_of
from .values import Bound, Cut, counts_latents, role_of

Level = Literal["some", "chosen", "all"]

_MOST_CHANNELS = 64  # a longer literal cut counts tokens or samples
_IMAGE = re.compile(r"rgb|(^|_)(images?|imgs?|pixels?|pix)(_|$)", re.IGNORECASE)
_NO_CHANNELS = re.compile(
    r"frame|token|seq|len|text|batch|time|step|size|samples?|bsz|patch|height|width", re.IGNORECASE
)
_VARIANCE = re.compile(r"var(?!i?e?ty)|sigma|(^|_)logv", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One place where guidance acts on a part of the channels."""

    file: str
    line: int
    """The line that cuts the channels."""
    function: str
    level: Level
    """``some``: latent channels are left unguided. ``chosen``: an argument decides. ``all``: every latent channel is
    guided, and only a learned variance is left out."""
    guided: str
    """Which channels are guided, in words."""
    channels: str
    """The same as Python, as Guidon's ``channels`` takes it."""
    axis: int
    """The axis that is cut; from the end if negative."""
    source: str
    """The expression that cuts."""
    suspicious: str | None
    """Why the axis is probably not the channels; None if nothing speaks against it."""
    formula: str
    """The spelling of the combination; s is the scale in the source."""
    combination: str
    """The combination as it is written."""
    combination_line: int
    branches: str
    """Where the branches come from, and in which order."""
    scale: str
    """Guidon's scale, as Python: the factor of the conditional branch."""
    joined: int | None
    """The line where guided channels are put beside the others; None if no line of the function does."""

    @property
    def call(self) -> str:
        """The Guidon call that does the same."""
        return f"guidon.Guidance({self.scale}, channels={self.channels})"


@dataclass(frozen=True)
class _Channels:
    """What a cut says of channels."""

    level: Level
    guided: str
    channels: str
    needs_join: bool = False
    """Whether it is guidance of some channels only if the rest is kept beside it."""


def findings(combinations: Combinations, module: Module, file: str) -> list[Finding]:
    """The findings of one module, one for each place that cuts, in the order of the lines."""
    best: dict[tuple[int, int, bool], Finding] = {}
    for site in combinations.sites.values():
        found = _finding(site, module, file)
        if found is None:
            continue
        key = (found.line, found.axis, found.suspicious is None)
        kept = best.get(key)
        best[key] = found if kept is None else _better(kept, found)
    return sorted(best.values(), key=lambda finding: (finding.line, finding.combination_line))


def _better(kept: Finding, new: Finding) -> Finding:
    """Of two findings at one place, the one that says more."""
    levels = {kept.level, new.level}
    if levels == {"chosen", "all"}:
        chosen, whole = (kept, new) if kept.level == "chosen" else (new, kept)
        if "all by default" in chosen.guided or "half" not in whole.guided:
            return chosen
        guided = f"{chosen.guided}; all latent channels if it is None"
        return Finding(**{**chosen.__dict__, "guided": guided})
    if kept.level != new.level:
        order = ("some", "chosen", "all")
        return min((kept, new), key=lambda f: order.index(f.level))
    if (kept.joined is None) != (new.joined is None):
        return new if kept.joined is None else kept
    if kept.combination_line == new.combination_line and len(new.combination) > len(kept.combination):
        return new
    return kept


def _finding(site: Site, module: Module, file: str) -> Finding | None:
    """What a site is, or None if it does not cut channels."""
    combination = site.combination
    cut = _channel_cut(site)
    said = f"{' '.join(combination.names)} {combination.source} {cut.of if cut else ''}"
    if cut is None or "logit" in said.lower():
        return None  # logits of a language model have no channels
    what = _complement(cut) if site.complement else _what(cut, site, module)
    if not combination.sure and not site.joins:
        return None  # halves of a batch are mixed, and nothing is left beside them
    kept = cut.high is not None and _is_shape(cut.high) and not site.joins and cut.source.endswith("]")
    if kept or what is None or (what.needs_join and not site.joins):
        return None
    suspicious = _suspicious(cut, site, what)
    if what.level == "all" and cut.axis_name and suspicious is None and is_tokens(cut.axis_name):
        return None
    if cut.high is not None and cut.high.role == "count" and _is_shape(cut.high) and suspicious is not None:
        return None  # cut to as many tokens as another tensor has
    return Finding(
        file, cut.line, combination.function, what.level, what.guided, what.channels, cut.axis, cut.source,
        suspicious, combination.formula, combination.source, combination.line, combination.order,
        combination.factor, _joined(cut, site),
    )  # fmt: skip


def _channel_cut(site: Site) -> Cut | None:
    """The cut that chooses channels: the last one that is no whole, on an axis that can be channels."""
    several = site.cuts
    chosen: Cut | None = None
    for cut in several:
        if cut.axis == 0:
            # One sample (C, H, W): its first axis is the channels, if a small literal number is cut.
            literal = cut.kind == "range" and cut.low is None and cut.high is not None
            number = cut.high.number if literal and cut.high and cut.high.role == "number" else None
            if number is None or not 2 <= number <= 16 or len(several) > 1:
                continue
        if chosen is None or _weight(cut) >= _weight(chosen):
            chosen = cut
    return chosen


def _weight(cut: Cut) -> int:
    """A half is the weakest choice: it only takes off a variance."""
    if cut.kind == "part" or (cut.high is not None and cut.high.role == "half"):
        return 0
    return 2 if cut.kind in ("range", "items") and cut.low is None else 1


def _what(cut: Cut, site: Site, module: Module) -> _Channels | None:
    if cut.kind == "part":
        index, count = (*cut.items, 0)[:2]
        if count == 2:
            earlier = [c for c in site.cuts if c.axis == cut.axis and c is not cut]
            if index == 0 and not earlier:
                return _Channels("all", _WHOLE.format("the first half"), '"all"')
            if index == 0:
                return _Channels("some", "the first half of the latent channels", "channels // 2", needs_join=True)
        return _Channels("some", f"part {index + 1} of {count or 'several'} of the channels", "...", needs_join=True)
    if cut.kind == "items":
        if max(cut.items) > _MOST_CHANNELS:
            return None
        return _Channels("some", f"channels {', '.join(map(str, cut.items))}", _listed(cut.items))
    if cut.kind == "index":
        if len(cut.items) != 1 or not 0 <= cut.items[0] <= _MOST_CHANNELS or cut.axis not in (1, -1, -3, 2):
            return None
        return _Channels("some", f"channel {cut.items[0]} alone", f'"only:{cut.items[0]}"', needs_join=True)
    if cut.low is not None:
        return _middle(cut)
    if cut.high is None:
        return None
    return _first(cut, cut.high, site, module)


_WHOLE = "all latent channels: {} of the prediction, a learned variance is left out"


def _first(cut: Cut, high: Bound, site: Site, module: Module) -> _Channels | None:
    """A range that begins at the first channel."""
    text = high.text
    if high.role == "half":
        return _Channels("all", _WHOLE.format(f"the first half ({text})"), '"all"')
    if high.role == "number" and high.number is not None:
        return _first_number(cut, high, high.number, site, module)
    if high.role == "count":
        return _Channels("all", _WHOLE.format(f"the first {text}"), '"all"')
    if high.role == "less":
        return _Channels("some", f"all but the last {_count(high.number or 0)} ({text})", text)
    if high.role == "packed":
        count = high.number or 0
        return _Channels(
            "some",
            f"the first {text} features of a token: {_count(count)}, if all pixels of one come first",
            str(count),
        )
    if high.role == "choice":
        default = "" if high.default is None else f", by default {_default(high.default)}"
        return _Channels("chosen", f"the first `{text}` channels{default}", text)
    default = high.default
    if cut.axis not in (1, -1, -3) or _NO_CHANNELS.search(text):
        return None
    if default is not None and default.isdecimal():
        return _Channels("chosen", f"the first `{text}` channels, by default {default}", text)
    return _Channels("chosen", f"the first `{text}` channels", text, needs_join=True)


def _default(default: str) -> str:
    return "None (all latent channels)" if default == "None" else default


def _first_number(cut: Cut, high: Bound, number: int, site: Site, module: Module) -> _Channels | None:
    if number < 0:
        return _Channels("some", f"all but the last {_count(-number)}", f"channels - {-number}", needs_join=True)
    if number > _MOST_CHANNELS and not site.joins:
        return None
    shown = "" if high.text == str(number) else f" (`{high.text}`)"
    all_of = _latent_channels(site.combination, module)
    if number in all_of:
        return _Channels("all", _WHOLE.format(f"the first {number} of {all_of[number]}"), '"all"')
    said = role_of(high.text) == "count" and number > 3
    if said or (number > 3 and _rest_is_variance(cut, module)):
        return _Channels("all", _WHOLE.format(f"the first {number}{shown}"), '"all"')
    holders = (cut.of.rsplit(".", 1)[-1], *site.combination.holders)
    if number == 3 and any(_IMAGE.search(name) for name in holders):
        return _Channels("all", "all three channels of an image", '"all"')
    plural = "first channel" if number == 1 else f"first {number} channels"
    hint = " (all of them, if the latents have four)" if number == 4 and not all_of else ""
    if all_of and number < min(all_of):
        hint = f" of {all_of[min(all_of)]}"
    few = number < 2 or cut.axis == 0 or cut.text == "each"
    return _Channels("some", f"the {plural}{shown}{hint}", str(number), needs_join=few)


def _middle(cut: Cut) -> _Channels | None:
    """A range that does not begin at the first channel."""
    low, high = cut.low, cut.high
    if low is None or low.role != "number" or low.number is None or cut.axis not in (1, -1, -3, 2, -4):
        return None
    if high is None:
        if low.number < 0 or cut.axis == 2:
            return None
        guided = f"channels {low.number} and later"
        return _Channels("some", guided, f"range({low.number}, channels)", needs_join=True)
    if high.role != "number" or high.number is None or high.number <= low.number or low.number < 0:
        return None
    items = tuple(range(low.number, high.number))
    guided = f"channel {items[0]} alone" if len(items) == 1 else f"channels {items[0]} to {items[-1]}"
    return _Channels("some", guided, _listed(items), needs_join=True)


def _complement(cut: Cut) -> _Channels | None:
    """The channels that are left when those of a cut are overwritten."""
    if cut.kind == "range" and cut.low is not None and cut.high is None:
        if cut.low.role == "number" and cut.low.number is not None and cut.low.number > 0:
            return _Channels("some", f"the first {cut.low.number} channels", str(cut.low.number))
        if cut.low.role == "choice":
            return _Channels("chosen", f"the first `{cut.low.text}` channels", cut.low.text)
        return None
    if cut.kind == "range" and cut.low is None and cut.high is not None and cut.high.number:
        number = cut.high.number
        if cut.axis == 2:
            return None
        return _Channels("some", f"channels {number} and later", f"range({number}, channels)")
    if cut.kind in ("items", "index") and cut.items and cut.axis in (1, -1, -3):
        left = ", ".join(map(str, cut.items))
        if cut.items == (-1,):
            return _Channels("some", "all but the last channel", "channels - 1")
        if any(item < 0 for item in cut.items):
            return None
        return _Channels(
            "some", f"all channels but {left}", f"[c for c in range(channels) if c not in {list(cut.items)}]"
        )
    return None


def _suspicious(cut: Cut, site: Site, what: _Channels) -> str | None:
    """Why the axis that is cut is probably not the channels."""
    name = (cut.axis_name or "").strip().lower()
    if name == PACKED:
        return (
            f"axis {cut.axis} holds the features of packed latents, where channels and pixels of a patch are mixed: "
            "unpack them before you choose channels"
        )
    if is_tokens(name):
        return f"axis {cut.axis} of `{cut.of}` is {cut.axis_name!r} in this code, not the channels"
    axes = {axis for _, axis in site.joins}
    if axes and all(axis is not None and axis > 0 and cut.axis > 0 and axis != cut.axis for axis in axes):
        line, axis = site.joins[-1]
        return f"cut on axis {cut.axis}, but joined again on axis {axis} (line {line})"
    return None


def _joined(cut: Cut, site: Site) -> int | None:
    """The line that joins guided channels with the others, on the axis of the cut if several do."""
    lines = [line for line, axis in site.joins if axis == cut.axis] or [line for line, _ in site.joins]
    return lines[0] if lines else None


def _is_shape(bound: Bound) -> bool:
    return bool(re.search(r"\.shape\b|\.size\(|^len\(", bound.text))


def _latent_channels(combination: Combination, module: Module) -> dict[int, str]:
    """The number of latent channels that the class around a combination says it has, with the name that says so."""
    scope = module.classes.get(combination.function.split(".")[0])
    found: dict[int, str] = {}
    for node in scope.body if scope else ():
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for name, default in defaults_of(node).items():
                counts = role_of(name) == "count" and counts_latents(name)
                if counts and isinstance(default, ast.Constant) and isinstance(default.value, int):
                    found[default.value] = f"{name}={default.value}"
    return found


def _rest_is_variance(cut: Cut, module: Module) -> bool:
    """Whether the line that cuts names the rest a variance: ``eps, sigma = out[:, :4], out[:, 4:]``."""
    line = module.lines[cut.line - 1] if 0 < cut.line <= len(module.lines) else ""
    left = line.partition("=")[0]
    return "," in left and bool(_VARIANCE.search(left.partition(",")[2]))


def _listed(items: tuple[int, ...]) -> str:
    if len(items) == 1:
        return f'"only:{items[0]}"'
    if items == tuple(range(items[0], items[0] + len(items))) and items[0] >= 0:
        return f'"{items[0]}-{items[-1]}"'
    return repr(list(items))


def _count(number: int) -> str:
    return "1 channel" if number == 1 else f"{number} channels"
