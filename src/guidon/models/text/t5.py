"""T5 as the originals use it. Captions are cleaned and padded to a fixed length, and only T5's encoder runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.extras import require
from ...core.progress import OnStep
from ...core.reading import read_object
from ...core.warn import warn
from ..finding import check_t5
from ..pretrained import read_network, reading_quietly

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": None}


class T5Encoder:
    """A ``TextEncoder`` that uses T5.

    Open-Sora 1.0 and PixArt pad captions to 120 tokens, Open-Sora 1.1 to 200, PixArt-Sigma to 300. All of them run the
    encoder under the padding mask and clean captions as DeepFloyd IF does, twice.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int, clean: bool, description: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.max_length, self.clean = model, tokenizer, max_length, clean
        self.description = description

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        max_length: int = 120,
        dtype: str = "fp32",
        device: torch.device | str = "cpu",
        clean: bool = True,
    ) -> T5Encoder:
        """Read encoder and tokenizer from a folder in hub layout, or from its ``text_encoder`` and ``tokenizer``.

        Args:
            folder: config.json, the weights, and spiece.model or tokenizer.json.
            max_length: tokens a caption is padded or cut to.
            dtype: "fp32" as the originals, "bf16", "fp16", or "int8" (needs bitsandbytes and a GPU).
            device: where it runs.
            clean: clean captions as the originals do; needs ftfy and beautifulsoup4.

        Raises:
            InputError: a file is missing, damaged or incomplete, the tokenizer is another model's, the model is no
                T5, or a library is missing.
        """
        weights, words = check_t5(folder, max_length, dtype)
        transformers = require("transformers", "the T5 text encoder", "t5")
        if clean:
            _require_cleaning()
        with reading_quietly(weights, "T5"):
            config = _read_config(transformers, weights)
        with reading_quietly(words, "T5"):
            tokenizer = _read_tokenizer(transformers, words, config)
        with reading_quietly(weights, "T5"):
            model = _read_model(transformers, weights, config, dtype, device)
        description = {"encoder": model.config.architectures, "max_length": max_length, "clean": clean, "dtype": dtype}
        description |= {"features": model.config.d_model, "weights": _fingerprint(model)}
        return cls(model if dtype == "int8" else model.to(device), tokenizer, max_length, clean, description)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, max_length: int) -> T5Encoder:
        """An encoder and a tokenizer that are in memory, such as those of a diffusers pipeline. They stay as they are.

        Args:
            model: transformers' ``T5EncoderModel``.
            tokenizer: its tokenizer.
            max_length: tokens a caption is padded or cut to.

        Raises:
            InputError: the libraries that clean captions are missing.
        """
        _require_cleaning()
        description = {"encoder": model.config.architectures, "max_length": max_length, "clean": True}
        return cls(model, tokenizer, max_length, True, description)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, max_length) each. A longer prompt is cut, with a warning."""
        if not prompts:
            raise InputError("there is no prompt to encode: give at least one, which may be the empty one, ''")
        texts = [clean_caption(prompt) if self.clean else prompt.lower().strip() for prompt in prompts]
        for prompt, text in zip(prompts, texts, strict=True):
            beyond = len(self.tokenizer(text).input_ids) - self.max_length
            if beyond > 0:
                warn(f"{beyond} tokens beyond {self.max_length} are cut from {prompt[:60]!r}")
        batch = self.tokenizer(
            texts, max_length=self.max_length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return batch.input_ids, batch.attention_mask

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], on_step: OnStep | None = None) -> tuple[Tensor, Tensor]:
        """Features (B, max_length, F) and token mask (B, max_length). Every prompt is encoded by itself.

        ``on_step`` is called as ``on_step(done, total)`` after every prompt.
        """
        ids, mask = (part.to(self.model.device) for part in self.tokenize(prompts))
        rows: list[Tensor] = []
        for k in range(len(ids)):
            rows.append(self.model(input_ids=ids[k : k + 1], attention_mask=mask[k : k + 1]).last_hidden_state)
            if on_step:
                on_step(k + 1, len(ids))
        return torch.cat(rows), mask


def _require_cleaning() -> None:
    require("ftfy", "cleaning captions", "t5")
    require("bs4", "cleaning captions", "t5", package="beautifulsoup4")


def clean_caption(prompt: str) -> str:
    """The caption as the originals clean it: by DeepFloyd IF's rules, twice. diffusers has the code."""
    module = require("diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha", "cleaning captions", "t5")
    cleaner: Any = module.PixArtAlphaPipeline
    return cleaner._clean_caption(cleaner, cleaner._clean_caption(cleaner, prompt))


def _read_config(transformers: Any, folder: Path) -> Any:
    read_object(folder / "config.json", "the configuration of T5")  # refuses what the library would stumble over
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in ("t5", "mt5"):
        raise InputError(f"{folder} holds a {config.model_type} model, expected t5")
    return config


def _read_tokenizer(transformers: Any, folder: Path, config: Any) -> Any:
    tokenizer = transformers.T5TokenizerFast.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > config.vocab_size or tokenizer.eos_token_id != config.eos_token_id:
        raise InputError(
            f"the tokenizer in {folder} is damaged or another model's: it has {len(tokenizer)} tokens and ends on "
            f"{tokenizer.eos_token_id}, the model reads {config.vocab_size} and ends on {config.eos_token_id}"
        )
    return tokenizer


def _read_model(transformers: Any, folder: Path, config: Any, dtype: str, device: torch.device | str) -> Any:
    options: dict[str, Any] = {}
    if dtype == "int8":
        missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
        if missing:  # they are not in our extras, because they are useful only with a GPU
            raise InputError(f"T5 in 8 bits needs {' and '.join(missing)}: pip install {' '.join(missing)}")
        options = {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
        options |= {"device_map": {"": str(device)}, "dtype": None}
    return read_network(transformers.T5EncoderModel, folder, config, DTYPES[dtype], **options)


def _fingerprint(model: Any) -> str:
    """A short hash of the first embeddings. It distinguishes models of one architecture without reading gigabytes."""
    rows = model.get_input_embeddings().weight[:64].float().cpu()
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
