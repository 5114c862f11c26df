from guidon.models.catalogue import find_preset


def test_every_model_is_listed_with_its_settings(run):
    code, out, err = run("models")
    assert (code, err) == (0, "")
    preset = find_preset("guidon-small")
    assert f"guidon-small: {preset.summary}\n" in out
    assert f"{preset.sampler}, {preset.steps} steps, scale {preset.cfg_scale:g}, channels {preset.cfg_channels}" in out
    assert "dit-xl-2-256: " in out
