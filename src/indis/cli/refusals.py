"""Words of a command line that no command knows, explained in one sentence.

tyro explains them in a box of up to 25 lines, whose wording is its own and may change. So names and
values are taken from the words that were given and from the command's own help, and the box is
asked only for the kind of mistake; one that says something new is cut to its first paragraph.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from difflib import get_close_matches
from io import StringIO
from itertools import takewhile
from typing import Any

import tyro

OPTION = re.compile(r"--[a-z][\w.-]*")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
FRAME, RULE = " │|╭╮╰╯+", set("─-")  # in either alphabet that tyro draws with
RANGES = {
    ("fit", "--steps"): " or a rising range such as 3-10"
}  # what else an option takes, see `fit.spelled_out`


def no_command(given: Sequence[str], names: Iterable[str]) -> str:
    """The sentence about words that do not begin with a command."""
    known = list(names)
    meant = _hint(_alike(given[0], known)) if given else ""
    return f"command must be one of {', '.join(known)}, got {repr(given[0]) if given else 'none'}{meant}"


def explained(kind: Any, name: str, words: Sequence[str]) -> str:
    """The sentence about the words that follow the command ``name``, whose arguments ``kind``
    describes.
    """
    known = sorted(set(OPTION.findall("\n".join(_box(kind, name, ["--help"])))))
    given = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    unknown = [option for option in given if option not in known]
    if unknown:
        return (
            f"unrecognized option {unknown[0]} for {name}{_hint(_alike(unknown[0], known), name)}"
        )
    return _described(_box(kind, name, words), name, words)


def _described(box: list[str], name: str, words: Sequence[str]) -> str:
    """What a box means."""
    lines = _paragraph(box)
    first = " ".join(lines)
    needed = [line.split()[0] for line in lines if line.startswith("--")]
    if first.startswith("Missing from") and needed:
        return f"{', '.join(needed)} {'is' if len(needed) == 1 else 'are'} required for {name}"
    if found := re.search(r"Unrecognized options?: (.+)", first):
        return f"unexpected word {found[1].split(', ')[0]!r} for {name}: options begin with --, see indis {name} --help"
    if found := re.search(
        r"invalid choice '(.*)' for argument '(\S+)'. Expected one of \((.+?),?\)", first
    ):
        return f"{found[2]} must be one of {found[3].replace(chr(39), '')}, got {found[1]!r}"
    if found := re.search(r"Missing value for argument '(\S+)'", first):
        return f"{found[1]} needs a value"
    if found := re.search(r"Error parsing (--[\w.-]+)", first):
        meta = next((line for line in box if line.startswith(f"{found[1]} ")), "")
        return f"{found[1]} must be {_accepted(meta)}{RANGES.get((name, found[1]), '')}, got {_values(found[1], words)}"
    return f"{first.rstrip('.') or 'the words could not be read'}: see indis {name} --help"


def _accepted(meta: str) -> str:
    """What an option takes, by the letters that its help shows behind it."""
    many = "..." in meta
    if "INT" in meta:
        return "integers with spaces between" if many else "an integer"
    if "FLOAT" in meta:
        return "numbers with spaces between" if many else "a number"
    return meta.partition(" ")[2] or "something else"


def _values(option: str, words: Sequence[str]) -> str:
    """What was given behind an option."""
    spread = [
        part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])
    ]
    names = [word.replace("_", "-") for word in spread]
    start = (
        len(names) - names[::-1].index(option) if option in names else len(names)
    )  # the last one counts
    after = list(takewhile(lambda word: not word.startswith("--"), spread[start:]))
    return " ".join(map(repr, after)) or "none"


def _alike(word: str, known: list[str]) -> list[str]:
    """The known word that may have been meant, if there is one."""
    return get_close_matches(word, known, 1, 0.75)


def _hint(matches: list[str], name: str = "") -> str:
    if matches:
        return f": did you mean {matches[0]}?"
    return f": see indis {name} --help" if name else ""


def _paragraph(box: list[str]) -> list[str]:
    """The lines between the title, below which there may be a rule, and the first rule that
    follows.
    """
    lines = [line for line in box[1:] if line]
    rules = [i for i, line in enumerate(lines) if set(line) <= RULE]
    begin = 1 if rules[:1] == [0] else 0
    return lines[begin : next((i for i in rules if i >= begin), len(lines))]


def _box(kind: Any, name: str, words: Sequence[str]) -> list[str]:
    """The lines that tyro prints about a command's words, without frame."""
    shown = StringIO()
    with _unwrapped(), redirect_stdout(shown), redirect_stderr(shown), suppress(SystemExit):
        tyro.cli(kind, prog=f"indis {name}", args=list(words))
    return [COLOUR.sub("", line).strip(FRAME) for line in shown.getvalue().splitlines()]


@contextmanager
def _unwrapped() -> Iterator[None]:
    """A terminal so wide that tyro breaks no line."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
