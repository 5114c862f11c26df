"""``guidon config``."""

import json
import shlex

CONFIG = """
num_frames = 16
image_size = (256, 256)
model = dict(type="STDiT-XL/2", from_pretrained="w.pth")
scheduler = dict(type="iddpm", num_sampling_steps=9, cfg_scale=7.0)
prompt = ["a cat's dream"]
llm_refine = True
"""


def test_it_prints_a_command_for_a_shell_or_json(run, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    code, out, _ = run("config", path)
    command, left_out = out.splitlines()
    assert code == 0
    assert shlex.split(command)[:3] == ["guidon", "generate", "a cat's dream"]
    assert left_out.startswith("# left out: llm_refine: ")
    code, out, _ = run("config", path, "--open-sora", "1.0", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["version"] == "1.0"
    assert "3" in found["commands"][0]
    assert list(found["left_out"]) == ["llm_refine"]


def test_bad_input_is_refused_in_one_line(refused, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    assert "--open-sora '2.0' does not exist; valid: 1.0, 1.1, 1.2" in refused("config", path, "--open-sora", "2.0")
    assert "it is not there" in refused("config", tmp_path / "none.py")
    path.write_text(CONFIG.replace("STDiT-XL/2", "STDiT3-XL/2"))
    said = refused("config", path, "--open-sora", "1.1")
    assert "has a STDiT3, which Open-Sora has from 1.2 on: leave out --open-sora '1.1'" in said
    path.write_text(CONFIG.replace("iddpm", "lcm"))
    assert "asks for what no command does: scheduler.type: lcm is not one of" in refused("config", path)
    path.write_text("print('run')")
    assert "holds assignments such as seed = 42 only" in refused("config", path)
