"""The networks of the learned parts: CLIP or SigLIP, DINO, LPIPS and the aesthetic head. All compute in fp32.

Frames go through a network ``BATCH`` at a time, and clip by clip, so that a clip's numbers depend on no other clip.
LPIPS is written out here, because the packages that have it need torchvision.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints import read_tensors
from ..checkpoints.finding import AGAIN
from ..core.errors import InputError, setting
from ..core.extras import require
from ..core.reading import read_object, reading
from ..core.warn import warn
from ..models.pretrained import read_network, reading_quietly
from .choice import FRAMES_ALONE, FRAMES_AND_TEXT, aesthetic_file, lpips_files

BATCH = 8  # frames
LONGEST_SIDE = 4096  # px of a frame as a network sees it
PILLOW_BICUBIC = 3
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training pictures, for a folder without a preprocessor_config.json."""


@dataclass(frozen=True)
class Preparation:
    """How frames become the input of a network, as its preprocessor_config.json says."""

    size: tuple[int, int] | int
    """Height and width to resize to; or the length of the shorter side."""
    crop: tuple[int, int] | None
    """Height and width of the middle that is kept after the resize; None keeps all."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int
    """Pillow's number of the filter: 2 bilinear, 3 bicubic."""
    multiple: int = 1
    """Sides become multiples of it: of the network's patches."""

    @classmethod
    def read(cls, folder: Path, size: int, *, patch: int | None = None) -> Preparation:
        """That of a folder.

        Args:
            folder: with a preprocessor_config.json, or else CLIP's values hold.
            size: px, the side of the pictures on which the network was trained.
            patch: of a network that takes pictures of any size: whole frames are kept, with sides that are multiples
                of it.

        Raises:
            InputError: the file cannot be read.
        """
        path, what = folder / "preprocessor_config.json", "the preparation of pictures"
        values = read_object(path, what) if path.is_file() else {}
        with reading(path, what):
            resize, crop = _sides(values.get("size", size)), _sides(values.get("crop_size", size))
            crop = crop if isinstance(crop, tuple) else (crop, crop)
            if patch is not None:  # the shorter side becomes that of the crop, and nothing is cut off
                resize, kept = min(crop) if values.get("do_center_crop", True) else _shorter(resize), None
            else:
                kept = crop if values.get("do_center_crop", not isinstance(resize, tuple)) else None
            mean, std = (
                tuple(float(v) for v in values.get(key, usual))
                for key, usual in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
            )
            if len(mean) != 3 or len(std) != 3 or not all(v > 0 for v in std):
                raise ValueError(f"image_mean is {mean} and image_std is {std}")
            resample = int(values.get("resample", PILLOW_BICUBIC))
            if resample not in range(6):
                raise ValueError(f"resample is {resample}")
            return cls(resize, kept, mean, std, resample, patch or 1)

    def __call__(self, frames: np.ndarray) -> Tensor:
        """uint8 (T, H, W, 3) -> (T, 3, h, w)."""
        image = require("PIL.Image", "learned metrics", "metrics", package="pillow")
        height, width = self._resized(*frames.shape[1:3])
        if (height, width) != frames.shape[1:3]:
            small = [image.fromarray(own).resize((width, height), self.resample) for own in frames]
            frames = np.stack([np.asarray(own) for own in small])
        if self.crop is not None:
            top, left = ((have - want) // 2 for have, want in zip((height, width), self.crop, strict=True))
            frames = frames[:, top : top + self.crop[0], left : left + self.crop[1]]
        values = torch.from_numpy(np.ascontiguousarray(frames)).float().permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (values - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size
        shorter, step = min(height, width), self.multiple
        if self.multiple == 1:  # as transformers rounds
            sides = [self.size if side == shorter else int(self.size * side / shorter) for side in (height, width)]
        else:
            sides = [max(1, round(self.size * side / shorter / step)) * step for side in (height, width)]
        if max(sides) > LONGEST_SIDE:
            raise InputError(f"a frame of {width}x{height} is too long for learned metrics: cut it")
        return sides[0], sides[1]


def _sides(size: Any) -> tuple[int, int] | int:
    """A size of a preprocessor_config.json: height and width, or the shorter side."""
    if isinstance(size, dict) and "shortest_edge" in size:
        size = size["shortest_edge"]
    found = (int(size["height"]), int(size["width"])) if isinstance(size, dict) else int(size)
    if not all(0 < side <= LONGEST_SIDE for side in (found if isinstance(found, tuple) else (found,))):
        raise ValueError(f"a size is {found}, expected 1 to {LONGEST_SIDE}")
    return found


def _shorter(size: tuple[int, int] | int) -> int:
    return min(size) if isinstance(size, tuple) else size


def _tensor(output: Any) -> Tensor:
    """The features in what ``get_image_features`` returns: a tensor, or from transformers 5 on an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _finite(values: Tensor, source: Path) -> np.ndarray:
    """The values, which would be read as undefined if they were not finite.

    Raises:
        InputError: they are not.
    """
    found = values.cpu().numpy()
    if not np.isfinite(found).all():
        raise InputError(f"the weights in {source} give values that are not finite: {AGAIN}")
    return found


def _batches(frames: np.ndarray) -> Iterator[np.ndarray]:
    return (frames[start : start + BATCH] for start in range(0, len(frames), BATCH))


def _library(part: str) -> Any:
    return require("transformers", f"the part {part} of a bench", "metrics")


class FrameTextEncoder:
    """CLIP or SigLIP: features of frames and of texts that can be compared."""

    def __init__(self, model: Any, tokenizer: Any, prepare: Preparation, source: Path) -> None:
        self.model, self.tokenizer, self.prepare, self.source = model, tokenizer, prepare, source

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> FrameTextEncoder:
        """Read the networks and the tokenizer from a folder in hub layout.

        Raises:
            InputError: a file is missing, damaged or incomplete, or another model's.
        """
        transformers = _library("clip")
        with reading_quietly(folder, "a CLIP"):
            config = _read_config(transformers, folder, FRAMES_AND_TEXT)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if len(tokenizer) > config.text_config.vocab_size:
                raise InputError(
                    f"the tokenizer in {folder} is another model's: it has {len(tokenizer)} tokens, the model reads "
                    f"{config.text_config.vocab_size}"
                )
            kind = transformers.CLIPModel if config.model_type == "clip" else transformers.SiglipModel
            model = read_network(kind, folder, config, torch.float32)
        prepare = Preparation.read(folder, config.vision_config.image_size)
        return cls(model.to(device), tokenizer, prepare, folder)

    @torch.inference_mode()
    def frames(self, frames: np.ndarray) -> np.ndarray:
        """Features of length 1, (T, F), of uint8 frames (T, H, W, 3)."""
        rows = [_tensor(self.model.get_image_features(pixel_values=self.prepare(own).to(self.model.device)))
                for own in _batches(frames)]  # fmt: skip
        return _finite(F.normalize(torch.cat(rows).double(), dim=-1), self.source)

    @torch.inference_mode()
    def text(self, caption: str) -> np.ndarray:
        """Features of length 1, (F,), of a caption. A longer one than the model reads is cut, with a warning."""
        clip, most = self.model.config.model_type == "clip", self.model.config.text_config.max_position_embeddings
        beyond = len(self.tokenizer(caption).input_ids) - most
        if beyond > 0:
            warn(f"{beyond} tokens beyond the {most} that the bench reads are cut from {caption[:60]!r}")
        # SigLIP was trained on texts that are padded to the full length, without a mask.
        padding = True if clip else "max_length"
        batch = self.tokenizer([caption], padding=padding, max_length=most, truncation=True, return_tensors="pt")
        given = {"attention_mask": batch.attention_mask.to(self.model.device)} if clip else {}
        row = _tensor(self.model.get_text_features(input_ids=batch.input_ids.to(self.model.device), **given))
        return _finite(F.normalize(row[0].double(), dim=-1), self.source)


class FrameEncoder:
    """DINO, DINOv2 or DINOv3: features of frames. It sees whole frames, of any proportions."""

    def __init__(self, model: Any, prepare: Preparation, source: Path) -> None:
        self.model, self.prepare, self.source = model, prepare, source

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> FrameEncoder:
        """Read the network from a folder in hub layout.

        Raises:
            InputError: a file is missing, damaged or incomplete, or another model's.
        """
        transformers = _library("dino")
        with reading_quietly(folder, "a DINO"):
            config = _read_config(transformers, folder, FRAMES_ALONE)
            kinds = {"vit": "ViTModel", "dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel",
                     "dinov3_vit": "DINOv3ViTModel"}  # fmt: skip
            if not hasattr(transformers, kinds[config.model_type]):
                raise InputError(f"transformers {transformers.__version__} has no {config.model_type}: upgrade it")
            # The pooling layer of a ViT is not DINO's, and its weights are not in the files.
            options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
            model = read_network(
                getattr(transformers, kinds[config.model_type]), folder, config, torch.float32, **options
            )
        prepare = Preparation.read(folder, config.image_size, patch=config.patch_size)
        return cls(model.to(device), prepare, folder)

    @torch.inference_mode()
    def frames(self, frames: np.ndarray) -> np.ndarray:
        """Features (T, F) of uint8 frames (T, H, W, 3): those of the class token."""
        given = {"interpolate_pos_encoding": True} if self.model.config.model_type == "vit" else {}
        rows = [self.model(pixel_values=self.prepare(own).to(self.model.device), **given).last_hidden_state[:, 0]
                for own in _batches(frames)]  # fmt: skip
        return _finite(torch.cat(rows).double(), self.source)


def _read_config(transformers: Any, folder: Path, kinds: tuple[str, ...]) -> Any:
    read_object(folder / "config.json", "a configuration")  # refuses what the library would stumble over
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in kinds:
        raise InputError(f"{folder} holds a {config.model_type} model, expected {' or '.join(kinds)}")
    return config


class AestheticHead:
    """LAION's aesthetic head: linear layers, one after the other, on the features of CLIP at length 1.

    Version 1 (LAION-AI/aesthetic-predictor) is one layer; version 2 (improved-aesthetic-predictor) is five, and has no
    activation between them.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], source: Path) -> None:
        self.layers, self.source = layers, source

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> AestheticHead:
        """Read the layers from a file of tensors.

        Raises:
            InputError: the file cannot be read, or does not hold linear layers that end in one number.
        """
        tensors = read_tensors(aesthetic_file(path)).tensors
        names = sorted((n.removesuffix("weight") for n in tensors if n.endswith("weight")), key=_numbers)
        layers = [(tensors[f"{n}weight"].float().to(device), tensors.get(f"{n}bias")) for n in names]
        sizes = [tuple(weight.shape) for weight, _ in layers]
        places = [_numbers(n) for n in names]
        if any(a and b and b[-1] - a[-1] > 2 for a, b in itertools.pairwise(places)):
            # Between the layers of the linear heads is a dropout at the most; their variants have a ReLU too.
            raise InputError(f"{path} holds an aesthetic head with activations: give one whose name says linear")
        whole = len(tensors) == 2 * len(layers) and all(
            bias is not None and weight.ndim == 2 and bias.shape == weight.shape[:1] for weight, bias in layers
        )
        if not (whole and sizes and sizes[-1][0] == 1 and all(a[0] == b[1] for a, b in itertools.pairwise(sizes))):
            raise InputError(
                f"{path} holds no aesthetic head: expected linear layers that end in one number, found {sizes[:6]}"
            )
        return cls([(weight, bias.float().to(device)) for weight, bias in layers if bias is not None], path)

    @torch.inference_mode()
    def score(self, features: np.ndarray) -> np.ndarray:
        """The score of each frame, (T,), from CLIP's features of length 1, (T, F).

        Raises:
            InputError: they are another CLIP's.
        """
        wanted = self.layers[0][0].shape[1]
        if features.shape[1] != wanted:
            raise InputError(
                f"{self.source} is for a CLIP with {wanted} features, {setting('clip')} has {features.shape[1]}: "
                "LAION's heads are for openai/clip-vit-large-patch14"
            )
        values = torch.from_numpy(features).float().to(self.layers[0][0].device)
        for weight, bias in self.layers:
            values = F.linear(values, weight, bias)
        return _finite(values[:, 0].double(), self.source)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdecimal())


