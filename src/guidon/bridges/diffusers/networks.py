"""DiT and PixArt from a diffusers pipeline in memory: its weights in Guidon's networks, beside its other parts.

No file is written. Tensors are shared with the pipeline, except for the projections of attention that Guidon's networks
keep as one matrix: those are copied. The pipeline stays as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ...checkpoints import TensorFile
from ...core.devices import DtypeName, dtype_name, torch_dtype
from ...core.errors import InputError, nearest, setting
from ...core.hashing import hash_samples, hash_tensors
from ...diffusion import NoiseSchedule, Process
from ...diffusion.prediction import Parameterization
from ...models.dit.classes import ClassLabels
from ...models.dit.network import DiT
from ...models.family import Checkpoint, Facts, Family, Preset, Reader
from ...models.model import Model
from ...models.network import Network
from ...models.pixart.network import PixArt
from ...models.registry import find_family
from ...models.stages import Stage
from ...models.text import TextEncoder
from ...models.text.features import load_features
from ...models.text.t5 import T5Encoder
from ...models.vae.frames import refuse_shifted

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

Frequencies = Literal["original", "diffusers"]
FAMILIES = {"DiTTransformer2DModel": "DiT", "PixArtTransformer2DModel": "PixArt"}  # diffusers' networks, our families
PIPELINES = "DiTPipeline, PixArtAlphaPipeline or PixArtSigmaPipeline"
PREDICTIONS: Mapping[str, Parameterization] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
HASHED = 1024  # values of each tensor that go into the hash of a part


@dataclass(frozen=True)
class Adopted:
    """What ``guidon.Pipeline`` is made of."""

    preset: Preset[None]
    """The settings that the original's authors recommend, in the pipeline's precision."""
    model: Model
    device: torch.device
    """Where the pipeline runs."""


def adopt(pipe: DiffusionPipeline, *, features: Path | None, frequencies: Frequencies | None) -> Adopted:
    """The model in a diffusers pipeline; see ``guidon.from_diffusers``.

    Raises:
        InputError: the pipeline is of another family, or one of its parts is missing or unsuitable.
    """
    # Find the network's weights, and where they run.
    transformer, family = _find_transformer(pipe)
    dtype = _find_dtype(transformer)
    home = next(transformer.parameters()).device
    # Weights on the CPU may be offloaded from another device, which the pipeline knows.
    device = home if home.type != "cpu" else torch.device(cast("Any", pipe)._execution_device)

    # Make the network now, so that its errors come now. Sampling makes it again, on its device, from the same tensors.
    reader, preset = family.reader(), family.presets[0]
    checkpoint = _recognise(reader, transformer, Path(f"the transformer of this {type(pipe).__name__}"))
    known = _find_settings(pipe, family.name, frequencies)
    network = reader.load(checkpoint, known, {}, torch_dtype(dtype))
    make = partial(_make_network, reader, checkpoint, known, device)

    # Take its other parts, and what is particular to a family.
    if isinstance(network, DiT):
        text, text_hashes = _find_classes(pipe, network, features)
        prompts: dict[str, Any] = {"check_prompts": text.check}
        own: dict[str, Any] = {"originals": preset.originals}
    else:
        network = cast("PixArt", network)
        text, text_hashes = _find_captions(pipe, features)
        prompts = {}
        own = {"negative_prompt": "", "originals": ()}  # diffusers' checkpoints have no null caption
        own["sizes"] = ("size",) if network.config.micro_condition or network.config.any_size else ()
    schedule = _find_schedule(pipe)
    vae = PipelineVAE(pipe, device, network.config.in_channels)
    name = pipe.name_or_path or type(pipe).__name__
    model = Model(
        text=Stage(lambda: text, keep=True),
        network=Stage(make, keep=home == device),
        vae=Stage(lambda: vae, keep=True),
        schedule=schedule,
        process=_find_process(pipe, network.config.learn_sigma),
        facts=Facts(
            latent_shape=network.latent_shape,
            patch=(network.config.patch_size,) * 2,
            downsampling=vae.downsampling,
            timesteps=len(schedule),
            bench=preset.bench,
            **prompts,
        ),
        hashes={"checkpoint": _hash(transformer), "vae": _hash(vae.vae)} | text_hashes,
    )
    summary = f"{family.name} of a {type(pipe).__name__}"
    preset = replace(preset, name=name, summary=summary, weights=None, dtype=dtype, **own)
    return Adopted(cast("Preset[None]", preset), model, device)


class PipelineText:
    """A ``TextEncoder``: the T5 of a diffusers pipeline, offloaded after use if the pipeline offloads."""

    def __init__(self, pipe: DiffusionPipeline, encoder: T5Encoder) -> None:
        self.pipe, self.encoder = pipe, encoder

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """See ``TextEncoder``."""
        try:
            return self.encoder.encode(prompts)
        finally:
            self.pipe.maybe_free_model_hooks()


class PipelineVAE:
    """An ``Autoencoder``: that of a diffusers pipeline, called as the pipeline calls it, one image at a time.

    So its tiling, its precision and its offloading stay as the user chose them.

    Args:
        pipe: the pipeline.
        device: where the pipeline runs.
        channels: latent channels of the network.

    Raises:
        InputError: the pipeline has no autoencoder, or one of another kind.
    """

    def __init__(self, pipe: DiffusionPipeline, device: torch.device, channels: int) -> None:
        self.pipe, self.device = pipe, device
        self.vae: Any = getattr(pipe, "vae", None)
        where = f"the autoencoder of this {type(pipe).__name__}"
        if "AutoencoderKL" not in _kinds(self.vae):
            raise InputError(f"{where} is {_described(self.vae)}, expected an AutoencoderKL")
        refuse_shifted(self.vae.config, where)
        if self.vae.config.latent_channels != channels:
            raise InputError(f"{where} has {self.vae.config.latent_channels} latent channels, the network {channels}")
        self.downsampling = 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """The scaled posterior means; see ``Autoencoder``."""
        return self._each(frames, lambda x: self.vae.encode(x).latent_dist.mean * self.vae.config.scaling_factor)

    @torch.inference_mode()
    def decode(self, latents: Tensor, micro_batch: int = 1, frames: int | None = None) -> Tensor:
        """See ``Autoencoder``. It decodes one frame at a time, as the pipelines do, whatever ``micro_batch`` is."""
        decoded = self._each(latents, lambda x: self.vae.decode(x / self.vae.config.scaling_factor).sample)
        return decoded.clamp(-1, 1)

    def _each(self, x: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
        """Convert images (B, C, H, W), or the frames of videos (B, C, T, H, W)."""
        images = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x
        hooked = hasattr(self.vae, "_hf_hook") or hasattr(self.vae, "_diffusers_hook")  # a hook moves it when called
        images = images.to(self.device if hooked else self.vae.device, self.vae.dtype)
        try:
            converted = torch.cat([convert(image) for image in images.split(1)])
        finally:
            self.pipe.maybe_free_model_hooks()
        return converted.unflatten(0, (len(x), -1)).transpose(1, 2) if x.ndim == 5 else converted


def _kinds(part: object) -> list[str]:
    """The names of the classes that an object is of. They tell what it is without importing diffusers."""
    return [kind.__name__ for kind in type(part).__mro__]


def _described(part: object) -> str:
    return "missing" if part is None else f"of type {type(part).__name__}"


def _find_transformer(pipe: DiffusionPipeline) -> tuple[nn.Module, Family]:
    """The denoiser of a supported pipeline, and its family.

    Raises:
        InputError: it is no pipeline, or one of another family.
    """
    if "DiffusionPipeline" not in _kinds(pipe):
        raise InputError(f"given {pipe!r:.60}, expected a diffusers pipeline in memory: a {PIPELINES}")
    transformer = getattr(pipe, "transformer", None)
    transformer = getattr(transformer, "_orig_mod", transformer)  # of torch.compile
    name = next((FAMILIES[kind] for kind in _kinds(transformer) if kind in FAMILIES), None)
    if name is None:
        raise InputError(
            f"Guidon has no network for a {type(pipe).__name__} whose transformer is {_described(transformer)}: "
            f"give a {PIPELINES}, or put guidance on your pipeline with guidon.apply"
        )
    return cast("nn.Module", transformer), find_family(name)


def _find_dtype(transformer: nn.Module) -> DtypeName:
    """The precision of its weights.

    Raises:
        InputError: they are quantised, or not in memory.
    """
    stored = {parameter.dtype for parameter in transformer.parameters()}
    name = dtype_name(next(transformer.parameters()).dtype)
    if name is None or not all(map(dtype_name, stored)):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
        raise InputError(f"the weights are stored as {names}: load the pipeline in float32, bfloat16 or float16")
    if any(parameter.is_meta for parameter in transformer.parameters()):
        raise InputError(
            "the weights are not in memory, as with enable_sequential_cpu_offload: use enable_model_cpu_offload instead"
        )
    return name


def _find_settings(pipe: DiffusionPipeline, family: str, frequencies: Frequencies | None) -> dict[str, Any]:
    """Configuration values that the weights do not give.

    Raises:
        InputError: the frequencies do not exist, or are not a matter of this family.
    """
    valid = get_args(Frequencies)
    if frequencies is not None and frequencies not in valid:
        raise InputError(f"{setting('frequencies')} {frequencies!r} does not exist{nearest(frequencies, valid)}")
    if family == "DiT":
        if frequencies is None:
            return {}
        if frequencies == "original":
            return {"frequency_shift": 0}
        return {"frequency_shift": 1, "mlp_norm_eps": cast("Any", pipe).transformer.config.get("norm_eps", 1e-5)}
    if frequencies == "diffusers":
        raise InputError(f"PixArt has the same frequencies in diffusers: leave out {setting('frequencies')}")
    return {"any_size": any("Sigma" in kind for kind in _kinds(pipe))}


def _recognise(reader: Reader, transformer: nn.Module, where: Path) -> Checkpoint:
    """The network's tensors under the released names.

    Raises:
        InputError: tensors are missing that every network of the family has.
    """
    # fuse_qkv_projections adds copies of the projections, joined.
    tensors = {
        name: value
        for name, value in transformer.state_dict().items()
        if not any(copy in name for copy in (".to_qkv.", ".to_kv."))
    }
    config = dict(cast("Any", transformer).config)
    checkpoint = reader.recognise(TensorFile(where, "diffusers pipeline", tensors, (), config, {}))
    if checkpoint is None:
        raise InputError(f"{where} has not the tensors of its family: merge its adapters into it, or unload them")
    return checkpoint


def _make_network(
    reader: Reader, checkpoint: Checkpoint, known: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> Network[Any]:
    """The network on its device. Tensors are copied only to another device or precision."""
    network = reader.load(checkpoint, known, {}, dtype).to(device).eval().requires_grad_(False)
    return cast("Network[Any]", network)


def _find_classes(pipe: DiffusionPipeline, network: DiT, features: Path | None) -> tuple[ClassLabels, dict[str, str]]:
    """Class numbers and names, with the hashes that a manifest holds."""
    if features is not None:
        raise InputError(f"DiT is conditioned on classes: leave out {setting('features')}")
    return ClassLabels(network.config.num_classes, getattr(pipe, "labels", None)), {}


def _find_captions(pipe: DiffusionPipeline, features: Path | None) -> tuple[TextEncoder, dict[str, str]]:
    """The pipeline's T5, or stored features, with the hashes that a manifest holds.

    Raises:
        InputError: there are neither, or the features are of another length.
    """
    tokens = inspect.signature(cast("Any", pipe).encode_prompt).parameters["max_sequence_length"].default
    if features is not None:
        return load_features(features, tokens), {"text": hash_samples([features])}
    encoder, tokenizer = getattr(pipe, "text_encoder", None), getattr(pipe, "tokenizer", None)
    if encoder is None or tokenizer is None:
        missing = "text_encoder" if encoder is None else "tokenizer"
        raise InputError(
            f"this {type(pipe).__name__} has no {missing}: load it with one, or give the file of `guidon encode` as "
            f"{setting('features')}"
        )
    hashes = {"text": _hash(encoder), "text_dtype": str(encoder.dtype).removeprefix("torch.")}
    return PipelineText(pipe, T5Encoder.wrap(encoder, tokenizer, tokens)), hashes


def _find_schedule(pipe: DiffusionPipeline) -> NoiseSchedule:
    """The noise levels that the network was trained at.

    Raises:
        InputError: the pipeline's scheduler has none.
    """
    scheduler: Any = cast("Any", pipe).scheduler
    config = dict(scheduler.config)
    if config.get("rescale_betas_zero_snr"):
        raise InputError(
            f"the scheduler of this {type(pipe).__name__} has rescale_betas_zero_snr=True, whose last level is noise "
            "alone: give one with False"
        )
    if all(config.get(name) == value for name, value in BETAS.items()) and config.get("trained_betas") is None:
        return NoiseSchedule.named("linear", 1000)  # in float64, as in the originals; the scheduler's are float32
    if getattr(scheduler, "betas", None) is None:
        raise InputError(f"the scheduler of this {type(pipe).__name__} is {_described(scheduler)}, which has no betas")
    return NoiseSchedule.from_betas(scheduler.betas.double().cpu().numpy())


def _find_process(pipe: DiffusionPipeline, learned_variance: bool) -> Process:
    """What the network predicts.

    Raises:
        InputError: something that Guidon does not sample from.
    """
    predicted = dict(cast("Any", pipe).scheduler.config).get("prediction_type", "epsilon")
    if predicted not in PREDICTIONS:
        raise InputError(
            f"the scheduler of this {type(pipe).__name__} has prediction_type {predicted!r}, expected "
            f"{', '.join(PREDICTIONS)}"
        )
    # DiT's code without a learned variance takes beta as variance
    return Process(PREDICTIONS[predicted], "learned_range" if learned_variance else "fixed_large")


def _hash(module: nn.Module) -> str:
    """A hash of a part's weights: of values spread evenly over each tensor."""
    samples: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if not value.is_meta:
            samples[name] = value.flatten()[:: max(1, value.numel() // HASHED)].cpu().contiguous()
    return hash_tensors(samples)
