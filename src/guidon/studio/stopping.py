"""Ends a cancelled job between two layers, whoever calls them: a sampler, a decoder, a text encoder, or a load."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from .jobs import Job


@contextmanager
def between_layers(check: Callable[[], None]) -> Iterator[None]:
    """In this thread, call ``check`` before every layer that computes, and whenever a module gets a part.

    PyTorch calls the hooks of all modules, so that pipelines of diffusers stop as Guidon's own models do. What is no
    module, such as the reading of one large file, ends first.
    """
    from torch.nn.modules import module

    own = threading.get_ident()

    def checked(*_: object) -> None:
        if threading.get_ident() == own:
            check()

    with ExitStack() as stack:
        for register in (
            module.register_module_forward_pre_hook,
            module.register_module_module_registration_hook,
            module.register_module_parameter_registration_hook,
        ):
            stack.callback(register(checked).remove)
        yield


def stoppable(run: Callable[[Job], None]) -> Callable[[Job], None]:
    """Work that ends between two layers once its job is cancelled."""

    def stopped(job: Job) -> None:
        with between_layers(job.check):
            run(job)

    return stopped
