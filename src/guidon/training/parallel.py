"""A step of training on several ranks: each predicts rows of the batch, and all compute the loss of the whole batch.

A loss may depend on the whole batch: on weights with mean 1, on running means for each noise level, on families of
clips. The mean of the losses of parts would then be another loss. So the ranks join what they predict, which is small
beside the gradients of the weights, and each computes the loss of one process. Its gradient goes back through the rows
that a rank predicted itself. The sum of all ranks' gradients is that of one process, but for the order of additions.

Gradients are summed by DistributedDataParallel. Weights, gradients, optimiser and averages of a module with more than
``Run.shard_above`` parameters are divided among the ranks by ``fully_shard`` (FSDP2).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.ranks import Ranks
from ..models.parts.layers import CrossAttention
from .recipe import Run
from .rows import tensors_of, with_tensors

if TYPE_CHECKING:
    from .muon import Muon

V = TypeVar("V")
_ALIGNED = 16  # bytes: where each tensor begins among those that are sent together


class _Predicting(nn.Module):
    """A task's prediction as the forward pass of a module, which is what PyTorch's engines go round."""

    def __init__(self, module: nn.Module, predict: Callable[[Any], Any]) -> None:
        super().__init__()
        self.module, self.predict = module, predict

    def forward(self, batch: Any) -> Any:
        return self.predict(batch)


class Parallel:
    """How ranks share the steps of a run.

    Args:
        run: the recipe.
        module: the module that is trained, equal on all ranks. Its parameters are replaced if they are sharded.
        predict: runs it on rows of a batch.
        device: the device of the module.
        ranks: all ranks.

    Raises:
        InputError: the ranks cannot share a batch, or the module cannot be sharded.
    """

    def __init__(
        self, run: Run, module: nn.Module, predict: Callable[[Any], Any], device: torch.device, ranks: Ranks
    ) -> None:
        self.ranks, self.device = ranks, device
        self.sharded = is_sharded(run, module, ranks)
        self._predict = predict
        if len(ranks) == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        group = ranks.group_for(device)
        predicting = _Predicting(module, predict)
        self._predict = _sharded(predicting, device, group) if self.sharded else _replicated(predicting, group)

    def parts(self, size: int, count: int) -> list[slice]:
        """The rows that this rank predicts of each part of a batch of ``size``. Parts are those of one process.

        Raises:
            InputError: the batch has no ``count`` equal parts that the ranks can share.
        """
        each, rest = divmod(size, count)
        if rest or each % len(self.ranks):
            ranks = f" and {len(self.ranks)} ranks share each part" if len(self.ranks) > 1 else ""
            raise InputError(f"accumulate is {count}, batch_size {size}{ranks}: give a divisor")
        own = self.ranks.share(each)
        return [slice(first + own.start, first + own.stop) for first in range(0, size, each)]

    def predict(self, batch: Any) -> Any:
        """What all ranks predict, each for its rows: the prediction of the whole batch, on every rank."""
        predicted = self._predict(batch)
        return predicted if len(self.ranks) == 1 else joined(predicted, self.ranks, self.device)

    def clip_gradient(self, module: nn.Module, most: float) -> Tensor:
        """Scale the gradient down to a norm of at most ``most``. Returns the norm that it had."""
        if not self.sharded or len(self.ranks) == 1:
            return nn.utils.clip_grad_norm_(module.parameters(), most)
        parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
        norm = whole(nn.utils.get_total_norm([cast("Tensor", parameter.grad) for parameter in parameters]))
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return norm

    def update(self, optimiser: torch.optim.Optimizer) -> None:
        """Do an optimiser's step. Muon's would be the same on all ranks and takes long, so they divide it."""
        if len(self.ranks) > 1 and type(optimiser).__name__ == "Muon":
            cast("Muon", optimiser).divided_step(self.ranks, self.device)
        else:
            optimiser.step()

    def all_finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether loss and gradient are finite on all ranks. The host waits for the device."""
        if self.device.type == "cuda":
            self.ranks.any(False)  # a rank that is gone is noticed here, and not in an operation on the device
        return not self.ranks.any(not math.isfinite(float(loss.detach() + norm)))

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights that are not sharded: on the first rank all of them, on the others none. All ranks must call it."""
        found = dict[str, Tensor]()
        for name, value in weights.items():
            tensor = whole(value)
            if self.ranks.first:
                found[name] = tensor.cpu() if self.sharded else tensor
        return found


def is_sharded(run: Run, module: nn.Module, ranks: Ranks) -> bool:
    """Whether a module is so large that the recipe shards it, and its checkpoint.

    Raises:
        InputError: the recipe shards it, and this cannot be done for its task, its optimiser or its batch.
    """
    count = sum(parameter.numel() for parameter in module.parameters())
    if run.batch_size % len(ranks):
        raise InputError(
            f"batch_size is {run.batch_size}, which {len(ranks)} ranks cannot share equally: give a multiple of "
            f"{len(ranks)}, or start another number of ranks"
        )
    if count <= run.shard_above:
        return False
    why = f"the module has {count:,} parameters and shard_above is {run.shard_above:,}"
    if not run.shards:
        raise InputError(f"{why}, but this run cannot be sharded: raise shard_above")
    if run.optimiser.name == "muon":
        raise InputError(f"{why}, but muon needs whole matrices: raise shard_above, or use adamw")
    return True


def joined(value: V, ranks: Ranks, device: torch.device) -> V:
    """A value whose tensors have the rows of all ranks, in their order. Gradients go back to the own rows.

    DistributedDataParallel and FSDP2 divide the sum of gradients by the number of ranks, so each is multiplied by that.
    """
    tensors = tensors_of(value)
    plain = iter(_join_plain([tensor for tensor in tensors if not tensor.requires_grad], ranks, device))
    join = partial(_Join.apply, ranks)
    return with_tensors(value, lambda tensor: join(tensor) if tensor.requires_grad else next(plain))


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, own: Tensor) -> Tensor:
        ctx.ranks, ctx.rows = ranks, len(own)
        return _all_gathered(own.contiguous(), ranks).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        first = ctx.ranks.index * ctx.rows
        return None, gradients[0][first : first + ctx.rows] * len(ctx.ranks)


def _join_plain(tensors: list[Tensor], ranks: Ranks, device: torch.device) -> list[Tensor]:
    """Tensors without gradients, which cross together as bytes."""
    parts = [tensor.detach().to(device).contiguous().flatten().view(torch.uint8) for tensor in tensors]
    starts, end = list[int](), 0
    for part in parts:
        starts.append(end)
        end += -(-len(part) // _ALIGNED) * _ALIGNED
    together = torch.zeros(end, dtype=torch.uint8, device=device)
    for start, part in zip(starts, parts, strict=True):
        together[start : start + len(part)] = part
    crossed = _all_gathered(together, ranks)
    found = list[Tensor]()
    for start, part, tensor in zip(starts, parts, tensors, strict=True):
        rows = crossed[:, start : start + len(part)].contiguous().view(tensor.dtype)
        found.append(rows.view(len(ranks) * len(tensor), *tensor.shape[1:]))
    return found


def _all_gathered(own: Tensor, ranks: Ranks) -> Tensor:
    """The tensors of all ranks, (ranks, ...)."""
    import torch.distributed as dist

    found = own.new_empty((len(ranks), *own.shape))
    dist.all_gather(list(found), own, group=ranks.group_for(own.device))
    return found


def _replicated(predicting: _Predicting, group: Any) -> nn.Module:
    """Every rank has all weights, and gradients are summed while they are computed."""
    from torch.nn.parallel import DistributedDataParallel

    # All ranks compute the same loss, which keeps their buffers equal.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(predicting, process_group=group, **options)


def _sharded(predicting: _Predicting, device: torch.device, group: Any) -> nn.Module:
    """Every rank has a part of each tensor. Those of a block are gathered while it is computed."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    # It asks for no operation in place on the keys and values of captions, and there is none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = DeviceMesh.from_group(group, device.type)
    for part in predicting.modules():
        if isinstance(part, CrossAttention):
            fully_shard(part.kv_linear, mesh=mesh)  # the network calls it before the blocks
    for block in _blocks(predicting):
        fully_shard(block, mesh=mesh)
    fully_shard(predicting, mesh=mesh)
    return predicting


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The modules in the outermost lists of a module: the blocks of a network."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in _blocks(child)]


def whole(value: Tensor) -> Tensor:
    """A tensor of which every rank may have a part, as a whole. All ranks must call it."""
    return cast("Any", value).full_tensor() if hasattr(value, "full_tensor") else value


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this rank has."""
    return cast("Any", value).to_local() if hasattr(value, "to_local") else value


def broken(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor of which this rank has NaN or infinity; None if there is none."""
    return next((name for name, value in tensors.items() if not local(value).isfinite().all()), None)
