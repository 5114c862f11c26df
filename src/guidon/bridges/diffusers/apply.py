"""Guidance inside someone else's diffusers pipeline: one line on, one line off.

    guidon.apply(pipe, guidon.Guidance(6, channels=3, rule="apg"))
    video = pipe(prompt, guidance_scale=6)
    guidon.remove(pipe)

A forward hook of torch's own sits on the pipeline's denoisers; ``hook.py`` says what it does.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Never
from weakref import WeakKeyDictionary, WeakSet, ref

import torch

from ...core.errors import InputError, nearest, setting
from ...guidance import UNSET, CfgChannels, ChannelChoice, Guidance, Observe, Unset
from ...guidance.rules import SkipGuidance
from .families import Family, family_of
from .hook import GuidanceHook, blocks_of, is_plain


def apply(
    pipe: Any,
    guidance: Guidance | None = None,
    *,
    channels: CfgChannels | ChannelChoice | Unset = UNSET,
    second: Guidance | None = None,
    observe: Observe | None = None,
    family: Family | None = None,
    weak: torch.nn.Module | None = None,
    **other: Never,
) -> None:
    """Put guidance on a diffusers pipeline. It stays until ``remove``; applied again, the new one takes its place.

    With ``guidance``, its scale, channels, rule and timing decide. The pipeline's own scale argument then only has to
    be high enough that the pipeline runs both branches. With ``channels`` alone, the pipeline's own guidance stays as
    it is, at its own scale, and acts on these channels; so it does under a plain guidance whose scale is the number
    that the pipeline is called with. Unguided channels are the conditional prediction. A guidance sits on the networks:
    another pipeline that shares them is guided too, and a pipeline whose network is replaced needs ``apply`` again.
    Pipelines that share a network must run one after another: what a rule remembers is of one run.
    Copies and pickles keep the guidance; a pickle leaves out ``observe``, which belongs to this process.

    Args:
        pipe: a pipeline of diffusers. Pipelines of ``families.FAMILIES`` take any guidance. An unknown one takes
            ``channels``, or a plain ``guidance`` of the scale that it is called with, if its source code shows the
            order of its branches.
        guidance: scale, channels, rule and timing. Scale 1 is no guidance.
        channels: which channels the pipeline's own guidance acts on, in the forms of ``Guidance``.
        second: the guidance of the second denoiser of a pipeline with two, such as Wan 2.2; left out, ``guidance``.
        observe: called with every guided step; a ``GuidanceTrace`` collects one run.
        family: how the pipeline guides, for one that is unknown.
        weak: a weaker denoiser for the rule "autoguidance": an earlier or smaller one, of the same latents, that is
            called as the pipeline's own is. It must be where the pipeline runs.
        other: names that do not exist; the error says what to give.

    Raises:
        InputError: a name does not exist, the pipeline's guidance cannot be reached, or it cannot take this guidance.
            What only the pipeline's call says, such as ``guidance_rescale``, is refused when it runs.
    """
    for name in other:
        hint = nearest(name, ("channels", "guidance", "observe"))
        hint = hint if hint.startswith(" (") else ""
        raise InputError(
            f"apply has no {name!r}{hint}: scale, rule and timing belong to a guidon.Guidance(6, channels=3)"
        )
    if type(pipe).__module__.startswith("guidon.pipeline."):
        raise InputError("this is a pipeline of Guidon: give cfg_scale and cfg_channels in its call")
    if isinstance(pipe, torch.nn.Module) or not isinstance(getattr(pipe, "components", None), dict):
        raise InputError(f"{_name(pipe)} is not a pipeline: give one of diffusers, such as a WanPipeline")
    if (guidance is None) == isinstance(channels, Unset) or (guidance is None and second is not None):
        given = (
            "neither guidance nor channels was" if guidance is None and second is None else "guidance and channels were"
        )
        raise InputError(f"{given} given: give a guidance, or give channels alone to keep the pipeline's own scale")
    if observe is not None and not callable(observe):
        raise InputError(f"observe is {observe!r}: give a GuidanceTrace, or a function of one step")
    if family is not None and not isinstance(family, Family):
        raise InputError(f"family is {family!r}: give a Family of guidon.bridges.diffusers.families")
    choice = ChannelChoice() if isinstance(channels, Unset) else ChannelChoice.parse(channels, "channels")
    found = family or family_of(type(pipe))
    guidances = [given for given in (guidance, second) if given is not None]
    for given in guidances:
        _check(pipe, found, given)
    if weak is not None and not isinstance(weak, torch.nn.Module):
        raise InputError(f"weak is {type(weak).__name__}: give a network, such as another pipeline's transformer")
    asks = any(given.needs_weak and given.rule.weak == "model" for given in guidances)
    if asks != (weak is not None):
        raise InputError(
            f"{setting('guidance')} autoguidance needs a weaker network: give weak=, such as another pipeline's "
            "transformer"
            if asks
            else f"weak has an effect only with {setting('guidance')} autoguidance: leave it out"
        )
    networks = [part for name in found.networks if (part := getattr(pipe, name, None)) is not None]
    if not networks:
        raise InputError(f"{_name(pipe)} has no {' or '.join(found.networks)}: load it with one")
    if any(part is weak for part in networks):
        raise InputError(f"weak is the network of {_name(pipe)} itself: give an earlier or a smaller one")
    if second is not None and len(networks) < 2:
        raise InputError(f"{_name(pipe)} has one denoiser: leave out second")
    for given in guidances:
        if given.needs_weak and isinstance(given.rule, SkipGuidance):
            for network in networks:
                given.rule.numbers(len(blocks_of(network)))
    remove(pipe)
    hook = GuidanceHook(ref(pipe), guidances or None, choice, observe, family, weak)
    for network in networks:
        network.register_forward_hook(partial(after_network, hook), with_kwargs=True)
    _GUIDED[pipe] = WeakSet(networks)


# A function of the module, so that pickle finds it. Traced by the compiler, it would cost a recompilation.
@torch.compiler.disable
def after_network(hook: GuidanceHook, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The forward hook that ``apply`` registers, once it knows its ``GuidanceHook``."""
    return hook.after_network(network, args, kwargs, output)


