"""A loaded model whose parts stay in memory, in each precision, so that arms can take turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ...core.devices import DtypeName, torch_dtype
from ...diffusion import FlowPath, NoiseLevel
from ...guidance import Guidance, GuidedDenoiser
from ...guidance.combine import START
from ...models.stages import Stage
from ...pipeline import Pipeline
from ...pipeline.generation import Generation
from ...pipeline.sizes import latent_shape
from ...request import Request
from ...samplers import SampleNoise

LEVELS = 100  # from which the level of a step is chosen, however few steps the clips take


@dataclass(frozen=True, eq=False)
class Measured:
    """A pipeline and a request, taken apart into what is measured."""

    pipe: Pipeline
    request: Request

    @cached_property
    def pipes(self) -> dict[DtypeName, Pipeline]:
        """The pipeline for each precision; each keeps its own network, all share the other parts."""
        return {}

    def pipe_in(self, dtype: DtypeName) -> Pipeline:
        """The pipeline with a network of this precision, whose parts stay in memory."""
        if dtype not in self.pipes:
            model = self.pipe.model
            text, vae = (Stage(stage.make, True) for stage in (model.text, model.vae))
            if self.pipes:
                other = next(iter(self.pipes.values())).model
                text, vae = other.text, other.vae
            own = replace(model, text=text, vae=vae, network=Stage(model.network.make, True))
            self.pipes[dtype] = Pipeline(self.pipe.preset, own, self.pipe.device)
        return self.pipes[dtype]

    @property
    def _held(self) -> DtypeName:
        """A precision whose network is in memory, if there is one."""
        return next(iter(self.pipes)) if self.pipes else self.request.dtype

    def network(self, dtype: DtypeName) -> Any:
        """The network in a precision."""
        with self.pipe_in(dtype).model.network.in_use(torch_dtype(dtype)) as network:
            return network

    def request_in(self, dtype: DtypeName, conditional: bool = False) -> Request:
        """The request in a precision; ``conditional`` for one that is not guided."""
        changes: dict[str, Any] = {"dtype": dtype}
        if conditional:
            changes["guidance"] = Guidance(1.0, self.request.guidance.channels)
        return self.request.model_copy(update=changes)

    def run_in(self, dtype: DtypeName, conditional: bool = False) -> Generation:
        """The run of a request, its prompt encoded."""
        pipe, request = self.pipe_in(dtype), self.request_in(dtype, conditional)
        return Generation(pipe.preset, pipe.model, pipe.device, request, pipe.prompts_of(request))

    def denoiser(
        self, dtype: DtypeName, *, sequential: bool = False, conditional: bool = False, network: Any = None
    ) -> GuidedDenoiser[Any]:
        """The guided denoiser that a run calls.

        Args:
            dtype: the network's precision.
            sequential: one branch after the other.
            conditional: the conditional branch alone.
            network: in the place of the model's own.
        """
        run, network = self.run_in(dtype, conditional), network or self.network(dtype)
        return run.denoiser(network, None, [0] * self.rows, sequential)

    @property
    def rows(self) -> int:
        """Clips that are denoised together."""
        return len(self.request.samples)

    @cached_property
    def noise(self) -> SampleNoise:
        """The noise of the clips."""
        return SampleNoise(*zip(*(self.request.noise_of(0, sample) for sample in self.request.samples), strict=True))

    @cached_property
    def x(self) -> Tensor:
        """The latents that all arms are given, (B, C, ...)."""
        network = self.network(self._held)
        shape = latent_shape(self.pipe.preset, self.pipe.model.facts, self.request, network.latent_shape)
        return self.noise.initial(shape, self.pipe.device, self.rows)

    @cached_property
    def fixed(self) -> Tensor:
        """Noise like ``x``, the same in every arm."""
        return SampleNoise(1, range(self.rows)).initial(self.x.shape[1:], self.pipe.device, self.rows)

    @cached_property
    def level(self) -> NoiseLevel:
        """A level at which guidance acts, from the middle of those of a run; any, if it acts at none."""
        schedule = self.run_in(self._held).schedule(self.network(self._held))
        if not isinstance(schedule, FlowPath):
            schedule = self.pipe.model.schedule
        levels = schedule.respaced(min(LEVELS, self.pipe.model.facts.timesteps)).levels
        guidance = self.request.guidance
        acting = [level for level in levels if guidance.acts(level, START, self.x.shape[1])] or levels
        return acting[len(acting) // 2]


class OneLevel:
    """A schedule of one level, with which a sampler takes one step."""

    def __init__(self, level: NoiseLevel) -> None:
        self.levels = (level,)

    def __len__(self) -> int:
        return 1


class Given:
    """A network whose prediction is there already: what is left is the work outside the network."""

    def __init__(self, network: Any, prediction: Tensor) -> None:
        self.network, self.prediction = network, prediction
        self.latent_shape, self.dtype = network.latent_shape, network.dtype
        self.prepare, self.null = network.prepare, network.null

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Any, /) -> Tensor:
        return self.prediction[: len(x)]
