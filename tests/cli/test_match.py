import pytest

from guidon.analysis import matching


def test_the_match_is_printed_and_written_and_goes_on_where_it_was(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "STEPS_OF_GRID", (1, 5 / 3))
    words = (
        "match", "--model", tiny_model, "--guidance-scale", 3, "--cfg-channel", "3", "--to", "all", "--captions", 2,
        "--num-inference-steps", 2, "--sampler", "ddim", "--metric", "video", "--device", "cpu", "--out", tmp_path / "m",
    )  # fmt: skip
    code, out, _ = run(*words)
    assert code == 0
    assert (
        "scale 3 on channels 3 is this scale on channels all (with the same sum of scale - 1: 2.50):\n  video: " in out
    )
    assert out.endswith(f"{tmp_path / 'm' / 'equivalence.csv'}\n{tmp_path / 'm' / 'equivalence.png'}\n")
    monkeypatch.setattr("guidon.pipeline.Pipeline.generate", lambda *_, **__: pytest.fail("sampled again"))
    assert run(*words)[:2] == (0, out)


def test_what_cannot_be_matched_is_refused(refused, tiny_model):
    same = refused("match", "--model", tiny_model, "--cfg-channels", "all", "--to", "all")
    assert "--to all is the same choice as --cfg-channels all" in same
    words = ("match", "--model", tiny_model, "--captions", 2, "--metric", "vidio")
    assert "did you mean 'video'" in refused(*words)