@dataclass(frozen=True)
class Backbone:
    """The convolutions of a classifier of torchvision, in stages. LPIPS compares what each stage ends with."""

    stages: tuple[tuple[tuple[int, int, int], ...], ...]
    """For each stage its convolutions: number among torchvision's ``features``, stride, padding."""
    pooled: tuple[int, ...]
    """The stages that begin with a max pooling."""
    pool: int
    """The side of its window; the stride is 2."""
    smallest: int
    """px, the shortest side of a frame."""


ALEXNET = Backbone((((0, 4, 2),), ((3, 1, 2),), ((6, 1, 1),), ((8, 1, 1),), ((10, 1, 1),)), (1, 2), 3, 31)
VGG16 = Backbone(
    tuple(tuple((n, 1, 1) for n in stage) for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))),
    (1, 2, 3, 4), 2, 16,
)  # fmt: skip
SHIFT, RANGE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS v0.1: of values in [-1, 1], before the backbone


class Lpips:
    """LPIPS v0.1 (1801.03924): weighted distances between the features of two frames in a classifier's stages."""

    def __init__(
        self, backbone: Backbone, convolutions: dict[int, tuple[Tensor, Tensor]], heads: list[Tensor], source: Path
    ) -> None:
        self.backbone, self.convolutions, self.heads, self.source = backbone, convolutions, heads, source

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Lpips:
        """Read the backbone and the linear layers from a folder; see ``choice.lpips_files``.

        Raises:
            InputError: a file is missing, damaged or another network's.
        """
        features, linear = lpips_files(folder)
        backbone = ALEXNET if features.name.startswith("alexnet") else VGG16
        tensors, layers = read_tensors(features).tensors, read_tensors(linear).tensors
        with reading(features, "the backbone of LPIPS"):
            convolutions = {
                number: (tensors[f"features.{number}.weight"].float(), tensors[f"features.{number}.bias"].float())
                for stage in backbone.stages
                for number, *_ in stage
            }
        with reading(linear, "the linear layers of LPIPS"):
            heads = [layers[f"lin{k}.model.1.weight"].float() for k in range(len(backbone.stages))]
            wide = [convolutions[stage[-1][0]][0].shape[0] for stage in backbone.stages]
            if [tuple(head.shape) for head in heads] != [(1, channels, 1, 1) for channels in wide]:
                raise ValueError(f"they are for {[head.shape[1] for head in heads]} channels, the backbone has {wide}")
        moved = {number: (weight.to(device), bias.to(device)) for number, (weight, bias) in convolutions.items()}
        return cls(backbone, moved, [head.to(device) for head in heads], folder)

    @torch.inference_mode()
    def changes(self, frames: np.ndarray) -> tuple[float, float]:
        """The mean distance of a frame from the one before, and from the first one; NaN for one frame.

        Args:
            frames: uint8 (T, H, W, 3).

        Raises:
            InputError: the frames are too small for the backbone.
        """
        if min(frames.shape[1:3]) < self.backbone.smallest:
            raise InputError(
                f"frames of {frames.shape[2]}x{frames.shape[1]} are too small for LPIPS: it needs sides of at least "
                f"{self.backbone.smallest}"
            )
        first: list[Tensor] | None = None
        last: list[Tensor] = []
        following, from_first = list[Tensor](), list[Tensor]()
        for batch in _batches(frames):
            own = self._features(batch)
            if first is None:
                first = [stage[:1] for stage in own]
                before = [torch.cat((a, b[:-1])) for a, b in zip(first, own, strict=True)]
            else:
                before = [torch.cat((a, b[:-1])) for a, b in zip(last, own, strict=True)]
            following.append(self._distance(before, own))
            from_first.append(self._distance(first, own))
            last = [stage[-1:] for stage in own]
        if len(frames) < 2:
            return float("nan"), float("nan")
        both = torch.stack((torch.cat(following), torch.cat(from_first)))[:, 1:].double().mean(1)
        next_one, first_one = _finite(both, self.source).tolist()
        return next_one, first_one

    def distance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """LPIPS between frames, (T,), of uint8 (T, H, W, 3) each."""
        with torch.inference_mode():
            return self._distance(self._features(a), self._features(b)).cpu().numpy()

    def _features(self, frames: np.ndarray) -> list[Tensor]:
        """What each stage ends with, at length 1 over the channels."""
        device = self.heads[0].device
        values = torch.from_numpy(np.ascontiguousarray(frames)).to(device).float().permute(0, 3, 1, 2) / 127.5 - 1
        shift, scale = (torch.tensor(v, device=device).view(3, 1, 1) for v in (SHIFT, RANGE))
        values, found = (values - shift) / scale, list[Tensor]()
        for number, stage in enumerate(self.backbone.stages):
            if number in self.backbone.pooled:
                values = F.max_pool2d(values, self.backbone.pool, 2)
            for name, stride, padding in stage:
                values = F.relu(F.conv2d(values, *self.convolutions[name], stride=stride, padding=padding))
            found.append(values / (values.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def _distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """1801.03924, eq. 1: the weighted squared differences, mean over places and sum over stages."""
        parts = [F.conv2d((x - y).square(), head).mean((1, 2, 3)) for x, y, head in zip(a, b, self.heads, strict=True)]
        return torch.stack(parts).sum(0)
