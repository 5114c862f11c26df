"""Studies of tiny diffusers pipelines from their folders: end to end to a report, stopped and resumed to the same bytes."""

import json
import re
from contextlib import closing

import diffusers
import numpy as np
import pytest
import yaml

import guidon
from guidon import cli
from guidon.analysis.matching import matching_study
from guidon.core.errors import InputError
from guidon.pipeline.diffusers_planner import DiffusersPlanner
from guidon.studies.cells import cells_of, read_plan
from guidon.studies.planning import check_study, make_plan
from guidon.studies.report import write_report
from guidon.studies.results import results
from guidon.studies.run import run_study
from guidon.studies.study import Study, load_study
from guidon.studio.engine import Studio
from guidon.studio.models import Models
from studies.small import content
from tiny_pipelines.image import DIT
from tiny_pipelines.whole import WHOLE, write_pipeline

STUDY = {
    "prompts": ["a red ball", "blue cat"],
    "steps": 2,
    "settings": [{"name": "three", "cfg_scale": 4, "cfg_channels": 3}, {"name": "all", "cfg_scale": 4}],
}
METRIC = {"wan": "dynamics", "pixart": "sharpness"}
PRIMARY = {"baseline": "three", "against": "all"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads of tiny networks wait for each other longer than they compute."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {name: write_pipeline(name, root / name) for name in METRIC}


def write_study(path, folder, name, **changes):
    primary = PRIMARY | {"metric": METRIC[name]}
    model = {"diffusers": str(folder)}
    path.write_text(yaml.safe_dump(STUDY | {"model": model, "call": WHOLE[name][1], "primary": primary} | changes))
    return path


def run(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return stop.value.code


@pytest.mark.parametrize("name", METRIC)
def test_a_study_is_run_stopped_resumed_and_reported(name, folders, tmp_path, capsys):
    path = write_study(tmp_path / "study.yaml", folders[name], name)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    # from end to end, on the command line
    assert run("study", "run", path, "--out", whole, "--device", "cpu") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(whole / "results.csv")
    assert "Two prompts are too few" in printed[1]
    assert run("study", "report", whole, "--no-videos") == 0
    page = (whole / "report.html").read_text()
    assert f"diffusers:{folders[name]}" in page
    assert "height 32" in page
    # stopped after the first of four clips, with the second one half written and the third damaged later
    pipe = guidon.load(f"diffusers:{folders[name]}", device="cpu", call=WHOLE[name][1])
    plan = make_plan(load_study(path), pipe)
    assert plan.block == 1

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, pipe, stopped, on_cell=stop)
    assert len(content(stopped)) == 5
    assert run_study(plan, pipe, stopped) == 3
    damaged = cells_of(plan, stopped)[2].folder / "clip.png"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert run_study(plan, pipe, stopped, say=lambda line: None) == 1
    assert content(stopped) == content(whole)
    assert (stopped / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    found = results(plan, stopped)
    assert np.isfinite(found["all"]["saturation"]).all()
    assert np.isnan(found["all"]["drift_1"]).all() == (name == "pixart")  # an image has no next frame


def test_clips_are_paired_and_made_again_from_their_manifests(folders, tmp_path, monkeypatch):
    name = "pixart"
    settings = [
        *STUDY["settings"],
        {"name": "none", "cfg_scale": 4, "cfg_channels": "none"},
        {"name": "one", "cfg_scale": 1},
    ]
    path = write_study(tmp_path / "study.yaml", folders[name], name, settings=settings, block=2)
    pipe = guidon.load(f"diffusers:{folders[name]}", device="cpu", call=WHOLE[name][1])
    plan = make_plan(load_study(path), pipe)
    run_study(plan, pipe, tmp_path / "out")
    cells = {(cell.setting, cell.prompt): cell for cell in cells_of(plan, tmp_path / "out")}
    for prompt in range(2):  # no guidance, said in two ways, is one clip: the noise is the prompt's
        assert np.array_equal(cells["none", prompt].frames(), cells["one", prompt].frames())
        assert not np.array_equal(cells["three", prompt].frames(), cells["all", prompt].frames())
    write_report(tmp_path / "out", videos=False)
    command = """python -c 'import guidon; guidon.reproduce("manifest.json").save("clip.mp4")'"""
    assert command.replace("'", "&#39;").replace('"', "&#34;") in (tmp_path / "out" / "report.html").read_text()
    monkeypatch.chdir(cells["three", 1].folder)
    again = guidon.reproduce("manifest.json", device="cpu")
    assert np.abs(again.frames.astype(int) - cells["three", 1].frames()).max() <= 1


def test_scales_of_equal_energy_are_solved(folders, tmp_path):
    settings = [STUDY["settings"][0], {"name": "all", "energy_of": "three", "cfg_channels": "all"}]
    path = write_study(tmp_path / "study.yaml", folders["pixart"], "pixart", settings=settings, prompts=["a", "b"])
    pipe = guidon.load(f"diffusers:{folders['pixart']}", device="cpu", call=WHOLE["pixart"][1])
    run_study(make_plan(load_study(path), pipe), pipe, tmp_path / "out", say=lambda line: None)
    assert 1 < read_plan(tmp_path / "out").scales["all"] < 4


def test_another_checkpoint_is_another_plan(folders, tmp_path):
    path = write_study(tmp_path / "study.yaml", folders["pixart"], "pixart")
    study, model = load_study(path), f"diffusers:{folders['pixart']}"
    pipe = guidon.load(model, device="cpu", call=WHOLE["pixart"][1])
    plan = make_plan(study, pipe)
    other = guidon.load(model, device="cpu", call=WHOLE["pixart"][1]).pipe
    other.transformer.proj_out.bias.data += 1e-3
    changed = guidon.wrap(other, call=WHOLE["pixart"][1])
    with pytest.raises(InputError, match=r"the weights of diffusers:.* \(transformer\) are not those of the plan"):
        run_study(plan, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"call": {"heigth": 32}}, r"takes no argument 'heigth' \(did you mean 'height'\?\)"),
        ({"model": {"diffusers": "nowhere"}}, "nowhere is no folder"),
        ({"model": {"diffuser": "nowhere"}}, "'diffuser'"),
        ({"model": {"diffusers": "nowhere", "offload": "stages"}}, "offload"),
        ({"sampler": "ddim"}, "the setting 'three': sampler 'ddim' cannot be set in WanPipeline"),
        ({"settings": [{"name": "three", "rotation": 1}, {"name": "all"}]}, "the setting 'three': rotation 1 cannot"),
        ({"settings": [{"name": "three", "cfg_channels": 5}, {"name": "all"}]}, "the setting 'three': .* 4 latent"),
        ({"prompts": 3}, "the bench 'video' has no captions with exact truth: give prompts"),
        ({"sources": {"vae": "x"}}, "vae is not for a diffusers pipeline"),
        ({"model": "guidon-small"}, "call is for diffusers pipelines"),
    ],
)
def test_what_cannot_be_run_is_refused_and_leaves_nothing(folders, tmp_path, capsys, changes, message):
    path = write_study(tmp_path / "study.yaml", folders["wan"], "wan", **changes)
    assert run("study", "run", path, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err.replace("--", ""))
    assert not (tmp_path / "out").exists()


