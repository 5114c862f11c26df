"""The ``guidon generate`` commands that do what an inference configuration of Open-Sora says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...core.errors import InputError, quoted, setting
from ...media.placing import split_json, texts_of_loops
from ...models.catalogue import presets
from ...models.family import Preset
from ...models.stdit3 import AESTHETIC, CHUNK_LATENTS
from .conditioning import (
    append_score_to_prompts,
    dframe_to_frame,
    get_image_size,
    get_num_frames,
    parse_mask_strategy,
)
from .config import EACH, NUMBER, TEXT, WHAT, WHOLE, check_values

Version = Literal["1.0", "1.1", "1.2"]
Settings = list[tuple[str, str | None]]
"""Names and values of settings, as ``guidon generate`` has them; the value None switches one on."""


@dataclass(frozen=True)
class Command:
    """One run of ``guidon generate``."""

    prompts: tuple[str, ...]
    """What to show; none where a file says it."""
    settings: Settings
    """The settings, in order. A name may come several times."""


@dataclass(frozen=True)
class Translation:
    """What ``guidon generate`` can do of a configuration."""

    version: Version
    """The version of Open-Sora that it is for."""
    commands: list[Command] = field(default_factory=list["Command"])
    """There is more than one where prompts have references of their own."""
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    """What cannot be done, by key, and why or what to do."""


_NO_EFFECT = (
    "enable_flashattn", "enable_flash_attn", "enable_layernorm_kernel", "enable_sequence_parallelism",
    "micro_batch_size", "micro_frame_size", "cache_dir", "shardformer", "verbose", "no_temporal_pos_emb",
    "local_files_only",
)  # fmt: skip
"""Keys that decide how fast or where it runs, or that say again what the weights are."""
_CANNOT = {
    "llm_refine": "prompts are not rewritten: write them as they are to be read",
    "prompt_generator": "prompts are not written by a language model: write them",
    "watermark": "no watermark is put on: use a video editor",
    "prompt_as_path": "files are named after their prompts in any case",
    "sample_name": "files are named after prompt, seed and settings",
    "start_index": "give a file with the prompts that you want",
    "end_index": "give a file with the prompts that you want",
    "scale_factor": "the autoencoder's own factor is used",
    "subfolder": "give the folder itself as the autoencoder",
}
_TYPES = {"STDiT-XL/2": "STDiT", "STDiT2-XL/2": "STDiT2", "STDiT3-XL/2": "STDiT3", "DiT-XL/2": "DiT"} | dict.fromkeys(
    ("PixArt-XL/2", "PixArtMS-XL/2"), "PixArt"
)
"""Networks by their names in configurations, and the families that hold them."""
_ANY_SIZE = ("STDiT2", "STDiT3")
"""Families of one network for every size and length: their commands name both."""
_SAMPLERS = {"iddpm": "ddpm", "dpm-solver": "dpm-solver", "rflow": "euler"}
_SEED = {"1.0": 42, "1.1": 42, "1.2": 1024}  # of the scripts, where a configuration says none


_EXPECTED = {
    **dict.fromkeys(
        ("loop", "condition_frame_length", "align", "batch_size", "num_sample", "frame_interval", "seed"), WHOLE
    ),
    **dict.fromkeys(("condition_frame_edit", "aes", "flow", "fps", "save_fps"), NUMBER),
    **dict.fromkeys(("camera_motion", "dtype", "prompt_path", "save_dir", "resolution", "aspect_ratio"), TEXT),
    **dict.fromkeys(("prompt", "reference_path", "mask_strategy"), EACH),
}
"""What the values of keys must be; None is a value of every key."""
_EXPECTED_OF_SCHEDULER = {"num_sampling_steps": WHOLE, "cfg_scale": NUMBER, "cfg_channel": WHOLE}


def translate(config: Mapping[str, Any], source: Path, version: Version | None = None) -> Translation:
    """The commands that do what a configuration says.

    Args:
        config: what ``read_config`` gave.
        source: its file, for messages.
        version: of Open-Sora; None finds it out. Guidance without ``cfg_channel`` acts on three channels in 1.0, and
            on all in later ones.

    Raises:
        InputError: it is no inference configuration, or one of its values cannot be.
    """
    model, scheduler = (_part(config, name, source) for name in ("model", "scheduler"))
    check_values(config, _EXPECTED, source)
    check_values(scheduler, _EXPECTED_OF_SCHEDULER, source)
    for network, first in (("STDiT3", "1.2"), ("STDiT2", "1.1")):
        if model["type"].startswith(network) and version is not None and version < first:
            raise InputError(
                f"{source} has a {network}, which Open-Sora has from {first} on: leave out {setting('version')} "
                f"{version!r}"
            )
    return _Reader(config, model, scheduler, version or _version_of(config, model)).read()


def _part(config: Mapping[str, Any], name: str, source: Path) -> Mapping[str, Any]:
    found = config.get(name)
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        other = "; it has a dataset, as trainings and tests of an autoencoder do" if "dataset" in config else ""
        raise InputError(f"{source} is not {WHAT}: it has no {name} = dict(type=...){other}")
    return found


def _version_of(config: Mapping[str, Any], model: Mapping[str, Any]) -> Version:
    """The version that a configuration was written for, by its network and by keys that were renamed."""
    if model["type"].startswith("STDiT3"):
        return "1.2"
    scheduler = config["scheduler"]
    later = "enable_flash_attn" in model or "cfg_channel" in scheduler or config.get("dtype") == "bf16"
    return "1.1" if later or model["type"].startswith("STDiT2") or isinstance(config.get("prompt"), list) else "1.0"


class _Reader:
    """Goes through a configuration, key by key."""

    def __init__(
        self, config: Mapping[str, Any], model: Mapping[str, Any], scheduler: Mapping[str, Any], version: Version
    ) -> None:
        self.config, self.model, self.scheduler = config, model, scheduler
        self.found = Translation(version)
        self.used: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """A value of the configuration, which is then dealt with."""
        self.used.add(name)
        value = self.config.get(name, default)
        return default if value is None else value

    def leave_out(self, name: str, why: str) -> None:
        self.found.left_out.setdefault(name, why)

    def read(self) -> Translation:
        """The whole translation."""
        frames = get_num_frames(self.get("num_frames", 1))
        size = self._size()
        preset = self._preset(frames, size)
        if preset is None:  # no command does any of it
            return self.found
        words: Settings = [("model", preset.name), *self._weights(preset), *self._shape(preset, frames, size)]
        words += [*self._sampling(preset), *self._output(preset)]
        if "scheduler.type" not in self.found.left_out:  # another sampler makes other clips
            self._conditions(words, preset, frames)
            self._rest()
        return self.found

    def _size(self) -> tuple[int, int]:
        size = self.get("image_size")
        resolution, ratio = self.get("resolution"), self.get("aspect_ratio")
        if size is None and resolution is not None and ratio is not None:
            return get_image_size(resolution, ratio)
        if isinstance(size, int):
            size = (size, size)
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise InputError(
                f"image_size is {quoted(size)}: give (height, width), or resolution and aspect_ratio, such as '240p' "
                "and '9:16'"
            )
        return int(size[0]), int(size[1])

    def _preset(self, frames: int, size: tuple[int, int]) -> Preset[Any] | None:
        """The preset of the network; None where there is none."""
        kind, stored = self.model["type"], str(self.model.get("from_pretrained", ""))
        family = _TYPES.get(kind)
        of_family = [each for each in presets().values() if each.family == family]
        # images of networks for images, videos of those for videos
        fitting = [each for each in of_family if each.is_image == (frames == 1) or not each.is_image]
        if family is None or not fitting:
            known = ", ".join(kind for kind, family in _TYPES.items() if _has_preset(family))
            why = f"{kind} is none of the networks that Guidon has: {known}"
            if fitting != of_family:
                why = f"Guidon has this network for images, the configuration asks for {frames} frames"
            self.leave_out("model", why)
            return None
        if kind == "DiT-XL/2" and self.model.get("condition") != "label_1000":
            self.leave_out("model", "Guidon's DiT takes classes of ImageNet, the configuration asks for text")
            return None
        same = [each for each in fitting if stored in (each.weights.repository, each.weights.file)]
        return min(same or fitting, key=lambda each: _distance(each, frames, size))

    def _weights(self, preset: Preset[Any]) -> Settings:
        """Settings for the files of the model's parts."""
        words: Settings = []
        download = False
        for part, name_here in (("model", "checkpoint"), ("text_encoder", "text_encoder"), ("vae", "vae")):
            settings = self.config.get(part)
            self.used.add(part)
            if not isinstance(settings, dict):
                continue
            stored = settings.get("from_pretrained")
            if settings.get("type") == "clip":
                self.leave_out("text_encoder", "Guidon's networks read captions by T5, the configuration asks for CLIP")
            elif isinstance(stored, str) and stored and not (preset.classes and part == "text_encoder"):
                if _is_on_hub(stored):
                    download = True
                    if part != "text_encoder" and not _is_own(preset, part, stored):
                        self.leave_out(f"{part}.from_pretrained", f"download {stored}, and give it as the {name_here}")
                else:
                    words.append((name_here, stored))
            for name, value in settings.items():
                self._check_setting(part, name, value, preset)
        return [*words, ("download", None)] if download else words

    def _check_setting(self, part: str, name: str, value: Any, preset: Preset[Any]) -> None:
        """Say of a setting of a part if it is other than what the preset's weights have."""
        expected: dict[str, Any] = {
            "qk_norm": True,
            "input_sq_size": 512,
            "qk_norm_legacy": self.found.version != "1.2",
        }
        expected |= preset.weights.config
        expected.setdefault("time_scale", 1.0)
        if preset.family == "PixArt":
            expected["space_scale"] = preset.weights.config["lewei_scale"]
        if name in ("type", "from_pretrained", "condition", "num_classes", "model_max_length", *_NO_EFFECT):
            return
        if name in expected and value == expected[name]:
            return
        why = (
            "the preset's network has another one" if name in expected else _CANNOT.get(name, "Guidon does not read it")
        )
        self.leave_out(f"{part}.{name}", why)

    def _shape(self, preset: Preset[Any], frames: int, size: tuple[int, int]) -> Settings:
        words: Settings = []
        own = _own_shape(preset)
        any_size = preset.family in _ANY_SIZE
        if size != own[1:] or any_size:
            if "size" in preset.sizes:
                words.append(("size", f"{size[0]}x{size[1]}"))
            else:
                self.leave_out("image_size", f"{preset.name} makes {own[1]}x{own[2]} only")
        if (frames != own[0] or any_size) and not preset.is_image:
            words.append(("frames", str(frames)))
        return words

    def _sampling(self, preset: Preset[Any]) -> Settings:
        scheduler = {name: value for name, value in self.scheduler.items() if value is not None}
        self.used.add("scheduler")
        kind = scheduler["type"].removesuffix("-speed")
        sampler = _SAMPLERS.get(kind)
        words: Settings = []
        flow = kind == "rflow"
        if sampler is None:
            self.leave_out("scheduler.type", f"{scheduler['type']} is not one of {', '.join(_SAMPLERS)}")
        elif flow != (preset.sampler == "euler"):
            trained = "rectified flow" if preset.sampler == "euler" else "diffusion"
            self.leave_out("scheduler.type", f"the weights of {preset.name} were trained for {trained}")
        else:
            words.append(("sampler", sampler))
        steps = scheduler.get("num_sampling_steps", 10 if flow else 1000 if kind == "iddpm" else 20)
        words += [("steps", str(steps)), ("cfg_scale", f"{float(scheduler.get('cfg_scale', 4.0)):g}")]
        channels = scheduler.get("cfg_channel", 3 if kind == "iddpm" and self.found.version == "1.0" else None)
        # 0 channels are none here, where a count is at least 1
        words.append(("cfg_channels", "all" if channels is None else str(channels or "none")))
        for name, value in scheduler.items():
            if name == "use_timestep_transform" and flow and value is True:
                continue
            if name not in ("type", "num_sampling_steps", "cfg_scale", "cfg_channel") and value:
                self.leave_out(f"scheduler.{name}", "Guidon does not read it")
        if flow and preset.sampler == "euler" and not scheduler.get("use_timestep_transform", False):
            self.leave_out("scheduler.use_timestep_transform", f"the levels of {preset.name} depend on the size")
        dtype, seed = self.get("dtype", "fp32"), self.get("seed", _SEED[self.found.version])
        words += [("dtype", str(dtype)), ("seed", str(seed))]
        words.append(("batch_size", str(self.get("batch_size", 1))))
        if isinstance(count := self.get("num_sample"), int) and count > 1:
            words.append(("num_samples", str(count)))
        return words

    def _output(self, preset: Preset[Any]) -> Settings:
        words: Settings = []
        if folder := self.get("save_dir"):
            words.append(("out", str(folder)))
        fps, interval = self.get("fps"), self.get("frame_interval", 1)
        if isinstance(fps, int | float) and isinstance(interval, int) and interval > 0:
            played = self.get("save_fps", fps // interval)
            if not preset.is_image and played != preset.fps:
                words.append(("fps", f"{played:g}"))
        self.get("save_fps")
        return words

    def _conditions(self, words: Settings, preset: Preset[Any], frames: int) -> None:
        """The commands, one for all prompts, or one for each where they have references of their own."""
        prompts, file = self.get("prompt"), self.get("prompt_path")
        texts = [prompts] if isinstance(prompts, str) else [str(each) for each in prompts or ()]
        joined, references, strategies = self._loops(frames), self.get("reference_path"), self.get("mask_strategy")
        scores = {name: self.get(name) for name in ("aes", "flow", "camera_motion")}
        scored = texts and all(AESTHETIC in text for text in texts)
        if preset.family == "STDiT3" and scores["aes"] is None and not scored:
            self.leave_out(
                "aes",
                f"the configuration adds no score, and {preset.name} reads a prompt without an aesthetic score with "
                "6.5: write the score that you want at the end of each prompt",
            )
        if not texts:
            for name, given in (("reference_path", references), ("mask_strategy", strategies)):
                if given:
                    self.leave_out(name, "prompts of a file share their references: write the prompts as a list")
            if any(value is not None and (name, value) != ("aes", 6.5) for name, value in scores.items()):
                self.leave_out("aes, flow, camera_motion", "write the scores at the end of each prompt of the file")
            from_file: Settings = [("prompts_file", str(file))] if file else []
            exact = [] if joined else self._exact(preset)
            prompts = () if file else ("PROMPT",)
            self.found.commands.append(Command(prompts, [*from_file, *words, *exact, *joined]))
            return
        if file:
            self.leave_out("prompt_path", "prompt wins, as in Open-Sora")
        each_with: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        for number, prompt in enumerate(texts):
            text, own = split_json(prompt)
            reference = own.get("reference_path", _nth(references, number))
            strategy = own.get("mask_strategy", _nth(strategies, number))
            text = _with_scores(text.strip(), scores)
            each_with.append((text, (*self._references(reference, strategy),)))
        for given in dict.fromkeys(given for _, given in each_with):  # prompts with the same references share a command
            together = tuple(text for text, others in each_with if others == given)
            exact = [] if given or joined else self._exact(preset)
            self.found.commands.append(Command(together, [*words, *exact, *given, *joined]))

    def _exact(self, preset: Preset[Any]) -> Settings:
        """The replay of the version's draws, where there is one and frames are not given."""
        name = f"open-sora-{self.found.version}"
        replays = name in preset.originals and self.scheduler["type"] != "dpm-solver"
        return [("exact", name)] if replays else []

    def _references(self, reference: Any, strategy: Any) -> Iterator[tuple[str, str | None]]:
        if not reference or not strategy:
            return
        parse_mask_strategy(strategy)
        for path in str(reference).split(";"):
            if "://" in path:
                name = path.rpartition("/")[2] or "reference"
                self.leave_out("reference_path", f"fetch {path} as {name} first: Guidon reads files")
                path = name
            yield "reference", path
        yield "mask_strategy", str(strategy)

    def _loops(self, frames: int) -> Settings:
        loop = self.get("loop", 1)
        new = self.found.version == "1.2"
        length = self.get("condition_frame_length", CHUNK_LATENTS if new else 4)
        edit = self.get("condition_frame_edit", 0.0)
        align = self.get("align")
        if new and align not in (None, CHUNK_LATENTS):
            self.leave_out("align", f"frames are placed at multiples of {CHUNK_LATENTS} latent frames")
        if not isinstance(loop, int) or loop < 2:
            return []
        taken = dframe_to_frame(length) if new else length
        if taken >= frames:
            self.leave_out("condition_frame_length", f"{taken} frames of a clip of {frames} leave nothing to make")
            return []
        words: Settings = [("loop", str(loop)), ("condition_frames", str(taken))]
        return [*words, ("condition_edit", f"{edit:g}")] if edit else words

    def _rest(self) -> None:
        """Name every key that was not dealt with."""
        self.used |= {"model", "scheduler", "vae", "text_encoder", "multi_resolution", *_NO_EFFECT}
        for name, value in self.config.items():
            if name in _CANNOT and value not in (None, False, "", 0):
                self.leave_out(name, _CANNOT[name])
            elif name not in self.used and name not in _CANNOT and value is not None:
                self.leave_out(name, "Guidon does not read it")


def _has_preset(family: str) -> bool:
    return any(each.family == family for each in presets().values())


def _distance(preset: Preset[Any], frames: int, size: tuple[int, int]) -> tuple[int, int]:
    own = _own_shape(preset)
    return abs(own[0] - frames), abs(own[1] * own[2] - size[0] * size[1])


def _own_shape(preset: Preset[Any]) -> tuple[int, int, int]:
    """Frames, height and width that a preset of released weights makes."""
    shape = preset.weights.latent_shape
    return (shape[1] if len(shape) == 4 else 1), shape[-2] * 8, shape[-1] * 8


def _is_on_hub(name: str) -> bool:
    """Whether it looks like a repository, ``owner/name``, and not like a path."""
    owner, slash, rest = name.partition("/")
    return (
        bool(slash and owner and rest)
        and "/" not in rest
        and owner[0] not in ".~"
        and not Path(name).exists()
        and ("." not in rest.rpartition("-")[0] or not rest.endswith((".pt", ".pth", ".safetensors")))
    )


def _is_own(preset: Preset[Any], part: str, name: str) -> bool:
    weights = preset.weights
    return name in ((weights.vae,) if part == "vae" else (weights.repository, weights.file))


def _nth(given: Any, number: int) -> Any:
    """The value for one prompt: its own of a list, or one text for all."""
    if isinstance(given, str):
        return given
    return given[number] if isinstance(given, list | tuple) and number < len(given) else None


def _with_scores(text: str, scores: Mapping[str, Any]) -> str:
    """A prompt with its scores, in every part of it that is for another loop."""
    parts = texts_of_loops(text)
    if len(parts) == 1 and not text.startswith("|0|"):
        return append_score_to_prompts([text], **scores)[0]
    scored = zip(parts, append_score_to_prompts([part.strip() for _, part in parts], **scores), strict=True)
    return "".join(f"|{start}|{part}" for (start, _), part in scored)
