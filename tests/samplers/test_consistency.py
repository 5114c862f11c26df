"""Multistep consistency sampling: new noise in every step, once noise no longer hides the sample."""

import torch

from guidon.diffusion import NoiseSchedule, Process
from guidon.diffusion.spacing import Explicit
from guidon.samplers import SampleNoise, sample_consistency, sample_ddim
from guidon.samplers.consistency import HIDDEN

FULL = NoiseSchedule.named()
TIMES = (999, 800, 540, 300, 60)
SCHEDULE = FULL.spaced_by(len(TIMES), Explicit(tuple(map(float, TIMES))))
PROCESS = Process("x0", "fixed_small")
SHAPE = (2, 4, 3, 5, 5)


def watched(x_0):
    seen = []

    def network(x, level):
        seen.append((int(level.timestep), x.clone()))
        return x_0

    return network, seen


def start(seed=1):
    noise = SampleNoise(seed, range(2))
    return noise.initial(SHAPE[1:]), noise


def test_it_ends_at_the_last_prediction():
    x_0 = torch.randn(SHAPE)
    x, noise = start()
    torch.testing.assert_close(sample_consistency(watched(x_0)[0], SCHEDULE, x, noise, process=PROCESS), x_0)


def test_noise_is_kept_while_it_hides_the_sample_and_new_after_that():
    x_0 = torch.randn(SHAPE)
    (network, seen), (other, ddim) = watched(x_0), watched(x_0)
    x, noise = start()
    sample_consistency(network, SCHEDULE, x, noise, process=PROCESS)
    sample_ddim(other, SCHEDULE, x, noise, process=PROCESS)
    alphas = torch.as_tensor(FULL.sqrt_alphas_cumprod)
    replayed = start()[1]
    for k, (t, shown) in enumerate(seen[1:], 1):
        drawn, before = replayed(x), TIMES[k - 1]
        if alphas[before] < HIDDEN:
            torch.testing.assert_close(shown, ddim[k][1])
        else:
            expected = alphas[t] * x_0 + (1 - alphas[t] ** 2).sqrt() * drawn
            torch.testing.assert_close(shown, expected.float(), atol=1e-5, rtol=1e-5)


def test_a_sample_does_not_depend_on_the_others():
    x, noise = start()
    both = sample_consistency(lambda x, level: torch.tanh(x), SCHEDULE, x, noise, process=PROCESS)
    alone = SampleNoise(1, [1])
    one = sample_consistency(lambda x, level: torch.tanh(x), SCHEDULE, alone.initial(SHAPE[1:]), alone, process=PROCESS)
    torch.testing.assert_close(one, both[1:])
