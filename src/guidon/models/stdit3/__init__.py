"""STDiT3, the video transformer of Open-Sora 1.2: captions to video of any size and length, by rectified flow.

``network`` is the transformer, ``checkpoint`` says how its files are read, ``velocity`` adapts it to rectified flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..family import Exact, Facts, Family, Preset, Reader, ReadPrompt, Released

if TYPE_CHECKING:
    import torch

    from ..model import Model
    from ..sources import Sources

NAME = "STDiT3"
CAPTION_TOKENS = 300
CLIP = 51, 240, 426  # of the inference configuration: frames, height, width
CHUNK, CHUNK_LATENTS, COMPRESSION = 17, 5, 4  # of its autoencoder: frames of a part, latents of it, frames of a latent
AESTHETIC = "aesthetic score:"
SUFFIX = f" {AESTHETIC} 6.5."  # captions of the training data end in a score, so prompts do, too
REPLAYS = {"open-sora-1.2": Exact("Open-Sora v1.2, opensora/schedulers/rf", noise_in_dtype=True, least_frames=CHUNK)}


def latent_frames(frames: int) -> int:
    """Frames of a video -> frames of its latents."""
    whole, rest = divmod(frames, CHUNK)
    return whole * CHUNK_LATENTS - (-rest // COMPRESSION)


def read_with_score(prompts: Sequence[str], negative: bool) -> list[ReadPrompt]:
    """``Facts.read_prompts``: prompts end in an aesthetic score, unless they name one."""
    return [ReadPrompt(prompt if negative or AESTHETIC in prompt else f"{prompt}{SUFFIX}") for prompt in prompts]


def with_scores(facts: Facts) -> Facts:
    """The facts of a network, of a model whose prompts end in a score."""
    return replace(facts, read_prompts=read_with_score, rewrites=True)


OPEN_SORA_1_2 = Preset(
    name="open-sora-1.2",
    family=NAME,
    summary="Open-Sora 1.2, text to video of any size and length, rectified flow",
    weights=Released(
        repository="hpcai-tech/OpenSora-STDiT-v3",
        file="model.safetensors",
        latent_shape=(4, latent_frames(CLIP[0]), CLIP[1] // 8, CLIP[2] // 8),
        vae="hpcai-tech/OpenSora-VAE-v1.2",
        video_vae=True,
    ),
    sampler="euler",
    steps=30,
    cfg_scale=7.0,
    cfg_channels="all",
    source="github.com/hpcaitech/Open-Sora, v1.2.0, configs/opensora-v1-2/inference/sample.py",
    bench="video",
    fps=24,
    seed=42,
    dtype="bf16",
    sizes=("size", "frames"),
    originals=tuple(REPLAYS),
)


class STDiT3Family(Family):
    """See ``Family``."""

    name = NAME
    reads = ("STDiT3",)
    presets = (OPEN_SORA_1_2,)
    replays = REPLAYS

    def reader(self) -> Reader:
        from .checkpoint import READER

        return READER

    def facts(self, preset: Preset[Released], sources: Sources) -> Facts:
        from ..finding import DEPTH, released_facts

        return replace(
            with_scores(released_facts(preset, sources, patch=(1, 1, 1))),
            path="flow",
            clip=CLIP,
            knows_given_frames=True,
            latent_frames=latent_frames,
            latents_together=CHUNK_LATENTS,
            blocks=2 * DEPTH,  # one in space and one in time, in turn
        )

    def find_model(self, preset: Preset[Released], sources: Sources, device: torch.device) -> Model:
        from ...diffusion import FlowPath, Process
        from ..released import find_captions, find_released
        from .velocity import Velocity

        facts, text = self.facts(preset, sources), find_captions(CAPTION_TOKENS)
        found = find_released(preset, facts, sources, device, text=text, adapt=Velocity)
        return replace(found, schedule=FlowPath(facts.timesteps, by_size=True), process=Process("flow"))


FAMILY = STDiT3Family()
