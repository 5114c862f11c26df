"""One step of training a small STDiT: a bare loop, the original's step, and Guidon's.

    python benchmarks/training_step.py                          # the three sizes: about 15 minutes
    python benchmarks/training_step.py --sizes 128 --rounds 6

All arms train the same weights on the same latents and caption features, on one thread, and draw noise and timesteps
themselves. A step is the forward pass, the loss, the backward pass and the update of the weights.

- "bare loop": the squared error of the predicted noise, AdamW, and nothing else.
- "the original's step": that of Open-Sora 1.0 in plain words: the squared error and the variational bound (its
  ``training_losses``), the norm of the gradient clipped at 1, AdamW, and averaged weights, one tensor after the other.
  On Guidon's network, and on the original's own (``plain.py``).
- "guidon": ``Steps`` of ``guidon train`` with a recipe of the same loss.
- "guidon, ...": with what other recipes ask for.

The network of "original's own" attends with its scores in memory. So does "guidon" on a CPU in training, whose backward
pass of fused attention is slow in bf16; the bare loop takes torch's choice, and once more plain products.
"""

import argparse
import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plain import PlainSTDiT, Savings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from guidon.analysis.speed import Arm, Comparison, compare_speed, write_measurements
from guidon.core.devices import cpu_threads
from guidon.diffusion import NoiseSchedule, Process, q_sample
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.training.recipe import VAERecipe
from guidon.training.step import Steps
from guidon.training.terms import Term, TrainingStep, total_loss
from guidon.training.terms.settings import MSESettings, Terms

TOKENS, FEATURES = 20, 64  # of a caption
STEPS = 1000
PLAIN = MSESettings()
DECAY = 0.9999  # of the original's averaged weights


@dataclass(frozen=True)
class Size:
    """A network and its batch."""

    width: int
    depth: int
    frames: int
    side: int
    batch: int

    @property
    def title(self) -> str:
        latents = f"{self.frames} x {self.side} x {self.side}"
        return f"## A step of training, {self.width}/{self.depth}, {self.batch} clips of {latents} latents"


SIZES = {"128": Size(128, 6, 16, 16, 4), "192": Size(192, 6, 16, 8, 8), "384": Size(384, 12, 16, 16, 1)}


class Trained(nn.Module):
    """The network and the loss terms of a recipe."""

    def __init__(self, denoiser: STDiT, terms: dict[str, Term]) -> None:
        super().__init__()
        self.denoiser, self.terms = denoiser, nn.ModuleDict(terms)


@dataclass(frozen=True, eq=False)
class Case:
    """What all arms share."""

    size: Size
    network: STDiT
    latents: Tensor
    features: Tensor
    mask: Tensor
    schedule: NoiseSchedule

    def copy(self) -> STDiT:
        """Weights of an arm's own."""
        return copy.deepcopy(self.network)

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Any]:
        """The noisy latents, their noise, timesteps and levels."""
        noise, t = torch.randn_like(self.latents), torch.randint(STEPS, (self.size.batch,))
        level = self.schedule.at(t, like=self.latents)
        return q_sample(self.latents, level, noise), noise, t, level


def make_case(size: Size) -> Case:
    torch.manual_seed(0)
    shape = (size.frames, size.side, size.side)
    config = STDiTConfig(
        shape, hidden_size=size.width, depth=size.depth, num_heads=size.width // 32, caption_channels=FEATURES,
        model_max_length=TOKENS,
    )  # fmt: skip
    network = STDiT(config).train()
    latents, features = torch.randn(size.batch, 4, *shape), torch.randn(size.batch, TOKENS, FEATURES)
    mask = torch.ones(size.batch, TOKENS, dtype=torch.long)
    return Case(size, network, latents, features, mask, NoiseSchedule.named("linear", STEPS))


def bare(name: str, case: Case, plain: bool = False) -> Arm:
    """The squared error and AdamW."""
    network = case.copy()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def step() -> None:
        x_t, noise, t, _ = case.draw()
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            loss = F.mse_loss(network(x_t, t, case.features, case.mask)[:, :4], noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return Arm(name, step)


def original(name: str, case: Case, own: bool = False) -> Arm:
    """Open-Sora 1.0's step."""
    network = case.copy()
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4)
    tables = case.schedule.at(torch.arange(STEPS), like=torch.zeros(STEPS, 1))
    model: Callable[..., Tensor] = network
    if own:
        plain = PlainSTDiT(network, Savings())
        model = partial(_of_plain, plain)

    def step() -> None:
        noise, t = torch.randn_like(case.latents), torch.randint(STEPS, (case.size.batch,))

        def of(table: Tensor) -> Tensor:
            return table.flatten()[t].view(-1, 1, 1, 1, 1).expand_as(noise)

        signal = of(tables.alphas_cumprod)
        x_t = signal.sqrt() * case.latents + (1 - signal).sqrt() * noise
        with sdpa_kernel(SDPBackend.MATH) if not own else nullcontext():
            eps, raw = model(x_t, t, case.features, case.mask).split(4, dim=1)
        # the bound, with a detached mean: it trains the variance
        low, high = of(tables.posterior_log_variance_clipped), of(tables.log_betas)
        log_variance = (raw + 1) / 2 * high + (1 - (raw + 1) / 2) * low
        x_0 = of(tables.sqrt_recip_alphas_cumprod) * x_t - of(tables.sqrt_recipm1_alphas_cumprod) * eps.detach()
        one, two = of(tables.posterior_mean_coef1), of(tables.posterior_mean_coef2)
        true, mean = one * case.latents + two * x_t, one * x_0 + two * x_t
        kl = 0.5 * (
            -1 + log_variance - low + torch.exp(low - log_variance) + (true - mean) ** 2 * torch.exp(-log_variance)
        )
        kl = kl.mean(dim=(1, 2, 3, 4)) / torch.log(torch.tensor(2.0))
        likelihood = _log_likelihood(case.latents, mean, 0.5 * log_variance)
        likelihood = -likelihood.mean(dim=(1, 2, 3, 4)) / torch.log(torch.tensor(2.0))
        bound = torch.where(t == 0, likelihood, kl) * STEPS / 1000.0
        loss = (((noise - eps) ** 2).mean(dim=(1, 2, 3, 4)) + bound).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            ours = dict(averaged.named_parameters())
            for key, parameter in network.named_parameters():
                ours[key].mul_(DECAY).add_(parameter.data, alpha=1 - DECAY)
        loss.item()  # it is logged

    return Arm(name, step)


