"""Handles: Python objects that own something of C."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from ._ffi.interrupts import Held
from .errors import BusyError, ClosedError, ForkError, PoisonedError

__all__ = ["Borrowed", "Handle"]


_exit_is_watched = False
_exiting = False
_forked = False


def _at_exit() -> None:
    global _exiting
    _exiting = True


def _in_forked_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def _free(free: Callable[..., object], *arguments: Any) -> None:
    if _forked:
        return  # what it owns is the parent's
    # A daemon thread may be in the middle of a run while the interpreter ends: nothing is taken from under it. The
    # process gives the memory back.
    if _exiting:
        if threading.active_count() == 1:
            free(*arguments)
        return
    with Held():  # Ctrl-C in the middle would leave the rest allocated
        free(*arguments)


class Handle:
    """Owns one thing of C: freed by ``close()``, at the end of a ``with`` block, or by the garbage collector.

    Using a closed handle raises `ClosedError`. A handle that failed half-way is poisoned: it can only be closed.
    A handle serves one thread at a time; a second one gets `BusyError`. Different handles run at the same time.
    """

    _finalizer: weakref.finalize[..., Any] | None = None
    _poison: str | None = None

    def _own(self, free: Callable[..., object], *arguments: Any) -> None:
        """What ``close()`` calls. ``free`` must not refer to the handle itself."""
        global _exit_is_watched
        self._busy = threading.Lock()  # not reentrant: a callback of a run must not use or free what runs
        self._lending = threading.Lock()
        self._n_lent = 0
        self._finalizer = weakref.finalize(self, _free, free, *arguments)
        if not _exit_is_watched:
            _exit_is_watched = True
            atexit.register(_at_exit)  # now, so that it runs before weakref's own

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called (or the handle was never opened)."""
        return self._finalizer is None or not self._finalizer.alive

    def close(self) -> None:
        """Frees what the handle owns. Closing twice is no error.

        Raises:
            BusyError: it is running just now, in another thread or in the call whose callback this is.
        """
        if self._finalizer is None or not self._finalizer.alive:
            return
        if not self._busy.acquire(blocking=False):
            raise BusyError(f"this {type(self).__name__} cannot be closed while it runs: wait for the run to return")
        try:
            with self._lending:
                if self._n_lent:
                    raise BusyError(f"this {type(self).__name__} cannot be closed while a graph runs on it or another thread reads it: wait for that to return")
                self._finalizer()
        finally:
            self._busy.release()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"{type(self).__name__} is closed: it cannot be used any more")
        if self._poison is not None:
            raise PoisonedError(
                f"{type(self).__name__} failed before and is in an unknown state; close it and make a new one. "
                f"It failed with: {self._poison}"
            )

    def _in_use(self, *, poisons: bool = True) -> _InUse:
        """A context in which the handle belongs to this thread; an exception inside of it poisons the handle.

        Without ``poisons`` it does not: for checks that need the handle to stand still, in front of `_poisoning`.
        """
        self._check_open()
        return _InUse(self, poisons)

    @contextmanager
    def _poisoning(self) -> Iterator[None]:
        """An exception inside of it poisons the handle."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, ForkError):  # refused before anything happened
                self._poison = f"{type(error).__name__}: {error}"
            raise

    def _reading(self) -> AbstractContextManager[None]:
        """A context in which values are read: it cannot be closed meanwhile."""
        return Borrowed((self,))

    def _lend(self) -> None:
        """Until `_give_back`, it cannot be closed: something is done with what it owns. Any number of borrowers."""
        with self._lending:
            if self.closed:
                raise ClosedError(f"{type(self).__name__} is closed: it cannot be used any more")
            self._n_lent += 1

    def _give_back(self) -> None:
        with self._lending:
            self._n_lent -= 1

    def __enter__(self) -> Any:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _InUse:
    def __init__(self, handle: Handle, poisons: bool) -> None:
        self.handle, self.poisons = handle, poisons

    def __enter__(self) -> None:
        if not self.handle._busy.acquire(blocking=False):
            raise BusyError(
                f"this {type(self.handle).__name__} is in use, by another thread or by the call whose callback this is: "
                "use one handle per thread"
            )
        if self.handle.closed:  # between the look and the grip
            self.handle._busy.release()
            self.handle._check_open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.poisons and error is not None and not isinstance(error, ForkError):
            self.handle._poison = f"{type(error).__name__}: {error}"
        self.handle._busy.release()


class Borrowed:
    """Handles that must stay open while a block runs."""

    __slots__ = ("handles",)

    def __init__(self, handles: Iterable[Handle]) -> None:
        self.handles = list(handles)

    def __enter__(self) -> None:
        for i, handle in enumerate(self.handles):
            try:
                handle._lend()
            except BaseException:
                for lent in self.handles[:i]:
                    lent._give_back()
                raise

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle._give_back()
