"""STDiT, the video transformer of Open-Sora 1.0."""

from ..family import Exact

REPLAYS = {
    "open-sora-1.0": Exact("Open-Sora v1.0, opensora/schedulers/iddpm"),
    "open-sora-1.1": Exact("Open-Sora v1.1, opensora/schedulers/iddpm", single_precision=True, noise_in_dtype=True),
}
