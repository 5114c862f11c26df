"""Requests of a diffusers pipeline, from its folder: settings are checked before torch is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Unpack, get_args

from ..bridges.diffusers.arguments import EXPORTED_AT, PICTURES, Arguments, read_arguments
from ..bridges.diffusers.families import Family
from ..bridges.diffusers.folder import read_folder
from ..core.errors import InputError, nearest, quoted, setting
from ..core.hashing import hash_files
from ..core.reading import PIXELS, reading, regular_file
from ..core.settings import validated
from ..media.conditioning import CHOICES as CONDITIONING
from ..request import DIFFUSERS, KEYWORDS, Choices, DtypeName, Request
from .planner import choose_guidance
from .precision import refuse_auto

if TYPE_CHECKING:
    import torch

OPTIONS = ("device", "dtype", "offload", "call")
"""How a diffusers pipeline is loaded."""
GIVEN = ("prompt", "class_labels")
"""Arguments that hold the prompts."""
ELSEWHERE: Mapping[str, str] = {
    "prompt": "give prompts",
    "class_labels": "give prompts, each the number of a class",
    "generator": "give seed",
    "latents": "the noise is drawn from seed",
    "guidance_scale_2": "one guidance holds for both denoisers",
    "guidance_rescale": "give the guidance rescale:phi=NUMBER",
    "use_dynamic_cfg": "give a timing",
    "num_images_per_prompt": "ask for more seeds, or samples",
    "num_videos_per_prompt": "ask for more seeds, or samples",
    **dict.fromkeys(
        (
            "output_type",
            "return_dict",
            "callback",
            "callback_steps",
            "callback_on_step_end",
            "callback_on_step_end_tensor_inputs",
        ),
        "leave it out",
    ),
}
"""Arguments of a call that a request decides, and what to give in their place."""
LENGTHS = ("num_frames", "video_length", "frames", "video")
"""Arguments of which the first that a pipeline has decides how many frames it makes."""
THEIRS: Mapping[str, str] = {
    "guidance_scale": "give cfg_scale",
    "num_inference_steps": "give steps",
    "generator": "give seed",
    "num_images_per_prompt": "give num_samples",
    "num_videos_per_prompt": "give num_samples",
    **dict.fromkeys(("height", "width", "num_frames"), "give it in call, where the pipeline is loaded or wrapped"),
}
"""Arguments of a diffusers pipeline that somebody may give as a setting, and what to give."""
NOT_TAKEN: Mapping[str, str] = {
    "sampler": "the scheduler is the one in the pipeline",
    "spacing": "the scheduler in the pipeline places the steps",
    "adaptive": "it calls its branches itself",
    "reuse": "it calls its branches itself",
    "fast": "nothing was calibrated for it",
    "eta": "give it in call, if the pipeline takes it",
    "decode_dtype": "its autoencoder has the precision that it is loaded in",
    "rotation": "channels can only be rotated in Guidon's own models",
    "size": "give height and width in call",
    "frames": "give num_frames in call",
    "exact": "only Guidon's own models replay an original",
    "exact_noise": "only Guidon's own models replay an original",
    **dict.fromkeys(CONDITIONING, "only Guidon's own models of video keep frames"),
}
"""Settings of Guidon's own models that a diffusers pipeline cannot take, and why or what to do."""


