"""What is drawn again: the scene as it was drawn, where that is clear, and as it was asked for, where it is not."""

import dataclasses
import math

import numpy as np
import pytest

from guidon import world
from guidon.metrics.world import measure
from guidon.training.data import pairs
from guidon.training.data.redraw import correct, redraw

CLIPS = [world.clip("train", 3, index) for index in range(12)]
SCENES = [clip.scene for clip in CLIPS]
TRUTH = np.stack([clip.frames() for clip in CLIPS])


def wanted(scene, **other):
    thing = scene.things[0]
    asked = world.Wanted(thing.shape, thing.colour, thing.size, thing.motion, thing.speed, scene.background)
    return dataclasses.replace(asked, **other)


def of(scene, **changes):
    thing = dataclasses.replace(scene.things[0], motion="still", speed=None, start=(30.0, 33.0), **changes)
    return dataclasses.replace(scene, things=(thing,))


def blob(scene, share, area=280.0):
    """Between a circle and a square."""
    centres = of(scene).things[0].centroids()
    circle, square = (world.coverage(shape, area, centres) for shape in ("circle", "square"))
    alpha = (circle + share * (square - circle))[..., None]
    colour, ground = (np.array(p, np.float32) for p in (world.COLOURS["red"], world.BACKGROUNDS["white"]))
    return (ground + alpha * (colour - ground)).astype(np.float32)


def test_truth_stays_as_it_is():
    again = redraw(TRUTH, [wanted(scene) for scene in SCENES])
    assert again.usable.all()
    assert np.abs(again.frames - TRUTH).max() < 0.08  # positions are read to a few hundredths of a pixel
    assert np.allclose(again.coverage, [world.foreground(scene) for scene in SCENES], atol=0.1)
    assert again.frames.dtype == np.float32


def test_errors_of_drawing_are_mended():
    rng = np.random.default_rng(0)
    faulty = TRUTH + 0.04 * rng.standard_normal((len(TRUTH), 1, 8, 8, 1)).repeat(8, 2).repeat(8, 3)
    asked = [wanted(scene) for scene in SCENES]
    again = redraw(np.clip(faulty, 0, 1).astype(np.float32), asked)
    assert again.usable.sum() >= 10
    chosen = np.flatnonzero(again.usable)
    assert (measure(again.frames[chosen], [asked[k] for k in chosen])["joint"] == 1).all()


@pytest.mark.parametrize("other", [{"shape": "cross"}, {"colour": "blue"}, {"size": "small"}, {"motion": "up"}])
def test_what_is_clearly_drawn_stays_though_the_caption_asks_for_another(other):
    scene = of(world.Scene("white", (world.Thing("square", "red", "large", "still", None, (0.0, 0.0)),)))
    clip = world.render(scene)
    again = redraw(clip[None], [wanted(scene, **other)])
    assert again.usable.all()
    assert np.abs(again.frames[0] - clip).max() < 0.08


def test_the_caption_decides_between_two_shapes_and_two_sizes():
    scene = world.Scene("white", (world.Thing("circle", "red", "large", "still", None, (0.0, 0.0)),))
    for shape in ("circle", "square"):
        asked = wanted(scene, shape=shape)
        again = redraw(blob(scene, 0.5)[None], [asked])
        assert measure(again.frames, [asked])["joint"] == 1
    between = math.sqrt(130 * 280)
    for size in ("small", "large"):
        asked = wanted(scene, size=size)
        assert measure(redraw(blob(scene, 0, between)[None], [asked]).frames, [asked])["size"] == 1


def test_a_size_that_clip_and_caption_leave_open_is_not_used():
    scene = world.Scene("white", (world.Thing("circle", "red", "large", "still", None, (0.0, 0.0)),))
    unsaid = wanted(scene, size=None)
    for area, usable in ((280, True), (240, True), (200, False), (150, True), (340, True), (360, False)):
        assert redraw(blob(scene, 0, area)[None], [unsaid]).usable[0] == usable, area
    assert redraw(blob(scene, 0, 200)[None], [wanted(scene)]).usable[0]


def test_what_cannot_be_read_is_not_used():
    rng = np.random.default_rng(0)
    empty = np.full_like(TRUTH[0], 0.95)
    noise = rng.random(TRUTH[0].shape, np.float32)
    jumping = TRUTH[0][rng.permutation(16)]
    outside = world.render(of(SCENES[0]))
    outside = np.roll(outside, (0, -30), (0, 2))[:, :, :]
    scenes = [SCENES[0]] * 3
    assert SCENES[0].things[0].motion != world.STILL
    found = redraw(np.stack([empty, noise, jumping]), [wanted(scene) for scene in scenes])
    assert not found.usable.any()
    assert not found.frames.any()
    assert not redraw(outside[None], [wanted(SCENES[0])]).usable.any()  # an object that the frame cuts


