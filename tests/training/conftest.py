import pytest

from guidon.core.atomic import write_bytes
from guidon.training import loop, run_recipe
from guidon.training.tasks import vae
from recipes import denoiser_recipe


@pytest.fixture(autouse=True)
def draw_curves(monkeypatch):
    """Leave out what takes longer than a tiny run: the picture of its curves, and most of the held-out batches.

    Returns what draws the picture, for a test that looks at it.
    """
    drawn = loop.draw_curves
    monkeypatch.setattr(loop, "draw_curves", lambda rows, picture: write_bytes(picture, b"no picture"))
    monkeypatch.setattr(vae, "HELD_OUT", 2)
    return drawn


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_model):
    """The model folder of a run that was not interrupted."""
    return run_recipe(denoiser_recipe(tmp_path_factory.mktemp("whole"), tiny_model / "vae.safetensors"))
