import tomllib
from pathlib import Path

import guidon


def test_the_version_is_that_of_the_distribution():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert guidon.__version__ == project["version"]
