"""The studio without a server: runs, the queue, sessions, refusals and what is carried on."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import guidon
from guidon.core import locks
from guidon.core.errors import InputError
from guidon.pipeline.precision import Choice
from guidon.studio.comparison import Made, changes, drawn_latents
from guidon.studio.engine import Studio
from guidon.studio.jobs import Busy, Job, Queue
from guidon.studio.models import Models
from guidon.studio.outputs import Absent, Outputs
from tiny_model import write_tiny_model

PROMPT = "a red circle moves left on a white background"


def setting(on=(True, True, True, False), scales=(3, 3, 3, 3), **more):
    return {"channels": list(on), "scales": list(scales), "steps": 2, "timing": "constant"} | more


def ended(studio, session, key, seconds=60.0):
    """The state of a job once it is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        state = studio.state(session, key)
        if state["state"] in ("done", "failed", "cancelled"):
            return state
        time.sleep(0.01)
    raise AssertionError(f"the job did not end: {state}")


def finished(studio):
    """Wait until the worker is free."""
    while studio.queue._working is not None:
        time.sleep(0.001)


@pytest.fixture(scope="module")
def studio(tiny_model, tmp_path_factory):
    made = Studio(Models([str(tiny_model)]), device="cpu", temporary=tmp_path_factory.mktemp("studio"))
    yield made
    made.close()


@pytest.fixture
def asked(tiny_model):
    return {"model": str(tiny_model), "prompt": PROMPT, "settings": [setting(), setting((True,) * 4)]}


def test_a_comparison_gives_clips_traces_metrics_and_what_changed(studio, asked):
    session = studio.open()
    found = ended(studio, session, studio.compare(session, asked | {"seeds": 5})["id"])
    assert found["state"] == "done", found
    result = found["result"]
    assert [own["letter"] for own in result["settings"]] == ["A", "B"]
    assert result["settings"][0]["words"] == "scale 3 on the first 3 channels, guided at every step, 2 steps"
    for own in result["settings"]:
        assert len(own["clips"]) == len(own["commands"]) == len(own["python"]) == 5
        trace = own["trace"]
        assert np.shape(trace["difference"]) == np.shape(trace["scale"]) == (4, 2)
        assert len(own["values"]["joint"]) == 5
    assert [row[0] for row in result["settings"][0]["trace"]["scale"]] == [3, 3, 3, 1]
    (change,) = result["changes"]
    assert change["letter"] == "B"
    assert not change["same"]
    assert "5 seeds" in change["note"]
    assert any(re.search(r"[+-][\d.]+ px \[[+-]?[\d.]+, [+-]?[\d.]+\]", line) for line in change["lines"])
    assert result["truth"]["values"]["joint"] == [1.0]
    assert json.dumps(found)  # plain data


def test_the_clips_are_those_of_python_and_of_their_manifests(studio, asked, tiny_model):
    session = studio.open()
    found = ended(studio, session, studio.compare(session, asked)["id"])
    for own in found["result"]["settings"]:
        frames = studio.outputs.frames(own["clips"][0])
        names = {}
        exec(own["python"][0].replace('video.save("clip.mp4")', ""), names)
        assert np.array_equal(names["video"].frames, frames)
        assert np.array_equal(guidon.load(tiny_model).reproduce(json.loads(own["manifest"][0]))[0].frames, frames)


@pytest.mark.parametrize("index", [0, *(pytest.param(index, marks=pytest.mark.long) for index in (1, 2))])
def test_the_truth_of_a_prompt_shows_all_that_it_asks_for_whatever_the_clip_shows(index):
    from guidon import world
    from guidon.metrics.bench import find_bench
    from guidon.studio.truth import draw_truth

    rng = np.random.default_rng(0)
    shape = (world.FRAMES, world.SIZE, world.SIZE, 3)
    clips = [np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), rng.integers(0, 256, shape, np.uint8)]
    opposite = np.full(shape, 128, np.uint8)  # the largest region is darker, the strongest pixels are brighter
    opposite[:, 30:60, 10:50], opposite[:, 2:7, 2:7] = 58, 255
    clips += [opposite] * 4
    splits = ("L0", "L1", "L2", "L3")
    prompts = [world.clip(split, 5, index).caption for split in splits]
    bench = find_bench("world")
    for clip, prompt in zip(clips, [*prompts, "a circle", "red", "moves left"], strict=True):
        truth = draw_truth(prompt, clip)
        assert bench.measure(truth[None], [prompt])["joint"].tolist() == [1.0], prompt
    assert draw_truth("a horse", clips[0]) is None
    assert draw_truth(prompts[0], clips[0][:8]) is None


