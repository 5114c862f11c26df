"""The request: everything that decides the frames, as one frozen and validated object, and its JSON.

The command line, a call of a pipeline and a study make requests. Every manifest holds one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict, TypeGuard, Unpack

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from .core.devices import DtypeName
from .core.errors import InputError, nearest, quoted, setting
from .core.limits import as_count, available_memory, require_memory
from .core.settings import Settings, validated
from .core.warn import warn
from .guidance import CfgChannels, ChannelChoice, Guidance, Timing, Unset, cfg_channels_from, plain_scale
from .media.conditioning import CHOICES as CONDITIONING
from .media.conditioning import ClipShape, Conditioning, check_conditioning, choose_conditioning
from .media.placing import JSON_KEYS, split_json, text_of_loop, texts_of_loops
from .models.catalogue import find_facts, find_preset
from .models.family import Facts, Preset
from .models.prompts import check_prompts
from .models.registry import find_replay
from .models.sources import Sources
from .models.vae import FRAMES_TOGETHER
from .samplers import CLIPS_TOGETHER, SAMPLERS, SamplerName

if TYPE_CHECKING:
    import torch

Count = Annotated[int, Field(ge=1, lt=2**31)]
BLOCK = 16  # clips of a study that are denoised together, where it does not say it
DIFFUSERS = "diffusers:"
"""How the name of a model begins that is the folder of a diffusers pipeline."""
GUIDANCE_KEYS = ("cfg_scale", "cfg_channels", "cfg_channel", "timing")  # JSON keys of the guidance, but for the rule


class Choices(TypedDict, total=False):
    """What a caller may choose. A key that is left out, or None, takes the model's own value.

    The one exception is ``cfg_channels=None``, which means all channels.
    """

    seed: int | Sequence[int] | None
    """Seed of the noise: one for all clips, one for each prompt, or one for each clip."""
    seed_per_prompt: bool | None
    """Prompt k has the seed ``seed + k``, so that prompts share no noise."""
    size: tuple[int, int] | None
    """Height and width in pixels."""
    frames: int | None
    """Length of a video."""
    steps: int | None
    """Denoising steps."""
    sampler: SamplerName | None
    """For a diffusion model "ddpm", "ddim" or "dpm-solver"; for a rectified flow "euler" or "heun"."""
    eta: float | None
    """How much noise ddim adds, 0 to 1."""
    guidance: Guidance | str | None
    """A whole ``Guidance``; or the rule alone, such as "apg:momentum=0", beside the four keys below."""
    cfg_scale: float | Sequence[float] | None
    """Guidance scale, one number or one per latent channel."""
    cfg_channels: CfgChannels | ChannelChoice
    """Guided latent channels: 3, "all", "none", [0, 2], "0-2", "only:3"."""
    cfg_channel: CfgChannels | ChannelChoice
    """Open-Sora's name for cfg_channels."""
    timing: str | Timing | None
    """When guidance acts, such as "interval:0,0.5"."""
    rotation: int | None
    """Seed of a random rotation of the latent channels."""
    negative_prompt: str | Sequence[str] | None
    """What to steer away from, in the null caption's place: for all prompts, or one for each."""
    dtype: DtypeName | None
    """Precision of the network."""
    exact: str | None
    """Name of the original whose draws and precisions are replayed."""
    exact_noise: str | None
    """Where an exact replay draws its noise."""
    first_frame: Any
    """A picture that a video begins with: a path, an array (height, width, 3), or an image of PIL."""
    last_frame: Any
    """A picture that a video ends with."""
    continue_from: Any
    """A video whose last frames, ``condition_frames``, are the first ones of the clip: a path, an array
    (time, height, width, 3), a list of images, or a ``Video``."""
    connect_to: Any
    """A video whose first frames, ``condition_frames``, are the last ones of the clip."""
    edit: Any
    """A video to draw anew, all of its frames by ``edit_strength``."""
    edit_strength: float | None
    """How much of the sampling edits it: 0 keeps it, 1 draws it anew; 0.7 if it is left out."""
    reference: Any
    """Pictures and videos that ``mask_strategy`` takes frames from: one, or a list of them."""
    mask_strategy: str | None
    """Which frames go where, in Open-Sora's grammar, such as "0,0,0,0,1,0;0,1,0,-1"."""
    loop: int | None
    """How many clips are joined to a long one. Each begins with the last frames of the one before."""
    condition_frames: int | None
    """How many frames those are, and of ``continue_from`` and ``connect_to``."""
    condition_edit: float | None
    """How much of the sampling edits the frames that a further clip begins with, 0 to 1."""


