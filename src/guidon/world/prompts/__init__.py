"""Reads the prompts that people write: what they ask for, in which words a model reads them, and what it cannot follow.

``captions.read_caption`` reads captions of one object, which are written in the world's words. A user's prompt may be
anything. ``PromptReader`` understands plurals, common synonyms and contractions, and finds what the model has no word
for, what contradicts itself, negations, second objects and attributes that are missing.

The words of a prompt are divided into noun phrases ("a small red circle", "on a white background") and the words
between them. Attributes are read from the phrases, directions and negations from the words between.

    lexicon    words that people use and the world does not, and what they stand for
    spelling   which known word a misspelt one stands for
    phrases    a text to words, and words to noun phrases
    meaning    what the words and phrases ask for, and what the model does not follow
    faults     what the model does not follow, in messages for people
    reader     all of this, with the words that one model knows
"""

from .faults import Fault, Prompt
from .reader import PromptReader

__all__ = ["Fault", "Prompt", "PromptReader"]
