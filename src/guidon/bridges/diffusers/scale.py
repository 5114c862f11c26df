"""A scale per channel in the place of one number: it makes a pipeline's own ``guidance_scale=`` channel-selective.

    pipe(..., guidance_scale=guidon.channel_scale(7.0, channels=3))

The pipeline multiplies it with cond - uncond, and every channel gets its own factor. It needs no hook and works in
pipelines that ``guidon.apply`` does not know. It refuses every other use in which the channels would become one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from ...core.errors import InputError
from ...guidance import UNSET, CfgChannels, ChannelChoice, ChannelScale, Unset
from ...guidance.channels import parse_scale

NAMES = ("scale", "channels")  # of what a user gives
Form = Literal["s", "s - 1", "1 - s", "s + 1"]
FORMS: dict[Form, tuple[int, int]] = {"s": (1, 0), "s - 1": (1, -1), "1 - s": (-1, 1), "s + 1": (1, 1)}
"""Sign and offset of each form of a scale that pipelines multiply with."""
FIX = "use guidon.apply(pipe, guidon.Guidance(...)), which needs no scale"


def channel_scale(
    scale: float | Sequence[float],
    channels: CfgChannels | ChannelChoice | Unset = UNSET,
    *,
    latent_channels: int | None = None,
    axis: int | None = None,
    patch: int = 1,
    neutral: Literal[0, 1] = 1,
) -> ChannelNumber:
    """A guidance scale that differs by channel, for the scale argument of a diffusers pipeline.

    It works in the formulas ``u + s (c - u)``, ``c + (s - 1) (c - u)`` and ``(1 - s) u + s c``, in which an unguided
    channel has s = 1. With ``neutral=0`` it works in ``c + s (c - u)`` and ``(s + 1) c - s u``. Comparisons such as
    ``s > 1`` see the largest scale.

    A guided channel is bit for bit what the plain number gives. An unguided channel is the conditional prediction:
    exactly in all formulas but the first, in which the pipeline adds uncond + 1 (cond - uncond) in its own precision.
    Channels of a learned variance are unguided, unless all channels are guided.

    Args:
        scale: one number for all guided channels, or one per latent channel.
        channels: which channels are guided, as in ``Guidance``; left out, the first three, or all where there is a
            scale per channel.
        latent_channels: how many channels the latents have; found from the tensor if left out. Give it for video, and
            wherever a tensor with another number of channels should be refused.
        axis: the axis of the channels in the tensor that is multiplied. Left out, it is 1. CogVideoX has 2, Z-Image 0,
            Kandinsky 5 and packed latents (LTX, Flux, Qwen-Image) have -1.
        patch: side of the patch of latent pixels in a token: 2 for Flux, Qwen-Image and Chroma, where feature k belongs
            to channel k // 4.
        neutral: the scale of an unguided channel in the pipeline's formula: 0 for Z-Image, Cosmos and Krea 2.

    Raises:
        InputError: a value is not valid. When the pipeline runs: its tensor has other channels, or its axis is not
            certain, or the pipeline uses the scale in another way.
    """
    parsed = parse_scale(scale, "scale")
    choice = channels if isinstance(channels, Unset) else ChannelChoice.parse(channels, "channels")
    for name, value in (("latent_channels", latent_channels), ("patch", patch)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: give a whole number of at least 1")
    if neutral not in (0, 1):
        raise InputError(f"neutral is {neutral}: give 1 for u + s (c - u), or 0 for c + s (c - u)")
    if latent_channels is None and isinstance(parsed, tuple):
        latent_channels = len(parsed)
    number = ChannelNumber(parsed, choice, latent_channels, axis, patch, neutral)
    if latent_channels is not None:
        number.latent_factors(latent_channels)  # refuses a choice that does not fit
    return number


def _refusing(use: str) -> Callable[..., NoReturn]:
    def refuse(self: ChannelNumber, *_: object) -> NoReturn:
        raise self.refusal(use)

    return refuse


@dataclass(frozen=True, eq=False, repr=False)
class ChannelNumber:
    """What ``channel_scale`` returns: a number to pipelines, a factor per channel to tensors.

    It is not a subclass of float: ``torch.full`` and other C code would read a subclass as one number, unasked.
    """

    scale: float | tuple[float, ...]
    """One scale for all guided channels, or one per latent channel."""
    channels: ChannelChoice | Unset
    """Which channels are guided."""
    latent_channels: int | None
    """How many the latents have; None: as many as the tensor."""
    axis: int | None
    """The axis of the channels; None: 1, if that is certain."""
    patch: int
    """Side of the patch of latent pixels in a token."""
    neutral: Literal[0, 1]
    """The scale of an unguided channel."""
    form: Form = "s"
    """What the pipeline has made of the scale s."""

    # the factor of every channel

    def latent_factors(self, channels: int) -> tuple[float, ...]:
        """The factor of each of so many latent channels.

        Raises:
            InputError: the choice of channels does not fit.
        """
        if isinstance(self.scale, tuple):
            if len(self.scale) != channels:
                raise InputError(f"{self!r} has {len(self.scale)} scales, but the latents have {channels} channels")
            guided = ChannelScale.parse((1.0,) * channels, self.channels, channels=channels, names=NAMES).guided
            stray = [c for c in range(channels) if c not in guided and self.scale[c] != self.neutral]
            if stray:
                raise InputError(
                    f"{self!r} leaves channel {stray[0]} unguided, but gives it the scale {self.scale[stray[0]]:g}: "
                    f"give {self.neutral}, or leave channels out"
                )
            values = self.scale
        else:
            guided = ChannelScale.parse(self.scale, self.channels, channels=channels, names=NAMES).guided
            values = (self.scale,) * channels
        return tuple(self._factor(values[c] if c in guided else self.neutral) for c in range(channels))

    def _factor(self, scale: float) -> float:
        sign, offset = FORMS[self.form]
        return sign * scale + offset

    def factors(self, tensor: Tensor) -> tuple[tuple[float, ...], int]:
        """The factor of every channel of a tensor, and the axis of its channels.

        Raises:
            InputError: the tensor has other channels, or it is not certain which axis holds them.
        """
        axis = self._axis(tensor)
        count, rest = divmod(tensor.shape[axis], self.patch**2)
        shape = tuple(tensor.shape)
        if rest:
            raise InputError(
                f"{self!r}: axis {axis} of {shape} does not divide into patches of {self.patch**2} features"
            )
        latent = self.latent_channels or count
        if count == latent:
            return self.latent_factors(latent), axis
        if count != 2 * latent:
            raise InputError(
                f"{self!r} meets a tensor of {shape}, whose axis {axis} holds {count} channels and not {latent}: give "
                f"the axis and patch of this pipeline, or {FIX}"
            )
        found = self.latent_factors(latent)
        if not isinstance(self.scale, tuple) and self.channels == ChannelChoice():
            return found + found, axis  # all channels: the pipeline's own result, variance too
        return found + (self._factor(self.neutral),) * latent, axis

    def _axis(self, tensor: Tensor) -> int:
        shape, known = tuple(tensor.shape), self.latent_channels is not None
        if self.axis is not None:
            if not -len(shape) <= self.axis < len(shape):
                raise InputError(f"{self!r} meets a tensor of {shape}, which has no axis {self.axis}")
            return self.axis
        if len(shape) < 4:
            raise InputError(
                f"{self!r} meets a tensor of {shape}: packed latents have their channels last: give axis=-1, and "
                "patch=2 where four features are one channel (Flux, Qwen-Image, Chroma)"
            )
        # video is (B, C, T, H, W), or (B, T, C, H, W) in CogVideoX: channels come in fours, latent frames rarely do
        doubtful = len(shape) == 5 and (shape[1] % 4 != 0 or shape[2] % 4 == 0)
        if not known and (doubtful or shape[1] == 1):
            raise InputError(
                f"{self!r} meets a tensor of {shape}, of which it is not certain where the channels are: give "
                "latent_channels, such as 16, and the axis where it is not 1"
            )
        return 1

    def times(self, tensor: Tensor) -> Tensor:
        """The tensor, every channel multiplied by its factor, in its own dtype."""
        values, axis = self.factors(tensor)
        return multiply(tensor, values, axis, self.patch)

    # what pipelines do with a scale

    def __mul__(self, other: Any) -> Tensor:
        if isinstance(other, Tensor):
            return self.times(other)
        raise self.refusal(f"a product with {other!r}")

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> ChannelNumber:
        return self._moved("s - 1", other, neutral=1)

    def __rsub__(self, other: Any) -> ChannelNumber:
        return self._moved("1 - s", other, neutral=1)

    def __add__(self, other: Any) -> ChannelNumber:
        return self._moved("s + 1", other, neutral=0)

    __radd__ = __add__

    def _moved(self, form: Form, other: Any, *, neutral: int) -> ChannelNumber:
        """This scale in another form, in formulas in which ``neutral`` is the scale of an unguided channel."""
        if isinstance(other, Tensor) or other != 1 or self.neutral != neutral or self.form != "s":
            raise self.refusal(form.replace("1", "NUMBER" if isinstance(other, Tensor) else repr(other)))
        return replace(self, form=form)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """``tensor * scale``, and the refusal of every other function of torch."""
        number = next((value for value in [*args, *(kwargs or {}).values()] if isinstance(value, cls)), None)
        if number is None:
            return NotImplemented
        name = getattr(function, "__name__", str(function))
        if name in ("mul", "__mul__", "__rmul__", "multiply") and len(args) == 2 and not kwargs:
            return number * (args[1] if args[0] is number else args[0])
        raise number.refusal(f"torch's {name}")

    @property
    def largest(self) -> float:
        """The largest scale of a guided channel: what comparisons see."""
        return max(self.scale) if isinstance(self.scale, tuple) else self.scale

    def __lt__(self, other: float) -> bool:
        return self._compared() < other

    def __le__(self, other: float) -> bool:
        return self._compared() <= other

    def __gt__(self, other: float) -> bool:
        return self._compared() > other

    def __ge__(self, other: float) -> bool:
        return self._compared() >= other

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ChannelNumber):
            return vars(self) == vars(other)
        return isinstance(other, int | float) and self._compared() == other

    def __hash__(self) -> int:
        return hash(self.largest)

    def __bool__(self) -> bool:
        return self._compared() != 0

    def _compared(self) -> float:
        if self.form != "s":
            raise self.refusal("a comparison")
        return self.largest

    def __repr__(self) -> str:
        given = [repr(list(self.scale) if isinstance(self.scale, tuple) else self.scale)]
        if isinstance(self.channels, ChannelChoice):
            given.append(f"channels={self.channels.text!r}")
        if self.latent_channels is not None and not isinstance(self.scale, tuple):
            given.append(f"latent_channels={self.latent_channels}")
        if self.axis is not None:
            given.append(f"axis={self.axis}")
        if self.patch != 1:
            given.append(f"patch={self.patch}")
        if self.neutral != 1:
            given.append(f"neutral={self.neutral}")
        return self.form.replace("s", f"channel_scale({', '.join(given)})")

    def __format__(self, spec: str) -> str:
        return format(self.largest, spec) if spec else repr(self)

    def refusal(self, use: str) -> InputError:
        """The error for a use that would make one number of all channels."""
        return InputError(f"{self!r} has a scale per channel, and {use} would make it one number: {FIX}")

    # what would make it one number. With __len__ and __getitem__ torch.tensor([scale]) asks, and is refused
    __array_ufunc__ = None
    __float__ = _refusing("float()")
    __int__ = _refusing("int()")
    __round__ = _refusing("round()")
    __abs__ = _refusing("abs()")
    __neg__ = _refusing("-s")
    __pow__ = __rpow__ = _refusing("a power")
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refusing("a division")
    __array__ = _refusing("an array of it")
    __len__ = __getitem__ = _refusing("a tensor of it, such as embedded guidance,")


def multiply(tensor: Tensor, factors: tuple[float, ...], axis: int, patch: int = 1) -> Tensor:
    """A tensor whose channels are multiplied by a factor each, rounded as a product with a plain number is."""
    if len(set(factors)) == 1:
        return tensor * factors[0]
    # a plain number multiplies 16-bit tensors in fp32; so does this
    wide = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return (wide * factor_tensor(factors, axis, patch, tensor.ndim, wide.dtype, tensor.device)).to(tensor.dtype)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def factor_tensor(
    factors: tuple[float, ...], axis: int, patch: int, ndim: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """One factor per channel, shaped to multiply a tensor whose features lie on an axis. Sent to the device once."""
    shape = [1] * ndim
    shape[axis] = -1
    features = torch.tensor(factors, dtype=dtype, device=device).repeat_interleave(patch**2)
    return features.view(shape)
