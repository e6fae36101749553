"""The full synthetic folder, reported once."""

import pytest

from bench.report.cases import report, write


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """The folder, the names of the page's sections, and the page."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = write(tmp_path_factory.mktemp("run"))
    return folder, *report(folder)
