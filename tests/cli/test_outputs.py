import re
from pathlib import Path

import pytest

from guidon.cli.outputs import output_name, prepare_folder, run_name
from guidon.core.errors import InputError
from guidon.request import Request

REQUEST = Request(prompts=("A red circle!", "a square"), samples=(0, 3), seed=7)
WEIGHTS = {"denoiser": "abc", "vae": "def"}


def test_a_name_tells_prompt_seed_and_sample():
    assert output_name(REQUEST, WEIGHTS, 0, 3).startswith("a-red-circle-seed7-3-")


def test_the_name_is_that_of_the_clip_made_alone():
    alone = Request(prompts=("a square",), samples=(3,), seed=7)
    assert output_name(REQUEST, WEIGHTS, 1, 3) == output_name(alone, WEIGHTS, 0, 3) == run_name(alone, WEIGHTS)


def test_other_settings_weights_or_clips_have_other_names():
    names = [
        output_name(request, weights, prompt, sample)
        for request in (REQUEST, REQUEST.model_copy(update={"steps": 9}))
        for weights in (WEIGHTS, WEIGHTS | {"vae": "new"})
        for prompt in (0, 1)
        for sample in (0, 3)
    ]
    names += [run_name(REQUEST, WEIGHTS), run_name(REQUEST, WEIGHTS | {"vae": "new"})]
    assert len(set(names)) == len(names)


def test_the_clips_of_an_exact_replay_are_named_by_the_whole_run():
    replay = Request(prompts=("a", "a"), exact="dit", batch_size=2)
    assert output_name(replay, WEIGHTS, 0, 0) != output_name(replay, WEIGHTS, 1, 0)
    more = Request(prompts=("a", "a", "b"), exact="dit", batch_size=2)
    assert output_name(replay, WEIGHTS, 0, 0) != output_name(more, WEIGHTS, 0, 0)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red circle!", "a-red-circle"), ("圆形 向左移动", "圆形-向左移动"), ("красный круг", "красный-круг"), ("नीला वृत्त", "नीला-वृत्त"),
        ("دائرة حمراء", "دائرة-حمراء"), ("🙂🙃", "clip"), ("", "clip"), ("--", "clip"), ("--out=/etc/passwd", "out-etc-passwd"), ("../..", "clip"),
        ("a\x00b\nc\u202ed", "a-b-c-d"), ("CON", "con"), ("e\u0301te\u0301", "été"), ("\u0301", "clip"), ("x" * 500, "x" * 60),
        ("圆" * 500, "圆" * 20), ("한" * 19 + "abcd", "한" * 19 + "abc"), ("snake_case", "snake-case"),
    ],
)  # fmt: skip
def test_a_prompt_of_any_letters_has_a_readable_and_safe_name(prompt, name):
    found = output_name(Request(prompts=(prompt,)), WEIGHTS, 0, 0)
    assert re.fullmatch(re.escape(name) + "-seed0-0-[0-9a-f]{8}", found)
    assert len(found.encode()) < 100
    assert Path(found).name == found


def test_letters_that_file_names_cannot_hold_are_left_out(monkeypatch):
    def ascii_only(name):
        return name.encode("ascii")

    monkeypatch.setattr("guidon.cli.outputs.os.fsencode", ascii_only)
    assert output_name(Request(prompts=("圆",)), WEIGHTS, 0, 0).startswith("clip-seed0-0-")
    assert output_name(Request(prompts=("a circle",)), WEIGHTS, 0, 0).startswith("a-circle-seed0-0-")


def test_prompts_without_letters_have_different_names():
    names = {output_name(Request(prompts=(prompt,)), WEIGHTS, 0, 0) for prompt in ("🙂", "🙃", "!", "?")}
    assert len(names) == 4


def test_output_of_a_whole_run_says_how_many_clips_it_holds():
    one, two = Request(prompts=("a circle",)), Request(prompts=("a circle", "a square"))
    assert run_name(one, WEIGHTS) == output_name(one, WEIGHTS, 0, 0)
    assert run_name(two, WEIGHTS).startswith("a-circle-and-1-more-clips-")
    assert run_name(two, WEIGHTS) != run_name(two, {"network": "b"})


@pytest.mark.parametrize("out", ["", "a", "a/b/c"])
def test_the_check_of_an_output_folder_leaves_nothing(tmp_path, monkeypatch, out):
    prepare_folder(tmp_path / out)
    monkeypatch.chdir(tmp_path)
    prepare_folder(Path(out))
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("absent")
    for out in ("file", "file/sub", "link", "link/sub", "a" * 300):
        with pytest.raises(InputError, match=r"cannot be written .*: choose another out"):
            prepare_folder(tmp_path / out)
    with pytest.raises(InputError, match=r"cannot be written .*: choose another out"):
        prepare_folder(Path("/proc/1/new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
