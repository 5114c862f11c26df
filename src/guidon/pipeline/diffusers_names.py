"""The names that diffusers gives to what a pipeline of guidon has, and to what it has not.

A name of diffusers is accepted where it means the same. Elsewhere it is refused, and the message says what to give.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..core.devices import dtype_name
from ..core.errors import InputError, nearest, quoted
from ..guidance import plain_scale
from ..media.conditioning import CHOICES as CONDITIONING
from ..models.sources import Sources
from ..request import KEYWORDS, is_list

RENAMED = {
    "guidance_scale": "cfg_scale", "num_inference_steps": "steps", "num_frames": "frames", "generator": "seed",
    "height": "size", "width": "size", "num_videos_per_prompt": "num_samples", "num_images_per_prompt": "num_samples",
    "prompt": "prompts", "image": "first_frame", "last_image": "last_frame", "video": "edit",
    "strength": "edit_strength",
}  # fmt: skip
"""Keywords of diffusers' pipelines, and ours."""

_EMBEDDED = "give the prompts as text; guidon.load(features=...) reads features that `guidon encode` stored"
_RATE = "a model has a rate of its own; give fps to video.save"
_ROOM = "frames are decoded in as much memory as there is"
_RUN = "give it to a call, or to generate"
_SAMPLES = "a plan takes samples, such as range(3)"
_OFFLOAD = "call guidon.load(..., offload='stages')"

ELSEWHERE = {
    "callback": "give callback_on_step_end, or on_step",
    "callback_on_step_end": _RUN,
    "callback_steps": "a callback is called after every step",
    "class_labels": "give class numbers as text, pipe('207')",
    "clean_caption": "captions are cleaned as those of the model's training were",
    "decode_chunk_size": _ROOM,
    "device": "give it to guidon.load, or call pipe.to(device)",
    "fps": _RATE,
    "frame_rate": _RATE,
    "guidance_scale_2": "give cfg_scale, and a timing if it is to change on the way",
    "interval": "give timing='interval:0,0.5'",
    "max_sequence_length": "the length of a text is the model's own",
    "latents": _RUN,
    "negative_prompt_attention_mask": _EMBEDDED,
    "negative_prompt_embeds": _EMBEDDED,
    "num_images_per_prompt": _SAMPLES,
    "num_samples": _SAMPLES,
    "num_videos_per_prompt": _SAMPLES,
    "on_step": _RUN,
    "oscillate": "give timing='oscillation:10'",
    "prompt_attention_mask": _EMBEDDED,
    "prompt_embeds": _EMBEDDED,
    "ramp": "give timing='linear', 'cosine' or 'exponential:0.7'",
    "scheduler": "give sampler",
    "sequential": _RUN,
    "sigmas": "give spacing, such as 'karras'",
    "timesteps": "give spacing, such as 'at:999,500,0'",
    "torch_dtype": "give dtype",
    "trace": _RUN,
    "true_cfg_scale": "give cfg_scale",
}
"""Keywords that diffusers' pipelines, or ours in another place, take; and what to do where they are not valid."""

LOADED = {
    "cache_dir": "give the folders as checkpoint, text_encoder and vae",
    "device_map": "give device",
    "torch_dtype": "give dtype",
    "use_safetensors": "both kinds of file are read",
    "variant": "give the file as checkpoint",
}
"""Keywords of diffusers' ``from_pretrained``, and what to do at ``guidon.load``."""

ATTRIBUTES = {
    "_guidance_scale": "give a timing in the call, such as 'interval:0,0.5'",
    "components": "they are in pipe.model",
    "enable_attention_slicing": "give sequential=True in the call to use less memory",
    "enable_model_cpu_offload": _OFFLOAD,
    "enable_sequential_cpu_offload": _OFFLOAD,
    "enable_vae_slicing": "clips are decoded one by one",
    "enable_vae_tiling": _ROOM,
    "enable_xformers_memory_efficient_attention": "torch's own attention is used",
    "from_pretrained": "call guidon.from_pretrained",
    "guidance_scale": "give cfg_scale in the call",
    "load_lora_weights": "give lora to guidon.load",
    "num_timesteps": "give steps in the call",
    "scheduler": "choose a sampler in the call, such as sampler='ddim'",
    "text_encoder": "it is pipe.model.text",
    "transformer": "it is pipe.model.network",
    "unet": "it is pipe.model.network",
    "vae": "it is pipe.model.vae",
}
"""Attributes of diffusers' pipelines, and what to do here."""


