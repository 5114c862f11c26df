"""Every kind of file that Guidon reads: how a small one is made, how it is read, and how it is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save_file

from faults import mutations
from faults.mutations import Mutation
from guidon import world
from guidon.core.errors import InputError
from guidon.core.hashing import hash_files, hash_settings, hash_tensors

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle moves left on a white background"
KINDS: dict[str, Kind] = {}
SHARED: dict[str, Path] = {}
"""Folders that several kinds copy, by what made them."""


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    make: Callable[[Path], object]
    """Writes the files into an empty folder."""
    read: Callable[[Path], str]
    """Reads them with Guidon. The text is the result: another text is another result."""
    files: str
    """A glob pattern: which of the files are damaged."""
    structure: Mutation | None = None
    """A mutation of what the file is made of, beside those of its bytes."""
    share: float = 0.5
    """How often the structure is changed, not the bytes."""
    digested: bool = False
    """Whether the files carry a digest: then no damage may be read as another result."""
    mend: Callable[[Path], None] | None = None
    """Makes the digests good after the damage."""
    cost: float = 1.0
    """How much longer than most it takes to read: as many times fewer mutants are tried."""


def kind(name: str, files: str, **options: Any) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Register the decorated function as the reader of a kind."""

    def register(read: Callable[[Path], str]) -> Callable[[Path], str]:
        KINDS[name] = Kind(read=read, files=files, **options)
        return read

    return register


def also(name: str, of: str, **changes: Any) -> None:
    """Register a kind that is like another."""
    KINDS[name] = replace(KINDS[of], **changes)


def shared(make: Callable[[Path], object], folder: Path) -> None:
    """Copy what ``make`` writes into a folder; it is made once."""
    name = f"{make.__module__}.{make.__qualname__}"
    if name not in SHARED:
        place = folder.parent / f"shared-{len(SHARED)}"
        place.mkdir()
        make(place)
        SHARED[name] = place
    shutil.copytree(SHARED[name], folder, dirs_exist_ok=True)


