"""Runs every test on the stand-in of ComfyUI, and on a checkout under ``make test-comfyui COMFYUI=FOLDER``."""

import pytest
import torch

from comfyui_checkout import Checkout
from comfyui_stand_in import StandIn


@pytest.fixture(scope="session", params=["stand-in", pytest.param("checkout", marks=pytest.mark.comfyui)])
def comfy(request):
    return Checkout() if request.param == "checkout" else StandIn()


@pytest.fixture
def x():
    return torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(0))
