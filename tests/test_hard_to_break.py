"""A little of `make fuzz` and `make chaos`."""

import signal

from chaos import Chaos, prepare, two_writers
from fuzzing import fuzz


def test_mutated_files_are_refused_or_change_nothing(tmp_path):
    outcomes, defects = fuzz(120, 1, tmp_path)
    assert defects == []
    assert sum(n for (_, outcome), n in outcomes.items() if outcome == "refused") > 60


def test_killed_and_stopped_fits_go_on_bit_for_bit(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    prepare(folder)
    chaos = Chaos("fit", folder)
    assert chaos.kill_at(3) and chaos.kill_at(4.5)
    chaos.stop(signal.SIGTERM, 0.5)
    chaos.fill_disk(600)
    two_writers(folder)
