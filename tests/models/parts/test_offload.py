import copy
import threading

import pytest
import torch

from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.parts import offload
from guidon.models.parts.offload import Offload, place_network
from guidon.models.pixart.network import PixArt, PixArtConfig
from guidon.models.stdit.config import STDiTConfig
from guidon.models.stdit.network import STDiT
from guidon.models.stdit2.config import STDiT2Config
from guidon.models.stdit2.network import STDiT2
from guidon.models.stdit3.config import STDiT3Config
from guidon.models.stdit3.network import STDiT3

CPU = torch.device("cpu")
SMALL = {"hidden_size": 24, "depth": 3, "num_heads": 2}
CAPTIONED = SMALL | {"caption_channels": 8, "model_max_length": 6}
LEVELS = NoiseSchedule.named().respaced(3).levels
NETWORKS = {
    "STDiT": lambda: STDiT(STDiTConfig((2, 4, 4), patch_size=(1, 2, 2), **CAPTIONED)),
    "STDiT2": lambda: STDiT2(STDiT2Config((2, 4, 4), **CAPTIONED)),
    "STDiT3": lambda: STDiT3(STDiT3Config((2, 4, 4), **CAPTIONED)),
    "PixArt": lambda: PixArt(PixArtConfig(4, **CAPTIONED)),
    "DiT": lambda: DiT(DiTConfig(input_size=4, num_classes=5, **SMALL)),
    "DiT of diffusers": lambda: DiT(DiTConfig(input_size=4, num_classes=5, own_embedders=True, **SMALL)),
}


