"""What can go wrong, one class per kind of failure.

Every class derives from :class:`Error` and from the built-in exception that fits, so that both
``except pyggml.Error`` and ``except ValueError`` do what they say. Failures of native code arrive here through
:func:`from_native`, the only place that maps them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import SplitPlan
    from .plan.check import Violation

__all__ = [
    "ArgumentError",
    "BusyError",
    "ClosedError",
    "DTypeError",
    "DeviceError",
    "DeviceLostError",
    "DeviceNotFoundError",
    "Error",
    "FileFormatError",
    "ForkError",
    "GGMLAbort",
    "IndexRangeError",
    "ModelError",
    "ModelNotFoundError",
    "NativeError",
    "OutOfMemoryError",
    "PoisonedError",
    "ShapeError",
    "SplitError",
    "UnsupportedError",
]


class Error(Exception):
    """The base of all errors of pyggml."""

    log: tuple[str, ...] = ()
    """The warnings and errors that ggml or llama.cpp logged during the call that failed."""


class NativeError(Error, RuntimeError):
    """A failure of native code that has no class of its own."""


class GGMLAbort(NativeError):
    """A ``GGML_ASSERT`` or ``GGML_ABORT`` that would have ended the process. What it interrupted is unusable."""


class ArgumentError(Error, ValueError):
    """An argument with a value that makes no sense."""


class ShapeError(Error, ValueError):
    """Shapes that do not fit each other or the operation."""


class DTypeError(Error, TypeError):
    """A number format that is unknown, or that the operation does not take."""


class IndexRangeError(Error, IndexError):
    """A row, expert, axis or device number that is out of range."""


class SplitError(Error, ValueError):
    """A split that is illegal, or that ggml would accept and compute wrongly."""

    node: str | None
    """The name of the node that cannot be split so."""
    op: str | None
    """Its operation, as ggml calls it."""
    sources: tuple[tuple[str, str], ...]
    """Name and split (short notation) of each of its sources, in order."""
    repair: str | None
    """A change that makes it legal."""
    reason: str | None = None
    """Why, without names and repair; None where only the message says it."""
    rule: int | None = None
    """The index of the rule that cannot be obeyed."""
    violations: tuple[Violation, ...] = ()
    """All of them, where a check found several."""

    def __init__(
        self,
        message: str,
        *,
        node: str | None = None,
        op: str | None = None,
        sources: tuple[tuple[str, str], ...] = (),
        repair: str | None = None,
    ) -> None:
        super().__init__(message)
        self.node, self.op, self.sources, self.repair = node, op, sources, repair

    @classmethod
    def from_message(cls, message: str) -> SplitError:
        """Takes the parts out of the text that native code wrote (``split_message`` in native/meta/meta_capture.cpp)."""
        head = re.search(r"illegal split at node '(?P<node>.*?)' \((?P<op>[^,()]+)[,)]", message)
        if head is None:
            return cls(message)
        body, _, repair = message.partition("; legal repair: ")
        sources = re.findall(r"; src\d+ '(.*?)' (?:\w+ \[[^\]]*\] )?([^;]+)", body)
        return cls(
            message,
            node=head["node"],
            op=head["op"],
            sources=tuple((name, split.strip()) for name, split in sources),
            repair=repair.splitlines()[0] if repair else None,
        )


class ClosedError(Error, ValueError):
    """A handle was used after it was closed."""


class PoisonedError(Error, RuntimeError):
    """A handle was used after a failure left it in an unknown state. It can only be closed."""


class BusyError(Error, RuntimeError):
    """A handle was used while another thread is using it."""


class DeviceError(Error, RuntimeError):
    """A device refused or failed."""


class DeviceNotFoundError(DeviceError, LookupError):
    """There is no such device."""


class DeviceLostError(DeviceError):
    """A device is gone: an RPC server that died, a kernel that failed."""


class OutOfMemoryError(Error, MemoryError):
    """A device, or the host, has not enough memory."""

    plan: SplitPlan | None = None
    """What would be needed on each device, where a plan was asked for."""


class FileFormatError(Error, ValueError):
    """A file that is truncated, corrupt, or not what its name says."""


class ModelNotFoundError(Error, FileNotFoundError):
    """There is no file of that name."""


class ModelError(Error, RuntimeError):
    """llama.cpp could not load or run a model."""


class UnsupportedError(Error, NotImplementedError):
    """Something that ggml, llama.cpp, this build or this device cannot do."""


class ForkError(Error, RuntimeError):
    """pyggml was used in a child of ``fork()``."""


# enum pgg_error_kind of native/pyggml.h. PGG_ERROR_CALLBACK is not here: the exception itself is raised again.
_KINDS: dict[int, type[Error]] = {
    1: GGMLAbort,
    2: SplitError,
    3: OutOfMemoryError,
    4: DeviceLostError,
    5: ArgumentError,
    6: NativeError,
    8: ForkError,
}


def from_native(kind: int, message: str, log: tuple[str, ...] = ()) -> Error:
    """The exception for an error that native code left pending, with the reasons that were logged before it."""
    cls = _KINDS.get(kind, NativeError)
    if cls is ArgumentError and "expected an index of" in message:  # native/cpu/ggml_cpu_guard.cpp
        cls = IndexRangeError
    reasons = tuple(line for line in log if line.strip() and line.strip() not in message)
    text = message + "".join(f"\n  log: {line}" for line in reasons)
    error = SplitError.from_message(text) if cls is SplitError else cls(text)
    error.log = log
    return error
