"""Classifier-free guidance inside a network's call, as the scripts of DiT, PixArt and Open-Sora ask for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.errors import InputError
from ...guidance import UNSET, CfgChannels, ChannelScale, Unset


def forward_with_cfg(
    model: Callable[..., Any],
    x: Tensor,
    timestep: Tensor,
    y: Any,
    cfg_scale: float | Sequence[float],
    cfg_channel: CfgChannels | Unset = None,
    **kwargs: Any,
) -> Tensor:
    """The prediction of a model under guidance, for a loop that knows none.

    Args:
        model: called as ``model(x, timestep, y, **kwargs)``; it gives a tensor, or a dict that holds it under ``"x"``.
        x: (2n, C, ...), of which only the first half is read.
        timestep: (2n,).
        y: conditions of the prompts, then of the null caption, 2n rows.
        cfg_scale: guidance scale; one number, or one per channel.
        cfg_channel: guided channels, all unless given, as from Open-Sora 1.1 on; see ``ChannelScale.parse``.
        kwargs: of the model. A frame mask ``x_mask`` of n rows is repeated.

    Returns:
        (2n, C or 2C, ...): guided channels are the same in both halves, the others are those of each branch.

    Raises:
        InputError: the channels do not fit x, or x has an odd number of rows.
    """
    rows = len(x) // 2
    if len(x) != 2 * rows:
        raise InputError(f"guidance needs the batch twice, prompts and null captions: it has {len(x)} rows")
    x_mask = kwargs.get("x_mask")
    if isinstance(x_mask, Tensor) and len(x_mask) != len(x):
        kwargs["x_mask"] = torch.cat([x_mask, x_mask])
    scales = ChannelScale.parse(cfg_scale, cfg_channel, channels=x.shape[1])
    out = model(torch.cat([x[:rows]] * 2), timestep, y, **kwargs)
    out = out["x"] if isinstance(out, dict) else out
    guided = list(scales.guided)
    cond, uncond = out[:rows, guided], out[rows:, guided]
    scale = torch.tensor([scales.scales[k] for k in guided], device=out.device, dtype=out.dtype)
    result = out.clone()
    result[:, guided] = (uncond + scale.view(-1, *[1] * (out.ndim - 2)) * (cond - uncond)).repeat(
        2, *[1] * (out.ndim - 1)
    )
    return result


class ForwardWithCfg:
    """The calls of a network by which the originals' scripts guide it."""

    guided_channels: ClassVar[CfgChannels | Unset] = UNSET
    """The channels that ``forward_with_cfg`` guides where it is not told: three, as in the original."""

    def forward_with_cfg(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Any,
        cfg_scale: float | Sequence[float],
        *args: Any,
        cfg_channel: CfgChannels | Unset = UNSET,
        **kwargs: Any,
    ) -> Tensor:
        """A guided prediction; see ``guidon.iddpm.forward_with_cfg``. Further arguments are those of the network."""
        channels = type(self).guided_channels if isinstance(cfg_channel, Unset) else cfg_channel

        def model(x: Tensor, timestep: Tensor, y: Any, **kwargs: Any) -> Tensor:
            return self(x, timestep, y, *args, **kwargs)  # type: ignore[operator]

        return forward_with_cfg(model, x, timestep, y, cfg_scale, channels, **kwargs)

    def forward_with_dpmsolver(self, x: Tensor, timestep: Tensor, y: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The prediction (B, C, ...) without the variance, which DPM-Solver does not need."""
        return self(x, timestep, y, *args, **kwargs)[:, : x.shape[1]]  # type: ignore[operator]
