"""The search for fast settings, on a model whose clips are made up: which candidate is chosen, and what is proved."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guidon.analysis.calibration import (
    OWN,
    Candidate,
    Measured,
    Sampler,
    calibrate,
    check_margins,
    default_margin,
    finer_candidates,
    first_candidates,
    guarded_metrics,
    verify,
)
from guidon.core.errors import InputError
from guidon.metrics.bench import find_bench
from guidon.models.catalogue import find_preset
from guidon.models.small.facts import read_fast
from guidon.pipeline.planner import Planner

WORLD = find_bench("world")
PLANNER = Planner.find("guidon-small")


class Made:
    """A pipeline whose clips are one pixel: how good a clip is depends on its settings and on the seed."""

    def __init__(self, quality):
        self.quality, self.calls = quality, []
        self.preset, self.planner, self.hashes = find_preset("guidon-small"), PLANNER, {"denoiser": "0" * 64}
        self.distilled_hashes = {"denoiser-fast": "0" * 64}
        self.device, self.sources = torch.device("cpu"), None

    def complete(self, prompts, samples, **choices):
        return PLANNER.complete(prompts, samples, **choices)

    def generate(self, request, *, batch_size):
        self.calls.append(request)
        good = self.quality(request)
        seeds = [request.noise_of(k, 0)[0] for k in range(len(request.prompts))]
        return [SimpleNamespace(frames=np.array([[good, seed]])) for seed in seeds]


def measure(frames, captions):
    """joint is the share that the settings give; law_residual has noise of its own."""
    good, seed = frames[:, 0, 0], frames[:, 0, 1]
    noise = np.array([np.random.default_rng(int(each)).standard_normal() for each in seed])
    joint = (np.array([np.random.default_rng(int(each) + 7).random() for each in seed]) < good).astype(float)
    return {"joint": joint, "law_residual": 1 - good + 0.01 * noise}


BENCH = replace(
    WORLD, metrics={name: WORLD.metrics[name] for name in ("joint", "law_residual")}, measure=measure,
    guarded=("joint", "law_residual"), margins={},
)  # fmt: skip


def by_steps(request):
    """Settings of 20 steps are as good as the model's own, fewer are worse; reuse costs nothing."""
    return 0.9 if request.steps >= 20 else 0.5


def run(folder, quality=by_steps, **options):
    said = []
    pipe = Made(quality)
    candidates = [Candidate({"steps": steps}) for steps in (10, 25)]
    asked = {"prompts": 20, "held_out": 80, "candidates": candidates, "bench": BENCH, "block": 8} | options
    return calibrate(pipe, folder, say=said.append, **asked), pipe, said


def test_a_candidate_that_is_worse_is_not_chosen_and_one_that_is_not_is_proved(tmp_path):
    found, _, said = run(tmp_path, finer=False)
    assert [each.candidate.name for each in found.tuned] == [OWN, "steps 10", "steps 25"]
    assert found.found is not None
    assert found.found.measured.candidate.choices == {"steps": 25}
    assert len(found.verified) == 1  # the other seemed worse on the tuning prompts already
    assert found.margins["joint"] == 0.05
    assert "steps 25" in found.table()
    assert "fast settings" in found.verdict
    assert any("margin of joint: 0.05" in line for line in said)


def test_where_all_are_worse_none_is_found(tmp_path):
    found, _, _ = run(tmp_path, lambda request: 0.9 if request.steps == 50 else 0.4, finer=False)
    assert found.found is None
    assert "no candidate is shown to be no worse" in found.verdict
    assert "not shown in joint, law_residual |" in found.table()
    assert found.fast(find_preset("guidon-small")) is None


def test_a_finer_search_varies_the_best(tmp_path):
    found, _, _ = run(tmp_path)
    tried = [each.candidate.choices for each in found.tuned]
    assert {"steps": 25, "spacing": "power:1.25"} in tried
    assert {"steps": 17, "spacing": "power:0.8"} in tried  # half-way to the next smaller number
    assert any("reuse" in choices for choices in tried)
    assert any("adaptive" in choices for choices in tried)
    assert len(found.verified) == 2
    assert found.confidence == pytest.approx(0.975)


