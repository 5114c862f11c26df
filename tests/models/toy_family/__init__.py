"""A family as somebody would add it, unlike the others: captions are counted words, latents are pixels of three channels.

All of it is in this folder. ``test_toy_family`` adds it by one entry in ``registry.FAMILIES``.
"""

from dataclasses import replace

from guidon.core.errors import InputError, setting
from guidon.models.family import Exact, Facts, Family, Preset

NAME = "Toy"
REPLAYS = {"toy-1.0": Exact("nowhere", noise_in_dtype=True)}
TOY = Preset(
    name="toy",
    family=NAME,
    summary="coloured noise",
    weights=None,
    sampler="ddim",
    steps=3,
    cfg_scale=2.0,
    cfg_channels="all",
    source="this test",
    bench="video",
    fps=5,
    sizes=("size",),
    originals=tuple(REPLAYS),
)


class ToyFamily(Family):
    name = NAME
    reads = ("Toy",)
    folder = "toy.pt"
    presets = (TOY,)
    replays = REPLAYS

    def reader(self):
        from .checkpoint import ToyReader

        return ToyReader()

    def facts(self, preset, sources):
        if preset.weights is None and sources.checkpoint is None:
            raise InputError(f"weights are missing: give them as {setting('checkpoint')}")
        return Facts((3, 2, 8, 8), patch=(1, 1, 1), downsampling=2, timesteps=50, bench=preset.bench)

    def find_model(self, preset, sources, device):
        from .checkpoint import find_model

        return find_model(preset, self.facts(preset, sources), sources, device)

    def adopt(self, folder):
        file = folder / "toy.pt"
        return replace(TOY, name=str(folder), weights=file) if file.is_file() else None


FAMILY = ToyFamily()
