"""Traces as tables: where the time went, by device, by the host, by subgraph."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from .._units import binary, counted, percent
from ..tracing.times import DeviceTime, SubgraphTime
from ..tracing.values import Trace

__all__ = ["render_trace", "span_text", "trace_text"]


def span_text(ns: float | None) -> str:
    """A time with its unit: ``820 ns``, ``12.4 µs``, ``3.51 ms``, ``2.04 s``; ``?`` where it is not known."""
    if ns is None:
        return "?"
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if abs(ns) < limit * 0.9995:
            return f"{ns:.0f} ns" if unit == "ns" else f"{ns * 1e3 / limit:.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def _part(ns: int | None, wall: int) -> str:
    return "?" if ns is None else f"{span_text(ns)} {percent(ns / wall) if wall else '-'}"


def _devices(times: Sequence[DeviceTime]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for d in times:
        table.add_column(d.name, justify="right", no_wrap=True)
    for name, of in _ROWS:
        cells = [of(d) for d in times]
        if any(cell not in _NOTHING for cell in cells):
            table.add_row(name, *cells)
    return table


_NOTHING = ("0 ns 0 %", "0", "0 B")
_ROWS: tuple[tuple[str, Callable[[DeviceTime], str]], ...] = (
    ("computing", lambda d: _part(d.compute, d.wall)),
    ("summing", lambda d: _part(d.reduce, d.wall)),
    ("copying", lambda d: _part(d.copy, d.wall)),
    ("from and to the host", lambda d: _part(d.transfer, d.wall)),
    ("waiting for other devices", lambda d: _part(d.wait, d.wall)),
    ("launch: asked, not begun", lambda d: _part(d.launch, d.wall)),
    ("idle: nothing to do", lambda d: _part(d.idle, d.wall)),
    ("times are", lambda d: d.timing),
    ("subgraphs", lambda d: str(d.subgraphs)),
    ("nodes", lambda d: "?" if d.computed is None else str(d.computed)),
    ("all-reduces", lambda d: f"{d.allreduces} of {binary(d.allreduce_bytes)}" if d.allreduces else "0"),
    ("copies from devices", lambda d: f"{d.copies} of {binary(d.copy_bytes)}" if d.copies else "0"),
    ("moved between devices", lambda d: "?" if d.moved is None else binary(d.moved)),
    ("from the host", lambda d: binary(d.set_bytes)),
    ("to the host", lambda d: binary(d.get_bytes)),
)


def _host(trace: Trace) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("host thread", "part", "time", "share"):
        table.add_column(name, justify="right" if name in ("time", "share") else "left", no_wrap=True)
    for h in trace.host_times():
        for name, ns in (*h.parts, ("outside of runs", h.outside)):
            if ns > trace.wall / 1000:
                table.add_row(str(h.thread), name, span_text(ns), percent(ns / trace.wall))
    return table


def _subgraphs(times: Sequence[SubgraphTime], trace: Trace) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("subgraph", "nodes", "to", *(d.name for d in trace.devices)):
        table.add_column(name, justify="left" if name == "to" else "right", no_wrap=True)
    several = any(t.graph for t in times)
    for t in times:
        parts = zip(t.compute, t.reduce, t.wait, strict=True)
        cells = ["-" if c is None else f"{span_text(c)} + {span_text((r or 0) + (w or 0))}" for c, r, w in parts]
        table.add_row(f"{t.graph}.{t.subgraph}" if several else str(t.subgraph), str(t.nodes), t.label, *cells)
    return table


def _longest(t: SubgraphTime) -> list[float]:
    return [(c or 0) + (r or 0) + (w or 0) for c, r, w in zip(t.compute, t.reduce, t.wait, strict=True)]


def render_trace(trace: Trace, console: Any, *, subgraphs: int = 10) -> None:
    """Prints the tables on a rich console."""
    runs, times = trace.runs, trace.device_times()
    what = [span_text(trace.wall), counted(len(runs), "run"), counted(trace.allreduces, "all-reduce")]
    waiting = [f"{d.name} {percent(d.waiting_share)}" for d in times if d.waiting_share]
    what += ["waiting for other devices: " + ", ".join(waiting)] if waiting else []
    console.print(f"trace: {', '.join(what)}" + (", devices took turns (sync)" if trace.sync else ""))
    if trace.dropped:
        are = "is" if trace.dropped == 1 else "are"
        missing = f"{counted(trace.dropped, 'event')} beyond the limit {are} missing"
        console.print(f"{missing}: what follows is too little. trace(limit=...) takes more")
    if times:
        console.print(_devices(times))
        console.print()
    if any(d.timing == "host side" for d in times):
        console.print("host side: these devices tell no times, and these are those of the calls; trace(sync=True) waits for them")
    console.print(_host(trace))
    console.print()
    by_subgraph = trace.times_by_subgraph()
    if by_subgraph and subgraphs:
        slowest = sorted(by_subgraph, key=lambda t: -max(_longest(t)))[:subgraphs]
        of, runs_of_it = counted(len(by_subgraph), "subgraph"), counted(slowest[0].runs, "run")
        console.print(f"slowest of {of}: compute, and waiting and summing behind it; mean of {runs_of_it}", style="italic")
        console.print(_subgraphs(slowest, trace))


def trace_text(trace: Trace, *, subgraphs: int = 10) -> str:
    """The tables as plain text."""
    from rich.console import Console

    out = io.StringIO()
    render_trace(trace, Console(file=out, width=200, color_system=None, highlight=False), subgraphs=subgraphs)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
