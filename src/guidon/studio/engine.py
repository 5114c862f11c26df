"""The studio without a server: what the page asks for, and plain data for an answer."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, setting
from ..core.limits import free_memory
from ..core.settings import validated
from .asked import LETTERS, Asked, AskedStudy, Comparison, pixels_of, read_asked, read_comparison
from .example import read_example
from .jobs import SESSIONS, WAITING, WARMING, Job, Queue, waits
from .models import Models
from .notes import heard
from .outputs import Output, Outputs
from .stopping import stoppable

if TYPE_CHECKING:
    from ..pipeline.contract import ModelPipeline


class Studio:
    """Sessions, a queue, one model in memory and outputs.

    Every method takes plain data of a browser, and raises ``InputError`` where it is not valid. Sessions are ids that
    ``open`` gives; nobody sees what another session made.

    Args:
        models: those that may be chosen; None for the presets.
        device: where models run.
        out: where studies are kept; None to delete them at the end.
        temporary: where the folder of clips is made; None for the system's.
        waiting, sessions: see ``Queue``.
    """

    def __init__(
        self,
        models: Models | None = None,
        *,
        device: str = "auto",
        out: Path | None = None,
        temporary: Path | None = None,
        waiting: int = WAITING,
        sessions: int = SESSIONS,
    ) -> None:
        self.models, self.device = models or Models(), device
        self.outputs = Outputs(temporary)
        self.studies = self.outputs.folder / "studies" if out is None else out
        self.queue = Queue(self.outputs.forget, waiting=waiting, sessions=sessions)
        self._pipe: tuple[str, ModelPipeline] | None = None
        self._planning = threading.Lock()
        try:
            self._example = read_example(self.outputs)
        except BaseException:  # such as a full disk
            self.close()
            raise

    def close(self) -> None:
        """Stop the work, and delete the outputs."""
        self.queue.close()
        self._pipe = None
        self.outputs.close()

    # what there is

    def open(self) -> str:
        """A new session."""
        return self.queue.open()

    def hello(self, session: str) -> dict[str, Any]:
        """What the page begins with: the first model, the example, and the runs of the session."""
        return {
            "session": session, "model": self.models.describe(self.models.first), "example": self._example,
            "runs": [self._line(job) for job in self.queue.jobs(session)],
        }  # fmt: skip

    def listed(self) -> list[dict[str, Any]]:
        """All models."""
        return self.models.listed()

    def describe(self, model: str) -> dict[str, Any]:
        """One model."""
        return self.models.describe(model)

    # jobs

    def compare(self, session: str, values: Any) -> dict[str, Any]:
        """Queue a comparison.

        Args:
            session: who asks.
            values: the fields of ``Asked``.
        """
        comparison, notes = self._read(values)

        def run(job: Job) -> None:
            from .comparison import compare

            job.message = "loading the model"
            model = comparison.asked.model
            compare(comparison, self._load(model), self.outputs, job, self.models.parts(model))

        asked = comparison.asked
        job = Job("comparison", session, comparison.work, stoppable(run), asked.prompt, asked.model, comparison)
        job.result |= {"notes": notes, "asked": asked.model_dump(mode="json")}
        self.queue.add(job)
        return self.state(session, job.key)

    def look_inside(self, session: str, run: str, number: Any) -> dict[str, Any]:
        """Queue the spectrum of a setting of a run.

        Args:
            session: who asks.
            run: the id of its comparison.
            number: of the setting, from 0.
        """
        comparison = self._comparison(session, run)
        if not isinstance(number, int) or not 0 <= number < len(comparison.requests):
            raise InputError(f"setting {str(number)[:20]} is not in this run: give 0 to {len(comparison.requests) - 1}")

        def work(job: Job) -> None:
            from .looks import look_inside

            job.message = "loading the model"
            look_inside(comparison, number, self._load(comparison.asked.model), job)

        model, request = comparison.asked.model, comparison.requests[number]
        one = request.steps * math.prod(pixels_of(self.models.planner(model), request))  # one clip of one setting
        job = Job("spectrum", session, one, stoppable(work), f"spectrum of {LETTERS[number]}", model)
        self.queue.add(job)
        return self.state(session, job.key)

    def study(self, session: str, values: Any) -> dict[str, Any]:
        """Queue a study of a comparison.

        Args:
            session: who asks.
            values: the fields of ``AskedStudy``.
        """
        from . import looks

        asked, text = self._study(session, values)
        model = asked.comparison.model
        job = Job("study", session, 0, lambda job: None, asked.title or "study", model)
        folder = self.studies / f"study-{job.key[:12]}"
        study = looks.read_study(text, self.models.planner(model))

        def run(job: Job) -> None:
            job.message = "loading the model"
            looks.run(study, text, folder, self._load(model), self.outputs, job)

        job.run = stoppable(run)
        job.result |= {"yaml": text, "folder": folder.name}
        self.queue.add(job)
        return self.state(session, job.key)

    def yaml(self, session: str, values: Any) -> str:
        """The YAML of a study, without running it."""
        return self._study(session, values)[1]

    def state(self, session: str, key: str) -> dict[str, Any]:
        """A job: where it is in the queue, how far it is, and what there is of its result."""
        job = self.queue.job(session, key)
        return self._line(job) | {"result": job.result}

    def cancel(self, session: str, key: str) -> dict[str, Any]:
        """Cancel a job."""
        self.queue.cancel(session, key)
        return self.state(session, key)

    def preview(self, session: str, key: str) -> bytes:
        """The last picture of a job that is at work, PNG; empty if there is none."""
        return self.queue.job(session, key).preview

    def output(self, session: str, key: str, format: str | None = None) -> Output:
        """A clip, a manifest or a report; see ``Outputs.find``."""
        if not self.queue.knows(session):
            session = ""
        return self.outputs.find(key, session, format)

    # the inside

    def _line(self, job: Job) -> dict[str, Any]:
        """A job without its result."""
        state, ahead = job.state, self.queue.ahead(job)
        left = None if job.over else self.queue.seconds_left(job)
        message = waits(ahead, left, self.queue.stopping) if state == "waiting" else job.message
        if state == "cancelled":
            message = state  # whatever the worker is still at
        return {
            "id": job.key, "kind": job.kind, "title": job.title, "state": state, "done": job.done, "total": job.total,
            "message": message, "ahead": ahead, "left": left, "previews": job.previews,
            "decoded": job.decoded, "model": job.model,
        }  # fmt: skip

    def _read(self, values: Any) -> tuple[Comparison, list[str]]:
        """The complete comparison of what a browser sent, and what is to be said of it."""
        asked = values if isinstance(values, Asked) else read_asked(values)
        planner = self.models.planner(asked.model)
        with self._planning, heard() as notes:
            comparison = read_comparison(asked, planner)
        return comparison, notes

    def _study(self, session: str, values: Any) -> tuple[AskedStudy, str]:
        """What a browser asks to be studied, and its YAML."""
        from . import looks

        self.queue.jobs(session)  # it exists
        asked = validated(AskedStudy, values, None)
        comparison, _ = self._read(asked.comparison)
        model = asked.comparison.model
        return asked, looks.yaml_of(asked, comparison, self.models.planner(model), self.models.parts(model))

    def _comparison(self, session: str, key: str) -> Comparison:
        job = self.queue.job(session, key)
        if not isinstance(job.about, Comparison):
            raise InputError(f"{setting('run')} is a {job.kind}: look inside a comparison")
        return job.about

    def _load(self, model: str) -> ModelPipeline:
        """The model, in the place of another one. Only the worker calls it."""
        from ..pipeline import load

        if self._pipe is not None and self._pipe[0] != model:
            self._pipe = None
            free_memory()
        if self._pipe is None:
            self._pipe = model, load(model, device=self.device, **self.models.parts(model))
        return self._pipe[1]

    def warm(self) -> None:
        """Load the first model while nobody waits, so that the first clip comes sooner."""
        session = self.open()
        job = Job(WARMING, session, 0, lambda job: _warmed(self._load(self.models.first)), "", self.models.first)
        self.queue.add(job)


def _warmed(pipe: ModelPipeline) -> None:
    import scipy.ndimage  # noqa: F401 - which the first measurement would wait for
