"""Traces as JSON: an object with the names of the columns once, and a row for each event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import FileFormatError
from .values import KINDS, Trace, TraceDevice, TraceEvent

__all__ = ["SCHEMA", "from_json", "to_json"]

SCHEMA = "pyggml.trace/1"


def to_json(trace: Trace, indent: int | None = None) -> str:
    """A trace as JSON."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "wall_ns": trace.wall,
            "began_ns": trace.began,
            "sync": trace.sync,
            "dropped": trace.dropped,
            "devices": [{"name": d.name, "backend": d.backend} for d in trace.devices],
            "columns": list(TraceEvent._fields),
            "events": trace.events,
        },
        indent=indent,
        separators=None if indent else (",", ":"),
    )


_TYPES = {"kind": str, "timing": str, "label": str, "on_queue": bool}


def from_json(text: str | bytes | Mapping[str, Any]) -> Trace:
    """A trace from JSON.

    Raises:
        FileFormatError: it is none, or of another version.
    """
    if isinstance(text, (str, bytes)):
        try:
            text = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"trace: not JSON: {error}") from None
    if not isinstance(text, Mapping):
        raise FileFormatError(f"trace: found a {type(text).__name__}, expected an object")
    if text.get("schema") != SCHEMA:
        raise FileFormatError(f"trace: schema {text.get('schema')!r}, expected {SCHEMA!r}: take it again with this version of pyggml")
    try:
        if text["columns"] != list(TraceEvent._fields):
            raise ValueError(f"columns {text['columns']!r:.200}, expected {list(TraceEvent._fields)}")
        events = tuple(_event(row, len(text["devices"])) for row in text["events"])
        devices = tuple(TraceDevice(str(d["name"]), str(d["backend"])) for d in text["devices"])
        wall, dropped, began = (_number(text[key]) for key in ("wall_ns", "dropped", "began_ns"))
        return Trace(devices, events, wall, bool(text["sync"]), dropped, began)
    except (KeyError, TypeError, ValueError) as error:
        why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FileFormatError(f"trace: cannot be read: {why}") from None


def _number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"found {value!r:.80}, expected a whole number")
    return value


def _event(row: Any, n_devices: int) -> TraceEvent:
    e = TraceEvent(*row)
    for name, value in zip(TraceEvent._fields, e, strict=True):
        if type(value) is not _TYPES.get(name, int):
            raise ValueError(f"{name} of an event is {value!r:.80}")
    if e.kind not in KINDS or not -1 <= e.device < n_devices or not -1 <= e.peer < n_devices:
        raise ValueError(f"there is no such event: {row!r:.200}")
    return e
