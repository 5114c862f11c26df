"""A quick look at text: which functions could hold guidance of some channels. Most code need not be parsed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_CUT, _MULTIPLY, _SUBTRACT = 1, 2, 4
_ALL = _CUT | _MULTIPLY | _SUBTRACT

# Plain words are looked for first: Python finds them much faster than a pattern.
_CUT_WORDS = (
    "chunk(", "narrow(", "index_select(", "take(", "unbind(", "slice_in_dim(", "array_split(", "tensor_split(",
    "slice_scatter(", "index_copy(", "rearrange(", "slice(", "arange(", "tensor([", "split_with_sizes(",
)  # fmt: skip
_CUT_PATTERN = re.compile(r"\[\s*(?:(?::|\.\.\.)\s*,\s*(?:\.\.\.,\s*|:\s*,\s*)*:?\s*[^\]\s:,N]|:\s*\d{1,2}\s*\])")
_LATER_PATTERN = re.compile(r",\s*(?::\s*[\w.-]+|[\w.-]+\s*:)\s*[\],]")
_SPLIT_PATTERN = re.compile(r"split\(\s*[\w\[]")
_MULTIPLY_WORDS = (" * ", "*=", "lerp", "addcmul", "mul(", "mul_(", "multiply(", "alpha=")
_MULTIPLY_PATTERN = re.compile(r"\*(?<=[\w\])]\*)[\w(]")
_SUBTRACT_WORDS = (" - ", "= -", "(-", "return -", "-=", "lerp", "sub(", "sub_(", "subtract(", ".add(", ".add_(")
_SUBTRACT_PATTERN = re.compile(r"-(?<=[\w\])]-)[\w(]")
_GUIDE_WORDS = (
    "cfg", "guidance", "guided", "uncond", "classifier_free", "classifier-free", "null_", "_null", "negative_", "neg_",
    "_neg", "rearrange(", "empty_p", "empty_e",
)  # fmt: skip
_HALF_WORDS = (
    "chunk(", "// 2", "//2", "::2", "reshape(2", "view(2", "reshape((2", "null", "_u ", "_u,", "_u)", "_unc", " u ",
    " u,", " unc_", ", 2)", ", 2,",
)  # fmt: skip
# Each pattern begins with plain text, which Python finds quickly.
_GUIDE_PATTERNS = [
    re.compile(pattern)
    for pattern in (
        r"u(?<!\wu)(?!\w)", r"_u(?!\w)", r"u_(?<!\wu_)", r"unc_(?<!\wunc_)", r"_unc(?!\w)", r"null(?<!\wnull)(?!\w)",
        r"chunk\(\s*(?:\w+\s*,\s*)?(?:chunks\s*=\s*)?[23]\s*(?:\)|,\s*(?:dim|axis)?\s*=?\s*0)",
        r"view\(\s*\(?\s*[23]\s*,", r"reshape\(\s*\(?\s*[23]\s*,", r"split\([^\n]*,\s*[23]\s*[,)]",
        r"unbind\(\s*(?:\w+\s*,\s*)?(?:dim\s*=\s*)?0?\s*\)", r"unflatten\(\s*(?:\w+\s*,\s*)?(?:dim\s*=\s*)?0",
        r"\[\s*\d?::\s*2", r"\[\s*:\s*[\w.]+\s*\][^\n]*\[\s*[\w.]+\s*:\s*\]",
    )
]  # fmt: skip
_HALF_PATTERN = re.compile(r"(?:\)|\[0\]|\b[bn]|\b\w*batch\w*|\bbs)\s*//\s*2")
_BEGINS = re.compile(r"^([ \t]*)(?:(async[ \t]+)?def|(class))[ \t]+(\w+)", re.MULTILINE)
_CALLED = re.compile(r"(\w+)\(")
_CALLED_ON = re.compile(
    r"(?<![\w.])(?!is|get|has|set|assert|self\.assert|max|min|print|pow|torch\.|np\.|jnp\.|math\.|F\.|tf\.)"
    r"([\w.]+\(\s*[\w.]+\s*,)"
)
_CALLED_WITH_NUMBER = re.compile(r"(\w+)\([^()\n]*\b\d{1,2}\b")
_MANY = 40
_SHORT_FILE = 20_000
"""In a longer file, two calls of one network alone are no sign of guidance."""
_LONG_HELPER = 150
"""The most lines of a function that is followed where it is called."""
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
    if len(text) > _SHORT_FILE and not _has(text.lower(), (*_GUIDE_WORDS, *_HALF_WORDS)):
        return []
    if _signs(text) != _ALL:
        return []
    chunks = _chunks(text)
    helpers: dict[str, int] = {}
    texts: dict[str, str] = {}
    guides: dict[str, bool] = {}
    for chunk in chunks:
        chunk.signs = _signs(chunk.text)
        if chunk.signs and not chunk.is_class and chunk.text.count("\n") <= _LONG_HELPER:
            helpers[chunk.name] = helpers.get(chunk.name, 0) | chunk.signs
            texts[chunk.name] = texts.get(chunk.name, "") + chunk.text
    found: dict[int, _Chunk] = {}
    for chunk in chunks:
        signs, called = chunk.signs, set[str]()
        # What is missing may be in a helper: it computes with what was cut here, or cuts what is computed with here.
        missing = _ALL & ~signs
        if missing in (_CUT, _MULTIPLY, _SUBTRACT, _MULTIPLY | _SUBTRACT):
            useful = {name for name, sign in helpers.items() if sign & missing == missing}
            called = _called(useful, chunk.text)
            for name in called:
                signs |= helpers[name]
        if signs == _ALL and (
            _guides(chunk.text)
            or _calls_twice(chunk.text)
            or (missing != _CUT and any(_guides_once(name, texts, guides) for name in called))
        ):
            found[chunk.line] = chunk
    # Functions that call these with a number may say how many channels they guide.
    names = {chunk.name for chunk in found.values() if not chunk.is_class}
    for chunk in chunks if names else ():
        if chunk.line in found or not _called(names, chunk.text):
            continue
        if names & set(_CALLED_WITH_NUMBER.findall(chunk.text)):
            found[chunk.line] = chunk
    return list(found)


def _called(names: set[str], text: str) -> set[str]:
    """The functions of these names that a text calls."""
    if len(names) > _MANY:
        return names & set(_CALLED.findall(text))
    return {name for name in names if f"{name}(" in text}


def _signs(text: str) -> int:
    """Which of the three signs of guidance a text has."""
    signs = 0
    if _has(text, _MULTIPLY_WORDS) or ("*" in text and _MULTIPLY_PATTERN.search(text)):
        signs |= _MULTIPLY
    if _has(text, _SUBTRACT_WORDS) or ("-" in text and _SUBTRACT_PATTERN.search(text)):
        signs |= _SUBTRACT
    if ("[" in text and (_CUT_PATTERN.search(text) or _LATER_PATTERN.search(text))) or _has(text, _CUT_WORDS):
        return signs | _CUT
    return signs | _CUT if "split(" in text and _SPLIT_PATTERN.search(text) else signs


def _has(text: str, words: tuple[str, ...]) -> bool:
    for word in words:  # noqa: SIM110 - faster than any()
        if word in text:
            return True
    return False


def _guides(text: str) -> bool:
    """Whether a text names branches of guidance, or halves a batch."""
    if _has(text.lower(), _GUIDE_WORDS) or any(pattern.search(text) for pattern in _GUIDE_PATTERNS):
        return True
    return _has(text, ("// 2", "//2")) and _HALF_PATTERN.search(text) is not None


def _guides_once(name: str, texts: dict[str, str], known: dict[str, bool]) -> bool:
    if name not in known:
        known[name] = _guides(texts[name])
    return known[name]


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
