import json
import shutil

from tiny_model import write_tiny_adapters, write_tiny_distilled


def test_the_search_prints_a_setting_that_generate_takes_and_keeps_its_journal(run, tiny_model, tmp_path):
    code, out, _ = run(
        "tune", "--model", tiny_model, "--num-inference-steps", 2, "--sampler", "ddim", "--captions", 2, "--held-out",
        2, "--evaluations", 6, "--device", "cpu", "--out", tmp_path, "--lora", write_tiny_adapters(tmp_path / "style"),
    )  # fmt: skip
    assert code == 0
    option, scales = out.split()[:2]
    assert option == "--cfg-scale"
    assert len(scales.split(",")) == 4
    assert "lora 1: style*1" in json.loads((tmp_path / "tuning.json").read_text())["search"]["weights"]
    words = ("--model", tiny_model, "--steps", 2, "--sampler", "ddim", option, scales, "--out", tmp_path / "clips")
    assert run("generate", "a red circle stays still", *words)[0] == 0


def test_what_guides_nothing_is_refused(refused, tiny_model):
    assert "guides nothing" in refused("tune", "--model", tiny_model, "--guidance-scale", 1)


def test_the_journal_of_fast_settings_is_of_one_distilled_network(run, refused, tiny_model, tmp_path):
    folder = write_tiny_distilled(shutil.copytree(tiny_model, tmp_path / "model"))
    words = (
        "tune", "--model", folder, "--fast", "--captions", 2, "--held-out", 2, "--evaluations", 6, "--device", "cpu",
        "--out", tmp_path,
    )  # fmt: skip
    assert run(*words)[0] == 0
    search = json.loads((tmp_path / "tuning.json").read_text())["search"]
    assert search["distilled"]
    assert "denoiser-fast" in search["weights"]
    write_tiny_distilled(folder, seed=1)
    assert "is of another search" in refused(*words)
