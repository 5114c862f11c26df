"""The weights of a network's blocks in the CPU's memory, two blocks at a time on the device.

While a block computes, the next one's weights are copied on a CUDA stream of their own. The device holds two blocks in
place of all of them, and what lies outside the blocks. Numbers are the same bit for bit: the same weights meet the same
operators on the same device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import InputError, setting
from ...core.limits import attempt
from ...core.warn import warn

N = TypeVar("N", bound=nn.Module)
OUTSIDE = ("cross_attn", "t_embedder", "y_embedder")
"""Parts of a block whose weights are also read when the block is not called: for captions and classes. They stay on the
device."""
_ALIGNED = 256  # bytes: where a weight may begin in a buffer


def place_network(load: Callable[[torch.device], N], device: torch.device, offload: str | None) -> N:
    """A network on a device, its blocks in the CPU's memory if that is asked for, or if the device has too little.

    Args:
        load: gives the network on a device.
        device: where it computes.
        offload: "blocks" keeps the blocks in the CPU's memory, where it is not the device itself.

    Raises:
        InputError: the device has no room for two blocks either.
    """
    if device.type == "cpu":
        return load(device)
    if offload != "blocks":
        found = attempt(partial(load, device))
        if found is not None:
            return found
        warn(
            f"the memory of {device} is too small for the network: its blocks stay in the CPU's memory, and two of "
            f"them at a time are on {device}, which takes longer; {setting('offload')} blocks does so from the start"
        )
    network = load(torch.device("cpu"))
    if attempt(partial(Offload, network, device)) is None:
        raise InputError(
            f"the memory of {device} is full with two blocks of the network alone: free memory, or give "
            f"{setting('dtype')} bf16"
        )
    return network


class Offload:
    """Moves the blocks of a network to a device when they are called, each before it is needed.

    The network must be in the CPU's memory. It is on the device afterwards, but for its blocks.

    Args:
        network: has ``blocks``, in the order in which they run.
        device: where it computes.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        blocks: Sequence[nn.Module] = list(network.blocks)  # type: ignore[arg-type]
        self.device, self.cuda = device, device.type == "cuda"
        self.homes = [_Home(block, self.cuda) for block in blocks]
        own = {id(weight) for home in self.homes for weight in home.weights}
        for module in network.modules():
            for weight in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                if id(weight) not in own:
                    weight.data = weight.data.to(device)
        size = max(home.size for home in self.homes)
        self.slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=device), self.cuda) for _ in range(2)]
        self.stream: Any = torch.cuda.Stream(device) if self.cuda else None
        self.last = 1  # the slot of the block that ran last
        self.copied = self.fetched_late = 0
        """Bytes copied to the device, and blocks that had not been fetched while the one before them ran."""
        self.turn = threading.RLock()
        """Held while a block has its weights on the device: another thread waits for its turn."""
        for number, block in enumerate(blocks):
            block.forward = partial(self._computed, number, block.forward)

    @property
    def resident(self) -> int:
        """Bytes of blocks on the device."""
        return sum(slot.memory.nbytes for slot in self.slots)

    def _computed(self, number: int, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """What a block gives, with its weights on the device."""
        with self.turn:
            try:
                self._bring(number)
                return forward(*args, **named)
            finally:
                self.slots[self.last].note_use()
                self.homes[number].move_home()

    def _bring(self, number: int) -> None:
        """Give a block its weights, and begin to fetch those of the next."""
        slot = next((slot for slot in self.slots if slot.holds == number), None)
        if slot is None:
            self.fetched_late += 1
            slot = self._fetch(number, self.slots[1 - self.last])
        slot.wait_until_copied()
        self.homes[number].move_to(slot.memory)
        self.last = self.slots.index(slot)
        following = (number + 1) % len(self.homes)
        if following != number and self.slots[1 - self.last].holds != following:
            self._fetch(following, self.slots[1 - self.last])

    def _fetch(self, number: int, slot: _Slot) -> _Slot:
        """Copy the weights of a block into a slot, once the block that was there has been computed."""
        home = self.homes[number]
        with self._copying():
            slot.fill(number, home.packed)
        self.copied += home.size
        return slot

    def _copying(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream) if self.cuda else nullcontext()


class _Home:
    """The weights of a block, one after the other in one piece of the CPU's memory, from where one copy moves them."""

    def __init__(self, block: nn.Module, pinned: bool) -> None:
        self.weights: list[Tensor] = [
            weight
            for name, weight in [*block.named_parameters(), *block.named_buffers()]
            if not set(name.split(".")) & set(OUTSIDE)
        ]
        self.places: list[tuple[int, int, torch.dtype, torch.Size]] = []
        end = 0
        for weight in self.weights:
            self.places.append((end, weight.nbytes, weight.dtype, weight.shape))
            end += -(-weight.nbytes // _ALIGNED) * _ALIGNED
        self.size = end
        self.packed = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
        for weight, home in zip(self.weights, self._views(self.packed), strict=True):
            home.copy_(weight.data)
        self.move_home()

    def _views(self, memory: Tensor) -> list[Tensor]:
        return [memory[at : at + size].view(dtype).view(shape) for at, size, dtype, shape in self.places]

    def move_to(self, memory: Tensor) -> None:
        """Let the weights be those in the device's memory."""
        for weight, value in zip(self.weights, self._views(memory), strict=True):
            weight.data = value

    def move_home(self) -> None:
        """Let the weights be those in the CPU's memory."""
        self.move_to(self.packed)


class _Slot:
    """Memory of the device for one block, and when it may be read and written."""

    def __init__(self, memory: Tensor, cuda: bool) -> None:
        self.memory, self.holds = memory, -1
        self.filled, self.used = (torch.cuda.Event() if cuda else None for _ in range(2))

    def fill(self, number: int, packed: Tensor) -> None:
        """Copy a block here, behind what still reads the one before. The current stream is that of copies."""
        if self.used is not None:
            self.used.wait()
        self.holds = -1  # should Ctrl-C come before the copy is known
        self.memory[: len(packed)].copy_(packed, non_blocking=True)
        if self.filled is not None:
            self.filled.record()
        self.holds = number

    def wait_until_copied(self) -> None:
        """Let the current stream go on once the block is here."""
        if self.filled is not None:
            self.filled.wait()

    def note_use(self) -> None:
        """The block here has been computed as soon as the current stream is at this point."""
        if self.used is not None:
            self.used.record()
