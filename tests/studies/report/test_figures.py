"""The plots: what is drawn where, and that labels are kept apart."""

import re

import numpy as np
import pytest

from guidon.metrics.metric import SHARE
from guidon.metrics.statistics import Interval
from guidon.metrics.world import METRICS
from guidon.studies.report import figures
from guidon.studies.report.figures import Axis, Point

AXES = METRICS["colour_drift"], METRICS["joint"]


def point(letter, x, y, front=1.0):
    return Point(letter, f"00-{letter}", letter, x, y, front)


def test_points_are_where_their_values_are():
    svg = figures.scatter([point("A", 0.2, 0.1), point("B", 0.8, 0.4, 0.0)], AXES)
    (ax, ay), (bx, by) = (tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)%" cy="([\d.]+)"', svg))
    assert ax < bx
    assert ay > by  # a larger value is higher up, at a smaller number of pixels
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["1.00", "0.10"]
    assert 'href="#s-00-A"' in svg
    assert figures.scatter([point("A", np.nan, 0.1)], AXES) == ""


@pytest.mark.parametrize("count", [3, 12, 40])
def test_labels_keep_off_each_other_and_off_other_points_at_every_width(count):
    rng = np.random.default_rng(count)
    places = [(float(x), float(y)) for x, y in zip(rng.random(count) * 20, 20 + 200 * rng.random(count), strict=True)]
    points = [point(letter, 0, 0) for letter in map(str, range(count))]
    labels = figures._labels(points, places)
    assert sum(at is not None for at in labels) > count / 4
    for width in (figures.NARROWEST, 700):
        boxes = [
            (width * x / 100, at, figures.LETTER * len(own.letter) / 2, figures.LINE / 2)
            for (x, _), at, own in zip(places, labels, points, strict=True)
            if at is not None
        ]
        for number, (x, y, w, h) in enumerate(boxes):
            for a, b, v, g in boxes[number + 1 :]:
                assert abs(x - a) >= w + v - 1e-6 or abs(y - b) >= h + g - 1e-6


def test_equal_points_have_a_label_each():
    labels = figures._labels([point(letter, 0, 0) for letter in "ABCDEF"], [(50.0, 100.0)] * 6)
    assert len(set(labels)) == 6
    assert None not in labels


def test_a_bar_lies_on_the_axis_of_its_ticks():
    axis = Axis.over([0, -0.5, 0.5])
    svg = figures.bar(Interval(0.25, 0.0, 0.5), axis, "better", "x")
    (low, high) = re.search(r'x1="([\d.]+)%" y1="10.0" x2="([\d.]+)%"', svg).groups()
    assert float(low) == pytest.approx(axis(0), abs=0.01)
    assert float(high) == pytest.approx(axis(0.5), abs=0.01)
    assert re.findall(r">([^<]+)</text>", figures.ticks(axis, SHARE)) == ["-50", "0", "+50"]


def test_a_heat_map_has_one_scale_and_few_columns():
    values, names = figures.binned(np.arange(200.0).reshape(2, 100), [str(k) for k in range(100)])
    assert values.shape == (2, figures.COLUMNS)
    assert values[0, 0] == 0.5
    assert (names[0], names[-1]) == ("0 to 1", "98 to 99")
    svg = figures.heat(np.array([0.0, 1.0, 2.0]), 4.0, ["a", "b", "c"], "row")
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.000", "0.250", "0.500"]
    assert "c: 2" in svg
