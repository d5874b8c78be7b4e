"""ggml's and llama.cpp's log lines, as records of the logger ``pyggml.ggml``.

Native code queues its lines; whichever thread next comes back from a call hands them to :mod:`logging`. So threads
that Python does not know never enter it, and nobody waits for a lock inside of a logging handler. A record carries
the time at which the line was written. Quiet by default, like any library: configure :mod:`logging` to see them.
"""

from __future__ import annotations

import atexit
import logging
import sys

from ._ffi._lib import ffi, lib

logging.getLogger("pyggml").addHandler(logging.NullHandler())
logger = logging.getLogger("pyggml.ggml")

# enum ggml_log_level -> logging's levels
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_NOTHING = 100


def install() -> None:
    """Lets both libraries log to the queue."""
    lib.pgg_log_install(ffi.NULL, ffi.NULL)
    if hasattr(lib, "llama_log_set"):
        callback = ffi.new("ggml_log_callback *")
        user_data = ffi.new("void **")
        lib.ggml_log_get(callback, user_data)
        lib.llama_log_set(callback[0], user_data[0])
    atexit.register(drain)


def drain() -> None:
    """Hands over what waits. Lines below the level that is enabled are dropped before they enter Python."""
    try:
        level = next((native for native, python in _LEVELS.items() if logger.isEnabledFor(python)), _NOTHING)
        text = ffi.string(lib.pgg_log_take(level))
        if not text:
            return
        for line in text.decode("utf-8", "replace").rstrip("\n").split("\n"):
            number, time, message = line.split(" ", 2)
            record = logger.makeRecord(logger.name, _LEVELS.get(int(number), logging.INFO), "ggml", 0, message, (), None)
            if created := float(time):
                record.created = created
                record.msecs = float(int(created * 1000) % 1000)
            logger.handle(record)
    except Exception:
        sys.excepthook(*sys.exc_info())  # a careless handler: the call before this succeeded, its result must arrive
