"""The report of a study whose cells are written by hand: six prompts, three settings, known values."""

import base64
import csv
import hashlib
import html
import json
import re
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from guidon import cli
from guidon.core.errors import InputError
from guidon.metrics.statistics import compare, holm, mean_interval
from guidon.metrics.world import METRICS
from guidon.request import Generation
from guidon.studies.plan import Contrast, Plan
from guidon.studies.report import write_report
from guidon.studies.report.tables import extremes, summarise
from guidon.studies.run import CONTENT, cells_of, open_plan, read_plan, results

PROMPTS = 6
SHAPE = (5, 16, 16, 3)
SETTINGS = {"three": ("3", 2.0), "all": ("all", 2.0), "three, strong": ("3", 4.0), "all, strong": ("all", 4.0)}


def write_study(folder, prompts=PROMPTS, seeds=1, captions=None, settings=SETTINGS):
    """Cells of noise and made-up metrics; ``all`` loses joint on prompts 0 and 1 and wins it on 2 to 5."""
    captions = captions or [f"prompt number {k}" for k in range(prompts)]
    frozen = {
        name: Generation(model="guidon-small", prompts=("x",), samples=(0,), seed=3, steps=5, sampler="ddim", cfg_scale=scale, cfg_channels=channels)
        .model_dump(mode="json", exclude={"prompts", "samples"})
        for name, (channels, scale) in settings.items()
    }  # fmt: skip
    plan = Plan(
        title="A <script>title</script>", model="guidon-small", weights={"denoiser": "0" * 64}, of_the_world=True,
        captions=tuple(captions), seeds=seeds, block=4, threads=1, device="cpu", torch="", settings=frozen,
        primary=Contrast(metric="joint", baseline="three", against="all"),
    )  # fmt: skip
    open_plan(plan, folder)
    rng = np.random.default_rng(0)
    for cell in cells_of(plan, folder):
        cell.folder.mkdir(parents=True)
        frames = rng.integers(0, 256, SHAPE, dtype=np.uint8)
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(cell.folder / "clip.png")
        generation = plan.generation(cell.setting, slice(cell.prompt, cell.prompt + 1)).model_dump(mode="json")
        generation["samples"] = [cell.sample]
        manifest = {"generation": generation, "fps": 8, "frames": list(SHAPE)}
        (cell.folder / "manifest.json").write_text(json.dumps(manifest))
        values = dict.fromkeys(METRICS, 0.5) | {"colour_drift": rng.random(), "law_residual": None}
        values["joint"] = float((cell.prompt < 2) == (cell.setting == "three"))
        (cell.folder / "metrics.json").write_text(json.dumps(values))
        np.savez(cell.folder / "trace.npz", difference=rng.random((5, 4)), timestep=np.arange(5), scale=np.ones((5, 4)))
        hashes = {name: hashlib.sha256((cell.folder / name).read_bytes()).hexdigest() for name in CONTENT}
        (cell.folder / "hashes.json").write_text(json.dumps(hashes))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "results")


@pytest.fixture(scope="module")
def page(study):
    return write_report(study)[0].read_text()


def test_the_page_lets_nothing_in_and_runs_its_own_script_and_style_alone(page):
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=\"(?!data:|#|videos/)", page)
    assert not re.search(r"\s(style|on[a-z]+)=\"", page)


def test_what_users_write_is_escaped(tmp_path):
    folder = write_study(tmp_path / "results", captions=[f'<img src=x onerror="alert({k})">' for k in range(PROMPTS)])
    page = write_report(folder)[0].read_text()
    assert "A &lt;script&gt;title&lt;/script&gt;" in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_every_clip_is_there_with_what_makes_it_again(study, page):
    for cell in cells_of(read_plan(study), study):
        picture = base64.b64encode((cell.folder / "clip.png").read_bytes()).decode()
        assert page.count(picture) == 1
        assert hashlib.sha256((cell.folder / "clip.png").read_bytes()).hexdigest() in page
        assert (study / "videos" / cell.folder.parent.name / f"{cell.folder.name}.mp4").stat().st_size > 0
    assert 'href="videos/00-three/0000-0.mp4"' in page


def test_commands_make_the_cells_setting_again(tmp_path, monkeypatch):
    """Each command of the page, parsed by the command line itself, asks for what the cell's manifest says."""
    folder = write_study(tmp_path / "results", prompts=2, seeds=2)
    page = write_report(folder)[0].read_text()
    asked = []

    class Pipe:
        """Notes what it is asked for, and makes nothing."""

        preset = SimpleNamespace(is_image=False)

        def plan(self, prompts, samples, **choices):
            asked.append(choices | {"prompt": prompts[0], "samples": len(samples)})
            raise InputError("noted")

    monkeypatch.setattr("guidon.pipeline.load", lambda *_, **__: Pipe())
    monkeypatch.chdir(tmp_path)
    commands = [html.unescape(text) for text in re.findall(r"<code>(guidon generate .*?)</code>", page)]
    cells = cells_of(read_plan(folder), folder)
    assert len(commands) == len(cells)
    for command in commands:
        with pytest.raises(SystemExit):
            cli.main(shlex.split(command)[1:])
    made = {(r["prompt"], r["samples"], r["cfg_channels"], r["cfg_scale"]) for r in asked}
    assert made == {(f"prompt number {cell.prompt}", cell.sample + 1, *SETTINGS[cell.setting]) for cell in cells}
    assert {(r["steps"], r["sampler"]) for r in asked} == {(5, "ddim")}
    assert {r["timing"] for r in asked} == {"interval:0,1"}  # as the cells' constant, whatever the model's own
    assert {(r["prompt"], r["seed"]) for r in asked} == {("prompt number 0", 3), ("prompt number 1", 4)}


