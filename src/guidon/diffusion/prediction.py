"""What a network's output stands for, and conversions between parameterisations.

At a given x_t and level each parameterisation is an affine function of any other:

    eps:  the noise
    x0:   the clean sample, (x_t - sigma eps) / alpha
    v:    alpha eps - sigma x_0 (Salimans & Ho 2202.00512, sec. 4; alpha^2 + sigma^2 = 1)
    flow: eps - x_0, the velocity of rectified flow (Liu et al. 2209.03003), where x_t = (1 - s) x_0 + s eps
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from torch import Tensor

from ..core.errors import InputError, nearest, quoted
from .level import NoiseLevel

Parameterization = Literal["eps", "x0", "v", "flow"]
IN_DIFFUSERS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
"""The names that diffusers gives to them."""


def find_parameterization(name: object) -> Parameterization:
    """A parameterisation by its name, or by that of diffusers.

    Raises:
        InputError: it does not exist.
    """
    valid = get_args(Parameterization)
    found = IN_DIFFUSERS.get(name, name) if isinstance(name, str) else None
    if found in valid:
        return cast("Parameterization", found)
    hint = "; valid: v (alpha eps - sigma x_0), flow (eps - x_0)" if name == "velocity" else nearest(str(name), valid)
    raise InputError(f"parameterization {quoted(name)} does not exist{hint}")


def convert(
    prediction: Tensor, x_t: Tensor, level: NoiseLevel, given: Parameterization, wanted: Parameterization
) -> Tensor:
    """A prediction of x_t at a level, in another parameterisation.

    Args:
        prediction, x_t: (B, C, ...).
        level: alpha must not be 0 where ``given`` is "eps"; sigma must not be 0 unless ``wanted`` is "x0".
        given: the parameterisation of ``prediction``.
        wanted: the one to return.
    """
    if given == wanted:
        return prediction
    alpha, sigma = level.alpha, level.sigma
    if given == "x0":
        x_0 = prediction
    elif given == "v":
        x_0 = alpha * x_t - sigma * prediction
    elif given == "flow":
        x_0 = (x_t - sigma * prediction) / (alpha + sigma)
    else:
        x_0 = (x_t - sigma * prediction) / alpha
    if wanted == "x0":
        return x_0
    if wanted == "v":
        return (alpha * x_t - x_0) / sigma
    eps = (x_t - alpha * x_0) / sigma
    return eps - x_0 if wanted == "flow" else eps


def target(x_0: Tensor, noise: Tensor, level: NoiseLevel, parameterization: Parameterization) -> Tensor:
    """What a network of that parameterisation is trained to predict, (B, C, ...)."""
    if parameterization == "x0":
        return x_0
    if parameterization == "eps":
        return noise
    return level.alpha * noise - level.sigma * x_0 if parameterization == "v" else noise - x_0


def split_prediction(prediction: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The first C channels of a prediction, and the variance interpolation where there are 2C.

    Raises:
        InputError: it has another number of channels.
    """
    if prediction.shape[1] == channels:
        return prediction, None
    if prediction.shape[1] == 2 * channels:
        return prediction[:, :channels], prediction[:, channels:]
    raise InputError(
        f"the network gave {prediction.shape[1]} channels for {channels} latent channels: "
        f"expected {channels} or {2 * channels}"
    )
