"""Cases that fail, for the test of the harness."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from bad_case import Case

import pyggml as gg


def _raise(error: BaseException) -> None:
    raise error


def cases(folder: Path) -> Iterator[Case]:
    yield Case("good", lambda: _raise(gg.ArgumentError("this is the name of it")), ("the name",))
    yield Case("dies", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    yield Case("accepts", lambda: None)
    yield Case("exits", lambda: os._exit(3))
    yield Case("hangs", lambda: time.sleep(1000))
    yield Case("says nothing", lambda: _raise(gg.ArgumentError("some mistake or other")), ("the name",))
    yield Case("a wrong class", lambda: _raise(KeyError("the name of it")), ("the name",))
    yield Case("harmless", lambda: None, harmless=True)
    yield Case("also good", lambda: _raise(gg.ShapeError("this is the name of it")), ("the name",))
