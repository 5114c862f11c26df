"""The request: everything that decides the frames, as one frozen and validated object, and its JSON.

The command line, a call of a pipeline and a study make requests. Every manifest holds one.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict, TypeGuard

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from .core.devices import DecodeDtype, DtypeName
from .core.errors import InputError, nearest, quoted, setting
from .core.settings import Settings
from .diffusion.spacing import UNIFORM, parse_spacing
from .guidance import CfgChannels, ChannelChoice, Guidance, Sparing, Timing
from .media.conditioning import Conditioning
from .media.placing import text_of_loop, texts_of_loops
from .models.registry import find_replay
from .models.vae import FRAMES_TOGETHER
from .samplers import SAMPLERS, SamplerName

if TYPE_CHECKING:
    pass

Count = Annotated[int, Field(ge=1, lt=2**31)]
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
    """For a diffusion model one of ``samplers.SAMPLERS``, such as "ddpm" or "ddim"; for a rectified flow "euler" or
    "heun"."""
    spacing: str | None
    """Where the steps lie: "uniform", "quadratic", "karras", "logsnr", "power:1.5", "split:0.35,0.5" or
    "at:999,500,0"."""
    fast: bool | None
    """The fast settings that were calibrated for the model, in place of its own sampler, steps, spacing, timing and
    dtype."""
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
    adaptive: float | None
    """Stop guiding a clip once its branches agree: the cosine from which they do, such as 0.99."""
    reuse: int | None
    """Call the unconditional branch at every so many guided steps, and use its last difference between them."""
    rotation: int | None
    """Seed of a random rotation of the latent channels."""
    negative_prompt: str | Sequence[str] | None
    """What to steer away from, in the null caption's place: for all prompts, or one for each."""
    dtype: DtypeName | None
    """Precision of the network."""
    decode_dtype: DecodeDtype | None
    """Precision in which the autoencoder decodes: "fp32" or "bf16"."""
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
_NEW = ("spacing", "distilled", "adaptive", "reuse", "latents", "conditioning", "callback", "call")
"""Fields that earlier versions did not know: JSON leaves them out where they say nothing."""


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
    spacing: str | None = None
    """Where the steps lie, as ``diffusion.parse_spacing`` reads it; None for the uniform spacing."""
    distilled: bool = False
    """Sample with the model's distilled network, which is told of guidance and runs one branch."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much noise ddim adds: 0 none, 1 as much as ddpm."""
    guidance: Guidance = Guidance(1.0)
    """Channel scales, rule and timing; in JSON they are cfg_scale, cfg_channels, guidance (the rule) and timing."""
    adaptive: float | None = None
    """The cosine of the branches from which a clip is guided no more; see ``guidance.Sparing``."""
    reuse: int | None = None
    """The other branches are called at every so many guided steps; None for every one. See ``guidance.Sparing``."""
    rotation: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of a random rotation of the latent channels, of which cfg_channels then chooses: a control for studies."""
    dtype: DtypeName = "fp32"
    """Precision of the network. Diffusion arithmetic is fp32 whatever this is."""
    decode_dtype: DecodeDtype = "fp32"
    """Precision in which the autoencoder decodes. Its weights and its frames are fp32 whatever this is."""
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
            if (name in _NEW and not value) or (name == "decode_dtype" and value == "fp32"):
                continue
            if name == "guidance":
                flat |= {key: guidance[key] for key in ("cfg_scale", "cfg_channels") if key in guidance}
            elif name == "dtype":
                flat |= {key: guidance[key] for key in ("guidance", "timing")} | {name: value}
            elif name != "read_as" or value:  # left out where it says nothing, as in manifests of earlier versions
                flat[name] = value
        return flat

    @field_validator("size", mode="before")
    @classmethod
    def _two_sides(cls, value: Any) -> Any:
        if value is not None and not (is_list(value) and len(value) == 2):
            raise InputError(f"{setting('size')} is {quoted(value)}: give (height, width) in pixels, such as (64, 64)")
        return value

    @field_validator("seed", mode="before")
    @classmethod
    def _whole_seeds(cls, value: Any) -> int | tuple[int, ...]:
        return tuple(map(_read_seed, value)) if is_list(value) else _read_seed(value)

    @field_validator("samples")
    @classmethod
    def _different_samples(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        [(sample, times)] = Counter(value).most_common(1)
        if times > 1:
            raise InputError(f"samples hold {sample} {times} times: give each sample index once, such as range(3)")
        return value

    @field_validator("negative_prompt", mode="before")
    @classmethod
    def _negative_texts(cls, value: Any) -> str | tuple[str, ...] | None:
        texts = tuple(value) if is_list(value) else (value,)
        if value is not None and not all(isinstance(text, str) for text in texts):
            raise InputError(f"{setting('negative_prompt')} is {quoted(value)}: give a text, or one for each prompt")
        return texts if is_list(value) else texts[0]

    @field_validator("spacing")
    @classmethod
    def _known_spacing(cls, value: str | None) -> str | None:
        """In its canonical form, so that one choice has one spelling."""
        spacing = UNIFORM if value is None else parse_spacing(value)
        return None if spacing == UNIFORM else spacing.text

    @field_validator("reuse")
    @classmethod
    def _neutral_reuse(cls, value: int | None) -> int | None:
        return None if value == 1 else value

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
        elif self.seed_per_prompt and self.seed + prompts > 2**63:
            raise InputError(
                f"{setting('seed')} {self.seed} with {setting('seed_per_prompt')} gives the last of {prompts} prompts "
                f"the seed {self.seed + prompts - 1}: give one of at most 2^63 - {prompts}"
            )
        if self.latents is not None and len(self.latents) != clips:
            raise InputError(f"{setting('latents')} holds {len(self.latents)} hashes for {clips} clips")
        if isinstance(self.negative_prompt, tuple) and len(self.negative_prompt) != prompts:
            texts = "1 text" if len(self.negative_prompt) == 1 else f"{len(self.negative_prompt)} texts"
            raise InputError(
                f"{setting('negative_prompt')} holds {texts} for {prompts} "
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
            flow = self.sampler is None or self.sampler in SAMPLERS["flow"]  # they have no ddim
            instead = "leave it out" if flow else f"leave it out, or give {name('sampler')} ddim"
            raise InputError(f"{name('eta')} {self.eta:g} is for ddim, the sampler is {sampler}: {instead}")
        if rule.name == "cfg++" and self.sampler is not None and (self.sampler not in ("ddim", "euler") or self.eta):
            raise InputError(
                f"{name('guidance')} cfg++ needs {name('sampler')} ddim with {name('eta')} 0, or euler on a rectified "
                "flow: give one of them"
            )
        if self.spacing is not None and self.sampler is None:
            raise InputError(
                f"{name('spacing')} {self.spacing:.80} is for Guidon's own samplers, not for a diffusers pipeline"
            )
        if self.spacing is not None and self.exact:
            raise InputError(
                f"{name('spacing')} {self.spacing:.80} does not go with {name('exact')}, which replays the original's "
                "own steps"
            )
        self._check_sparing()
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

    def _check_sparing(self) -> None:
        """Refuse that calls are left out where they cannot be."""
        name, spared = setting, self.sparing  # which checks its numbers
        if spared.is_neutral:
            return
        given = name("reuse" if spared.adaptive is None else "adaptive")
        if self.sampler is None:
            raise InputError(f"{given} is for Guidon's own models: a diffusers pipeline calls its branches itself")
        if self.exact:
            raise InputError(f"{given} does not go with {name('exact')}, which replays every call of the original")
        if self.rotation is not None and spared.adaptive is not None:
            raise InputError(
                f"{given} compares channels as they are, {name('rotation')} turns them: leave one of them out"
            )

    @property
    def lossy(self) -> list[str]:
        """The settings by which the clip costs less and is another one than without them; empty for none."""
        rounded = [name for name in ("dtype", "decode_dtype") if getattr(self, name) != "fp32"]
        other = ["distilled"] if self.distilled else []
        return other + [name for name in ("spacing", "adaptive", "reuse") if getattr(self, name) is not None] + rounded

    @property
    def sparing(self) -> Sparing:
        """Which calls of the other branches are left out."""
        return Sparing(self.adaptive, 1 if self.reuse is None else self.reuse)

    @property
    def closeness(self) -> str:
        """How far pixels may move where the same clip is computed in another batch or with other threads."""
        rounded = next((dtype for dtype in (self.dtype, self.decode_dtype) if dtype != "fp32"), None)
        return "1/255" if rounded is None else f"the rounding of {rounded}"

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
        """What is steered away from: the negative prompts, or their parts where they give one for each loop."""
        own = self.negative_prompt
        texts = own if isinstance(own, tuple) else () if own is None else (own,)
        return tuple(part for text in texts for _, part in texts_of_loops(text))

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
        read = [part for whole in (text, negative or "") for _, part in texts_of_loops(whole)]
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
    compiled: bool = False
    """Whether the blocks of the network were compiled."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As earlier versions wrote it, where nothing was compiled."""
        found: dict[str, Any] = handler(self)
        return found if self.compiled else {key: value for key, value in found.items() if key != "compiled"}


class Output(Settings):
    """How the frames of a clip were written to its file. It does not decide the frames."""

    format: str | None = None
    """The format of the file, such as "mp4"; None if the manifest does not say it."""
    fps: Annotated[float, Field(ge=0.1, le=1000)] | None = None
    """Frames per second that the file is played at; None for the clip's own."""
    upscale: Count = 1
    """How many times the frames are enlarged in the file."""


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
