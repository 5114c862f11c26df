"""Guidance inside someone else's diffusers pipeline: one line on, one line off.

    guidon.apply(pipe, guidon.Guidance(6, channels=3, rule="apg"))
    video = pipe(prompt, guidance_scale=6)
    guidon.remove(pipe)

A forward hook of torch's own sits on the pipeline's denoisers; ``hook.py`` says what it does.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from ...core.errors import InputError, setting
from ...guidance import UNSET, CfgChannels, ChannelChoice, Guidance, Observe, Unset
from .families import Family, family_of
from .hook import GuidanceHook, is_plain

_HANDLES: WeakKeyDictionary[torch.nn.Module, Any] = WeakKeyDictionary()
"""The hook of every network that is guided now."""


def apply(
    pipe: Any,
    guidance: Guidance | None = None,
    *,
    channels: CfgChannels | ChannelChoice | Unset = UNSET,
    second: Guidance | None = None,
    observe: Observe | None = None,
    family: Family | None = None,
) -> None:
    """Put guidance on a diffusers pipeline. It stays until ``remove``; applied again, the new one takes its place.

    With ``guidance``, its scale, channels, rule and timing decide. The pipeline's own scale argument then only has to
    be high enough that the pipeline runs both branches. With ``channels`` alone, the pipeline's own guidance stays as
    it is, at its own scale, and acts on these channels; so it does under a plain guidance whose scale is the number
    that the pipeline is called with. Unguided channels are the conditional prediction.

    Args:
        pipe: a pipeline of diffusers. Pipelines of ``families.FAMILIES`` take any guidance. An unknown one takes
            ``channels``, or a plain ``guidance`` of the scale that it is called with, if its source code shows the
            order of its branches.
        guidance: what to do. Scale 1 is no guidance.
        channels: which channels the pipeline's own guidance acts on, in the forms of ``Guidance``.
        second: what to do in the second denoiser of a pipeline with two, such as Wan 2.2; left out, ``guidance``.
        observe: called with every guided step; a ``GuidanceTrace`` collects one run.
        family: how the pipeline guides, for one that is unknown.

    Raises:
        InputError: the pipeline's guidance cannot be reached, or it cannot take this guidance. What only the
            pipeline's call says, such as ``guidance_rescale``, is refused when it runs.
    """
    if (guidance is None) == isinstance(channels, Unset):
        given = "neither was" if guidance is None else "both were"
        raise InputError(f"{given} given: give a guidance, or give channels to keep the pipeline's own scale")
    found = family or family_of(type(pipe))
    guidances = [given for given in (guidance, second) if given is not None]
    for given in guidances:
        _check(pipe, found, given)
    networks = [part for name in found.networks if (part := getattr(pipe, name, None)) is not None]
    if not networks or (second is not None and len(networks) < 2):
        raise InputError(
            f"{type(pipe).__name__} has {len(networks)} of {' and '.join(found.networks)} to guide"
            + (": leave out second" if networks else "")
        )
    remove(pipe)
    choice = ChannelChoice() if isinstance(channels, Unset) else ChannelChoice.parse(channels)
    hook = GuidanceHook(ref(pipe), guidances or None, choice, observe, family)
    for network in networks:
        # traced by the compiler, the hook would cost a recompilation
        _HANDLES[network] = network.register_forward_hook(torch.compiler.disable(hook.after_network), with_kwargs=True)


def _check(pipe: Any, family: Family, guidance: Guidance) -> None:
    """Refuse what is no guidance, and what a pipeline cannot take whatever its call."""
    if not isinstance(guidance, Guidance):
        raise InputError(f"{type(guidance).__name__} is not a guidance: give guidon.Guidance(scale, channels=...)")
    if guidance.needs_negative:
        raise InputError(
            f"{setting('guidance')} {guidance.rule.name} needs a third branch, and pipelines of diffusers run two"
        )
    if not family.known and not is_plain(guidance):
        raise InputError(
            f"the guidance of {type(pipe).__name__} is not known, so that it takes no rule, timing or scale per "
            "channel: give channels alone"
        )


def remove(pipe: Any) -> None:
    """Take guidance off a pipeline; nothing of it is left. A pipeline without guidance stays as it is."""
    for part in pipe.components.values():
        for module in (part, getattr(part, "_orig_mod", None)):
            if isinstance(module, torch.nn.Module) and module in _HANDLES:
                _HANDLES.pop(module).remove()
