import numpy as np
import pytest
import torch

from guidon.samplers import LegacyNoise
from guidon.samplers.philox import CudaGenerator, philox

# torch.manual_seed(0); torch.randn(12, device="cuda")
CUDA = [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745, -0.3631, -1.6711, 2.2655]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers of Random123
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)  # fmt: skip
def test_philox_gives_its_authors_answers(counter, key, words):
    assert tuple(int(word) for word in philox(counter, key)) == words


def test_draws_are_those_of_a_cuda_device():
    assert np.allclose(CudaGenerator(0).randn((3, 4)).flatten(), CUDA, atol=5e-5)


def test_draws_go_on_and_are_normal():
    generator = CudaGenerator(5)
    first, second = generator.randn((100, 200)), generator.randn((100, 200))
    assert not torch.equal(first, second)
    assert abs(first.mean()) < 0.02
    assert abs(second.std() - 1) < 0.02
    assert abs((first * second).mean()) < 0.02
    again = CudaGenerator(5)
    again.randn((100, 200))
    assert torch.equal(again.randn((100, 200)), second)


def test_large_draws_are_laid_out_by_what_the_device_runs_at_once():
    small, large = CudaGenerator(1, blocks=2).randn((1500,)), CudaGenerator(1, blocks=1000).randn((1500,))
    assert torch.equal(small[:512], large[:512])
    assert not torch.equal(small[512:], large[512:])


def test_a_draw_begins_after_all_rounds_of_the_one_before():
    """A block of 256 threads draws 1024 values a round: 2500 take three."""
    generator, whole = CudaGenerator(3, blocks=1), CudaGenerator(3, blocks=1).randn((4096,))
    assert torch.equal(generator.randn((2500,)), whole[:2500])
    assert torch.equal(generator.randn((256,)), whole[3072:3328])


def test_legacy_noise_takes_either_generator():
    noise = LegacyNoise(2, CudaGenerator(0))
    assert np.allclose(noise.initial((4,), rows=3).flatten(), CUDA, atol=5e-5)
    x = torch.zeros(3, 4, dtype=torch.bfloat16)
    assert noise(x).shape == x.shape
    assert noise(x).dtype == x.dtype


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(7,), (2, 4, 16, 32, 32), (4, 4, 16, 64, 64)])
def test_draws_equal_this_devices(shape):
    device = torch.cuda.get_device_properties(0)
    ours = CudaGenerator(42, device.multi_processor_count * (device.max_threads_per_multi_processor // 256))
    torch.manual_seed(42)
    for _ in range(3):
        assert torch.allclose(ours.randn(shape), torch.randn(shape, device="cuda").cpu(), atol=1e-5)
