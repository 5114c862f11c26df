"""What to generate: one validated, frozen object, made by the command line or a call, stored in every manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from .errors import InputError, nearest
from .guidance.rules import RULES
from .settings import Settings


class Generation(Settings):
    """Every choice that decides the frames, with nothing left to defaults that may change.

    ``samples`` are sample indices: sample k of a seed starts from the same noise whatever is generated beside it.
    ``cfg_scale`` is a float, or one per latent channel; ``cfg_channels`` is in its canonical text form.
    """

    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    negative_prompt: str | None = None
    model: str = "guidon-small"
    seed: Annotated[int, Field(ge=0)] = 0
    samples: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    sampler: Literal["ddpm", "ddim", "dpm-solver"] = "ddpm"
    steps: PositiveInt = 50
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    cfg_scale: float | tuple[float, ...] = 1.0
    cfg_channels: str | None = "3"
    guidance: str = "cfg"
    timing: str = "constant"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"

    @field_validator("guidance")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        if value not in RULES:
            raise InputError(f"guidance rule {value!r} does not exist{nearest(value, RULES)}")
        return value
