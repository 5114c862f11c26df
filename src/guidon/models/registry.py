"""All model families. A new family is a folder beside this file, imported here, and an entry in ``FAMILIES``."""

from __future__ import annotations

from ..core.errors import InputError, nearest, setting
from . import dit, mmdit, pixart, small, stdit, stdit2, stdit3, trained
from .family import Exact, Family

FAMILIES: tuple[Family, ...] = (
    small.FAMILY,
    stdit.FAMILY,
    stdit2.FAMILY,
    stdit3.FAMILY,
    dit.FAMILY,
    pixart.FAMILY,
    mmdit.FAMILY,
    trained.FAMILY,
)


def find_family(name: str) -> Family:
    """The family of that name.

    Raises:
        InputError: there is none of that name.
    """
    families = {family.name: family for family in FAMILIES}
    if name not in families:
        raise InputError(f"the model family {name!r} does not exist{nearest(name, families)}")
    return families[name]


def replays() -> dict[str, Exact]:
    """All originals that can be replayed exactly, by the name that the setting ``exact`` takes."""
    return {name: exact for family in FAMILIES for name, exact in family.replays.items()}


def find_replay(name: str) -> Exact:
    """The replay of that name.

    Raises:
        InputError: there is none of that name.
    """
    known = replays()
    if name not in known:
        raise InputError(f"{setting('exact')} {name!r} does not exist{nearest(name, known)}")
    return known[name]
