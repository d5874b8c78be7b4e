"""Traces of real runs: on the devices, on the host, in Perfetto's and Chrome's formats."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_cases import F32
from trace_checks import check_trace

import pyggml as gg
from pyggml.testing import TinyModel
from pyggml.tracing.tracks import tracks

Make = Callable[..., TinyModel]


@pytest.fixture
def model(tiny: Make) -> Iterator[gg.Model]:
    with gg.Model(tiny("llama"), "vcpu:2", split_mode="tensor", **F32) as opened:
        opened.default_context.decode(np.arange(17))
        yield opened


def graph_of(device: gg.MetaDevice | gg.Device, weights: gg.Weights, n_sums: int = 2) -> gg.Graph:
    graph = gg.Graph(device)
    x = graph.input("x", (64, 8))
    y = x
    for _ in range(n_sums):
        y = y + weights["down"] @ (weights["up"] @ y).silu()
    graph.output("y", y)
    return graph


def weights_on(device: gg.MetaDevice | gg.Device) -> gg.Weights:
    rng = np.random.default_rng(1)
    return gg.Weights(device, {"up": rng.standard_normal((256, 64), np.float32), "down": rng.standard_normal((64, 256), np.float32)})


RULES = [("up", "S1"), ("down", "S0")]
X = np.ones((8, 64), np.float32)


@pytest.fixture
def graph() -> Iterator[gg.Graph]:
    with gg.MetaDevice("vcpu:2", RULES) as meta, weights_on(meta) as weights, graph_of(meta, weights) as made:
        made.run(x=X)
        yield made


# --- Perfetto


class Parsed:
    """A Perfetto trace, read with the official protos: slices by track, and which slices each flow joins.

    The trace processor's own binary cannot be fetched where this runs; its rules for tracks, slices and flows are followed here.
    """

    def __init__(self, data: bytes) -> None:
        pb = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
        trace = pb.Trace()
        trace.ParseFromString(data)
        self.names: dict[int, str] = {}
        self.slices: dict[str, list[dict[str, Any]]] = {}
        self.flows: dict[int, list[dict[str, Any]]] = {}
        self.ended: Counter[int] = Counter()
        stacks: dict[int, list[dict[str, Any]]] = {}
        assert {p.trusted_packet_sequence_id for p in trace.packet} == {1}
        # by time, and of the same time as they are in the file
        for p in sorted(trace.packet, key=lambda p: int(p.timestamp)):
            if p.HasField("track_descriptor"):
                assert p.track_descriptor.uuid not in self.names
                self.names[p.track_descriptor.uuid] = p.track_descriptor.name
                continue
            event = p.track_event
            stack = stacks.setdefault(event.track_uuid, [])
            if event.type == pb.TrackEvent.TYPE_SLICE_END:
                done = stack.pop()
                done["end"] = p.timestamp
                assert done["end"] >= done["start"]
                continue
            assert event.type == pb.TrackEvent.TYPE_SLICE_BEGIN
            (category,) = event.categories
            notes = {n.name: n.string_value if n.HasField("string_value") else n.int_value for n in event.debug_annotations}
            track = self.names[event.track_uuid]
            made = {"name": event.name, "category": category, "start": p.timestamp, "depth": len(stack), "track": track, **notes}
            self.slices.setdefault(track, []).append(made)
            stack.append(made)
            for flow in (*event.flow_ids, *event.terminating_flow_ids):
                assert not self.ended[flow], "nothing joins a flow that has ended"
                self.flows.setdefault(flow, []).append(made)
            self.ended.update(event.terminating_flow_ids)
        assert not any(stacks.values()), "every slice ends"

    def top(self, track: str) -> list[dict[str, Any]]:
        return [s for s in self.slices[track] if s["depth"] == 0]

    def ns(self, track: str, category: str | None = None) -> int:
        return sum(s["end"] - s["start"] for s in self.top(track) if category in (None, s["category"]))

    def check_tracks(self) -> None:
        """Nothing overlaps: what begins before another ends lies within it, and only on host tracks."""
        for track, slices in self.slices.items():
            tops = self.top(track)
            assert all(a["end"] <= b["start"] for a, b in pairwise(tops))
            stack: list[dict[str, Any]] = []
            for s in slices:
                del stack[s["depth"] :]
                assert not stack or (stack[-1]["start"] <= s["start"] and s["end"] <= stack[-1]["end"])
                assert s["depth"] == 0 or track.startswith("host")
                stack.append(s)


def perfetto(trace: gg.Trace, folder: Path) -> Parsed:
    trace.save_perfetto(folder / "out.pftrace")
    return Parsed((folder / "out.pftrace").read_bytes())


def traced_run(model: gg.Model) -> tuple[gg.Trace, int, list[gg.device.DeviceStats]]:
    """Prompts and tokens, the nanoseconds that they took by another clock, and what the devices counted."""
    context = model.default_context
    context.clear()
    for d in model.devices:
        d.reset_stats()
    with gg.trace() as trace:
        t0 = time.perf_counter_ns()
        for _ in range(4):
            context.decode(np.arange(100), from_empty=True)
        for k in range(20):
            context.decode([k])
        wall = time.perf_counter_ns() - t0
    return trace, wall, [d.stats() for d in model.devices]


def test_a_model_in_perfetto(model: gg.Model, tmp_path: Path) -> None:
    within = False
    for _ in range(5):  # another program may take the processor between two clocks
        trace, wall, stats = traced_run(model)
        seen = perfetto(trace, tmp_path)
        seen.check_tracks()
        assert set(seen.slices) == {"VCPU0", "VCPU1", "CPU", "host"}
        plan = model.plan(1)
        runs = 24
        for name, counted in zip(("VCPU0", "VCPU1"), stats):
            computed = [s for s in seen.slices[name] if s["category"] == "compute"]
            keys = Counter((s["graph"], s["subgraph"]) for s in computed)
            assert set(keys.values()) == {1}, "one slice for each subgraph and device"
            assert len(keys) == runs * len(plan.subgraphs) == counted.graph_computes
            assert {s["timing"] for s in computed} == {"exact"}
            assert sum(s["computed"] for s in computed) == counted.nodes
            sums = [s for s in seen.slices[name] if s["category"] == "allreduce"]
            assert len(sums) == runs * len(plan.allreduces) == counted.allreduces
            assert sum(s["bytes"] for s in sums) == counted.allreduce_bytes
            assert seen.ns(name) == trace.wall, "working, waiting and idling fill the track"
        assert seen.ns("host") == trace.wall and seen.ns("host", "outside") == trace.host_times()[0].outside
        assert len(seen.flows) == runs * len(plan.allreduces)
        for flow, joined in seen.flows.items():
            assert {s["track"] for s in joined} == {"VCPU0", "VCPU1"} and len(joined) == 2
            assert {s["category"] for s in joined} == {"allreduce"}
            assert len({(s["graph"], s["subgraph"]) for s in joined}) == 1
            assert seen.ended[flow] == 1
        # by clocks and counters that the trace does not use
        check_hosts(trace)
        busy = [seen.ns(name, "compute") / (1000 * s.busy_us) for name, s in zip(("VCPU0", "VCPU1"), stats)]
        shares = [seen.ns(name) / wall for name in ("VCPU0", "VCPU1", "host")]
        within = all(0.98 <= share <= 1.02 for share in shares) and all(0.98 <= b <= 1.05 for b in busy)
        if within:
            break
    assert within, (shares, busy)


@pytest.mark.parametrize("device, shares", [("vcpu:2", (1, 0)), ("vcpu:3", (1, 2, 1))])
def test_unlike_devices(tiny: Make, tmp_path: Path, device: str, shares: tuple[float, ...]) -> None:
    with gg.Model(tiny("llama"), device, split_mode="tensor", tensor_split=shares, **F32) as model:
        with gg.trace() as trace:
            model.default_context.decode(np.arange(9))
        plan = model.plan(9)
        check_trace(plan, trace)
        seen = perfetto(trace, tmp_path)
        seen.check_tracks()
        assert all(len(joined) == len(shares) for joined in seen.flows.values()) and len(seen.flows) == len(plan.allreduces)
        times = trace.times_by_subgraph(plan)
        assert [(t.nodes, t.label) for t in times] == [(s.stop - s.start, plan.nodes[s.stop - 1].name) for s in plan.subgraphs]
        mine = [trace.devices.index(d) for d in trace.devices if d.name in plan.devices]
        assert all(t.compute[j] is not None for t in times for j in mine)
        with pytest.raises(gg.ArgumentError, match=r"no run of the trace is the planned one: the plan has .* plan with as many tokens"):
            trace.times_by_subgraph(model.plan(8))


def test_copies_between_devices(tiny: Make, tmp_path: Path) -> None:
    """Layer mode: each device has its layers, and what goes from one to the next is copied."""
    with gg.Model(tiny("llama"), "vcpu:2", split_mode="layer", **F32) as model:
        model.default_context.decode(np.arange(9))
        for d in model.devices:
            d.reset_stats()
        with gg.trace() as trace:
            model.default_context.decode(np.arange(5))
        stats = [d.stats() for d in model.devices]
    assert trace.runs[0].graphs == (), "no meta device"
    times = {d.name: d for d in trace.device_times()}
    assert stats[1].copies > 0
    for name, counted in zip(("VCPU0", "VCPU1"), stats):
        assert (times[name].copies, times[name].copy_bytes) == (counted.copies, counted.copy_bytes)
        assert (times[name].subgraphs, times[name].computed) == (counted.graph_computes, counted.nodes)
        assert times[name].moved == counted.copy_bytes
    seen = perfetto(trace, tmp_path)
    seen.check_tracks()
    assert len(seen.flows) == stats[1].copies
    for joined in seen.flows.values():
        sides = [("VCPU0", "send", "copy to VCPU1"), ("VCPU1", "copy", "copy from VCPU0")]
        assert [(s["track"], s["category"], s["name"]) for s in joined] == sides
        assert len({s["bytes"] for s in joined}) == 1
        assert joined[0]["start"] == joined[1]["start"]


# --- Chrome


def test_chrome(model: gg.Model, tmp_path: Path) -> None:
    with gg.trace() as trace:
        model.default_context.decode(np.arange(9), from_empty=True)
    trace.save_chrome(tmp_path / "out.json")
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(names.values()) == {"CPU", "VCPU0", "VCPU1", "host"}
    slices = [e for e in events if e["ph"] == "X"]
    of = {(t.name, s.start, s.name) for t in tracks(trace) for s in t.slices}
    assert {(names[e["tid"]], round(e["ts"] * 1000), e["name"]) for e in slices} == of
    sums = {(e["tid"], e["ts"]) for e in slices if e["cat"] == "allreduce"}
    flows: dict[int, list[Any]] = {}
    for e in events:
        if e["ph"] in "stf":
            flows.setdefault(e["id"], []).append(e)
            assert (e["tid"], e["ts"]) in sums
    assert len(flows) == trace.allreduces > 0
    assert {tuple(e["ph"] for e in of) for of in flows.values()} == {("s", "f")}


# --- what is traced, and what is not


def check_hosts(trace: gg.Trace) -> None:
    """Parts of the host's time lie within each other or behind each other: they add up."""
    for host in trace.host_times():
        assert all(ns > 0 for _, ns in host.parts)
        assert sum(ns for _, ns in host.parts) + host.outside == trace.wall


