"""Traces as values: adding up, tracks, runs, JSON, and what goes wrong. The events are made by hand; those of real runs are in
tests/integration/test_traces.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyggml as gg
from pyggml import lib
from pyggml._ffi import ffi, spans
from pyggml.report.trace_text import span_text
from pyggml.tracing import Trace, TraceDevice, TraceEvent
from pyggml.tracing.tracks import tracks

BASE: dict[str, Any] = dict(zip(TraceEvent._fields, ("span", -1, -1, 0, 0, 0, 0, 0, -1, -1, -1, 0, 0, -1, "exact", False, ""), strict=True))


def event(kind: str, start: int, end: int, **more: Any) -> TraceEvent:
    return TraceEvent(**{**BASE, "kind": kind, "start": start, "end": end, "queued": start, **more})


def on(device: int, kind: str, start: int, end: int, **more: Any) -> TraceEvent:
    return event(kind, start, end, device=device, on_queue=True, graph=0, **more)


def trace_of(*events: TraceEvent, wall: int = 1000, devices: int = 2, **more: Any) -> Trace:
    ordered = tuple(sorted(events, key=lambda e: (e.start, -e.end)))
    return Trace(tuple(TraceDevice(f"VCPU{j}", "VCPU") for j in range(devices)), ordered, wall, False, **more)


@pytest.fixture
def two() -> Trace:
    """Two devices, two subgraphs, an all-reduce for which the first waits; the host copies in, gives out and waits."""
    sums = {"subgraph": 0, "join": 0, "bytes": 64, "moved": 64, "label": ""}
    return trace_of(
        event("span", 50, 950, label="Graph.run"),
        event("set", 60, 80, label="Meta(VCPU0,VCPU1)"),
        event("set", 62, 70, device=0, bytes=16),
        event("prepare", 100, 150, graph=0, nodes=5),
        event("queue", 150, 250, graph=0, nodes=5, computed=2),
        event("sync", 250, 900, device=0),
        on(0, "compute", 200, 300, queued=180, subgraph=0, nodes=3, computed=3, label="down"),
        on(1, "compute", 220, 450, queued=190, subgraph=0, nodes=3, computed=2, label="down"),
        on(0, "wait", 310, 450, queued=210, peer=1, **sums),
        on(1, "wait", 450, 450, queued=210, **sums),
        on(0, "allreduce", 450, 500, queued=210, **sums),
        on(1, "allreduce", 450, 480, queued=210, **sums),
        on(1, "wait", 480, 500, queued=210, **sums),
        on(0, "compute", 600, 900, queued=550, subgraph=1, nodes=2, computed=2, label="y"),
        on(1, "compute", 500, 700, queued=240, subgraph=1, nodes=2, computed=2, label="y"),
    )


def test_where_the_devices_time_went(two: Trace) -> None:
    a, b = two.device_times()
    assert (a.compute, a.reduce, a.wait, a.launch, a.idle) == (400, 50, 140, 20 + 10 + 50, 180 + 50 + 100)
    assert (b.compute, b.reduce, b.wait, b.launch, b.idle) == (430, 30, 20, 30, 190 + 300)
    for d in (a, b):
        assert d.busy + (d.wait or 0) + (d.launch or 0) + (d.idle or 0) == two.wall == d.wall
        assert (d.subgraphs, d.allreduces, d.allreduce_bytes, d.moved, d.copies) == (2, 1, 64, 64, 0)
    assert a.waiting_share == 0.14
    assert (a.computed, b.computed) == (5, 4)
    assert (a.set_bytes, b.set_bytes) == (16, 0)
    assert two.allreduces == 1


def test_where_the_hosts_time_went(two: Trace) -> None:
    (host,) = two.host_times()
    parts = dict(host.parts)
    assert parts == {
        "Graph.run": 900 - 20 - 50 - 100 - 650, "write to Meta(VCPU0,VCPU1)": 12, "write to VCPU0": 8, "cut graphs": 50,
        "give out subgraphs": 100, "wait for VCPU0": 650,
    }  # fmt: skip
    assert host.outside == 100
    assert sum(parts.values()) + host.outside == two.wall


def test_runs_and_subgraphs(two: Trace) -> None:
    (run,) = two.runs
    assert (run.label, run.start, run.end, run.graphs) == ("Graph.run", 50, 950, (0,))
    first, second = two.times_by_subgraph()
    assert (first.graph, first.subgraph, first.nodes, first.label, first.runs) == (0, 0, 3, "down", 1)
    assert (first.begin, first.compute, first.reduce, first.wait) == ((0, 20), (100, 230), (50, 30), (140, 20))
    assert (second.begin, second.compute, second.reduce, second.wait) == ((400, 300), (300, 200), (0, 0), (0, 0))
    assert first.timing == ("exact", "exact")


def test_tracks(two: Trace) -> None:
    a, b, host = tracks(two)
    assert [t.name for t in (a, b, host)] == ["VCPU0", "VCPU1", "host"]
    for track in (a, b):
        assert track.slices[0].start == 0 and track.slices[-1].end == two.wall
        assert all(x.end == y.start for x, y in zip(track.slices, track.slices[1:], strict=False))
    assert [(s.category, s.name, s.end - s.start) for s in a.slices] == [
        ("idle", "idle", 180), ("launch", "launch", 20), ("compute", "subgraph 0: to down", 100), ("launch", "launch", 10), ("wait", "wait for VCPU1", 140),
        ("allreduce", "all-reduce down", 50), ("idle", "idle", 50), ("launch", "launch", 50), ("compute", "subgraph 1: to y", 300), ("idle", "idle", 100),
    ]  # fmt: skip


def test_what_the_host_alone_knows() -> None:
    """Calls of a device that tells no times: they are on a track of their own, and nothing is said about waiting."""
    trace = trace_of(
        event("compute", 100, 120, device=0, timing="host side", graph=0, nodes=1),
        event("copy", 120, 140, device=0, peer=1, timing="host side", graph=0, join=0, bytes=4, moved=4),
        event("send", 120, 140, device=1, peer=0, timing="host side", graph=0, join=0, bytes=4, moved=0),
        on(1, "compute", 110, 130, nodes=1, computed=1),
    )
    assert [(t.name, t.timing) for t in tracks(trace)] == [
        ("VCPU0 (calls of the host)", "host side"), ("VCPU1", "exact"), ("VCPU1 (calls of the host)", "host side"),
    ]  # fmt: skip
    a, b = trace.device_times()
    assert (a.timing, a.compute, a.copy, a.wait, a.idle, a.computed, a.waiting_share) == ("host side", 20, 20, None, None, None, None)
    assert (b.timing, b.compute, b.wait, b.idle) == ("exact", 20, 0, 980)
    assert (a.copies, a.copy_bytes, a.moved, b.copies, b.moved) == (1, 4, 4, 0, 0)
    assert "tell no times" in trace.table() and "?" in trace.table()
    (host,) = trace.host_times()
    assert dict(host.parts) == {"calls of VCPU0": 40} and host.outside == 960, "one copy is one call"


def test_unknown_traffic_is_said_to_be() -> None:
    nccl = {"device": 0, "timing": "host side", "graph": 0}
    trace = trace_of(event("allreduce", 10, 20, bytes=64, **nccl), devices=1)
    assert trace.device_times()[0].moved is None


def test_json(two: Trace) -> None:
    text = two.to_json()
    again = gg.Trace.from_json(text)
    assert again == two and hash(again) == hash(two)
    assert gg.Trace.from_json(two.to_json(indent=1)) == two
    assert json.loads(text)["schema"] == "pyggml.trace/1"
    assert again.device_times() == two.device_times()


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda d: "{", "not JSON"),
        (lambda d: [], "found a list"),
        (lambda d: d | {"schema": "pyggml.trace/9"}, "schema 'pyggml.trace/9', expected 'pyggml.trace/1'"),
        (lambda d: {k: v for k, v in d.items() if k != "wall_ns"}, "'wall_ns' is missing"),
        (lambda d: d | {"wall_ns": "long"}, "found 'long'"),
        (lambda d: d | {"columns": ["kind"]}, "columns"),
        (lambda d: d | {"events": [[1, 2]]}, "trace: cannot be read"),
        (lambda d: d | {"events": [["nap", *d["events"][0][1:]]]}, "no such event"),
        (lambda d: d | {"events": [["compute", 7, *d["events"][0][2:]]]}, "no such event"),
        (lambda d: d | {"events": [["compute", "0", *d["events"][0][2:]]]}, "device of an event is '0'"),
        (lambda d: d | {"devices": [1]}, "trace: cannot be read"),
    ],
)
def test_damaged_json(two: Trace, damage: Callable[[Any], Any], words: str) -> None:
    damaged = damage(json.loads(two.to_json()))
    with pytest.raises(gg.FileFormatError) as caught:
        gg.Trace.from_json(damaged if isinstance(damaged, str) else json.dumps(damaged))
    assert words in str(caught.value)


def test_times_for_people() -> None:
    assert [span_text(t) for t in (None, 0, 999, 1000, 12_345, 999_600, 3_512_000, 2.04e9)] == [
        "?", "0 ns", "999 ns", "1 µs", "12.3 µs", "1 ms", "3.51 ms", "2.04 s",
    ]  # fmt: skip


# --- taking them


def test_an_empty_one() -> None:
    with gg.trace() as trace:
        pass
    assert trace.events == () and trace.devices == () and trace.runs == () and trace.wall > 0
    assert trace.times_by_subgraph() == () and trace.device_times() == () and trace.host_times() == ()
    assert "0 runs" in str(trace)
    assert [t.slices for t in tracks(trace)] == []


def test_while_it_is_taken() -> None:
    with gg.trace() as trace:
        assert repr(trace) == "<Trace (being taken)>"
        for look in (lambda: trace.events, lambda: trace.table(), lambda: trace.to_json(), lambda: trace.runs):
            with pytest.raises(gg.BusyError, match="behind its with block"):
                look()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        trace.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_bad_arguments() -> None:
    for wrong, words in (({"threads": "some"}, "'this' or 'all'"), ({"limit": -1}, "limit"), ({"limit": 1.5}, "limit")):
        with pytest.raises(gg.ArgumentError) as caught, gg.trace(**wrong):  # type: ignore[arg-type]
            pass
        assert words in str(caught.value)
    assert spans._n_open == 0


def test_off_records_nothing_and_on_ends() -> None:
    assert spans.span("x") is spans.span("y", 3), "one thing that does nothing"
    with gg.trace() as trace:
        with spans.span("part", 3):
            pass
        assert spans._n_open == 1
    with spans.span("later"):
        pass
    assert spans._n_open == 0
    assert [e.label for e in trace.events] == ["part(3)"]
    with pytest.raises(RuntimeError, match="mine"), gg.trace() as broken:
        raise RuntimeError("mine")
    assert spans._n_open == 0 and broken.wall > 0


def test_native_numbers_that_are_none() -> None:
    totals = ffi.new("struct pgg_trace_totals *")
    with pytest.raises(gg.ArgumentError, match="no trace 12345"):
        lib.pgg_trace_end(12345, totals)
    number = lib.pgg_trace_begin(False, False, 10)
    lib.pgg_trace_free(number)
    with pytest.raises(gg.ArgumentError, match="no trace"):
        lib.pgg_trace_free(number)


def test_the_clock_is_that_of_the_wall() -> None:
    before = lib.pgg_trace_now()
    with gg.trace() as trace:
        np.ones(1000).sum()
    assert trace.wall <= lib.pgg_trace_now() - before


def test_without_perfetto(monkeypatch: pytest.MonkeyPatch, two: Trace, tmp_path: Any) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "perfetto"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "perfetto", None)
    with pytest.raises(gg.UnsupportedError, match=r"pip install 'pyggml\[trace\]'.*save_chrome"):
        two.save_perfetto(tmp_path / "x")
    two.save_chrome(tmp_path / "y")
