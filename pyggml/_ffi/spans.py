"""Parts of a run that traces name. While nobody traces, a part costs a look at a number."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from ._lib import ffi, lib

__all__ = ["begin", "end", "span"]

_lock = threading.Lock()
_n_open = 0


class _Nothing:
    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Span:
    __slots__ = ("label", "start")

    def __init__(self, label: str) -> None:
        self.label = label

    def __enter__(self) -> None:
        self.start = lib.pgg_trace_now()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lib.pgg_trace_span(self.label.encode(), self.start)


_NOTHING = _Nothing()


def span(label: str, n: int | None = None) -> _Span | _Nothing:
    """A context; the traces of this thread note how long it was open, as ``label`` or ``label(n)``."""
    if not _n_open:
        return _NOTHING
    return _Span(label if n is None else f"{label}({n})")


def begin(everyone: bool, sync: bool, limit: int) -> int:
    """Begins a trace of this thread (``everyone``: of all) and gives its number; `end` must follow."""
    global _n_open
    number = int(lib.pgg_trace_begin(everyone, sync, limit))
    with _lock:
        _n_open += 1
    return number


def end(number: int) -> tuple[Any, Any]:
    """Ends a trace: its ``struct pgg_trace_totals *`` and its events, an array of ``struct pgg_trace_event``.

    Waits for what was queued within it.
    """
    global _n_open
    with _lock:
        _n_open -= 1
    totals = ffi.new("struct pgg_trace_totals *")
    lib.pgg_trace_end(number, totals)
    events = ffi.new("struct pgg_trace_event[]", int(totals.n_events))
    lib.pgg_trace_events(number, events, totals.n_events)
    return totals, events
