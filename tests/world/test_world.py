import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidon import world
from guidon.world.captions import HELD_OUT_TEMPLATES, TEMPLATES
from guidon.world.scene import OPPOSITE, extents

scenes = st.builds(
    lambda split, index: world.clip(split, 0, index).scene, st.sampled_from(world.SPLITS), st.integers(0, 5000)
)


def centroid(mask):
    y, x = np.mgrid[: mask.shape[1], : mask.shape[2]] + 0.5
    total = mask.sum((1, 2))
    return np.stack([(mask * x).sum((1, 2)), (mask * y).sum((1, 2))], 1) / total[:, None]


@settings(max_examples=60, deadline=None)
@given(scenes)
def test_rendered_objects_are_where_and_as_large_as_the_scene_says(scene):
    mask = world.foreground(scene)
    thing = scene.things[0]
    assert np.abs(centroid(mask) - thing.centroids()).max() < 0.06
    assert np.allclose(mask.sum((1, 2)), world.AREAS[thing.size], rtol=0.02)


@settings(max_examples=60, deadline=None)
@given(scenes)
def test_objects_stay_inside_the_frame(scene):
    thing = scene.things[0]
    left, right, up, down = extents(thing.shape, world.AREAS[thing.size])
    low, high = thing.centroids() - np.array([left, up]), thing.centroids() + np.array([right, down])
    assert low.min() > 1 - 1e-9
    assert high.max() < world.SIZE - 1 + 1e-9
    mask = world.foreground(scene)
    border = np.concatenate([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], axis=1)
    assert border.max() < (0.25 if thing.shape == "triangle" else 1e-6)  # anti-aliasing reaches past an acute corner


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5000))
def test_a_family_differs_in_shape_alone_and_stays_in_its_split(index):
    own, *others = world.family("train", 0, index)
    assert own == world.clip("train", 0, index).scene
    assert len(others) == 3
    for scene in others:
        thing = scene.things[0]
        assert dataclasses.replace(own.things[0], shape=thing.shape, start=thing.start) == thing
        assert math.dist(thing.start, own.things[0].start) < 12
        test_objects_stay_inside_the_frame.hypothesis.inner_test(scene)
        attributes = (thing.shape, thing.colour, thing.size, thing.motion, thing.speed, scene.background)
        assert attributes in world.combinations("train")


@pytest.mark.parametrize("split", ["train", "L1", "L3"])
def test_a_family_in_both_sizes_repeats_its_shapes_in_the_other(split):
    for index in range(40):
        family = world.family(split, 0, index, sizes=True)
        assert family[:4] == world.family(split, 0, index)
        for own, other in zip(family[:4], family[4:], strict=True):
            (thing,), (sibling,) = own.things, other.things
            assert sibling.size != thing.size
            assert dataclasses.replace(thing, size=sibling.size, start=sibling.start) == sibling
            assert math.dist(thing.start, sibling.start) < 12
            assert world.holds(split, other)
            test_objects_stay_inside_the_frame.hypothesis.inner_test(other)


def test_nearly_every_family_has_several_shapes():
    counts = [len({scene.things[0].shape for scene in world.family("train", 0, index)}) for index in range(500)]
    assert min(counts) >= 1
    assert np.mean(np.array(counts) >= 3) > 0.7


