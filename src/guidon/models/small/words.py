"""How a model folder reads prompts: by the words of its text encoder, which are in the header of its file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ... import world
from ..family import ReadPrompt

SHOWN = 60  # letters of a prompt that a message repeats
COMPARED = 10_000  # words of a vocabulary among which the nearest is sought


@dataclass(frozen=True)
class Words:
    """The words that a text encoder knows."""

    vocabulary: Mapping[str, str]
    """Every known spelling, and the canonical word that it is read as."""
    most: int
    """How many words of a prompt it reads."""
    own: bool = False
    """Whether they are the words of a user's captions, and not of the world."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Words | None:
        """Those in the configuration of a text encoder; None if they are not valid, which the loader explains."""
        vocabulary, most = config.get("vocabulary"), config.get("max_length", 20)
        if not isinstance(vocabulary, dict) or not isinstance(most, int):
            return None
        if not all(isinstance(text, str) for text in vocabulary.values()):
            return None
        return cls(vocabulary, most, config.get("own") is True)

    @cached_property
    def reader(self) -> world.PromptReader | None:
        """The world's reader of prompts, if all words are the world's, in the same meaning."""
        if self.own or not self.vocabulary or not self.vocabulary.items() <= world.vocabulary().items():
            return None
        return world.PromptReader(self.vocabulary, self.most)

    def read_prompts(self, prompts: Sequence[str], negative: bool) -> list[ReadPrompt]:
        """See ``Facts.read_prompts``."""
        if self.reader is None:
            return [self._read_words(prompt) for prompt in prompts]
        read = [self.reader.negative(prompt) if negative else self.reader(prompt) for prompt in prompts]
        return [ReadPrompt(found.read_as, found.refusal, found.warning, found.can_be_sampled) for found in read]

    def describe(self) -> dict[str, str]:
        """What prompts may say, by kind of word."""
        return {"words": ", ".join(sorted(self.vocabulary))} if self.reader is None else self.reader.describe()

    def _read_words(self, prompt: str) -> ReadPrompt:
        """A prompt in words of which nothing is known but whether the model has them."""
        words = re.findall(r"[^\W_]+", prompt.lower())
        known = [word for word in words if word in self.vocabulary]
        unknown = [word for word in dict.fromkeys(words) if word not in self.vocabulary]
        if not unknown:
            return ReadPrompt(prompt)  # a prompt that is empty or too long is refused by the tokenizer
        named = ", ".join(self._with_nearest(word) for word in unknown[:5])
        fault = f"unknown word{'s' * (len(unknown) > 1)} {named}"
        refusal = None if known else f"the prompt {_cut(prompt)!r} cannot be followed: {fault}"
        warning = f"the prompt {_cut(prompt)!r} is followed in part: {fault}"
        return ReadPrompt(" ".join(known), refusal, warning, bool(known))

    def _with_nearest(self, word: str) -> str:
        close = difflib.get_close_matches(word[:SHOWN], list(self.vocabulary)[:COMPARED], n=1, cutoff=0.6)
        return f"{_cut(word)!r} (nearest: {close[0]})" if close else repr(_cut(word))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
