import sys

import pytest
import torch

from guidon.analysis.speed import Arm, compare_speed
from guidon.analysis.speed.memory import peak_memory

MB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak")
@pytest.mark.parametrize("size", [64, 192])
def test_the_peak_of_a_process_is_what_work_holds_at_once(size):
    def work():
        for _ in range(3):
            torch.ones(size * MB, dtype=torch.uint8)

    assert size * MB * 0.9 < peak_memory(work, torch.device("cpu")) < (size + 32) * MB


def test_what_a_device_does_not_tell_is_none_and_the_work_is_done():
    assert peak_memory(lambda: None, torch.device("meta")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak")
def test_a_table_shows_the_memory_of_each_arm():
    arms = [Arm(f"{size} MB", lambda size=size: torch.ones(size * MB, dtype=torch.uint8)[:9]) for size in (64, 128)]
    found = compare_speed("Two sizes", arms, rounds=1)
    assert "MB process" in found.table()
    small, large = (row["memory"] for row in found.as_json()["rows"])
    assert 1.5 < large / small < 2.5
