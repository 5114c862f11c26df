"""A model folder of small random weights, for tests that sample."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from guidon import world
from guidon.checkpoints import load_component, save_component
from guidon.models.adapters.files import adapter_config
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.small import DIFFUSION, DISTILLED
from guidon.models.small.distilled import start_distilled
from guidon.models.small.distilled_config import DISTILLED_KIND, DistilledConfig
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.models.text.captions import CaptionEncoder, CaptionEncoderConfig
from guidon.models.trained.config import ClipFormat, ModelConfig, TextSource
from guidon.models.trained.writing import write_config, write_network
from guidon.models.vae.frames import FrameVAE, FrameVAEConfig

VAE = FrameVAEConfig(block_out_channels=(8, 8), norm_num_groups=4, pixel_unshuffle=4, scaling_factor=1.0)


def write_tiny_model(
    folder: Path, blots: bool = True, seed: int = 0, flows: bool = False, vae: FrameVAEConfig = VAE
) -> Path:
    """Write the weights of a model whose output depends on its caption.

    Args:
        folder: where to.
        blots: the decoder draws large blots, and not noise, whose outlines take long to measure.
        seed: of the weights.
        flows: a rectified flow in place of a diffusion.
        vae: the shape of the autoencoder. Large squares of pixels make it quick.
    """
    torch.manual_seed(seed)
    text_config = CaptionEncoderConfig(world.vocabulary(), features=16, layers=1, heads=2)
    config = STDiTConfig(
        (16, 8, 8), patch_size=(4, 4, 4), hidden_size=32, depth=2, num_heads=2, caption_channels=16,
        model_max_length=20, learn_sigma=not flows,
    )  # fmt: skip
    denoiser = STDiT(config)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    record = {"steps": 0}
    schedule, prediction = ("flow", "flow") if flows else ("linear", "eps")
    diffusion = {"noise_schedule": schedule, "diffusion_steps": 1000, "prediction": prediction}
    save_component(
        folder / "denoiser.safetensors",
        "denoiser",
        dataclasses.asdict(config) | diffusion,
        denoiser.state_dict(),
        record,
    )
    save_component(
        folder / "text.safetensors",
        "text",
        dataclasses.asdict(text_config),
        CaptionEncoder(text_config).state_dict(),
        record,
    )
    autoencoder = FrameVAE(vae)
    if blots:
        _smooth(autoencoder.autoencoder.decoder)
    save_component(folder / "vae.safetensors", "vae", dataclasses.asdict(vae), autoencoder.state_dict(), record)
    return folder


def write_tiny_distilled(folder: Path, seed: int = 0) -> Path:
    """Write the file of a distilled network into a folder of the tiny model; another seed is another network."""
    torch.manual_seed(seed)
    denoiser = load_component(folder / "denoiser.safetensors", "denoiser")
    shape = {"rank": 2, "channels": 4, "hidden_size": 32, "timesteps": (999, 600, 300), "end": 400}
    network = start_distilled(denoiser, DistilledConfig(**shape, denoiser=denoiser.sha256), *DIFFUSION)
    weights = {name: 0.1 * torch.randn(value.shape) for name, value in network.adapter().items()}
    config = dataclasses.asdict(network.config)
    save_component(folder / DISTILLED, DISTILLED_KIND, config, weights, {"steps": 0})
    return folder


def write_tiny_adapters(folder: Path) -> Path:
    """Write a folder of adapters for the tiny model."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    name = "base_model.model.blocks.0.attn.proj"
    tensors = {f"{name}.lora_A.weight": torch.randn(2, 32, generator=generator)}
    tensors[f"{name}.lora_B.weight"] = torch.randn(32, 2, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(adapter_config("STDiT", 2, 2.0, 0.0, ["blocks.0.attn.proj"], "base"))
    return folder


def _smooth(decoder: torch.nn.Module) -> None:
    """Average every kernel over its taps, and the last one, with its bias, over the pixels of a square."""
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.copy_(module.weight.data.mean((2, 3), keepdim=True).expand_as(module.weight))
    last: Any = decoder.conv_out
    colours, subpixels, contrast = 3, last.out_channels // 3, 4
    for values, sides in ((last.weight, (1,)), (last.bias, (1,))):
        same = values.data.unflatten(0, (colours, subpixels)).mean(sides, keepdim=True)
        values.data.copy_(contrast * same.expand(colours, subpixels, *values.shape[1:]).flatten(0, 1))


def write_tiny_trained(
    folder: Path, text: TextSource, *, seed: int = 0, network: Literal["stdit", "dit"] = "stdit"
) -> Path:
    """Write the folder of a trained network of small random weights.

    Args:
        folder: where to.
        text: what reads its prompts. Its text encoder or its features are not written.
        seed: of the weights.
        network: which one.
    """
    shape: STDiTConfig | DiTConfig
    if network == "dit":
        shape = DiTConfig(4, hidden_size=32, depth=1, num_heads=2, num_classes=len(text.classes))
    else:
        shape = STDiTConfig(
            (4, 4, 4), hidden_size=32, depth=1, num_heads=2, caption_channels=24, model_max_length=text.tokens or 16
        )
    folder.mkdir()
    frames = 1 if network == "dit" else 4
    config = ModelConfig(
        network=network, layout="released", noise_schedule="linear", diffusion_steps=1000, prediction="eps", text=text,
        vae="frames", downsampling=8, clip=ClipFormat(height=32, width=32, frames=frames, fps=8),
    )  # fmt: skip
    torch.manual_seed(seed)
    made = DiT(shape) if isinstance(shape, DiTConfig) else STDiT(shape)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    write_config(folder, config, shape)
    write_network(folder, made.state_dict(), {})
    save_component(folder / "vae.safetensors", "vae", dataclasses.asdict(VAE), FrameVAE(VAE).state_dict(), {})
    return folder


def write_named_t5(folder: Path) -> Path:
    """Write files by the names of T5's, which are found and hashed, and which cannot be read."""
    folder.mkdir()
    for name in ("config.json", "spiece.model", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder
