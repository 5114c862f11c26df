"""Damaged files: a mutant of any file that Guidon reads is refused in one line, or read as the same.

Where a file carries no digest, it may also be read as another result. Each mutant is read in a process of its own with
limits of CPU and memory, so that a crash of a parser counts as a failure.
"""

import os
import shutil
from pathlib import Path

import pytest

from faults.harness import LONG, Trials, chance, child, count, trials
from faults.kinds import KINDS, Kind
from faults.mutations import BYTES

MUTANTS = 400, 5  # of each kind, in the long run and in CI
SLOW = {
    "T5 in hub layout",
    "an autoencoder in hub layout",
    "Open-Sora 1.2's autoencoder",
    "CLIP and DINO in hub layout",
    "a diffusers pipeline",
}  # kinds whose libraries take seconds to import


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library's threads do not survive a fork
    return tmp_path_factory.mktemp("mutants")


def damage(kind: Kind, source: Path, copy: Path, rng) -> str:
    """Copy the files and damage one. Returns what was done."""
    shutil.copytree(source, copy)
    files = sorted(path for path in copy.glob(kind.files) if path.is_file())
    path, other = rng.choice(files), rng.choice(files)
    data = path.read_bytes()
    change = kind.structure if kind.structure and rng.random() < kind.share else rng.choice(BYTES)
    said, changed = change(data, other.read_bytes(), rng)
    path.write_bytes(changed)
    if kind.mend is not None:
        kind.mend(copy)
    return f"{path.relative_to(copy)}: {said}"


def judge(found: Trials, kind: Kind, expected: str, said: str, copy: Path) -> bool:
    """Read a mutant and give its verdict. Returns whether it was read as another result."""
    ended = child(kind.read, copy)
    case = f"{said}: {ended}"[:600]
    if not ended.kept_limits:
        found.failed(f"over a limit ({ended.cpu:.1f} s, {ended.memory >> 20} MB): {case}", ended)
    elif ended.how == "refused":
        (found.refused if ended.one_line else found.failed)("" if ended.one_line else case, ended)
    elif ended.how != "returned":
        found.failed(f"{said}: {ended}: {ended.message[-1500:]}", ended)
    elif ended.value == expected:
        found.survived(ended=ended)
    elif kind.digested:
        found.failed(f"read as another result in spite of its digest: {said}", ended)
    else:
        found.survived(ended=ended)
        return True
    return False


@pytest.mark.parametrize("name", KINDS)
def test_mutants_are_refused_or_read_as_the_same(name, home):
    kind = KINDS[name]
    if name in SLOW and not LONG:
        pytest.skip("its libraries take seconds to import: make test-faults")
    source = home / "".join(letter if letter.isalnum() else "-" for letter in name)
    source.mkdir()
    kind.make(source)
    expected = kind.read(source)  # in this process, so that nothing is imported in the children
    rng, others = chance(name), 0
    mutants = max(2, round(count(*MUTANTS) / kind.cost))
    with trials(f"damaged: {name}{'' if kind.digested else ' (no digest)'}") as found:
        for number in range(mutants):
            copy = home / f"copy-{source.name}-{number}"
            try:
                try:
                    said = damage(kind, source, copy, rng)
                except Exception:
                    continue  # a mutation that cannot be written, such as one of a file without content
                others += judge(found, kind, expected, said, copy)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
    print(f"{name}: {mutants} tried, {others} read as another result")