KEYWORDS = tuple(Choices.__annotations__)
_NEW = ("latents", "conditioning", "callback", "call")
"""Fields that earlier versions did not know: JSON leaves them out where they say nothing."""
_CLIP_BYTES = 4096  # what a clip takes beside its pixels: its manifest and its objects


class Request(Settings):
    """Every choice that decides the frames of a model: the same request and weights give the same frames."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    also_read: ClassVar[tuple[str, ...]] = GUIDANCE_KEYS

    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    """What to show."""
    read_as: dict[str, str] = Field(default_factory=dict[str, str])
    """What the text encoder is given in place of a prompt: the same in words that the model knows. Prompts that are
    given to it unchanged have no entry."""
    negative_prompt: str | tuple[str, ...] | None = None
    """What to steer away from, for all prompts or one for each. It takes the null caption's place."""
    model: str = "guidon-small"
    """A preset, or a folder of weights."""
    size: tuple[Count, Count] | None = None
    """Height and width in pixels; None for the model's own."""
    frames: Count | None = None
    """Length; None for the model's own."""
    seed: int | tuple[int, ...] = 0
    """Seed of the noise, 0 to 2^63 - 1: one for all clips, one for each prompt, or one for each clip.

    Where each clip has a seed, a clip is sample 0 of its seed.
    """
    seed_per_prompt: bool = False
    """Prompt k has the seed ``seed + k``, so that prompts share no noise."""
    samples: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Sample indices. Sample k of a seed starts from the same noise whatever is generated beside it."""
    sampler: SamplerName | None = "ddpm"
    """The sampler; None for the scheduler of a diffusers pipeline."""
    steps: Count = 50
    """Denoising steps."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much noise ddim adds: 0 none, 1 as much as ddpm."""
    guidance: Guidance = Guidance(1.0)
    """Channel scales, rule and timing; in JSON they are cfg_scale, cfg_channels, guidance (the rule) and timing."""
    rotation: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of a random rotation of the latent channels, of which cfg_channels then chooses: a control for studies."""
    dtype: DtypeName = "fp32"
    """Precision of the network. Diffusion arithmetic is fp32 whatever this is."""
    exact: str | None = None
    """Name of the original whose draws and precisions are replayed. A sample then depends on its batch."""
    exact_noise: str = "device"
    """Where an exact replay draws noise: "device" where it runs, or as a CUDA device does, such as "cuda:h100"."""
    batch_size: Count | None = None
    """Clips denoised together; set only for an exact replay, where it decides the frames."""
    latents: tuple[str, ...] | None = None
    """A hash of each clip's first noise, where a caller in Python gave it. It must be given again."""
    conditioning: Conditioning | None = None
    """Frames that the clips keep or edit, and how many clips are joined to a long one."""
    callback: bool = False
    """Whether a callback changed the latents or stopped the run. It must be given again."""
    call: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further arguments of a diffusers pipeline's call, such as height, its defaults included."""

    @model_validator(mode="before")
    @classmethod
    def _one_guidance(cls, values: Any) -> Any:
        """Make one ``Guidance`` of the keys that hold its parts."""
        if not isinstance(values, Mapping):
            return values
        if "generation" in values:
            raise InputError("this is a whole manifest: give its part 'generation', or the whole to guidon.reproduce")
        parts = {key: values[key] for key in GUIDANCE_KEYS if key in values}
        rest = {key: value for key, value in values.items() if key not in parts}
        given = rest.pop("guidance", "cfg")
        if isinstance(given, Guidance):
            if parts:
                raise InputError(f"{setting('guidance')} holds the {next(iter(parts))} already: leave one of them out")
            return rest | {"guidance": given}
        return rest | {"guidance": Guidance.from_settings(parts | {"guidance": given})}

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The guidance as the keys that manifests have. Names of files hash this JSON, so the order of keys matters."""
        flat: dict[str, Any] = {}
        guidance = self.guidance.to_settings()
        for name, value in handler(self).items():
            if name in _NEW and not value:
                continue
            if name == "guidance":
                flat |= {key: guidance[key] for key in ("cfg_scale", "cfg_channels") if key in guidance}
            elif name == "dtype":
                flat |= {key: guidance[key] for key in ("guidance", "timing")} | {name: value}
            elif name != "read_as" or value:  # left out where it says nothing, as in manifests of earlier versions
                flat[name] = value
        return flat

    @field_validator("seed", mode="before")
    @classmethod
    def _whole_seeds(cls, value: Any) -> int | tuple[int, ...]:
        return tuple(map(_read_seed, value)) if is_list(value) else _read_seed(value)

    @field_validator("negative_prompt", mode="before")
    @classmethod
    def _negative_texts(cls, value: Any) -> str | tuple[str, ...] | None:
        texts = tuple(value) if is_list(value) else (value,)
        if value is not None and not all(isinstance(text, str) for text in texts):
            raise InputError(f"{setting('negative_prompt')} is {quoted(value)}: give a text, or one for each prompt")
        return texts if is_list(value) else texts[0]

    @field_validator("exact")
    @classmethod
    def _known_original(cls, value: str | None) -> str | None:
        if value is not None:
            find_replay(value)
        return value

    @field_validator("exact_noise")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if value == "device":
            return value
        from .samplers.philox import BLOCKS

        valid = ("device", "cuda", *(f"cuda:{gpu}" for gpu in BLOCKS))
        if value not in valid:
            raise InputError(f"{setting('exact_noise')} {value!r} does not exist{nearest(value, valid)}")
        return value

    @model_validator(mode="after")
    def _one_for_each(self) -> Request:
        """Lists have the length of what they are for."""
        prompts, clips = len(self.prompts), len(self.prompts) * len(self.samples)
        if isinstance(self.seed, tuple):
            if len(self.seed) not in (prompts, clips):
                several = [f"{n} {what}" for n, what in ((prompts, "prompts"), (clips, "clips")) if n > 1]
                each = f", or one for each of {' or '.join(dict.fromkeys(several))}" if several else ""
                raise InputError(f"{setting('seed')} holds {len(self.seed)} seeds: give one{each}")
            if self.seed_per_prompt or self.exact:
                other = setting("seed_per_prompt" if self.seed_per_prompt else "exact")
                raise InputError(f"{setting('seed')} holds several seeds, {other} needs one: give one")
        if self.latents is not None and len(self.latents) != clips:
            raise InputError(f"{setting('latents')} holds {len(self.latents)} hashes for {clips} clips")
        if isinstance(self.negative_prompt, tuple) and len(self.negative_prompt) != prompts:
            raise InputError(
                f"{setting('negative_prompt')} holds {len(self.negative_prompt)} texts for {prompts} "
                f"prompt{'s' * (prompts > 1)}: give one{', or one for each' * (prompts > 1)}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Request:
        rule, name = self.guidance.rule, setting
        if (self.sampler is None) != self.model.startswith(DIFFUSERS) or (self.call and self.sampler):
            raise InputError(
                f"{name('model')} {self.model!r} goes with {name('sampler')} {self.sampler} and {name('call')} "
                f"{quoted(self.call)} only if it is a diffusers pipeline: name a sampler, or {DIFFUSERS}FOLDER"
            )
        if self.eta and self.sampler != "ddim":
            sampler = self.sampler or "the pipeline's own"
            raise InputError(f"{name('eta')} {self.eta:g} is for ddim, the sampler is {sampler}: leave it out")
        if rule.name == "cfg++" and self.sampler is not None and (self.sampler not in ("ddim", "euler") or self.eta):
            raise InputError(
                f"{name('guidance')} cfg++ needs {name('sampler')} ddim with {name('eta')} 0, or euler on a rectified "
                "flow: give one of them"
            )
        by_timing = self.guidance.timing.name == "oscillation"
        if self.sampler == "heun" and (by_timing or rule.oscillates):
            what = f"{name('timing')} oscillation" if by_timing else f"{name('guidance')} {rule.name} with oscillate"
            raise InputError(
                f"{what} changes at every second call of the network, which {name('sampler')} heun calls twice a step: "
                "give euler"
            )
        if rule.needs_negative and self.negative_prompt is None:
            raise InputError(
                f"{name('guidance')} {rule.name} needs a negative prompt: say in {name('negative_prompt')} what should "
                "not be seen"
            )
        if self.exact and self.seed_per_prompt:
            raise InputError(
                f"{name('exact')} {self.exact!r} draws all samples from one seed: leave out {name('seed_per_prompt')}"
            )
        if self.exact and self.conditioning is not None:
            raise InputError(f"{name('exact')} {self.exact!r} replays runs without given frames: leave one of them out")
        if self.exact_noise != "device" and self.exact is None:
            raise InputError(
                f"{name('exact_noise')} {self.exact_noise!r} has an effect only with {name('exact')}: give both"
            )
        return self

    @property
    def closeness(self) -> str:
        """How far pixels may move where the same clip is computed in another batch or with other threads."""
        return "1/255" if self.dtype == "fp32" else f"the rounding of {self.dtype}"

    def noise_of(self, prompt: int, sample: int) -> tuple[int, int]:
        """The seed and the sample index that a clip's noise is drawn from."""
        if not isinstance(self.seed, tuple):
            return self.seed + (prompt if self.seed_per_prompt else 0), sample
        if len(self.seed) == len(self.prompts):
            return self.seed[prompt], sample
        return self.seed[prompt * len(self.samples) + self.samples.index(sample)], 0

    def negative_of(self, prompt: int) -> str | None:
        """The negative prompt of a prompt."""
        return self.negative_prompt[prompt] if isinstance(self.negative_prompt, tuple) else self.negative_prompt

    @property
    def negatives(self) -> tuple[str, ...]:
        """The negative prompts, if there are any."""
        own = self.negative_prompt
        return own if isinstance(own, tuple) else () if own is None else (own,)

    def text_of(self, prompt: str, loop: int = 0) -> str:
        """What the text encoder is given for a prompt or a negative prompt, in one loop of a long clip."""
        text = text_of_loop(prompt, loop)
        return self.read_as.get(text, text)

    @property
    def texts(self) -> tuple[str, ...]:
        """What is shown: the prompts, or their parts where they give one for each loop."""
        return tuple(text for prompt in self.prompts for _, text in texts_of_loops(prompt))

    @property
    def loops(self) -> int:
        """How many clips are joined to one."""
        return 1 if self.conditioning is None else self.conditioning.loop

    def alone(self, prompt: int, sample: int) -> Request:
        """The request of one clip alone. For an exact replay: the whole, since the batch decides each clip."""
        if self.exact:
            return self
        seed, index = self.noise_of(prompt, sample)
        text, negative = self.prompts[prompt], self.negative_of(prompt)
        own: dict[str, Any] = {"prompts": (text,), "negative_prompt": negative, "samples": (index,), "seed": seed}
        read = [*(part for _, part in texts_of_loops(text)), negative]
        own["read_as"] = {key: value for key, value in self.read_as.items() if key in read}
        if self.latents is not None:
            clip = prompt * len(self.samples) + self.samples.index(sample)
            own["latents"] = self.latents[clip : clip + 1]
        return self.model_copy(update=own | {"seed_per_prompt": False})


