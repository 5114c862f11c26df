"""What a user chooses between when the speed of a model is measured. It is read and checked without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, TypeVar, cast, get_args

from ...core.devices import DtypeName
from ...core.errors import InputError, nearest, quoted, setting

if TYPE_CHECKING:
    from ...pipeline.planner import Planner
    from ...request import Choices, Request

Part = Literal["step", "outside", "decode", "clip", "train"]
"""What is measured: one guided step, the same without the network, the decoder, a whole clip, one step of training."""
PARTS: tuple[Part, ...] = get_args(Part)
USUAL: tuple[Part, ...] = ("step", "outside", "decode", "clip")
Branches = Literal["batched", "sequential", "conditional"]
"""How the branches of guidance run: in one batch, one after the other, or the conditional one alone."""
T = TypeVar("T", bound=str)


@dataclass(frozen=True)
class Options:
    """The choices that are compared. The first of each is the base."""

    parts: tuple[Part, ...]
    dtypes: tuple[DtypeName, ...]
    branches: tuple[Branches, ...]
    samplers: tuple[str, ...]
    steps: tuple[int, ...]
    batch_size: int

    def plan(
        self, planner: Planner, prompt: str, shared: Choices, device: str | None, force: bool = False
    ) -> dict[str, Request]:
        """The complete request of each clip that is compared, by what tells it from the others.

        Args:
            planner: of the model.
            prompt: what to show.
            shared: the choices that all clips share, such as the size.
            device: where it is known without torch.
            force: take a prompt that the model cannot follow, too.

        Raises:
            InputError: a choice is not valid for this model, or it cannot follow the prompt.
        """
        found: dict[str, Request] = {}
        for sampler, steps, dtype in product(self.samplers, self.steps, self.dtypes):
            own = {**shared, "sampler": sampler, "steps": steps, "dtype": dtype}
            chosen = cast("Choices", {key: value for key, value in own.items() if value is not None})
            request = planner.complete(
                [prompt], range(self.batch_size), batch_size=self.batch_size, device=device, **chosen
            )
            found[f"{sampler}, {steps} steps, {dtype}"] = request
        read_as = planner.read_prompts(
            next(iter(found.values())), force=force
        ).read_as  # once, so that a warning comes once
        return {name: request.model_copy(update={"read_as": read_as}) for name, request in found.items()}


def read_list(text: str, name: str, valid: Sequence[T]) -> tuple[T, ...]:
    """The names in ``a,b``, each valid and there once.

    Raises:
        InputError: one does not exist, or is there twice.
    """
    found: list[T] = []
    for word in text.split(","):
        word = word.strip()
        if word not in valid:
            raise InputError(f"{setting(name)} {quoted(word)} does not exist{nearest(word, valid)}")
        if word in found:
            raise InputError(f"{setting(name)} names {word} twice: give it once")
        found.append(cast("T", word))
    return tuple(found)


def read_numbers(text: str, name: str) -> tuple[int, ...]:
    """The whole numbers in ``50,25``, each at least 1 and there once.

    Raises:
        InputError: a part is none, or is there twice.
    """
    found: list[int] = []
    for word in text.split(","):
        word = word.strip()
        if not (word.isdecimal() and word.isascii() and len(word) <= 6 and int(word)):
            raise InputError(f"{setting(name)} {quoted(text)} is no list of whole numbers: give such as 50,25")
        if int(word) in found:
            raise InputError(f"{setting(name)} names {word} twice: give it once")
        found.append(int(word))
    return tuple(found)


def usual_prompt(planner: Planner, features: Sequence[str] = ()) -> str:
    """A prompt that a model follows: its cost is measured, so any will do.

    Args:
        planner: of the model.
        features: the prompts of which there are stored features; empty where a text encoder reads any prompt.
    """
    if features:
        return features[0]
    if planner.preset.classes:
        return "0"
    if planner.bench == "world":
        from ... import world

        return world.clip("L0", 0, 0).caption
    return "a lighthouse stands in a storm, waves roll over the rocks, and gulls fly past"