def test_the_truth_moves_as_the_clip_does_where_the_prompt_says_no_motion():
    from guidon import world
    from guidon.metrics.reading import read_clips
    from guidon.metrics.world import Motion
    from guidon.studio.truth import draw_truth

    prompt = "a red circle on a white background"
    for motion, speed in (("left", "quickly"), ("up right", "slowly"), ("still", None)):
        thing = world.Thing("circle", "red", "large", motion, speed, (45.0, 45.0))
        clip = (world.render(world.Scene("white", (thing,))) * 255).round().astype(np.uint8)
        found = Motion.fit(read_clips(draw_truth(prompt, clip)[None])).velocity[0]
        assert found == pytest.approx(thing.velocity, abs=0.01), motion
    moving = draw_truth(f"{prompt}, slowly", clip)  # what has a speed moves, whatever the clip does
    assert (moving[0] != moving[-1]).any()


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.long)])
def test_every_command_makes_its_clip(studio, asked, tmp_path, monkeypatch, first):
    """Whatever a setting says: its command asks ``guidon generate`` for the same request. Seeds take turns."""
    from guidon.cli import app

    session = studio.open()
    several = [
        setting(scales=(3.25, 1 / 3, 2, 9)),
        setting((False,) * 4),
        setting((False, True, False, True), guidance="apg:momentum=0", timing="exponential:0.7", sampler="ddim"),
        setting((False, False, True, False), timing="oscillation:1", negative_prompt="a blue square", sampler="ddim"),
    ]
    run = ended(studio, session, studio.compare(session, asked | {"settings": several, "seeds": 2})["id"])
    assert run["state"] == "done", run
    seeds = cycle((first, 1 - first))
    for own in run["result"]["settings"]:
        assert len(own["commands"]) == len(own["manifest"]) == 2
        seed = next(seeds)
        out = tmp_path / own["letter"]
        words = [*shlex.split(own["commands"][seed])[1:], "--out", str(out), "--device", "cpu", "--format", "webp"]
        with pytest.raises(SystemExit) as done:
            app.main(words)
        assert done.value.code == 0
        texts = [path.read_text().replace("interval:0,1", "constant") for path in out.glob("*.webp.json")]
        assert json.loads(own["manifest"][seed])["generation"] in [json.loads(text)["generation"] for text in texts]


def test_parts_of_a_result_and_previews_come_while_it_works(studio, asked, monkeypatch):
    session, before = studio.open(), []
    add_clip = studio.outputs.add_clip

    def noted(*arguments):
        state = studio.hello(session)["runs"][0]
        before.append((len(studio.state(session, state["id"])["result"]["settings"]), state["state"]))
        return add_clip(*arguments)

    monkeypatch.setattr(studio.outputs, "add_clip", noted)
    done = ended(studio, session, studio.compare(session, asked)["id"])
    assert done["state"] == "done", done
    assert before == [(0, "working"), (1, "working"), (2, "working")]  # A, B and the truth
    assert done["previews"] > 0
    assert done["done"] == done["total"] == 4


@pytest.mark.parametrize(("at", "steps"), [("loading", 0), ("denoising", 1), ("decoding", 2)])
def test_a_run_ends_before_the_next_layer_once_it_is_cancelled(studio, asked, at, steps, monkeypatch):
    from torch.nn.modules import module as modules

    session, seen = studio.open(), []
    monkeypatch.setattr(studio, "_pipe", None)

    def look(module, *_):
        job = studio.queue._working
        if job is not None and job.done == steps and (at != "decoding" or isinstance(module, torch.nn.Conv2d)):
            seen.append(module)
            studio.cancel(session, job.key)

    register = modules.register_module_forward_pre_hook
    if at == "loading":
        register = modules.register_module_parameter_registration_hook
    handle = register(look)
    try:
        key = studio.compare(session, asked | {"settings": [setting()]})["id"]
        state = ended(studio, session, key)
        finished(studio)
    finally:
        handle.remove()
    assert (state["state"], state["done"], len(seen)) == ("cancelled", steps, 1)
    again = ended(studio, session, studio.compare(session, asked)["id"])
    assert again["state"] == "done"


