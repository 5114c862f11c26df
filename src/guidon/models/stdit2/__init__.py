"""STDiT2, the video transformer of Open-Sora 1.1: captions to video of any size and length.

``network`` is the transformer, ``checkpoint`` says how its files are read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..family import Facts, Family, Preset, Reader, Released

if TYPE_CHECKING:
    import torch

    from ..model import Model
    from ..sources import Sources

NAME = "STDiT2"
CAPTION_TOKENS = 200
CLIP = 16, 240, 426  # of the inference configuration: frames, height, width


def _open_sora(name: str, stage: int) -> Preset[Released]:
    """The preset of one of the two releases of Open-Sora 1.1, from its inference configuration."""
    frames, height, width = CLIP
    return Preset(
        name=name,
        family=NAME,
        summary=f"Open-Sora 1.1 (stage {stage}), text to video of any size and length",
        weights=Released(
            repository=f"hpcai-tech/OpenSora-STDiT-v2-stage{stage}",
            file="model.safetensors",
            latent_shape=(4, frames, height // 8, width // 8),
        ),
        sampler="ddpm",
        steps=100,
        cfg_scale=7.0,
        cfg_channels="3",
        source="github.com/hpcaitech/Open-Sora, v1.1.0, configs/opensora-v1-1/inference/sample.py",
        bench="video",
        fps=8,  # every third frame of videos of 24
        seed=42,
        dtype="bf16",
        sizes=("size", "frames"),
        originals=("open-sora-1.1",),
    )


class STDiT2Family(Family):
    """See ``Family``."""

    name = NAME
    reads = ("STDiT2",)
    presets = (_open_sora("open-sora-1.1", 3), _open_sora("open-sora-1.1-stage2", 2))

    def reader(self) -> Reader:
        from .checkpoint import READER

        return READER

    def facts(self, preset: Preset[Released], sources: Sources) -> Facts:
        from ..finding import released_facts

        return replace(released_facts(preset, sources, patch=(1, 1, 1)), clip=CLIP, knows_given_frames=True)

    def find_model(self, preset: Preset[Released], sources: Sources, device: torch.device) -> Model:
        from ..released import find_captions, find_released

        facts = self.facts(preset, sources)
        return find_released(preset, facts, sources, device, text=find_captions(CAPTION_TOKENS))


FAMILY = STDiT2Family()
