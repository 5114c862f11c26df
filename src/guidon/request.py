"""What to generate: one validated, frozen object, made by the command line or a call, stored in every manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from .core.errors import InputError, nearest
from .core.settings import Settings
from .guidance import parse_rule, parse_timing, rule_text
from .guidance.timing import NAMED
from .samplers.philox import BLOCKS


@dataclass(frozen=True)
class Exact:
    """How one of the originals samples, where Guidon would do otherwise; noise is always drawn as they do.

    ``single_precision``: tables in float32; ``noise_in_dtype``: the initial noise is rounded to the network's dtype.
    """

    source: str
    single_precision: bool = False
    noise_in_dtype: bool = False


EXACT = {
    "open-sora-1.0": Exact("Open-Sora v1.0, opensora/schedulers/iddpm"),
    "open-sora-1.1": Exact("Open-Sora v1.1, opensora/schedulers/iddpm", single_precision=True, noise_in_dtype=True),
    "dit": Exact("DiT, sample.py"),
    "pixart": Exact("PixArt-alpha, scripts/inference.py"),
}


class Generation(Settings):
    """Every choice that decides the frames, with nothing left to defaults that may change.

    ``samples`` are sample indices: sample k of a seed starts from the same noise whatever is generated beside it, and
    with whatever prompt; with ``seed_per_prompt`` the seed of prompt k is ``seed + k``, so that prompts share no noise.
    ``cfg_scale`` is a float, or one per latent channel; ``cfg_channels`` is in its canonical text form. A
    ``negative_prompt`` takes the null caption's place. ``guidance`` is a rule with all its settings, ``timing`` when it
    acts. ``rotation`` is the seed of a random rotation of the latent channels, of which cfg_channels then chooses: a
    control for studies. ``exact`` names the original whose draws and precisions are replayed; a sample then depends on
    its batch: ``batch_size`` belongs to it.
    ``size`` (height, width) in pixels and ``frames`` are the model's own where they are None.
    ``exact_noise`` draws on the device that runs, or as a CUDA device does ("cuda:h100"; "cuda" is an A100), on which
    the originals ran.
    """

    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    negative_prompt: str | None = None
    model: str = "guidon-small"
    size: tuple[PositiveInt, PositiveInt] | None = None
    frames: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    seed_per_prompt: bool = False
    samples: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    sampler: Literal["ddpm", "ddim", "dpm-solver"] = "ddpm"
    steps: PositiveInt = 50
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    cfg_scale: float | tuple[float, ...] = 1.0
    cfg_channels: str | None = "3"
    rotation: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    guidance: str = "cfg"
    timing: str = "constant"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    exact: str | None = None
    exact_noise: str = "device"
    batch_size: PositiveInt | None = None

    @field_validator("guidance")
    @classmethod
    def _whole_rule(cls, value: str) -> str:
        return rule_text(parse_rule(value))

    @field_validator("timing")
    @classmethod
    def _known_timing(cls, value: str) -> str:
        parse_timing(value)
        return value

    @field_validator("exact_noise")
    @classmethod
    def _known_device(cls, value: str) -> str:
        valid = ("device", "cuda", *(f"cuda:{gpu}" for gpu in BLOCKS))
        if value not in valid:
            raise InputError(f"exact_noise {value!r} does not exist{nearest(value, valid)}")
        return value

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Generation:
        if self.eta and self.sampler != "ddim":
            raise InputError(f"eta {self.eta:g} is ddim's, the sampler is {self.sampler}: leave it out")
        rule = parse_rule(self.guidance)
        if rule.name == "cfg++" and (self.sampler != "ddim" or self.eta):
            raise InputError("guidance cfg++ has a sampler of its own: give the sampler ddim, with eta 0")
        if not rule.by_scale_one and self.timing in NAMED and self.timing != "constant":
            raise InputError(f"guidance {rule.name} has a scale that falls by itself: give no ramp ({self.timing})")
        rule.check(self.cfg_scale if isinstance(self.cfg_scale, tuple) else [self.cfg_scale])
        if rule.needs_negative and self.negative_prompt is None:
            raise InputError(f"guidance {rule.name} needs a negative prompt: give what should not be seen")
        if self.exact and self.seed_per_prompt:
            raise InputError(f"exact {self.exact!r} draws all samples from one seed: leave out seed_per_prompt")
        if self.exact_noise != "device" and self.exact is None:
            raise InputError(f"exact_noise {self.exact_noise!r} needs exact, whose draws it makes: give both")
        return self

    @field_validator("exact")
    @classmethod
    def _known_original(cls, value: str | None) -> str | None:
        if value is not None and value not in EXACT:
            raise InputError(f"exact {value!r} does not exist{nearest(value, EXACT)}")
        return value