def test_what_cannot_be_stopped_is_over_at_once_and_the_next_job_waits_for_its_end(studio, asked, monkeypatch):
    from guidon.pipeline import load

    begun, free = threading.Event(), threading.Event()

    def slow(*arguments, **options):
        begun.set()
        free.wait(20)
        return load(*arguments, **options)

    monkeypatch.setattr(studio, "_pipe", None)
    monkeypatch.setattr("guidon.pipeline.load", slow)
    session = studio.open()
    key = studio.compare(session, asked)["id"]
    begun.wait(20)
    assert studio.cancel(session, key)["state"] == "cancelled"
    after = studio.compare(session, asked)
    assert (after["state"], after["message"]) == ("waiting", "what was cancelled comes to its end")
    free.set()
    assert ended(studio, session, after["id"])["state"] == "done"
    assert studio.state(session, key)["result"].keys() == {"notes", "asked"}


def test_a_cancelled_run_that_waits_never_runs(studio, asked):
    session = studio.open()
    long = studio.compare(session, asked | {"settings": [setting(steps=1000)] * 4})["id"]
    waiting = studio.compare(session, asked)["id"]
    assert studio.cancel(session, waiting)["state"] == "cancelled"
    assert studio.cancel(session, long)["state"] in ("working", "cancelled")
    assert ended(studio, session, long)["state"] == "cancelled"
    assert studio.state(session, waiting)["result"].keys() == {"notes", "asked"}


def test_sessions_do_not_see_each_other(studio, asked):
    mine, other = studio.open(), studio.open()
    key = studio.compare(mine, asked)["id"]
    own = ended(studio, mine, key)["result"]["settings"][0]
    for refused in (studio.state, studio.cancel, studio.preview):
        with pytest.raises(Absent):
            refused(other, key)
    for output in (own["clips"][0], own["manifests"][0]):
        assert studio.output(mine, output).path.is_file()
        for stranger in (other, "", "0" * 32):
            with pytest.raises(Absent):
                studio.output(stranger, output)
    assert studio.hello(other)["runs"] == []
    with pytest.raises(Absent):
        studio.hello("f" * 32)


def test_downloads_hold_the_frames(studio, asked):
    from guidon.media.files import load_video

    session = studio.open()
    own = ended(studio, session, studio.compare(session, asked)["id"])["result"]["settings"][0]
    frames = studio.outputs.frames(own["clips"][0])
    webp = studio.output(session, own["clips"][0], "webp")
    assert webp.media == "image/webp"
    assert np.array_equal(load_video(webp.path)[0], frames.repeat(4, 1).repeat(4, 2))
    strip, _ = load_video(studio.output(session, own["clips"][0]).path)
    assert np.array_equal(strip[0], np.concatenate(list(frames), axis=1))
    with pytest.raises(InputError, match="format 'exe' does not exist"):
        studio.output(session, own["clips"][0], "exe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": "x" * 1001}, "prompt"),
        ({"settings": []}, "settings"),
        ({"settings": [setting()] * 5}, "settings"),
        ({"settings": [setting(scales=(3, 3))]}, "cfg_scale has 2 values, the model has 4 latent channels"),
        ({"settings": [setting(scales=(3, 3, 3, float("nan")))]}, "scale of channel 3"),
        ({"settings": [setting(guidance="apq")]}, "did you mean 'apg'"),
        ({"settings": [setting(), setting(sampler="euler")]}, "B: sampler euler does not go with"),
        ({"settings": [setting(steps=10_001)]}, "steps"),
        ({"settings": [setting(timing="interval:1,0")]}, "runs backwards"),
        ({"settings": [setting(surprise=1)]}, "surprise"),
        ({"settings": [setting(), setting(steps=0)]}, "setting B, steps is 0: expected at least 1"),
        ({"settings": [setting(scales=(3, 3, 5000, 3))]}, "setting A, scale of channel 2 is 5000: expected at most"),
        ({"seeds": 9}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"model": "/etc"}, "not in the list"),
        ({"size": [32768, 32768], "frames": 32768}, "memory|size|limit"),
        ({"prompt": "a horse"}, "horse"),
        ({"settings": [setting(), setting(negative_prompt="horse")]}, "^B: .*horse"),
        ({"settings": [setting(negative_prompt="squares"), setting(negative_prompt="dog")]}, "^B: .*dog"),
    ],
)
def test_what_is_not_valid_is_refused_in_one_line_before_anything_is_queued(studio, asked, change, message):
    session = studio.open()
    with pytest.raises(InputError, match=message) as refused:
        studio.compare(session, asked | change)
    assert "\n" not in str(refused.value)
    assert studio.hello(session)["runs"] == []


