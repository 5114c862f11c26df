import pytest
import torch
from hypothesis import settings

from tiny_model import write_tiny_model

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A model folder of small random weights, whose output depends on its caption."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))
