"""Words that no command knows: one sentence that says which, and what was meant or is accepted."""

import pytest

from cli.lines import refused
from indis.cli import refusals

COMMANDS = "command must be one of teach, fit, sample, evaluate, report, toy, budget, compare, sight, overhead, demo,"
SENTENCES = {
    "fit --data data --out x --stesp 3": "unrecognized option --stesp for fit: did you mean --steps?",
    "fit --stesp 3": "unrecognized option --stesp for fit: did you mean --steps?",
    "fit --data data --out x --fit.bacth=3": "unrecognized option --fit.bacth for fit: did you mean --fit.batch?",
    "toy --fast": "unrecognized option --fast for toy: see indis toy --help",
    "sample --count four": "--count must be an integer, got 'four'",
    "sample --count=": "--count must be an integer, got ''",
    "sample --first_seed=x": "--first-seed must be an integer, got 'x'",
    "sample --steps four": "--steps must be an integer, got 'four'",
    "sample --label 3,5": "--label must be integers with spaces between, got '3,5'",
    "toy --lr x": "--lr must be a number, got 'x'",
    "toy --steps 3 four": "--steps must be integers with spaces between, got '3' 'four'",
    "fit --data data --out x --steps 3,5": "--steps must be an integer or a rising range such as 3-10, got '3,5'",
    "fit --method god --data data --out x --fit.lr x": "--fit.lr must be a number, got 'x'",
    "fit --out x": "--data is required for fit",
    "fit": "--data, --out are required for fit",
    "overhead": "--artifact is required for overhead",
    "teach --out x --count": "--count needs a value",
    "train-model --out x --what poem": "--what must be one of denoiser, features, got 'poem'",
    "compare --afs maybe": "--afs must be one of True, False, got 'maybe'",
    "sample 3": "unexpected word '3' for sample: options begin with --, see indis sample --help",
    "frobnicate": f"{COMMANDS} train-model, got 'frobnicate'",
    "tech --count 3": f"{COMMANDS} train-model, got 'tech': did you mean teach?",
    "": f"{COMMANDS} train-model, got none",
}


@pytest.mark.parametrize("line", SENTENCES)
def test_words_that_no_command_knows_are_one_sentence(indis, work, monkeypatch, line):
    monkeypatch.setenv("COLUMNS", "50")
    assert refused(indis, line) == f"indis: error: {SENTENCES[line]}\n"


def test_a_box_that_says_something_new_is_cut_to_its_first_paragraph(monkeypatch):
    box = [
        "Odd",
        "",
        "Something",
        "else is odd.",
        "─────",
        "For full helptext, run indis toy --help",
    ]
    monkeypatch.setattr(refusals, "_box", lambda kind, name, words: box)
    assert refusals.explained(None, "toy", ["3"]) == "Something else is odd: see indis toy --help"
