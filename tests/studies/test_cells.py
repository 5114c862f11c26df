"""A results folder: the plan that it keeps, its cells, and what is refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from guidon.core.errors import InputError
from guidon.metrics.world import METRICS
from guidon.request import Request
from guidon.studies.cells import CONTENT, block_of, blocks_of, cells_of, open_plan, read_plan, threads_of
from guidon.studies.planning import make_plan
from studies.small import study


def test_every_cell_keeps_its_clip_metrics_trace_and_manifest(whole, plan, pipe):
    cell = cells_of(plan, whole)[7]
    assert (cell.setting, cell.prompt, cell.sample) == ("scale 3, channels 3", 0, 1)
    manifest = json.loads((cell.folder / "manifest.json").read_text())
    again = pipe.generate(Request.model_validate(manifest["generation"]))[0]
    assert np.abs(again.frames.astype(int) - cell.frames()).max() <= 1  # its batch was another
    assert cell.metrics().keys() == METRICS.keys()
    trace = np.load(cell.folder / "trace.npz")
    assert trace["difference"].shape == (1, 4)  # the model's interval holds one of the two steps
    assert trace["scale"].tolist() == [[3, 3, 3, 1]]
    unguided = np.load(cells_of(plan, whole)[0].folder / "trace.npz")
    assert unguided["timestep"].shape == (0,)


def test_a_cell_is_read_as_it_was_written(whole, plan, tmp_path):
    source, copy = cells_of(plan, whole)[7], cells_of(plan, tmp_path)[7]
    assert copy.damage() == "absent"
    manifest = json.loads((source.folder / "manifest.json").read_text())
    values = dict.fromkeys(METRICS, 1.5) | {"chroma": float("nan")}
    copy.write(SimpleNamespace(frames=source.frames(), manifest=manifest), values, source.trace())
    assert copy.damage() is None
    assert np.array_equal(copy.frames(), source.frames())
    assert copy.metrics() == pytest.approx(values, nan_ok=True)
    assert copy.manifest().generation == source.manifest().generation
    for name, array in source.trace().items():
        assert np.array_equal(copy.trace()[name], array)
    values.pop("joint")
    copy.write(SimpleNamespace(frames=source.frames(), manifest=manifest), values, source.trace())
    assert "does not hold the metrics of the bench" in copy.damage()


def test_clips_as_large_as_the_limit_are_read_again_and_larger_ones_are_not_written(whole, plan, tmp_path, monkeypatch):
    source, copy = cells_of(plan, whole)[7], cells_of(plan, tmp_path)[7]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit is lower than ours
    monkeypatch.setenv("GUIDON_MAX_PIXELS", str(16 * 64 * 64))
    assert source.damage() is None
    assert source.frames().shape == (16, 64, 64, 3)
    larger = SimpleNamespace(frames=np.zeros((17, 64, 64, 3), np.uint8), manifest={})
    with pytest.raises(InputError, match=r"^a clip of 17 frames of 64x64 has 69,632 pixels, .* at most 65,536 again"):
        copy.write(larger, {}, {})
    assert copy.damage() == "absent"


def test_a_whole_cell_in_another_ones_place_is_damage(whole, plan, tmp_path):
    source, other = cells_of(plan, whole)[7], cells_of(plan, tmp_path)[8]
    shutil.copytree(source.folder, other.folder)
    assert "is of another clip than the plan's" in other.damage()
    retrained = plan.model_copy(update={"weights": plan.weights | {"vae": "0"}})
    assert "is of another clip than the plan's" in cells_of(retrained, whole)[7].damage()


@pytest.mark.parametrize("name", [*CONTENT, "hashes.json"])
def test_damage_to_any_file_is_seen(whole, plan, tmp_path, name):
    shutil.copytree(whole, tmp_path / "copy")
    cell = cells_of(plan, tmp_path / "copy")[3]
    path = cell.folder / name
    path.write_bytes(path.read_bytes()[:-2])
    assert cell.damage()
    path.unlink()
    assert cell.damage()


def test_blocks_are_whole_prompts_of_one_setting(plan, tmp_path):
    blocks = blocks_of(plan, tmp_path)
    assert [cell for block in blocks for cell in block] == cells_of(plan, tmp_path)
    assert [block_of(plan, tmp_path, number) for number in range(len(blocks))] == blocks
    assert [len(block) for block in blocks] == [4, 2] * 3  # 4 clips a block: two prompts of two seeds
    assert all(len({cell.setting for cell in block}) == 1 for block in blocks)


def test_settings_share_their_noise(whole, plan):
    cells = {(c.setting, c.prompt, c.sample): c.frames().astype(int) for c in cells_of(plan, whole)}
    near = np.abs(cells["no guidance", 0, 0] - cells["scale 3, channels 3", 0, 0]).mean()
    far = np.abs(cells["no guidance", 0, 0] - cells["no guidance", 0, 1]).mean()
    assert near < far


def test_a_folder_of_another_plan_or_of_something_else_is_refused(whole, plan, pipe, tmp_path, tiny_model):
    other = make_plan(study(tmp_path, tiny_model, seeds=1), pipe, threads=1)
    with pytest.raises(InputError, match=r"results of another plan .* they differ in seeds"):
        open_plan(other, whole)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no study"):
        open_plan(plan, tmp_path / "full")
    with pytest.raises(InputError, match=r"no plan\.json"):
        read_plan(tmp_path / "full")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        open_plan(plan, tmp_path / "file" / "results")


def test_a_plan_that_was_changed_is_refused(plan, tmp_path):
    open_plan(plan, tmp_path / "out")
    path = tmp_path / "out" / "plan.json"
    path.write_text(path.read_text().replace('"seeds": 2', '"seeds": 3'))
    with pytest.raises(InputError, match="changed after it was frozen"):
        read_plan(tmp_path / "out")


def test_what_a_kill_left_while_the_plan_was_written_is_no_obstacle(plan, tmp_path):
    for name in (".plan.99999999.tmp.json", ".plan.lock"):
        (tmp_path / name).write_text("{")
    open_plan(plan, tmp_path)
    assert read_plan(tmp_path).hash == plan.hash
    assert threads_of(tmp_path) == plan.threads
    assert threads_of(tmp_path / "none") is None


def test_a_plan_that_could_not_be_run_is_refused_whatever_its_hash_says(plan, tmp_path):
    first = next(iter(plan.settings))
    cases = [
        {"captions": ()},
        {"settings": {}},
        {"bench": "none"},
        {"primary": plan.primary.model_copy(update={"metric": "none"})},
        {"primary": plan.primary.model_copy(update={"against": "none"})},
        {"seeds": 10**9},
        {"settings": plan.settings | {first: {}}},
        {"settings": plan.settings | {first: plan.settings[first] | {"steps": -1}}},
        {"settings": plan.settings | {first: plan.settings[first] | {"energy_of": first}}},
    ]
    for change in cases:
        changed = plan.model_copy(update=change)
        (tmp_path / "plan.json").write_text(json.dumps(changed.content | {"hash": changed.hash}))
        with pytest.raises(InputError, match=r"plan\.json: "):
            read_plan(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(plan.content | {"hash": plan.hash, "scales": {first: 9.0}}))
    with pytest.raises(InputError, match="holds scales"):
        read_plan(tmp_path)
