"""The bytes of a safetensors file: the same for the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of contiguous CPU tensors and text fields.

    The library writes the text fields in an order that changes from process to process. Here they are sorted, so that
    equal content is equal bytes and has an equal hash.

    Args:
        tensors: by name.
        metadata: the text fields of the header.
    """
    written = save(dict(tensors), metadata=dict(metadata))
    end = 8 + int.from_bytes(written[:8], "little")  # the length of the header comes first
    header = json.loads(written[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + written[end:]
