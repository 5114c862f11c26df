"""A quick look at text: which functions could hold guidance of some channels. Most code need not be parsed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_CUT, _MULTIPLY, _SUBTRACT = 1, 2, 4
_ALL = _CUT | _MULTIPLY | _SUBTRACT

# Plain words come first: Python finds them much faster than a pattern. A pattern that begins with one letter is quick too.
_CUT_WORDS = (
    "chunk(", "narrow(", "index_select(", "take(", "unbind(", "slice_in_dim(", "array_split(", "tensor_split(",
    "slice_scatter(", "index_copy(", "rearrange(", "slice(", "arange(", "tensor([", "split_with_sizes(",
)  # fmt: skip
_CUT_PATTERN = re.compile(r"\[\s*(?:(?::|\.\.\.)\s*,\s*(?:\.\.\.,\s*|:\s*,\s*)*:?\s*[^\]\s:,N]|:\s*\d{1,2}\s*\])")
_LATER_PATTERN = re.compile(r",\s*(?::\s*[\w.-]+|[\w.-]+\s*:)\s*[\],]")
_SPLIT_PATTERN = re.compile(r"split\(\s*[\w\[]")
_MULTIPLY_WORDS = (" * ", "*=", "lerp", "addcmul", "mul(", "mul_(", "multiply(", "alpha=")
_MULTIPLY_PATTERN = re.compile(r"\*(?<=[\w\])]\*)[\w(]")
_SUBTRACT_WORDS = (" - ", "-=", "lerp", "sub(", "sub_(", "subtract(", ".add(", ".add_(")
_SUBTRACT_PATTERN = re.compile(r"-(?<=[\w\])]-)[\w(]")
_GUIDE_WORDS = ("cfg", "guidance", "guided", "uncond", "classifier_free", "classifier-free", "null_", "_null", "negative_",
                "neg_", "_neg", "unc_", "unbind(", "unflatten(", "rearrange(", "// 2", "//2", "empty_p", "empty_e")  # fmt: skip
_GUIDE_PATTERN = re.compile(
    r"\b(?:null|u)\b|_u\b|\bu_|chunk\(\s*(?:\w+\s*,\s*)?(?:chunks\s*=\s*)?[23]|(?:view|reshape)\(\s*\(?\s*[23]\s*,|"
    r"split\([^\n]*,\s*[23]\s*[,)]|::\s*2|\[\s*:\s*[\w.]+\s*\][^\n]*\[\s*[\w.]+\s*:\s*\]"
)
_BEGINS = re.compile(r"^([ \t]*)(?:(async[ \t]+)?def|(class))[ \t]+(\w+)", re.MULTILINE)
_CALLED = re.compile(r"(\w+)\(")
_CALLED_ON = re.compile(
    r"(?<![\w.])(?!isinstance|getattr|hasattr|setattr|issubclass|torch\.|np\.)([\w.]+\(\s*[\w.]+\s*,)"
)
_LONG = 60
"""In a longer function, two calls of one network alone are no sign of guidance."""


@dataclass
class _Chunk:
    name: str
    line: int
    indent: int
    is_class: bool
    text: str = ""
    signs: int = 0


def worthy_lines(text: str) -> list[int]:
    """The first lines of the functions that cut, subtract and multiply branches, with the functions they call.

    Line 0 stands for the module's own statements.
    """
    if _signs(text) != _ALL:
        return []
    chunks = _chunks(text)
    helpers: dict[str, int] = {}
    guides: dict[str, bool] = {}
    for chunk in chunks:
        chunk.signs = _signs(chunk.text)
        if chunk.signs and not chunk.is_class:
            helpers[chunk.name] = helpers.get(chunk.name, 0) | chunk.signs
    if not any(chunk.signs for chunk in chunks):
        return []
    found: list[int] = []
    for chunk in chunks:
        signs, called = chunk.signs, set[str]()
        if not signs & (_CUT | _MULTIPLY):
            continue
        if signs != _ALL:
            called = set(_CALLED.findall(chunk.text)) & helpers.keys()
            for name in called:
                signs |= helpers[name]
        if signs != _ALL:
            continue
        if called and not guides:
            guides = {c.name: True for c in chunks if _guides(c.text)}
        if _guides(chunk.text) or _calls_twice(chunk.text) or any(name in guides for name in called):
            found.append(chunk.line)
    return found


def _signs(text: str) -> int:
    """Which of the three signs of guidance a text has."""
    signs = 0
    if _has(text, _MULTIPLY_WORDS) or _MULTIPLY_PATTERN.search(text):
        signs |= _MULTIPLY
    if _has(text, _SUBTRACT_WORDS) or _SUBTRACT_PATTERN.search(text):
        signs |= _SUBTRACT
    if (
        _has(text, _CUT_WORDS)
        or _CUT_PATTERN.search(text)
        or _LATER_PATTERN.search(text)
        or _SPLIT_PATTERN.search(text)
    ):
        signs |= _CUT
    return signs


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def _guides(text: str) -> bool:
    """Whether a text names branches of guidance, or halves a batch."""
    return _has(text.lower(), _GUIDE_WORDS) or _GUIDE_PATTERN.search(text) is not None


def _calls_twice(text: str) -> bool:
    """Whether a short function calls anything twice on one argument, as it calls a network for each branch."""
    return text.count("\n") <= _LONG and any(count > 1 for count in Counter(_CALLED_ON.findall(text)).values())


def _chunks(text: str) -> list[_Chunk]:
    """The module's own statements, and every function with those inside it."""
    current = _Chunk("", 0, -1, is_class=True)
    chunks = [current]
    start, line, counted = 0, 1, 0
    for match in _BEGINS.finditer(text):
        indent, is_class = len(match[1]), match[3] is not None
        if not current.is_class and indent > current.indent:
            continue  # inside the function
        line += text.count("\n", counted, match.start())
        counted = match.start()
        current.text += text[start : match.start()]
        start = match.start()
        current = _Chunk(match[4], line, indent, is_class)
        chunks.append(current)
    current.text += text[start:]
    return chunks