def test_a_graph(graph: gg.Graph) -> None:
    with gg.trace() as trace:
        first = graph.run(x=X)
        graph.run(x=X)
    plan = graph.plan()
    check_trace(plan, trace)
    assert [r.label for r in trace.runs] == ["Graph.run", "Graph.run"]
    (vcpu0, vcpu1) = trace.device_times()
    assert vcpu0.subgraphs == vcpu1.subgraphs == 2 * len(plan.subgraphs) == 6
    assert vcpu0.set_bytes == vcpu1.set_bytes == 2 * X.nbytes
    assert vcpu0.get_bytes == 2 * first["y"].nbytes, "what is on both devices is read from one"
    assert trace.allreduces == 4
    assert [t.runs for t in trace.times_by_subgraph(plan)] == [2, 2, 2]
    check_hosts(trace)
    text = trace.table()
    for word in ("2 runs", "4 all-reduces", "VCPU0", "waiting for other devices", "Graph.run", "mean of 2 runs"):
        assert word in text


def test_one_device() -> None:
    for device in (gg.cpu(), gg.virtual_cpus(1)[0]):
        with weights_on(device) as weights, graph_of(device, weights) as graph:
            graph.run(x=X)
            with gg.trace() as trace:
                graph.run(x=X)
            (one,) = trace.device_times()
            assert (one.name, one.timing, one.subgraphs) == (device.name, "exact", 1)
            assert one.computed == len(graph.nodes())
            assert one.busy + (one.wait or 0) + (one.launch or 0) + (one.idle or 0) == trace.wall
            assert trace.times_by_subgraph() == (), "there are no subgraphs without a meta device"
            assert trace.allreduces == 0


