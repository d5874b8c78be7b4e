"""One case of bad input: what it is, what must happen, and which part of pyggml caught it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyggml as gg

STAGES = (
    "python check", "file check", "native check", "ggml guard", "ggml or llama.cpp log", "child probe", "device",
    "Python itself", "nobody: harmless",
)  # fmt: skip


class Unexpected(AssertionError):
    """A case did not end as it must; not derived from pyggml.Error, so never taken for a refusal."""


@dataclass(frozen=True)
class Case:
    """Something that pyggml must refuse."""

    what: str
    """Enough to find it again."""
    act: Callable[[], object]
    names: tuple[str, ...] = ()
    """The message contains each of them."""
    errors: tuple[type[BaseException], ...] = (gg.Error,)
    """The exception is one of them."""
    harmless: bool = False
    """It may also turn out to be no error (a flipped bit in a float, say). Then it does not count."""
    check: Callable[[BaseException], None] | None = None
    """Further demands on the exception."""


@dataclass(frozen=True)
class Outcome:
    stage: str
    error: str
    message: str

    @property
    def reached_native(self) -> bool:
        return self.stage not in ("python check", "file check", "Python itself", "child probe")


def outcome_of(case: Case) -> Outcome:
    """Runs a case.

    Raises:
        Unexpected: it raised nothing, the wrong class, or a message that names too little.
    """
    try:
        case.act()
    except Unexpected:
        raise
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        message = str(error)
        if not isinstance(error, (gg.Error, *case.errors)) or not isinstance(error, case.errors):
            wanted = " or ".join(e.__name__ for e in case.errors)
            raise Unexpected(f"raised {type(error).__name__}, not {wanted}: {message}\n{traceback.format_exc(limit=-6)}") from error
        for name in case.names:
            if name not in message:
                raise Unexpected(f"{type(error).__name__} does not name {name!r}: {message}") from error
        if len(message) < 12:
            raise Unexpected(f"{type(error).__name__} says too little: {message!r}") from error
        if case.check is not None:
            case.check(error)
        return Outcome(stage_of(error), type(error).__name__, message)
    if case.harmless:
        return Outcome("nobody: harmless", "", "")
    raise Unexpected("nothing was raised")


def stage_of(error: BaseException) -> str:
    """Which part of pyggml noticed, by where the exception comes from."""
    if isinstance(error, gg.DeviceLostError):
        return "device"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, gg.GGMLAbort):
            return "ggml guard"
        cause = cause.__cause__
    frames = [Path(f.filename) for f in traceback.extract_tb(error.__traceback__)]
    inner, functions = frames[-1], [f.name for f in traceback.extract_tb(error.__traceback__)]
    if "probe_load" in functions:
        return "child probe"
    if inner.parts[-2:] == ("_ffi", "check.py"):
        return "ggml or llama.cpp log" if functions[-1] == "_raise" and getattr(error, "log", ()) else "native check"
    if isinstance(error, gg.ModelError) or "\n  log: " in str(error):
        return "ggml or llama.cpp log"
    if inner.name == "gguf_check.py" or inner.name == "gguf_rules.py":
        return "file check"
    if "pyggml" in inner.parts:
        return "python check"
    return "Python itself"
