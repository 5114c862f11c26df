"""Command lines that cannot be read: what was given, what was expected, what to write."""

import pytest
from typer.main import get_command

from guidon.cli.app import app
from guidon.cli.usage import COMMANDS_ELSEWHERE, ELSEWHERE

PROMPT = "a red circle moves left"
ROOT = get_command(app)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # commands
        (["generat"], "'generat' is not a command of guidon (did you mean `guidon generate`?)"),
        (["Evaluate"], "(did you mean `guidon evaluate`?)"),
        (["sample", PROMPT], "(did you mean `guidon generate`?)"),
        (["run", "x.yaml"], "(did you mean `guidon study run`?)"),
        (["study", "rum"], "'rum' is not a command of guidon study (did you mean `guidon study run`?)"),
        (["study", "x.yaml"], "(did you mean `guidon study run x.yaml`?)"),
        (["study", "zzz"], "; valid: run, report"),
        (["help", "generate"], "write guidon --help, or guidon COMMAND --help"),
        ([PROMPT], f'to make a video of it: guidon generate "{PROMPT}"'),
        # options that do not exist
        (["generate", PROMPT, "--sead", "1"], "--sead is not an option of guidon generate (did you mean --seed?)"),
        (["generate", PROMPT, "--prompt", "x"], "give the prompt alone: guidon generate"),
        (["generate", PROMPT, "--num_sampling_steps", "3"], "--num-sampling-steps is not an option of guidon generate"),
        (["generate", PROMPT, "--scheduler", "ddim"], "(did you mean --sampler?)"),
        (["generate", PROMPT, "-steps", "3"], "(did you mean --steps?)"),
        (["generate", PROMPT, "--zzzzzz"], "--zzzzzz is not an option of guidon generate: see guidon generate --help"),
        (["spectrum", PROMPT, "--fast"], "--fast is an option of `guidon generate`, not of `guidon spectrum`: leave it out"),
        (["spectrum", PROMPT, "--guidance", "apg"], "is an option of `guidon generate`, not of `guidon spectrum`"),
        (["--seed", "3", "generate"], "--seed is an option of `guidon generate`: write it after the command"),
        (["study", "--out", "x", "run"], "--out is an option of `guidon study run`: write it after the command"),
        (["generate", PROMPT, "--seeds", "3"], "(did you mean --seed?)"),
        (["generate", PROMPT, "--quiet"], "--quiet is not an option of guidon generate: see guidon generate --help"),
        (["train", "x.yaml", "--steps", "3"], "not of `guidon train`: leave it out; RECIPE.yaml holds the settings"),
        (["study", "run", "x.yaml", "--resume"], "leave it out; the same command resumes"),
        # texts that begin with a dash
        (["generate", "-a red circle"], "write it last, after --, as in guidon generate -- '-a red circle'"),
        (["generate", "--a red circle"], "write it last, after --"),
        (["generate", "-1"], "write it last, after --"),
        (["generate", "-circle"], "a text that begins with one comes last, after --"),
        # values
        (["generate", PROMPT, "--steps"], "--steps has no value: give --steps N; number of denoising steps"),
        (["generate", PROMPT, "--out", "--seed", "3"], "--out has no value, --seed follows it: give --out FOLDER"),
        (["generate", PROMPT, "--out", ""], "--out is empty: give guidon generate --out FOLDER"),
        (["generate", PROMPT, "--trace=yes"], "--trace takes no value: write --trace alone"),
        (["generate", PROMPT, "--steps", "many"], "--steps 'many' is not a whole number"),
        (["generate", PROMPT, "--num-inference-steps", "1.5"], "--steps '1.5' is not a whole number"),
        (["generate", PROMPT, "--seed", "-1"], "--seed '-1' is not a whole number of at least 0"),
        (["evaluate", "--cfg-scale", "2", "--cfg-scale", "x"], "--cfg-scale 'x' is not a number"),
        (["generate", PROMPT, "--edit-strength", "0,7"], "--edit-strength '0,7' is not a number: write 0.7"),
        (["study", "report", "x", "--max-mb", "0"], "--max-mb '0' is not a number of at least 0.1"),
        # arguments
        (["inspect"], "no FILE|FOLDER was given, as in: guidon inspect"),
        (["inspect", ""], "FILE|FOLDER is empty"),
        (["studio", "a"], "guidon studio takes options alone: leave out 'a'"),
        (["inspect", "a", "b"], "guidon inspect takes one FILE|FOLDER: leave out 'b'"),
        (["study", "run", "a.yaml"], "no --out FOLDER was given, as in: guidon study run"),
        (["study", "report", "a", "b"], "guidon study report takes one FOLDER: leave out 'b'"),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_read_is_refused_in_one_line(refused, words, message):
    assert message in refused(*words)


def test_a_decimal_comma_is_no_number_and_no_advice_where_the_number_is_not_valid(refused):
    for words in (["generate", PROMPT, "--steps", "1,5"], ["study", "report", "x", "--max-mb", "0,05"]):
        assert "write" not in refused(*words)


def test_an_empty_text_may_mean_something(asked):
    assert asked("generate", PROMPT, "--negative-prompt", "")[1]["negative_prompt"] == ""


@pytest.mark.parametrize(
    ("name", "option", "value", "found"),
    [
        ("guidance_scale", "cfg_scale", "2", 2),
        ("num-inference-steps", "steps", "3", 3),
        ("num_inference_steps", "steps", "3", 3),
        ("negative_prompt", "negative_prompt", "a square", "a square"),
        ("num-frames", "frames", "16", 16),
        ("num-videos-per-prompt", "samples", "2", (0, 1)),
        ("num_images_per_prompt", "samples", "2", (0, 1)),
        ("cfg_channel", "cfg_channels", "all", "all"),
    ],
)
def test_the_spellings_of_other_programs_are_accepted(asked, tmp_path, name, option, value, found):
    assert asked("generate", PROMPT, f"--{name}", value, "-o", tmp_path)[1][option] == found


def test_hints_name_what_exists():
    options = {name for param in ROOT.commands["generate"].params for name in param.opts}
    assert set(ELSEWHERE.values()) <= options
    assert not {f"--{name}" for name in ELSEWHERE} & options  # those are accepted
    commands = {*ROOT.commands, *(f"study {name}" for name in ROOT.commands["study"].commands), "--version"}
    assert set(COMMANDS_ELSEWHERE.values()) <= commands


@pytest.mark.parametrize(
    ("words", "beginning", "found"),
    [
        (("generate",), "--sa", "--sampler"),
        (("generate", "x", "--sampler"), "dd", "ddim"),
        (("generate", "x", "--guidance"), "cfg", "cfg-zero"),
        (("generate", "x", "--format"), "", "webp"),
        (("generate", "x", "--model"), "guidon", "guidon-small"),
        (("evaluate", "--split"), "L", "L2"),
        ((), "gen", "generate"),
        (("study",), "r", "report"),
    ],
)
def test_a_shell_completes_options_and_their_values(monkeypatch, run, words, beginning, found):
    monkeypatch.setenv("_GUIDON_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(("guidon", *words, beginning)))
    monkeypatch.setenv("COMP_CWORD", str(len(words) + 1))
    monkeypatch.setattr("sys.argv", ["guidon"])
    code, out, _ = run()
    assert code == 0
    assert found in out.split()
    assert all(word.startswith(beginning) for word in out.split())


def test_the_completion_script_can_be_shown(run, monkeypatch):
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    code, out, _ = run("--show-completion")
    assert code == 0
    assert "complete_bash" in out
