"""The guided loop as the original has it, in plain words: what the benchmarks compare Guidon with.

The behaviour is that of Open-Sora v1.0 (STDiT, forward_with_cfg, IDDPM): both branches in one doubled batch from the
first operator to the last, attention with its scores in memory, captions projected anew in every step and in every
block, padding tokens taken out first, tables looked up by timestep, and noise drawn for both halves of the batch. It
runs on the weights of Guidon's own STDiT. Each flag of ``Savings`` changes one thing and leaves the result as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guidon.diffusion import DiscreteLevel, NoiseSchedule
from guidon.models.stdit.network import STDiT

GUIDED = 3  # channels that the original guides


@dataclass(frozen=True)
class Savings:
    """What is done better than in the original, each with the same result."""

    fused_attention: bool = False
    """Attention by one operator, which does not keep the scores."""
    captions_once: bool = False
    """The caption's keys and values of every block are computed once for all steps."""
    patches_as_product: bool = False
    """Patches are embedded by a matrix product, not a convolution."""
    fused_modulation: bool = False
    """Shift, scale and gate by one operator each."""
    shared_start: bool = False
    """Until the first attention to the caption, both branches are the same: they are computed once."""
    one_half: bool = False
    """After the network, only the rows of the prompts go on: one posterior and one draw of noise for each clip."""


