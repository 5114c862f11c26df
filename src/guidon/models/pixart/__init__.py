"""PixArt-alpha, a text-to-image transformer: captions to images.

``network`` is the transformer, ``checkpoint`` says how its files are read, ``inflate`` makes a video network from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import Exact, Facts, Family, Preset, Reader, Released

if TYPE_CHECKING:
    import torch

    from ..model import Model
    from ..sources import Sources

NAME = "PixArt"
CAPTION_TOKENS = 120
REPLAYS = {"pixart": Exact("PixArt-alpha, scripts/inference.py")}


def _pixart(side: int, file: str, *, any_size: bool = False) -> Preset[Released]:
    """The settings of the original's script; ``any_size`` is the multi-scale model."""
    return Preset(
        name=f"pixart-xl-2-{side}",
        family=NAME,
        summary=f"PixArt-alpha XL/2, text to image, {side}x{side}",
        weights=Released(
            repository="PixArt-alpha/PixArt-alpha",
            file=file,
            latent_shape=(4, side // 8, side // 8),
            config={"lewei_scale": 2.0 if side == 1024 else 1.0},
        ),
        sampler="ddpm",
        steps=100,
        cfg_scale=4.5,
        cfg_channels="3",
        source="github.com/PixArt-alpha/PixArt-alpha, scripts/inference.py --sampling_algo iddpm",
        bench="video",
        sizes=("size",) if any_size else (),
        originals=tuple(REPLAYS),
        is_image=True,
    )


class PixArtFamily(Family):
    """See ``Family``."""

    name = NAME
    reads = ("PixArt", "PixArt in diffusers' layout")
    presets = (
        _pixart(256, "PixArt-XL-2-256x256.pth"),
        _pixart(512, "PixArt-XL-2-512x512.pth"),
        _pixart(1024, "PixArt-XL-2-1024-MS.pth", any_size=True),
    )
    replays = REPLAYS

    def reader(self) -> Reader:
        from .checkpoint import READER

        return READER

    def facts(self, preset: Preset[Released], sources: Sources) -> Facts:
        from ..finding import released_facts

        return released_facts(preset, sources, patch=(2, 2))

    def find_model(self, preset: Preset[Released], sources: Sources, device: torch.device) -> Model:
        from ..released import find_captions, find_released

        facts = self.facts(preset, sources)
        return find_released(preset, facts, sources, device, text=find_captions(CAPTION_TOKENS))


FAMILY = PixArtFamily()
