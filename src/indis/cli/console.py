"""What commands share: progress bars, JSON output, and the checks of paths that come before any
work.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Any, TypeVar

import torch
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

from indis import models
from indis.denoise import Denoiser, to_device_of
from indis.endpoints import Endpoints
from indis.losses import Loss
from indis.storage import save_json

T = TypeVar("T")
# Progress and messages go to stderr, so that stdout stays clean for results.
console = Console(stderr=True, highlight=False)
_made: list[
    Path
] = []  # folders of this run, so that one that is refused later on can take them back


class Reporting(Progress):
    """A bar on a terminal; in a log file a line a minute."""

    INTERVAL = 60.0
    said = 0.0

    def start(self) -> None:
        """Begin; the first line comes after one interval."""
        self.said = time.monotonic()
        super().start()

    def update(self, task_id: TaskID, *arguments: Any, **changes: Any) -> None:
        """Move the bar, or say where it would be."""
        super().update(task_id, *arguments, **changes)
        if self.disable and time.monotonic() - self.said >= self.INTERVAL:
            self.said, task = time.monotonic(), self._tasks[task_id]
            total = "" if task.total is None else f" of {task.total:g}"
            say(f"{task.description}: {task.completed:g}{total}")


def bar() -> Progress:
    """A progress bar with a count, the time gone and the time to go, on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Reporting(*columns, console=console, disable=not console.is_terminal)


def track(items: Iterable[T], total: int, text: str) -> Iterator[T]:
    """Pass items through under a progress bar."""
    with bar() as progress:
        task = progress.add_task(text, total=total)
        for item in items:
            yield item
            progress.update(task, advance=1)


def say(text: str) -> None:
    """One line for the person who runs the command."""
    console.print(text, markup=False, soft_wrap=True)


def emit(value: Any, path: Path | None) -> None:
    """Write JSON to ``path`` if one was given."""
    if path is not None:
        save_json(path, value)
        say(f"wrote {path}")


def writable(folder: Path) -> Path:
    """The folder, made if necessary.

    Raises:
        OSError: if nothing can be written there; found out before any work is done.
    """
    _made.extend(
        path for path in (folder, *folder.parents) if not path.exists()
    )  # the innermost first
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{folder} is a file, a folder is expected") from None
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable")
    return folder


@contextmanager
def tidied() -> Iterator[None]:
    """Take back the folders that :func:`writable` makes if the work fails before anything lies in
    them.
    """
    _made.clear()
    try:
        yield
    except BaseException:
        for folder in _made:
            with suppress(OSError):  # it is not empty, or was not made
                folder.rmdir()
        raise


def writable_file(path: Path | None, own: Mapping[Path, Sequence[str]] | None = None) -> None:
    """Make the folder of an output file, if one was asked for.

    ``own`` is what the command itself writes: files and folders, each with patterns of what comes
    to lie in it.

    Raises:
        OSError: if nothing can be written there; found out before any work is done.
        ValueError: if it would be written over one of the command's own files.
    """
    if path is not None:
        _check_apart(path, own or {})
        writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, a file is expected")
        if path.is_symlink() or (
            path.exists() and not path.is_file()
        ):  # it would be replaced, not written to
            raise ValueError(f"{path} is a link or a device, a plain file is expected")


def _check_apart(path: Path, own: Mapping[Path, Sequence[str]]) -> None:
    whole = path.resolve()
    for place, patterns in own.items():
        inside = (
            whole.relative_to(place.resolve()).as_posix()
            if whole.is_relative_to(place.resolve())
            else None
        )
        if inside is not None and any(fnmatchcase(inside, pattern) for pattern in (".", *patterns)):
            raise ValueError(
                f"json must be another file than those that the command writes itself, got {path}"
            )


@dataclass(frozen=True, kw_only=True)
class WithModel:
    """A command that loads a model."""

    device: str | None = None
    """Where the model runs: cpu, cuda or cuda:N; cuda if there is one, else cpu."""

    @property
    def place(self) -> torch.device:
        """The device that is meant.

        Raises:
            ValueError: if it is unknown or absent.
        """
        return chosen_device(self.device)

    def load_model(self, spec: str) -> Denoiser:
        """The model of that name on the device.

        Raises:
            ValueError: if model or device is unknown, or the device absent.
        """
        return models.load(spec, self.place)

    def load_taught(self, meta: dict[str, Any], folder: Path | None) -> Denoiser:
        """The model that endpoints came from, with the weights that they came from if they say
        which.

        Raises:
            ValueError: if they name no model, or it has other weights by now.
        """
        denoiser = self.load_model(taught_model(meta, folder))
        needed = meta["provenance"].get("weights", denoiser.fingerprint)
        if needed != denoiser.fingerprint:
            has = f"{denoiser.name} has {denoiser.fingerprint}"
            raise ValueError(
                f"the endpoints in {folder} were made with weights {needed}, {has}: make them again"
            )
        return denoiser


def chosen_device(name: str | None) -> torch.device:
    """The device of a name; without one CUDA if it is there, else the CPU.

    Raises:
        ValueError: if it is no device that the library runs on, or absent.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(
        r"cpu|cuda(:\d+)?", name
    ):  # others, MPS say, have no float64, which times are in
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {name} is absent: torch sees {count} CUDA devices here")
    return device


def check_loss(name: str, loss: Loss, denoiser: Denoiser, data: Endpoints) -> None:
    """Pass if the loss of that name can judge what the model makes.

    Raises:
        ValueError: if not.
    """
    with torch.no_grad():
        one = denoiser.decode(to_device_of(data.target[:1], denoiser))
        try:
            to_device_of(loss, denoiser)(one, one)
        except ValueError as error:
            raise ValueError(f"loss must suit model {denoiser.name}, got {name}: {error}") from None


def taught_model(meta: dict[str, Any], folder: Path | None) -> str:
    """The model that endpoints came from, for :func:`indis.models.load`.

    Raises:
        ValueError: if they do not say; those that a script wrote need not.
    """
    if "model" not in meta["provenance"]:
        raise ValueError(
            f"the endpoints in {folder} name no model in their provenance: make them with `indis teach`"
        )
    return meta["provenance"]["model"]


@contextmanager
def held_interrupt(*, hold: bool = True) -> Iterator[Callable[[], bool]]:
    """Let work come to a place where it can stop: was an interrupt asked for? A second one stops at
    once.

    Without ``hold``, outside of the main thread, which alone may do this, or where somebody else
    has seen to interrupts (a background job ignores them), they are what they were.
    """
    asked = Event()

    def remember(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asked.set()

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (hold and usual and current_thread() is main_thread()):
        yield asked.is_set
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def command_line() -> str:
    """How this process was called, for provenance; of an absolute path the last part, which names
    no machine.
    """
    words = (Path(word).name if word.startswith("/") else word for word in sys.argv[1:])
    return " ".join(["indis", *words])
