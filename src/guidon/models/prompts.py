"""Refuses prompts that a model cannot follow, before the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import InputError, setting
from ..core.warn import warn
from .family import Facts, ReadPrompt

WARNED = 5  # prompts of one call that are warned of one by one


def check_prompts(
    name: str, facts: Facts, prompts: Sequence[str], negative: Sequence[str] = (), *, force: bool | None = False
) -> dict[str, str]:
    """Refuse prompts that a model cannot follow, and warn of those that it follows in part.

    Args:
        name: the model's.
        facts: say how it reads prompts.
        prompts: texts as the user wrote them.
        negative: what to steer away from. Only words that the model does not know are wrong in it.
        force: warn of a prompt that cannot be followed, too, unless nothing in it can be read. None: nobody can ask
            for that, so the message does not propose it.

    Returns:
        What the text encoder is given in place of a prompt, where it is not the prompt itself.

    Raises:
        InputError: a prompt cannot be followed.
    """
    found: dict[str, ReadPrompt] = {}
    for texts, avoided in ((prompts, False), (negative, True)):
        new = [text for text in dict.fromkeys(texts) if text not in found]
        found |= zip(new, facts.read_prompts(new, avoided), strict=True)
    warnings: list[str] = []
    for text, read in found.items():
        if read.refusal is not None and not text.strip() and text in negative:
            raise InputError(f"{setting('negative_prompt')} is empty, which {name} cannot read: leave it out")
        if read.refusal is None:
            warnings += [read.warning] if read.warning is not None else []
        elif force and read.can_be_sampled:
            warnings.append(f"{read.refusal}; it is sampled anyway")
        else:
            force_it = f"; {setting('force')} samples it anyway" if read.can_be_sampled and force is not None else ""
            if force:
                force_it = f"; {setting('force')} cannot help, because the model can read nothing of it, or not all"
            raise InputError(f"{read.refusal}; `guidon models {name}` lists all words{force_it}")
    for text in warnings[:WARNED]:
        warn(text)
    if len(warnings) > WARNED:
        warn(f"{len(warnings) - WARNED} more prompts are not wholly followed")
    return {text: read.read_as for text, read in found.items() if read.read_as != text}
