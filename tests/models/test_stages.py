"""A stage makes its part once, in whatever thread; drops it if it should; and raises where it is used."""

import gc
import threading
import time
import weakref

import pytest

from guidon.models.stages import Stage


class Part:
    def __init__(self, *how):
        self.how = how


def made(keep, make=Part):
    """A stage, and the list of what it made, as weak references."""
    parts = []

    def note(*how):
        part = make(*how)
        parts.append(weakref.ref(part))
        return part

    return Stage(note, keep), parts


def test_a_kept_part_is_made_once_and_another_way_of_making_it_drops_it():
    stage, parts = made(keep=True)
    for how in ("fp32", "fp32", "bf16"):
        with stage.in_use(how) as part:
            assert part.how == (how,)
        del part
    gc.collect()
    assert [part() is not None for part in parts] == [False, True]


def test_a_part_that_is_not_kept_goes_after_use_even_where_the_block_fails():
    stage, parts = made(keep=False)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), stage.in_use():
            1 / 0  # noqa: B018
    gc.collect()
    assert [part() for part in parts] == [None, None]


@pytest.mark.parametrize("keep", [True, False])
def test_a_part_prepared_in_the_background_is_the_one_in_use(keep):
    thread = []

    def slow(*how):
        thread.append(threading.current_thread())
        time.sleep(0.05)
        return Part(*how)

    stage, parts = made(keep, slow)
    stage.prepare_in_background()
    stage.prepare_in_background()
    with stage.in_use() as part:
        assert part is parts[0]()
    assert len(parts) == 1
    assert thread != [threading.main_thread()]


def test_threads_share_one_part():
    stage, parts = made(True, lambda *how: time.sleep(0.02) or Part(*how))
    seen = []

    def use():
        with stage.in_use() as part:
            seen.append(part)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(map(id, seen))) == len(parts) == 1


@pytest.mark.parametrize("background", [True, False])
def test_what_making_raises_is_raised_at_use_and_the_next_use_tries_again(background):
    failures = [OSError("the disk is gone")]

    def make():
        if failures:
            raise failures.pop()
        return Part()

    stage = Stage(make, keep=True)
    if background:
        stage.prepare_in_background()
    with pytest.raises(OSError, match="the disk is gone"), stage.in_use():
        pass
    with stage.in_use() as part:
        assert isinstance(part, Part)
