"""DiT and PixArt in diffusers' pipelines and in Guidon's, on the same random weights: a whole run of some steps.

    python benchmarks/against_diffusers.py          # about 2 minutes

The networks are 384 wide and 6 deep (--depth), the images 256x256; a small autoencoder decodes them in both. Prompts
are encoded beforehand. The arms are compared by one call of the network on the same inputs.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import guidon
from guidon.analysis.speed import Arm, Comparison, compare_speed, write_measurements
from guidon.core.devices import cpu_threads
from guidon.models.text.features import save_features
from guidon.pipeline import Pipeline

SCALE, SIDE, TOKENS = 4.5, 32, 120  # guidance, latent pixels, tokens of a caption
PROMPT = "a lighthouse in a storm"


def random_weights(make: Callable[[], nn.Module]) -> Any:
    """A network whose every layer matters."""
    torch.manual_seed(0)
    network = make().eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.7 * parameter[0].numel() ** -0.5)
    return network


def small_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
    ).eval()  # fmt: skip


def network_of(pipe: Pipeline, dtype: torch.dtype = torch.float32) -> Any:
    with pipe.model.network.in_use(dtype) as network:
        return network


def inputs() -> tuple[Tensor, Tensor]:
    """Latents and timesteps of a doubled batch."""
    torch.manual_seed(1)
    return torch.randn(1, 4, SIDE, SIDE).repeat(2, 1, 1, 1), torch.tensor([500, 500])


def dit_arms(width: int, depth: int, steps: int) -> list[Arm]:
    """DiT: class-conditional, ddim, guidance on 3 channels."""
    import diffusers

    network = random_weights(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=width // 64, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=depth,
            sample_size=SIDE, norm_eps=1e-6,
        )
    )  # fmt: skip
    theirs = diffusers.DiTPipeline(network, small_autoencoder(), diffusers.DDIMScheduler(clip_sample=False))
    theirs.set_progress_bar_config(disable=True)
    # one pipeline for each precision, since each keeps one network
    ours, half = (guidon.from_diffusers(theirs, frequencies="diffusers") for _ in range(2))
    own, (x, t), y = network_of(ours), inputs(), torch.tensor([1, 1000])
    noise = torch.Generator()
    settings: dict[str, Any] = {"steps": steps, "sampler": "ddim", "cfg_scale": SCALE, "timing": "constant"}
    return [
        Arm(
            "diffusers",
            lambda: theirs([1], guidance_scale=SCALE, num_inference_steps=steps, generator=noise, output_type="np"),
            lambda: network(x, timestep=t, class_labels=y).sample,
        ),
        Arm("guidon", lambda: ours("1", cfg_channels=3, **settings), lambda: own(x, t, y)),
        Arm(
            "guidon, bf16",
            lambda: half("1", cfg_channels=3, dtype="bf16", **settings),
            lambda: network_of(half, torch.bfloat16)(x, t, y),
        ),
    ]


def pixart_arms(width: int, depth: int, steps: int) -> list[Arm]:
    """PixArt-alpha: captions, DPM-Solver++, guidance on all channels."""
    import diffusers

    network = random_weights(
        lambda: diffusers.PixArtTransformer2DModel(
            num_attention_heads=width // 64, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=depth,
            sample_size=SIDE, cross_attention_dim=width, caption_channels=4096,
        )
    )  # fmt: skip
    kind: Any = diffusers.PixArtAlphaPipeline
    theirs = kind(None, None, small_autoencoder(), network, diffusers.DPMSolverMultistepScheduler())
    theirs.set_progress_bar_config(disable=True)
    torch.manual_seed(2)
    features, mask = torch.randn(2, TOKENS, 4096), torch.ones(2, TOKENS, dtype=torch.long)
    with tempfile.TemporaryDirectory() as folder:
        file = save_features(Path(folder) / "captions.safetensors", [PROMPT, ""], features, mask, encoder={})
        ours, half = (guidon.from_diffusers(theirs, features=file) for _ in range(2))
    own, (x, t), noise = network_of(ours), inputs(), torch.Generator()
    embeddings = {
        "prompt": None, "negative_prompt": None, "prompt_embeds": features[:1], "prompt_attention_mask": mask[:1],
        "negative_prompt_embeds": features[1:], "negative_prompt_attention_mask": mask[1:],
    }  # fmt: skip
    size = {"height": 8 * SIDE, "width": 8 * SIDE, "use_resolution_binning": False}
    settings: dict[str, Any] = {"steps": steps, "sampler": "dpm-solver", "cfg_scale": SCALE, "timing": "constant"}
    plain = {"resolution": None, "aspect_ratio": None}
    return [
        Arm(
            "diffusers",
            lambda: theirs(
                **embeddings, **size, guidance_scale=SCALE, num_inference_steps=steps, generator=noise, output_type="np"
            ),
            lambda: (
                network(
                    x, encoder_hidden_states=features, encoder_attention_mask=mask, timestep=t, added_cond_kwargs=plain
                ).sample
            ),
        ),
        Arm("guidon", lambda: ours(PROMPT, cfg_channels="all", **settings), lambda: own(x, t, features, mask)),
        Arm(
            "guidon, bf16",
            lambda: half(PROMPT, cfg_channels="all", dtype="bf16", **settings),
            lambda: network_of(half, torch.bfloat16)(x, t, features, mask),
        ),
    ]


FAMILIES = {"DiT": dit_arms, "PixArt": pixart_arms}


def measure(family: str, width: int, depth: int, steps: int, rounds: int | None, seconds: float) -> Comparison:
    with torch.inference_mode():
        arms = FAMILIES[family](width, depth, steps)
        title = f"## {family} {width}/{depth}, 256x256, {steps} guided steps and the decoder"
        return compare_speed(title, arms, rounds=rounds, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=6, help="blocks")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="default: as many as fit in --seconds, 3 to 15")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the rounds of one table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write all times as JSON")
    arguments = parser.parse_args()
    found: list[Comparison] = []
    with cpu_threads(arguments.threads):
        for family in FAMILIES:
            found.append(measure(family, 384, arguments.depth, arguments.steps, arguments.rounds, arguments.seconds))
            print(f"{found[-1].table()}\n", flush=True)
            if arguments.json:
                write_measurements(arguments.json, found)


if __name__ == "__main__":
    main()