def test_the_figures_are_those_of_the_statistics(study):
    write_report(study)
    plan = read_plan(study)
    found = results(plan, study)
    rows = {(row["setting"], row["metric"]): row for row in csv.DictReader((study / "summary.csv").open())}
    assert len(rows) == len(SETTINGS) * len(METRICS)
    drift = mean_interval(found["all"]["colour_drift"])
    row = rows["all", "colour_drift"]
    assert [float(row[k]) for k in ("mean", "low", "high")] == pytest.approx(
        [drift.value, drift.low, drift.high], rel=1e-5
    )
    raw = {
        (s, m): compare(found["three"][m], found[s][m], better=METRICS[m].better).p
        for s in list(SETTINGS)[1:] for m in METRICS if m != "law_residual"
    }  # fmt: skip
    assert float(rows["all", "joint"]["p"]) == pytest.approx(raw["all", "joint"], rel=1e-5)  # primary: as it is
    assert rows["all", "joint"]["primary"] == "1"
    assert float(rows["all", "joint"]["mean"]) == pytest.approx(4 / 6, rel=1e-5)
    others = [key for key in raw if key != ("all", "joint")]
    for key, p in zip(others, holm([raw[key] for key in others]), strict=True):
        assert float(rows[key]["p"]) == pytest.approx(p, rel=1e-5)
    assert rows["all", "law_residual"]["undefined"] == "1"
    assert rows["all", "law_residual"]["difference"] == ""


def test_a_verdict_needs_a_p_and_a_direction(study):
    plan = read_plan(study)
    found = results(plan, study)
    shifted = {s: {m: v + (0.5 + 0.01 * np.arange(6)[:, None]) * (s == "all") for m, v in values.items()} for s, values in found.items()}  # fmt: skip
    for s in shifted:
        shifted[s]["joint"] = found["three"]["joint"] + (0.1 * (s == "all")) + 0.0
    verdicts = {(r.setting, r.metric.name): r.verdict for r in summarise(plan, shifted)}
    assert verdicts["all", "joint"] == "better"  # 6 prompts, all better: p = 2/64, the primary one
    assert verdicts["all", "area_cv"] == "not told apart"  # the same p, in a family
    assert verdicts["three", "joint"] == ""


def test_gains_and_losses_are_ordered(study):
    plan = read_plan(study)
    gains, losses = extremes(plan, results(plan, study), count=3)
    assert len(gains) == 3
    assert set(gains) <= {2, 3, 4, 5}
    assert set(losses) == {0, 1}


def test_a_large_study_shows_whole_prompts_of_its_extremes_first(study, page, tmp_path):
    small = write_report(study, tmp_path / "small.html", max_mb=len(page) / 1e6 * 0.75)[0].read_text()
    assert len(small.encode()) <= len(page.encode()) * 0.75
    shown = [int(p) for p in re.findall(r'<tr id="p-(\d+)"', small)]
    assert 0 < len(shown) < PROMPTS
    assert f"{len(shown)} of {PROMPTS} prompts are in this file" in small
    assert small.count("data:image/png") == len(shown) * len(SETTINGS)
    gains, losses = extremes(read_plan(study), results(read_plan(study), study))
    turns = [p for pair in zip(gains, losses, strict=False) for p in pair]
    assert set(shown[:4]) <= set(turns)
    assert set(shown) & set(gains)
    assert set(shown) & set(losses)


def test_the_same_results_give_the_same_page(study, page):
    assert write_report(study)[0].read_text() == page


def test_a_grid_of_scales_is_a_heat_map(page, tmp_path):
    assert "joint over guided channels and guidance scale" in page
    folder = write_study(tmp_path / "results", settings={name: SETTINGS[name] for name in ("three", "all")})
    assert "over guided channels and guidance scale" not in write_report(folder)[0].read_text()


def test_what_cannot_be_reported_is_refused(study, tmp_path, capsys):
    def refused(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main(["study", "report", *map(str, words)])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "holds no plan.json" in refused(tmp_path)
    assert "give a larger --max-mb" in refused(study, "--max-mb", "0.1", "--out", tmp_path / "r.html")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(study, "--out", tmp_path / "file" / "r.html")
    unfinished = write_study(tmp_path / "unfinished")
    (unfinished / "cells" / "00-three" / "0000-0" / "clip.png").write_bytes(b"")
    assert "1 of 24 cells" in refused(unfinished)
    with pytest.raises(InputError, match="missing or damaged"):
        write_report(unfinished)


def test_a_page_that_goes_elsewhere_links_no_videos(tmp_path):
    folder = write_study(tmp_path / "results", prompts=2)
    paths = write_report(folder, tmp_path / "page.html", videos=False)
    assert not (folder / "videos").exists()
    assert ".mp4" not in paths[0].read_text()
