"""Settings of every training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from .section import BelowOne, Fraction, NotNegative, Section


class Optimiser(Section):
    """AdamW, or Muon for the hidden matrices and kernels of convolutions, and AdamW for everything else."""

    name: Literal["adamw", "muon"] = "adamw"
    """Muon needs PyTorch 2.9."""
    lr: PositiveFloat = 1e-3
    """Learning rate of AdamW."""
    muon_lr: PositiveFloat = 0.01
    """Learning rate of Muon."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    """The two betas of AdamW."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW and Muon."""
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    """Steps over which the learning rate rises linearly from zero."""
    decay: Fraction = 0.3
    """The last share of the run, over which the learning rate falls linearly to zero."""
    grad_clip: PositiveFloat = 1.0
    """The largest norm of the gradient; a larger one is scaled down to it."""


class Run(Section):
    """Settings of every training run."""

    out: Path
    """Folder of the run: checkpoint, log and exported weights."""
    steps: PositiveInt
    """Number of training steps."""
    batch_size: PositiveInt = 32
    """Samples in a step."""
    seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    """Seed of the initial weights, the data and the noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the matrix products in the network. Weights and losses are fp32."""
    ema_decay: BelowOne = 0.999
    """Decay of the averaged weights, which are exported; at 1 they would stay what they began as."""
    log_every: PositiveInt = 50
    """Steps between two rows of log.csv."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two measurements of the averaged weights; 0 for none."""
    workers: Annotated[int, Field(ge=0, le=128)] = 0
    """Processes that draw batches ahead, for a GPU that waits for them; 0 for a thread."""
    optimiser: Optimiser = Optimiser()
    """Settings of the optimiser."""
    shard_above: PositiveInt = 1_000_000_000
    """Number of parameters above which several ranks divide weights, gradients, optimiser and averaged weights among
    them (FSDP2), in place of each having all of them (DDP). The checkpoint is then a folder, on one rank too."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"out", "log_every", "checkpoint_every", "evaluate_every", "workers", "cache", "shard_above"}
    )
    """Fields that the weights do not depend on."""
    incidental: ClassVar[frozenset[str]] = without_effect | {"device", "compile"}
    """Fields that do not define what is trained: those above, and those that change only how numbers are rounded."""
    changeable: ClassVar[frozenset[str]] = frozenset(
        {"steps", "device", "compile", "ranks"}
        | {f"optimiser.{name}" for name in ("lr", "muon_lr", "warmup_steps", "decay", "grad_clip")}
    )
    """Settings that may change when a run is resumed, although the result then differs. A line on stderr names them.
    Every other setting that the weights depend on must be the one that the checkpoint was trained with."""

    @property
    def shards(self) -> bool:
        """Whether the weights of this run can be sharded."""
        return True

    @property
    def parts(self) -> int:
        """In how many parts a batch is computed, one after the other."""
        return 1

    @property
    def told(self) -> tuple[str, ...]:
        """The programs that are told every row of the log."""
        return ()

    @property
    def decisive(self) -> dict[str, Any]:
        """All settings that the weights depend on, as plain data."""
        return self.model_dump(mode="json", exclude=set(self.without_effect))