def test_plans_are_not_traced(graph: gg.Graph, tiny: Make) -> None:
    with gg.trace() as trace:
        graph.plan()
        gg.plan_model(tiny("llama"), "vcpu:2")
    assert [e for e in trace.events if e.kind in ("compute", "allreduce", "prepare", "queue")] == []
    assert trace.runs == ()


def test_nested(graph: gg.Graph) -> None:
    with gg.trace() as outer:
        graph.run(x=X)
        with gg.trace() as inner:
            graph.run(x=X)
        graph.run(x=X)
    assert (len(outer.runs), len(inner.runs)) == (3, 1)
    assert (outer.allreduces, inner.allreduces) == (6, 2)


def test_threads_do_not_see_each_other() -> None:
    """Two threads run graphs on the same devices at the same time: each trace has its own thread's, and one has all."""
    traces: dict[int, gg.Trace] = {}
    ready = threading.Barrier(3)

    def work(i: int) -> None:
        with gg.MetaDevice("vcpu:2", RULES) as meta, weights_on(meta) as weights, graph_of(meta, weights, n_sums=i + 1) as graph:
            ready.wait()
            with gg.trace() as traces[i]:
                for _ in range(20):
                    graph.run(x=X)
            ready.wait()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    with gg.trace(threads="all") as every, gg.trace() as mine:
        ready.wait()
        ready.wait()
    for t in threads:
        t.join()
    assert [traces[i].allreduces for i in range(2)] == [20, 40]
    assert [len(traces[i].runs) for i in range(2)] == [20, 20]
    assert every.allreduces == 60 and len(every.runs) == 40
    assert {r.thread for r in every.runs} == {0, 1}
    assert mine.events == ()
    for trace in (every, *traces.values()):
        for track in tracks(trace):
            if track.device >= 0:
                assert all(a.end <= b.start for a, b in pairwise(track.slices)), track.name