@settings(max_examples=40, deadline=None)
@given(scenes)
def test_playing_backwards_is_the_reversed_scene(scene):
    assert np.allclose(world.render(scene)[::-1], world.render(scene.reversed()), atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(scenes)
def test_colours_are_exact_where_nothing_is_blended(scene):
    frame, mask = world.render(scene)[0], world.foreground(scene)[0]
    assert np.allclose(frame[mask == 0], world.BACKGROUNDS[scene.background])
    assert np.allclose(frame[mask == 1], world.COLOURS[scene.things[0].colour], atol=1e-6)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_every_shape_has_the_area_asked_for(shape):
    for area in world.AREAS.values():
        assert world.coverage(shape, area, np.array([[32.3, 31.8]])).sum() == pytest.approx(area, rel=0.01)


def test_a_circle_reaches_as_far_as_its_radius():
    assert extents("circle", math.pi * 9) == pytest.approx((3, 3, 3, 3))


def test_a_clip_depends_on_its_index_alone():
    late, early = world.clip("train", 3, 777), world.clip("train", 3, 12)
    assert world.clip("train", 3, 777) == late
    assert world.clip("train", 3, 12) == early
    assert world.clip("train", 4, 777).scene != late.scene
    assert world.clip("L0", 3, 777).scene != late.scene


def test_a_split_is_walked_through_in_another_order_each_time():
    count = len(world.combinations("train"))
    first, second = ([world.clip("train", 0, start + k).scene for k in range(20)] for start in (0, count))
    same = [
        one.background == other.background
        and dataclasses.replace(one.things[0], start=other.things[0].start) == other.things[0]
        for one, other in zip(first, second, strict=True)
    ]
    assert sum(same) < 3


def triples(split):
    return {(a.shape, a.colour, a.motion) for a in world.combinations(split)}


def pairs(split):
    return {(a.shape, a.colour) for a in world.combinations(split)} | {
        (a.shape, a.motion) for a in world.combinations(split)
    }


def test_held_out_splits_do_not_leak():
    seen_pairs, seen_triples = pairs("train"), triples("train")
    for a in world.combinations("L1"):
        assert (a.shape, a.colour) not in seen_pairs or (a.shape, a.motion) not in seen_pairs
    assert pairs("L2") <= seen_pairs
    assert not triples("L2") & seen_triples
    assert {a.speed for a in world.combinations("L3")} == {"moderately"}
    assert triples("L3") <= seen_triples  # nothing but the speed is new
    assert set(world.combinations("L0")) == set(world.combinations("train"))


def test_held_out_share_is_about_fifteen_percent():
    everything = len(world.SHAPES) * len(world.COLOURS)
    colour_shape = {(a.shape, a.colour) for a in world.combinations("train")}
    assert 0.1 <= 1 - len(colour_shape) / everything <= 0.2
    assert 0.06 <= len(triples("L2")) / len(triples("L2") | triples("train")) <= 0.11


def test_a_split_is_balanced():
    count = len(world.combinations("train"))
    table = world.coverage_table("train", 0, count)
    for field in ("size", "background"):
        values = list(table[field].values())
        assert max(values) == min(values)
    assert table["motion"][world.STILL] > 0
    assert max(table["colour"].values()) / min(table["colour"].values()) < 1.5


def test_captions_tell_the_truth_in_known_words():
    words = world.vocabulary()
    for index in range(400):
        clip = world.clip("train", 0, index)
        said = [words[word] for word in re.findall(r"[a-z]+", clip.caption)]
        thing = clip.scene.things[0]
        assert thing.colour in said
        assert thing.shape in said
        assert clip.scene.background in said
        others = set(world.COLOURS) - {thing.colour} | set(world.SHAPES) - {thing.shape}
        assert not others & set(said)
        if thing.motion == world.STILL:
            assert not {"left", "right", "up", "down"} & set(said)
        else:
            assert [w for w in said if w in ("left", "right", "up", "down")] == thing.motion.split()
        for size in {"small", "large"} & set(said):
            assert size == thing.size


def test_held_out_templates_are_never_used_in_training():
    assert not set(TEMPLATES) & set(HELD_OUT_TEMPLATES)
    for index in range(200):
        assert not re.search(r"video of|we see", world.clip("train", 0, index).caption)
        assert re.search(r"video of|we see", world.clip("train", 0, index, held_out_templates=True).caption)


def test_size_and_speed_go_unsaid_half_of_the_time():
    clips = [world.clip("train", 0, i) for i in range(1000)]
    said = [re.search(r"small|little|tiny|large|big|huge", clip.caption) is not None for clip in clips]
    assert 0.45 < np.mean(said) < 0.55
    words = {word for clip in clips for word in clip.caption.split()}
    assert {"small", "little", "tiny", "large", "big", "huge"} <= words
    moving = [clip.caption for clip in clips if clip.scene.things[0].motion != world.STILL]
    said = [re.search(r"slow|gently|quick|fast|rapidly", caption) is not None for caption in moving]
    assert 0.45 < np.mean(said) < 0.55


def test_opposites_are_opposite():
    for motion, other in OPPOSITE.items():
        if motion != world.STILL:
            assert np.allclose(np.add(world.DIRECTIONS[motion], world.DIRECTIONS[other]), 0)


def test_two_things_make_one_sentence():
    one, two = world.clip("train", 0, 1).scene, world.clip("train", 0, 2).scene
    both = dataclasses.replace(one, things=one.things + two.things)
    assert " and a " in world.plain_caption(both)
    assert world.render(both).shape == (world.FRAMES, world.SIZE, world.SIZE, 3)


def test_of_two_things_the_last_one_is_in_front():
    behind = world.Thing("square", "red", "large", "still", None, (30.0, 32.0))
    before = world.Thing("square", "blue", "small", "still", None, (32.0, 32.0))
    alone, both = world.Scene("white", (behind,)), world.Scene("white", (behind, before))
    frame = world.render(both)[0]
    assert np.allclose(frame[32, 32], world.COLOURS["blue"], atol=1e-6)
    assert np.allclose(frame[32, 24], world.COLOURS["red"], atol=1e-6)
    assert np.allclose(world.foreground(both), world.foreground(alone), atol=1e-6)


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="valid: train, L0"):
        world.combinations("L9")
    with pytest.raises(ValueError, match="star"):
        world.coverage("star", 100, np.zeros((1, 2)))


