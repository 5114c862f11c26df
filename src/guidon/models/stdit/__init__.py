"""STDiT, the video transformer of Open-Sora 1.0: captions to video.

``network`` is the transformer, ``checkpoint`` says how its files are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import Exact, Facts, Family, Preset, Reader, Released

if TYPE_CHECKING:
    import torch

    from ..model import Model
    from ..sources import Sources

NAME = "STDiT"
CAPTION_TOKENS = 120
REPLAYS = {
    "open-sora-1.0": Exact("Open-Sora v1.0, opensora/schedulers/iddpm"),
    "open-sora-1.1": Exact("Open-Sora v1.1, opensora/schedulers/iddpm", single_precision=True, noise_in_dtype=True),
}


def _open_sora(
    frames: int, side: int, file: str | None, *, interval: int = 3, time_scale: float | None = None
) -> Preset[Released]:
    """The preset of one size of Open-Sora 1.0, from its inference configuration.

    Args:
        frames, side: the size of its videos.
        file: the released weights.
        interval: every such frame of videos of 24 per second was shown in training.
        time_scale: see ``STDiTConfig``; None if the checkpoint says it.
    """
    config = {"space_scale": side / 512} | ({} if time_scale is None else {"time_scale": time_scale})
    return Preset(
        name=f"open-sora-1.0-{frames}x{side}x{side}",
        family=NAME,
        summary=f"Open-Sora 1.0, text to video, {frames} frames of {side}x{side}",
        weights=Released(
            repository="hpcai-tech/Open-Sora",
            file=file,
            latent_shape=(4, frames, side // 8, side // 8),
            config=config,
        ),
        sampler="ddpm",
        steps=100,
        cfg_scale=7.0,
        cfg_channels="3",
        source=f"github.com/hpcaitech/Open-Sora, v1.0, configs/opensora/inference/{frames}x{side}x{side}.py",
        bench="video",
        fps=24 // interval,
        seed=42,
        sizes=("size", "frames"),
        originals=tuple(REPLAYS),
    )


class STDiTFamily(Family):
    """See ``Family``."""

    name = NAME
    reads = ("STDiT",)
    presets = (
        _open_sora(16, 256, "OpenSora-v1-HQ-16x256x256.pth"),
        _open_sora(16, 512, "OpenSora-v1-HQ-16x512x512.pth"),
        _open_sora(64, 512, None, interval=2, time_scale=2 / 3),
    )
    replays = REPLAYS

    def reader(self) -> Reader:
        from .checkpoint import READER

        return READER

    def facts(self, preset: Preset[Released], sources: Sources) -> Facts:
        from ..finding import released_facts

        return released_facts(preset, sources, patch=(1, 2, 2))

    def find_model(self, preset: Preset[Released], sources: Sources, device: torch.device) -> Model:
        from ..released import find_captions, find_released

        facts = self.facts(preset, sources)
        return find_released(preset, facts, sources, device, text=find_captions(CAPTION_TOKENS))


FAMILY = STDiTFamily()