def own_names(options: Mapping[str, Any], also: Collection[str] = (), prompts: Any = None) -> dict[str, Any]:
    """A call's options under the names of guidon. The options that are None are left out, but for the channels.

    Args:
        options: what was given.
        also: names that are valid beside the settings of a request.
        prompts: those that are given. A seed is drawn for each from a generator.

    Raises:
        InputError: a name does not exist, or a setting is given twice with different values.
    """
    valid = (*KEYWORDS, *also)
    options = dict(options)
    _check_rescale(options.pop("guidance_rescale", None))
    theirs = [name for name, ours in RENAMED.items() if ours in valid]
    for name in options:
        if name not in valid and name not in theirs:
            raise InputError(f"{name!r} is not a setting{_hint(name, valid, theirs)}")
    for name in ("cfg_scale", "guidance_scale"):
        if name in options:
            options[name] = plain_scale(options[name])
    own = {name: value for name, value in options.items() if name in valid}
    for name in theirs:
        value = options.get(name)
        if value is None or (name == "width" and options.get("height") is not None):
            continue
        ours = RENAMED[name]
        if name == "guidance_scale":
            _check_guidance_scale(value)
        elif name in ("height", "width"):
            value = _both_sides(options)
        elif name == "generator":
            if own.get("seed") is not None:
                raise InputError("generator and seed both decide the noise: give one of them")
            value = _drawn(value, len(prompts) if is_list(prompts) else 1)
        if own.get(ours) is not None and (ours in CONDITIONING or _as_tuple(own[ours]) != _as_tuple(value)):
            raise InputError(
                f"{name} {quoted(options[name])} and {ours} {quoted(own[ours])} are one setting: give it once"
            )
        own[ours] = value
    if hasattr(own.get("seed"), "tolist"):  # an array or a tensor
        own["seed"] = own["seed"].tolist()
    if "dtype" in own:
        own["dtype"] = dtype_name(own["dtype"]) or own["dtype"]
    return own


def no_attribute(name: str) -> str:
    """The message for an attribute of a pipeline that does not exist."""
    hint = f": {ATTRIBUTES[name]}" if name in ATTRIBUTES else ""
    return f"a Pipeline of guidon has no attribute {name!r}{hint}"


def no_option_of_load(name: str) -> str:
    """What to do about a keyword that ``guidon.load`` has not."""
    if name in LOADED:
        return f": {LOADED[name]}"
    valid = (*Sources.model_fields, "device", "dtype", "decode_dtype", "compile")
    return nearest(name, valid)


def _hint(name: str, valid: Collection[str], theirs: Collection[str]) -> str:
    if name in ELSEWHERE:
        return f" here: {ELSEWHERE[name]}"
    if (close := nearest(name, (*valid, *theirs))).startswith(" (did you mean"):
        return close
    return nearest(name, valid)


def _check_guidance_scale(value: Any) -> None:
    if isinstance(value, int | float) and 0 <= value < 1:
        raise InputError(
            f"guidance_scale {value:g} means no guidance in diffusers: give cfg_scale 1 for that, or cfg_scale "
            f"{value:g} for less than the conditional prediction"
        )


def _check_rescale(value: Any) -> None:
    if value is not None and value != 0:  # 0 is none, and diffusers' default
        number = f"{value:g}" if isinstance(value, int | float) else "0.7"
        raise InputError(f"'guidance_rescale' is not a setting here: give guidance='rescale:phi={number}'")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if is_list(value) else value


def _both_sides(options: Mapping[str, Any]) -> tuple[Any, Any]:
    height, width = options.get("height"), options.get("width")
    if height is None or width is None:
        given, missing = ("width", "height") if height is None else ("height", "width")
        raise InputError(f"{given} is given without {missing}: give both, or size=(height, width)")
    return height, width


def _drawn(generator: Any, prompts: int) -> int | list[int]:
    """The seeds that are drawn from a generator, one for each prompt, or from each of several generators.

    What is drawn depends on the generator's state, and changes it: the next call gives other clips.
    """
    import torch

    several = list(generator) if is_list(generator) else [generator] * prompts
    for one in several:
        if not isinstance(one, torch.Generator):
            raise InputError(f"generator is {quoted(one)}: give a torch.Generator, or a number as seed")
    seeds = [int(torch.randint(2**63 - 1, (), generator=one, device=one.device)) for one in several]
    return seeds[0] if len(seeds) == 1 else seeds
