import json
import shutil

import pytest

from guidon.analysis import matching
from tiny_model import write_tiny_adapters, write_tiny_distilled


def test_the_match_is_printed_and_written_and_goes_on_where_it_was(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "STEPS_OF_GRID", (1, 5 / 3))
    words = (
        "match", "--model", tiny_model, "--guidance-scale", 3, "--cfg-channel", "3", "--to", "all", "--captions", 2,
        "--num-inference-steps", 2, "--sampler", "ddim", "--metric", "video", "--device", "cpu", "--out", tmp_path / "m",
        "--lora", write_tiny_adapters(tmp_path / "style"),
    )  # fmt: skip
    code, out, _ = run(*words)
    assert code == 0
    assert "lora 1: style*1" in json.loads((tmp_path / "m" / "plan.json").read_text())["weights"]
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


def test_fast_settings_and_precisions_hold_for_all_that_is_matched(run, refused, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "STEPS_OF_GRID", (1,))
    folder = write_tiny_distilled(shutil.copytree(tiny_model, tmp_path / "model"))
    words = ("match", "--model", folder, "--captions", 2, "--fast", "--dtype", "bf16", "--device", "cpu")
    code, out, _ = run(*words, "--out", tmp_path / "m")
    assert code == 0
    assert "video: " in out
    assert "energy: " not in out
    settings = json.loads((tmp_path / "m" / "plan.json").read_text())["settings"].values()
    assert {(own["distilled"], own["dtype"], own["steps"]) for own in settings} == {(True, "bf16", 3)}
    assert "a distilled network runs one: leave it out" in refused(*words, "--metric", "energy")
    assert "--fast decides --steps itself" in refused(*words, "--steps", 2)
    assert "--reuse" in refused(*words, "--reuse", 2)
    adapters = write_tiny_adapters(tmp_path / "style")
    assert "distilled without adapters: leave out --fast or --lora" in refused(*words, "--lora", adapters)
