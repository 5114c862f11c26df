import pytest

from guidon.studies.report import write_report
from studies.written import write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The folder of a finished study."""
    return write_study(tmp_path_factory.mktemp("study") / "results")


@pytest.fixture(scope="session")
def page(study):
    return write_report(study)[0].read_text()
