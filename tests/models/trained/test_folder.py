"""Folders of trained networks: what names their results."""

import guidon
from guidon.models.trained.config import TextSource
from tiny_model import write_named_t5, write_tiny_trained


def test_the_precision_of_t5_is_one_of_the_hashes_of_a_model(tmp_path):
    t5 = write_named_t5(tmp_path / "t5")
    folder = write_tiny_trained(tmp_path / "model", TextSource(kind="t5", folder=t5, tokens=16))
    exact, rounded = (guidon.load(folder, device="cpu", text_dtype=dtype).hashes for dtype in ("fp32", "bf16"))
    assert exact["text_dtype"] == "fp32"
    assert rounded == exact | {"text_dtype": "bf16"}