def test_a_failure_ends_the_trace(graph: gg.Graph) -> None:
    with pytest.raises(gg.ShapeError), gg.trace() as trace:
        graph.run(x=X)
        graph.run(x=X[:3])
    assert trace.allreduces == 2
    assert [r.label for r in trace.runs] == ["Graph.run", "Graph.run"]
    with gg.trace() as later:
        graph.run(x=X)
    assert later.allreduces == 2


def test_the_limit(graph: gg.Graph) -> None:
    with gg.trace(limit=5) as trace:
        graph.run(x=X)
    with gg.trace() as whole:
        graph.run(x=X)
    assert len(trace.events) == 5
    assert trace.dropped >= len(whole.events) - 10
    assert "beyond the limit are missing" in trace.table()


def test_observed_nodes_are_traced(graph: gg.Graph) -> None:
    with gg.trace() as trace, graph.observed(lambda name, op, value: None):
        graph.run(x=X)
    computed = [e for e in trace.events if e.kind == "compute"]
    assert len(computed) > 6, "each node by itself"
    assert {e.subgraph for e in computed} == {0, 1, 2}


# --- devices that tell no times


@pytest.mark.parametrize("sync", [False, True])
def test_devices_that_tell_no_times(tmp_path: Path, sync: bool) -> None:
    """A virtual CPU and the CPU: no communicator, so ggml's butterfly copies and adds, by the host's calls."""
    with gg.MetaDevice([*gg.virtual_cpus(1), gg.cpu()], RULES) as meta, weights_on(meta) as weights, graph_of(meta, weights) as graph:
        expected = graph.run(x=X)["y"]
        with gg.trace(sync=sync) as trace:
            np.testing.assert_array_equal(graph.run(x=X)["y"], expected)
        plan = graph.plan()
    assert {r.algorithm for r in plan.allreduces} == {"butterfly"}
    assert trace.allreduces == len(plan.allreduces) == 2
    times = {d.name: d for d in trace.device_times()}
    assert {d.subgraphs for d in times.values()} == {len(plan.subgraphs)}
    for j, name in enumerate(plan.devices):
        received = sum((r.received or ())[j] for r in plan.allreduces)
        assert (times[name].copies, times[name].copy_bytes, times[name].moved) == (2, received, received)
        assert sum(e.kind == "step" and trace.devices[e.device].name == name for e in trace.events) == 2
    check_hosts(trace)
    copies = [e for e in trace.events if e.kind == "copy"]
    assert {e.timing for e in copies} == {"synchronized" if sync else "host side"}
    assert all(e.timing == "exact" for e in trace.events if e.kind == "compute"), "both tell when they computed"
    seen = perfetto(trace, tmp_path)
    seen.check_tracks()
    assert len(seen.flows) == 4
    for joined in seen.flows.values():
        assert [s["category"] for s in joined] == ["send", "copy"]
        assert len({s["track"] for s in joined}) == 2


