"""GuidedDenoiser: runs a network's branches for guidance, in one batch or one after the other.

It knows no model and no sampler. It is the only place that batches conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ..core.errors import InputError, setting
from ..core.finite import FiniteCheck
from ..core.ranks import Ranks
from ..diffusion import NoiseLevel, Parameterization, split_prediction
from .combine import START, Combines, Guidance, GuidedStep, Observe
from .imageless import WithoutFrames
from .parts import GuidedParts
from .skipping import BlockSkip
from .sparing import EVERY_CALL, Spared, Sparing
from .spread import Spread


class Condition(Protocol):
    """The network's encoded prompts, one row each, with their token mask."""

    def cat(self, other: Self, /) -> Self:
        """The rows of both, these first."""
        ...


C = TypeVar("C", bound=Condition)
Network = Callable[[Tensor, NoiseLevel, C], Tensor]  # (x, level, condition) -> prediction (B, C or 2C, ...)


@dataclass(frozen=True, eq=False)
class WeakModel(Generic[C]):
    """A weaker network beside the one that is guided, and the prompts' condition as it reads them."""

    network: Network[C]
    cond: C


class GuidedDenoiser(Generic[C]):
    """A network under classifier-free guidance, for one run of a sampler: ``denoiser(x, level)`` -> prediction.

    Every prediction is checked. One that is not finite ends the run: on the CPU at that step, on other devices one step
    later, so that they need not wait.

    Args:
        network: ``network(x, level, condition)`` gives a prediction of C or 2C channels. With a true attribute
            ``branches_share_rows`` it is given x once for all branches of a batch, whose conditions have more rows.
        guidance: how the branches are combined.
        cond: the prompts' condition.
        uncond: the condition of the null caption; may be None where guidance never acts or does not need it.
        negative: the condition of the negative prompt, for a rule that needs it beside ``uncond``.
        weak: where the weak prediction comes from, for a rule that needs it: another model, or blocks of ``network``.
        imageless: the branch without the image, for a rule that needs it: a condition, or ``WithoutFrames``.
        parameterization: what the network predicts.
        batched: all branches in one batch. False runs them one after the other, in the memory of one branch.
        ranks: the ranks that share the branches, each of which makes this object; then no branches are in one batch.
            The first samples, the others call ``serve``.
        sparing: which calls of the other branches are left out. Where it may stop them clip by clip, branches run one
            after the other, so that a clip does not depend on when the others of its batch stop.
        observe: called with every step at which guidance acted.
        steps: how many steps the run has, for messages.

    Raises:
        InputError: a condition is missing.
    """

    def __init__(
        self,
        network: Network[C],
        guidance: Combines,
        cond: C,
        uncond: C | None = None,
        *,
        negative: C | None = None,
        weak: WeakModel[C] | BlockSkip | None = None,
        imageless: C | WithoutFrames[C] | None = None,
        parameterization: Parameterization = "eps",
        batched: bool = True,
        ranks: Ranks | None = None,
        sparing: Sparing = EVERY_CALL,
        observe: Observe | None = None,
        steps: int | None = None,
    ) -> None:
        self.branches: dict[str, C] = {"cond": cond}
        self.weak = weak if guidance.needs_weak and not guidance.is_conditional else None
        self.imageless: WithoutFrames[C] | None = None
        self.together: C | None = None
        if not guidance.is_conditional:
            if guidance.needs_uncond:
                if uncond is None:
                    raise InputError("guidance needs an unconditional condition, and none was given")
                self.branches["uncond"] = uncond
            if guidance.needs_negative:
                if negative is None:
                    raise InputError(f"this {setting('guidance')} rule needs a negative prompt")
                self.branches["negative"] = negative
            if guidance.needs_weak and weak is None:
                raise InputError(f"this {setting('guidance')} rule needs a weaker prediction, and none was given")
            if guidance.needs_imageless:
                if imageless is None:
                    raise InputError(
                        f"this {setting('guidance')} rule needs an image to guide by, and none was given: choose "
                        "another rule"
                    )
                if isinstance(imageless, WithoutFrames):
                    self.imageless = imageless
                else:
                    self.branches["imageless"] = imageless
            if isinstance(self.weak, BlockSkip):
                self.branches["weak"] = cond
            if batched and ranks is None and sparing.adaptive is None:
                self.together = cond
                for other in list(self.branches.values())[1:]:
                    self.together = self.together.cat(other)
        others = [name for name, given in (("weak", self.weak), ("imageless", self.imageless)) if given is not None]
        self.names = list(dict.fromkeys([*self.branches, *others]))
        self.spread = None if ranks is None or len(ranks) == 1 else Spread(ranks, self.names)
        self.network, self.guidance, self.observe, self.steps = network, guidance, observe, steps
        self.parameterization: Parameterization = parameterization
        # a network that knows its branches computes once what they share; which rows a block skips is of all of them
        self._shares_rows = shares_rows(network) and not isinstance(self.weak, BlockSkip)
        self.memory = START
        self.spared = None if sparing.is_neutral else Spared(sparing)
        self.check = FiniteCheck()

    def __call__(self, x: Tensor, level: NoiseLevel, /) -> Tensor:
        """The guided prediction (B, C or 2C, ...) of x (B, C, ...) at a level, fp32.

        Where guidance does not act, the conditional branch runs alone.

        Raises:
            InputError: this prediction, or that of the step before, is not finite. The message names step and branch.
        """
        acts = self.guidance.acts(level, self.memory, x.shape[1])
        spared = self.spared
        if acts and spared is not None:
            if spared.ended:
                return self._unguided(x, level)
            found = self._spared_predictions(x, level, spared)
        else:
            found = self._predictions(x, level) if acts else {"cond": self._run(x, level, "cond")}
        cond, uncond, *others = (found.get(name) for name in ("cond", "uncond", "negative", "weak", "imageless"))
        negative, weak, imageless = others
        assert cond is not None
        other = weak if uncond is None else uncond
        if self.observe is not None and other is not None:
            scale = self.guidance.scale_at(level, self.memory, x.shape[1])
            shown, other = (split_prediction(branch, x.shape[1])[0] for branch in (cond, other))
            self.observe(GuidedStep(level, scale, shown, other, x, self.parameterization))
        guided, self.memory = self.guidance.combine(
            cond, uncond, x, level, self.memory,
            negative=negative, weak=weak, imageless=imageless, parameterization=self.parameterization,
        )  # fmt: skip
        if acts and spared is not None:
            guided = spared.only_guided(guided, cond)
        looked_at = [*found.values()] if guided is cond else [*found.values(), guided]
        self.check.look(looked_at, partial(self._refuse, x, found, guided, level, self.memory.calls))
        return guided

    def _unguided(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """The step of a run whose clips are guided no more."""
        cond = self._run(x, level, "cond")
        self.memory = replace(self.memory, calls=self.memory.calls + 1)
        self.check.look([cond], partial(self._refuse, x, {"cond": cond}, cond, level, self.memory.calls))
        return cond

    def _spared_predictions(self, x: Tensor, level: NoiseLevel, spared: Spared) -> dict[str, Tensor]:
        """The predictions of all branches, of which some may not be computed."""
        if spared.needs_branches(self.memory.guided):
            compared = partial(self.guidance.compared, level=level, memory=self.memory, channels=x.shape[1])
            return spared.seen(self._predictions(x, level), compared)
        return spared.reused(self._run(x, level, "cond"))

    def parts(self, x: Tensor, level: NoiseLevel, /) -> GuidedParts | None:
        """What the call gives, to be computed part by part. None, and nothing has run, where only the whole is known.

        Its numbers are not checked: see ``GuidedParts.check``.
        """
        guidance, channels = self.guidance, x.shape[1]
        alone = self.observe is None and self.spared is None and self.spread is None
        own = type(self) is GuidedDenoiser and type(guidance) is Guidance
        if not (alone and own and isinstance(guidance, Guidance)):
            return None
        plain = guidance.plain_at(level, self.memory, channels)
        if plain is None or (plain[0] and self.names != ["cond", "uncond"]):
            return None
        guided, factor, after = plain
        found = self._predictions(x, level) if guided else {"cond": self._run(x, level, "cond")}
        before, self.memory = self.memory, after
        cond, uncond = found["cond"], found.get("uncond")
        return GuidedParts(
            cond, uncond, guided, factor,
            lambda: guidance.combine(
                cond, uncond, x, level, before, parameterization=self.parameterization
            )[0],
            lambda whole: self._refuse(x, found, whole, level, after.calls),
        )  # fmt: skip

    def conditional(self, x: Tensor, level: NoiseLevel, /) -> Tensor:
        """The prediction (B, C or 2C, ...) for the prompts alone, without guidance and without a check, fp32."""
        return self._run(x, level, "cond")

    def finish(self) -> None:
        """Look at the last prediction, if that was not done.

        Raises:
            InputError: it is not finite.
        """
        self.check.finish()

    @contextmanager
    def leading(self) -> Generator[None]:
        """The run of the first rank of a team: at its end, and where it fails, the other ranks leave ``serve``."""
        try:
            yield
        except BaseException as error:
            if self.spread is not None:
                self.spread.fail(error)
            raise
        if self.spread is not None:
            self.spread.end(guided=self.memory.guided)

    def serve(self, device: torch.device) -> int:
        """Predict this rank's branches for the first rank of a team, until its run is over.

        Args:
            device: where the network is.

        Returns:
            At how many steps guidance acted.

        Raises:
            InputError, MemoryError, KeyboardInterrupt: why the run failed, on the first rank or here.
        """
        assert self.spread is not None, "only ranks that share branches serve"
        return self.spread.serve(self._each, device)["guided"]

    def _refuse(self, x: Tensor, branches: dict[str, Tensor], guided: Tensor, level: NoiseLevel, step: int) -> None:
        """Refuse a step if one of its numbers is not finite."""
        broken = [name for name, branch in branches.items() if not bool(branch.isfinite().all())]
        if not broken and bool(guided.isfinite().all()):
            return
        of = f" of {self.steps}" if self.steps else ""
        at = f"step {step}{of} (timestep {level.shown})"
        lower = f"lower {setting('cfg_scale')}, take more steps, or try fp32"
        if not bool(x.isfinite().all()):
            raise InputError(f"the latents are not finite before {at}, though all predictions were: {lower}")
        if not broken:
            raise InputError(f"the guided prediction is not finite at {at}, though its branches are: {lower}")
        raise InputError(
            f"the network's prediction is not finite at {at}, in the branch {' and '.join(broken)}: try fp32, and look "
            "at the weights"
        )

    def _predictions(self, x: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        """The predictions of all branches."""
        if self.spread is not None:
            channels = self._looked_at(level, x.shape[1])
            self.spread.ask(x, level, channels)
            found = self._each(self.spread.of(0), x, level)
            return found | self.spread.answers(found["cond"], channels)
        if self.together is None:
            return self._each(self.names, x, level)
        rows, names = len(x), list(self.branches)
        skipped = slice(rows * (len(names) - 1), None)  # the weak branch is the last
        with self._skipping(skipped):
            given = x if self._shares_rows else torch.cat([x] * len(names))
            prediction = self.network(given, level, self.together).float()
        split_prediction(prediction, x.shape[1])
        found = dict(zip(names, prediction.chunk(len(names)), strict=True))
        return found | self._each([name for name in self.names if name not in found], x, level, found)

    def _each(
        self, names: Sequence[str], x: Tensor, level: NoiseLevel, known: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The predictions of some branches, one after the other; the imageless one builds on ``known`` ones too."""
        found: dict[str, Tensor] = {}
        for name in names:
            if name == "weak" and isinstance(self.weak, WeakModel):
                found[name] = self.weak.network(x, level, self.weak.cond).float()
                split_prediction(found[name], x.shape[1])
            elif name == "imageless" and self.imageless is not None:
                found[name] = self.imageless(x, level, {**(known or {}), **found}["uncond"])
            else:
                found[name] = self._run(x, level, name)
        return found

    def _looked_at(self, level: NoiseLevel, channels: int) -> Sequence[int]:
        """The channels that must cross between ranks: those that guidance looks at, and all where somebody observes."""
        return range(channels) if self.observe is not None else self.guidance.looks_at(level, self.memory, channels)

    def _run(self, x: Tensor, level: NoiseLevel, branch: str) -> Tensor:
        """The prediction of one branch alone."""
        with self._skipping(slice(None)) if branch == "weak" else nullcontext():
            prediction = self.network(x, level, self.branches[branch]).float()
        split_prediction(prediction, x.shape[1])
        return prediction

    def _skipping(self, rows: slice) -> AbstractContextManager[None]:
        """Where the weak branch is the network's own, its blocks are skipped for these rows."""
        return self.weak.rows(rows) if isinstance(self.weak, BlockSkip) else nullcontext()


def shares_rows(network: object) -> bool:
    """Whether a network, or the one that is called with some arguments of its own, takes x once for all branches."""
    return bool(getattr(network.func if isinstance(network, partial) else network, "branches_share_rows", False))
