"""Traces in Chrome's JSON format: complete events ("X"), flows ("s", "t", "f") and the names of tracks."""

from __future__ import annotations

import json
from typing import Any

from ..tracing.tracks import Slice, tracks
from ..tracing.values import Trace
from .trace_flows import flows_of

__all__ = ["to_chrome"]

_PID = 1


def to_chrome(trace: Trace) -> str:
    """A trace as JSON for chrome://tracing and ui.perfetto.dev; times in microseconds with three decimals."""
    found = tracks(trace)
    events: list[dict[str, Any]] = [_named("process_name", 0, name="pyggml")]
    for tid, track in enumerate(found):
        events.append(_named("thread_name", tid, name=track.name))
        events.append(_named("thread_sort_index", tid, sort_index=tid))
        for s in track.slices:
            events.append(
                {"ph": "X", "pid": _PID, "tid": tid, "cat": s.category, "name": s.name, "ts": s.start / 1e3, "dur": (s.end - s.start) / 1e3,
                 "args": arguments(s)}
            )  # fmt: skip
    for number, ends in flows_of(found).items():
        for i, (tid, s) in enumerate(ends):
            phase = "s" if i == 0 else "f" if i == len(ends) - 1 else "t"
            flow = {"ph": phase, "pid": _PID, "tid": tid, "cat": "flow", "name": ends[0][1].category, "id": number, "ts": s.start / 1e3}
            events.append(flow | ({"bp": "e"} if phase == "f" else {}))  # of the slice around it, not the next one
    return json.dumps(
        {
            "traceEvents": events,
            "displayTimeUnit": "ns",
            "otherData": {"wall_ns": trace.wall, "dropped": trace.dropped, "began_ns": trace.began, "sync": trace.sync},
        }
    )


def _named(what: str, tid: int, **value: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": _PID, "tid": tid, "name": what, "args": value}


def arguments(s: Slice) -> dict[str, Any]:
    """What a viewer shows beside a slice."""
    e = s.event
    if e is None:
        return {}
    found: dict[str, Any] = {"timing": e.timing}
    if e.graph >= 0:
        found |= {"graph": e.graph}
        if e.kind not in ("prepare", "queue"):
            found |= {"subgraph": e.subgraph}
    if e.kind in ("compute", "prepare", "queue") and e.nodes >= 0:
        found |= {"nodes": e.nodes}
    if e.computed >= 0:
        found |= {"subgraphs" if e.kind == "queue" else "computed": e.computed}
    if e.bytes:
        found |= {"bytes": e.bytes}
    if e.moved >= 0:
        found |= {"moved_bytes": e.moved}
    return found