def test_a_model_may_lie_deep_in_folders(studio, asked, monkeypatch):
    path = "/" + "/".join(["a-folder"] * 40)
    monkeypatch.setattr(studio, "models", SimpleNamespace(planner={path: studio.models.planner(asked["model"])}.get))
    comparison, _ = studio._read(asked | {"model": path})
    assert comparison.asked.model == path


def test_too_much_work_is_refused_before_anything_is_allocated(studio, asked, monkeypatch):
    monkeypatch.setenv("GUIDON_STUDIO_MAX_WORK", "1000")
    with pytest.raises(InputError, match=r"is 262,144 pixels to denoise, the limit is 1,000: lower steps or seeds"):
        studio.compare(studio.open(), asked)


def test_what_of_a_prompt_is_not_followed_is_said_to_its_own_browser(studio, asked):
    session = studio.open()
    settings = [setting(), setting(negative_prompt="a square")]
    state = studio.compare(session, asked | {"prompt": "a red circle moves left", "settings": settings})
    assert sum("background" in note for note in state["result"]["notes"]) == 1
    ended(studio, session, state["id"])


def test_the_spectrum_of_a_setting(studio, asked):
    session = studio.open()
    run = ended(studio, session, studio.compare(session, asked | {"seeds": 2})["id"])
    found = ended(studio, session, studio.look_inside(session, run["id"], 1)["id"])
    finished(studio)
    assert found["state"] == "done", found
    assert sum(found["result"]["share"]) == pytest.approx(1)
    assert found["done"] == found["total"] == 2 + 2  # both steps, and a look at each
    comparison, job = studio.queue.job(session, run["id"]), studio.queue.job(session, found["id"])
    assert job.work == comparison.work / 2 / 2  # one of two settings, one of two clips
    assert studio.queue._paces[job.model] == (comparison.ended - comparison.begun) / comparison.work
    assert np.shape(found["result"]["influence"]) == (4, 4)
    with pytest.raises(InputError, match="setting 2 is not in this run"):
        studio.look_inside(session, run["id"], 2)


def test_the_shares_of_equal_predictions_are_undefined(studio, asked):
    session = studio.open()
    run = ended(studio, session, studio.compare(session, asked | {"settings": [setting(negative_prompt=PROMPT)]})["id"])
    found = ended(studio, session, studio.look_inside(session, run["id"], 0)["id"])
    assert found["result"]["share"] == [None] * 4
    assert json.dumps(found, allow_nan=False)  # as the server answers