def digest(*parts: Any) -> str:
    """A short text that stands for arrays, tensors, texts and plain data."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().contiguous().flatten().view(torch.uint8).numpy()
        content = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode("utf-8", "backslashreplace")
        found.update(f"{getattr(part, 'shape', '')}".encode() + content)
    return found.hexdigest()[:16]


def _told(report: Any) -> str:
    """A report without its path and the hash of the file: the same content may be in another order."""
    return re.sub("(file|sha256) .*", "", str(report))


# Our own weights


def _model(folder: Path) -> None:
    from tiny_model import write_tiny_model

    write_tiny_model(folder)


def _tiny(folder: Path) -> None:
    shared(_model, folder)


def _built(folder: Path) -> str:
    from guidon.models.small.folder import DIFFUSION, read_folder
    from guidon.models.stdit.network import STDiT, STDiTConfig
    from guidon.models.text.captions import CaptionEncoder, CaptionEncoderConfig
    from guidon.models.vae.frames import FrameVAE, FrameVAEConfig

    files = read_folder(folder)
    modules = (
        files.denoiser.build(STDiT, STDiTConfig, *DIFFUSION),
        files.text.build(CaptionEncoder, CaptionEncoderConfig),
        files.vae.build(FrameVAE, FrameVAEConfig),
    )
    said = (files.denoiser.config, files.text.config, files.vae.config, files.denoiser.record)
    return digest(said, *(hash_tensors(module.state_dict()) for module in modules))


def _sampled(folder: Path) -> str:
    import guidon

    video = guidon.load(folder, device="cpu")(PROMPT, steps=2, sampler="ddim", seed=0)
    return digest(video.frames)


def _good_component(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """A component with a changed configuration or changed tensors, whose digest was made good by hand."""
    from guidon.checkpoints.component import _digest
    from guidon.checkpoints.writing import safetensors_bytes

    end = 8 + int.from_bytes(data[:8], "little")
    header, weights = json.loads(data[8:end])["__metadata__"], parse_safetensors(data)
    if rng.random() < 0.8:
        name = rng.choice(("config", "config", "config", "record", "kind", "format"))
        said, value = mutations.tree(json.loads(header[name]) if name in ("config", "record") else header[name], rng)
        header[name] = value if isinstance(value, str) else json.dumps(value)
        said = f"{name}: {said}"
    else:
        said, weights = _other_tensors(weights, rng)
    header = {name: str(value).encode("utf-8", "replace").decode() for name, value in header.items()}
    header["digest"] = _digest(header, weights)
    return f"good digest, {said}", safetensors_bytes(weights, header)


@kind("components of a model", "*.safetensors", make=_tiny, structure=mutations.as_safetensors, digested=True)
def _(folder: Path) -> str:
    return _built(folder)


@kind("components with a good digest", "*.safetensors", make=_tiny, structure=_good_component, share=1, cost=2)
def _(folder: Path) -> str:
    return _sampled(folder)


@kind("inspect of a component", "denoiser.safetensors", make=_tiny, structure=mutations.as_safetensors, digested=True)
def _(folder: Path) -> str:
    from guidon.models.checkpoint import inspect_checkpoint

    return _told(inspect_checkpoint(folder / "denoiser.safetensors"))


also(
    "inspect of a component with a good digest",
    "inspect of a component",
    structure=_good_component,
    share=1,
    digested=False,
)


def _distilled(folder: Path) -> None:
    from tiny_model import write_tiny_distilled

    _tiny(folder)
    write_tiny_distilled(folder)


@kind("a distilled network", "denoiser-fast*", make=_distilled, structure=mutations.as_safetensors, digested=True)
def _(folder: Path) -> str:
    import guidon

    pipe = guidon.load(folder, device="cpu")
    video = pipe(PROMPT, fast=True, seed=0)
    return digest(video.frames, pipe.preset.fast)


also(
    "a distilled network with a good digest",
    "a distilled network",
    structure=_good_component,
    share=1,
    digested=False,
    cost=2,
)


# Released checkpoints


def _other_tensors(weights: dict[str, torch.Tensor], rng: Random) -> tuple[str, dict[str, torch.Tensor]]:
    """Weights with one tensor of another name, shape, type or content."""
    weights = dict(weights)
    names = sorted(weights)
    main = [name for name in names if name.startswith(("x_emb", "final", "y_emb", "pos", "blocks.0.mlp"))]
    name = rng.choice(rng.choice((names, main or names)))
    value = weights[name]
    act = rng.choice(("shape", "shape", "type", "type", "nan", "drop", "name", "empty", "zero", "more", "scalar"))
    if act == "shape":
        shapes = [
            value.flatten(),
            value[None],
            value.flatten()[None, None, None],
            value[..., None],
            value.flatten()[:1],
            value[:1],
        ]
        weights[name] = rng.choice([*shapes, value.transpose(0, -1) if value.ndim else value]).contiguous()
    elif act == "type":
        kinds = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool, torch.int64, torch.float64,
                 torch.complex64, torch.bfloat16, torch.uint16)  # fmt: skip
        weights[name] = value.to(rng.choice(kinds))
    elif act == "nan":
        weights[name] = (
            torch.full_like(value, rng.choice((float("nan"), float("inf")))) if value.is_floating_point() else value
        )
    elif act == "drop":
        del weights[name]
    elif act == "name":
        new = rng.choice(
            ("blocks.999999999.x", "blocks.1.x", "", name + "x", "module." + name, "blocks." + "9" * 5000 + ".x", "☃")
        )
        weights[new] = weights.pop(name)
    elif act == "empty":
        weights[name] = value.flatten()[:0]
    elif act == "zero":
        weights[name] = torch.zeros_like(value)
    elif act == "more":
        weights[f"{name}.{rng.randrange(9)}"] = value.clone()
    else:
        weights[name] = value.flatten()[0].clone() if value.numel() else value
    return f"{name}: {act}", weights


SMALL = {"hidden_size": 24, "depth": 2, "num_heads": 4}
CAPTIONS = {"caption_channels": 10, "model_max_length": 5}


def _networks() -> dict[str, torch.nn.Module]:
    from guidon.models.dit.network import DiT, DiTConfig
    from guidon.models.pixart.network import PixArt, PixArtConfig
    from guidon.models.stdit.network import STDiT, STDiTConfig

    torch.manual_seed(0)
    return {
        "stdit": STDiT(STDiTConfig((4, 6, 6), space_scale=0.5, **SMALL, **CAPTIONS)),
        "pixart": PixArt(PixArtConfig(8, lewei_scale=2.0, **SMALL, **CAPTIONS)),
        "dit": DiT(DiTConfig(8, num_classes=3, **SMALL)),
    }


def _zipped(folder: Path) -> None:
    for name, model in _networks().items():
        torch.save({"ema": model.state_dict(), "epoch": 3}, folder / f"{name}.pth")


def _legacy(folder: Path) -> None:
    for name, model in _networks().items():
        torch.save(model.state_dict(), folder / f"{name}.pth", _use_new_zipfile_serialization=False)


def _plain(folder: Path) -> None:
    for name, model in _networks().items():
        save_file(model.state_dict(), folder / f"{name}.safetensors")


def _shards(folder: Path) -> None:
    weights = _networks()["stdit"].state_dict()
    names = sorted(weights)
    places = {name: f"part-{k % 2}.{('safetensors', 'bin')[k % 2]}" for k, name in enumerate(names)}
    save_file({name: weights[name] for name in names[::2]}, folder / "part-0.safetensors")
    torch.save({name: weights[name] for name in names[1::2]}, folder / "part-1.bin")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _diffusers(folder: Path) -> None:
    from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel

    torch.manual_seed(0)
    common = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 1,
              "sample_size": 8}  # fmt: skip
    DiTTransformer2DModel(**common, num_embeds_ada_norm=7, norm_eps=1e-6).save_pretrained(folder / "dit")
    PixArtTransformer2DModel(**common, cross_attention_dim=32, caption_channels=10).save_pretrained(folder / "pixart")


def _described(path: Path, **known: Any) -> str:
    """What is known of a checkpoint, and its network's prediction."""
    from guidon.models.checkpoint import inspect_checkpoint, load_checkpoint

    report = _told(inspect_checkpoint(path, **known))
    network = load_checkpoint(path, **known)
    torch.manual_seed(1)
    x = torch.randn(2, *network.latent_shape)
    y = torch.tensor([0, 1]) if type(network).__name__ == "DiT" else torch.randn(2, 5, network.config.caption_channels)
    with torch.no_grad():
        made = network(x, torch.tensor([3, 800]), y)
    return digest(report, hash_tensors(network.state_dict()), made.numpy())


def _each(folder: Path, pattern: str, **known: Any) -> str:
    """All checkpoints of a folder. One that is refused is named after the others are read."""
    found, refusal = [], None
    for path in sorted(folder.glob(pattern)):
        try:
            found.append(_described(path, **known))
        except InputError as error:
            refusal = error
    if refusal is not None:
        raise refusal
    return " ".join(found)


