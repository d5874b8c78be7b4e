"""Python functions as C callbacks.

The life of a callback: :class:`Callback` wraps a Python function for one C callback type and owns the handle that C
gets as ``user_data``. C may call it from the moment it is handed over until C has been told to forget it; until then
somebody must hold the ``Callback`` (the object that registers it does), and ``close()`` comes after C has forgotten.
A call that still comes afterwards does nothing and returns the type's refusal.

When the function raises, the exception is kept on its thread, C gets the refusal (stop, no, leave it) and goes on as
it sees fit; once the C call that started it all has returned, the same exception is raised there, with its
traceback. Until then no further callback on this thread is run. On a thread that Python did not call from (a queue of
a device), nobody returns to raise it: the exception stays in ``Callback.error``, and whoever waits for that thread
asks ``check()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..errors import UnsupportedError
from . import check, interrupts
from ._lib import ffi, lib


class Callback:
    """A Python function for C: pass ``.function`` and ``.user_data`` to what takes a callback."""

    # name of the callback type -> the C function that serves it
    TYPES: ClassVar[dict[str, str]] = {
        "split_policy": "pgg_py_split_policy",
        "log_sink": "pgg_py_log_sink",
        "node_observer": "pgg_py_node_observer",
        "abort": "pgg_py_abort",
        "sched_eval": "pgg_py_sched_eval",
        "progress": "pgg_py_progress",
        "set_tensor": "pgg_py_set_tensor",
    }

    def __init__(self, kind: str, python: Callable[..., Any]) -> None:
        if kind not in self.TYPES:
            raise ValueError(f"there is no callback type {kind!r}; there are {', '.join(sorted(self.TYPES))}")
        if not callable(python):
            raise TypeError(f"a {kind} callback must be callable, got {type(python).__name__}")
        if not hasattr(lib, self.TYPES[kind]):
            raise UnsupportedError(f"{kind} callbacks are llama.cpp's, and this pyggml was built without it (PYGGML_LLAMA=OFF)")
        self.kind = kind
        self.python: Callable[..., Any] | None = python
        self.error: BaseException | None = None
        self.function = getattr(lib, self.TYPES[kind])
        self._handle = ffi.new_handle(self)

    @property
    def user_data(self) -> Any:
        return self._handle

    def close(self) -> None:
        """Stops calling the function. The handle stays valid while this object lives."""
        self.python = None

    def check(self) -> None:
        """Raises the exception that is still kept, if any."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __enter__(self) -> Callback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _call(user_data: Any, refusal: Any, *arguments: Any) -> Any:
    callback: Callback = ffi.from_handle(user_data)
    if callback.python is None or check.doomed():
        return refusal
    try:
        result = callback.python(*arguments)
        interrupts.arrived()
        return result if refusal is None else bool(result)
    except BaseException as error:  # also KeyboardInterrupt: it stops what runs, then arrives
        if lib.pgg_guard_python() > 0:
            check.keep(error)
        else:
            callback.error = error
        return refusal


def _split_policy(tensor: Any, state: Any, user_data: Any) -> Any:
    return _call(user_data, False, tensor, state)


def _log_sink(level: int, text: Any, user_data: Any) -> None:
    _call(user_data, None, level, ffi.string(text).decode("utf-8", "replace"))


def _node_observer(node: Any, data: Any, size: int, user_data: Any) -> None:
    _call(user_data, None, node, ffi.buffer(data, size))


def _abort(user_data: Any) -> Any:
    return _call(user_data, True)


def _sched_eval(tensor: Any, ask: bool, user_data: Any) -> Any:
    return _call(user_data, False, tensor, ask)


def _progress(progress: float, user_data: Any) -> Any:
    return _call(user_data, False, progress)


def _set_tensor(tensor: Any, user_data: Any) -> None:
    _call(user_data, None, tensor)


def _late(_kind: Any, error: BaseException, _trace: Any) -> None:
    """Ctrl-C can arrive before a callback's first line, outside of its ``try``."""
    if lib.pgg_guard_python() > 0:
        check.keep(error)


_REFUSALS = {"split_policy": False, "abort": True, "sched_eval": False, "progress": False}

for _kind, _name in Callback.TYPES.items():
    if hasattr(lib, _name):
        refusal = {"error": _REFUSALS[_kind]} if _kind in _REFUSALS else {}
        ffi.def_extern(name=_name, onerror=_late, **refusal)(globals()[f"_{_kind}"])