def test_a_study_is_written_run_and_reported(studio, asked, tmp_path):
    session = studio.open()
    values = {"comparison": asked, "prompts": 2, "title": "Two"}
    text = studio.yaml(session, values)
    assert [own["cfg_channels"] for own in yaml.safe_load(text)["settings"]] == [3, "all"]
    found = ended(studio, session, studio.study(session, values)["id"])
    assert found["state"] == "done", found
    assert found["done"] == found["total"] == 4
    page = studio.output(session, found["result"]["report"]).path.read_text()
    assert "Two" in page
    assert found["result"]["yaml"] == text
    with pytest.raises(Absent):
        studio.output(studio.open(), found["result"]["report"])
    own = yaml.safe_load(studio.yaml(session, values | {"prompts": [PROMPT, "a blue square moves up"]}))
    assert own["prompts"] == [PROMPT, "a blue square moves up"]
    for few in (1, [PROMPT], [], None):
        with pytest.raises(InputError, match="prompts"):
            studio.yaml(session, values | {"prompts": few})
    assert [path.name for path in studio.studies.glob("*/study.yaml")] == ["study.yaml"]  # of the one that ran
    with pytest.raises(InputError, match="is given twice"):
        studio.study(session, values | {"prompts": [PROMPT, PROMPT]})
    assert len([*studio.studies.iterdir()]) == 1
    with pytest.raises(InputError, match="a study compares at least two settings"):
        studio.study(session, values | {"comparison": asked | {"settings": [setting()]}})
    same = [setting(), setting((True,) * 4), setting(scales=(3, 3, 3, 9))]  # channel 3 is not guided
    with pytest.raises(InputError, match=r"^A and C are the same: change one of them, or remove it"):
        studio.study(session, values | {"comparison": asked | {"settings": same}})


def test_settings_without_guidance_are_the_same_whatever_says_so(studio, asked):
    session, none = studio.open(), (False,) * 4
    ones = setting(scales=(1,) * 4)
    same = [ones, setting(none), setting(none, guidance="apg", timing="interval:0,0.5")]
    run = ended(studio, session, studio.compare(session, asked | {"settings": same})["id"])
    first, *others = (studio.outputs.frames(own["clips"][0]) for own in run["result"]["settings"])
    assert all(np.array_equal(first, other) for other in others)
    for other in same[1:]:
        with pytest.raises(InputError, match=r"^A and B are the same"):
            studio.yaml(session, {"comparison": asked | {"settings": [ones, other]}, "prompts": 2})
    fewer = setting(none, steps=1)
    assert studio.yaml(session, {"comparison": asked | {"settings": [ones, fewer]}, "prompts": 2})


def test_a_study_may_be_longer_than_a_file_of_yaml(studio, asked, monkeypatch):
    from guidon.studio import looks

    session, ran = studio.open(), []
    monkeypatch.setattr(looks, "check_study", lambda study, planner: None)  # the tiny model cannot follow such prompts
    monkeypatch.setattr(looks, "run", lambda study, text, *others: ran.append(study))
    prompts = [f"{number:04d}{'x' * 996}" for number in range(1000)]
    found = ended(studio, session, studio.study(session, {"comparison": asked, "prompts": prompts})["id"])
    assert found["state"] == "done", found
    assert list(ran[0].prompts) == prompts


def test_a_study_that_is_refused_names_no_file(studio, asked, monkeypatch):
    monkeypatch.setenv("GUIDON_MAX_CELLS", "3")
    with pytest.raises(InputError, match=r"^2 settings x 2 prompts x 1 seeds = 4 cells need"):
        studio.study(studio.open(), {"comparison": asked, "prompts": 2})


def test_one_model_is_in_memory(studio, asked, monkeypatch):
    session = studio.open()
    ended(studio, session, studio.compare(session, asked)["id"])
    loaded = []
    monkeypatch.setattr("guidon.pipeline.load", lambda name, device: loaded.append((name, studio._pipe)) or object())
    studio._load("guidon-small")
    studio._load("guidon-small")
    assert loaded == [("guidon-small", None)]  # the other one was gone before
    monkeypatch.undo()
    studio._load(asked["model"])


def test_the_list_says_what_is_missing(studio, tiny_model):
    listed = studio.listed()
    assert [own["ready"] for own in listed[:2]] == [True, True]
    assert listed[0]["label"] == tiny_model.name
    released = next(own for own in listed if own["name"] == "dit-xl-2-256")
    assert not released["ready"]
    assert "checkpoint" in released["missing"]
    words = studio.describe("guidon-small")["words"]
    assert words["directions"] == ["left", "right", "up", "down"]
    assert "triangle" in words["shapes"]


