"""Where the time of a trace went: by device, by host thread, by subgraph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from ..errors import ArgumentError
from .tracks import Track, tracks
from .values import Run, Trace, TraceEvent, by_device

if TYPE_CHECKING:
    from ..plan import SplitPlan

__all__ = ["DeviceTime", "HostTime", "SubgraphTime", "device_times", "host_times", "times_by_subgraph"]


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """Nanoseconds of a device, and what it did. Where only the host's calls are known (``timing`` is ``host side``), times are
    theirs, and None where nothing can be said."""

    name: str
    timing: str
    """See `TraceEvent.timing`."""
    wall: int
    compute: int
    """Subgraphs."""
    reduce: int
    """Sums over the devices: its part of all-reduces, and the additions of ggml's butterfly."""
    copy: int
    """Copies between devices, at either end."""
    transfer: int
    """From and to the host, by the device's own queue."""
    wait: int | None
    """For other devices."""
    launch: int | None
    """Asked for something, and not begun."""
    idle: int | None
    """Nothing to do: the host had asked for nothing."""
    subgraphs: int
    computed: int | None
    """Nodes that it computed."""
    allreduces: int
    """By a communicator of the devices."""
    allreduce_bytes: int
    """Their payload."""
    copies: int
    """From other devices to this one."""
    copy_bytes: int
    moved: int | None
    """Bytes that it itself read from other devices and wrote to them, in sums and copies; None where the algorithm is not known."""
    set_bytes: int
    """From the host."""
    get_bytes: int
    """To the host."""

    @property
    def busy(self) -> int:
        """Computing, summing, copying."""
        return self.compute + self.reduce + self.copy + self.transfer

    @property
    def waiting_share(self) -> float | None:
        """The part of the whole time in which it waited for other devices."""
        return None if self.wait is None else self.wait / self.wall if self.wall else 0.0


@dataclass(frozen=True, slots=True)
class HostTime:
    """Nanoseconds of a host thread, by what it did; what is done within something else counts there only."""

    thread: int
    parts: tuple[tuple[str, int], ...]
    """The longest first."""
    outside: int
    """Not in any part that is known: the program itself."""


@dataclass(frozen=True, slots=True)
class SubgraphTime:
    """One subgraph: means over runs, in nanoseconds, one for each device of the trace; None where a device had no part."""

    graph: int
    """Which graph of a run."""
    subgraph: int
    nodes: int
    label: str
    """Its last node."""
    runs: int
    begin: tuple[float | None, ...]
    """Since the graph's first subgraph began on any device."""
    compute: tuple[float | None, ...]
    reduce: tuple[float | None, ...]
    """The sum behind it: additions and copies."""
    wait: tuple[float | None, ...]
    """For other devices, in the sum behind it."""
    timing: tuple[str | None, ...]
    """See `TraceEvent.timing`."""


def device_times(trace: Trace) -> tuple[DeviceTime, ...]:
    """One for each device of the trace."""
    all_tracks = tracks(trace)
    events = by_device(trace.events)
    return tuple(_device_time(trace, j, [t for t in all_tracks if t.device == j], events.get(j, [])) for j in range(len(trace.devices)))


def _device_time(trace: Trace, device: int, mine: Sequence[Track], events: Iterable[TraceEvent]) -> DeviceTime:
    time: Counter[str] = Counter()
    for s in mine[0].slices if mine else ():  # its queue, where it has one
        time[s.category] += s.end - s.start
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    computed: int | None = 0
    moved: int | None = 0
    for e in events:
        count[e.kind] += 1
        size[e.kind] += e.bytes
        if e.kind == "compute":
            computed = None if computed is None or e.computed < 0 else computed + e.computed
        if e.kind in ("allreduce", "copy", "send"):
            moved = None if moved is None or e.moved < 0 else moved + e.moved
    known = bool(mine) and (mine[0].thread < 0 or (len(mine) == 1 and mine[0].timing != "host side"))
    return DeviceTime(
        name=trace.devices[device].name,
        timing=mine[0].timing if mine else "host side",
        wall=trace.wall,
        compute=time["compute"],
        reduce=time["allreduce"] + time["step"],
        copy=time["copy"] + time["send"],
        transfer=time["set"] + time["get"],
        wait=time["wait"] if known else None,
        launch=time["launch"] if known else None,
        idle=time["idle"] if known else None,
        subgraphs=count["compute"],
        computed=computed,
        allreduces=count["allreduce"],
        allreduce_bytes=size["allreduce"],
        copies=count["copy"],
        copy_bytes=size["copy"],
        moved=moved,
        set_bytes=size["set"],
        get_bytes=size["get"],
    )


_OWN = {"llama_decode": "llama.cpp: build and schedule graphs", "llama_encode": "llama.cpp: build and schedule graphs"}


def _part(trace: Trace, e: TraceEvent) -> str:
    if e.kind == "span":
        name = e.label.partition("(")[0]
        return _OWN.get(name, name)
    where = trace.devices[e.device].name if e.device >= 0 else e.label or "the host's memory"
    return {
        "prepare": "cut graphs",
        "queue": "give out subgraphs",
        "sync": f"wait for {where}",
        "set": f"write to {where}",
        "get": f"read from {where}",
    }.get(e.kind, f"compute on {where}" if e.timing == "exact" else f"calls of {where}")


def host_times(trace: Trace) -> tuple[HostTime, ...]:
    """One for each host thread that did something."""
    threads: dict[int, list[TraceEvent]] = {}
    for e in trace.events:
        if not e.on_queue:
            threads.setdefault(e.thread, []).append(e)
    return tuple(_host_time(trace, thread, events) for thread, events in sorted(threads.items()))


