import pytest

from guidon.training import run_recipe
from recipes import denoiser_recipe


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_model):
    """The model folder of a run that was not interrupted."""
    return run_recipe(denoiser_recipe(tmp_path_factory.mktemp("whole"), tiny_model / "vae.safetensors"))
