"""Work on several ranks, each a fork of this process, which has imported torch already."""

import os
import pickle
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch


class Killed:
    """In place of a result: the rank ended without one."""

    def __init__(self, status: int) -> None:
        self.status = status


def on_ranks(work: Callable[[], Any], count: int = 2, seconds: float = 60.0, **environment: str) -> list[Any]:
    """What ``work()`` gives on each rank, in the environment that torchrun would give it.

    Args:
        work: its result is pickled. What it raises is the error of the test.
        count: how many ranks.
        seconds: after which all are killed: a test must not hang.
        environment: more variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [_start(work, shared | {"RANK": rank, "LOCAL_RANK": rank} | environment) for rank in range(count)]
    ends, results = time.monotonic() + seconds, list[Any]()
    try:
        for _, reader in started:
            results.append(_result(reader, ends))
    finally:
        for number, (process, _) in enumerate(started):
            if number >= len(results):
                os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if number < len(results) and results[number] is None:
                results[number] = False, Killed(status)
    for done, value in results:
        assert done or isinstance(value, Killed), value
    return [value for _, value in results]


def _start(work: Callable[[], Any], environment: dict[str, Any]) -> tuple[int, int]:
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    outcome: Any = False, "it ended early"
    try:
        torch.set_num_threads(1)  # threads do not survive a fork
        os.environ.update({name: str(value) for name, value in environment.items()})
        outcome = True, work()
    except BaseException:
        outcome = False, traceback.format_exc()
    finally:
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)


def _result(reader: int, ends: float) -> Any:
    """Whether the work was done, and its value; None where the rank ended without a result."""
    data = b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, ends - time.monotonic()))
            assert ready, "the ranks hang"
            part = pipe.read(1 << 16)
            if not part:
                return pickle.loads(data) if data else None
            data += part