class Computation(Settings):
    """How a clip was computed. The request decides its frames up to ``Request.closeness``; this decides the last bits.

    The same request, weights, computation, device and versions give the same frames, bit for bit.
    """

    batch: Count = 1
    """Clips that were denoised together. A product of another number of rows may be summed in another order."""
    sequential: bool = False
    """Whether the branches of guidance ran one after the other."""
    micro_batch: Count = FRAMES_TOGETHER
    """Frames that were decoded together."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU threads of torch; None to use as many as torch is set to."""


class Output(Settings):
    """How the frames of a clip were written to its file. It does not decide the frames."""

    format: str | None = None
    """The format of the file, such as "mp4"; None if the manifest does not say it."""
    fps: Annotated[float, Field(ge=0.1, le=1000)] | None = None
    """Frames per second that the file is played at; None for the clip's own."""
    upscale: Count = 1
    """How many times the frames are enlarged in the file."""


def make_request(
    preset: Preset[Any],
    facts: Facts,
    prompts: Sequence[str],
    samples: Sequence[int],
    choices: Choices,
    batch_size: int,
    device: torch.device | str | None = None,
) -> Request:
    """The complete request of what was chosen, with the preset's own for the rest.

    Args:
        preset: the model's recommended settings.
        facts: says which channels, sizes, steps and prompts there are.
        prompts: what to show.
        samples: sample indices.
        choices: what the caller chose.
        batch_size: clips denoised together; an exact replay keeps it.
        device: where the model runs; None where it is not known yet.

    Raises:
        InputError: a choice is not valid for this model, or the run needs more memory than there is.
    """
    for name in choices:
        if name not in KEYWORDS:
            raise InputError(f"{name!r} is not a setting{nearest(name, KEYWORDS)}")
    prompts, choices = _references_in(prompts, choices)
    # what was chosen; None stands for the preset's own
    elsewhere = (*GUIDANCE_KEYS, *CONDITIONING)
    values = {name: value for name, value in choices.items() if value is not None and name not in elsewhere}
    # what the preset recommends, and what the call fixes
    own = {"sampler": preset.sampler, "steps": preset.steps, "seed": preset.seed}
    own |= {"dtype": preset.dtype, "negative_prompt": preset.negative_prompt}
    texts = (prompts,) if isinstance(prompts, str) else prompts
    fixed: dict[str, Any] = {"model": preset.name}
    own_guidance = preset.cfg_scale, preset.cfg_channels, preset.timing
    fixed["guidance"] = choose_guidance(choices, facts.channels, *own_guidance)
    count = len(texts) * _length(samples)
    if choices.get("exact"):
        fixed["batch_size"] = min(batch_size, count)
    # the first clip alone shows whether the others fit: a refusal then costs nothing
    first = {"prompts": tuple(texts[:1]), "samples": tuple(samples[:1])}
    for name in ("seed", "negative_prompt"):
        if is_list(several := values.get(name)):
            first[name] = several[:1] if count > 1 else several
            if count == len(several) == 1:  # the same request as that of the value itself
                first[name] = several[0]
    request = validated(Request, own | values | fixed | first, None)
    shape = latent_shape(preset, facts, request)
    require_room(facts, shape, clip_size(facts, request)[0], count, batch_size, device)
    if count > 1:
        request = validated(Request, own | values | fixed | {"prompts": tuple(texts), "samples": tuple(samples)}, None)
    conditioning = choose_conditioning(choices, clip_shape(preset, facts, request), preset.name)
    if conditioning is not None:
        request = validated(Request, dict(request) | {"conditioning": conditioning}, None)
    check_request(preset, facts, request)
    return request


