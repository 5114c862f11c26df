from collections.abc import Iterator
from typing import Any

import pytest

import guidon
from tiny_pipelines import Lend, TinyPipeline, shared


@pytest.fixture
def lend() -> Iterator[Lend]:
    """``lend(tiny)`` is the family's one pipeline of this process. The test may guide it, and changes nothing else."""
    lent: dict[TinyPipeline, Any] = {}

    def lend(tiny: TinyPipeline) -> Any:
        return lent.setdefault(tiny, shared(tiny))

    yield lend
    for tiny, pipe in lent.items():
        guidon.remove(pipe)
        for network in (getattr(pipe, name) for name in tiny.networks):
            hooks = (network._forward_hooks, network._forward_pre_hooks, network.__dict__.get("forward"))
            assert not any(hooks), f"the test left something on {tiny}"
