import numpy as np

from tiny_model import write_tiny_adapters

PROMPT = "a red circle moves left on a white background"


def test_guidance_is_split_by_channel(run, tiny_model, tmp_path):
    code, out, _ = run(
        "spectrum", PROMPT, "--model", tiny_model, "--steps", 3, "--looks", 2, "--guidance-scale", 2, "--cfg-channel",
        "0-2", "--interval", "0,1", "--device", "cpu", "--out", tmp_path / "out", "--lora", write_tiny_adapters(tmp_path / "style"),
    )  # fmt: skip
    assert code == 0
    assert "sampled at scale 2 on first 3 channels, 3 steps, guided from 0% to 100% of sampling:" in out
    assert "| channel | energy | cosine with cond | luminance | chroma | structure | motion |" in out
    assert "\ncosine with cond: above 0, guidance makes the channel stronger" in out
    assert {"spectrum.npz", "spectrum.png"} == {path.name for path in (tmp_path / "out").iterdir()}
    with np.load(tmp_path / "out" / "spectrum.npz") as arrays:
        assert [part.rpartition(" ")[0] for part in arrays["weights"]][-1] == "lora 1: style*1"
        assert arrays["scale"].tolist() == [[2, 2, 2, 1]] * 3


def test_what_guides_nothing_is_refused(refused, tiny_model):
    assert "--lora gone is not there" in refused("spectrum", PROMPT, "--model", tiny_model, "--lora", "gone")
    assert "guides nothing" in refused("spectrum", PROMPT, "--model", tiny_model, "--cfg-scale", 1)
    assert "no PROMPT was given, as in: guidon spectrum" in refused("spectrum")