def test_the_fast_settings_that_a_model_has_are_judged_too(tmp_path):
    def quality(request):
        return 0.9 if request.distilled or request.steps == 50 else 0.4

    candidates = [Candidate({"steps": 10}), Candidate.read("fast=true")]
    found, pipe, _ = run(tmp_path, quality, candidates=candidates)
    assert found.found is not None
    assert found.found.measured.candidate.name == "the model's fast settings"
    assert not any("fast" in each.choices for each in finer_candidates(candidates[0], None, "constant")[0])
    small = find_preset("guidon-small")
    written = found.fast(small)
    assert written is not None
    assert written.settings == small.fast.settings
    assert "no worse on 80 prompts" in written.measured
    found.write(tmp_path / "out", small)
    assert read_fast(tmp_path / "out" / "Guidon.fast.json") == written
    # another distilled network is sampled anew
    made = len(pipe.calls)
    pipe.distilled_hashes = {"denoiser-fast": "1" * 64}
    calibrate(pipe, tmp_path, prompts=20, held_out=80, candidates=candidates, bench=BENCH, block=8, say=print)
    assert {request.distilled for request in pipe.calls[made:]} == {True}


def test_it_goes_on_from_the_blocks_that_are_there(tmp_path):
    first, pipe, _ = run(tmp_path, finer=False)
    assert len(pipe.calls) == 3 * 3 + 2 * 10  # blocks of 8 of 20 and 80 prompts
    again, second, _ = run(tmp_path, finer=False)
    assert second.calls == []
    assert again.as_json() == first.as_json()
    wider, third, _ = run(tmp_path, finer=False, candidates=[Candidate({"steps": n}) for n in (25, 30)])
    assert {request.steps for request in third.calls} <= {30}
    assert wider.found is not None


def test_blocks_of_another_kind_of_device_or_torch_are_sampled_anew(tmp_path, monkeypatch):
    """Their seconds cannot be compared."""
    captions = BENCH.captions(None, 1, 8)

    def calls(device):
        pipe = Made(by_steps)
        pipe.device = torch.device(device)
        Sampler(pipe, BENCH, tmp_path, shared={}, block=8, say=print)([Candidate({})], captions)
        return len(pipe.calls)

    assert [calls(device) for device in ("cpu", "cpu", "cuda", "cuda:1", "cpu")] == [1, 0, 1, 0, 0]
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert calls("cpu") == 1


def test_ctrl_c_keeps_whole_blocks(tmp_path):
    class Stopped(Made):
        def generate(self, request, *, batch_size):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().generate(request, batch_size=batch_size)

    captions = BENCH.captions(None, 1, 32)
    for pipe in (Stopped(by_steps), Stopped(by_steps)):
        sample = Sampler(pipe, BENCH, tmp_path, shared={}, block=8, say=print)
        try:
            (measured,) = sample([Candidate({})], captions)
        except KeyboardInterrupt:
            continue
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert measured.values["joint"].shape == (32,)
    assert not [*tmp_path.glob(".*.lock")]


def test_fast_settings_hold_the_scale_and_name_the_channels_that_they_were_verified_with(tmp_path):
    preset = find_preset("guidon-small")
    found, pipe, _ = run(tmp_path, finer=False, cfg_scale=4.5, cfg_channels="all")
    assert {request.guidance.scales_for(4).scales for request in pipe.calls} == {(4.5,) * 4}
    fast = found.fast(preset)
    assert fast is not None
    assert fast.cfg_scale == 4.5
    assert fast.measured.endswith("no worse on 80 prompts in joint, law_residual, with cfg_channels all")
    planner = replace(PLANNER, preset=replace(preset, fast=fast))
    assert planner.complete([""], fast=True, cfg_channels="all").guidance == pipe.calls[-1].guidance
    own = replace(found, shared={"cfg_scale": None}).fast(preset)
    assert own is not None
    assert own.cfg_scale is None
    several = replace(found, shared={"cfg_scale": (4, 4, 4, 1)}).fast(preset)
    assert several is not None
    assert several.cfg_scale is None
    assert several.measured.endswith(", with cfg_scale (4, 4, 4, 1)")
    scaled = replace(found.verified[0].measured, candidate=Candidate({"steps": 25, "cfg_scale": 3.0}))
    chosen = replace(found, verified=(replace(found.verified[0], measured=scaled),)).fast(preset)
    assert chosen is not None
    assert chosen.cfg_scale == 3  # a candidate's own is the one that was sampled


def test_a_damaged_block_is_refused_by_name(tmp_path):
    run(tmp_path, finer=False)
    path = sorted(tmp_path.glob("*.json"))[0]
    stored = json.loads(path.read_text())
    stored["values"]["joint"][0] = 0.25
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=f"{path.name}.*not what was written"):
        run(tmp_path, finer=False)


