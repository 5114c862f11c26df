import os
import signal
import time

import pytest
import torch

from guidon.core.errors import InputError
from guidon.core.ranks import Ranks, Traffic
from ranks import Killed, on_ranks


def caught(work):
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_without_torchrun_there_is_one_rank_which_does_all():
    with Ranks.join() as ranks:
        assert (len(ranks), ranks.first, ranks.share(5)) == (1, True, slice(0, 5))
        assert ranks.together(lambda: 3) == [3]
    with pytest.raises(InputError, match="branch_ranks 2 needs several processes"):
        Ranks.join(branches=2)


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_things_once_and_as_equal_as_they_can_be(count, size):
    parts = [range(count)[Ranks(range(size), k).share(count)] for k in range(size)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("ranks", "clips", "branches", "expected"),
    [(2, 1, 2, 2), (2, 2, 2, 1), (2, 3, 2, 2), (4, 2, 2, 2), (4, 8, 2, 1), (3, 1, 3, 3), (3, 1, 2, 1), (2, 1, 1, 1)],
)
def test_the_branches_of_a_clip_are_shared_where_the_longest_rank_then_has_less_to_do(ranks, clips, branches, expected):
    assert Ranks(range(ranks), 0).branches_for(clips, branches) == expected


def test_teams_are_neighbours():
    teams = [Ranks(range(4), k).teams(2) for k in range(4)]
    assert [(team.members, team.index) for team in teams] == [((0, 1), 0), ((0, 1), 1), ((2, 3), 0), ((2, 3), 1)]


def test_messages_tensors_and_results_cross_and_are_counted():
    def work():
        with Ranks.join() as ranks:
            results = ranks.together(lambda: ranks.index * 10)
            before = Traffic(ranks.traffic.messages, ranks.traffic.message_bytes)
            if ranks.first:
                ranks.tell(1, text="x" * 2000, number=0.1)
                ranks.give(1, torch.arange(6.0).view(2, 3).T, "latents")
                heard = ranks.hear(1)
            else:
                heard = ranks.hear(0)
                ranks.tell(0, back=ranks.take(0, torch.empty(3, 2), "latents").tolist())
            own = caught(lambda: ranks.agreed(lambda: 1 / ranks.index))
            full = caught(lambda: ranks.agreed(lambda: [0][ranks.index] if ranks.first else _out_of_memory()))
            last = ranks.from_first(lambda: "the first" if ranks.first else "another")
            traffic = ranks.traffic
            sent = traffic.messages - before.messages, traffic.out["latents"], traffic.back["latents"]
            return results, heard, own, full, last, sent

    first, second = on_ranks(work)
    assert first[0] == second[0] == [0, 10]
    assert second[1] == {"text": "x" * 2000, "number": 0.1}
    assert first[1] == {"back": [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]}
    assert second[2] == "RankFailed: rank 0: ZeroDivisionError: division by zero"
    assert first[3].startswith("MemoryError")
    assert first[4] == second[4] == "the first"
    assert (first[5][1:], second[5][1:]) == ((24, 0), (0, 24))


def _out_of_memory():
    raise RuntimeError("CUDA out of memory")


def test_an_error_of_the_work_stays_itself_on_its_own_rank():
    def work():
        with Ranks.join() as ranks:
            try:
                ranks.agreed(lambda: {}["absent"] if ranks.first else None)
            except Exception as error:
                return type(error).__name__
        return ""

    assert on_ranks(work) == ["KeyError", "RankFailed"]


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_rank_that_is_gone_or_silent_is_noticed(how):
    def work():
        with Ranks.join() as ranks:
            if not ranks.first:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(5)
                return ""
            return caught(lambda: ranks.hear(1))

    first, second = on_ranks(work, GUIDON_RANKS_TIMEOUT="2")  # they must meet in this time, too
    assert first.startswith("RankLost: rank 1 ended, or sent nothing for 2 s")
    assert isinstance(second, Killed) == (how == "killed")


def test_work_may_take_longer_than_ranks_wait():
    """Of the first alone, and of all, each of which may fail."""

    def work():
        def long():
            time.sleep(0 if os.environ["RANK"] == "1" else 4)
            return os.environ["RANK"]

        def fails():
            if os.environ["RANK"] == "1":
                raise InputError("no such file")

        with Ranks.join() as ranks:
            return [
                ranks.from_first_at_length(long),
                ranks.together_at_length(long),
                caught(lambda: ranks.from_first_at_length(_out_of_memory)),
                caught(lambda: ranks.together_at_length(fails)),
                ranks.any(False), ranks.any(ranks.first), ranks.any(not ranks.first),
            ]  # fmt: skip

    first, second = on_ranks(work, GUIDON_RANKS_TIMEOUT="2")  # they must meet in this time, too
    for found in (first, second):
        assert found[:2] == ["0", ["0", "1"]]
        assert "memory" in found[2]
        assert found[4:] == [False, True, True]
    assert (first[3], second[3]) == ("RankFailed: rank 1: no such file", "InputError: no such file")


def test_an_error_of_one_rank_ends_what_the_others_wait_for():
    def work():
        def block():
            with ranks.sharing_errors(lambda: "all is kept"):
                if not ranks.first:
                    raise InputError("no such file")
                ranks.any(False)

        with Ranks.join() as ranks:
            return caught(block)

    first, second = on_ranks(work)
    assert second == "InputError: no such file"
    assert first == "RankFailed: rank 1: no such file; all is kept"


def test_ranks_that_branches_do_not_divide_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert len(Ranks.join()) == 1  # nothing says where they would meet
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(InputError, match="branch_ranks 2 does not divide the 3 ranks"):
        Ranks.join(branches=2)
