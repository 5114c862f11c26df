import shutil
from contextlib import contextmanager

import pytest

from guidon.checkpoints import load_component, save_component
from guidon.core.atomic import write_bytes
from guidon.training import loop, run_recipe
from guidon.training.tasks import denoiser, vae
from recipes import denoiser_recipe


@contextmanager
def tiny_runs():
    """Leave out what takes longer than a tiny run: the picture of its curves, and most held-out clips.

    The held-out clips of an autoencoder decide its scaling factor: runs that are compared all need this, also those of
    fixtures of a wider scope.
    """
    drawn = loop.draw_curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda rows, picture: write_bytes(picture, b"no picture"))
        patch.setattr(vae, "HELD_OUT", 2)
        patch.setattr(denoiser, "HELD_OUT", 2)
        yield drawn


@pytest.fixture(scope="module", autouse=True)
def draw_curves():
    """Runs are tiny in every test. Returns what draws the picture, for a test that looks at it."""
    with tiny_runs() as drawn:
        yield drawn


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_model):
    """The model folder of a run that was not interrupted."""
    with tiny_runs():
        return run_recipe(denoiser_recipe(tmp_path_factory.mktemp("whole"), tiny_model / "vae.safetensors"))


@pytest.fixture(scope="module")
def model_x0(tmp_path_factory, tiny_model):
    """The tiny model as one that predicts x_0."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("x0") / "model")
    path = folder / "denoiser.safetensors"
    found = load_component(path, "denoiser")
    save_component(path, "denoiser", found.config | {"prediction": "x0"}, found.weights, found.record)
    return folder
