"""A trace laid out as tracks: one for each device and each host thread, for viewers and for adding up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .values import HOST_KINDS, Trace, TraceEvent

__all__ = ["Slice", "Track", "slice_name", "tracks"]


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of a track."""

    category: str
    """The kind of the event; ``idle``: the device had nothing to do; ``launch``: it had been asked, and had not begun;
    ``outside``: the host was in no part of a run."""
    name: str
    start: int
    end: int
    event: TraceEvent | None = None


@dataclass(frozen=True, slots=True)
class Track:
    """What happened in one place, by its beginnings. Only slices of host threads contain others."""

    name: str
    device: int
    """Index into `Trace.devices`; -1: a host thread."""
    thread: int
    """The host thread; -1: the device's own queue."""
    timing: str
    """See `TraceEvent.timing`; the worst of its slices."""
    slices: tuple[Slice, ...]


def tracks(trace: Trace) -> tuple[Track, ...]:
    """Devices first, in their order, then host threads.

    On tracks of devices whose times are known, what lies between the events is there as ``idle`` and ``launch``, so that
    the slices of such a track add up to the whole trace. On host threads it is there as ``outside``: what the program did
    besides.
    """
    queues: dict[int, list[TraceEvent]] = {}
    calls: dict[tuple[int, int], list[TraceEvent]] = {}
    hosts: dict[int, list[TraceEvent]] = {}
    summed = {(e.graph, e.subgraph): e.label for e in trace.events if e.kind == "compute"}
    for e in trace.events:
        if e.on_queue:
            queues.setdefault(e.device, []).append(e)
        elif e.kind in HOST_KINDS or e.device < 0:
            hosts.setdefault(e.thread, []).append(e)
        else:
            calls.setdefault((e.device, e.thread), []).append(e)
    found = []
    for device, one in enumerate(trace.devices):
        if device in queues:
            found.append(Track(one.name, device, -1, "exact", tuple(_filled(trace, queues[device], summed))))
        threads = [t for d, t in calls if d == device]
        for thread in sorted(threads):
            events = calls[device, thread]
            timing = next((t for t in ("host side", "synchronized") if any(e.timing == t for e in events)), "exact")
            name = one.name if timing != "host side" and device not in queues else f"{one.name} (calls of the host)"
            if len(threads) > 1:
                name += f", thread {thread}"
            slices = [_slice(trace, e, summed) for e in events] if timing == "host side" else list(_filled(trace, events, summed))
            found.append(Track(name, device, thread, timing, tuple(slices)))
    for thread, events in sorted(hosts.items()):
        name = "host" if len(hosts) == 1 else f"host thread {thread}"
        found.append(Track(name, -1, thread, "exact", tuple(_with_outside(trace, events, summed))))
    return tuple(found)


def _with_outside(trace: Trace, events: Iterable[TraceEvent], summed: dict[tuple[int, int], str]) -> Iterable[Slice]:
    """The slices of a host thread, which contain others, and between them what no part of a run accounts for."""
    at = 0
    for e in events:  # by their beginnings, the longer first
        if e.start > at:
            yield Slice("outside", "outside of runs", at, e.start)
        yield _slice(trace, e, summed)
        at = max(at, e.end)
    if trace.wall > at:
        yield Slice("outside", "outside of runs", at, trace.wall)


def _filled(trace: Trace, events: Iterable[TraceEvent], summed: dict[tuple[int, int], str]) -> Iterable[Slice]:
    at = 0
    for e in sorted(events, key=lambda e: (e.start, e.end)):  # one that takes no time comes before what begins with it
        yield from _gap(at, min(max(e.queued, at), e.start), e.start)
        yield _slice(trace, e, summed)
        at = max(at, e.end)
    yield from _gap(at, trace.wall, trace.wall)


def _gap(start: int, asked: int, end: int) -> Iterable[Slice]:
    if asked > start:
        yield Slice("idle", "idle", start, asked)
    if end > asked:
        yield Slice("launch", "launch", asked, end)


def _slice(trace: Trace, e: TraceEvent, summed: dict[tuple[int, int], str]) -> Slice:
    return Slice(e.kind, slice_name(trace, e, summed.get((e.graph, e.subgraph), "")), e.start, e.end, e)


def slice_name(trace: Trace, e: TraceEvent, summed: str = "") -> str:
    """What a viewer calls an event.

    Args:
        summed: the last node of the subgraph that it belongs to.
    """
    peer = trace.devices[e.peer].name if e.peer >= 0 else ""
    where = trace.devices[e.device].name if e.device >= 0 else e.label or "the host's memory"
    names = {
        "span": e.label,
        "prepare": "cut the graph",
        "queue": "give out subgraphs",
        "sync": f"wait for {where}",
        "compute": f"subgraph {e.subgraph}: to {e.label}" if e.label else f"subgraph {e.subgraph}",
        "step": f"{e.label} {summed}".rstrip(),
        "allreduce": f"all-reduce {summed}".rstrip(),
        "wait": f"wait for {peer}" if peer else "wait for the others",
        "copy": f"copy from {peer}" if peer else "copy",
        "send": f"copy to {peer}" if peer else "copy",
        "set": "upload" if e.on_queue else f"write to {where}",
        "get": "download" if e.on_queue else f"read from {where}",
    }
    return names[e.kind]