def test_the_page_knows_the_scale_of_fast_settings(studio, tiny_model, tmp_path):
    assert studio.describe("guidon-small")["fast_scale"] == studio.describe("guidon-small")["scale"]
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    own = {"sampler": "ddim", "steps": 2, "cfg_scale": 2.5, "measured": "nothing"}
    (folder / "Guidon.fast.json").write_text(json.dumps(own))
    assert Models([str(folder)]).describe(str(folder))["fast_scale"] == 2.5


@pytest.mark.parametrize("dtype", ["bf16", "auto"])
def test_parts_of_the_first_model_are_named_and_carried_on(dtype, tiny_model, asked, tmp_path, monkeypatch):
    """As those of a released model are; and where its autoencoder is not in memory, the latents are drawn."""
    monkeypatch.setattr("guidon.pipeline.precision._choice", lambda *given: Choice("bf16", "it has a unit"))
    parts = {"offload": "stages", "dtype": dtype}
    studio = Studio(Models([str(tiny_model)], parts=parts), device="cpu", temporary=tmp_path)
    try:
        session = studio.open()
        run = ended(studio, session, studio.compare(session, asked)["id"])
        assert (run["state"], run["decoded"], run["previews"] > 0) == ("done", False, True)
        own = run["result"]["settings"][0]
        assert f"--model {tiny_model} --offload stages --cfg-scale 3" in own["commands"][0]
        assert own["commands"][0].count("--dtype bf16") == 1  # what the machine chose, too
        assert f"guidon.load({str(tiny_model)!r}, offload='stages', dtype={dtype!r})" in own["python"][0]
        assert ("dtype='bf16',\n" in own["python"][0]) == (dtype == "auto")  # the call says it on another machine
        study = yaml.safe_load(studio.yaml(session, {"comparison": asked, "prompts": 2}))
        assert (study["sources"], study["dtype"]) == ({"offload": "stages"}, dtype)
    finally:
        studio.close()


def test_a_weak_model_is_carried_on_where_it_is_asked(tiny_model, asked, tmp_path):
    weak = str(write_tiny_model(tmp_path / "weak", seed=1))
    studio = Studio(Models([str(tiny_model)], parts={"weak": weak}), device="cpu", out=tmp_path, temporary=tmp_path)
    try:
        session = studio.open()
        run = ended(studio, session, studio.compare(session, asked)["id"])
        assert all("--weak" not in own["commands"][0] for own in run["result"]["settings"])
        found = ended(studio, session, studio.study(session, {"comparison": asked, "prompts": 2})["id"])
        assert found["state"] == "done", found
        assert "sources" not in yaml.safe_load(found["result"]["yaml"])
        plan = json.loads((tmp_path / found["result"]["folder"] / "results" / "plan.json").read_text())
        assert not any(part.startswith("weak") for part in plan["weights"])
        weaker = asked | {"settings": [setting(), setting(guidance="autoguidance")]}
        text = studio.yaml(session, {"comparison": weaker, "prompts": 2})
        assert yaml.safe_load(text)["sources"] == {"weak": weak}
    finally:
        studio.close()


