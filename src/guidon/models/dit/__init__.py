"""DiT, the class-conditional image transformer: ImageNet classes to images.

``network`` is the transformer, ``checkpoint`` says how its files are read, ``classes`` reads prompts as class numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import Exact, Family, Preset, Reader, Released

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

    def find_model(self, preset: Preset[Released], sources: Sources, device: torch.device) -> Model:
        from ..released import find_released
        from .classes import find_classes

        side = preset.weights.latent_shape[-1]
        return find_released(preset, sources, device, text=find_classes(CLASSES), patch=(2, 2), input_size=side)


FAMILY = DiTFamily()
