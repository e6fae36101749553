"""Progress bars, messages and JSON output."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from indis.storage import save_json

T = TypeVar("T")
# Progress and messages go to stderr, so that stdout stays clean for results.
console = Console(stderr=True, highlight=False)


def default(text: str, metavar: str) -> Any:
    """Return what help shows for an option that may be left out: its default, and its value."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


# The option of commands that can also write their numbers as JSON.
JsonFile = Annotated[Path | None, default("not written", "FILE")]


class Reporting(Progress):
    """A progress bar on a terminal, a line a minute elsewhere."""

    INTERVAL = 60.0
    last = 0.0  # when the latest line was written

    def start(self) -> None:
        """Begin; the first line comes after one interval."""
        self.last = time.monotonic()
        super().start()

    def update(self, task_id: TaskID, *arguments: Any, **changes: Any) -> None:
        """Move the bar, or write where it would be."""
        super().update(task_id, *arguments, **changes)
        if self.disable and time.monotonic() - self.last >= self.INTERVAL:
            self.last, task = time.monotonic(), self._tasks[task_id]
            total = "" if task.total is None else f" of {task.total:g}"
            say(f"{task.description}: {task.completed:g}{total}")


def bar() -> Progress:
    """Return a progress bar with a count, the time gone and the time to go."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Reporting(*columns, console=console, disable=not console.is_terminal)


def track(items: Iterable[T], total: int, text: str) -> Iterator[T]:
    """Yield the items under a progress bar."""
    with bar() as progress:
        task = progress.add_task(text, total=total)
        for item in items:
            yield item
            progress.update(task, advance=1)


def say(text: str) -> None:
    """Print a line for the person who runs the command."""
    console.print(text, markup=False, soft_wrap=True)


def emit(value: Any, path: Path | None) -> None:
    """Write JSON to ``path`` if one was given."""
    if path is not None:
        save_json(path, value)
        say(f"wrote {path}")


def command_line() -> str:
    """Return how this process was called, for provenance.

    Of an absolute path only the last part is kept, which names no machine.
    """
    words = (Path(word).name if word.startswith("/") else word for word in sys.argv[1:])
    return " ".join(["indis", *words])
