import pytest
import torch

from guidon.models.text.features import load_features
from released import make_t5

for library in ("transformers", "sentencepiece"):
    pytest.importorskip(library)


def test_captions_are_encoded_and_added_to(run, refused, tmp_path):
    t5, out = make_t5(tmp_path / "t5"), tmp_path / "captions.safetensors"
    options = ("--text-encoder", t5, "--out", out, "--max-length", 20, "--device", "cpu")
    code, printed, _ = run("encode", "a lighthouse", "", *options)
    assert code == 0
    assert str(out) in printed
    before = load_features(out, 20)
    assert before.prompts == ["a lighthouse", ""]
    assert run("encode", "waves", *options)[0] == 0
    after = load_features(out, 20)
    assert after.prompts == ["a lighthouse", "", "waves"]
    assert torch.equal(after.features[:2], before.features)
    assert "was encoded in fp32, --dtype is bf16: write to a new file" in refused(
        "encode", "x", *options, "--dtype", "bf16"
    )
