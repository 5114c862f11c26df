import json
import math

import pytest
import torch

from guidon.analysis.speed import Arm, compare_results, compare_speed, describe_machine
from guidon.core.errors import InputError

X = torch.linspace(-2, 2, 100).view(4, 25)


def test_rounding_is_exact_and_a_planted_error_is_lossy():
    assert compare_results(X + 5e-6, X).exact
    planted = X.clone()
    planted[1, 3] += 3e-5
    found = compare_results(planted, X)
    assert not found.exact
    assert found.largest == pytest.approx(3e-5, rel=0.1)
    assert "lossy" in str(found)


def test_rounding_grows_with_the_values_but_never_falls_below_that_of_one():
    assert compare_results(100 * X + 1e-3, 100 * X).exact
    assert not compare_results(100 * X + 3e-3, 100 * X).exact
    assert compare_results(X / 1000 + 5e-6, X / 1000).exact
    assert not compare_results(X / 1000 + 2e-5, X / 1000).exact


def test_what_is_not_a_number_is_not_exact():
    assert not compare_results(X * math.nan, X).exact
    assert not compare_results(torch.full_like(X, math.inf), X).exact


def test_shapes_must_agree():
    with pytest.raises(InputError, match="same work"):
        compare_results(X[:2], X)


def test_the_table_labels_each_arm_and_json_holds_all(capsys):
    arms = [
        Arm("plain", lambda: X * 2),
        Arm("same", lambda: X + X),
        Arm("wrong", lambda: X * 2.001, note="on purpose"),
        Arm("noise", lambda: X * 2, lambda: X * 2 + 1e-6),
        Arm("other work", lambda: X[:1], compared=False, counted=False),
    ]
    found = compare_speed("Doubling", arms, rounds=2)
    lines = {line.split("|")[1].strip(): line for line in found.table().splitlines() if line.startswith("|")}
    assert "exact" in lines["same"]
    assert "lossy" in lines["wrong"]
    assert "on purpose" in lines["wrong"]
    assert "exact" in lines["noise"]
    assert "not compared" in lines["other work"]
    assert len({len(line) for line in lines.values()}) == 1  # straight columns
    values = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [row["exact"] for row in values["rows"]] == [None, True, False, True, None]
    assert values["rows"][0]["counts"]["operators"] == 1
    assert len(values["rows"][0]["cpu"]) == values["rounds"] == 2


def test_a_machine_is_plain_values():
    found = json.loads(json.dumps(describe_machine(), allow_nan=False))
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 12