def _references_in(prompts: Sequence[str], choices: Choices) -> tuple[Sequence[str], Choices]:
    """Prompts and choices where a prompt ends in Open-Sora's JSON of references, which then are choices.

    Raises:
        InputError: the JSON cannot be read, or there are other prompts or choices that it would not be for.
    """
    texts = (prompts,) if isinstance(prompts, str) else prompts
    if not any("{" in text and any(f'"{key}"' in text for key in JSON_KEYS) for text in texts):
        return prompts, choices
    if len(texts) > 1 or choices.get("reference") is not None or choices.get("mask_strategy") is not None:
        raise InputError(
            f"a prompt names references of its own: give it alone, or {setting('reference')} and "
            f"{setting('mask_strategy')} for all prompts"
        )
    text, found = split_json(texts[0])
    paths = found.get("reference_path", "")
    own: Choices = {
        "reference": paths.split(";") if paths else None,
        "mask_strategy": found.get("mask_strategy") or None,
    }
    return (text.strip(),), {**choices, **own}


def clip_shape(preset: Preset[Any], facts: Facts, request: Request) -> ClipShape | None:
    """What must be known to place frames in a request's clips; None where they are images."""
    if preset.is_image:
        return None
    return ClipShape(preset.name, clip_size(facts, request)[0], facts.latent_frames, facts.latents_together)


