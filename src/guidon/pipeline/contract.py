"""What studies and analyses ask of a model, whoever samples: Guidon's own pipeline, or one of diffusers.

A ``ModelPlanner`` knows which settings are valid. It needs neither weights nor torch, so that a mistake costs no time.
A ``ModelPipeline`` makes clips of requests, so that a clip depends on nothing but its own part of the request: the same
prompt, seed and sample start from the same noise under every setting, whatever is made beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Unpack

from ..request import Choices, Request

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..core.progress import OnStep
    from ..guidance import GuidanceTrace
    from ..media import Video


class ModelPlanner(Protocol):
    """Makes and checks the requests of one model.

    ``batch_size`` and ``device`` say how the clips will be made, where that is known: a model that can estimate the
    memory that they need refuses too many.
    """

    @property
    def channels(self) -> int:
        """Latent channels: channel k of a choice of channels is channel k of the autoencoder."""
        ...

    @property
    def bench(self) -> str:
        """The bench (``guidon.metrics.bench``) that its clips are measured on."""
        ...

    @property
    def cfg_scale(self) -> float:
        """The guidance scale where nobody chooses one."""
        ...

    @property
    def block(self) -> int:
        """How many clips a study makes together where it does not say it."""
        ...

    @property
    def is_image(self) -> bool:
        """Whether its clips have one frame where nobody chooses their length."""
        ...

    def check_prompts(self, prompts: Sequence[str], *, follow: bool = ...) -> None:
        """Raise InputError for prompts that the model cannot be given, with ``follow`` or cannot follow."""
        ...

    def plan(
        self,
        prompts: Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = ...,
        device: torch.device | str | None = None,
        force: bool = False,
        **choices: Unpack[Choices],
    ) -> Request:
        """The complete request, or InputError: a choice is not valid, or the model cannot follow a prompt."""
        ...

    def complete(
        self,
        prompts: Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = ...,
        device: torch.device | str | None = None,
        **choices: Unpack[Choices],
    ) -> Request:
        """``plan`` without a look at the prompts."""
        ...


class ModelDescription(Protocol):
    """What a plan must know of a model that is loaded, here or elsewhere."""

    @property
    def planner(self) -> ModelPlanner: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def hashes(self) -> dict[str, str]:
        """A hash of each part of the model: other weights have another one."""
        ...

    @property
    def distilled_hashes(self) -> dict[str, str]:
        """The hash of its distilled network, by its name; empty where it has none."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether its network is compiled, so that results differ by rounding."""
        ...


class ModelPipeline(ModelDescription, Protocol):
    """Makes clips."""

    @property
    def channels(self) -> int: ...

    @property
    def keeps_parts(self) -> bool:
        """Whether its parts stay in memory between calls; else there is no room for a second model beside them."""
        ...

    def plan(
        self,
        prompts: str | Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = ...,
        force: bool = False,
        **choices: Unpack[Choices],
    ) -> Request:
        """As the planner's, for the device of the model."""
        ...  # fmt: skip

    def complete(
        self,
        prompts: str | Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = ...,
        **choices: Unpack[Choices],
    ) -> Request:
        """As the planner's, for the device of the model."""
        ...

    def generate(
        self,
        request: Request,
        *,
        batch_size: int = ...,
        trace: GuidanceTrace | None = None,
        on_step: OnStep | None = None,
    ) -> list[Video]:
        """The clips of a complete request, prompts outermost.

        Args:
            request: what to make.
            batch_size: how many clips are made together. Left out, it is the model's own.
            trace: collects what guidance did, one sample for each clip.
            on_step: called as ``on_step(done, total)`` after every denoising step.
        """
        ...

    def decoder(self, request: Request) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """A function from latents (B, C, ...) of this request to video (B, 3, T, H, W) or images (B, 3, H, W).

        Intensities are in [-1, 1]. Latents are those of a trace's ``x0``.
        """
        ...
