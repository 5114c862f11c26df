"""The commands and snippets of the README and of the pages in docs/."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    """The path from the root of the repository."""
    line: int
    """The number of its first line."""
    text: str
    file: str
    """The file that the line above says to write it as, as in "Write this as `mine.yaml`:"."""

    @property
    def name(self) -> str:
        return name(self.page, self.line, self.text)


@dataclass(frozen=True)
class Command:
    """One command of a ``bash`` block."""

    page: str
    line: int
    text: str

    @property
    def name(self) -> str:
        return name(self.page, self.line, self.text)

    @cached_property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def writes(self) -> str:
        """The file or folder that it writes."""
        words = self.words
        if words[1:2] == ["train"]:  # the recipe says it
            recipes = [block for block in blocks("yaml") if (block.page, block.file) == (self.page, words[2])]
            return re.findall(r"^out: (\S+)", recipes[-1].text, re.M)[0] if recipes else ""
        named = [after for word, after in pairwise(words) if word in ("--out", "-o")]
        return named[0] if named else "outputs" if "generate" in words else ""

    def reads(self, other: "Command") -> bool:
        """Whether a word of it names what an earlier command of the page wrote."""
        if not other.writes or "--dry-run" in other.words:
            return False
        words = self.words
        inputs = [word for before, word in pairwise(words) if before not in ("--out", "-o")]
        return any(word == other.writes or word.startswith(f"{other.writes}/") for word in inputs)


def name(page: str, line: int, text: str) -> str:
    """The name of a test: ``README.md:25 guidon generate a red circle``."""
    words = re.sub(r"[^\w.:=*/-]+", " ", text).split()
    return f"{page}:{line} {' '.join(words)[:60]}".strip()


def blocks(language: str) -> list[Block]:
    """The fenced blocks of a language on all pages."""
    found = []
    for path in PAGES:
        text = path.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.S | re.M):
            line = text.count("\n", 0, match.start(1)) + 1
            file = re.search(r" as `([\w./-]+)`[:,.]\s*\Z", text[: match.start()])
            found.append(Block(path.relative_to(ROOT).as_posix(), line, match[1], file[1] if file else ""))
    return found


def commands() -> list[Command]:
    """The commands of all ``bash`` blocks, in the order of the pages. A line that ends in a backslash goes on."""
    found = []
    for block in blocks("bash"):
        text = re.sub(r"\\\n *", lambda match: "\0", block.text)
        line = block.line
        for command in text.splitlines():
            if command.strip() and not command.startswith("#"):
                found.append(Command(block.page, line, command.replace("\0", "")))
            line += 1 + command.count("\0")
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, but for those on the web."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(page: Path) -> list[list[tuple[int, int]]]:
    """Of each table of a page, the number of each line and of the cells in it."""
    found, before = [], ""
    text = re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), page.read_text(), flags=re.S | re.M)
    for line, row in enumerate(text.splitlines(), 1):
        if row.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append((line, len(re.findall(r"(?<!\\)\|", row)) - 1))
        before = row
    return found
