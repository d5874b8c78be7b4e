"""Ctrl-C and what C has just made: a signal between a call and the line that keeps its result would lose it.

Python raises KeyboardInterrupt as soon as a C function returns, before its result is stored anywhere: a context of
gigabytes would stay allocated with nobody to free it. Inside of `Held` the signal waits until the block has ended.
Calls that look for Ctrl-C while they run see it nevertheless: `arrived` lets it through in every callback, where the
exception is kept, the C function stops, and has no result to lose.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

__all__ = ["Held", "arrived"]

_noted: tuple[int, Any] | None = None
_handler: Any = None  # whom it belongs to


def _note(number: int, frame: Any) -> None:
    global _noted
    _noted = number, frame


def arrived() -> None:
    """Calls the handler of a signal that waits, which usually raises KeyboardInterrupt."""
    global _noted
    if _noted is not None and threading.current_thread() is threading.main_thread():
        noted, _noted = _noted, None
        _handler(*noted)


class Held:
    """A context at the end of which Ctrl-C arrives. Elsewhere than on the main thread it does nothing."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: Any = None

    def __enter__(self) -> None:
        global _handler, _noted
        if threading.current_thread() is not threading.main_thread():
            return  # signals are not handled here
        before = signal.getsignal(signal.SIGINT)
        if before is _note or not callable(before):
            return  # held already, ignored, or not Python's
        _noted, _handler = None, before
        self._before = before
        signal.signal(signal.SIGINT, _note)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            arrived()