class PlainSTDiT:
    """STDiT's arithmetic, operator by operator, on the weights of ``network``."""

    def __init__(self, network: STDiT, savings: Savings = Savings(), compiled: bool = False) -> None:
        self.network, self.savings = network, savings
        self.block = torch.compile(_block, dynamic=False) if compiled else _block

    def captions(self, features: Tensor, mask: Tensor) -> tuple[list[Tensor], list[int]]:
        """Keys and values of each block, (1, tokens of all rows, 2, H, D / H), and how many tokens each row has."""
        net = self.network
        lengths = mask.sum(1).tolist()
        tokens = _mlp(net.y_embedder.y_proj, features.to(net.dtype))
        kept = tokens.masked_select(mask[..., None] != 0).view(1, -1, tokens.shape[-1])
        return [self._keys_values(k, kept) for k in range(len(net.blocks))], lengths

    def _keys_values(self, block: int, tokens: Tensor) -> Tensor:
        cross = self.network.blocks[block].cross_attn
        return _linear(cross.kv_linear, tokens).view(1, -1, 2, cross.num_heads, tokens.shape[-1] // cross.num_heads)

    def __call__(
        self, x: Tensor, timesteps: Tensor, features: Tensor, mask: Tensor, kept: tuple[list[Tensor], list[int]] | None
    ) -> Tensor:
        """The prediction of x (B, C, T, H, W); ``kept`` is what ``captions`` gave, if that is done once."""
        net, savings = self.network, self.savings
        frames, (pt, ph, pw) = x.shape[2], net.config.patch_size
        size = x.shape[2:]
        x = (x[: len(x) // 2] if savings.shared_start else x).to(net.dtype)
        if savings.patches_as_product:
            h = net.x_embedder(x)
        else:
            weight = net.x_embedder.proj.weight
            h = F.conv3d(x, weight, net.x_embedder.proj.bias, stride=(pt, ph, pw)).flatten(2).transpose(1, 2)
        d = h.shape[-1]
        h = (h.view(len(x), frames, -1, d) + net.pos_embed.to(h)).view(len(x), -1, d)
        t = net.t_embedder(timesteps.to(net.dtype))
        t_six = net.t_block(t)
        keys_values, lengths = self.captions(features, mask) if kept is None else kept
        for k, block in enumerate(net.blocks):
            positions = net.pos_embed_temporal.to(h) if k == 0 else None
            h = self.block(block, h, t_six, frames, positions, keys_values[k], lengths, savings)
        last = net.final_layer
        shift, scale = (last.scale_shift_table[None] + t[:, None]).chunk(2, dim=1)
        out = _linear(last.linear, _modulated(last.norm_final(h), shift, scale, savings))
        rows, columns = size[1] // ph, size[2] // pw
        out = out.view(len(out), frames, rows, columns, ph, pw, -1)
        return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(len(out), -1, *size).float()


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """torch's own product, whatever the layer takes."""
    return F.linear(x, layer.weight, layer.bias)


def _mlp(mlp, x: Tensor) -> Tensor:
    return _linear(mlp.fc2, F.gelu(_linear(mlp.fc1, x), approximate="tanh"))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, savings: Savings) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale) if savings.fused_modulation else x * (1 + scale) + shift


def _gated(x: Tensor, gate: Tensor, more: Tensor, savings: Savings) -> Tensor:
    return torch.addcmul(x, gate, more) if savings.fused_modulation else x + gate * more


def _block(
    block, x: Tensor, t: Tensor, frames: int, positions: Tensor | None, keys_values: Tensor, lengths: list[int],
    savings: Savings,
) -> Tensor:  # fmt: skip
    """One block of STDiT on x (B, T S, D), or on the rows of one branch before the captions differ."""
    rows, tokens, d = x.shape
    modulation = block.scale_shift_table[None] + t.view(len(t), 6, d)
    shift, scale, gate = modulation[:rows, :3].chunk(3, 1)
    shift_mlp, scale_mlp, gate_mlp = modulation[:, 3:].chunk(3, 1)
    # within frames
    space = _modulated(block.norm1(x), shift, scale, savings).view(rows * frames, -1, d)
    x = _gated(x, gate, _self_attention(block.attn, space, savings).view(rows, tokens, d), savings)
    # along time
    time = x.view(rows, frames, -1, d).transpose(1, 2).reshape(-1, frames, d)
    time = time if positions is None else time + positions
    time = _self_attention(block.attn_temp, time, savings).view(rows, -1, frames, d).transpose(1, 2)
    x = _gated(x, gate, time.reshape(rows, tokens, d), savings)
    # to the caption
    x = torch.cat([x, x]) if rows < len(lengths) else x
    x = x + _cross_attention(block.cross_attn, x, keys_values, lengths, savings)
    # the MLP
    return _gated(x, gate_mlp, _mlp(block.mlp, _modulated(block.norm2(x), shift_mlp, scale_mlp, savings)), savings)


def _attended(q: Tensor, k: Tensor, v: Tensor, savings: Savings) -> Tensor:
    """Attention of q, k, v (B, H, N, D)."""
    if savings.fused_attention:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.float().softmax(dim=-1).to(q.dtype) @ v


def _self_attention(attention, x: Tensor, savings: Savings) -> Tensor:
    rows, tokens, d = x.shape
    heads = attention.num_heads
    q, k, v = _linear(attention.qkv, x).view(rows, tokens, 3, heads, d // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return _linear(attention.proj, _attended(q, k, v, savings).transpose(1, 2).reshape(rows, tokens, d))


def _cross_attention(cross, x: Tensor, keys_values: Tensor, lengths: list[int], savings: Savings) -> Tensor:
    """Every row attends to its own caption tokens, which lie one after the other in ``keys_values``."""
    rows, tokens, d = x.shape
    q = _linear(cross.q_linear, x).view(rows, tokens, cross.num_heads, -1).transpose(1, 2)
    found, first = [], 0
    for row, length in enumerate(lengths):
        k, v = keys_values[:, first : first + length].permute(2, 0, 3, 1, 4).unbind(0)
        found.append(_attended(q[row : row + 1], k, v, savings))
        first += length
    return _linear(cross.proj, torch.cat(found).transpose(1, 2).reshape(rows, tokens, d))


def guided(model: Callable[[Tensor], Tensor], x: Tensor, scale: float, savings: Savings) -> Tensor:
    """Guidance of the first channels on a doubled batch x: (2n, C, ...) -> (2n or n, 2C, ...)."""
    half = x[: len(x) // 2]
    out = model(torch.cat([half, half]))
    eps, rest = out[:, :GUIDED], out[:, GUIDED:]
    cond, uncond = eps.chunk(2)
    half = uncond + scale * (cond - uncond)
    if savings.one_half:
        return torch.cat([half, rest[: len(half)]], dim=1)
    return torch.cat([torch.cat([half, half]), rest], dim=1)


class PlainTables:
    """The coefficients of the reverse process, in float64 tables that every step looks up by index."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        levels = sorted(schedule.levels, key=lambda level: int(level.step))
        self.timesteps = [int(level.timestep) for level in levels]
        names = (
            "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1", "posterior_mean_coef2",
            "posterior_log_variance_clipped", "posterior_variance", "log_betas",
        )  # fmt: skip
        self.tables = {name: torch.stack([getattr(level, name) for level in levels]).double().numpy() for name in names}

    def at(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        """A coefficient for every sample, as large as x."""
        values = torch.from_numpy(self.tables[name]).to(t.device)[t].float()
        return (values.view(-1, *[1] * (x.ndim - 1)) + torch.zeros(x.shape, device=t.device)).expand(x.shape)


def reverse_step(
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    step: int,
    tables: PlainTables,
    noise: Callable[[Tensor], Tensor],
    savings: Savings = Savings(),
) -> Tensor:
    """x_{t-1} of a doubled batch x (2n, C, ...), or of n rows where one half goes on.

    ``model`` is given the batch and its timesteps, and returns 2C channels.
    """
    t = torch.full((len(x),), step, device=x.device)
    timesteps = torch.tensor(tables.timesteps, device=x.device)[t]
    prediction = model(x, timesteps)
    if savings.one_half:
        x, t = x[: len(prediction)], t[: len(prediction)]
    eps, variance = prediction.split(x.shape[1], dim=1)
    share = (variance + 1) / 2
    log_variance = share * tables.at("log_betas", t, x)
    log_variance = log_variance + (1 - share) * tables.at("posterior_log_variance_clipped", t, x)
    torch.exp(log_variance)  # the original computes the variance, too, which sampling does not read
    x_0 = tables.at("sqrt_recip_alphas_cumprod", t, x) * x - tables.at("sqrt_recipm1_alphas_cumprod", t, x) * eps
    mean = tables.at("posterior_mean_coef1", t, x) * x_0 + tables.at("posterior_mean_coef2", t, x) * x
    for unread in ("posterior_variance", "posterior_log_variance_clipped"):  # looked up beside the mean, and dropped
        tables.at(unread, t, x)
    inner = (t != 0).float().view(-1, *[1] * (x.ndim - 1))
    return mean + inner * torch.exp(0.5 * log_variance) * noise(x)


def fused_reverse_step(
    prediction: Tensor, x: Tensor, level: DiscreteLevel, noise: Tensor, scale: float, out: Tensor
) -> Tensor:
    """Guidance and reverse step of n clips in a few passes over memory, by hand: what the loop could cost.

    Args:
        prediction: of both branches, (2n, 2C, ...), the prompts' rows first. Its variance channels are overwritten.
        x: (n, C, ...).
        level: the noise level.
        noise: like x; it is overwritten.
        scale: of the first channels.
        out: memory for the result, like x.
    """
    channels = x.shape[1]
    cond, uncond = prediction.chunk(2)
    recip, recipm1, first, second, low, high = (
        float(value)
        for value in (
            level.sqrt_recip_alphas_cumprod, level.sqrt_recipm1_alphas_cumprod, level.posterior_mean_coef1,
            level.posterior_mean_coef2, level.posterior_log_variance_clipped, level.log_betas,
        )
    )  # fmt: skip
    # the mean is linear in x and eps, and eps in both branches
    torch.mul(x, first * recip + second, out=out)
    weight = -first * recipm1
    out[:, :GUIDED].add_(cond[:, :GUIDED], alpha=weight * scale).add_(uncond[:, :GUIDED], alpha=weight * (1 - scale))
    out[:, GUIDED:].add_(cond[:, GUIDED:channels], alpha=weight)
    # half the log variance is linear in the variance channels
    deviation = cond[:, channels:].mul_((high - low) / 4).add_((high + low) / 4).exp_()
    return out.addcmul_(deviation, noise)
