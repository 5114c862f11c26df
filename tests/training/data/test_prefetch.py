import threading

import pytest

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