def check_request(preset: Preset[Any], facts: Facts, request: Request) -> None:
    """Refuse a complete request that a model cannot fulfil, such as that of another model's manifest.

    Raises:
        InputError: the message says what the model can do.
    """
    shape = latent_shape(preset, facts, request)
    if request.exact is not None and request.exact not in preset.originals:
        valid = f"valid: {', '.join(preset.originals)}" if preset.originals else "leave it out"
        raise InputError(f"{preset.name} cannot replay {setting('exact')} {request.exact!r}; {valid}")
    frames, _, _ = clip_size(facts, request)
    if request.exact is not None and 1 < frames < (least := find_replay(request.exact).least_frames):
        raise InputError(
            f"{setting('exact')} {request.exact!r} makes no videos of {frames} frames, whose timesteps are no numbers "
            f"in the original: give 1 frame or at least {least}, or leave it out"
        )
    if request.sampler is not None and request.sampler not in SAMPLERS[facts.path]:
        kind = "a rectified flow" if facts.path == "flow" else "a diffusion model"
        raise InputError(
            f"{setting('sampler')} {request.sampler} does not go with {preset.name}, which is {kind}: give "
            f"{' or '.join(SAMPLERS[facts.path])}"
        )
    if request.steps > facts.timesteps:
        raise InputError(
            f"{setting('steps')} {request.steps} is more than {preset.name} was trained for: give at most "
            f"{facts.timesteps}"
        )
    if request.conditioning is not None:
        clip = clip_shape(preset, facts, request)
        check_conditioning(request.conditioning, clip, preset.name)
        if clip is not None and request.loops > 1:
            frames, clips = clip.joined(request.conditioning), len(request.prompts) * len(request.samples)
            pixels = 3 * math.prod(clip_size(facts, request)[1:])
            several = "a long clip" if clips == 1 else f"each of {as_count(clips)} long clips"
            require_memory(f"the {frames} frames of {several}", 2 * clips * frames * pixels, lower="loop")
    request.guidance.scales_for(facts.channels)
    rule = request.guidance.rule
    rule.check_size(*shape[-2:])
    if rule.needs_weak and rule.weak == "model" and not facts.has_weak:
        raise InputError(f"{setting('guidance')} {rule.name} needs a weaker model: give {setting('weak')}")
    if rule.needs_imageless and not facts.knows_given_frames:
        raise InputError(
            f"{setting('guidance')} {rule.name} guides by given frames too, of which the network of {preset.name} is "
            "not told: choose another rule"
        )
    if rule.needs_imageless and request.conditioning is None:
        raise InputError(
            f"{setting('guidance')} {rule.name} guides by given frames too, and none are: give "
            f"{setting('first_frame')}, or choose another rule"
        )
    if shape != facts.latent_shape and facts.clip is None and not preset.is_image:
        warn(
            f"{preset.name} was trained on another size or length, and may draw wrong things at this one; to enlarge a "
            f"clip, give {setting('upscale')}"
        )