def _is_ours(hook: Any) -> bool:
    """Whether a forward hook is one of ``apply``, also on the copy of a network."""
    return isinstance(hook, partial) and hook.func is after_network


def _check(pipe: Any, family: Family, guidance: Guidance) -> None:
    """Refuse what is no guidance, and what a pipeline cannot take whatever its call."""
    if not isinstance(guidance, Guidance):
        raise InputError(f"{type(guidance).__name__} is not a guidance: give guidon.Guidance(scale, channels=...)")
    if guidance.needs_negative or guidance.needs_imageless:
        raise InputError(
            f"{setting('guidance')} {guidance.rule.name} needs a third branch, and pipelines of diffusers run two"
        )
    if not family.known and not is_plain(guidance):
        raise InputError(
            f"the guidance of {_name(pipe)} is not known, so that no rule, timing or scale per channel can be used in "
            "it: give channels alone"
        )


def remove(pipe: Any) -> None:
    """Take guidance off a pipeline; nothing of it is left. A pipeline without guidance stays as it is.

    It is taken off the networks that the pipeline has now, compiled, wrapped or copied, and off those that it had when
    guidance was applied.

    Raises:
        InputError: it is no pipeline.
    """
    if not isinstance(getattr(pipe, "components", None), dict):
        raise InputError(f"{_name(pipe)} is not a pipeline: give the one that guidance was applied to")
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    for part in (*parts, *_GUIDED.pop(pipe, ())):
        for module in part.modules():
            for number in [number for number, hook in module._forward_hooks.items() if _is_ours(hook)]:
                del module._forward_hooks[number]
                del module._forward_hooks_with_kwargs[number]


def _name(pipe: Any) -> str:
    return pipe.__name__ if isinstance(pipe, type) else type(pipe).__name__


_GUIDED: WeakKeyDictionary[Any, WeakSet[torch.nn.Module]] = WeakKeyDictionary()
"""The networks of every pipeline that guidance was applied to."""
