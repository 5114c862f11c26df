from guidon.models.sources import Sources
from guidon.pipeline.loading import LoadOptions


def test_load_takes_every_setting_of_the_sources():
    assert LoadOptions.__annotations__.keys() == {"device", *Sources.model_fields}
