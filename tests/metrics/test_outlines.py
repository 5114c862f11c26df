"""Outlines are found to a few hundredths of a pixel, and their distance is the one that was drawn."""

import numpy as np
import pytest

from guidon import world
from guidon.metrics import outlines
from guidon.metrics.outlines import CORNERS, outline_errors, outline_points
from guidon.world.drawing import signed_distance

RNG = np.random.default_rng(0)
EVERY = [(shape, area) for shape in world.SHAPES for area in (*world.AREAS.values(), 190.0)]


@pytest.mark.parametrize("shape", [shape for shape, corners in CORNERS.items() if corners is not None])
def test_corners_are_those_that_the_renderer_draws(shape):
    corners = CORNERS[shape]
    after = np.roll(corners, -1, axis=0)
    for share in (0, 0.3, 0.5):
        x, y = (12 * (corners + share * (after - corners))).T
        assert np.allclose(signed_distance(shape, 144.0, x, y), 0, atol=1e-5)
    assert np.cross(corners, after).sum() / 2 == pytest.approx(1)  # the area
    assert np.allclose((corners + after).T @ np.cross(corners, after) / 6, 0)  # the centroid


@pytest.mark.parametrize(("shape", "area"), EVERY)
def test_a_shape_has_its_own_outline_wherever_it_is_and_whatever_its_size(shape, area):
    errors = outline_errors(world.coverage(shape, area, RNG.uniform(24, 40, (20, 2))))
    own = world.SHAPES.index(shape)
    assert (errors[:, own] < 0.11).all()
    assert (np.delete(errors, own, axis=1) > 0.5).all()


def test_points_of_a_circle_lie_on_it():
    points, exists = outline_points(world.coverage("circle", 280.0, np.array([(30.3, 31.7)])))
    radii = np.linalg.norm(points[exists] - (30.3, 31.7), axis=1)
    assert exists.sum() > 60
    assert np.allclose(radii, np.sqrt(280 / np.pi), atol=0.12)


@pytest.mark.parametrize("waves", [2, 3, 5])
@pytest.mark.parametrize("height", [0.15, 0.4])
def test_the_error_is_the_height_of_the_waves(waves, height):
    y, x = np.mgrid[:64, :64] - 31.2
    wave = height * np.sqrt(2) * np.cos(waves * np.arctan2(y, x) + 0.4)
    coverage = np.clip(0.5 - (np.hypot(x, y) - 9 - wave), 0, 1)
    assert outline_errors(coverage[None])[0, 0] == pytest.approx(height, rel=0.1)


def test_a_longer_fit_finds_no_better_place_and_size(monkeypatch):
    own = np.random.default_rng(0)
    drawn = np.concatenate([world.coverage(shape, 190.0, own.uniform(24, 40, (4, 2))) for shape in world.SHAPES])
    errors = outline_errors(drawn)
    monkeypatch.setattr(outlines, "ROUNDS", 12)
    assert np.allclose(outline_errors(drawn), errors, atol=0.05)


def test_frames_are_measured_each_alone_and_without_an_object_not_at_all():
    many = world.coverage("square", 130.0, RNG.uniform(24, 40, (4, 2)))
    many[2] = 0
    together = outline_errors(many)
    assert np.isnan(together[2]).all()
    for k in (0, 1, 3):
        assert np.allclose(outline_errors(many[k : k + 1])[0], together[k], rtol=1e-9)
    assert np.isnan(outline_errors(np.zeros((1, 16, 16)))).all()
