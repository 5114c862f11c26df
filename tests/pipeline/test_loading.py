from guidon.models.sources import Sources
from guidon.pipeline.loading import LoadOptions


def test_load_takes_every_setting_of_the_sources():
    """``network_only`` is for measuring: what is loaded by it makes no clip."""
    assert LoadOptions.__annotations__.keys() == {"device", *Sources.model_fields} - {"network_only"}
