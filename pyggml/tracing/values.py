"""A trace as a value: events of devices and of the host, with nanoseconds since the trace began."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .._arguments import file_path
from ..errors import BusyError

if TYPE_CHECKING:
    from ..plan import SplitPlan
    from .times import DeviceTime, HostTime, SubgraphTime

__all__ = ["HOST_KINDS", "KINDS", "RUNS", "Run", "Trace", "TraceDevice", "TraceEvent"]

KINDS = ("span", "prepare", "queue", "sync", "compute", "step", "allreduce", "wait", "copy", "send", "set", "get")
"""What an event can be, in the order of ``enum pgg_trace_kind``."""

HOST_KINDS = frozenset({"span", "prepare", "queue", "sync", "set", "get"})
"""What the host does itself unless a device's queue does it."""

RUNS = ("Graph.run", "llama_decode", "llama_encode")
"""The spans that are one run of a graph or of a model's batch."""


@dataclass(frozen=True, slots=True)
class TraceDevice:
    """A device that took part."""

    name: str
    backend: str
    """Such as ``VCPU``, ``CUDA``, ``CPU``."""


class TraceEvent(NamedTuple):
    """One stretch of time. Times are nanoseconds since the trace began."""

    kind: str
    """One of `KINDS`: ``compute`` (a subgraph), ``allreduce`` (this device's part of a communicator's sum), ``step`` (an addition of
    ggml's butterfly), ``wait`` (for another device), ``copy`` (from another device), ``send`` (the same copy, at the other
    device), ``set`` and ``get`` (from and to the host), ``sync`` (the host waits), ``prepare`` and ``queue`` (the host cuts
    a meta graph, and gives its subgraphs out), ``span`` (a named part of the host's work)."""
    device: int
    """Index into `Trace.devices`; -1: the host."""
    peer: int
    """The other device of a copy or a wait; -1: none."""
    thread: int
    """Which host thread did it or asked for it."""
    queued: int
    """When the host asked for it."""
    start: int
    end: int
    bytes: int
    """Payload."""
    moved: int
    """Bytes that the device itself read from others and wrote to others, so that no byte counts twice; -1: not known."""
    join: int
    """Events with the same number are parts of one copy or all-reduce; -1: of none."""
    graph: int
    """Events with the same number are of one graph; -1: of none."""
    subgraph: int
    """Within the graph; of a sum or copy, the subgraph that it comes after."""
    nodes: int
    """Of a subgraph; of ``prepare`` and ``queue``: of the graph."""
    computed: int
    """Nodes that the device computed; of ``queue``: subgraphs that were given out. -1: not counted."""
    timing: str
    """``exact``: begin and end of the work itself. ``synchronized``: from the request until the device was found idle.
    ``host side``: of the call only, the work may have taken longer."""
    on_queue: bool
    """Whether a thread of the device did it, else the host's."""
    label: str
    """A subgraph's last node, a span's name."""

    @property
    def ns(self) -> int:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a graph, or of a batch of a model."""

    label: str
    """``Graph.run``, ``llama_decode(17)``, …; ``graph`` for what ran without them."""
    thread: int
    start: int
    end: int
    graphs: tuple[int, ...]
    """Numbers of its graphs that ran on a meta device, in their order."""


@dataclass(frozen=True)
class Trace:
    """What ran while it was taken, see `pyggml.trace`."""

    devices: tuple[TraceDevice, ...]
    events: tuple[TraceEvent, ...]
    """By their beginnings."""
    wall: int
    """Nanoseconds from its beginning to its end."""
    sync: bool
    """Whether devices that tell no times were waited for after each subgraph; then they take turns."""
    dropped: int = 0
    """Events beyond the limit: they are missing."""
    began: int = field(default=0, compare=False)
    """Nanoseconds since the epoch."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # reached for what is not there: a trace has nothing until it has ended
            if name.startswith("__") or "wall" in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise BusyError("the trace is still being taken: look at it behind its with block")

    # by run

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs in it, by their beginnings."""
        spans: dict[int, list[TraceEvent]] = {}
        for e in self.events:
            if e.kind == "span" and e.label.startswith(RUNS):
                spans.setdefault(e.thread, []).append(e)
        graphs: dict[tuple[int, int], list[int]] = {}
        alone: list[Run] = []
        for e in self.events:
            if e.kind != "prepare":
                continue
            of = spans.get(e.thread, [])
            i = bisect_right(of, e.start, key=lambda s: s.start) - 1  # runs do not nest
            if i >= 0 and e.end <= of[i].end:
                graphs.setdefault((e.thread, i), []).append(e.graph)
            else:
                alone.append(Run("graph", e.thread, e.start, self._graph_end(e.graph), (e.graph,)))
        found = [
            Run(s.label, thread, s.start, s.end, tuple(graphs.get((thread, i), ())))
            for thread, of in spans.items()
            for i, s in enumerate(of)
        ]
        return tuple(sorted([*found, *alone], key=lambda r: (r.start, r.thread)))

    def _graph_end(self, graph: int) -> int:
        return max(e.end for e in self.of_graph(graph))

    @cached_property
    def _by_graph(self) -> dict[int, tuple[TraceEvent, ...]]:
        found: dict[int, list[TraceEvent]] = {}
        for e in self.events:
            if e.graph >= 0:
                found.setdefault(e.graph, []).append(e)
        return {graph: tuple(events) for graph, events in found.items()}

    def of_graph(self, graph: int) -> tuple[TraceEvent, ...]:
        """The events of a graph."""
        return self._by_graph.get(graph, ())

    # what it says

    def device_times(self) -> tuple[DeviceTime, ...]:
        """Where each device's time went."""
        from .times import device_times

        return device_times(self)

    def host_times(self) -> tuple[HostTime, ...]:
        """Where the time of each host thread went."""
        from .times import host_times

        return host_times(self)

    def times_by_subgraph(self, plan: SplitPlan | None = None) -> tuple[SubgraphTime, ...]:
        """The times of every subgraph, as means over the runs of the same shape. See `times.times_by_subgraph`."""
        from .times import times_by_subgraph

        return times_by_subgraph(self, plan)

    @property
    def allreduces(self) -> int:
        """Sums over the devices that were made, by a communicator or by ggml's butterfly."""
        return len({(e.graph, e.subgraph) for e in self.events if e.kind in ("allreduce", "step") and e.graph >= 0})

    def to_json(self, *, indent: int | None = None) -> str:
        """As JSON, see `from_json`."""
        from .json import to_json

        return to_json(self, indent)

    @classmethod
    def from_json(cls, text: str | bytes | Mapping[str, Any]) -> Trace:
        """A trace from `to_json`.

        Raises:
            FileFormatError: it is none, or of another version.
        """
        from .json import from_json

        return from_json(text)

    # doors to views

    def table(self, *, subgraphs: int = 10) -> str:
        """Where the time went, as text; the so many slowest subgraphs are listed."""
        from ..report.trace_text import trace_text

        return trace_text(self, subgraphs=subgraphs)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        if "wall" not in self.__dict__:
            return "<Trace (being taken)>"
        return f"<Trace of {self.wall / 1e6:.3f} ms: {len(self.events)} events, {', '.join(d.name for d in self.devices) or 'no device'}>"

    def save_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Writes a Perfetto trace (a protobuf), for ui.perfetto.dev.

        Raises:
            UnsupportedError: the package ``perfetto`` is not installed (``pip install pyggml[trace]``).
        """
        from ..report.trace_perfetto import write_perfetto

        with file_path("a trace", path).open("wb") as file:
            write_perfetto(self, file)

    def save_chrome(self, path: str | os.PathLike[str]) -> None:
        """Writes Chrome's trace JSON, for chrome://tracing and ui.perfetto.dev."""
        from ..report.trace_chrome import to_chrome

        file_path("a trace", path).write_text(to_chrome(self), encoding="utf-8")


def by_device(events: Iterable[TraceEvent]) -> dict[int, list[TraceEvent]]:
    """Events by their device."""
    found: dict[int, list[TraceEvent]] = {}
    for e in events:
        found.setdefault(e.device, []).append(e)
    return found