def made(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval().requires_grad_(False)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return network


def steps(network, batched=True):
    """The guided predictions of a few steps."""
    torch.manual_seed(1)
    x = torch.randn(2, *network.latent_shape)
    y = torch.tensor([1, 3]) if isinstance(network, DiT) else torch.randn(2, 6, 8)
    with torch.inference_mode():
        denoiser = GuidedDenoiser(
            network, Guidance(3.0, 3), network.prepare(y), network.null(2), batched=batched, parameterization="eps"
        )
        return torch.stack([denoiser(x, level) for level in LEVELS])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in NETWORKS]
    + [pytest.param(name, torch.bfloat16, marks=() if name == "STDiT" else pytest.mark.long) for name in NETWORKS],
)
def test_offloaded_blocks_give_the_same_bits_with_two_blocks_in_memory(name, dtype):
    network = made(name).to(dtype)
    whole = copy.deepcopy(network)
    offloaded = Offload(network, CPU)
    depth, largest = len(list(network.blocks)), max(home.size for home in offloaded.homes)
    for batched in (True, False):
        assert torch.equal(steps(network, batched), steps(whole, batched))
    calls = len(LEVELS) * 3  # one of two branches, then two of one
    assert offloaded.resident == 2 * largest
    assert offloaded.fetched_late == 1  # the first block of the first call
    assert offloaded.copied == sum(home.size for home in offloaded.homes) * calls + offloaded.homes[0].size
    assert depth >= 3
    for (key, ours), (other, theirs) in zip(network.state_dict().items(), whole.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(ours, theirs)


def test_the_weights_of_a_block_are_those_that_were_copied():
    """Were the block computed with the weights at home, a fault of the copy would not be seen."""
    network = made("STDiT")
    expected = steps(network)
    offloaded = Offload(network, CPU)
    for slot in offloaded.slots:
        fill = slot.fill
        slot.fill = lambda number, packed, fill=fill, slot=slot: (fill(number, packed), slot.memory.zero_())
    assert not torch.equal(steps(network), expected)


def test_a_call_that_fails_leaves_the_blocks_at_home_and_the_next_one_works(monkeypatch):
    network = made("STDiT")
    expected = steps(network)
    offloaded = Offload(network, CPU)
    monkeypatch.setattr(network.blocks[1].mlp, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        steps(network)
    monkeypatch.undo()
    assert torch.equal(steps(network), expected)
    homes = {weight.data_ptr() for home in offloaded.homes for weight in home._views(home.packed)}
    assert all(weight.data_ptr() in homes for home in offloaded.homes for weight in home.weights)


META = torch.device("meta")


def test_it_is_used_where_it_is_asked_for_and_where_the_device_is_too_small(monkeypatch):
    loaded, offloaded = [], []
    monkeypatch.setattr(offload, "Offload", lambda network, device: offloaded.append((network, device)) or True)

    def load(device, room=0):
        loaded.append(device.type)
        if device.type == "meta" and not room:
            raise RuntimeError("CUDA out of memory")
        return len(loaded)

    with pytest.warns(UserWarning, match="the memory of meta is too small for the network: its blocks stay"):
        assert place_network(load, META, None) == 2
    assert loaded == ["meta", "cpu"]
    assert place_network(load, META, "blocks") == 3
    assert offloaded == [(2, META), (3, META)]
    assert place_network(lambda device: load(device, room=1), META, "stages") == 4
    assert place_network(load, CPU, "blocks") == 5  # the CPU's memory is the device's
    assert loaded == ["meta", "cpu", "cpu", "meta", "cpu"]
    assert len(offloaded) == 2


def test_a_device_without_room_for_two_blocks_is_refused(monkeypatch):
    def full(*arguments):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(offload, "Offload", full)
    with pytest.raises(InputError, match="the memory of meta is full with two blocks of the network alone"):
        place_network(lambda device: made("DiT"), META, "blocks")


def test_a_second_thread_waits_until_a_block_has_been_computed():
    network = made("STDiT")
    expected = steps(network)
    block, found = network.blocks[0], list[torch.Tensor]()
    forward, other = block.forward, threading.Thread(target=lambda: found.append(steps(network)))

    def held(*given):
        if threading.current_thread() is not other and not other.ident:
            places = [weight.data_ptr() for weight in block.attn.parameters()]
            other.start()
            other.join(0.2)
            assert [weight.data_ptr() for weight in block.attn.parameters()] == places
        return forward(*given)

    block.forward = held
    Offload(network, CPU)
    found.append(steps(network))
    other.join()
    assert len(found) == 2
    assert all(torch.equal(each, expected) for each in found)


def test_another_thread_goes_on_after_ctrl_c_in_a_block(monkeypatch):
    network = made("STDiT")
    expected = steps(network)
    offloaded = Offload(network, CPU)

    def stopped(x):
        raise KeyboardInterrupt

    monkeypatch.setattr(network.blocks[1].mlp, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        steps(network)
    monkeypatch.undo()
    free = list[bool]()

    def take():
        free.append(offloaded.turn.acquire(blocking=False))
        if free[0]:
            offloaded.turn.release()

    other = threading.Thread(target=take)
    other.start()
    other.join()
    assert free == [True]
    homes = {weight.data_ptr() for home in offloaded.homes for weight in home._views(home.packed)}
    assert all(weight.data_ptr() in homes for home in offloaded.homes for weight in home.weights)
    assert torch.equal(steps(network), expected)


def test_a_copy_that_ctrl_c_stops_is_made_again(monkeypatch):
    network = made("STDiT")
    expected = steps(network)
    offloaded = Offload(network, CPU)
    steps(network)
    fetch = offloaded._fetch

    class Stopped:
        """A piece of memory whose copy is half done when Ctrl-C comes."""

        def __init__(self, memory):
            self.memory = memory

        def __getitem__(self, part):
            return self

        def copy_(self, packed, non_blocking):
            self.memory.zero_()
            raise KeyboardInterrupt

    def stop(number, slot):
        if number < 2:
            return fetch(number, slot)
        memory, slot.memory = slot.memory, Stopped(slot.memory)
        try:
            return fetch(number, slot)
        finally:
            slot.memory = memory

    monkeypatch.setattr(offloaded, "_fetch", stop)
    with pytest.raises(KeyboardInterrupt):
        steps(network)
    monkeypatch.undo()
    assert torch.equal(steps(network), expected)
