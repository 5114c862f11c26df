"""Several processes as one program: the ranks that torchrun starts, and what they send to each other.

Every rank runs the same program. ``Ranks.join`` finds the others. Messages are small JSON texts between two ranks; they
go by gloo, which waits without using a core. Tensors go by NCCL where every rank has a CUDA device of its own, and else
by gloo from the CPU. All bytes are counted.
"""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .errors import InputError, first_line, setting
from .limits import is_out_of_memory
from .reading import Limit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = Limit("GUIDON_RANKS_TIMEOUT", 1800, "seconds")
"""How long a rank waits for another one. One that ends is noticed at once; one that hangs, after this time."""
_LETTER = 512  # bytes that every message takes; the rest of a longer one follows
_DONE, _MEMORY, _FAILED = "done", "memory", "failed"  # how the work of a rank ended
LOOK = 0.2  # seconds: how often a rank that is at work says so, and one that waits for a file looks
BEATS = 4  # how often at the least, in the time that the others wait
SEEN_AFTER = 60.0  # seconds after which a file that one machine wrote must be there on all others
_FAILURE = "guidon/failure"  # where a rank that failed leaves its message
_BY_GLOO = "gloo"  # part of what gloo says of a lost connection: the path of its source
_HEAD = 8  # bytes of them that say how long the text is


def own_rank() -> int:
    """The number of this process among those that torchrun started; 0 without torchrun."""
    return _number("RANK", 0)


def rank_count() -> int:
    """How many processes torchrun started; 1 without torchrun."""
    return max(1, _number("WORLD_SIZE", 1))


def ranks_to_join() -> int:
    """How many processes can find each other: all that torchrun started; 1 where nothing says where they meet."""
    return rank_count() if "MASTER_ADDR" in os.environ else 1


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


class RankLost(InputError):
    """Another rank ended, or does not answer."""


class RankFailed(InputError):
    """The work failed on another rank, whose message this is."""


@dataclass
class Traffic:
    """What one rank exchanged with others."""

    messages: int = 0
    """Messages sent and received."""
    message_bytes: int = 0
    """Their bytes."""
    out: Counter[str] = field(default_factory=Counter[str])
    """Bytes of tensors and results sent, by what they are: "latents", "predictions", "results"."""
    back: Counter[str] = field(default_factory=Counter[str])
    """Bytes of tensors and results received."""


