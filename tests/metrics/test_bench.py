"""The contract of a bench, on both benches: what one names exists, and what one lacks is refused."""

import numpy as np
import pytest

from guidon import world
from guidon.core.errors import InputError
from guidon.metrics.bench import BENCHES, find_bench
from guidon.metrics.metric import EVALUATION_SEED, TUNING_SEED

WORLD, VIDEO = find_bench("world"), find_bench("video")
CAPTIONS = WORLD.captions("L0", 5, 3)
CLIPS = np.stack([(world.clip("L0", 5, k).frames() * 255).round().astype(np.uint8) for k in range(3)])


@pytest.mark.parametrize("bench", BENCHES.values(), ids=list(BENCHES))
def test_a_bench_measures_all_its_metrics_and_names_no_others(bench):
    found = bench.measure(CLIPS, CAPTIONS)
    assert set(found) == set(bench.metrics)
    assert {values.shape for values in found.values()} == {(3,)}
    named = {*bench.shown, *bench.matched, *bench.watched, bench.primary, *(n for pair in bench.fronts for n in pair)}
    assert named <= set(bench.metrics)
    assert bench.shown
    for name, metric in bench.metrics.items():
        assert metric.name == name
        low, high = metric.range
        values = found[name][np.isfinite(found[name])]
        assert ((low <= values) & (values <= high)).all(), name


def test_a_bench_measures_each_clip_as_if_it_were_alone():
    for bench in BENCHES.values():
        together = bench.measure(CLIPS, CAPTIONS)
        for k in range(3):
            alone = bench.measure(CLIPS[k : k + 1], CAPTIONS[k : k + 1])
            for name in bench.metrics:
                assert np.array_equal(alone[name], together[name][k : k + 1], equal_nan=True), name


def test_the_worlds_truth_is_right_and_another_prompts_is_not():
    assert WORLD.measure(CLIPS, CAPTIONS)["joint"].tolist() == [1, 1, 1]
    assert WORLD.measure(CLIPS, CAPTIONS[1:] + CAPTIONS[:1])["joint"].tolist() == [0, 0, 0]


def test_captions_and_frames_are_those_of_the_world():
    assert tuple(world.clip("L0", 5, k).caption for k in range(3)) == CAPTIONS
    examples, split = WORLD.own_examples()
    assert split == "L0"
    assert np.array_equal(examples.frames(split, 5, 1), world.clip("L0", 5, 1).frames())
    tuning, reported = (WORLD.captions(None, seed, 50) for seed in (TUNING_SEED, EVALUATION_SEED))
    assert tuning != reported


def test_samples_of_several_seeds_tell_how_varied_they_are():
    examples, split = WORLD.own_examples()
    same = examples.over_seeds(split, 5, 0, np.repeat(CLIPS[:1], 3, axis=0))
    assert same["start_spread"] == pytest.approx(0, abs=1e-9)


def test_the_goal_of_tuning_is_computed_from_the_metrics():
    assert WORLD.goal is not None
    values = WORLD.measure(CLIPS, CAPTIONS)
    assert WORLD.goal.keep in values
    lowered = {name: of(values) for name, of in WORLD.goal.lower.items()}
    assert np.array_equal(lowered["oversaturation"], np.abs(values["chroma"] - 1))
    assert np.array_equal(lowered["colour_drift"], values["colour_drift"])


def test_prompts_are_checked_by_the_bench_they_are_for():
    WORLD.check_prompt("a red circle")
    VIDEO.check_prompt("a lighthouse in a storm")
    with pytest.raises(InputError, match="asks for nothing that the world has"):
        WORLD.check_prompt("a lighthouse in a storm")
    with pytest.raises(InputError, match="one colour"):
        WORLD.check_prompt("a red blue circle")


def test_what_a_bench_lacks_is_refused():
    with pytest.raises(InputError, match="'video' has no captions with exact truth: give prompts"):
        VIDEO.captions("L0", 1, 2)
    with pytest.raises(InputError, match="split 'L9' does not exist; valid: train, L0"):
        WORLD.captions("L9", 1, 2)
    with pytest.raises(InputError, match="did you mean 'teleport'"):
        WORLD.find_metric("teleprt")
    with pytest.raises(InputError, match="'unsteady path' is the metric's name in reports: give 'law_residual'"):
        WORLD.find_metric("unsteady path")
    with pytest.raises(InputError, match="did you mean 'world'"):
        find_bench("wold")
    with pytest.raises(InputError, match="captions are judged on the world's 64x64 videos"):
        WORLD.measure(CLIPS.repeat(2, axis=2), CAPTIONS)
    with pytest.raises(InputError, match="sides of at least 16"):
        VIDEO.measure(CLIPS[:, :, :8, :8], CAPTIONS)
