def test_the_search_prints_a_setting_that_generate_takes_and_keeps_its_journal(run, tiny_model, tmp_path):
    code, out, _ = run(
        "tune", "--model", tiny_model, "--num-inference-steps", 2, "--sampler", "ddim", "--captions", 2, "--held-out",
        2, "--evaluations", 6, "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    option, scales = out.split()[:2]
    assert option == "--cfg-scale"
    assert len(scales.split(",")) == 4
    assert (tmp_path / "tuning.json").exists()
    words = ("--model", tiny_model, "--steps", 2, "--sampler", "ddim", option, scales, "--out", tmp_path / "clips")
    assert run("generate", "a red circle stays still", *words)[0] == 0


def test_what_guides_nothing_is_refused(refused, tiny_model):
    assert "guides nothing" in refused("tune", "--model", tiny_model, "--guidance-scale", 1)