@dataclass(frozen=True)
class Planner:
    """Makes requests for one model. It needs neither the model's weights nor torch, so bad settings cost no time."""

    preset: Preset[Any]
    facts: Facts

    @classmethod
    def find(cls, model: str, **sources: Any) -> Planner:
        """The planner of a preset's name, or of a folder of weights.

        Args:
            model: the name, or the folder.
            sources: the fields of ``Sources``.

        Raises:
            InputError: the model does not exist, or files of it are missing: all of them are named.
        """
        preset = find_preset(model)
        return cls(preset, find_facts(preset, validated(Sources, sources, None)))

    @property
    def channels(self) -> int:
        """Latent channels of the model."""
        return self.facts.channels

    @property
    def bench(self) -> str:
        """The bench (``guidon.metrics.bench``) that its videos are measured on."""
        return self.facts.bench

    @property
    def cfg_scale(self) -> float:
        """The guidance scale that is recommended."""
        return self.preset.cfg_scale

    @property
    def block(self) -> int:
        """How many clips a study denoises together where it does not say it."""
        return BLOCK

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that the model cannot be given, such as a number that is no class."""
        self.facts.check_prompts(prompts)

    def plan(
        self,
        prompts: Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = CLIPS_TOGETHER,
        device: torch.device | str | None = None,
        force: bool = False,
        **choices: Unpack[Choices],
    ) -> Request:
        """The complete request of some samples, with its prompts read: ``complete``, then ``read_prompts``.

        Raises:
            InputError: a choice is not valid for this model, or it cannot follow a prompt.
        """
        request = self.complete(prompts, samples, batch_size=batch_size, device=device, **choices)
        return self.read_prompts(request, force=force)

    def complete(
        self,
        prompts: Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = CLIPS_TOGETHER,
        device: torch.device | str | None = None,
        **choices: Unpack[Choices],
    ) -> Request:
        """The complete request of some samples; see ``make_request``. Whether the model can follow the prompts is not
        asked.

        Raises:
            InputError: a choice is not valid for this model.
        """
        request = make_request(self.preset, self.facts, prompts, samples, choices, batch_size, device)
        if not self.facts.rewrites:
            return request
        read = zip(request.texts, self.facts.read_prompts(request.texts, False), strict=True)
        return request.model_copy(update={"read_as": {text: to.read_as for text, to in read if to.read_as != text}})

    def read_prompts(self, request: Request, *, force: bool = False) -> Request:
        """A complete request, with what the text encoder is given where it is not the prompt itself.

        A warning says what of a prompt the model does not follow.

        Args:
            request: the request of ``complete``.
            force: sample a prompt that the model cannot follow, too, with a warning.

        Raises:
            InputError: the model cannot be given a prompt, or cannot follow it.
        """
        self.facts.check_prompts([*request.texts, *request.negatives])
        read_as = check_prompts(self.preset.name, self.facts, request.texts, request.negatives, force=force)
        return request.model_copy(update={"read_as": read_as}) if read_as else request

    def clip_shape(self, request: Request) -> ClipShape | None:
        """What must be known to place frames in a request's clips; None where they are images."""
        return clip_shape(self.preset, self.facts, request)

    def length(self, request: Request) -> int:
        """Frames of a finished clip, all of its loops joined; 1 of an image."""
        clip = self.clip_shape(request)
        return 1 if clip is None else clip.joined(request.conditioning)

    def latent_shape(self, request: Request) -> tuple[int, ...]:
        """The shape of a request's latents; see ``latent_shape``."""
        return latent_shape(self.preset, self.facts, request)

    def clip_size(self, request: Request) -> tuple[int, int, int]:
        """(frames, height, width) of a request's clips; see ``clip_size``."""
        return clip_size(self.facts, request)

    def check(self, request: Request) -> None:
        """Refuse a complete request that the model cannot fulfil; see ``check_request``."""
        check_request(self.preset, self.facts, request)
        self.facts.check_prompts([*request.texts, *request.negatives])


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value holds several; a text is one value."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _read_seed(value: Any) -> int:
    """A seed, from any whole number."""
    try:
        seed = operator.index(value)
    except TypeError:
        seed = -1
    if not 0 <= seed < 2**63:
        raise InputError(f"{setting('seed')} {quoted(value)} is no seed: give a whole number from 0 to 2^63 - 1")
    return seed