def measured(loss, spread, count=200):
    rng = np.random.default_rng(0)
    own = {"joint": np.ones(count), "law_residual": rng.random(count)}
    other = {"joint": np.ones(count), "law_residual": own["law_residual"] + loss + spread * rng.standard_normal(count)}
    return Measured(Candidate({}), own, 2.0), Measured(Candidate({"steps": 9}), other, 0.5)


@pytest.mark.parametrize(
    ("loss", "spread", "no_worse"),
    [(0.0, 0.1, True), (0.2, 0.1, False), (0.095, 0.1, False), (0.0, 3.0, False), (-0.3, 0.1, True)],
)
def test_no_worse_means_that_the_interval_excludes_the_margin(loss, spread, no_worse):
    found = verify(BENCH, *measured(loss, spread), {"joint": 0.05, "law_residual": 0.09})
    assert found.no_worse is no_worse
    assert found.faster == 4
    assert found.judgements["law_residual"].loss.value == pytest.approx(loss, abs=0.3)


@pytest.mark.parametrize(("count", "confidence", "no_worse"), [(3, 0.95, False), (59, 0.95, True), (59, 0.975, False)])
def test_prompts_of_which_none_changes_bound_the_loss_of_a_share(count, confidence, no_worse):
    own, other = measured(0, 0, count)
    found = verify(BENCH, own, other, {"joint": 0.05}, confidence)
    assert found.no_worse is no_worse
    loss = found.judgements["joint"].loss
    assert (loss.low, loss.value) == (-loss.high, 0)
    assert (1 - loss.high) ** count == pytest.approx(1 - confidence)  # so often no prompt changes


def test_margins_are_by_unit_and_in_the_metrics_direction():
    assert default_margin(WORLD, "joint", 0.9) == 0.05
    assert default_margin(WORLD, "fit_psnr", 40) == 1
    assert default_margin(WORLD, "law_residual", 0.02) == WORLD.margins["law_residual"]
    assert default_margin(WORLD, "teleport", 0.02) == 0.01
    own, other = measured(0.5, 0)
    better = replace(BENCH, metrics={**BENCH.metrics, "law_residual": WORLD.metrics["fit_psnr"]})
    assert verify(better, own, other, {"law_residual": 0.1}).no_worse  # higher is better in it


def test_what_cannot_be_guarded_is_refused():
    assert guarded_metrics(WORLD) == ("joint", "law_residual", "area_cv", "colour_drift", "fit_psnr")
    assert "speed" not in guarded_metrics(replace(WORLD, guarded=()))
    with pytest.raises(InputError, match="speed is neither better higher nor lower"):
        guarded_metrics(WORLD, ["speed"])
    for margins in ({"size": 0.1}, {"joint": 0.0}, {"joint": float("nan")}):
        with pytest.raises(InputError, match="is not above 0, or not of a guarded metric"):
            check_margins(margins, ("joint",))


def test_the_first_candidates_are_valid_settings_of_the_model():
    names = [each.name for each in first_candidates(PLANNER, dtype="bf16")]
    assert names[0] == "sampler ddpm, steps 12, dtype bf16, decode_dtype bf16"
    assert names[6:] == ["the model's fast settings"]
    with pytest.raises(InputError, match="sampler euler does not go with guidon-small"):
        first_candidates(PLANNER, samplers=["euler"])
    spaced, spared = finer_candidates(Candidate({"steps": 20}), 10, "constant")
    for each in (*spaced, *spared):
        PLANNER.complete([""], **each.choices)


def test_a_candidate_is_read_from_a_text():
    text = "sampler=unipc steps=18 spacing=split:0.35,0.33 adaptive=0.99 reuse=3"
    read = Candidate.read(text).choices
    assert read == {
        "sampler": "unipc", "steps": 18, "spacing": "split:0.35,0.33", "adaptive": 0.99, "reuse": 3,
    }  # fmt: skip
    PLANNER.complete([""], **read)


@pytest.mark.usefixtures("pictures")
def test_what_is_written_can_be_read_by_a_model_folder(tmp_path):
    found, _, _ = run(tmp_path / "blocks", finer=False)
    preset = find_preset("guidon-small")
    paths = found.write(tmp_path, preset)
    assert {path.name for path in paths} == {"calibration.json", "calibration.csv", "Guidon.fast.json", "pareto.png"}
    assert (tmp_path / "pareto.png").stat().st_size > 1000
    assert read_fast(tmp_path / "Guidon.fast.json") == found.fast(preset)
    assert json.loads((tmp_path / "calibration.json").read_text())["fast"] == {"steps": 25}
    assert len((tmp_path / "calibration.csv").read_text().splitlines()) == 1 + 3 + 2
