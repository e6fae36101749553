"""Fixtures of the command line's tests: running a command, and a prepared folder."""

import shlex
import shutil
import signal
import sys

import pytest

from cli.lines import FIT, TEACH
from indis.cli import main as entry


@pytest.fixture(autouse=True)
def interruptible():
    """As in a terminal: a job in the background of a plain shell is started with interrupts
    ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def indis(capsys, monkeypatch):
    """Run a command in this process: its exit code and what it said."""

    def run(line):
        words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", ["indis", *words])
        code = entry.run(words)
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Endpoints of seeds 0 ... 47, held-out ones of 100 ... 119, and an artifact."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            f"{TEACH} --count 48 --out data",
            f"{TEACH} --count 20 --first-seed 100 --out test",
            f"fit --data data --out fitted {FIT} --json fit.json",
        ):
            patch.setattr(sys, "argv", ["indis", *line.split()])
            assert entry.run(line.split()) == 0
    return folder


@pytest.fixture
def work(prepared, tmp_path, monkeypatch):
    """A copy of the prepared folder, as the current folder."""
    folder = shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder
