"""A finished study whose cells are written by hand: six prompts, four settings, known values."""

from types import SimpleNamespace

import numpy as np

from guidon.metrics.world import METRICS
from guidon.request import Request
from guidon.studies.cells import cells_of, open_plan
from guidon.studies.plan import Plan
from guidon.studies.study import Contrast

PROMPTS = 6
SHAPE = (5, 16, 16, 3)
SETTINGS = {"three": ("3", 2.0), "all": ("all", 2.0), "three, strong": ("3", 4.0), "all, strong": ("all", 4.0)}


def write_study(folder, prompts=PROMPTS, seeds=1, captions=None, settings=SETTINGS, names=None, weights=()):
    """Cells of noise and made-up metrics; ``all`` loses joint on prompts 0 and 1 and wins it on 2 to 5."""
    names = names or {"three": "three", "all": "all"}
    captions = captions or [f"prompt number {k}" for k in range(prompts)]
    plan = Plan(
        title="A <script>title</script>", model="guidon-small", weights=dict.fromkeys(("denoiser", *weights), "0" * 64), bench="world",
        captions=tuple(captions), seeds=seeds, block=4, threads=1, device="cpu", torch="",
        settings={name: frozen(*chosen) for name, chosen in settings.items()},
        primary=Contrast(metric="joint", baseline=names["three"], against=names["all"]),
    )  # fmt: skip
    open_plan(plan, folder)
    rng = np.random.default_rng(0)
    for cell in cells_of(plan, folder):
        frames = rng.integers(0, 256, SHAPE, dtype=np.uint8)
        generation = plan.request(cell.setting, slice(cell.prompt, cell.prompt + 1)).model_dump(mode="json")
        manifest = {"generation": generation | {"samples": [cell.sample]}, "fps": 8, "frames": list(SHAPE)}
        values = dict.fromkeys(METRICS, 0.5) | {"colour_drift": rng.random(), "law_residual": np.nan}
        values["joint"] = float((cell.prompt < 2) == (cell.setting == names["three"]))
        trace = {"difference": rng.random((5, 4)), "timestep": np.arange(5), "scale": np.ones((5, 4))}
        cell.write(SimpleNamespace(frames=frames, manifest=manifest), values, trace)
    return folder


def frozen(channels, scale, adaptive=None):
    """A setting as a plan holds it."""
    request = Request(
        model="guidon-small", prompts=("x",), seed=3, steps=5, sampler="ddim", cfg_scale=scale, cfg_channels=channels,
        adaptive=adaptive,
    )  # fmt: skip
    return request.model_dump(mode="json", exclude={"prompts", "samples"})