def _host_time(trace: Trace, thread: int, events: Iterable[TraceEvent]) -> HostTime:
    parts: Counter[str] = Counter()
    stack: list[TraceEvent] = []
    covered = until = 0
    seen: set[tuple[int, int]] = set()
    for e in events:
        if e.kind in ("copy", "send", "allreduce"):
            if (e.start, e.end) in seen:
                continue  # one call of the host, recorded for several devices
            seen.add((e.start, e.end))
        while stack and stack[-1].end <= e.start:
            stack.pop()
        parts[_part(trace, e)] += e.ns
        if stack:
            parts[_part(trace, stack[-1])] -= min(e.end, stack[-1].end) - e.start
        covered += max(e.end - max(e.start, until), 0)
        until = max(until, e.end)
        stack.append(e)
    return HostTime(thread, tuple(sorted(((n, t) for n, t in parts.items() if t), key=lambda p: -p[1])), trace.wall - covered)


def times_by_subgraph(trace: Trace, plan: SplitPlan | None = None) -> tuple[SubgraphTime, ...]:
    """The times of every subgraph, over all runs with the same graphs.

    Args:
        plan: only the runs that it describes. Without, the runs of the shape that took the longest altogether.

    Raises:
        ArgumentError: no run of the trace has the plan's subgraphs.
    """
    shapes: dict[tuple[str, _Shapes], list[Run]] = {}
    for run in trace.runs:
        if run.graphs:
            label = run.label if plan is None else ""  # a plan does not say what its run is called
            shapes.setdefault((label, tuple(_shape(trace, g) for g in run.graphs)), []).append(run)
    if plan is not None:
        wanted = _shape_of_plan(plan)
        if ("", wanted) not in shapes:
            have = "; ".join(_words(shape) for _, shape in shapes) or "none on a meta device"
            raise ArgumentError(
                f"no run of the trace is the planned one: the plan has {_words(wanted)}, the trace has {have}; plan with as many tokens, "
                "and as many before them, as were decoded"
            )
        runs = shapes["", wanted]
    elif shapes:
        runs = max(shapes.values(), key=lambda of: sum(r.end - r.start for r in of))
    else:
        return ()
    found = []
    for k in range(len(runs[0].graphs)):
        found += _subgraphs(trace, k, [r.graphs[k] for r in runs])
    return tuple(found)


_Shapes = tuple[tuple[tuple[int, int], ...], ...]
"""For each graph of a run, for each of its subgraphs: its nodes, and the bytes that are summed behind it."""


def _shape(trace: Trace, graph: int) -> tuple[tuple[int, int], ...]:
    nodes: dict[int, int] = {}
    summed: dict[int, int] = {}
    for e in trace.of_graph(graph):
        if e.kind == "compute":
            nodes[e.subgraph] = e.nodes
        elif e.kind in ("allreduce", "copy"):
            summed[e.subgraph] = e.bytes
    return tuple((nodes[i], summed.get(i, 0)) for i in sorted(nodes))


def _shape_of_plan(plan: SplitPlan) -> _Shapes:
    summed = {r.subgraph: r.bytes for r in plan.allreduces}
    graphs: dict[int, list[tuple[int, int]]] = {}
    for i, s in enumerate(plan.subgraphs):
        graphs.setdefault(s.graph, []).append((s.stop - s.start, summed.get(i, 0)))
    return tuple(tuple(graphs[g]) for g in sorted(graphs))


def _words(shapes: _Shapes) -> str:
    parts = [p for shape in shapes for p in shape]
    return f"{len(parts)} subgraphs of {sum(n for n, _ in parts)} nodes and {sum(b for _, b in parts):,} bytes to be summed"


def _subgraphs(trace: Trace, k: int, graphs: Sequence[int]) -> list[SubgraphTime]:
    n = len(trace.devices)
    seen: dict[int, list[_Parts]] = {}
    for graph in graphs:
        events = trace.of_graph(graph)
        first = min((e.start for e in events if e.kind == "compute"), default=0)
        of_run: dict[int, _Parts] = {}
        for e in events:
            if e.device >= 0:
                of_run.setdefault(e.subgraph, _Parts(n)).add(e, first)
        for i, parts in of_run.items():
            seen.setdefault(i, []).append(parts)
    return [_mean(k, i, seen[i], n) for i in sorted(seen)]


class _Parts:
    """One subgraph in one run."""

    def __init__(self, n: int) -> None:
        self.begin: list[int | None] = [None] * n
        self.time: list[Counter[str]] = [Counter() for _ in range(n)]
        self.timing: list[str | None] = [None] * n
        self.label, self.nodes = "", 0

    def add(self, e: TraceEvent, first: int) -> None:
        j = e.device
        if e.kind == "compute":
            if self.begin[j] is None:
                self.begin[j], self.timing[j] = e.start - first, e.timing
            self.label, self.nodes = e.label, e.nodes
        what = e.kind if e.kind in ("compute", "wait") else "reduce" if e.kind in ("allreduce", "step", "copy", "send") else ""
        if what:
            self.time[j][what] += e.ns


def _mean(k: int, i: int, runs: Sequence[_Parts], n: int) -> SubgraphTime:
    def over(values: Iterable[float | None]) -> float | None:
        there = [v for v in values if v is not None]
        return fmean(there) if there else None

    took_part = [any(r.begin[j] is not None for r in runs) for j in range(n)]

    def of(what: str) -> tuple[float | None, ...]:
        return tuple(over(r.time[j][what] for r in runs) if took_part[j] else None for j in range(n))

    begin = tuple(over(r.begin[j] for r in runs) for j in range(n))
    first = runs[0]
    return SubgraphTime(k, i, first.nodes, first.label, len(runs), begin, of("compute"), of("reduce"), of("wait"), tuple(first.timing))
