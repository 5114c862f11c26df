import multiprocessing
import os
import threading

import pytest
import torch

from guidon.core.errors import InputError
from guidon.training.data.prefetch import prefetched


def test_batches_come_in_order_drawn_by_another_thread():
    drawn = []

    def draw(step):
        drawn.append((step, threading.current_thread() is threading.main_thread()))
        return step * 10

    assert list(prefetched(draw, 3, 7)) == [30, 40, 50, 60]
    assert drawn == [(step, False) for step in range(3, 7)]
    assert list(prefetched(draw, 7, 7)) == []


def test_the_thread_ends_with_its_reader_and_its_errors_are_seen():
    before = threading.active_count()
    batches = prefetched(lambda step: 1 // (2 - step), 0, 100)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)
    unread = prefetched(lambda step: step, 0, 100)
    next(unread)
    unread.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_draw_in_order_and_leave_the_random_numbers_alone(workers):
    before = torch.get_rng_state()
    drawn = list(prefetched(lambda step: [(step, torch.full((2,), step), os.getpid())], 3, 8, workers))
    assert [batch[0][0] for batch in drawn] == [3, 4, 5, 6, 7]
    assert [batch[0][1].tolist() for batch in drawn] == [[n, n] for n in range(3, 8)]
    processes = {batch[0][2] for batch in drawn}
    assert len(processes) == workers
    assert os.getpid() not in processes
    assert torch.equal(torch.get_rng_state(), before)
    assert list(prefetched(lambda step: step, 7, 7, workers)) == []


def test_processes_end_with_their_reader_and_their_errors_are_seen_as_they_were_raised():
    def draw(step):
        if step == 2:
            raise InputError("clip 2 cannot be read: leave it out")
        return step

    batches = prefetched(draw, 0, 100, 2)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(InputError, match=r"^clip 2 cannot be read: leave it out$"):
        next(batches)
    unread = prefetched(lambda step: step, 0, 100, 2)
    next(unread)
    unread.close()
    assert not multiprocessing.active_children()