@dataclass(frozen=True)
class DiffusersPlanner:
    """Makes the requests of one diffusers pipeline. It is a ``ModelPlanner``."""

    name: str
    """``diffusers:FOLDER``; for a pipeline that was never saved, its class in the place of the folder."""
    family: Family
    arguments: Arguments
    channels: int
    """Latent channels: those of its autoencoder."""
    dtype: DtypeName
    """The precision of its denoiser."""
    call: Mapping[str, Any]
    """The arguments of every call, defaults included."""
    own_scale: float
    """The pipeline's own scale, as a factor of cond - uncond from uncond: 1 is no guidance."""
    steps: int = 50
    """Denoising steps where none are chosen."""
    negative_prompt: str | None = None
    """What to steer away from where nothing is chosen; None for what the pipeline does by itself."""
    classes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Class numbers by name, of a pipeline that is given classes."""
    bench: str = "video"
    """See ``ModelPlanner``."""
    block: int = 1
    """See ``ModelPlanner``: a clip may take minutes, and what is done is kept block by block."""

    @classmethod
    def find(
        cls, folder: str | Path, *, call: Mapping[str, Any] | None = None, dtype: DtypeName | None = None
    ) -> DiffusersPlanner:
        """The planner of a folder that ``save_pretrained`` wrote. Only small files of it are read.

        Args:
            folder: the folder.
            call: arguments of every call, such as ``{"height": 480}``.
            dtype: the precision to load it in; None for that of its weights.

        Raises:
            InputError: it holds no pipeline that Guidon knows, or the call has no such argument.
        """
        found = read_folder(Path(folder))
        arguments = read_arguments(found.pipeline)
        return cls.of(
            f"{DIFFUSERS}{folder}", found.family, arguments, found.channels, dtype or found.dtype, call or {},
            found.classes, found.guider_scale,
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        name: str,
        family: Family,
        arguments: Arguments,
        channels: int,
        dtype: DtypeName,
        call: Mapping[str, Any],
        classes: Mapping[str, int],
        guider_scale: float | None,
    ) -> DiffusersPlanner:
        """A planner from what is known of a pipeline; see the fields.

        Raises:
            InputError: the call has no such argument, one that a request decides, or misses one.
        """
        given = _checked(arguments, family, call)
        steps = given.pop("num_inference_steps", None) or arguments.default("num_inference_steps") or cls.steps
        negative = given.pop("negative_prompt", None)
        defaults = {
            key: value
            for key, value in arguments.plain.items()
            if key not in ELSEWHERE and key not in ("num_inference_steps", "negative_prompt", family.argument)
        }
        fixed = {"guidance_rescale": 0.0} if arguments.default("guidance_rescale") else {}
        scale = guider_scale if "." in family.argument else arguments.default(family.argument)
        own = 1.0 if scale is None else float(scale) + family.offset
        return cls(
            name, family, arguments, channels, dtype, MappingProxyType(defaults | fixed | given), own, steps, negative,
            classes,
        )  # fmt: skip

    @property
    def cfg_scale(self) -> float:
        """The pipeline's own scale; see ``ModelPlanner``."""
        return self.own_scale

    @property
    def fps(self) -> float:
        """Frames per second: of the call, else of the example in the pipeline's documentation."""
        for name in ("frame_rate", "fps"):
            value = self.call.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                return float(value)
        return self.arguments.example_fps or EXPORTED_AT

    @property
    def is_image(self) -> bool:
        """Whether its clips have one frame; see ``ModelPlanner``."""
        length = next((name for name in LENGTHS if name in self.arguments), None)
        return length is None or self.call.get(length) == 1

    @property
    def takes_classes(self) -> bool:
        """Whether prompts are numbers of classes."""
        return "prompt" not in self.arguments

    def check_prompts(self, prompts: Sequence[str], *, follow: bool = False) -> None:
        """Refuse a prompt that is no class, where the pipeline takes classes. Any other pipeline follows any text.

        Raises:
            InputError: the message says which.
        """
        if self.takes_classes:
            self._numbers(prompts)

    def _numbers(self, prompts: Sequence[str]) -> dict[str, str]:
        """The class number of every prompt that is a name.

        Raises:
            InputError: a prompt is neither a name nor a number of a class.
        """
        found: dict[str, str] = {}
        known = {str(number) for number in self.classes.values()}
        for prompt in prompts:
            if prompt.strip().isdecimal():
                if known and (prompt.strip().lstrip("0") or "0") not in known:
                    raise InputError(
                        f"{quoted(prompt)} is no class of {self.arguments.pipeline}: give a number from "
                        f"{min(self.classes.values())} to {max(self.classes.values())}"
                    )
                continue
            if prompt.strip() not in self.classes:
                hint = nearest(prompt, self.classes) if len(self.classes) < 20 else ""
                raise InputError(f"{quoted(prompt)} is no class of {self.arguments.pipeline}: give its number{hint}")
            found[prompt] = str(self.classes[prompt.strip()])
        return found

    def plan(
        self,
        prompts: Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = 1,
        device: torch.device | str | None = None,
        force: bool = False,
        **choices: Unpack[Choices],
    ) -> Request:
        """The complete request of some samples; see ``ModelPlanner``."""
        return self.complete(prompts, samples, batch_size=batch_size, device=device, **choices)

    def complete(
        self,
        prompts: Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = 1,
        device: torch.device | str | None = None,
        **choices: Unpack[Choices],
    ) -> Request:
        """The complete request of some samples; see ``ModelPlanner``.

        Raises:
            InputError: a choice is not one that a diffusers pipeline can take.
        """
        for name, value in choices.items():
            if name not in KEYWORDS:
                hint = f": {THEIRS[name]}" if name in THEIRS else nearest(name, KEYWORDS)
                raise InputError(f"{name!r} is not a setting{hint}")
            if name in NOT_TAKEN and value is not None and value is not False:
                raise InputError(
                    f"{setting(name)} {quoted(value)} cannot be set in {self.arguments.pipeline}: {NOT_TAKEN[name]}"
                )
        if choices.get("dtype") not in (None, self.dtype):
            raise InputError(
                f"{setting('dtype')} {choices.get('dtype')} is not that of the pipeline, {self.dtype}: choose it when "
                "it is loaded"
            )
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        steps, negative = choices.get("steps"), choices.get("negative_prompt")
        values = {
            "prompts": texts,
            "samples": tuple(samples),
            "model": self.name,
            "sampler": None,
            "seed": choices.get("seed") or 0,
            "seed_per_prompt": choices.get("seed_per_prompt") or False,
            "steps": self.steps if steps is None else steps,
            "negative_prompt": self.negative_prompt if negative is None else negative,
            "guidance": choose_guidance(
                choices, self.channels, self.own_scale, self.family.guided.text, own_timing="constant"
            ),
            "dtype": self.dtype,
            "call": dict(self.call),
        }
        if self.takes_classes and any(texts):  # a study is checked with an empty prompt
            values["read_as"] = self._numbers(texts)
        request = validated(Request, values, None)
        self.check(request)
        return request

    def check(self, request: Request) -> None:
        """Refuse a complete request that the pipeline cannot fulfil, such as that of another model's manifest.

        Raises:
            InputError: the message says why.
        """
        if request.sampler is not None:
            raise InputError(
                f"the request is for {request.model}, which {self.arguments.pipeline} cannot fulfil: load that model"
            )
        for name in request.call:
            self.arguments.check(name)
        request.guidance.scales_for(self.channels)
        if request.guidance.needs_negative or request.guidance.needs_imageless:
            raise InputError(
                f"{setting('guidance')} {request.guidance.rule.name} needs a third branch, and pipelines of diffusers "
                "run two: give another rule"
            )
        if request.guidance.needs_weak and request.guidance.rule.weak == "model":
            raise InputError(
                f"{setting('guidance')} {request.guidance.rule.name} needs a weaker model, which no setting of a "
                "diffusers pipeline can hold: give another rule, or use guidon.apply(weak=...)"
            )
        if request.negative_prompt is not None and "negative_prompt" not in self.arguments:
            raise InputError(
                f"{self.arguments.pipeline} takes no negative prompt: leave out {setting('negative_prompt')}"
            )