def _length(samples: Sequence[int]) -> int:
    """How many samples there are; a range may hold more than Python's ``len`` can say."""
    return max(0, samples.stop - samples.start) if isinstance(samples, range) and samples.step == 1 else len(samples)


def choose_guidance(choices: Choices, channels: int, own_scale: float, own_channels: str, own_timing: str) -> Guidance:
    """The guidance that was chosen; scale, channels and timing are the model's own where they were not.

    Raises:
        InputError: a choice is not valid, is given twice, or does not fit the model's channels.
    """
    given = choices.get("guidance")
    parts: dict[str, Any] = {key: value for key, value in choices.items() if key in GUIDANCE_KEYS}
    if isinstance(given, Guidance):
        named = [key for key, value in parts.items() if value is not None]
        if named:
            raise InputError(f"{setting('guidance')} holds the {setting(named[0])} already: leave one of them out")
        return given.with_timing(own_timing).resolved(channels)
    scale, timing = (parts.get(key) for key in ("cfg_scale", "timing"))
    scale = own_scale if scale is None else plain_scale(scale)
    chosen = cfg_channels_from(parts)  # here None is a choice: all channels
    if isinstance(chosen, Unset) and not isinstance(scale, Sequence):
        chosen = own_channels
    settings = {"cfg_scale": scale, "cfg_channels": chosen, "guidance": given or "cfg"}
    settings["timing"] = own_timing if timing is None else timing
    return Guidance.from_settings(settings).resolved(channels)