def test_a_plan_holds_every_argument_of_the_call(folders, tmp_path):
    path = write_study(tmp_path / "study.yaml", folders["wan"], "wan", call={"height": 32})
    study = load_study(path)
    assert study.parts == {"call": {"height": 32}}
    checked = check_study(study, DiffusersPlanner.find(folders["wan"], call=study.call))
    given = {"height": 32, "width": 832, "num_frames": 81, "max_sequence_length": 512}
    assert {json.dumps(own["call"]) for own in checked.settings.values()} == {json.dumps(given)}


def test_the_primary_metric_of_pictures_is_one_that_a_picture_has(folders, tmp_path, capsys):
    image, video = (DiffusersPlanner.find(folders[name], call=WHOLE[name][1]) for name in ("pixart", "wan"))
    assert (image.is_image, video.is_image) == (True, False)
    made = [matching_study(own, own.name, [3.0], "3", "all", prompts=["a", "b"]) for own in (image, video)]
    assert [study.primary.metric for study in made] == ["clipped", "dynamics"]
    path = write_study(tmp_path / "study.yaml", folders["pixart"], "pixart", primary=PRIMARY | {"metric": "drift_1"})
    assert run("study", "run", path, "--out", tmp_path / "out", "--device", "cpu") == 2
    assert "has one: give clipped, saturation, sharpness" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    # a study that the studio writes
    settings = [{"channels": on, "scales": [3] * 4} for on in ([True] * 4, [True, False, False, False])]
    values = {"model": image.name, "prompt": "a cat", "settings": settings}
    with closing(Studio(Models([image.name], WHOLE["pixart"][1]), device="cpu", temporary=tmp_path)) as studio:
        written = studio.yaml(studio.open(), {"comparison": values, "prompts": ["a cat", "a dog"]})
    assert yaml.safe_load(written)["primary"]["metric"] == "clipped"


def test_names_of_classes_are_sampled_as_their_numbers(folders):
    tiny, vae = DIT.make(), diffusers.AutoencoderKL.from_pretrained(folders["pixart"] / "vae")
    pipe = diffusers.DiTPipeline(tiny.transformer, vae, tiny.scheduler)
    pipe.register_to_config(id2label={0: "tench", 1: "goldfish"})  # as where it is read from a folder
    made = Study.model_validate(
        STUDY
        | {"model": {"diffusers": "dit"}, "prompts": ["goldfish", "0"], "primary": PRIMARY | {"metric": "sharpness"}}
    )
    request = make_plan(made, guidon.wrap(pipe)).request("three", slice(0, 2))
    assert [request.text_of(prompt) for prompt in request.prompts] == ["1", "0"]
