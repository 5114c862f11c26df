"""Sessions, and a queue with one worker: who waits is told its place and an estimate, who is too many is refused."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.errors import InputError, setting
from ..core.limits import is_out_of_memory
from ..core.progress import as_time
from .outputs import Absent, new_id

WAITING = 16  # jobs that wait at the most; the next one is refused
KEPT = 24  # finished jobs of a session that are kept
SESSIONS = 256  # sessions at the most
IDLE = 2 * 3600.0  # seconds after which a session that asks for nothing is forgotten

WARMING = "warming"
"""The kind of a job that nobody asked for: it loads a model."""

State = Literal["waiting", "working", "done", "failed", "cancelled"]
NAMES: Mapping[str, str] = {
    "cfg_scale": "scale", "cfg_channels": "channels", "negative_prompt": "negative prompt",
    "force": "the box “sample it anyway”", "batch_size": "clips", "num_samples": "clips", "seeds": "clips",
}  # fmt: skip
"""How the page calls settings."""


class Cancelled(BaseException):
    """Its browser has cancelled the job. It is no ``Exception``, so that no library at work handles it as one."""


class Busy(InputError):
    """The queue, or the list of sessions, is full."""


def spelled(error: InputError) -> str:
    """The message of an error with the names of settings that the page shows."""
    return error.spelled(lambda name: NAMES.get(name, name.replace("_", " ")))


@dataclass(eq=False)
class Job:
    """A piece of work, from its request to its result. The worker writes it, other threads read it."""

    kind: str
    """What it is: "comparison", "spectrum" or "study"."""
    session: str
    work: int
    """How much it is, in units that the jobs of one model share: pixels to denoise, times steps."""
    run: Callable[[Job], None]
    """Does it. It calls ``step`` often."""
    title: str = ""
    """What a history calls it."""
    model: str = ""
    about: object = None
    """What it was made of, for jobs that go on from it."""
    key: str = field(default_factory=new_id)
    state: State = "waiting"
    message: str = ""
    """Why it failed, or what it is at."""
    done: int = 0
    """Steps that are done, of ``total``."""
    total: int = 0
    result: dict[str, Any] = field(default_factory=dict[str, Any])
    """What there is of the result; parts come while it works."""
    outputs: list[str] = field(default_factory=list[str])
    """The ids of its outputs."""
    preview: bytes = b""
    """A picture of what is made, PNG; empty before the first one."""
    previews: int = 0
    """How many pictures there were."""
    decoded: bool = True
    """Whether they are decoded. If not, they are drawn from the latents: their shapes are right, their colours not."""
    begun: float | None = None
    """When the worker began, on ``time.monotonic``."""
    ended: float | None = None
    """When it ended, on ``time.monotonic``."""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in ("done", "failed", "cancelled")

    def check(self) -> None:
        """Raise ``Cancelled`` if the job was cancelled."""
        if self.stop.is_set():
            raise Cancelled

    def step(self, done: int, total: int) -> None:
        """Note progress. It is an ``OnStep`` of the pipelines.

        Raises:
            Cancelled: the job was cancelled.
        """
        self.done, self.total = done, total
        self.check()

    def show(self, picture: bytes) -> None:
        """Show a picture of what is made."""
        self.preview, self.previews = picture, self.previews + 1


@dataclass(eq=False)
class _Session:
    seen: float
    jobs: list[Job] = field(default_factory=list[Job])


class Queue:
    """All sessions and their jobs. One thread works, so that one model is in memory and one clip is made at a time.

    Args:
        forget: called with the ids of outputs that nobody can ask for any more.
        waiting: jobs that wait at the most.
        sessions: sessions at the most.
        clock: seconds, rising.
    """

    def __init__(
        self,
        forget: Callable[[list[str]], None],
        *,
        waiting: int = WAITING,
        sessions: int = SESSIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.forget, self.most_waiting, self.most_sessions, self.clock = forget, waiting, sessions, clock
        self._sessions: dict[str, _Session] = {}
        self._waiting: deque[Job] = deque()
        self._working: Job | None = None
        self._paces: dict[str, float] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="guidon studio", daemon=True)
        self._thread.start()

    # sessions

    def open(self) -> str:
        """A new session.

        Raises:
            Busy: there are too many, and all of them are in use.
        """
        with self._changed:
            self._forget_idle()
            if len(self._sessions) >= self.most_sessions:
                raise Busy(f"{self.most_sessions} browsers use this studio: come back later")
            key = new_id()
            self._sessions[key] = _Session(self.clock())
            return key

    def knows(self, session: str) -> bool:
        """Whether there is such a session. It then counts as in use."""
        with self._changed:
            found = self._sessions.get(session)
            if found is not None:
                found.seen = self.clock()
            return found is not None

    def _of(self, session: str) -> _Session:
        found = self._sessions.get(session)
        if found is None:
            raise Absent("this session is over: reload the page")
        found.seen = self.clock()
        return found

    def _forget_idle(self) -> None:
        """Forget sessions that ask for nothing, the longest idle first if there are too many."""
        idle = sorted((own.seen, key) for key, own in self._sessions.items() if all(job.over for job in own.jobs))
        for seen, key in idle:
            full = len(self._sessions) >= self.most_sessions and self.clock() - seen > 60
            if self.clock() - seen > IDLE or full:
                for job in self._sessions.pop(key).jobs:
                    self.forget(job.outputs)

    # jobs

    def add(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            Busy: too many wait.
            Absent: its session is over.
        """
        with self._changed:
            own = self._of(job.session)
            if len(self._waiting) >= self.most_waiting:
                raise Busy(f"{len(self._waiting)} jobs wait already, which is the limit: try again later")
            own.jobs.append(job)
            over = [one for one in own.jobs if one.over]
            for old in over[: max(0, len(over) - KEPT)]:
                own.jobs.remove(old)
                self.forget(old.outputs)
            self._waiting.append(job)
            self._changed.notify_all()

    def job(self, session: str, key: str) -> Job:
        """A job of a session.

        Raises:
            Absent: the session has no such job.
        """
        with self._changed:
            for job in self._of(session).jobs:
                if job.key == key:
                    return job
        raise Absent("this run is not there any more: make it again")

    def jobs(self, session: str) -> list[Job]:
        """The jobs of a session, oldest first."""
        with self._changed:
            return list(self._of(session).jobs)

    def cancel(self, session: str, key: str) -> None:
        """Cancel a job. It is over at once, whatever the worker is at; the next one begins when the worker is free."""
        job = self.job(session, key)
        with self._changed:
            job.stop.set()
            if job in self._waiting:
                self._waiting.remove(job)
            if not job.over:
                job.state, job.message, job.preview, job.ended = "cancelled", "cancelled", b"", self.clock()

    def ahead(self, job: Job) -> int:
        """How many jobs come before a job that waits, that in work included; 0 for others."""
        with self._changed:
            if job not in self._waiting:
                return 0
            working = self._working
            counts = working is not None and working.kind != WARMING and not working.over
            return list(self._waiting).index(job) + counts

    @property
    def stopping(self) -> bool:
        """Whether the worker is still at a job that was cancelled."""
        working = self._working
        return working is not None and working.over

    def seconds_left(self, job: Job) -> float | None:
        """An estimate of the time until a job ends; None where nothing tells yet."""
        with self._changed:
            if job.over:
                return 0.0
            before = [*([self._working] if self._working else []), *self._waiting]
            before = before[: before.index(job) + 1] if job in before else [job]
        found = [self._left(one) for one in before]
        known = [each for each in found if each is not None]
        return sum(known) if len(known) == len(found) else None

    def _left(self, job: Job) -> float | None:
        if job.over:
            return 0.0
        if job.begun is not None and job.done > 0 and job.total:
            return (self.clock() - job.begun) * (job.total - job.done) / job.done
        if not job.work:
            return 0.0 if job.kind == WARMING else None
        pace = self._paces.get(job.model)
        running = self._working
        measured = running is not None and running.model == job.model and _tells_pace(running) and running.done
        if pace is None and running is not None and measured:  # a study's work is not counted
            began = running.begun or 0.0
            pace = (self.clock() - began) / (running.work * running.done / max(1, running.total))
        return None if pace is None else pace * job.work

    def close(self) -> None:
        """Cancel everything, and wait until the worker has stopped."""
        with self._changed:
            self._ended = True
            for job in self._waiting:
                job.state = "cancelled"
            self._waiting.clear()
            if self._working is not None:
                self._working.stop.set()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=60)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                job = self._working = self._waiting.popleft()
                job.state, job.begun = "working", self.clock()
            state, message = self._done(job)
            with self._changed:
                job.ended = self.clock()
                if state == "done" and _tells_pace(job) and job.begun is not None:
                    self._paces[job.model] = (job.ended - job.begun) / job.work
                job.preview = b""
                job.message, job.state, self._working = message, state, None
                self._forget_idle()
                own = self._sessions.get(job.session)
                if own is None or job not in own.jobs:  # it was forgotten while the worker was still at it
                    self.forget(job.outputs)

    def _done(self, job: Job) -> tuple[State, str]:
        """Do a job. Whatever happens to it, the next one is done."""
        state = self._tried(job)
        return ("cancelled", "cancelled") if job.stop.is_set() else state

    def _tried(self, job: Job) -> tuple[State, str]:
        try:
            job.check()
            job.run(job)
            return "done", ""
        except Cancelled:
            return "cancelled", "cancelled"
        except InputError as error:
            return "failed", spelled(error)
        except BaseException as error:  # a panic of a library in Rust is no ``Exception``
            if is_out_of_memory(error):
                few = f"{setting('size')}, frames, or the number of clips"
                return "failed", spelled(InputError(f"the memory of this machine is full: lower {few}"))
            if isinstance(error, OSError) and error.strerror:
                return "failed", disk_line(error)
            traceback.print_exception(error, file=sys.stderr)
            return "failed", f"a defect of Guidon: {type(error).__name__}; the terminal of the studio shows where"


def _tells_pace(job: Job) -> bool:
    """Whether the seconds of a job are those of its work alone. A spectrum also decodes, which its work leaves out."""
    return bool(job.work) and job.kind != "spectrum"


def disk_line(error: OSError) -> str:
    """What somebody is told where the disk failed. No path is named."""
    return f"{error.strerror or 'the disk failed'}: make room, or choose another folder"


def waits(ahead: int, left: float | None, stopping: bool) -> str:
    """What somebody who waits is told.

    Args:
        ahead: how many jobs come before.
        left: seconds until the own one is done; None where nothing tells.
        stopping: whether the worker is still at a job that was cancelled.
    """
    if not ahead:
        return "what was cancelled comes to its end" if stopping else "the model is being loaded"
    before = "one job is" if ahead == 1 else f"{ahead} jobs are"
    return f"{before} before yours" + (f", about {as_time(left)} until it is done" if left else "")