@pytest.mark.parametrize("split", world.SPLITS)
def test_a_caption_is_read_as_what_it_was_written_from(split):
    for held_out in (False, True):
        for index in range(300):
            clip = world.clip(split, 3, index, held_out_templates=held_out)
            wanted, thing = world.read_caption(clip.caption), clip.scene.things[0]
            said = (wanted.shape, wanted.colour, wanted.motion, wanted.background)
            assert said == (thing.shape, thing.colour, thing.motion, clip.scene.background), clip.caption
            assert wanted.size in (None, thing.size)
            assert wanted.speed in (None, thing.speed)


def test_captions_that_contradict_themselves_or_say_nothing_are_refused():
    assert world.read_caption("blue things") == world.Wanted(colour="blue")
    for text, message in (
        ("a red and blue ball", "blue and red"), ("a ball goes left and right", "left and right"),
        ("a still ball moves up", "stillness and motion"), ("a dog barks", "nothing that the world has"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            world.read_caption(text)


@settings(max_examples=80, deadline=None)
@given(scenes, st.integers(0, 99))
def test_a_mistaken_scene_is_wrong_in_one_attribute_and_can_be_captioned(scene, seed):
    split = "L3" if scene.things[0].speed in world.UNSEEN_SPEED else "train"
    told = world.mistaken(scene, np.random.default_rng(seed), split)
    assert world.holds(split, told)
    right, wrong = dataclasses.asdict(scene.things[0]), dataclasses.asdict(told.things[0])
    differing = {key for key in right if right[key] != wrong[key]} | (
        {"background"} if scene.background != told.background else set()
    )
    if "motion" in differing:
        assert (wrong["speed"] is None) == (wrong["motion"] == world.STILL)
        differing -= {"speed"}
    assert len(differing) == 1
    assert differing <= {"background", "shape", "colour", "motion"}
    asked = world.read_caption(world.caption(told, np.random.default_rng(seed)))
    assert (asked.shape, asked.colour, asked.motion, asked.background) == (
        told.things[0].shape,
        told.things[0].colour,
        told.things[0].motion,
        told.background,
    )


def test_every_attribute_is_mistaken_equally_often():
    scenes = [world.clip("train", 0, index).scene for index in range(400)]
    count = dict.fromkeys(("background", "shape", "colour", "motion"), 0)
    for index, scene in enumerate(scenes):
        told = world.mistaken(scene, np.random.default_rng(index))
        for name in count:
            a, b = (s.background if name == "background" else getattr(s.things[0], name) for s in (scene, told))
            count[name] += a != b
    assert sum(count.values()) == len(scenes)
    assert all(abs(value - 100) < 4 * math.sqrt(75) for value in count.values())
