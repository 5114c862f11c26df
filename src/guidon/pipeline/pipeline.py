"""Prompt to video, top to bottom: encode, guide, sample, decode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import numpy as np
import torch
from torch import Tensor

from ..core.devices import autocast, cpu_threads, dtype_name, pick_device
from ..core.errors import InputError, quoted, setting
from ..core.progress import late_progress, part_of
from ..core.ranks import Ranks
from ..core.version import VERSION
from ..core.warn import warn
from ..media import Video
from ..media.layouts import DiffusersOutput, frames_as
from ..media.placing import texts_of_loops
from ..models.catalogue import find_model, find_preset
from ..models.family import Preset
from ..models.model import Model
from ..models.sources import Sources, weights_for
from ..models.text.prompts import PromptMemory, Prompts
from ..request import Choices, Computation, Request
from ..samplers import CLIPS_TOGETHER
from .calls import CallOptions, ClipOptions, OutputType, Prompted, RunOptions, check_run, read_call, read_plan
from .compilation import Compilation
from .diffusers_names import ATTRIBUTES, no_attribute
from .division import Division, divide
from .generation import Denoised, Generation, decode, warn_of_fallback
from .kept import Keeper
from .manifests import Manifest, read_computation
from .planner import Planner
from .sizes import own_size, require_room
from .steering import Steering, start_from


@dataclass(frozen=True)
class _Run:
    """The latents of a request's clips, and how they were computed."""

    request: Request
    asked: Computation
    """How they were to be computed."""
    clips: list[Denoised]
    size: int
    """Clips of the last batch."""
    threads: int
    ranks: Ranks | None = None
    """The ranks that share the work; None for this process alone."""
    compiled: bool = False
    """Whether the networks were compiled."""

    def computed(self, clip: Denoised, micro_batch: int) -> Computation:
        """How one clip was computed."""
        return Computation(
            batch=clip.batch, sequential=clip.sequential, micro_batch=micro_batch, threads=self.threads,
            compiled=self.compiled,
        )  # fmt: skip


class _Named(type):
    """Says what to do where a class method of diffusers is looked for, such as ``from_pretrained``."""

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(cls, name: str) -> Any:
            raise AttributeError(no_attribute(name))


