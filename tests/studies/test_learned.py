"""A study with learned metrics: the plan freezes the weights, a resumed run gives the same bytes, the report names them."""

import json
import shutil

import pytest

import judges
from guidon import cli
from guidon.core.errors import InputError
from guidon.metrics.bench import open_bench
from guidon.metrics.choice import BenchChoice
from guidon.studies.cells import cells_of, open_plan, read_plan
from guidon.studies.outline import outline
from guidon.studies.planning import make_plan
from guidon.studies.report import write_report
from guidon.studies.run import run_study
from guidon.studies.study import load_study
from studies.small import STUDY, content, study, write

PRIMARY = STUDY["primary"] | {"metric": "subject_consistency"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    return {"clip": str(judges.make_clip(folder / "clip")), "dino": str(judges.make_dino(folder / "dino"))}


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_model, parts, pipe):
    """The results folder of `guidon study run`, and its study. The plan is frozen before, with one thread."""
    folder = tmp_path_factory.mktemp("learned")
    file = write(folder / "study.yaml", model=str(tiny_model), bench=parts, primary=PRIMARY, seeds=1)
    asked = load_study(file)
    open_plan(make_plan(asked, pipe, threads=1), folder / "out")
    with pytest.raises(SystemExit) as stop:
        cli.main(["study", "run", str(file), "--out", str(folder / "out"), "--device", "cpu"])
    assert not stop.value.code
    return folder / "out", asked


def test_the_plan_freezes_which_weights_measure(ran):
    out, _ = ran
    plan = read_plan(out)
    assert plan.bench == "world+clip+dino"
    assert {name: own.name for name, own in plan.bench_weights.items()} == {"clip": "clip", "dino": "dino"}
    assert (
        json.loads((out / "plan.json").read_text())["bench_weights"]["dino"]["hash"] == plan.bench_weights["dino"].hash
    )
    assert f"dino measures with dino, SHA-256 {plan.bench_weights['dino'].hash[:12]}" in outline(plan, 1.0)
    assert {"subject_consistency", "text_alignment", "joint"} <= cells_of(plan, out)[0].metrics().keys()


def test_a_resumed_study_gives_the_same_bytes(ran, pipe, tmp_path):
    out, asked = ran
    before, copy = content(out), tmp_path / "copy"
    shutil.copytree(out, copy)
    plan = read_plan(copy)
    for cell in cells_of(plan, copy)[::3]:
        shutil.rmtree(cell.folder)
    moved = tmp_path / "renamed"
    shutil.copytree(asked.bench.dino, moved)
    bench = open_bench(asked.bench.model_copy(update={"dino": moved}), "world")
    assert run_study(plan, pipe, copy, bench=bench) == 3
    assert content(copy) == before


def test_other_weights_and_none_are_refused(ran, pipe, parts, tmp_path, tiny_model):
    out, _ = ran
    plan, other = read_plan(out), judges.make_dino(tmp_path / "dino", seed=1)
    for bench in (
        open_bench(BenchChoice(**parts | {"dino": other}), "world"),
        open_bench(BenchChoice(clip=parts["clip"]), "world"),
        None,
    ):
        with pytest.raises(
            InputError, match=r"weights that are not those of this bench \(.*dino\): give the weights of the plan"
        ):
            run_study(plan, pipe, out, bench=bench)
    changed = study(tmp_path, tiny_model, bench=parts | {"dino": str(other)}, primary=PRIMARY, seeds=1)
    again = make_plan(changed, pipe, threads=plan.threads)
    assert again.differences(plan) == ["bench_weights"]
    assert again.hash != plan.hash


def test_a_bench_may_be_named_alone_and_a_plan_without_weights_is_as_before(tmp_path, tiny_model, pipe):
    plan = make_plan(
        study(
            tmp_path,
            tiny_model,
            bench="video",
            primary=PRIMARY | {"metric": "drift_1"},
            prompts=["a red circle", "a blue square"],
        ),
        pipe,
        threads=1,
    )
    assert plan.bench == "video"
    assert "bench_weights" not in plan.content
    with pytest.raises(InputError, match=r"the bench 'vide' does not exist \(did you mean 'video'\?\)"):
        study(tmp_path, tiny_model, bench="vide")
    with pytest.raises(InputError, match=r"has no metric 'subject_consistency', which .* bench: \{dino: FOLDER\}$"):
        make_plan(study(tmp_path, tiny_model, primary=PRIMARY), pipe, threads=1)


def test_the_report_says_which_weights_were_used(ran):
    out, _ = ran
    write_report(out, videos=False)
    page, plan = (out / "report.html").read_text(), read_plan(out)
    for part, own in plan.bench_weights.items():
        assert f"{part}: {own.name} <code>{own.hash}</code>" in page
    assert "consistency of the subject" in page
    assert "still clip is perfect" in page
