import subprocess
import sys

from guidon.models.sources import Sources
from guidon.pipeline.loading import LoadOptions
from guidon.pipeline.precision import Arithmetic


def test_load_takes_every_setting_of_the_sources():
    """``network_only`` is for measuring: what is loaded by it makes no clip."""
    of_all = {"device", *Sources.model_fields, *Arithmetic.model_fields}
    assert LoadOptions.__annotations__.keys() == of_all - {"network_only"}


def test_a_first_clip_imports_neither_torchs_compiler_nor_libraries():
    """Each of them takes about as long as torch."""
    heavy = {"torch._dynamo", "sympy", "diffusers", "transformers"}
    make = "guidon.load(device='cpu')('a red circle moves left on a white background', steps=2)"
    code = f"import sys, guidon; {make}; found = {heavy!r} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)