class Pipeline(metaclass=_Named):
    """A text encoder, a network and an autoencoder, one after the other, with a preset's recommended settings.

    Args:
        preset: the settings of what a call leaves out.
        model: the three stages, and the diffusion that the network was trained for.
        device: where they run.
        sources: where the model's files are; None where the weights are another pipeline's.
        compilation: compiles the networks; None to run them as they are.
    """

    def __init__(
        self,
        preset: Preset[Any],
        model: Model,
        device: torch.device,
        sources: Sources | None = None,
        compilation: Compilation | None = None,
    ) -> None:
        self.preset, self.sources, self.compilation = preset, sources, compilation
        self._shows_progress, self._interrupt = True, False
        self._use(model, device)

    def _use(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device
        self.channels, self.hashes = model.facts.channels, model.all_hashes
        self._prompts = PromptMemory(model.text)
        self._weak_prompts = None
        if model.weak is not None:
            self._weak_prompts = self._prompts if model.reads_as_weak else PromptMemory(model.weak.text)

    @property
    def distilled_hashes(self) -> dict[str, str]:
        """The hash of the distilled network, by its name; empty where the model has none."""
        return self.model.distilled_hashes

    @property
    def compiles(self) -> bool:
        """Whether the blocks of the network are compiled before a run."""
        return self.compilation is not None

    @property
    def keeps_parts(self) -> bool:
        """Whether the stages stay in memory after use."""
        return self.model.vae.keep

    @property
    def planner(self) -> Planner:
        """Makes the requests of this model."""
        return Planner(self.preset, self.model.facts)

    @overload
    def __call__(self, prompts: str, *, output_type: None = None, **options: Unpack[ClipOptions]) -> Video: ...
    @overload
    def __call__(
        self, prompts: Prompted = None, *, output_type: None = None, **options: Unpack[CallOptions]
    ) -> Any: ...
    @overload
    def __call__(
        self, prompts: Prompted = None, *, output_type: OutputType, **options: Unpack[CallOptions]
    ) -> DiffusersOutput: ...
    def __call__(
        self, prompts: Prompted = None, *, output_type: OutputType | None = None, **options: Unpack[CallOptions]
    ) -> Any:
        """Videos of the prompts. One prompt and one sample give a Video, else a list with prompts outermost.

        Work over two seconds shows its progress in a terminal and in a notebook, unless ``on_step`` is given.

        Args:
            prompts: what to show; for a class-conditional model, the class numbers as text.
            output_type: "np", "pt", "pil" or "latent" gives a ``DiffusersOutput``; None gives videos.
            options: the settings, such as ``cfg_scale`` and ``seed``: ``help(guidon.Choices)`` lists them; how to run;
                ``num_samples``, for samples 0 to ``num_samples - 1`` of each prompt; and what diffusers calls these:
                ``help(guidon.CallOptions)`` lists all.

        Raises:
            InputError: an option is not valid for this model, or the clips need more memory than there is.
        """
        call = read_call(prompts, output_type, options)
        samples = range(call.num_samples)
        request = self.plan(call.prompts, samples, batch_size=call.batch_size, force=call.force, **call.choices)
        own = call.run.get("on_step")
        shows, then = own is None and self._shows_progress, "" if output_type == "latent" else "decoding"
        if output_type == "latent" and request.loops > 1:
            raise InputError(
                f"output_type 'latent' is for one clip, {setting('loop')} {request.loops} makes several: give another"
            )
        with late_progress("denoising", then=then) if shows else nullcontext(own) as on_step:
            how: RunOptions = {**call.run, "on_step": on_step, "reference_frames": call.given_frames}
            if output_type == "latent":
                run = self._denoise(request, None, how, self._keeper(request, how))
                latents = torch.cat([clip.latent for clip in run.clips])
                manifests = tuple(self._manifest(run, clip, run.asked.micro_batch) for clip in run.clips)
                return call.form(DiffusersOutput(latents, manifests, self.preset.is_image))
            videos = self._make(request, None, how)
        if output_type is None:
            return call.form(videos)
        manifests = tuple(video.manifest for video in videos)
        return call.form(DiffusersOutput(frames_as(videos, output_type), manifests, self.preset.is_image))

    def plan(
        self,
        prompts: str | Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = CLIPS_TOGETHER,
        force: bool = False,
        **choices: Unpack[Choices],
    ) -> Request:
        """The complete, validated request of some samples; the other arguments are those of a call.

        A warning says what of a prompt the model does not follow.

        Raises:
            InputError: a choice is not valid for this model, or it cannot follow a prompt.
        """
        asked = read_plan(prompts, samples, batch_size, choices)
        return self.planner.plan(**asked, device=self.device, force=force)

    def complete(
        self,
        prompts: str | Sequence[str],
        samples: Sequence[int] = (0,),
        *,
        batch_size: int = CLIPS_TOGETHER,
        **choices: Unpack[Choices],
    ) -> Request:
        """``plan`` for captions of a bench: whether the model can follow them is not asked.

        Raises:
            InputError: a choice is not valid for this model.
        """
        return self.planner.complete(**read_plan(prompts, samples, batch_size, choices), device=self.device)

    def generate(
        self,
        request: Request,
        *,
        like: Computation | Mapping[str, Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> list[Video]:
        """The videos of a complete request, prompts outermost.

        Where memory runs out, clips are denoised in smaller batches, then one branch after the other, then fewer frames
        are decoded at a time. A warning says so, and the manifests.

        Args:
            request: what to make.
            like: how the clip of the request was computed before: the part "computed" of its manifest. It is then
                computed in the same way, which gives the same bits. ``batch_size`` and ``sequential`` have no effect.
            options: how to run; see ``guidon.CallOptions``.

        Raises:
            InputError: weights cannot be read or do not fit, a class is not in the model, the clips of a trace do not
                fit one batch, numbers overflow, or there is not enough memory.
        """
        return self._make(request, read_computation(like), options)

    def extend(self, prompt: str, **options: Unpack[ClipOptions]) -> Iterator[Video]:
        """The parts of a video without end, as they are made: the first clip, then what each further one adds to it.

        Each clip begins with the last ``condition_frames`` frames of the one before, which its part does not repeat.
        A prompt such as ``"|0|a cat|2|a dog"`` changes what is shown from the third clip on. The manifest of a part
        reproduces the whole video up to it.

        Args:
            prompt: what to show.
            options: as of a call of the pipeline.

        Raises:
            InputError: as a call, the model makes images, or an option ends the video.
        """
        call = read_call(prompt, None, cast("CallOptions", options))
        if not call.single:
            raise InputError("extend makes one video: give one prompt as a text, and one sample")
        choices: Choices = {**call.choices}
        for name in ("loop", "last_frame", "connect_to"):
            if choices.get(name) is not None:
                raise InputError(
                    f"{setting(name)} ends a video, and extend goes on: leave it out, or call the pipeline"
                )
        choices["loop"] = max(2, 1 + texts_of_loops(call.prompts[0])[-1][0])  # it says that there will be other clips
        request = self.plan(call.prompts, batch_size=call.batch_size, force=call.force, **choices)
        how: RunOptions = {**call.run, "reference_frames": call.given_frames}
        for loop, (run, clips, micro_batch) in enumerate(self._parts(request, None, how, None)):
            assert request.conditioning is not None
            so_far = request.conditioning.up_to(loop + 1)
            asked = run.request.model_copy(update={"conditioning": so_far})
            skipped = (request.conditioning.condition_frames or 0) if loop else 0
            yield self._video(replace(run, request=asked), run.clips[0], clips[0][skipped:], micro_batch)

    def reproduce(
        self, manifest: str | Path | Mapping[str, Any] | Manifest, **options: Unpack[RunOptions]
    ) -> list[Video]:
        """The clips of a manifest, computed as they were before: one, or all those of an exact replay.

        The bits are the same with the same versions, threads and kind of device. A warning says what differs.

        Args:
            manifest: its file, the clip that it lies beside, or its content, such as ``video.manifest``.
            options: how to run. With ``batch_size``, or ``sequential=True``, clips are not computed as before: pixels
                may differ by 1/255.

        Raises:
            InputError: it is no manifest of a clip, or this model cannot make it; and as ``generate``.
        """
        found = Manifest.read(manifest)
        self.planner.check(found.request)
        check_run(found.request, options)
        anew = options.get("batch_size") is not None or options.get("sequential")
        like = None if anew else found.computed_on(self.device)
        hashes = self.hashes_for(found.request)
        found.refuse_other_weak(hashes)
        for line in found.differences(like, self.device, hashes, compiled=self.compilation is not None):
            warn(line)
        return self._make(found.request, like, options, [] if found.folder is None else [found.folder])

    def _make(
        self, request: Request, like: Computation | None, options: RunOptions, folders: Sequence[Path] = ()
    ) -> list[Video]:
        """The videos of a request, those of several loops joined. References are looked for in ``folders`` too."""
        check_run(request, options)
        *_, last = parts = list(self._parts(request, like, options, request.loops, folders))
        run, _, micro_batch = last
        taken = 0 if request.conditioning is None else request.conditioning.condition_frames
        joined = [
            several[0] if len(several) == 1 else np.concatenate([several[0], *(clip[taken:] for clip in several[1:])])
            for several in zip(*(clips for _, clips, _ in parts), strict=True)
        ]
        return [self._video(run, clip, frames, micro_batch) for clip, frames in zip(run.clips, joined, strict=True)]

    def _parts(
        self,
        request: Request,
        like: Computation | None,
        options: RunOptions,
        loops: int | None,
        folders: Sequence[Path] = (),
    ) -> Iterator[tuple[_Run, list[np.ndarray], int]]:
        """The clips of one loop after the other, with how many frames were decoded together; None never ends."""
        on_step = options.get("on_step")
        with cpu_threads(None if like is None else like.threads):  # the autoencoder's last bits depend on them
            keeper = self._keeper(request, options, folders)
        for loop in count() if loops is None else range(loops):
            how: RunOptions = {**options, "on_step": on_step if loops is None else part_of(on_step, loop, loops)}
            run = self._denoise(request, like, how, keeper, loop)
            frames, micro_batch = self._frames(run)
            yield run, frames, micro_batch
            if keeper is not None and loop + 1 != loops:
                with cpu_threads(run.threads):
                    keeper.take(frames)

    def _keeper(self, request: Request, options: RunOptions, folders: Sequence[Path] = ()) -> Keeper | None:
        """The frames that the clips of a request keep; None where they keep none."""
        clip = self.planner.clip_shape(request)
        if request.conditioning is None or clip is None:
            return None
        shape, (_, *size) = self.planner.latent_shape(request), self.planner.clip_size(request)
        given = options.get("reference_frames")
        return Keeper(request.conditioning, clip, shape, size, self.model.vae, self.device, given, folders)

    @torch.inference_mode(False)  # given frames may need gradients
    @torch.no_grad()
    def _denoise(
        self,
        request: Request,
        like: Computation | None,
        options: RunOptions,
        keeper: Keeper | None = None,
        loop: int = 0,
    ) -> _Run:
        # what is asked for, and whether there is room for it
        check_run(request, options)
        trace, callback = options.get("trace"), options.get("callback_on_step_end")
        if trace is not None and request.distilled:
            raise InputError(
                f"a trace compares two branches, and a distilled network runs one: leave it out, or {setting('fast')}"
            )
        steering = None if callback is None else Steering(self, callback)
        count, shape = len(request.prompts) * len(request.samples), self.planner.latent_shape(request)
        together = CLIPS_TOGETHER if trace is None else max(CLIPS_TOGETHER, count)  # a trace is of one batch
        batch_size = request.batch_size or ((options.get("batch_size") or together) if like is None else like.batch)
        ranks = options.get("ranks")
        ranks = None if ranks is None or len(ranks) == 1 else ranks
        frames, _, _ = self.planner.clip_size(request)
        require_room(self.model.facts, shape, frames, count, batch_size, self.device)
        for what, given in (("a trace", trace), ("a callback", callback)):
            if given is not None and count > batch_size:
                raise InputError(
                    f"{what} needs its {count} clips in one batch: raise {setting('batch_size')} from {batch_size}"
                )
        request, latents = start_from(request, options.get("latents"), shape)
        anew = like is None
        if like is None:
            like = Computation(batch=min(batch_size, count), sequential=bool(options.get("sequential")))
        clips = [(prompt, sample) for prompt in range(len(request.prompts)) for sample in request.samples]
        division = Division(None, slice(0, count), like, slice(0, 1))
        if ranks is not None:
            whole = request.exact is not None or trace is not None or steering is not None
            division = divide(
                ranks, request, like, in_one_batch=whole, anew=anew, batch_given=options.get("batch_size") is not None
            )  # fmt: skip
        encode = partial(self.prompts_of, request, loop)
        prompts = encode() if ranks is None else ranks.from_first(encode)
        decodes = ranks is None or ranks.share(count) != slice(0, 0)
        if self.model.vae.keep and decodes:  # where stages are dropped after use, it waits for its turn
            self.model.vae.prepare_in_background()

        # latents
        self._interrupt = False
        weak_prompts = None
        if self._weak_prompts is not None and request.guidance.rule.weak == "model" and request.guidance.needs_weak:
            same = self._weak_prompts is self._prompts
            texts = tuple(request.text_of(text, loop) for text in request.prompts)
            encode = partial(self._weak_prompts.encode, texts, None)
            weak_prompts = prompts if same else encode() if ranks is None else ranks.from_first(encode)
        kept, own = keeper and keeper.of_loop(loop, len(clips)), division.clips
        generation = Generation(
            self.preset, self.model, self.device, request, prompts, trace, latents if latents is None else latents[own],
            steering, weak_prompts, kept if kept is None else kept[own], loop, self.compilation, division.team,
            options.get("on_x0"),
        )  # fmt: skip
        report = options.get("on_step") if ranks is None or ranks.first else None
        denoise = partial(generation.denoise, clips[own], division.computation, report)
        with cpu_threads(like.threads):
            if ranks is None:
                denoised, size = denoise()
            else:
                denoised, size = self._denoised_by_all(ranks, division, denoise)
            threads = torch.get_num_threads()
        if steering is not None and steering.changed:
            request = request.model_copy(update={"callback": True})
        compiled = self.compilation is not None and self.compilation.works
        return _Run(request, division.computation, denoised, size, threads, ranks, compiled)

    def _denoised_by_all(
        self, ranks: Ranks, division: Division, denoise: Callable[[], tuple[list[Denoised], int]]
    ) -> tuple[list[Denoised], int]:
        """The clips of all ranks, in the order of the request, on every rank; and the size of the last batches.

        That is the least one of the ranks on which memory ran out; this rank's own where it ran out on none.

        Raises:
            InputError: a rank failed or ended.
        """

        asked = division.computation.batch

        def work() -> tuple[list[Denoised], int | None]:
            if division.clips.start == division.clips.stop:
                return [], None
            made, size = denoise()
            return [replace(clip, latent=clip.latent.cpu()) for clip in made], size if size < asked else None

        found = ranks.together(work)[division.leaders]
        clips = [replace(clip, latent=clip.latent.to(self.device)) for made, _ in found for clip in made]
        return clips, min((size for _, size in found if size is not None), default=asked)

    def prompts_of(self, request: Request, loop: int = 0) -> Prompts:
        """The prompts and negative prompts of a request, encoded, as one loop of a long clip shows them."""
        read, avoided = partial(request.text_of, loop=loop), request.negative_prompt
        if avoided is not None:
            avoided = read(avoided) if isinstance(avoided, str) else tuple(map(read, avoided))
        return self._prompts.encode(tuple(map(read, request.prompts)), avoided)

    @torch.inference_mode()
    def _frames(self, run: _Run) -> tuple[list[np.ndarray], int]:
        """The frames of every clip, and how many were decoded together at the least."""
        latents, micro_batch = [clip.latent for clip in run.clips], run.asked.micro_batch
        count, _, _ = self.planner.clip_size(run.request)
        own = slice(None) if run.ranks is None else run.ranks.share(len(latents))
        dtype = run.request.decode_dtype
        work = partial(decode, self.model.vae, latents[own], count, micro_batch, self.device, dtype)
        with cpu_threads(run.threads):
            parts = [work()] if run.ranks is None else run.ranks.together(work)
        frames, micro_batch = [clip for made, _ in parts for clip in made], min(size for _, size in parts)
        computed = [run.computed(clip, micro_batch) for clip in run.clips]
        warn_of_fallback(run.asked, run.size, computed, run.request.closeness)
        return frames, micro_batch

    def _video(self, run: _Run, clip: Denoised, frames: np.ndarray, micro_batch: int) -> Video:
        manifest = self._manifest(run, clip, micro_batch) | {"frames": list(frames.shape)}
        return Video(frames, self.preset.fps, manifest)

    @contextmanager
    def decoder(self, request: Request) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from latents (B, C, ...) to video (B, 3, T, H, W), or images (B, 3, H, W), in [-1, 1]."""
        count, _, _ = self.planner.clip_size(request)

        def decode_latents(latents: Tensor) -> Tensor:
            with autocast(request.decode_dtype, self.device):
                return vae.decode(latents.to(self.device), frames=count).float().cpu()

        with self.model.vae.in_use() as vae:
            yield decode_latents

    def hashes_for(self, request: Request) -> dict[str, str]:
        """The hashes of all weights that decide a request's clips, by part."""
        own = self.distilled_hashes if request.distilled else {}
        return weights_for(self.hashes | own, request.guidance, request.distilled)

    def autoencode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) in [0, 1] through the autoencoder and back: the best that the model could show.

        Raises:
            InputError: they are no array of that shape.
        """
        if not isinstance(frames, np.ndarray) or frames.ndim != 4:
            raise InputError(f"frames are {quoted(frames)}: give an array (time, height, width, 3) in [0, 1]")
        x = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None].to(self.device) * 2 - 1
        with self.model.vae.in_use() as vae:
            return ((vae.decode(vae.encode(x), frames=len(frames))[0] + 1) / 2).permute(1, 2, 3, 0).cpu().numpy()

    def _manifest(self, run: _Run, clip: Denoised, micro_batch: int) -> dict[str, Any]:
        lossy = run.request.lossy
        return {
            "guidon": VERSION,
            "generation": run.request.alone(clip.prompt, clip.sample).model_dump(mode="json"),
            "computed": run.computed(clip, micro_batch).model_dump(mode="json"),
            "weights": self.hashes_for(run.request),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "device": str(self.device),
            "fps": self.preset.fps,
            **({"lossy": lossy} if lossy else {}),
        }

    def save_pretrained(self, folder: str | Path) -> Path:
        """Save the model as a folder in the Hub's form: config.json, safetensors, the autoencoder, and a card.

        ``guidon.from_pretrained(folder)`` reads it without further options. Adapters are merged into the weights, of
        which a distilled network was not made: it is left out. T5, which is large, stays where it is; a file of
        features is copied. Other files in the folder stay.

        Raises:
            InputError: the weights are a diffusers pipeline's, or of a family that has no such folder.
        """
        from .saving import save

        return save(self, Path(folder))

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, commit_message: str | None = None
    ) -> str:
        """Send the model to a repository of the Hub, as ``save_pretrained`` saves it.

        Args:
            repository: "user/name"; it is made if it does not exist.
            private: whether a new one is private.
            token: of the account; None for that of ``hf auth login``.
            commit_message: what the Hub's history says.

        Returns:
            The address of the commit.

        Raises:
            InputError: the Hub refuses, or cannot be reached; or as ``save_pretrained``.
        """
        from .saving import push

        return push(self, repository, private=private, token=token, message=commit_message)

    def set_progress_bar_config(self, *, disable: bool = False) -> None:
        """Show the progress of calls (the default), or never."""
        self._shows_progress = not disable

    def to(
        self,
        *where: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Pipeline:
        """Run on another device, or in another precision, from now on: ``pipe.to("cuda", torch.float16)``.

        Args:
            where: a device, a dtype of torch, or both.
            device: the device, by name.
            dtype: the precision of the network, where a call does not choose it.

        Returns:
            This pipeline.

        Raises:
            InputError: the device is not there, the dtype is not float32, bfloat16 or float16, or the weights are those
                of a diffusers pipeline, which then stays where it is.
        """
        for value in (*where, *(each for each in (device, dtype) if each is not None)):
            if isinstance(value, torch.dtype):
                name = dtype_name(value)
                if name is None:
                    raise InputError(f"a model does not run in {value}: give torch.float32, bfloat16 or float16")
                self.preset = self.preset.computed_in(dtype=name)
                continue
            device = pick_device(str(value))
            if device == self.device:
                continue
            if self.sources is None:
                raise InputError(
                    f"the weights are a diffusers pipeline's: move that one to {device}, and adopt it again"
                )
            self._use(find_model(self.preset, self.sources, device), device)
            self.compilation = None if self.compilation is None else Compilation(device)
        return self

    def __repr__(self) -> str:
        own, facts = self.preset, self.model.facts
        frames, height, width = own_size(facts)
        size = f"{height}x{width}" + (f", {frames} frames" if len(facts.latent_shape) == 4 else "")
        guidance = f"cfg_scale {own.cfg_scale}, cfg_channels {own.cfg_channels}, timing {own.timing}"
        settings = f"{guidance}, {own.sampler}, {own.steps} steps, {own.dtype}"
        return f"<Pipeline {own.name!r}, {size}, {settings}, on {self.device}>"

    def __copy__(self) -> Pipeline:
        return Pipeline(self.preset, self.model, self.device, self.sources, self.compilation)

    def __reduce__(self) -> Any:
        if self.sources is None:
            raise InputError("the weights are a diffusers pipeline's: copy or pickle that one, and adopt it again")
        own = {"dtype": self.preset.dtype, "decode_dtype": self.preset.decode_dtype}
        how = self.compilation is not None, self._shows_progress
        return _load_again, (self.preset.name, self.sources, str(self.device), own, *how)

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(no_attribute(name))

    def __setattr__(self, name: str, value: object) -> None:
        if name in ATTRIBUTES:  # it would have no effect
            raise AttributeError(no_attribute(name))
        super().__setattr__(name, value)


def _load_again(
    name: str, sources: Sources, device: str, own: dict[str, Any], compiled: bool, shows_progress: bool
) -> Pipeline:
    """A pipeline from what its pickle holds: where its files are."""
    place = pick_device(device)
    preset = replace(find_preset(name), **own)
    compilation = Compilation(place) if compiled else None
    pipe = Pipeline(preset, find_model(preset, sources, place), place, sources, compilation)
    pipe.set_progress_bar_config(disable=not shows_progress)
    return pipe