def own_size(facts: Facts, made: tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """(frames, height, width) in pixels of the clips that a model makes where nobody chooses; an image has one frame.

    Args:
        facts: of the model.
        made: the latent shape that the loaded network was made for; see ``latent_shape``.
    """
    made, unit = made or facts.latent_shape, facts.downsampling
    return facts.clip or (made[1] if len(made) == 4 else 1, made[-2] * unit, made[-1] * unit)


def clip_size(facts: Facts, request: Request, made: tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """(frames, height, width) of a request's clips as they were asked for, in pixels; an image has one frame.

    A size of a model for any size may be cut to whole latent pixels.

    Args:
        facts: what is made where nothing was chosen.
        request: what was chosen.
        made: the latent shape that the loaded network was made for; see ``latent_shape``.
    """
    frames, *size = own_size(facts, made)
    height, width = request.size or size
    return request.frames or frames, height, width


def latent_shape(
    preset: Preset[Any], facts: Facts, request: Request, made: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The latent (C, T, H, W) or (C, H, W) of a request: that of the model, with the size and length that were chosen.

    Args:
        preset: what may be chosen.
        facts: what sizes go with it.
        request: what was chosen.
        made: the shape that the loaded network was made for, where a user's checkpoint may differ from the preset.

    Raises:
        InputError: the model does not take other sizes, or not this one.
    """
    made, unit, patch = made or facts.latent_shape, facts.downsampling, facts.patch
    own = made[-2] * unit, made[-1] * unit
    for name, value in (("size", request.size), ("frames", request.frames)):
        if value is not None and name not in preset.sizes:
            only = f"{own[0]}x{own[1]}" if name == "size" else f"{made[1]} frames" if len(made) == 4 else "images"
            raise InputError(f"{preset.name} makes {only} only: leave out {setting(name)}")
    count, height, width = clip_size(facts, request, made)
    if facts.clip is not None:
        if min(height, width) < unit:
            raise InputError(f"{setting('size')} {height}x{width} is too small: give at least {unit}x{unit}")
        return made[0], facts.latent_frames(count), height // unit, width // unit
    sides = [("height", height, patch[-2] * unit), ("width", width, patch[-1] * unit)]
    frames = (count,) if len(made) == 4 else ()
    for name, length, grain in (*sides, *(("frames", count, patch[0]) for count in frames)):
        if length % grain:
            what = f"{setting('frames')} {length}" if name == "frames" else f"{setting('size')}: {name} {length}"
            below = length // grain * grain
            near = " or ".join(str(near) for near in (below, below + grain) if near)
            raise InputError(f"{what} is no multiple of {grain}, as {preset.name} needs: give {near}")
    return (made[0], *frames, height // unit, width // unit)


def require_room(
    facts: Facts, shape: tuple[int, ...], frames: int, clips: int, batch_size: int, device: torch.device | str | None
) -> None:
    """Refuse a run that needs more memory than there is, before anything is made.

    The estimate is a lower bound: the latents and the 8-bit frames of all clips, and one clip as the decoder gives it.

    Args:
        facts: says how many pixels a latent pixel is.
        shape: of one clip's latents, (C, T, H, W) or (C, H, W).
        frames: of one clip.
        clips: how many are asked for.
        batch_size: how many are to be denoised together.
        device: where the model runs; None where it is not known yet. Then only the finished clips are counted.

    Raises:
        InputError: the message holds the estimate, what there is, and what to lower.
    """
    height, width = (side * facts.downsampling for side in shape[-2:])
    latents, pixels = 4 * math.prod(shape), 3 * frames * height * width
    decoded = 2 * 4 * pixels  # fp32: the parts that were decoded, and the clip that they are joined to
    kept = pixels + _CLIP_BYTES
    host = available_memory()
    # what one clip needs, then all of them, then what was asked for at a time
    video, of = len(shape) == 4, f"{height}x{width} pixels"
    one = f"{frames} frames of {of}" if video else f"the {of} of an image"
    smaller = f"lower {setting('size')}" + (f" or {setting('frames')}" if video else "")
    fewer = f"lower {setting('num_samples')}, or give fewer prompts at a time"
    number = as_count(clips)
    what = f"{number} clips of {frames} frames of {of}" if video else f"{number} images of {of}"
    if device is None:
        require_memory(one, kept, have=host, lower=smaller)
        require_memory(what, clips * kept, have=host, lower=fewer)
        return
    same = str(device).startswith("cpu")
    place = host if same else available_memory(device)
    require_memory(one, latents + decoded + (kept if same else 0), device, have=place, lower=smaller)
    require_memory(what, clips * (latents + (kept if same else 0)) + decoded, device, have=place, lower=fewer)
    if not same:
        require_memory(what, clips * kept, have=host, lower=fewer)
    together = f"the latents of {as_count(batch_size)} clips that are denoised together"
    require_memory(together, batch_size * latents, device, have=place, lower="batch_size")
