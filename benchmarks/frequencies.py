"""What diffusers' timestep frequencies do to a DiT: at its embedding, at its prediction, at its samples.

python benchmarks/frequencies.py                # random weights: guidon.from_diffusers against diffusers' own pipeline
python benchmarks/frequencies.py --train 3000   # and a small DiT, trained on data whose best denoiser is known
"""

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import guidon
from guidon.diffusion import NoiseSchedule, Process, q_sample
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.parts.layers import timestep_embedding
from guidon.samplers import SampleNoise, sample_ddpm

TIMESTEPS = (1, 10, 50, 100, 200, 300, 500, 700, 900, 999)
STEPS = 50
SPREAD = 0.3  # standard deviation of the training data around its class


def relative(wrong: Tensor, right: Tensor) -> float:
    return float((wrong - right).norm() / right.norm())


def embedding() -> None:
    """How far diffusers' embedding is from DiT's, and which timestep's embedding it is most like. No weights matter."""
    everything = torch.arange(0, 1100, 0.1)
    known = timestep_embedding(everything)
    print("| timestep | embedding differs by | is most like timestep | and differs from that by |\n|---|---|---|---|")
    for t in TIMESTEPS:
        at = torch.tensor([float(t)])
        theirs, ours = timestep_embedding(at, shift=1), timestep_embedding(at)
        distance = (known - theirs).norm(dim=1) / theirs.norm()
        nearest = int(distance.argmin())
        print(f"| {t} | {relative(theirs, ours):.1%} | {everything[nearest]:.1f} | {distance[nearest]:.1%} |")


def random_weights(seed: int) -> None:
    """diffusers' own pipeline and ``guidon.from_diffusers`` on the same random weights."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(seed)
    theirs = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=16, num_layers=4, sample_size=8, out_channels=8, norm_eps=1e-6
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    networks = {frequencies: network_of(theirs, frequencies) for frequencies in ("original", "diffusers")}
    x, y = torch.randn(16, 4, 8, 8), torch.arange(16)
    print("\n| timestep | prediction differs by | with diffusers' frequencies |\n|---|---|---|")
    for t in TIMESTEPS:
        timesteps = torch.full((16,), t)
        expected = theirs(x, timestep=timesteps, class_labels=y).sample
        found = [relative(network(x, timesteps, y), expected) for network in networks.values()]
        print(f"| {t} | {found[0]:.1%} | {found[1]:.0e} |")
    for name, channels in (("all", "all"), ("three", 3)):
        samples = [sample(network, Guidance(4.0, channels), y) for network in networks.values()]
        print(f"final latents, {STEPS} steps, scale 4 on {name} channels: differ by {relative(*samples):.1%}")


def network_of(transformer: Any, frequencies: Any) -> DiT:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    pipe = DiTPipeline(transformer, AutoencoderKL(latent_channels=4), DDIMScheduler())
    with guidon.from_diffusers(pipe, frequencies=frequencies).model.network.in_use(torch.float32) as network:
        assert isinstance(network, DiT)
        return network


def sample(network: DiT, guidance: Guidance, labels: Tensor) -> Tensor:
    denoiser = GuidedDenoiser(network, guidance, network.prepare(labels), network.null(len(labels)))
    noise = SampleNoise([0] * len(labels), list(range(len(labels))))
    z = noise.initial(network.latent_shape, torch.device("cpu"), len(labels))
    return sample_ddpm(denoiser, NoiseSchedule.named().respaced(STEPS), z, noise)


def trained_weights(updates: int, seed: int) -> None:
    """A DiT that was trained with DiT's frequencies on eight Gaussians, judged against their exact denoiser."""
    torch.manual_seed(seed)
    schedule, means = NoiseSchedule.named(), torch.randn(8, 4, 8, 8)

    def draw(count: int, timestep: Callable[[], Tensor]) -> SimpleNamespace:
        y, step = torch.randint(8, (count,)), timestep()
        x_0 = means[y] + SPREAD * torch.randn(count, 4, 8, 8)
        level, eps = schedule.at(step, x_0), torch.randn_like(x_0)
        x = q_sample(x_0, level, eps)
        # the mean of eps given x and the class, since x_0 is a Gaussian around the class's mean
        best = level.sigma * (x - level.alpha * means[y]) / ((level.alpha * SPREAD) ** 2 + level.sigma**2)
        return SimpleNamespace(x=x, y=y, level=level, eps=eps, best=best)

    network = DiT(DiTConfig(8, hidden_size=96, depth=3, num_heads=6, num_classes=8, learn_sigma=False))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        batch = draw(64, lambda: torch.randint(1000, (64,)))
        loss = (network(batch.x, batch.level, batch.y) - batch.eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()

    network.eval().requires_grad_(False)
    print(f"\ntrained for {updates} updates with DiT's frequencies; error of eps against the exact denoiser, rms")
    print("| timestep | DiT's frequencies | diffusers' |\n|---|---|---|")
    for t in TIMESTEPS:
        batch = draw(512, lambda t=t: torch.full((512,), t))
        errors = []
        for network.t_embedder.frequency_shift in (0, 1):
            errors.append(float((network(batch.x, batch.level, batch.y) - batch.best).square().mean().sqrt()))
        print(f"| {t} | {errors[0]:.4f} | {errors[1]:.4f} |")
    return_to_data(network, means)


def return_to_data(network: DiT, means: Tensor) -> None:
    """Samples of the trained network: their spread around the class is that of the data if the network is right."""
    labels = torch.arange(8).repeat(16)
    for network.t_embedder.frequency_shift, name in ((0, "DiT's"), (1, "diffusers'")):
        denoiser = GuidedDenoiser(network, Guidance(1.0), network.prepare(labels), None)
        noise = SampleNoise([0] * len(labels), list(range(len(labels))))
        z = noise.initial(network.latent_shape, torch.device("cpu"), len(labels))
        schedule, process = NoiseSchedule.named().respaced(250), Process(variance="fixed_large")
        found = sample_ddpm(denoiser, schedule, z, noise, process=process)
        away = float((found - means[labels]).square().mean().sqrt())
        print(f"samples, {name} frequencies: {away:.3f} rms from their class, the data {SPREAD}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=0, metavar="UPDATES", help="train a small DiT too (minutes)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    embedding()
    with torch.no_grad():
        random_weights(arguments.seed)
    if arguments.train:
        trained_weights(arguments.train, arguments.seed)


if __name__ == "__main__":
    main()
