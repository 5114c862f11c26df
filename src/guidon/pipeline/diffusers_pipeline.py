"""Any diffusers pipeline that ``guidon.apply`` knows, as a model that studies and analyses can measure.

    pipe = guidon.load("diffusers:FOLDER", call={"height": 480, "width": 832})
    pipe = guidon.wrap(WanPipeline.from_pretrained(...).to("cuda"))

Every clip goes through the pipeline's own ``__call__``. Guidance is a hook, so that scale, channels, rule and timing
mean the same as in Guidon's own models: scale 1 is no guidance, and unguided channels are the conditional prediction.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from ..bridges.diffusers.arguments import arguments_of
from ..bridges.diffusers.clips import Asked, Clips
from ..bridges.diffusers.families import family_of
from ..bridges.diffusers.folder import class_numbers, latent_channels, variant_of
from ..bridges.diffusers.hashes import hash_pipeline
from ..core.devices import DtypeName, cpu_threads, dtype_name, pick_device, torch_dtype
from ..core.errors import InputError, quoted, setting
from ..core.extras import require
from ..core.limits import attempt
from ..core.progress import OnStep, part_of
from ..core.reading import reading
from ..core.version import VERSION
from ..core.warn import warn
from ..diffusion import convert
from ..guidance import GuidanceTrace, GuidedStep, Observe
from ..media import Video
from ..request import DIFFUSERS, Choices, Computation, Request
from .calls import check_run, read_count, read_prompts, read_samples
from .diffusers_planner import DiffusersPlanner, check_offload
from .manifests import Manifest, read_computation
from .steering import OnX0

LIBRARIES = ("diffusers", "transformers")
"""Whose versions a manifest holds, beside torch's."""


