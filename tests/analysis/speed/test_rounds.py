import time

import pytest
import torch

from guidon.analysis.speed import Arm, compare_speed, rounds, take_rounds
from guidon.core.errors import InputError


class Clocks:
    """Clocks that only the work moves, so that times are exact."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for name in ("perf_counter", "process_time"):
            monkeypatch.setattr(time, name, lambda: self.now)

    def work(self, seconds):
        def run():
            self.now += seconds

        return run


def test_a_planted_ratio_is_found_and_a_a_is_one(monkeypatch):
    clocks = Clocks(monkeypatch)
    arms = [Arm("slow", clocks.work(3.0), counted=False), Arm("fast", clocks.work(1.5), counted=False)]
    found = compare_speed("planted", arms, rounds=6)
    assert found.row("fast").ratio.value == pytest.approx(2)
    assert (found.twin.value, found.noise) == (1, "")
    assert found.row("slow").median("cpu") == pytest.approx(3)


def test_short_work_is_repeated_and_its_time_is_of_one_run(monkeypatch):
    clocks = Clocks(monkeypatch)
    taken = take_rounds([Arm("short", clocks.work(0.001))], rounds=3)
    assert taken.times["short"].wall == pytest.approx([0.001] * 3)
    assert clocks.now > 3 * 2 * rounds.SHORTEST  # three rounds of the arm and its twin


def test_each_round_holds_every_arm_once_in_an_order_that_changes(monkeypatch):
    clocks, order = Clocks(monkeypatch), []

    def arm(name):
        def run():
            order.append(name)
            clocks.now += 1

        return Arm(name, run)

    taken = take_rounds([arm("a"), arm("b"), arm("c")], rounds=20)
    chunks = [tuple(order[k : k + 4]) for k in range(6, len(order), 4)]  # after two runs of each to warm up
    assert all(sorted(chunk) == ["a", "a", "b", "c"] for chunk in chunks)
    assert len(set(chunks)) > 4
    assert taken.done == len(chunks) == 20


def test_rounds_fill_the_time_that_there_is(monkeypatch):
    clocks = Clocks(monkeypatch)
    for seconds, expected in ((0.1, rounds.FEWEST), (14.0, 7), (1000.0, rounds.MOST)):
        assert take_rounds([Arm("a", clocks.work(1.0))], seconds=seconds).done == expected


def test_ctrl_c_keeps_whole_rounds(monkeypatch):
    clocks, left = Clocks(monkeypatch), [9]

    def run():
        clocks.now += 1
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    taken = take_rounds([Arm("a", run)], rounds=50)  # two to warm up, then two each round
    assert taken.stopped
    assert [len(times.wall) for times in taken.times.values()] == [3, 3]
    left[0] = 3
    with pytest.raises(KeyboardInterrupt):  # no round was whole
        take_rounds([Arm("a", run)], rounds=50)


def test_names_of_arms_are_told_apart():
    with pytest.raises(InputError, match="different names"):
        take_rounds([Arm("a", lambda: None), Arm("a", lambda: None)], rounds=1)
    with pytest.raises(InputError, match="A/A"):
        take_rounds([Arm("A/A", lambda: None)], rounds=1)


def test_real_work_is_timed_on_both_clocks():
    a = torch.randn(64, 64)
    taken = take_rounds([Arm("product", lambda: a @ a)], rounds=2)
    assert all(0 < cpu < 10 and 0 < wall < 10 for cpu, wall in zip(*vars(taken.times["product"]).values(), strict=True))
