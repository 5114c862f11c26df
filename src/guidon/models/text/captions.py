"""A small text encoder for captions of a fixed vocabulary, such as those of Guidon's world."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ...core.warn import warn
from ..parts.layers import sincos_1d

SHOWN = 60  # letters of a prompt or a word that a message repeats
MOST_LAYERS = 100  # layers are made before the weights are compared, and each takes time
MOST_POSITIONS = 1 << 24  # values in the table of positions, which is made before the weights are compared


def words_of(text: str) -> list[str]:
    """The words of a text. Case, punctuation and hyphens are ignored."""
    return re.findall(r"[^\W_]+", text.lower())


@dataclass(frozen=True)
class CaptionEncoderConfig:
    """The shape of a ``CaptionEncoder``."""

    vocabulary: Mapping[str, str] = field(default_factory=dict[str, str])
    """Every known spelling, and the canonical word that it is read as."""
    features: int = 64
    """Width of the features."""
    layers: int = 2
    heads: int = 4
    """Attention heads of a layer."""
    max_length: int = 20
    """Words that a caption is padded to."""
    own: bool = False
    """Whether the words are those of a user's captions. They are then not read as words of the world."""

    @property
    def stored(self) -> dict[str, Any]:
        """The configuration as a file holds it: without ``own`` where it is the default, as in earlier versions."""
        values = asdict(self)
        return values if self.own else {name: value for name, value in values.items() if name != "own"}


class WordTokenizer:
    """Words to ids by a fixed vocabulary. Id 0 is padding. Case, punctuation and hyphens are ignored."""

    def __init__(self, vocabulary: Mapping[str, str], max_length: int) -> None:
        self.vocabulary = dict(vocabulary)
        self.max_length = max_length
        self.ids = {word: k + 1 for k, word in enumerate(sorted(set(vocabulary.values())))}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def __call__(self, prompt: str) -> list[int]:
        """Ids of a prompt's known words. A warning names the unknown ones.

        Raises:
            InputError: no word is known, or there are too many.
        """
        short = prompt if len(prompt) <= SHOWN else prompt[: SHOWN - 1] + "…"
        words = words_of(prompt)
        if not words:
            raise InputError(
                f"the prompt {short!r} is empty: describe a scene, e.g. 'a red circle moves left on a white background'"
            )
        known = [self.vocabulary[word] for word in words if word in self.vocabulary]
        unknown = list(dict.fromkeys(word for word in words if word not in self.vocabulary))
        if not known:
            raise InputError(f"no word of the prompt {short!r} is known to this model")
        if unknown:
            named = ", ".join(repr(word[:SHOWN]) for word in unknown[:5])
            warn(f"words unknown to this model are left out of {short!r}: {named}")
        if len(known) > self.max_length:
            raise InputError(
                f"the prompt has {len(known)} known words, this model reads {self.max_length}: shorten {short!r}"
            )
        return [self.ids[word] for word in known]


class CaptionEncoder(nn.Module):
    """A ``TextEncoder``: word embeddings, sinusoidal positions and a small pre-norm transformer encoder."""

    positions: Tensor

    def __init__(self, config: CaptionEncoderConfig) -> None:
        super().__init__()
        if config.layers > MOST_LAYERS:
            raise InputError(f"{config.layers:,} layers of a text encoder are too many: at most {MOST_LAYERS} are read")
        self.config = config
        self.tokenizer = WordTokenizer(config.vocabulary, config.max_length)
        width = config.features
        self.embedding = nn.Embedding(len(self.tokenizer), width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.context = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        if config.max_length * width > MOST_POSITIONS:
            raise InputError(f"captions of {config.max_length:,} words of {width:,} features are too long")
        # Make them on the CPU even if the module is built on the meta device, because no file holds them.
        positions = sincos_1d(width, torch.arange(config.max_length, device="cpu")).float()
        self.register_buffer("positions", positions, persistent=False)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Ids (B, max_length), zero-padded, on the CPU."""
        ids = torch.zeros(len(prompts), self.config.max_length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens = self.tokenizer(prompt)
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) -> features (B, L, F), zero at padding, and mask (B, L)."""
        mask = ids > 0
        features = self.context(self.embedding(ids) + 0.1 * self.positions, src_key_padding_mask=~mask)
        return features * mask[..., None], mask

    def known_ids(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, max_length) of captions to train on: unknown words and those beyond the length are left out."""
        ids = torch.zeros(len(captions), self.config.max_length, dtype=torch.long)
        vocabulary, numbers = self.tokenizer.vocabulary, self.tokenizer.ids
        for row, caption in enumerate(captions):
            known = [numbers[vocabulary[word]] for word in words_of(caption) if word in vocabulary]
            known = known[: self.config.max_length]
            ids[row, : len(known)] = torch.tensor(known, dtype=torch.long)
        return ids

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (B, L, F) and mask (B, L). Each prompt is encoded alone: its features do not depend on the others.

        Raises:
            InputError: a prompt cannot be read.
        """
        rows = [self(ids[None].to(self.embedding.weight.device)) for ids in self.tokenize(prompts)]
        return torch.cat([features for features, _ in rows]), torch.cat([mask for _, mask in rows])