def _of_plain(plain: PlainSTDiT, x: Tensor, t: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    return plain(x, t, features, mask, None)


def _log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of a normal distribution's mass in the bin of each value, with bins of 8-bit pictures."""

    def below(value: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (value + 0.044715 * value**3)))

    centred, inverse = x - mean, torch.exp(-log_scale)
    high, low = below(inverse * (centred + 1.0 / 255.0)), below(inverse * (centred - 1.0 / 255.0))
    inner = torch.log((high - low).clamp(min=1e-12))
    first, last = torch.log(high.clamp(min=1e-12)), torch.log((1.0 - low).clamp(min=1e-12))
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, inner))


@dataclass(frozen=True, eq=False)
class Task:
    """What ``Steps`` needs of a task."""

    case: Case
    module: Trained

    def predict(self, batch: None) -> TrainingStep:
        case, process = self.case, Process.trained("eps")
        x_t, noise, t, level = case.draw()
        rows, _, *shape = x_t.shape
        return TrainingStep(
            prediction=self.module.denoiser(x_t, t, case.features, case.mask),
            x_0=case.latents, x_t=x_t, noise=noise, t=t, level=level, process=process,
            objects=torch.zeros(rows, 1, *shape, dtype=torch.bool), swapped=torch.zeros(rows, dtype=torch.bool),
            counts=torch.ones(rows), family_size=1, area_gradients=None,
        )  # fmt: skip

    def loss(self, predicted: TrainingStep) -> tuple[Tensor, dict[str, Tensor]]:
        terms: Any = self.module.terms
        return total_loss(terms, predicted)


def guidon(name: str, case: Case, mse: MSESettings = PLAIN, precision: str = "fp32") -> Arm:
    """Guidon's step."""
    run = VAERecipe(
        task="vae", out=Path("unused"), steps=10**6, batch_size=case.size.batch, precision=precision,
    )  # type: ignore[arg-type]  # fmt: skip
    task = Task(case, Trained(case.copy(), Terms(mse=mse).build()))
    steps = Steps(run, task, torch.device("cpu"))
    count = iter(range(10**6))
    return Arm(name, lambda: steps([None], next(count)))


ARMS: dict[str, Callable[[Case], Arm]] = {
    "bare loop": partial(bare, "bare loop"),
    "bare loop, attention in plain products": partial(bare, "bare loop, attention in plain products", plain=True),
    "the original's step on its own network": partial(original, "the original's step on its own network", own=True),
    "the original's step on Guidon's network": partial(original, "the original's step on Guidon's network"),
    "guidon": partial(guidon, "guidon"),
    "guidon, weighting: balanced": partial(
        guidon, "guidon, weighting: balanced", mse=MSESettings(weighting="balanced", foreground=4)
    ),
    "guidon, precision: bf16": partial(guidon, "guidon, precision: bf16", precision="bf16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="width of the network")
    parser.add_argument("--rounds", type=int, help="default: as many as fit in --seconds, 3 to 15")
    parser.add_argument("--seconds", type=float, default=120.0, help="for the rounds of one table")
    parser.add_argument("--without", nargs="+", default=[], help="leave out arms whose names hold one of these texts")
    parser.add_argument("--json", type=Path, help="also write all times as JSON")
    arguments = parser.parse_args()
    found: list[Comparison] = []
    with cpu_threads(1):
        for name in arguments.sizes:
            case = make_case(SIZES[name])
            arms = [make(case) for key, make in ARMS.items() if not any(text in key for text in arguments.without)]
            found.append(compare_speed(SIZES[name].title, arms, rounds=arguments.rounds, seconds=arguments.seconds))
            print(f"{found[-1].table()}\n", flush=True)
            own = "the original's step on its own network"
            if own in {arm.name for arm in arms}:
                print(f"guidon against {own}: {found[-1].ratio(own, 'guidon')}\n", flush=True)
            if arguments.json:
                write_measurements(arguments.json, found)


if __name__ == "__main__":
    main()
