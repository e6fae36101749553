"""Every command in a shell block of README.md, CONTRIBUTING.md and docs/ is one that exists, with
options that exist."""

import re
import shlex
from pathlib import Path

import pytest

from indis.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Return the words after ``indis`` of each command in a page's shell blocks."""
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["indis"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_can_be_parsed(page):
    for words in commands(page.read_text(encoding="utf-8")):
        assert hasattr(main._parse(words), "run"), words


def test_commands_are_found_and_wrong_ones_refused():
    text = "```sh\nmake demo\nindis teach \\\n  --out runs/x  # why\n```\n```python\nindis x\n```\n"
    assert commands(text) == [["teach", "--out", "runs/x"]]
    with pytest.raises(ValueError, match="is now"):
        main._parse(["train-model", "--out", "runs/x"])
    with pytest.raises(SystemExit):
        main._parse(["teach", "--out", "runs/x", "--no-such-option", "3"])
