"""The parts of a model's cost, each as arms of what a user can choose: ``measure_part``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ...core.devices import DtypeName
from ...core.progress import OnStep
from ...diffusion import FlowPath, split_prediction
from ...diffusion.prediction import target
from ...guidance.combine import START
from ...request import Computation, Request
from ...samplers import sample_ddim, sample_ddpm, sample_euler
from .choices import Options, Part
from .comparison import Comparison, compare_speed
from .model import Given, Measured, OneLevel
from .rounds import Arm

SAMPLERS: dict[str, Callable[..., Tensor]] = {"ddpm": sample_ddpm, "ddim": sample_ddim, "euler": sample_euler}
"""The samplers that take one step at a time. The others do the same work, or call the network twice."""


def measure_part(
    part: Part,
    model: Measured,
    options: Options,
    requests: Mapping[str, Request],
    *,
    rounds: int | None = None,
    on_step: OnStep | None = None,
) -> Comparison:
    """Measure one part of what a model costs.

    Args:
        part: what to measure.
        model: the model and its request.
        options: what is compared.
        requests: the clips that are compared, by name.
        rounds: as of ``take_rounds``.
        on_step: called after every round.
    """
    how = {"rounds": rounds, "device": model.pipe.device, "on_step": on_step}
    if part == "train":  # needs gradients
        return compare_speed(f"One training step of {model.rows}", _training(model, options), **how)
    with torch.inference_mode():
        if part == "step":
            return compare_speed(f"One guided step of {_clips(model)}", _steps(model, options), **how)
        if part == "outside":
            return compare_speed(f"A step without the network, {_clips(model)}", _outside(model), **how)
        if part == "decode":
            return compare_speed("Decoding one clip", _decoding(model), **how)
        arms = _whole(model, requests)
    return compare_speed(f"{_clips(model)}, from prompt to frames", arms, **how)


def _clips(model: Measured) -> str:
    return "1 clip" if model.rows == 1 else f"{model.rows} clips"


def _steps(model: Measured, options: Options) -> list[Arm]:
    """One step of a sampler: the network's branches, guidance, the reverse step, noise."""
    sampler = _sampler(model)
    arms: list[Arm] = []
    for dtype, branches in product(options.dtypes, options.branches):
        denoiser = model.denoiser(dtype, sequential=branches == "sequential", conditional=branches == "conditional")
        arms.append(_step(f"{dtype}, {branches}", model, denoiser, sampler))
    return arms


def _sampler(model: Measured) -> Callable[..., Tensor]:
    """The sampler whose step is measured: the simplest of the model's path."""
    return SAMPLERS["euler" if isinstance(model.pipe.model.schedule, FlowPath) else "ddpm"]


def _step(name: str, model: Measured, denoiser: Any, sampler: Callable[..., Tensor]) -> Arm:
    """An arm that takes one step. It is compared by its prediction, and by what a given noise makes of it."""
    levels, process = OneLevel(model.level), model.pipe.model.process

    def step(noise: Callable[[Tensor], Tensor]) -> Tensor:
        denoiser.memory = START  # as in a run's first steps: some rules remember
        return sampler(denoiser, levels, model.x, noise, process=process)

    def result() -> Tensor:
        denoiser.memory = START
        prediction = denoiser(model.x, model.level)
        return torch.cat([prediction.flatten(), step(lambda x: model.fixed).flatten()])

    return Arm(name, lambda: step(model.noise), result)


def _outside(model: Measured) -> list[Arm]:
    """The same steps of each sampler, with a network that costs nothing."""
    dtype: DtypeName = "fp32"  # every network gives fp32
    network, prediction = model.network(dtype), list[Tensor]()

    class Watched(Given):
        def __call__(self, x: Tensor, level: Any, condition: Any, /) -> Tensor:
            prediction.append(self.network(x, level, condition))
            return prediction[-1]

    watched = Watched(network, model.x)
    model.denoiser(dtype, network=watched)(model.x, model.level)
    given = Given(network, prediction[0])
    names = ("euler",) if isinstance(model.pipe.model.schedule, FlowPath) else ("ddpm", "ddim")
    arms = [_step(f"{name}, guided", model, model.denoiser(dtype, network=given), SAMPLERS[name]) for name in names]
    alone = model.denoiser(dtype, network=given, conditional=True)
    return [*arms, _step(f"{names[0]}, conditional", model, alone, SAMPLERS[names[0]])]


def _decoding(model: Measured) -> list[Arm]:
    """Latents to frames, all at once and in the parts that a full memory asks for."""
    pipe = model.pipe_in("fp32")
    latents, frames = model.x[:1] / 4, model.request.frames
    with pipe.model.vae.in_use() as vae:
        length = latents.shape[2] if latents.ndim == 5 else 1
        together = sorted({min(length, Computation().micro_batch), 1}, reverse=True)
        return [
            Arm(f"{size} {'frame' if size == 1 else 'frames'} at a time", _decode(vae, latents, size, frames))
            for size in together
        ]


def _decode(vae: Any, latents: Tensor, size: int, frames: int | None) -> Callable[[], Tensor]:
    return lambda: vae.decode(latents, size, frames)


def _whole(model: Measured, requests: Mapping[str, Request]) -> list[Arm]:
    """Prompt to frames. Other steps, samplers and precisions make other clips, which are not compared."""

    def arm(name: str, request: Request) -> Arm:
        pipe = model.pipe_in(request.dtype)

        def run() -> None:
            pipe.generate(request, batch_size=model.rows)

        return Arm(name, run, compared=False, counted=False)

    return [arm(name, request) for name, request in requests.items()]


def _training(model: Measured, options: Options) -> list[Arm]:
    """Forward, backward and AdamW on the mean squared error, with the weights in fp32.

    bf16 computes in bf16 under autocast, as ``guidon train`` does.
    """
    made = model.pipe.model.network.make(torch.float32)
    network: Any = getattr(made, "high", made)  # of two experts, one is trained at a time
    module: nn.Module = getattr(network, "network", network)  # an adapter holds the network of its checkpoint
    module.train().requires_grad_(True)
    prepare: Any = network.prepare
    device, process, schedule = model.pipe.device, model.pipe.model.process, model.pipe.model.schedule
    features, mask = model.run_in("fp32").prompts.rows([0] * model.rows, device)
    features = features.clone()  # made in inference mode
    mask = None if mask is None else mask.clone()
    x_0, noise = model.x.clone(), model.fixed.clone()
    timesteps = torch.linspace(0, model.pipe.model.facts.timesteps - 1, model.rows, device=device).long()
    level = schedule.at(timesteps, like=x_0)
    x_t, wanted = level.alpha * x_0 + level.sigma * noise, target(x_0, noise, level, process.parameterization)
    optimiser = torch.optim.AdamW(module.parameters(), 1e-6, fused=True)

    def step(dtype: DtypeName) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
                prediction = network(x_t, level, prepare(features, mask))
            loss = (split_prediction(prediction, x_t.shape[1])[0].float() - wanted).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        return run

    dtypes: list[DtypeName] = [dtype for dtype in options.dtypes if dtype != "fp16"]
    return [Arm(dtype, step(dtype), compared=False) for dtype in dtypes]