class DiffusersPipeline:
    """A diffusers pipeline as a ``ModelPipeline``.

    Args:
        pipe: the pipeline. Guidance that was applied to it is taken off.
        planner: makes its requests.
        hashes: of its parts.
    """

    def __init__(self, pipe: Any, planner: DiffusersPlanner, hashes: dict[str, str]) -> None:
        self.pipe, self.planner, self.hashes = pipe, planner, hashes
        self.distilled_hashes: dict[str, str] = {}
        self.compiles = False
        self._clips = Clips(pipe, planner.family, planner.arguments)

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return torch.device(self.pipe._execution_device)

    @property
    def keeps_parts(self) -> bool:
        """Whether all parts stay on the device: nothing is offloaded."""
        return not any(hasattr(part, "_hf_hook") for part in self.pipe.components.values())

    @property
    def channels(self) -> int:
        """Latent channels: those of the autoencoder."""
        return self.planner.channels

    def __call__(
        self, prompts: str | Sequence[str], *, num_samples: int = 1, batch_size: int = 1, **choices: Unpack[Choices]
    ) -> Video | list[Video]:
        """Videos of the prompts. One prompt and one sample give a Video, else a list with prompts outermost.

        Args:
            prompts: what to show.
            num_samples: samples of each prompt.
            batch_size: how many clips one call of the pipeline makes.
            choices: the settings (``guidon.request.Choices``).

        Raises:
            InputError: a setting is not valid for this pipeline, or there is not enough memory.
        """
        request = self.plan(prompts, range(read_count("num_samples", num_samples)), **choices)
        made = self.generate(request, batch_size=batch_size)
        return made[0] if isinstance(prompts, str) and num_samples == 1 else made

    def plan(
        self,
        prompts: str | Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = 1,
        force: bool = False,
        **choices: Unpack[Choices],
    ) -> Request:
        """The complete, validated request of some samples.

        Raises:
            InputError: a choice is not one that this pipeline can take.
        """
        return self.complete(prompts, samples, batch_size=batch_size, **choices)

    def complete(
        self,
        prompts: str | Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = 1,
        **choices: Unpack[Choices],
    ) -> Request:
        """``plan``; a diffusers pipeline takes every prompt."""
        where = {"batch_size": batch_size, "device": self.device}
        return self.planner.complete(read_prompts(prompts), read_samples(samples), **where, **choices)

    def generate(
        self,
        request: Request,
        *,
        batch_size: int = 1,
        trace: GuidanceTrace | None = None,
        on_step: OnStep | None = None,
        on_x0: OnX0 | None = None,
        like: Computation | Mapping[str, Any] | None = None,
    ) -> list[Video]:
        """The clips of a complete request, prompts outermost.

        Sample 0 of a seed starts from the noise that ``torch.Generator().manual_seed(seed)`` gives the pipeline.

        Args:
            request: what to make.
            batch_size: how many clips one call of the pipeline makes. Noise does not depend on it, last bits may. Under
                ``DPMSolverSDEScheduler``, which takes no generator, noise does. Some pipelines make one clip a call
                where they are given a picture.
            trace: collects what guidance did, one sample for each clip.
            on_step: called as ``on_step(done, total)`` after every denoising step.
            on_x0: called as ``on_x0(x0)`` at every guided step, with the clean latents (B, C, ...) that the prediction
                stands for, guided by the scale without the rule. Numbers are not finite where the noise levels of the
                scheduler are not known.
            like: how the clip was computed before: the part "computed" of its manifest.

        Raises:
            InputError: the pipeline cannot fulfil the request, or there is not enough memory.
        """
        check_run(request, {"batch_size": batch_size, "trace": trace, "on_step": on_step})
        self.planner.check(request)
        computed = read_computation(like)
        size = batch_size if computed is None else computed.batch
        size = 1 if self._clips.makes_one(request.call) else size
        clips = [(prompt, sample) for prompt in range(len(request.prompts)) for sample in request.samples]
        # A clip that was made beside others is made beside copies of itself: the number of rows moves last bits.
        copies = size if computed is not None and len(clips) == 1 else 1
        threads = None if computed is None else computed.threads
        videos: list[Video] = []
        with cpu_threads(threads):
            while len(videos) < len(clips):
                batch = clips[len(videos) : len(videos) + (1 if copies > 1 else size)]
                own = None if trace is None else GuidanceTrace(keep_x0=trace.keep_x0)
                report = part_of(on_step, -(-len(videos) // size), -(-len(clips) // size))
                observe = _observer(own, on_x0, len(batch))
                made = attempt(partial(self._make, request, batch * copies, observe, report))
                if made is not None:
                    videos += made[: len(batch)]
                    if trace is not None and own is not None and len(own):
                        trace.add_samples(own)
                elif copies > 1:
                    copies = 1
                elif len(batch) > 1:
                    size = max(1, len(batch) // 2)
                    warn(f"memory ran out, so that {size} clips are made together")
                else:
                    raise InputError(
                        f"the memory of {self.device} is full where one clip is made: lower height, width or "
                        f"num_frames in {setting('call')}, or load the pipeline with another {setting('offload')} or "
                        f"{setting('dtype')}"
                    )
        return videos

    def _make(
        self, request: Request, batch: Sequence[tuple[int, int]], observe: Observe | None, on_step: OnStep | None
    ) -> list[Video]:
        """The clips of one call."""
        frames = self._clips.frames(self._asked(request, batch), observe=observe, on_step=on_step)
        computed = Computation(batch=len(batch), threads=torch.get_num_threads()).model_dump(mode="json")
        return [
            Video(each, self.planner.fps, self._manifest(request, clip, computed) | {"frames": list(each.shape)})
            for clip, each in zip(batch, frames, strict=True)
        ]

    @contextmanager
    def decoder(self, request: Request) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from latents of a request to pixels, by the pipeline's own decoding; see ``ModelPipeline``."""
        clip = self._asked(request, [(0, request.samples[0])])
        with self._clips.decoder(clip) as decode:
            yield decode

    def reproduce(self, manifest: str | Path | Mapping[str, Any] | Manifest) -> list[Video]:
        """The clip of a manifest, computed as it was before.

        The bits are the same with the same versions, threads and kind of device, if it was made alone; of a clip that
        was made beside others, last bits may differ. A warning says what differs.

        Raises:
            InputError: it is no manifest of a clip, or this pipeline cannot make it; and as ``generate``.
        """
        found = Manifest.read(manifest)
        self.planner.check(found.request)
        like = found.computed_on(self.device)
        for line in found.differences(like, self.device, self.hashes):
            warn(line)
        return self.generate(found.request, like=like)

    def _asked(self, request: Request, batch: Sequence[tuple[int, int]]) -> Asked:
        """What one call is asked for."""
        negatives = tuple(request.negative_of(prompt) for prompt, _ in batch)
        return Asked(
            prompts=tuple(request.text_of(request.prompts[prompt]) for prompt, _ in batch),
            negatives=tuple(text for text in negatives if text is not None) or None,
            guidance=request.guidance,
            steps=request.steps,
            seeds=tuple(_seed(*request.noise_of(*clip)) for clip in batch),
            call=request.call,
        )

    def _manifest(self, request: Request, clip: tuple[int, int], computed: dict[str, Any]) -> dict[str, Any]:
        return {
            "guidon": VERSION,
            "generation": request.alone(*clip).model_dump(mode="json"),
            "computed": computed,
            "weights": self.hashes,
            "pipeline": type(self.pipe).__name__,
            "torch": torch.__version__,
            **{name: found for name in LIBRARIES if (found := _version(name)) is not None},
            "python": sys.version.split()[0],
            "device": str(self.device),
            "fps": self.planner.fps,
        }

    def __repr__(self) -> str:
        return f"<DiffusersPipeline {self.planner.name!r}, {type(self.pipe).__name__}, on {self.device}>"


def _observer(trace: GuidanceTrace | None, on_x0: OnX0 | None, clips: int) -> Observe | None:
    """What sees every guided step of the first clips of a call: a trace, and a preview."""
    if trace is None and on_x0 is None:
        return None

    def observe(step: GuidedStep) -> None:
        step = replace(step, cond=step.cond[:clips], uncond=step.uncond[:clips], x=step.x[:clips])  # without copies
        if trace is not None:
            trace(step)
        if on_x0 is not None:
            scales = torch.tensor(step.scale.scales).to(step.x)[:, *[None] * (step.x.ndim - 2)]
            guided = step.uncond + scales * (step.cond - step.uncond)
            on_x0(convert(guided, step.x, step.level, step.parameterization, "x0").float())

    return observe


def wrap(pipe: Any, *, call: Mapping[str, Any] | None = None) -> DiffusersPipeline:
    """A diffusers pipeline of yours as a model that studies and analyses can measure.

    ``guidon.analysis.spectrum.spectrum(guidon.wrap(pipe), ["a red fox"])``

    Device, precision, scheduler, adapters, offloading and compilation stay yours. If you change the weights, wrap it
    again: manifests hold a hash of them. Guidance that was applied to it is taken off.

    Args:
        pipe: a pipeline that ``guidon.apply`` knows.
        call: arguments of every call, such as ``{"height": 480, "width": 832, "num_frames": 81}``.

    Raises:
        InputError: its guidance is not known, it has no autoencoder, or its call has no such argument.
    """
    if isinstance(pipe, torch.nn.Module) or not isinstance(getattr(pipe, "components", None), dict):
        raise InputError(f"{quoted(pipe)} is not a pipeline: give one of diffusers, such as a WanPipeline")
    family = family_of(type(pipe))
    if not family.known:
        raise InputError(
            f"the guidance of {type(pipe).__name__} is not known, so that scales and rules cannot be compared in it: "
            "give one of the pipelines in docs/diffusers-support.md"
        )
    channels = latent_channels(dict(getattr(getattr(pipe, "vae", None), "config", None) or {}))
    if channels is None:
        raise InputError(f"{type(pipe).__name__} has no autoencoder that says its latent channels: load it with one")
    network = next((part for name in family.networks if (part := getattr(pipe, name, None)) is not None), None)
    if network is None:
        raise InputError(f"{type(pipe).__name__} has no {' or '.join(family.networks)}: load it with one")
    place = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
    guider = getattr(getattr(pipe, "guider", None), "guidance_scale", None)
    planner = DiffusersPlanner.of(
        f"{DIFFUSERS}{place}", family, arguments_of(pipe), channels, dtype_name(network.dtype) or "fp32", call or {},
        class_numbers(pipe.config.get("id2label")), None if guider is None else float(guider),
    )  # fmt: skip
    return DiffusersPipeline(pipe, planner, hash_pipeline(pipe))


def load_folder(
    folder: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: DtypeName | None = None,
    offload: str | None = None,
    call: Mapping[str, Any] | None = None,
) -> DiffusersPipeline:
    """The pipeline in a folder that diffusers' ``save_pretrained`` wrote.

    Args:
        folder: the folder.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: the precision of all its parts; None for that of the denoiser's weights.
        offload: what is kept on the device. "none" or None: everything. "model": the part that computes.
            "sequential": the layer that computes, which is slow.
        call: arguments of every call, such as ``{"height": 480}``.

    Raises:
        InputError: it holds no pipeline that Guidon knows, files are damaged, the call has no such argument, or there
            is not enough memory.
    """
    planner, place = DiffusersPlanner.find(folder, call=call, dtype=dtype), pick_device(str(device))
    check_offload(offload)
    if offload in ("model", "sequential"):
        require("accelerate", "offload", "diffusers")
    pipe = attempt(partial(_read, Path(folder), torch_dtype(planner.dtype), variant_of(Path(folder), planner.family)))
    if pipe is None:
        raise InputError(f"{folder} needs more memory than this machine has: give {setting('dtype')} bf16")
    hashes = hash_pipeline(pipe)
    if attempt(partial(_place, pipe, place, offload)) is None:
        raise InputError(f"{folder} needs more memory than {place} has: give {setting('offload')} model, or sequential")
    return DiffusersPipeline(pipe, planner, hashes)


def _read(folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    """The pipeline on the CPU."""
    diffusers: Any = require("diffusers", "a pipeline of diffusers", "diffusers")
    options = {"dtype" if _since(diffusers, 0, 42) else "torch_dtype": dtype, "variant": variant}
    with (
        reading(folder, "a pipeline of diffusers", "download or save it again"),
        _without_bars(diffusers),
        _loading_all(folder),
    ):
        return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)


class _Random(logging.Handler):
    """Notes which weights the libraries have drawn at random, because the files lack them or hold another shape."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.parts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"\x1b\[[\d;]*m", "", record.getMessage())  # without colours
        if re.search(r"newly initialized|\bMISSING\b|\bMISMATCH\b", text):
            named = re.search(r"(\w+) LOAD REPORT|weights of (\w+)", text)
            self.parts.append(next(filter(None, named.groups()), "a part") if named else "a part")


@contextmanager
def _loading_all(folder: Path) -> Iterator[None]:
    """Refuse a pipeline some of whose weights are not in its files.

    Raises:
        InputError: the libraries have drawn weights at random, and say so in their logs alone.
    """
    seen, levels = _Random(), {logger: logger.level for logger in map(logging.getLogger, LIBRARIES)}
    for logger in levels:
        logger.addHandler(seen)
        logger.setLevel(min(logger.getEffectiveLevel(), logging.WARNING))  # the user may have silenced it
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.removeHandler(seen)
            logger.setLevel(level)
    if seen.parts:
        raise InputError(
            f"{folder} misses weights of {', '.join(dict.fromkeys(seen.parts))}, or holds others of another shape, so "
            "that random ones would be used: download or save it again"
        )


def _since(diffusers: Any, *release: int) -> bool:
    """Whether the installed diffusers is of this release, or later."""
    found = re.findall(r"\d+", diffusers.__version__)[: len(release)]
    return tuple(map(int, found)) >= release


def _place(pipe: Any, device: torch.device, offload: str | None) -> bool:
    """Put a pipeline where it is to compute."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return True


@contextmanager
def _without_bars(diffusers: Any) -> Iterator[None]:
    """Without the bars of progress that diffusers and transformers show where they load."""
    loggings = [diffusers.utils.logging]
    if find_spec("transformers") is not None:  # it loads the text encoders
        loggings.append(import_module("transformers.utils.logging"))
    shown: list[Any] = [library for library in loggings if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _seed(seed: int, sample: int) -> int:
    """The seed of a sample's generator: sample 0 has the seed itself."""
    if sample == 0:
        return seed
    return int.from_bytes(sha256(f"{seed} {sample}".encode()).digest()[:8]) >> 1


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
