"""The pipeline call that is running: its arguments, which many pipelines keep in local variables only."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from ...core.errors import InputError


@dataclass(frozen=True)
class PipelineCall:
    """A call of a pipeline that has not returned."""

    pipeline: Any
    """The pipeline that is called."""
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The local variables of its ``__call__``; empty where no call was found."""

    @classmethod
    def running(cls, network: Any, otherwise: Any) -> PipelineCall:
        """The innermost call, above on the stack, of a pipeline that has the network.

        Args:
            network: the module that is running.
            otherwise: the pipeline to take where the network is run by a loop of the user's own.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "__call__":
                variables = frame.f_locals
                owner = variables.get("self")
                if isinstance(getattr(owner, "components", None), dict) and owns(owner, network):
                    return cls(owner, variables)
            frame = frame.f_back
        return cls(otherwise)

    def variable(self, name: str) -> Any:
        """A local variable of the call; None where there is none of that name."""
        return self.variables.get(name)

    def attribute(self, path: str) -> Any:
        """An attribute of the pipeline or, with a dot, of a component ("guider.scale"); None where there is none."""
        found = self.pipeline
        for name in path.split("."):
            try:
                found = getattr(found, name, None)
            except InputError:  # ChannelGuidance refuses to give one scale
                return None
        return found

    @property
    def guides(self) -> bool | None:
        """Whether the pipeline runs an unconditional branch; None where the call does not say."""
        if not self.variables:
            return None
        for name in ("do_classifier_free_guidance", "do_true_cfg"):
            if name in self.variables:
                return bool(self.variables[name])
        said = getattr(self.pipeline, "do_classifier_free_guidance", None)
        return None if said is None else bool(said)


_WEAK: ContextVar[bool] = ContextVar("weak call", default=False)


@contextmanager
def weak_call() -> Iterator[None]:
    """The calls of networks inside are our own, for a weak prediction: hooks of ours leave them alone."""
    token = _WEAK.set(True)
    try:
        yield
    finally:
        _WEAK.reset(token)


def in_weak_call() -> bool:
    """Whether a ``weak_call`` is running."""
    return _WEAK.get()


def owns(pipeline: Any, network: Any) -> bool:
    """Whether a network is a component of a pipeline, or inside of one that was wrapped."""
    import torch

    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return any(is_same(part, network) for part in parts) or any(wraps(part, network) for part in parts)


def position(parts: Sequence[Any], network: Any) -> int:
    """Which of some components is a network, or wraps it; the first where none does."""
    for found in (is_same, wraps):
        for number, part in enumerate(parts):
            if found(part, network):
                return number
    return 0


def is_same(one: Any, other: Any) -> bool:
    """Whether two modules are one network, compiled or not."""
    return getattr(one, "_orig_mod", one) is getattr(other, "_orig_mod", other)


def wraps(part: Any, network: Any) -> bool:
    """Whether a component has a network inside."""
    return part is not None and any(module is network for module in part.modules())