def _checked(arguments: Arguments, family: Family, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a user gives for every call; a picture's path with a hash of its file.

    Raises:
        InputError: one does not exist, is decided by the request, or is no plain value; or one is missing.
    """
    if not isinstance(call, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"{setting('call')} is {quoted(call)}: give arguments by name, such as {{'height': 480}}")
    found = dict(call)
    for name, value in call.items():
        arguments.check(name)
        if name == family.argument:
            raise InputError(f"{setting('call')} gives {name}, which the settings decide: give {setting('cfg_scale')}")
        if name in ELSEWHERE or name.endswith("_embeds"):
            advice = ELSEWHERE.get(name, "give prompts")
            raise InputError(f"{setting('call')} gives {name}, which the settings decide: {advice}")
        if name in PICTURES and isinstance(value, str):
            path = regular_file(Path(value), "a picture", 4 * PIXELS.value)
            with reading(path, "a picture"):
                found[name] = {"file": value, "sha256": hash_files(path)}
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise InputError(
                f"{setting('call')} gives {name} the value {quoted(value)}: give a number, a text or a list"
            ) from None
    for name in arguments.required:
        if name not in GIVEN and name not in call:
            fix = "its file" if name in PICTURES else "a pipeline that starts from a prompt or a picture alone"
            raise InputError(
                f"{arguments.pipeline} needs the argument {name}, which {setting('call')} misses: give {fix}"
            )
    for name, value in call.items():
        if name not in PICTURES:
            arguments.check_value(name, value)
    return found


def check_offload(offload: str | None) -> None:
    """Refuse a way of offloading that diffusers does not have."""
    valid = ("none", "model", "sequential")
    if offload is not None and offload not in valid:
        raise InputError(f"{setting('offload')} {quoted(offload)} does not exist{nearest(offload, valid)}")


def check_dtype(dtype: str | None) -> None:
    """Refuse a precision that does not exist, or that a machine would have to choose."""
    refuse_auto({"dtype": dtype}, "is for Guidon's own models")
    if dtype is not None and dtype not in get_args(DtypeName):
        raise InputError(f"{setting('dtype')} {quoted(dtype)} does not exist{nearest(str(dtype), get_args(DtypeName))}")


def check_options(model: str, options: Mapping[str, Any]) -> None:
    """Refuse options that are not for the folder of a diffusers pipeline, such as parts of a released model.

    Raises:
        InputError: one is given.
    """
    for name in options:
        if name not in OPTIONS:
            raise InputError(
                f"{setting(name)} is not for a diffusers pipeline, and {model} holds all its parts: leave it out"
            )
    check_offload(options.get("offload"))
    check_dtype(options.get("dtype"))