class Ranks:
    """Some processes of one program, as one of them sees them.

    ::

        with guidon.Ranks.join() as ranks:  # under torchrun; alone without it
            video = pipe("a red circle moves left on a white background", ranks=ranks)
            if ranks.first:
                video.save("circle.mp4")

    Args:
        members: their numbers in the whole program.
        own: the number of this process, one of the members.
        channel: sends and receives; None for a program of one process.
        branches: how many ranks share the branches of a clip; None to choose it by the number of clips.
    """

    def __init__(
        self, members: Sequence[int], own: int, channel: _Channel | None = None, branches: int | None = None
    ) -> None:
        self.members, self.channel, self.branches = tuple(members), channel, branches
        self.index = self.members.index(own)
        self.traffic = Traffic() if channel is None else channel.traffic

    @classmethod
    def join(cls, branches: int | None = None) -> Ranks:
        """The processes that torchrun started, once all of them have joined; this process alone without torchrun.

        A program that has begun ``torch.distributed`` itself goes on with it.

        Args:
            branches: how many ranks share the branches of a clip: 1 gives each rank clips of its own. None lets the
                number of clips decide.

        Raises:
            InputError: the number of ranks is no multiple of ``branches``, torch has no gloo, or a rank is missing.
        """
        check_branches(branches, ranks_to_join())
        if ranks_to_join() == 1:
            return cls((0,), 0, None, branches)
        channel = _Channel.open()
        return cls(range(channel.size), channel.rank, channel, branches)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.index == 0

    @property
    def backend(self) -> str:
        """What carries tensors of a CUDA device: NCCL, or gloo, which carries those of the CPU."""
        return "NCCL" if self.channel is not None and self.channel.nccl is not None else "gloo"

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if self.channel is not None:
            self.channel.close(failed=failed is not None)

    # division of work

    def share(self, count: int) -> slice:
        """This rank's part of ``count`` things, of which every rank gets as many as the others, or one more."""
        return share_of(count, self.index, len(self))

    def teams(self, size: int) -> Ranks:
        """The team of this rank: ``size`` members that share the branches of a clip. They use the same channel."""
        first = self.index // size * size
        members = self.members[first : first + size]
        return Ranks(members, self.members[self.index], self.channel)

    def branches_for(self, pieces: int, branches: int) -> int:
        """How many ranks share the branches of a clip.

        Args:
            pieces: clips, or batches of clips, that ranks can have each for itself.
            branches: how many branches guidance has.

        Returns:
            What was asked for; else the number with which the longest rank has the least to do, the smallest of those.

        Raises:
            InputError: more were asked for than there are branches to share.
        """
        if self.branches is not None:
            if self.branches > branches > 1:
                raise InputError(
                    f"{setting('branch_ranks')} is {self.branches}, and guidance has {branches} branches here: give "
                    f"{branches} at most"
                )
            return min(self.branches, branches)
        divisors = [n for n in range(1, branches + 1) if len(self) % n == 0]
        return min(divisors, key=lambda n: (-(-pieces // (len(self) // n)) * -(-branches // n), n))

    # messages between two members, by their index

    def tell(self, to: int, **what: Any) -> None:
        """Send a message of plain numbers and texts."""
        self._channel.tell(self.members[to], what)

    def hear(self, source: int) -> dict[str, Any]:
        """The next message of a member.

        Raises:
            RankLost: it ended, or sends nothing in time.
        """
        return self._channel.hear(self.members[source])

    def give(self, to: int, tensor: Tensor, what: str) -> None:
        """Send a tensor whose shape and dtype the other rank knows."""
        self._channel.give(self.members[to], tensor, what)

    def take(self, source: int, like: Tensor, what: str) -> Tensor:
        """Receive a tensor of the shape, dtype and device of ``like``, into its memory."""
        return self._channel.take(self.members[source], like, what)

    # work of all members

    def together(self, work: Callable[[], T]) -> list[T]:
        """What the work gives on every rank, in their order, on every rank. If it fails on one, it fails on all.

        Raises:
            RankFailed, MemoryError: the work failed on another rank.
            RankLost: another rank ended.
        """
        if len(self) == 1:
            return [work()]
        error: Exception | None = None
        outcome: tuple[str, Any]
        try:
            outcome = _DONE, work()
        except RankLost:
            raise
        except Exception as caught:
            error = caught
            outcome = (_MEMORY, None) if is_out_of_memory(caught) else (_FAILED, said(caught))
        outcomes = self._gathered(outcome)
        if error is not None:
            raise error
        for number, (how, value) in zip(self.members, outcomes, strict=True):
            if how == _MEMORY:
                raise MemoryError(f"the memory of rank {number} is full")
            if how == _FAILED:
                raise RankFailed(f"rank {number}: {value}")
        return [value for _, value in outcomes]

    def agreed(self, work: Callable[[], T]) -> T:
        """What the work gives on this rank, once it is done on all. If it fails on one, it fails on all.

        Raises:
            RankFailed, MemoryError, RankLost: see ``together``.
        """
        own: list[T] = []
        self.together(lambda: own.append(work()))
        return own[0]

    def from_first(self, work: Callable[[], T]) -> T:
        """What the work gives on the first rank, which alone does it, on every rank.

        Raises:
            RankFailed, MemoryError, RankLost: see ``together``.
        """
        return cast("T", self.together(lambda: work() if self.first else None)[0])

    def together_at_length(self, work: Callable[[], T]) -> list[T]:
        """As ``together``, for work that may take longer than a rank waits for another one. The work sends nothing.

        The ranks tell each other that they are still there. Those that are done wait without using a core.

        Raises:
            RankFailed, MemoryError, RankLost: see ``together``.
        """
        if len(self) == 1:
            return [work()]
        ended = threading.Event()

        def own() -> T:
            telling = threading.Thread(target=self._tell_busy, args=(ended,), daemon=True)
            telling.start()
            try:
                return work()
            finally:
                ended.set()
                telling.join()

        return self.together(own)

    def from_first_at_length(self, work: Callable[[], T]) -> T:
        """As ``from_first``, for work that may take longer than a rank waits for another one. The work sends nothing.

        Raises:
            RankFailed, MemoryError, RankLost: see ``together``.
        """
        return cast("T", self.together_at_length(lambda: work() if self.first else None)[0])

    def any(self, own: bool) -> bool:
        """Whether it is true on any rank, on every rank.

        Raises:
            RankLost: another rank ended.
        """
        return own if len(self) == 1 else self._channel.any(own)

    @contextmanager
    def sharing_errors(self, kept: Callable[[], str]) -> Iterator[None]:
        """An error in the block ends the block on all ranks, which may be in any operation of ``torch.distributed``.

        The rank whose error it is leaves its message for the others before it leaves them.

        Args:
            kept: says what is kept of the work, at the end of the message of a rank that another one left.

        Raises:
            RankFailed, RankLost: another rank failed, or ended. Any error of the block itself is raised as it is.
        """
        if len(self) == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            if isinstance(error, RankFailed):
                raise
            if not isinstance(error, RankLost) and not _is_of_ranks(error):
                self._channel.leave_message(f"rank {self.members[self.index]}: {said(error)}")
                raise
            if message := self._channel.left_message():
                raise RankFailed(f"{message}; {kept()}") from None
            lost = str(error) if isinstance(error, RankLost) else _lost_line("another rank ended", error)
            raise RankLost(f"{lost}; {kept()}") from None

    def _tell_busy(self, ended: threading.Event) -> None:
        """Take part until no rank is at work, so that none waits too long. The main thread must send nothing."""
        with suppress(RankLost):  # the main thread will notice it too
            while self.any(not ended.wait(min(LOOK, TIMEOUT.value / BEATS))):
                pass

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all ranks: each sends its own to the first, which sends all to each."""
        channel = self._channel
        others = range(1, len(self))
        if self.first:
            values = [value, *(channel.take_object(self.members[k]) for k in others)]
            for k in others:
                channel.give_object(self.members[k], values)
            return values
        channel.give_object(self.members[0], value)
        return channel.take_object(self.members[0])

    def group_for(self, device: torch.device) -> Any:
        """The group of ``torch.distributed`` through which tensors of a device go."""
        by_nccl = device.type == "cuda" and self._channel.nccl is not None
        return self._channel.nccl if by_nccl else self._channel.group

    @property
    def _channel(self) -> _Channel:
        assert self.channel is not None, "a program of one rank sends nothing"
        return self.channel


def share_of(count: int, index: int, parts: int) -> slice:
    """Part ``index`` of ``count`` things in order; the first part has one if there is one."""
    return slice(-(-count * index // parts), -(-count * (index + 1) // parts))


ALONE = Ranks((0,), 0)
"""A program of one process."""


def seen_in_time(look: Callable[[], bool]) -> bool:
    """Whether this rank sees what another one wrote. It looks again for a minute: some filesystems show it late.

    Args:
        look: whether it is seen now.
    """
    ends = time.monotonic() + SEEN_AFTER
    while not look():
        if time.monotonic() > ends:
            return False
        time.sleep(LOOK)
    return True


def check_branches(branches: int | None, ranks: int) -> None:
    """Refuse a number of ranks for a clip's branches that does not divide the ranks.

    Raises:
        InputError: it does not.
    """
    if branches is None:
        return
    if isinstance(branches, bool) or not isinstance(branches, int) or branches < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"{setting('branch_ranks')} is {branches!r}: give a whole number of at least 1")
    if ranks == 1 < branches:
        raise InputError(
            f"{setting('branch_ranks')} {branches} needs several processes: start them with torchrun "
            f"--nproc-per-node {branches} -m guidon generate ..."
        )
    if ranks % branches:
        raise InputError(
            f"{setting('branch_ranks')} {branches} does not divide the {ranks} ranks: start a multiple of {branches}, "
            "torchrun --nproc-per-node N"
        )


def said(error: BaseException) -> str:
    """An error in one line, for another rank."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"


class _Channel:
    """What all ranks of the program send through, by their numbers in it.

    Args:
        group: of gloo.
        nccl: the group of NCCL; None where tensors go by gloo.
        began: whether this program did not begin ``torch.distributed`` itself.
        store: texts that all ranks can read; torchrun keeps it, or the first rank. None unless ``began``.
    """

    def __init__(self, group: Any, nccl: Any, began: bool, store: Any) -> None:
        import torch.distributed as dist

        self.group, self.nccl, self.began, self.store = group, nccl, began, store
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.traffic = Traffic()

    @classmethod
    def open(cls) -> _Channel:
        """Join the other processes.

        Raises:
            InputError: torch has no gloo, or a rank is missing.
        """
        import torch
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_gloo_available():
            raise InputError("this torch has no gloo, through which ranks talk: install another, or run one process")
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        timeout = timedelta(seconds=TIMEOUT.value)
        began, store = not dist.is_initialized(), None
        with _lost("the other ranks did not join"):
            if began:
                found, rank, size = next(rendezvous("env://", timeout=timeout))
                # torchrun keeps its store when it starts all ranks again: what they left in it means nothing now.
                store = PrefixStore(f"guidon/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
            group = dist.new_group(backend="gloo", timeout=timeout)
            nccl = None
            # NCCL needs a device for each rank. Each machine looks at its own, and all must agree.
            own = torch.cuda.is_available() and torch.cuda.device_count() >= _number("LOCAL_WORLD_SIZE", 1)
            agreed = torch.tensor([int(own and dist.is_nccl_available())])
            dist.all_reduce(agreed, dist.ReduceOp.MIN, group=group)
            if int(agreed):
                nccl = dist.new_group(backend="nccl", timeout=2 * timeout)  # gloo says first who is silent
        return cls(group, nccl, began, store)

    def tell(self, to: int, what: dict[str, Any]) -> None:
        import torch

        text = json.dumps(what, separators=(",", ":")).encode()
        data = len(text).to_bytes(_HEAD, "big") + text
        letter, rest = data[:_LETTER].ljust(_LETTER, b"\0"), data[_LETTER:]
        for part in (letter, rest):
            if part:
                self._send(to, torch.frombuffer(bytearray(part), dtype=torch.uint8), self.group)
                self.traffic.message_bytes += len(part)
        self.traffic.messages += 1

    def hear(self, source: int) -> dict[str, Any]:
        data = self._bytes(source, _LETTER)
        length = _HEAD + int.from_bytes(data[:_HEAD], "big")
        if length > _LETTER:
            data += self._bytes(source, length - _LETTER)
        self.traffic.messages += 1
        self.traffic.message_bytes += len(data)
        try:
            return json.loads(data[_HEAD:length])
        except ValueError:  # it was interrupted in the middle of something
            raise RankLost(f"rank {source} was interrupted") from None

    def give(self, to: int, tensor: Tensor, what: str) -> None:
        by_nccl = tensor.is_cuda and self.nccl is not None
        sent = tensor.contiguous() if by_nccl else tensor.cpu().contiguous()
        self._send(to, sent, self.nccl if by_nccl else self.group)
        self.traffic.out[what] += sent.nbytes

    def take(self, source: int, like: Tensor, what: str) -> Tensor:
        import torch

        by_nccl = like.is_cuda and self.nccl is not None
        into = like if by_nccl or like.device.type == "cpu" else torch.empty_like(like, device="cpu")
        self._receive(source, into, self.nccl if by_nccl else self.group)
        self.traffic.back[what] += into.nbytes
        return like if into is like else like.copy_(into)

    def give_object(self, to: int, value: Any) -> None:
        import torch

        data = torch.frombuffer(bytearray(pickle.dumps(value, protocol=5)), dtype=torch.uint8)
        self.tell(to, {"bytes": len(data)})
        self.give(to, data, "results")

    def take_object(self, source: int) -> Any:
        import torch

        size = self.hear(source).get("bytes")
        if not isinstance(size, int):
            raise RankLost(f"rank {source} was interrupted")
        data = self.take(source, torch.empty(size, dtype=torch.uint8), "results")
        return pickle.loads(data.numpy().data)

    def any(self, own: bool) -> bool:
        import torch
        import torch.distributed as dist

        flag = torch.tensor([int(own)])
        with _lost("another rank ended"):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group)
        return bool(flag)

    def leave_message(self, text: str) -> None:
        """Leave a message where all ranks can read it after this one has ended. The first one that is left stays."""
        with suppress(Exception):  # the store went with another rank: nobody is there to read it
            if self.store is not None:
                self.store.compare_set(_FAILURE, "", text)

    def left_message(self) -> str | None:
        """The message that a rank left; None where none did, or where the store is gone."""
        try:
            if self.store is None or not self.store.check([_FAILURE]):
                return None
            return self.store.get(_FAILURE).decode()
        except Exception:  # the store went with the rank that kept it
            return None

    def close(self, *, failed: bool = False) -> None:
        """Leave, if this program did not begin ``torch.distributed`` itself.

        After a failure NCCL may wait for a rank that is gone. It is left alone then: the process ends.
        """
        import torch.distributed as dist

        if self.began and dist.is_initialized():
            dist.destroy_process_group(self.group if failed and self.nccl is not None else None)

    def _bytes(self, source: int, count: int) -> bytes:
        import torch

        data = torch.empty(count, dtype=torch.uint8)
        self._receive(source, data, self.group)
        return data.numpy().tobytes()

    def _send(self, to: int, tensor: torch.Tensor, group: Any) -> None:
        import torch.distributed as dist

        with _lost(f"rank {to} ended, or did not take what it was sent within {TIMEOUT.value} s"):
            dist.send(tensor, to, group)

    def _receive(self, source: int, into: torch.Tensor, group: Any) -> None:
        import torch.distributed as dist

        with _lost(f"rank {source} ended, or sent nothing for {TIMEOUT.value} s"):
            dist.recv(into, source, group)


@contextmanager
def _lost(what: str) -> Iterator[None]:
    """Errors of torch.distributed in the block, in one line."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, OSError) as error:  # torch has several classes for them, all of these kinds
        raise RankLost(_lost_line(what, error)) from None


def _lost_line(what: str, error: BaseException) -> str:
    return f"{what} ({_reason(error)}): look at its own messages, and start again"


def _is_of_ranks(error: BaseException) -> bool:
    """Whether torch raised an error because another rank ended or is silent."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _BY_GLOO in str(error))


def _reason(error: BaseException) -> str:
    """The part of an error of gloo or NCCL that says something to people."""
    text = first_line(error).rpartition("] ")[2]
    return text.split(". This ")[0][:120].rstrip(".") or type(error).__name__
