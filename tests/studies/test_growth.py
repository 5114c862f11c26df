"""Plans and reports of many cells: work grows as their number, whether they have many settings, prompts or seeds."""

from types import SimpleNamespace

import pytest
import torch

from growth import LINEAR, growth
from guidon.cli.planning import find_any_planner
from guidon.core.reading import read_object
from guidon.metrics import statistics, world
from guidon.studies import cells, run
from guidon.studies.cells import blocks_of, open_plan
from guidon.studies.outline import outline
from guidon.studies.planning import make_plan
from guidon.studies.report import clips, write_report
from guidon.studies.run import require_room
from guidon.studies.study import load_study
from studies.small import write
from studies.written import write_study

SHAPES = {"settings": (12, 3, 1), "prompts": (2, 48, 1), "seeds": (2, 2, 32)}
"""Settings, prompts and seeds of the smallest study; one of them is doubled twice."""


def sizes(shape):
    place = list(SHAPES).index(shape)
    for times in (1, 2, 4):
        size = list(SHAPES[shape])
        size[place] *= times
        yield size


@pytest.mark.parametrize("shape", ["prompts"])
def test_planning_and_running_grow_as_the_number_of_cells(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(run, "LOOKS", 4)
    monkeypatch.setattr(run, "do_block", lambda plan, pipe, bench, block, *rest: block[-1].folder.mkdir(parents=True))
    planner = find_any_planner("guidon-small", "cpu", {})
    pipe = SimpleNamespace(planner=planner, device=torch.device("cpu"), hashes={"denoiser": "0"}, compiles=False)

    def work(settings, prompts, seeds):
        scales = [1.5 + k / 100 for k in range(settings)]
        path = write(
            tmp_path / f"{settings}-{prompts}-{seeds}.yaml",
            prompts=[f"a red circle, take {k}" for k in range(prompts)], seeds=seeds, block=2,
            settings=[{"name": "of", "grid": {"cfg_scale": scales}}, {"name": "matched", "energy_of": "of: scale 1.5"}],
            primary={"metric": "law_residual", "baseline": "of: scale 1.5", "against": "matched"},
        )  # fmt: skip
        out = tmp_path / f"{settings}-{prompts}-{seeds}"

        def all_of_it():
            world._reader.cache_clear()  # words that were kept are no work
            plan = make_plan(load_study(path), pipe, threads=1)
            outline(plan, 1.0)
            plan = open_plan(open_plan(plan, out), out).with_scales({"matched": 2.0})
            blocks = blocks_of(plan, out)
            done = run._Done(blocks, require_room(blocks, out), None)
            assert run._do_blocks(plan, None, None, out, done, print) == plan.cells

        return all_of_it

    assert growth([work(*size) for size in sizes(shape)]) < LINEAR


@pytest.fixture(scope="module")
def first_report(tmp_path_factory):
    """What only the first report of a process does: imports, and the page's template."""
    write_report(write_study(tmp_path_factory.mktemp("first") / "results", prompts=3), videos=False)


@pytest.mark.usefixtures("first_report")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_report_grows_as_the_number_of_cells(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(clips, "SMALL_SHARE", 0.0)
    small = {"settings": (3, 3, 1), "prompts": (2, 5, 1), "seeds": (2, 2, 2)}
    monkeypatch.setitem(SHAPES, shape, small[shape])

    def work(settings, prompts, seeds):
        chosen = {f"scale {k}": ("3", 2.0 + k) for k in range(settings)}
        folder = write_study(
            tmp_path / f"{settings}-{prompts}-{seeds}", prompts=prompts, seeds=seeds, settings=chosen,
            names={"three": "scale 0", "all": "scale 1"},
        )  # fmt: skip

        def report():
            # draws that were kept are no work: what other tests left would count for some sizes and not for others
            monkeypatch.setattr(statistics, "_kept", statistics._Kept())
            statistics.smallest_effect.cache_clear()
            write_report(folder, videos=False)

        return report

    assert growth([work(*size) for size in sizes(shape)]) < LINEAR


def test_each_file_of_a_cell_is_read_a_few_times_and_each_small_clip_is_made_once(tmp_path, monkeypatch):
    folder, made, read = write_study(tmp_path / "results"), [], []
    exact = len(write_report(folder, videos=False)[0].read_bytes())
    small = clips.small_strip
    monkeypatch.setattr(clips, "small_strip", lambda frames, side: made.append(side) or small(frames, side))
    monkeypatch.setattr(cells, "read_object", lambda file, what: read.append(file) or read_object(file, what))
    page = write_report(folder, videos=False, max_mb=exact / 1e6 - 0.04)[0].read_text()
    examples, tried = 3 * 2, page.count("SHA-256 of clip.png") + 4  # the exact clips of one prompt more do not fit
    assert len(made) == 24 + examples
    assert len(set(read)) == 24 * 3  # hashes, manifest and metrics
    assert len(read) <= len(set(read)) + tried + 2  # an exact clip needs its manifest again; the page needs the first
