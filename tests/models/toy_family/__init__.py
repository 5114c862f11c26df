"""A family as somebody would add it, unlike the others: captions are counted words, latents are pixels of three channels.

All of it is in this folder. ``test_toy_family`` adds it by one entry in ``registry.FAMILIES``.
"""

from dataclasses import replace

from guidon.models.family import Exact, Family, Preset

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

    def find_model(self, preset, sources, device):
        from .checkpoint import find_model

        return find_model(preset, sources, device)

    def adopt(self, folder):
        file = folder / "toy.pt"
        return replace(TOY, name=str(folder), weights=file) if file.is_file() else None


FAMILY = ToyFamily()
