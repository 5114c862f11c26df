"""Tiny random networks for learned metrics, in the files that their authors publish: seeds and shapes, no training."""

import itertools
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH = 16  # features of every network
SIDE = 32  # px of their pictures
CHANNELS = (8, 12, 16, 12, 8)  # of LPIPS's stages


def make_clip(folder, seed=0, kind="clip"):
    """A CLIP or a SigLIP with a tokenizer that reads letters, in hub layout."""
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = _write_tokenizer(folder)
    shared = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shared | {
        "vocab_size": words,
        "max_position_embeddings": 24,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
    vision = shared | {"image_size": SIDE, "patch_size": 8}
    configs, models = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel),
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
    }[kind]
    own = {"projection_dim": WIDTH} if kind == "clip" else {}
    config = configs(
        text_config=text | own | ({"projection_size": WIDTH} if kind == "siglip" else {}),
        vision_config=vision | own,
        **own,
    )
    torch.manual_seed(seed)
    _spread(models(config)).save_pretrained(folder)
    sizes = (
        {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
        if kind == "clip"
        else {
            "size": {"height": SIDE, "width": SIDE},
            "do_center_crop": False,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    return folder


def make_dino(folder, seed=0, kind="dinov2"):
    """A DINOv2, or the ViT of the first DINO, in hub layout."""
    import transformers

    shared = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
    }
    configs, models = {
        "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model),
        "vit": (transformers.ViTConfig, transformers.ViTModel),
    }[kind]
    torch.manual_seed(seed)
    model = models(configs(**shared)) if kind == "dinov2" else models(configs(**shared), add_pooling_layer=False)
    _spread(model).save_pretrained(folder)
    return Path(folder)


def make_lpips(folder, seed=0, widths=CHANNELS):
    """AlexNet's convolutions with few channels, and linear layers for them, under the names of torchvision and lpips."""
    folder, generator = Path(folder), torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    backbone, sides = {}, (11, 5, 3, 3, 3)
    for number, before, after, side in zip((0, 3, 6, 8, 10), (3, *widths), widths, sides, strict=False):
        backbone[f"features.{number}.weight"] = torch.randn(after, before, side, side, generator=generator) / (
            before**0.5 * side
        )
        backbone[f"features.{number}.bias"] = torch.randn(after, generator=generator) / 10
    torch.save(backbone, folder / "alexnet-owt-7be5be79.pth")
    linear = {
        f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for k, width in enumerate(widths)
    }
    torch.save(linear, folder / "alex.pth")
    return folder


def make_aesthetic(path, seed=0, sizes=(WIDTH, 8, 1)):
    """An aesthetic head in the files of version 2, or with two sizes of version 1."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers[f"layers.{2 * k}.weight"] = torch.randn(after, before, generator=generator)
        layers[f"layers.{2 * k}.bias"] = torch.randn(after, generator=generator)
    if len(sizes) == 2:
        layers = {name.removeprefix("layers.0."): value for name, value in layers.items()}
    if Path(path).suffix == ".safetensors":
        save_file(layers, path)
    else:
        torch.save(layers, path)
    return Path(path)


def make_all(folder):
    """The options of all learned parts: name -> path."""
    folder = Path(folder)
    return {
        "clip": make_clip(folder / "clip"), "dino": make_dino(folder / "dino"), "lpips": make_lpips(folder / "lpips"),
        "aesthetic": make_aesthetic(folder / "aesthetic.pth"),
    }  # fmt: skip


def _spread(model):
    """Larger random weights, so that different frames get different features."""
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.mul_(8)
    return model


def _write_tokenizer(folder):
    """CLIP's files of a tokenizer whose words are single letters. Returns how many tokens there are."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 24} | special)
    )
    return len(tokens)
