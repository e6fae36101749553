"""Ctrl-C and the signals by which others ask a process to end: work stops where it can go on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

ENDING = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Terminated(KeyboardInterrupt):
    """The process was asked to end by another signal than Ctrl-C.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


@contextmanager
def asked_to_end() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM and SIGHUP, which clusters and closed terminals send.

    Signals stay as they are outside of the main thread, which alone may change this, and where
    somebody else handles or ignores them, as under nohup.
    """
    ours = []
    if current_thread() is main_thread():
        ours = [s for s in ENDING if signal.getsignal(s) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def delayed_interrupt(*, delay: bool = True) -> Iterator[Callable[[], KeyboardInterrupt | None]]:
    """Let work go on after Ctrl-C or SIGTERM until it can stop; a second one stops at once.

    Signals stay as they are outside of the main thread, which alone may change this, and where
    somebody else handles or ignores them, as for a background job.

    Args:
        delay: Whether to change anything at all.

    Yields:
        A function that returns what to raise when work can stop, None while nobody asked for it.
    """
    asked: list[KeyboardInterrupt] = []
    usual: dict[int, Any] = {}
    if delay and current_thread() is main_thread():
        numbers = (signal.SIGINT, *ENDING)
        handlers = ((number, signal.getsignal(number)) for number in numbers)
        usual = {n: h for n, h in handlers if h in (signal.default_int_handler, _terminate)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def remember(number: int, frame: FrameType | None) -> None:
        restore()
        asked.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))

    for number in usual:
        signal.signal(number, remember)
    try:
        yield lambda: asked[0] if asked else None
    finally:
        restore()
