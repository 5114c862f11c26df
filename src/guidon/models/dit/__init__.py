"""DiT, the class-conditional image transformer: ImageNet classes to images.

``network`` is the transformer, ``checkpoint`` says how its files are read, ``classes`` reads prompts as class numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..family import Exact, Facts, Family, Preset, Reader, Released

if TYPE_CHECKING:
    import torch

    from ..model import Model
    from ..sources import Sources

NAME = "DiT"
CLASSES = 1000  # of ImageNet
REPLAYS = {"dit": Exact("DiT, sample.py")}


def _dit(side: int) -> Preset[Released]:
    """The settings of the original's script."""
    return Preset(
        name=f"dit-xl-2-{side}",
        family=NAME,
        summary=f"DiT-XL/2, ImageNet class to image, {side}x{side}",
        weights=Released(
            repository=f"facebook/DiT-XL-2-{side}",
            file="transformer",
            latent_shape=(4, side // 8, side // 8),
            vae="stabilityai/sd-vae-ft-mse",
        ),
        sampler="ddpm",
        steps=250,
        cfg_scale=4.0,
        cfg_channels="3",
        source="github.com/facebookresearch/DiT, sample.py",
        bench="video",
        originals=tuple(REPLAYS),
        is_image=True,
        classes=CLASSES,
    )


class DiTFamily(Family):
    """See ``Family``."""

    name = NAME
    reads = ("DiT", "DiT in diffusers' layout")
    presets = (_dit(256), _dit(512))
    replays = REPLAYS

    def reader(self) -> Reader:
        from .checkpoint import READER

        return READER

    def facts(self, preset: Preset[Released], sources: Sources) -> Facts:
        from ..finding import released_facts
        from .classes import ClassLabels

        found = released_facts(preset, sources, patch=(2, 2))
        return replace(found, check_prompts=ClassLabels(CLASSES).check)

    def find_model(self, preset: Preset[Released], sources: Sources, device: torch.device) -> Model:
        from ..released import Text, find_released
        from .classes import ClassLabels

        facts = self.facts(preset, sources)
        return find_released(preset, facts, sources, device, text=lambda *_: Text(lambda: ClassLabels(CLASSES)))


FAMILY = DiTFamily()
