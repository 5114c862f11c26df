"""The commands of a report, parsed by the command line itself."""

import html
import re
import shlex

import pytest

from guidon import cli
from guidon.core.errors import InputError
from guidon.studies.cells import cells_of, read_plan
from guidon.studies.report import write_report
from guidon.studies.report.command import generate_command, stand_ins
from studies.written import SETTINGS, frozen, write_study

CAPTIONS = ["a red circle moves left", "a blue square moves up"]


def test_commands_make_the_cells_setting_again(tmp_path, monkeypatch):
    """Each command of the page, parsed by the command line itself, asks for what the cell's manifest says."""
    folder = write_study(tmp_path / "results", prompts=2, seeds=2, captions=CAPTIONS)
    page = write_report(folder, videos=False)[0].read_text()
    asked = []

    class Pipe:
        """Notes what it is asked for, and makes nothing."""

        def generate(self, request, **_):
            asked.append(request.model_dump(mode="json"))
            raise InputError("noted")

    monkeypatch.setattr("guidon.pipeline.load", lambda *_, **__: Pipe())
    monkeypatch.chdir(tmp_path)
    commands = [html.unescape(text) for text in re.findall(r"<code>(guidon generate .*?)</code>", page)]
    cells = cells_of(read_plan(folder), folder)
    assert len(commands) == len(cells)
    for command in commands:
        with pytest.raises(SystemExit):
            cli.main(shlex.split(command)[1:])
    made = {(*r["prompts"], len(r["samples"]), r["cfg_channels"], r["cfg_scale"]) for r in asked}
    assert made == {(CAPTIONS[cell.prompt], cell.sample + 1, *SETTINGS[cell.setting]) for cell in cells}
    assert {(r["steps"], r["sampler"]) for r in asked} == {(5, "ddim")}
    assert {r["timing"] for r in asked} == {"interval:0,1"}  # as the cells' constant, whatever the model's own
    assert {(*r["prompts"], r["seed"]) for r in asked} == {(CAPTIONS[0], 3), (CAPTIONS[1], 4)}


def test_a_prompt_that_begins_with_a_dash_is_no_option(monkeypatch):
    asked = []

    class Pipe:
        """Notes what it is asked for, and makes nothing."""

        def generate(self, request, **_):
            asked.append(request)
            raise InputError("noted")

    monkeypatch.setattr("guidon.pipeline.load", lambda *_, **__: Pipe())
    generation = frozen("3", 2.0) | {"prompts": ["- red circle"], "samples": [0], "negative_prompt": "- blue square"}
    with pytest.raises(SystemExit):
        cli.main(shlex.split(generate_command(generation, force=True))[1:])
    assert [(one.prompts, one.negative_prompt) for one in asked] == [(("- red circle",), "- blue square")]


def test_files_of_which_a_plan_holds_hashes_are_stood_in_for(tmp_path):
    folder = write_study(tmp_path / "results", prompts=1, weights=("lora 1: style*0.8",))
    page = write_report(folder, videos=False)[0].read_text()
    assert page.count("--model guidon-small --lora FOLDER/style=0.8 --cfg-scale") == len(SETTINGS)
    assert "FILE and FOLDER stand for the files of the model" in page

    def spelled(model, *weights, **more):
        asked = {"weights": dict.fromkeys(weights, "0") | more, "model": model, "compile": bool(more)}
        plan = read_plan(folder).model_copy(update=asked)
        generation = plan.request("three", slice(1)).model_dump(mode="json") | {"model": model}
        command = generate_command(generation, parts=stand_ins(plan))
        return command.partition(f"{model} ")[2].partition("--cfg-scale")[0].strip()

    assert spelled("dit-xl-2-256", "checkpoint", "vae") == "--checkpoint FILE --vae FOLDER"
    assert spelled("pixart-xl-2-256", "checkpoint", "text") == "--checkpoint FILE --features FILE"
    t5 = "--compile --checkpoint FILE --text-encoder FOLDER --text-dtype bf16"
    assert spelled("pixart-xl-2-256", "checkpoint", "text", text_dtype="bf16") == t5
    assert spelled("runs/mine/model", "checkpoint", "vae") == ""  # a folder brings its own
    assert spelled("runs/mine/model", "checkpoint", "text", text_dtype="fp16") == "--compile --text-dtype fp16"


def test_what_the_command_line_has_no_option_for_is_made_from_the_manifest():
    generation = frozen("3", 2.0) | {"prompts": ["x"], "samples": [0]}
    assert generate_command(generation).startswith("guidon generate x --model guidon-small --cfg-scale 2 ")
    assert generate_command(generation | {"rotation": 1}) == "guidon generate --from manifest.json"
    weak = generate_command(generation | {"guidance": "autoguidance"})
    assert weak == "guidon generate --from manifest.json --weak FOLDER"
    loaded = {"weak": "small", "offload": "stages"}
    assert generate_command(generation, parts=loaded) == generate_command(generation, parts={"offload": "stages"})
    assert "--weak small" in generate_command(generation | {"guidance": "autoguidance"}, parts=loaded)


def test_only_what_is_not_the_default_is_written():
    plain = frozen("3", 2.0) | {"prompts": ["x"], "samples": [0]}
    assert "--guidance" not in generate_command(plain)
    command = generate_command(plain | {"guidance": "apg", "eta": 0.5, "cfg_scale": [1.0, 2.5], "timing": "linear"})
    assert "--spacing" not in command
    assert "--spacing quadratic" in generate_command(plain | {"spacing": "quadratic"})
    for words in ("--guidance apg", "--eta 0.5", "--cfg-scale 1,2.5", "--ramp linear"):
        assert words in command
    growing = generate_command(plain | {"timing": "exponential:0.7"})
    assert "--ramp exponential:0.7" in growing


@pytest.mark.parametrize("more", [{}, {"distilled": True, "spacing": "at:999,500"}])
def test_the_precisions_are_written_even_where_they_are_the_usual_ones(more):
    """A model such as Open-Sora 1.2 has another one of its own, fast settings have, and "auto" is a machine's choice."""
    generation = frozen("3", 2.0) | {"prompts": ["x"], "samples": [0]} | more
    assert "--dtype fp32 --decode-dtype fp32" in generate_command(generation)
    rounded = generation | {"dtype": "fp16", "decode_dtype": "bf16"}
    command = generate_command(rounded, parts={"dtype": "auto", "decode_dtype": "auto", "offload": "stages"})
    assert "--offload stages --cfg-scale" in command
    assert "--dtype fp16 --decode-dtype bf16" in command
    assert "auto" not in command
    rotated = generate_command(generation | {"rotation": 1}, parts={"decode_dtype": "auto"})
    assert rotated == "guidon generate --from manifest.json"  # which holds the precisions


def test_one_scale_for_each_channel_and_fast_settings_are_spelled_as_they_are_given():
    plain = frozen("3", 2.0) | {"prompts": ["x"], "samples": [0]}
    each = {key: value for key, value in plain.items() if key != "cfg_channels"} | {"cfg_scale": [1 / 3, 2.0, 1.0]}
    assert "--cfg-scale 0.3333333333333333,2,1 --seed" in generate_command(each)
    fast = generate_command(plain | {"distilled": True, "spacing": "at:999,500", "dtype": "bf16", "size": [32, 64]})
    assert "--cfg-scale 2 --fast --cfg-channels 3" in fast
    assert fast.endswith("--dtype bf16 --decode-dtype fp32 --size 32x64")
    for left_out in ("--steps", "--sampler", "--spacing", "--interval"):
        assert left_out not in fast
