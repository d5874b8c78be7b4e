"""The one error check. Compiled code runs :func:`after_call` behind every call that left something to do."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

from .. import _logging, errors
from ._lib import ffi, lib

_CALLBACK = lib.PGG_ERROR_CALLBACK
_kept = threading.local()  # .error: the exception of a Python callback, on the thread that it ran on


def after_call() -> None:
    """Raises the calling thread's pending error, if any, and hands log lines on."""
    kind = lib.pgg_error_pending()
    error = _take(kind) if kind else None
    if lib.pgg_log_waiting():
        _logging.drain()
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame


def _take(kind: int) -> BaseException:
    message = ffi.string(lib.pgg_error_message()).decode("utf-8", "replace")
    lib.pgg_error_clear()
    kept: BaseException | None = _kept.__dict__.pop("error", None)
    if kind == _CALLBACK and kept is not None:
        return kept
    error = errors.from_native(kind, message, reason())
    error.__cause__ = kept  # a callback raised as well
    return error


def keep(error: BaseException) -> None:
    """Keeps the exception of a callback until the C call that it was called from has returned."""
    if not hasattr(_kept, "error"):
        _kept.error = error
    lib.pgg_error_set(_CALLBACK, b"a Python callback raised")


def doomed() -> bool:
    """Whether the running C call has failed already, so that further callbacks have no business."""
    return bool(lib.pgg_error_pending())


def reason() -> tuple[str, ...]:
    """The warnings and errors that the latest call of this thread logged. Any call of ``lib`` is one, also for a name."""
    return tuple(ffi.string(lib.pgg_log_reason()).decode("utf-8", "replace").splitlines())


def non_null(pointer: Any, what: str, error: type[errors.Error] = errors.NativeError) -> Any:
    """The pointer, or an error that says what failed and the reason that was logged. To be called at once."""
    if pointer == ffi.NULL:
        _raise(what, error)
    return pointer


def _raise(what: str, error: type[errors.Error]) -> NoReturn:
    log = reason()
    exception = error(what + "".join(f"\n  log: {line}" for line in log if line.strip()))
    exception.log = log
    raise exception