def _tensors_of(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    from safetensors.torch import save

    if rng.random() < 0.3:
        return mutations.as_safetensors(data, other, rng)
    said, weights = _other_tensors(parse_safetensors(data), rng)
    return said, save(dict(weights))


def _pickle_of(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """A torch file of changed tensors, or of other objects."""
    from collections import OrderedDict
    from io import BytesIO

    content = torch.load(BytesIO(data), weights_only=True)
    weights = dict(content.get("ema", content))
    act = rng.choice(("tensors", "tensors", "tensors", "view", "object", "sparse", "shared"))
    if act == "tensors":
        said, weights = _other_tensors(weights, rng)
    else:
        name = rng.choice(sorted(weights))
        said = f"{name}: {act}"
        many = [
            torch.zeros(1).expand(10**6, 10**6),
            torch.zeros(1).expand(weights[name].shape),
            torch.zeros(3, 3).to_sparse(),
        ]
        objects = [1, "x", None, [torch.zeros(1)], {"x": 1}, OrderedDict(), torch.Size([1]), torch.float32, {1, 2}]
        if act == "view":
            weights[name] = many[rng.randrange(2)]
        elif act == "sparse":
            weights[name] = many[2]
        elif act == "shared":
            weights |= {f"{name}.{k}": weights[name] for k in range(50)}
        else:
            weights[name] = rng.choice(objects)
    written = BytesIO()
    wrapped = (
        weights if rng.random() < 0.8 else rng.choice(({"ema": weights}, {"ema": {"model": weights}}, [weights], {}))
    )
    torch.save(wrapped, written, _use_new_zipfile_serialization=data[:2] == b"PK")
    return said, written.getvalue()


def _zip_of(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    return (mutations.as_zip if rng.random() < 0.5 else _pickle_of)(data, other, rng)


@kind("released, torch zip", "*.pth", make=_zipped, structure=_zip_of, cost=2)
def _(folder: Path) -> str:
    return _each(folder, "*.pth", num_heads=4)


also("released, torch legacy", "released, torch zip", make=_legacy, structure=_pickle_of)


@kind("released, safetensors", "*.safetensors", make=_plain, structure=_tensors_of, cost=2)
def _(folder: Path) -> str:
    return _each(folder, "*.safetensors", num_heads=4)


def _shard(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    act = mutations.as_json if data[:1] == b"{" else mutations.as_zip if data[:2] == b"PK" else _tensors_of
    return act(data, other, rng)


@kind("released, shards and index", "*", make=_shards, structure=_shard)
def _(folder: Path) -> str:
    return _described(folder, num_heads=4)


def _hub_file(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    return (mutations.as_json if data[:1] == b"{" else _tensors_of)(data, other, rng)


@kind("released, diffusers' layout", "*/*", make=_diffusers, structure=_hub_file, share=0.7, cost=2)
def _(folder: Path) -> str:
    return _each(folder, "*")


# Pipelines of diffusers


def _pipeline(folder: Path) -> None:
    from tiny_pipelines.whole import write_pipeline

    write_pipeline("wan", folder)


def _pipeline_folder(folder: Path) -> None:
    shared(_pipeline, folder)


@kind("a diffusers pipeline, before it is loaded", "**/*", make=_pipeline_folder, structure=_hub_file, share=0.7)
def _(folder: Path) -> str:
    from guidon.pipeline.diffusers_planner import DiffusersPlanner

    found = DiffusersPlanner.find(folder, call={"num_frames": 5})
    return digest(found.channels, found.dtype, dict(found.call), found.complete(["a"], cfg_scale=2).guidance)


@kind("a diffusers pipeline", "*/*", make=_pipeline_folder, structure=_hub_file, share=0.7, cost=10)
def _(folder: Path) -> str:
    from guidon.pipeline.diffusers_pipeline import load_folder

    return digest(load_folder(folder, device="cpu").hashes)


# Text encoders and autoencoders in hub layout


def _vae_folder(folder: Path) -> None:
    from released import make_vae

    make_vae(folder)


@kind("an autoencoder in hub layout", "*", make=_vae_folder, structure=_hub_file, share=0.6, cost=3)
def _(folder: Path) -> str:
    from guidon.models.vae.frames import FrameVAE

    vae = FrameVAE.load(folder)
    return digest(vae.config, hash_tensors(vae.state_dict()), vae.decode(torch.ones(1, 4, 2, 2)).numpy())


def _video_vae(folder: Path) -> None:
    from released import make_video_vae

    make_video_vae(folder)


@kind("Open-Sora 1.2's autoencoder", "*", make=_video_vae, structure=_hub_file, share=0.6, cost=3)
def _(folder: Path) -> str:
    from guidon.models import VideoVAE

    vae = VideoVAE.load(folder)
    return digest(hash_tensors(vae.state_dict()), vae.decode(torch.ones(1, 4, 2, 2, 2)).numpy())


def _mmdit(folder: Path) -> None:
    from safetensors.torch import save_file

    from guidon.models import MMDiT, MMDiTConfig

    torch.manual_seed(0)
    shape = {
        "in_channels": 8,
        "vec_in_dim": 4,
        "context_in_dim": 6,
        "hidden_size": 16,
        "num_heads": 1,
        "mlp_ratio": 1.0,
    }
    config = MMDiTConfig(**shape, depth=1, depth_single_blocks=1, axes_dim=(4, 6, 6))
    save_file(MMDiT(config).state_dict(), folder / "mmdit.safetensors")


@kind("an MMDiT", "*", make=_mmdit, structure=_tensors_of, cost=2)
def _(folder: Path) -> str:
    from guidon import load_checkpoint

    return digest(hash_tensors(load_checkpoint(folder / "mmdit.safetensors", axes_dim=(4, 6, 6)).state_dict()))


def _sized(folder: Path) -> None:
    from released import make_sized_checkpoints

    make_sized_checkpoints(folder)


@kind("the networks of Open-Sora 1.1 and 1.2", "*/*", make=_sized, structure=_hub_file, share=0.6)
def _(folder: Path) -> str:
    from guidon.models.checkpoint import load_checkpoint

    networks = [load_checkpoint(each) for each in sorted(folder.iterdir())]
    return digest(*((each.config, hash_tensors(each.state_dict())) for each in networks))


def _t5_folder(folder: Path) -> None:
    from released import make_t5

    make_t5(folder)


@kind("T5 in hub layout", "*", make=_t5_folder, structure=lambda d, o, r: (_hub_file if d[:1] == b"{" or d[8:9] == b"{" else mutations.flip)(d, o, r), cost=10)  # fmt: skip
def _(folder: Path) -> str:
    from guidon.models.text.t5 import T5Encoder

    encoder = T5Encoder.load(folder, max_length=20)
    return digest(*(part.numpy() for part in encoder.encode(["waves roll"])), encoder.description)


# Networks that measure


def _judges(folder: Path) -> None:
    from judges import make_clip, make_dino

    make_clip(folder / "clip")
    make_dino(folder / "dino")


def _hub_part(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    return (_hub_file if data[:1] == b"{" or data[8:9] == b"{" else mutations.flip)(data, other, rng)


@kind("CLIP and DINO in hub layout", "*/*", make=_judges, structure=_hub_part, cost=10)
def _(folder: Path) -> str:
    from guidon.metrics.bench import open_bench
    from guidon.metrics.choice import BenchChoice

    bench = open_bench(BenchChoice(clip=folder / "clip", dino=folder / "dino"), "world")
    return digest(bench.measure(_CLIP, ["a red circle"]), sorted(part.hash for part in bench.weights.values()))


def _torch_judges(folder: Path) -> None:
    from judges import make_aesthetic, make_lpips

    make_lpips(folder / "lpips")
    make_aesthetic(folder / "aesthetic.pth")


@kind("LPIPS and the aesthetic head", "**/*.pth", make=_torch_judges, structure=mutations.as_zip)
def _(folder: Path) -> str:
    from guidon.metrics.networks import AestheticHead, Lpips

    scores = AestheticHead.load(folder / "aesthetic.pth").score(np.ones((1, 16)))
    return digest(scores, Lpips.load(folder / "lpips").changes(_CLIP[0]))


_CLIP = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), np.uint8)


def _pipeline_of_diffusers(folder: Path) -> None:
    (folder / "vae").mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline", "_diffusers_version": "0.35.0"}')
    (folder / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLWan", "z_dim": 48}')


@kind("the folder of a pipeline of diffusers", "**/*.json", make=_pipeline_of_diffusers, structure=mutations.as_json)
def _(folder: Path) -> str:
    from guidon.analysis.channels import published

    return published(str(folder)).name


# Caption features


def _captions(folder: Path) -> None:
    from guidon.models.text.features import save_features

    torch.manual_seed(0)
    prompts = ["one", "two", "drei ☃"]
    encoder = {"max_length": 4, "clean": True, "dtype": "fp32"}
    save_features(
        folder / "a.safetensors", prompts, torch.randn(3, 4, 5), torch.ones(3, 4, dtype=torch.long), encoder=encoder
    )


def _old_captions(folder: Path) -> None:
    header = {"format": "guidon captions", "prompts": '["one", "two"]', "encoder": '{"max_length": 4}'}
    torch.manual_seed(0)
    save_file(
        {"features": torch.randn(2, 4, 5), "mask": torch.ones(2, 4)[:].long()},
        folder / "a.safetensors",
        metadata=header,
    )


@kind("caption features", "*", make=_captions, structure=mutations.as_safetensors, digested=True)
def _(folder: Path) -> str:
    from guidon.models.text.features import load_features

    kept = load_features(folder / "a.safetensors", 4)
    return digest(
        kept.prompts, kept.encoder, *(part.numpy() for part in kept.encode([kept.prompts[-1], kept.prompts[0]]))
    )


also("caption features without a digest", "caption features", make=_old_captions, structure=_tensors_of, digested=False)


# Settings


def _recipes(folder: Path) -> None:
    shutil.copy(ROOT / "recipes" / "guidon-small.yaml", folder / "staged.yaml")
    from recipes import DENOISER, ROLLOUT, VAE

    own = {"data": {"folder": ["a", "b"], "size": [64, 64], "repeats": [1, 2], "fps": 8.0}}
    written = {"vae": VAE, "denoiser": DENOISER | {"vae": "x"}, "rollout": ROLLOUT | {"start": "x"}, "own": VAE | own}
    for name, values in written.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values | {"out": "x"}))


@kind("recipes", "*.yaml", make=_recipes, structure=mutations.as_yaml, share=0.8)
def _(folder: Path) -> str:
    from guidon.training.recipe import load_recipe

    found = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            found.append(digest(load_recipe(path)))
        except InputError as error:
            found.append(error)
    for part in found:
        if isinstance(part, InputError) and "start" not in str(part):
            raise part
    return " ".join(map(str, found))


def _study_files(folder: Path) -> None:
    for path in (ROOT / "studies").glob("*.yaml"):
        shutil.copy(path, folder)


@kind("plans of studies", "*.yaml", make=_study_files, structure=mutations.as_yaml, share=0.8)
def _(folder: Path) -> str:
    from guidon.studies.study import arms, load_study

    return digest(*((study, arms(study)) for study in map(load_study, sorted(folder.glob("*.yaml")))))


def _manifests(folder: Path) -> None:
    import guidon

    if "model" not in SHARED:
        SHARED["model"] = folder.parent / "model-of-manifests"
        _model(SHARED["model"])
    video = guidon.load(SHARED["model"], device="cpu")(PROMPT, steps=2, sampler="ddim", seed=0)
    video.save(folder / "a.webp")


@kind("manifests to make again", "*.json", make=_manifests, structure=mutations.as_json, share=0.8)
def _(folder: Path) -> str:
    from guidon.pipeline.manifests import Manifest

    return digest(Manifest.read(folder / "a.webp.json"))


@kind("manifests beside videos", "*.json", make=_manifests, structure=mutations.as_json, share=0.8)
def _(folder: Path) -> str:
    from guidon.analysis.evaluate import _caption_of

    return digest(_caption_of(folder / "a.webp"))


def _prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text(f"{PROMPT}\n\na blue square, large\ndrei ☃\n")


@kind("prompts", "*", make=_prompts, structure=mutations.as_lines)
def _(folder: Path) -> str:
    from guidon.cli.generate import read_prompts

    return digest(read_prompts((), folder / "prompts.txt"))


# Studies


def _written_study(folder: Path) -> None:
    from guidon.studies.cells import Scales, read_plan, write_scales
    from studies.written import write_study

    write_study(folder, prompts=2)
    plan = read_plan(folder)
    write_scales(Scales(plan=plan.hash, steps=5, scales={}), folder)


def _study(folder: Path) -> None:
    shared(_written_study, folder)


def _results(folder: Path) -> str:
    from guidon.studies.cells import cells_of, read_plan
    from guidon.studies.results import results

    plan = read_plan(folder)
    cells = cells_of(plan, folder)
    for cell in cells:
        if fault := cell.damage():
            raise InputError(fault)
    found = results(plan, folder)
    return digest(plan, found, *(part for cell in cells for part in (cell.frames(), cell.metrics(), cell.trace())))


@kind("plan.json and scales.json", "*.json", make=_study, structure=mutations.as_json, share=0.7, digested=True)
def _(folder: Path) -> str:
    from guidon.studies.cells import read_plan

    return digest(read_plan(folder))


def _good_plan(folder: Path) -> None:
    """Write the right hash into plan.json and scales.json."""
    for path in (folder / "plan.json", folder / "scales.json"):
        values = json.loads(path.read_text())
        content = {name: value for name, value in values.items() if name != "hash"}
        path.write_text(json.dumps(content | {"hash": hash_settings(content)}))


also("plan.json with a good hash", "plan.json and scales.json", share=1, digested=False, mend=_good_plan)


def _part_of_cell(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    act = mutations.as_png if data[:4] == b"\x89PNG" else mutations.as_zip if data[:2] == b"PK" else mutations.as_json
    return act(data, other, rng)


def _good_cells(folder: Path) -> None:
    """Write the right hashes into every cell."""
    from guidon.studies.cells import CONTENT

    for cell in (path.parent for path in folder.rglob("hashes.json")):
        hashes = {name: hash_files(cell / name) for name in CONTENT}
        (cell / "hashes.json").write_text(json.dumps(hashes))


@kind("cells of a study", "cells/*/*/*", make=_study, structure=_part_of_cell, digested=True)
def _(folder: Path) -> str:
    return _results(folder)


@kind(
    "cells with good hashes",
    "cells/*/*/[cmt]*",
    make=_study,
    structure=_part_of_cell,
    share=0.8,
    mend=_good_cells,
    cost=2,
)
def _(folder: Path) -> str:
    from guidon.studies.report.page import write_report

    made = write_report(folder, folder / "page.html", videos=False)
    return digest(_results(folder), *(path.read_bytes() for path in made))


# Training and tuning


def _state(folder: Path) -> None:
    from guidon.training.ema import EMA
    from guidon.training.state import Checkpoint, Progress

    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    checkpoint = Checkpoint(
        folder / "checkpoint.pt",
        {"steps": 3, "optimiser": {"lr": 0.1}},
        dict,
        frozenset(),
        module,
        EMA(module, 0.9),
        [optimiser],
    )
    checkpoint.save(Progress(3, 1.5, 0, ({"step": "1", "loss": "0.5"},)))


@kind("checkpoint.pt of a run", "*.pt", make=_state, structure=mutations.as_zip, digested=True)
def _(folder: Path) -> str:
    from guidon.training.ema import EMA
    from guidon.training.state import Checkpoint

    module = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    ema = EMA(module, 0.9)
    checkpoint = Checkpoint(
        folder / "checkpoint.pt", {"steps": 3, "optimiser": {"lr": 0.1}}, dict, frozenset(), module, ema, [optimiser]
    )
    progress = checkpoint.load()
    return digest(progress, hash_tensors(module.state_dict()), hash_tensors(ema.state_dict()), optimiser.state_dict())


def _sharded_parts(folder: Path) -> tuple[Any, Any, Any, Any]:
    """A checkpoint that is a folder, and the module, averages and optimiser that it holds."""
    from guidon.core.ranks import ALONE
    from guidon.training.ema import EMA
    from guidon.training.sharded import ShardedCheckpoint

    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    optimiser, ema = torch.optim.AdamW(module.parameters()), EMA(module, 0.9)
    identity = {"steps": 3, "optimiser": {"lr": 0.1}}
    path = folder / "checkpoint"
    return ShardedCheckpoint(path, identity, dict, frozenset(), module, ema, [optimiser], ALONE), module, ema, optimiser


def _sharded(folder: Path) -> None:
    from guidon.training.state import Progress

    checkpoint, module, _, optimiser = _sharded_parts(folder)
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    checkpoint.save(Progress(3, 1.5, 0, ({"step": "1", "loss": "0.5"},)))


def _part_of_sharded(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    return (mutations.as_json if data[:1] == b"{" else mutations.as_safetensors)(data, other, rng)


def _good_sharded(folder: Path) -> None:
    """Write the right hashes into state.json."""
    path = folder / "checkpoint" / "state.json"
    try:
        state = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(state, dict):
        state["files"] = {part.name: hash_files(part) for part in path.parent.glob("*.safetensors")}
        state["digest"] = hash_settings({name: value for name, value in state.items() if name != "digest"})
        path.write_text(json.dumps(state))


@kind("sharded checkpoint of a run", "checkpoint/*", make=_sharded, structure=_part_of_sharded, digested=True, cost=3)
def _(folder: Path) -> str:
    checkpoint, module, ema, optimiser = _sharded_parts(folder)
    progress = checkpoint.load()
    return digest(progress, hash_tensors(module.state_dict()), hash_tensors(ema.state_dict()), optimiser.state_dict())


also("sharded checkpoint with good hashes", "sharded checkpoint of a run", digested=False, mend=_good_sharded)


# A user's own clips


def _own_lists(folder: Path) -> None:
    from panned_clips import write_rows

    rows = [{"file_name": f"{number}.png", "caption": f"caption {number}", "label": number % 2} for number in range(5)]
    for name in ("metadata.jsonl", "metadata.csv"):
        (folder / name.rpartition(".")[2]).mkdir()
        write_rows(folder / name.rpartition(".")[2], rows, name)
    (folder / "text").mkdir()
    (folder / "text" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "text" / "0.txt").write_text("caption of a picture")


def _listed(folder: Path) -> str:
    from guidon.training.data.sources import Listing, list_files

    found = Listing()
    list_files(folder, 0, found)
    return digest(found.notes, *map(str, found.defects), *((x.name, x.row, x.captions, x.label) for x in found.given))


def _row(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """A list of files with a changed row."""
    if not data.startswith(b"{"):
        return mutations.as_lines(data, other, rng)
    lines = data.decode().splitlines()
    row = rng.randrange(len(lines))
    said, value = mutations.tree(json.loads(lines[row]), rng)
    lines[row] = json.dumps(value)
    return f"line {row}: {said}", "\n".join(lines).encode()


@kind("lists of own clips", "*/*[xlv]", make=_own_lists, structure=_row)
def _(folder: Path) -> str:
    return _listed(folder)


def _own_shard(folder: Path) -> None:
    import io
    import tarfile

    from PIL import Image

    with tarfile.open(folder / "0.tar", "w") as archive:
        for number in range(3):
            picture = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 50 * number, np.uint8)).save(picture, "png")
            said = json.dumps({"caption": f"caption {number}", "label": number}).encode()
            for suffix, content in (("png", picture.getvalue()), ("json", said)):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _cut(folder: Path, **values: Any) -> str:
    """All clips of a folder, and what cannot be used."""
    from guidon.training.data.checking import check_data
    from guidon.training.data.cutting import cut_out
    from guidon.training.recipe.data import Data

    found = check_data(Data(folder=folder, validation=0.0, **values), "nothing", thorough=True)
    clips = ((clip.given.captions, clip.given.label, cut_out(clip)) for clip in found.clips)
    return digest(found.notes, *map(str, found.defects), *(part for clip in clips for part in clip))


@kind("WebDataset shards of own clips", "*.tar", make=_own_shard)
def _(folder: Path) -> str:
    return _cut(folder, size=(8, 8), frames=1)


def _own_videos(folder: Path) -> None:
    from guidon.media import save_video
    from panned_clips import pan

    for number, name in enumerate(("a.mp4", "b.gif", "c.webp")):
        save_video(pan(number, frames=6, height=16, width=24)[0], folder / name)


@kind("own clips, decoded", "*", make=_own_videos, cost=2)
def _(folder: Path) -> str:
    return _cut(folder, size=(16, 16), frames=3, fps=6.0)


def _own_seen(folder: Path) -> None:
    from guidon.media.streaming import Content
    from guidon.training.data.seen import Seen, SeenFiles

    known = SeenFiles(folder, _own_data(folder))
    (folder / "a").write_text("a file")
    os.utime(folder / "a", (1, 1))
    seen = Seen("0" * 64, "video", 9, 16, 0, 0.1, 2.5, 8.0, (8, 8), ((0, 1), (4, 5)), False, True)
    known.add(Content(folder / "a"), seen)
    known.keep()


def _own_data(folder: Path) -> Any:
    from guidon.training.recipe.data import Data

    return Data(folder=folder, size=(8, 8))


@kind("what was found in own clips", "*.jsonl", make=_own_seen, structure=_row, digested=True)
def _(folder: Path) -> str:
    from guidon.training.data.seen import SeenFiles

    known = SeenFiles(folder, _own_data(folder))
    rows = [found for _, found in known._before.values()]  # by absolute paths, which are others in a copy
    if not rows:
        raise InputError("looked at again")
    return digest(rows)


def _own_stored(folder: Path) -> None:
    from guidon.training.data.shards import Shards

    torch.manual_seed(0)
    Shards(folder, "clips").write({name: torch.randn(2, 3).half() for name in "abc"})


@kind("stored shards of own clips", "*", make=_own_stored, structure=mutations.as_safetensors, digested=True)
def _(folder: Path) -> str:
    from guidon.training.data.shards import Shards

    found = Shards(folder, "clips")
    if not all(name in found for name in "abc"):
        raise InputError("made again")  # a line on stderr has said so
    return digest(*(found.read(name) for name in "abc"))


def _stored(folder: Path) -> None:
    from guidon.training.data.cache import store

    torch.manual_seed(0)
    store(folder / "a.safetensors", "key", {"latents": torch.randn(4, 3).half(), "rollouts": torch.ones(2)})


@kind("stored latents and rollouts", "*", make=_stored, structure=mutations.as_safetensors, digested=True)
def _(folder: Path) -> str:
    from guidon.training.data.cache import stored

    found = stored(folder / "a.safetensors", "key", "latents")
    if found is None:
        raise InputError("made again")  # a line on stderr has said so
    return hash_tensors(found)


PAIRS = {"numbers": range(2, 6), "steps": 2}


def _model_of_pairs() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(facts=SimpleNamespace(latent_shape=(4, 2, 3, 3), channels=4))


def _pairs(folder: Path) -> None:
    from guidon.training.data.cache import store

    torch.manual_seed(0)
    rows, latent = 3, (4, 2, 3, 3)
    block = {
        "numbers": torch.tensor([2, 3, 5]), "varied": torch.ones(rows, dtype=torch.bool),
        "strengths": torch.rand(rows, 4), "clips": torch.randn(rows, *latent).half(),
        "before": torch.randn(rows, PAIRS["steps"], *latent).half(),
        "guided": torch.randn(rows, PAIRS["steps"], *latent).half(),
    }  # fmt: skip
    store(folder / "a.safetensors", "key", block)


@kind("stored pairs of the distillation", "*", make=_pairs, structure=mutations.as_safetensors, digested=True)
def _(folder: Path) -> str:
    from guidon.training.data.cache import stored
    from guidon.training.data.pairs import _fits

    fits = partial(_fits, _model_of_pairs(), PAIRS["steps"], PAIRS["numbers"])
    found = stored(folder / "a.safetensors", "key", "rollouts", fits)
    if found is None:
        raise InputError("made again")  # a line on stderr has said so
    captions = [world.clip("train", 0, number).caption for number in found["numbers"].tolist()]
    assert all(value.isfinite().all() for value in found.values())  # as a run needs them
    return digest(captions, *found.values())


def _good_pairs(data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Pairs of other tensors, whose digest was made good by hand."""
    from guidon.checkpoints.writing import safetensors_bytes

    said, tensors = _other_tensors(parse_safetensors(data), rng)
    return f"good digest, {said}", safetensors_bytes(tensors, {"key": "key", "digest": hash_tensors(tensors, "key")})


also(
    "stored pairs with a good digest",
    "stored pairs of the distillation",
    structure=_good_pairs,
    share=1,
    digested=False,
)


def _log(folder: Path) -> None:
    rows = ["step,seconds,lr_factor,loss,mse", *(f"{k},{k}.5,1,{1 / k:.4f},0.25" for k in range(1, 8))]
    (folder / "log.csv").write_text("\n".join(rows) + "\n")


@kind("log.csv of a run", "*.csv", make=_log, structure=mutations.as_lines)
def _(folder: Path) -> str:
    from guidon.training.log import draw_curves, read_rows

    rows = read_rows(folder / "log.csv")
    draw_curves(rows, folder / "curves.png")
    return digest(rows)


SEARCH: dict[str, Any] = {"prompts": ["a", "b"], "quantities": ["joint", "drift"], "seed": 3}


def _journal(folder: Path) -> None:
    from guidon.analysis.tuning import _Journal

    journal = _Journal(folder / "tuning.json", SEARCH)
    for scale in (1.0, 2.5):
        journal.put((scale, 1.0), {"joint": np.array([0.5, scale]), "drift": np.array([np.nan, 1.0])})


@kind("tuning.json", "*.json", make=_journal, structure=mutations.as_json, digested=True)
def _(folder: Path) -> str:
    from guidon.analysis.tuning import _Journal

    known = _Journal(folder / "tuning.json", SEARCH).known
    return digest({scales: {name: v.tolist() for name, v in found.items()} for scales, found in known.items()})


BLOCK: dict[str, Any] = {"request": {"prompts": ["a", "b"]}, "weights": {"denoiser": "0"}, "bench": "world"}


def _block(folder: Path) -> None:
    from guidon.analysis.calibration import store_block

    store_block(folder / "block.json", BLOCK, 0.5, {"joint": np.array([0.0, 1.0]), "drift": np.array([np.nan, 1.0])})


@kind("blocks of a calibration", "*.json", make=_block, structure=mutations.as_json, digested=True)
def _(folder: Path) -> str:
    from guidon.analysis.calibration import read_block

    values, seconds = read_block(folder / "block.json", BLOCK, ["joint", "drift"], 2)
    return digest(seconds, {name: column.tolist() for name, column in values.items()})


def _fast(folder: Path) -> None:
    fast = {"sampler": "ddpm", "steps": 18, "spacing": "split:0.35,0.33", "timing": "interval:0,0.5", "measured": "4x"}
    (folder / "Guidon.fast.json").write_text(json.dumps(fast))


@kind("fast settings", "*.json", make=_fast, structure=mutations.as_json, share=0.8)
def _(folder: Path) -> str:
    from guidon.models.small.facts import read_fast

    return digest(read_fast(folder / "Guidon.fast.json"))


def _trained(folder: Path) -> None:
    """A model folder of a user's clips, with a network that is not an STDiT."""
    from guidon.models.stdit3.network import STDiT3, STDiT3Config
    from guidon.models.trained.config import ClipFormat, ModelConfig, TextSource
    from guidon.models.trained.writing import write_config, write_network

    torch.manual_seed(0)
    network = STDiT3(
        STDiT3Config((2, 4, 4), caption_channels=8, model_max_length=4, hidden_size=16, depth=1, num_heads=2)
    )
    text = TextSource(kind="t5", folder=Path("t5"), tokens=4)
    config = ModelConfig(
        network="stdit3", layout="released", noise_schedule="flow", diffusion_steps=1000, prediction="flow", text=text,
        vae="frames", downsampling=8, clip=ClipFormat(height=32, width=32, frames=2, fps=8), shown=("a wave",),
    )  # fmt: skip
    write_config(folder, config, network.config)
    write_network(folder, network.state_dict(), {"steps": 1})


@kind("a trained model's configuration and network", "*", make=_trained, structure=_hub_file, share=0.7)
def _(folder: Path) -> str:
    from guidon.models.catalogue import find_facts, find_preset
    from guidon.models.sources import Sources
    from guidon.models.trained.config import read_model_config
    from guidon.models.trained.folder import load_network

    preset = find_preset(str(folder))
    facts = find_facts(preset, Sources())
    config = read_model_config(folder)
    assert config is not None
    weights = load_network(folder, config).state_dict()
    told = [getattr(preset, name) for name in ("sampler", "steps", "cfg_scale", "cfg_channels", "timing", "fps")]
    return digest(told, facts.latent_shape, facts.clip, config.text, *(weights[name] for name in sorted(weights)))


def _adapters(folder: Path) -> None:
    from guidon.models.adapters.files import adapter_config

    generator = torch.Generator().manual_seed(0)
    name = "base_model.model.blocks.0.attn.proj.lora_{}.weight"
    shapes = {"A": (2, 16), "B": (16, 2)}
    tensors = {name.format(part): torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(adapter_config("DiT", 2, 4.0, 0.0, ["blocks.0.attn.proj"], "base"))


@kind("adapters", "*", make=_adapters, structure=_hub_file)
def _(folder: Path) -> str:
    from guidon.models.adapters.files import AdapterSource
    from guidon.models.adapters.merging import merge
    from guidon.models.dit.network import DiT, DiTConfig

    torch.manual_seed(0)
    network = DiT(DiTConfig(4, hidden_size=16, depth=1, num_heads=2))
    merge(network, AdapterSource(path=folder).find())
    return digest(network.blocks[0].attn.proj.weight)


# Clips


def _frames() -> np.ndarray:
    return (world.clip("train", 0, 3).frames()[:5, ::2, ::2] * 255).round().astype(np.uint8)


def _clip(format: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from guidon.media import save_video

        frames = _frames()
        save_video(
            frames[:1] if format == "png" else frames,
            folder / ("a" if format == "frames" else f"a.{format}"),
            8,
            format,
        )

    return make


for _format in ("mp4", "gif", "webp", "png", "frames"):

    @kind(
        f"clips, {_format}",
        "a/*" if _format == "frames" else "a.*",
        make=_clip(_format),
        structure=mutations.as_png if _format in ("png", "frames") else None,
    )
    def _(folder: Path) -> str:
        from guidon.media import load_video

        frames, fps = load_video(next(folder.glob("a*")))
        return digest(frames, fps)


# Source code


CODE = """
import torch

def step(model, x, t, scale, mask):
    half = x[: len(x) // 2]
    combined = torch.cat([half, half], dim=0)
    eps, rest = model(combined, t)[:, :3], model(combined, t)[:, 3:]
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    half_eps = uncond_eps + scale * (cond_eps - uncond_eps)
    return torch.cat([torch.cat([half_eps, half_eps], dim=0), rest], dim=1)
"""


def _code(folder: Path) -> None:
    (folder / "a.py").write_text(CODE * 3)


def _notebook(folder: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# x"]},
        {"cell_type": "code", "source": CODE.splitlines(keepends=True)},
    ]
    (folder / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))


@kind("audited Python", "*", make=_code, structure=mutations.as_code)
def _(folder: Path) -> str:
    from guidon.analysis.audit import audit

    found = audit([path for path in folder.iterdir() if path.is_file()])
    return digest(found.findings, [reason for _, reason in found.unreadable])


also("audited notebooks", "audited Python", make=_notebook, structure=mutations.as_json)


CONFIG = """
num_frames = 16
fps = 24 // 3
image_size = (256, 256)
model = dict(type="STDiT-XL/2", space_scale=0.5, enable_flashattn=True, from_pretrained="w.pth")
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0)
prompt = ["a cat", 'a dog{"reference_path": "a.png;b.mp4", "mask_strategy": "0;0,1,0,-1"}', "|0|a cow|2|a pig"]
loop = 2
"""


@kind(
    "Open-Sora's configurations",
    "*",
    make=lambda folder: (folder / "a.py").write_text(CONFIG),
    structure=mutations.as_code,
)
def _(folder: Path) -> str:
    from guidon.bridges.opensora.commands import translate
    from guidon.bridges.opensora.config import read_config

    path = folder / "a.py"
    found = translate(read_config(path), path)
    return digest(repr((found.version, found.commands, found.left_out)))


@kind(
    "measured errors of bf16",
    "*",
    make=lambda folder: (folder / "a.json").write_text(json.dumps({"error": 0.0161, "of": {"check": "dtype"}})),
    structure=mutations.as_json,
)
def _(folder: Path) -> str:
    from guidon.pipeline.precision import read_error

    return repr(read_error(folder / "a.json"))
