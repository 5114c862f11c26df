from guidon.models.sources import Sources
from guidon.pipeline.loading import LoadOptions
from guidon.pipeline.precision import Arithmetic


def test_load_takes_every_setting_of_the_sources():
    """``network_only`` is for measuring: what is loaded by it makes no clip."""
    of_all = {"device", *Sources.model_fields, *Arithmetic.model_fields}
    assert LoadOptions.__annotations__.keys() == of_all - {"network_only"}
