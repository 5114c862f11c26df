"""Requests of Guidon's own models: made of what a caller chose, and checked before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from ..core.errors import InputError, nearest, quoted, setting
from ..core.limits import as_count, require_memory
from ..core.settings import validated
from ..core.warn import warn
from ..diffusion.spacing import Explicit, parse_spacing
from ..guidance import Guidance, Unset, cfg_channels_from, plain_scale
from ..guidance.rules import SkipGuidance
from ..media.conditioning import CHOICES as CONDITIONING
from ..media.conditioning import ClipShape, check_conditioning, choose_conditioning
from ..media.placing import JSON_KEYS, check_texts, split_json
from ..models.catalogue import find_facts, find_preset
from ..models.family import Facts, Preset, ReadPrompt
from ..models.prompts import check_prompts
from ..models.registry import find_replay
from ..models.sources import Sources
from ..request import GUIDANCE_KEYS, KEYWORDS, Choices, Request, is_list
from ..samplers import CLIPS_TOGETHER, SAMPLERS, WHOLE
from .precision import Arithmetic, divided
from .sizes import clip_shape, clip_size, latent_shape, own_size, require_room

if TYPE_CHECKING:
    import torch

FEW_STEPS = ("consistency", "ddim")  # samplers of a distilled network
BLOCK = 16  # clips of a study that are denoised together, where it does not say it


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
    fast, choices = _as_fast(preset, choices)
    # what was chosen; None stands for the preset's own
    elsewhere = (*GUIDANCE_KEYS, *CONDITIONING)
    values = {name: value for name, value in choices.items() if value is not None and name not in elsewhere}
    # what the preset recommends, and what the call fixes
    own = {"sampler": preset.sampler, "steps": preset.steps, "seed": preset.seed}
    own |= {"dtype": preset.dtype, "decode_dtype": preset.decode_dtype}
    own |= {"negative_prompt": preset.negative_prompt, "timing": preset.timing} | fast
    texts = (prompts,) if isinstance(prompts, str) else prompts
    fixed: dict[str, Any] = {"model": preset.name}
    own_guidance = own.pop("cfg_scale", None) or preset.cfg_scale, preset.cfg_channels, own.pop("timing")
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
    spacing = values.get("spacing", own.get("spacing"))
    if isinstance(spacing, str) and isinstance(listed := parse_spacing(spacing), Explicit):
        own["steps"] = len(listed.timesteps)
    request = validated(Request, own | values | fixed | first, None)
    shape = latent_shape(preset, facts, request)
    require_room(facts, shape, clip_size(facts, request)[0], count, batch_size, device)
    if count > 1:
        request = validated(Request, own | values | fixed | {"prompts": tuple(texts), "samples": tuple(samples)}, None)
    conditioning = choose_conditioning(choices, clip_shape(preset, facts, request), preset.name)
    if conditioning is not None:
        request = validated(Request, dict(request) | {"conditioning": conditioning}, None)
    for prompt, text in enumerate(request.prompts):
        check_texts(text, request.loops)
        check_texts(request.negative_of(prompt) or "", request.loops)
    check_request(preset, facts, request)
    return request


def _as_fast(preset: Preset[Any], choices: Choices) -> tuple[dict[str, Any], Choices]:
    """The fast settings of a preset, by name, if they are asked for, else none; and the other choices.

    Raises:
        InputError: nothing was calibrated for the model, or a choice is one that the fast settings decide.
    """
    if not isinstance(asked := choices.get("fast"), bool | None):
        raise InputError(f"{setting('fast')} is {quoted(asked)}: give True or False")
    rest: Choices = {**choices}
    rest.pop("fast", None)
    if not asked:
        return {}, rest
    if preset.fast is None:
        raise InputError(
            f"{setting('fast')} is for a model whose settings were calibrated, and those of {preset.name} were not: "
            f"choose {setting('steps')} and {setting('sampler')}"
        )
    given = rest.get("guidance")
    timed = isinstance(given, Guidance) and given.is_timed
    # a precision may be given, since a machine may have no unit for bf16; and a scale, which says what is wanted
    decided = [name for name in preset.fast.settings if name not in ("dtype", "decode_dtype", "cfg_scale")]
    for name in (*decided, "eta", "exact"):
        if rest.get(name) is not None or (name == "timing" and timed):
            raise InputError(f"{setting('fast')} decides {setting(name)} itself: leave one of them out")
    named = [setting(name) for name in CONDITIONING if rest.get(name) is not None]
    if preset.fast.distilled and named:
        raise InputError(
            f"{named[0]} needs two branches, the network of {setting('fast')} runs one: leave one of them out"
        )
    return preset.fast.settings, rest


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
    if request.spacing is not None and isinstance(spacing := parse_spacing(request.spacing), Explicit):
        flows = facts.path == "flow"
        most = facts.timesteps - (not flows)
        spacing.check(request.steps, most, whole=request.sampler in WHOLE, above_zero=flows)
    if request.conditioning is not None:
        clip = clip_shape(preset, facts, request)
        check_conditioning(request.conditioning, clip, preset.name)
        if clip is not None and request.loops > 1:
            frames, clips = clip.joined(request.conditioning), len(request.prompts) * len(request.samples)
            pixels = 3 * math.prod(clip_size(facts, request)[1:])
            several = "a long clip" if clips == 1 else f"each of {as_count(clips)} long clips"
            require_memory(f"the {frames} frames of {several}", 2 * clips * frames * pixels, lower="loop")
    if request.distilled:
        _check_distilled(preset, facts, request)
    elif request.sampler == "consistency":
        rather = (
            setting("fast") if preset.fast is not None and preset.fast.distilled else f"another {setting('sampler')}"
        )
        warn(
            f"{setting('sampler')} consistency is for distilled networks, and may draw wrong things with the one of "
            f"{preset.name}: give {rather}"
        )
    request.guidance.scales_for(facts.channels)
    rule = request.guidance.rule
    rule.check_size(*shape[-2:])
    if isinstance(rule, SkipGuidance) and facts.blocks is not None:
        rule.numbers(facts.blocks)
    if rule.needs_weak and rule.weak == "model" and not facts.has_weak:
        raise InputError(f"{setting('guidance')} {rule.name} needs a weaker model: give {setting('weak')}")
    if rule.needs_imageless and not facts.knows_given_frames:
        raise InputError(
            f"{setting('guidance')} {rule.name} guides by given frames too, of which the network of {preset.name} is "
            "not told: choose another rule, or a model that was trained with given frames, such as open-sora-1.2"
        )
    if rule.needs_imageless and request.conditioning is None:
        raise InputError(
            f"{setting('guidance')} {rule.name} guides by given frames too, and none are: give "
            f"{setting('first_frame')}, or choose another rule"
        )
    if shape != facts.latent_shape and facts.clip is None and not preset.is_image:
        warn(
            f"{preset.name} was trained on another size or length, and may draw wrong things at this one; to look at a "
            f"clip enlarged, write it with {setting('upscale')} 4"
        )


def _check_distilled(preset: Preset[Any], facts: Facts, request: Request) -> None:
    """Refuse a request that the distilled network of a model cannot fulfil.

    Raises:
        InputError: the model has none, or the request needs a second branch or other timesteps.
    """
    if not facts.distilled and preset.fast is not None and preset.fast.distilled:
        raise InputError(
            f"the fast settings of {preset.name} sample with a network that was distilled without adapters: leave out "
            f"{setting('fast')} or {setting('lora')}"
        )
    if not facts.distilled:
        raise InputError(f"{preset.name} holds no distilled network: leave out {setting('distilled')}")
    timesteps = request.spacing and parse_spacing(request.spacing)
    listed = tuple(map(float, facts.distilled))
    if request.sampler not in FEW_STEPS or not isinstance(timesteps, Explicit) or timesteps.timesteps != listed:
        raise InputError(
            f"the distilled network of {preset.name} was trained for {setting('sampler')} consistency or ddim and "
            f"{setting('spacing')} at:{','.join(map(str, facts.distilled))}: give these, or leave out "
            f"{setting('distilled')}"
        )
    for name, given in (
        ("guidance", None if request.guidance.rule.name == "cfg" else request.guidance.rule.name),
        ("timing", None if request.guidance.timing.name == "constant" else request.guidance.timing.text),
        ("negative_prompt", request.negative_prompt),
        ("rotation", request.rotation),
        ("adaptive", request.adaptive),
        ("reuse", request.reuse),
    ):
        if given is not None:
            raise InputError(
                f"{setting(name)} {quoted(given)} needs two branches, a distilled network runs one: "
                f"leave it out, or {setting('fast')}"
            )
    if request.conditioning is not None:
        raise InputError(
            "given frames and loops need two branches, a distilled network runs one: leave them out, or "
            f"{setting('fast')}"
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
            sources: the fields of ``Sources`` and of ``Arithmetic``.

        Raises:
            InputError: the model does not exist, or files of it are missing: all of them are named.
        """
        own, files = divided(sources)
        preset = validated(Arithmetic, own, None).of(find_preset(model))
        return cls(preset, find_facts(preset, validated(Sources, files, None)))

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

    @property
    def is_image(self) -> bool:
        """Whether its clips have one frame where nobody chooses their length."""
        return own_size(self.facts)[0] == 1

    def check_prompts(self, prompts: Sequence[str], *, follow: bool = False) -> None:
        """Refuse prompts that the model cannot be given, such as a number that is no class.

        Args:
            prompts: texts.
            follow: whether to refuse those that it cannot follow, too, such as words that it does not know.
        """
        read = self.facts.read_prompts(prompts, False) if self.facts.rewrites else ()
        self.facts.check_prompts([each.read_as for each in read] or prompts)
        if follow:
            check_prompts(self.preset.name, self.facts, prompts, force=None)

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
        asked. What replaces a prompt that it can follow, and a negative prompt, is in it.

        Raises:
            InputError: a choice is not valid for this model.
        """
        request = make_request(self.preset, self.facts, prompts, samples, choices, batch_size, device)
        read = dict[str, ReadPrompt]()
        if request.negatives:
            read |= zip(request.negatives, self.facts.read_prompts(request.negatives, True), strict=True)
        if texts := [text for text in request.texts if text.strip() or self.facts.rewrites]:
            read |= zip(texts, self.facts.read_prompts(texts, False), strict=True)
        read_as = {text: to.read_as for text, to in read.items() if to.refusal is None and to.read_as != text}
        return request.model_copy(update={"read_as": read_as}) if read_as else request

    def read_prompts(self, request: Request, *, force: bool = False) -> Request:
        """A complete request, with what the text encoder is given where it is not the prompt itself.

        A warning says what of a prompt the model does not follow.

        Args:
            request: the request of ``complete``.
            force: sample a prompt that the model cannot follow, too, with a warning.

        Raises:
            InputError: the model cannot be given a prompt, or cannot follow it.
        """
        self._refuse_what_cannot_be_given(request)
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
        self._refuse_what_cannot_be_given(request)

    def _refuse_what_cannot_be_given(self, request: Request) -> None:
        """Refuse a request with a prompt or a negative prompt that the model cannot be given, as it reads them."""
        texts = [*request.texts, *request.negatives]
        self.facts.check_prompts([request.read_as.get(text, text) for text in texts] if self.facts.rewrites else texts)


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
