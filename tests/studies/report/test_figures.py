"""The plots: what is drawn where."""

import re

import numpy as np

from guidon.metrics.world import METRICS
from guidon.studies.report import figures

SLUGS = {"a": "00-a", "b": "01-b"}


def test_points_are_where_their_values_are():
    axes = METRICS["joint"], METRICS["colour_drift"]
    svg = figures.scatter({"a": (0.2, 0.1), "b": (0.8, 0.4)}, {"a": 1.0, "b": 0.0}, axes, SLUGS)
    (ax, ay), (bx, by) = (tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg))
    assert ax < bx
    assert ay > by  # a larger value is higher up, at a smaller number of pixels
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["1.00", "0.10"]
    assert 'href="#s-00-a"' in svg
    assert figures.scatter({"a": (np.nan, 0.1)}, {"a": 1.0}, axes, SLUGS) == ""


def test_the_largest_value_of_a_heat_map_is_the_strongest_colour():
    svg = figures.heat(np.array([[0.0, 1.0], [np.nan, 0.5]]), ["r", "s"], ["c", "d"], "title")
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.060", "1.000", "0.530"]
    assert "s, d: 0.50" in svg
