import pytest
import torch

from guidon.core.errors import InputError
from guidon.samplers import LegacyNoise, SampleNoise, replayed_noise
from guidon.samplers.philox import BLOCKS, CudaGenerator


def test_a_sample_does_not_depend_on_its_batch_mates():
    together, alone = SampleNoise(7, [0, 1, 2]), SampleNoise(7, [2])
    assert torch.equal(together.initial((4, 3, 5))[2:], alone.initial((4, 3, 5)))
    x = torch.zeros(3, 4, 3, 5)
    assert torch.equal(together(x)[2:], alone(x[2:]))
    assert not torch.equal(SampleNoise(8, [2]).initial((4, 3, 5)), SampleNoise(7, [2]).initial((4, 3, 5)))


def test_samples_may_have_seeds_of_their_own():
    together = SampleNoise([7, 9], [0, 1]).initial((4, 3))
    assert torch.equal(together[:1], SampleNoise(7, [0]).initial((4, 3)))
    assert torch.equal(together[1:], SampleNoise(9, [1]).initial((4, 3)))
    with pytest.raises(InputError, match="3 rows were asked for, there are 2 samples"):
        SampleNoise(7, [0, 1]).initial((4, 3), rows=3)


def test_parts_of_a_long_clip_share_no_noise():
    parts = [SampleNoise(7, [1], loop=loop).initial((4, 3)) for loop in range(3)]
    assert torch.equal(parts[0], SampleNoise(7, [1]).initial((4, 3)))
    others = [SampleNoise(seed, [sample]).initial((4, 3)) for seed in (7, 8) for sample in (2, 0)]
    distinct = {tuple(each.flatten().tolist()) for each in (*parts, *others)}
    assert len(distinct) == len(parts) + len(others)


def test_noise_is_standard_normal_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    values = SampleNoise(0, range(10)).initial((10000,))
    assert torch.equal(torch.randn(3), expected)
    assert values.mean().abs() < 0.02
    assert abs(values.std() - 1) < 0.02


def test_legacy_noise_replays_the_doubled_batch():
    torch.manual_seed(1)
    z, first = torch.randn(2, 3), torch.randn(4, 3)
    torch.manual_seed(1)
    noise = LegacyNoise()
    assert torch.equal(noise.initial((2, 3)), z)
    assert torch.equal(noise(z), first[:2])


def test_replayed_noise_is_that_of_the_originals_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    z, first = torch.randn(2, 3), torch.randn(4, 3)
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    noise = replayed_noise(1, "device", torch.device("cpu"))
    assert torch.equal(noise.initial((3,), rows=2), z)
    assert torch.equal(noise(z), first[:2])
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize(("draws", "gpu"), [("cuda", "a100"), ("cuda:a100", "a100"), ("cuda:h100", "h100")])
def test_replayed_noise_is_laid_out_as_on_the_gpu_that_is_named(draws, gpu):
    noise = replayed_noise(1, draws, torch.device("cpu"))
    assert noise.generator.blocks == BLOCKS[gpu]
    assert torch.equal(noise.initial((4, 3)), CudaGenerator(1).randn((4, 3)))  # a small draw is the same on all


@pytest.mark.parametrize("shape", [(3,), (4, 3, 5), (1, 16, 33), (4, 2, 17, 9)])
def test_draws_are_those_of_each_samples_own_generator(shape):
    noise, again = SampleNoise(7, [0, 5]), SampleNoise(7, [0, 5])
    for _ in range(2):
        expected = torch.stack([torch.randn(shape, generator=generator) for generator in again.generators])
        assert torch.equal(noise(torch.zeros(2, *shape)), expected)
