"""The compiled bindings: ``lib`` holds all functions and constants of ggml, gguf, llama.cpp and pyggml's native layer.

Every call through ``lib`` releases the GIL, is guarded, and raises an exception of :mod:`pyggml.errors` when native
code failed: an assertion of ggml ends neither the process nor the thread. What stays the caller's business is what C
leaves to it: valid pointers, and the life of what they point to. Function pointers that C hands out (those of
``ggml_backend_reg_get_proc_address``, of struct members) bypass the guard: an assertion behind one ends the process.
"""

from __future__ import annotations

import atexit
import os
import threading

try:
    from .. import _build_info
except ImportError:
    pass  # nothing is built: said below
else:
    if getattr(_build_info, "EDITABLE", None) is not None:
        from .._editable import refresh

        refresh(_build_info)

try:
    from ._lib import ffi, lib
except ImportError as error:
    raise ImportError(
        f"pyggml's compiled module cannot be loaded ({error}). In a checkout, build it: pip install -e ."
    ) from error

from .. import _logging
from .check import non_null, reason

__all__ = ["ffi", "lib", "non_null", "reason"]

lib.pgg_guard_install()
_logging.install()

# Ctrl-C while native code runs or waits: on the main thread, entering Python is what lets the signal through.
from .callbacks import Callback  # noqa: E402

_interrupt = Callback("abort", lambda: False)
lib.pgg_interrupt_install(_interrupt.function, _interrupt.user_data)


def _at_exit() -> None:
    lib.pgg_interrupt_install(ffi.NULL, ffi.NULL)  # a thread that computes on must not ask an interpreter that is gone
    if threading.active_count() > 1:  # only daemon threads are left by now
        lib.pgg_exit_at_once()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # a child is refused every call
    os.register_at_fork(after_in_child=lambda: atexit.unregister(_at_exit))