def test_an_object_may_reach_beyond_the_frame_by_a_pixel():
    """A circle of a radius of 9.44 pixels, at each of the four sides."""
    asked, clips = world.Wanted("circle", "red", "large", "still", None, "white"), []
    beyond_half_a_pixel, beyond_two = [(9.0, 32.0), (55.0, 32.0)], [(7.0, 32.0), (57.0, 32.0)]
    centres = [place[::turn] for places in (beyond_half_a_pixel, beyond_two) for place in places for turn in (1, -1)]
    for centre in centres:
        alpha = world.coverage("circle", 280.0, np.array([centre] * world.FRAMES))[..., None]
        ground = np.array(world.BACKGROUNDS["white"])
        clips.append(ground + alpha * (np.array(world.COLOURS["red"]) - ground))
    assert redraw(np.stack(clips).astype(np.float32), [asked] * 8).usable.tolist() == [True] * 4 + [False] * 4


# Errors of content, too


def still_at(x, y=32.0, frames=world.FRAMES):
    """A small red circle that stays at a place, and is seen in so many of the frames."""
    scene = world.Scene("white", (world.Thing("circle", "red", "small", "still", None, (x, y)),))
    clip = world.render(scene)
    clip[frames:] = world.BACKGROUNDS["white"]
    return clip


def moves(motion="right", speed=None, **other):
    return dataclasses.replace(world.Wanted("circle", "red", "small", motion, speed, "white"), **other)


def middle_of(scene):
    return scene.things[0].centroids()[[0, -1]].mean(0)


def test_a_clip_that_is_right_is_corrected_to_its_own_scene():
    for scene, found in zip(SCENES, correct(TRUTH, [wanted(scene) for scene in SCENES]), strict=True):
        assert math.dist(found.things[0].start, scene.things[0].start) < 0.1
        thing = dataclasses.replace(found.things[0], start=scene.things[0].start)
        assert dataclasses.replace(found, things=(thing,)) == scene


def test_a_corrected_scene_is_as_asked_and_passes_where_it_was_drawn():
    scene = world.Scene("white", (world.Thing("square", "red", "large", "right", "quickly", (17.0, 32.0)),))
    asked = world.Wanted("cross", "blue", "small", "up", "slowly", "black")
    open_ = dataclasses.replace(asked, size=None, speed=None)
    stays = dataclasses.replace(open_, motion=world.STILL)
    told, shown, still = correct(np.stack([world.render(scene)] * 3), [asked, open_, stays])
    for found, size, motion, speed in (
        (told, "small", "up", "slowly"), (shown, "large", "up", "quickly"), (still, "large", "still", None)
    ):  # fmt: skip
        (thing,) = found.things
        asked_for = ("cross", "blue", size, motion, speed)
        assert (thing.shape, thing.colour, thing.size, thing.motion, thing.speed) == asked_for
        assert found.background == "black"
        assert math.dist(middle_of(found), middle_of(scene)) < 0.2


def test_a_corrected_object_is_moved_into_the_frame_but_not_far():
    near, far = correct(np.stack([still_at(47.0), still_at(52.0)]), [moves(speed="quickly")] * 2)
    assert far is None
    assert near.things[0].start == pytest.approx(world.inside(near.things[0]))
    right = world.extents("circle", world.AREAS["small"])[1]
    assert near.things[0].centroids()[-1, 0] == pytest.approx(world.SIZE - 1 - right, abs=1e-6)


def test_what_shows_too_little_or_no_steady_path_is_not_corrected():
    jumping = np.concatenate([still_at(20.0)[:8], still_at(40.0)[:8]])
    clips = np.stack([still_at(32.0, frames=10), still_at(32.0, frames=9), jumping, still_at(32.0)])
    found = correct(clips, [moves()] * 3 + [moves(None)])
    assert [scene is not None for scene in found] == [True, False, False, False]


def test_the_rules_of_pairs_went_up_when_the_larger_of_two_objects_got_its_own_colour():
    green = world.Thing("circle", "green", "large", "still", None, (20.0, 32.0))
    yellow = world.Thing("circle", "yellow", "small", "still", None, (50.0, 32.0))
    asked = world.Wanted("circle", "green", None, "still", None, "black")
    (found,) = correct(world.render(world.Scene("black", (green, yellow)))[None], [asked])
    assert found.things[0].size == {1: "small", 2: "large"}[pairs.RULES]