def test_of_a_released_model_it_is_said_which_parts_are_missing(tmp_path):
    (tmp_path / "class.pt").touch()
    models = Models(["dit-xl-2-256"], parts={"checkpoint": str(tmp_path / "class.pt")})
    first = models.listed()[0]["missing"]
    assert "as vae" in first
    assert "as checkpoint" not in first
    other = next(own["missing"] for own in models.listed() if own["name"] == "pixart-xl-2-256")
    assert all(f"as {part}" in other for part in ("checkpoint", "vae", "text encoder"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--checkpoint", "x.pt"], "model 'guidon-small' brings its own weights: leave out --checkpoint"),
        (["--call", "height=64"], "--call is for diffusers pipelines: leave it out, or give --model diffusers:FOLDER"),
        (["--offload", "half"], "--offload is 'half': expected 'none', 'stages' or 'blocks'"),
        (["--dtype", "bf17"], "--dtype is 'bf17': expected 'auto', 'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_the_command_refuses_parts_that_do_not_go_with_the_model(words, line, capsys):
    from guidon.cli import app

    with pytest.raises(SystemExit) as done:
        app.main(["studio", "--no-browser", *words])
    assert done.value.code == 2
    assert line in capsys.readouterr().err


def test_latents_are_drawn_where_their_content_is():
    latent = torch.zeros(4, 3, 8, 8)
    for frame in range(3):
        latent[1, frame, 2 + frame, 5] = -9.0
    drawn = drawn_latents(latent)
    assert drawn.shape == (3, 3, 8, 8)
    for frame in range(3):
        assert int(drawn.sum(0)[frame].abs().argmax()) == 8 * (2 + frame) + 5
    assert drawn_latents(torch.zeros(1, 1, 2, 2)).tolist() == torch.zeros(3, 1, 2, 2).tolist()


def test_a_killed_studio_leaves_nothing_for_the_next_one(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from guidon.studio.outputs import Outputs; import numpy as np;"
        "o = Outputs(Path(sys.argv[1])); o.add_clip(np.zeros((2, 8, 8, 3), np.uint8), 8, None); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    first = Studio(temporary=tmp_path)
    second = Studio(temporary=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # that of the dead one is gone, that of the living one is not
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_without_locks_a_studio_is_swept_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    first = Outputs(tmp_path)
    clip = first.add_clip(np.zeros((2, 8, 8, 3), np.uint8), 8, "me")
    second = Outputs(tmp_path)
    assert first.find(clip, "me").path.is_file()
    os.utime(first.folder, times=(time.time() - 2 * 24 * 3600,) * 2)
    third = Outputs(tmp_path)
    assert set(tmp_path.iterdir()) == {second.folder, third.folder}
    for one in (first, second, third):
        one.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_what_was_begun_is_deleted(studio, asked, monkeypatch):
    from guidon.studio import outputs

    def full(path, content):
        path.write_bytes(content)
        if sum(1 for _ in studio.outputs.folder.rglob("strip.png")) > clips:
            raise OSError(28, "No space left on device", str(path))

    session, before = studio.open(), set(studio.outputs.folder.iterdir())
    clips = 1 + sum(1 for _ in studio.outputs.folder.rglob("strip.png"))
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "write_bytes", full)
        failed = ended(studio, session, studio.compare(session, asked | {"seeds": 2})["id"])
    assert failed["message"] == "No space left on device: make room, or choose another folder"
    assert set(studio.outputs.folder.iterdir()) == before
    assert ended(studio, session, studio.compare(session, asked)["id"])["state"] == "done"


@pytest.fixture
def queue():
    forgotten = []
    made = Queue(forgotten.append, waiting=9, sessions=3, clock=lambda: made.now)
    made.now, made.forgotten = 0.0, forgotten
    yield made
    made.close()


def blocked(queue, session, model="m"):
    """A job in work that waits for its cancellation."""
    begun = threading.Event()

    def run(job):
        begun.set()
        job.stop.wait(20)
        job.check()

    job = Job("comparison", session, 10, run, model=model)
    queue.add(job)
    return job, begun


def test_the_ninth_job_waits_and_is_told_so_and_more_are_refused(queue):
    session = queue.open()
    first, begun = blocked(queue, session)
    begun.wait(20)
    others = [Job("comparison", session, 10, lambda job: None, model="m") for _ in range(9)]
    for other in others:
        queue.add(other)
    ninth = others[7]
    assert (ninth.state, queue.ahead(ninth)) == ("waiting", 8)
    assert queue.seconds_left(ninth) is None  # nothing tells yet
    first.done, first.total, queue.now = 1, 10, 2.0
    assert queue.seconds_left(first) == pytest.approx(18)
    assert queue.seconds_left(ninth) == pytest.approx(18 + 8 * 20)
    with pytest.raises(Busy, match="9 jobs wait already"):
        queue.add(Job("comparison", session, 10, lambda job: None))
    queue.cancel(session, first.key)
    for other in others:
        while not other.over:
            time.sleep(0.001)
    assert {other.state for other in others} == {"done"}


def test_nothing_is_told_behind_a_study_whose_work_is_not_counted(queue):
    session = queue.open()
    study, begun = blocked(queue, session)
    begun.wait(20)
    behind = Job("comparison", session, 10, lambda job: None, model="m")
    queue.add(behind)
    study.kind, study.work, study.done, study.total, queue.now = "study", 0, 1, 10, 2.0
    assert queue.seconds_left(study) == pytest.approx(18)
    assert queue.seconds_left(behind) is None
    queue.cancel(session, study.key)
    while not behind.over:
        time.sleep(0.001)


def test_whatever_happens_to_a_job_the_next_one_is_done(queue, capsys):
    session = queue.open()

    def memory(job):
        raise MemoryError

    def defect(job):
        raise KeyError("x")

    def disk(job):
        raise OSError(28, "No space left on device")

    class PanicException(BaseException):
        """As libraries in Rust raise it."""

    def panic(job):
        raise PanicException

    jobs = [Job("comparison", session, 1, run) for run in (memory, defect, disk, panic, lambda job: None)]
    for job in jobs:
        queue.add(job)
    while not jobs[-1].over:
        time.sleep(0.001)
    assert [job.state for job in jobs] == ["failed"] * 4 + ["done"]
    assert "memory of this machine is full" in jobs[0].message
    assert "a defect of Guidon: KeyError" in jobs[1].message
    assert "No space left" in jobs[2].message
    assert "a defect of Guidon: PanicException" in jobs[3].message
    assert "KeyError" in capsys.readouterr().err


def test_sessions_end_when_nobody_uses_them(queue):
    first, *_ = (queue.open() for _ in range(3))
    job = Job("comparison", first, 1, lambda job: job.outputs.append("x"))
    queue.add(job)
    while not job.over:
        time.sleep(0.001)
    with pytest.raises(Busy, match="3 browsers"):
        queue.open()
    queue.now = 3 * 3600.0
    assert queue.open()
    assert ["x"] in queue.forgotten
    assert not queue.knows(first)


def test_a_session_keeps_its_last_runs(queue, monkeypatch):
    monkeypatch.setattr("guidon.studio.jobs.KEPT", 2)
    session = queue.open()
    jobs = [Job("comparison", session, 1, lambda job: job.outputs.append(job.key)) for _ in range(5)]
    for job in jobs:
        queue.add(job)
        while not job.over:
            time.sleep(0.001)
    assert queue.jobs(session) == jobs[2:]
    assert queue.forgotten == [[job.key] for job in jobs[:2]]


@pytest.mark.long
def test_a_diffusers_pipeline_is_compared_looked_into_and_studied(tmp_path):
    from tiny_pipelines.whole import WHOLE, write_pipeline

    write_pipeline("wan", tmp_path / "wan")
    name, call = f"diffusers:{tmp_path / 'wan'}", WHOLE["wan"][1]
    studio = Studio(Models([name], call), device="cpu", temporary=tmp_path)
    try:
        session = studio.open()
        values = {"model": name, "prompt": "a cat", "seeds": 2, "settings": [setting(), setting((True,) * 4)]}
        for one in values["settings"]:
            del one["timing"]
        run = ended(studio, session, studio.compare(session, values)["id"])
        assert run["state"] == "done", run
        assert (run["decoded"], run["previews"] > 0) == (False, True)
        names = {}
        exec(run["result"]["settings"][1]["python"][1].replace('video.save("clip.mp4")', ""), names)
        clip = run["result"]["settings"][1]["clips"][1]
        assert np.array_equal(names["video"].frames, studio.outputs.frames(clip))
        found = ended(studio, session, studio.look_inside(session, run["id"], 0)["id"])
        assert sum(found["result"]["share"]) == pytest.approx(1)
        study = {"comparison": values, "prompts": ["a cat", "a dog"]}
        done = ended(studio, session, studio.study(session, study)["id"])
        assert done["state"] == "done", done
        assert call.items() <= yaml.safe_load(done["result"]["yaml"])["call"].items()
    finally:
        studio.close()


@pytest.mark.parametrize(("level", "words"), [(110, "110"), (3, "3"), (0, None)])
def test_a_difference_of_pixels_is_a_plain_number(level, words):
    clips = [SimpleNamespace(frames=np.full((2, 4, 4, 3), value, np.uint8)) for value in (0, level)]
    told = changes(*(Made([clip], None) for clip in clips), None, "B")["lines"]
    assert told == [f"Pixels differ by {words} of 255 on average." if words else "Every pixel is the same."]