SERVER = """
import sys
import pyggml as gg
cpu = gg.ffi.new("ggml_backend_dev_t[]", [gg.cpu().ptr])
gg.lib.ggml_backend_rpc_start_server(f"127.0.0.1:{sys.argv[1]}".encode(), gg.ffi.NULL, 1, 1, cpu)
"""


@pytest.fixture
def servers() -> Iterator[list[gg.Device]]:
    """The devices of two RPC servers on this machine."""
    if not hasattr(gg.lib, "ggml_backend_rpc_start_server"):
        pytest.skip("this build has no RPC")
    started, devices = [], []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        for _ in range(2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            command = [sys.executable, "-c", SERVER, str(port)]
            started.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            devices += gg.rpc(f"127.0.0.1:{port}")
        yield devices
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.rpc
def test_servers(servers: list[gg.Device], tmp_path: Path) -> None:
    """RPC servers compute behind the host's back: their calls are known, or with sync their ends."""
    with gg.MetaDevice(servers, RULES) as meta, weights_on(meta) as weights, graph_of(meta, weights) as graph:
        expected = graph.run(x=X)["y"]
        plan = graph.plan()
        for sync, timing in ((False, "host side"), (True, "synchronized")):
            with gg.trace(sync=sync) as trace:
                np.testing.assert_array_equal(graph.run(x=X)["y"], expected)
            computed = [e for e in trace.events if e.kind == "compute"]
            assert Counter(e.device for e in computed) == {0: len(plan.subgraphs), 1: len(plan.subgraphs)}
            assert {e.timing for e in trace.events if e.kind in ("compute", "step", "copy", "send")} == {timing}
            assert {d.timing for d in trace.device_times()} == {timing}
            assert all((d.wait is None) == (not sync) for d in trace.device_times())
            assert trace.allreduces == len(plan.allreduces)
            for j, name in enumerate(plan.devices):
                (mine,) = (d for d in trace.device_times() if d.name == name)
                assert mine.copy_bytes == mine.moved == sum((r.received or ())[j] for r in plan.allreduces)
            check_hosts(trace)
            perfetto(trace, tmp_path).check_tracks()
    with weights_on(servers[0]) as weights, graph_of(servers[0], weights) as graph:
        graph.run(x=X)
        for sync, timing in ((False, "host side"), (True, "synchronized")):
            with gg.trace(sync=sync) as trace:
                graph.run(x=X)
            assert [e.timing for e in trace.events if e.kind == "compute"] == [timing], "without a meta device, too"
