"""DiT, the class-conditional image transformer."""

from ..family import Exact

REPLAYS = {"dit": Exact("DiT, sample.py")}
