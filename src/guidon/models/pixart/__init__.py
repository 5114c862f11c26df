"""PixArt-alpha, the text-to-image transformer."""

from ..family import Exact

REPLAYS = {"pixart": Exact("PixArt-alpha, scripts/inference.py")}
