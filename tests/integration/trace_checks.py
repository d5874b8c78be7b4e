"""A trace against a plan: what was seen on the single devices, by code that the plan does not use."""

from __future__ import annotations

import pyggml as gg
from pyggml.tracing import TraceEvent


def moved_by(plan: gg.SplitPlan, allreduce: gg.plan.AllReduce, device: int) -> int | None:
    """Bytes that a device itself reads from others and writes to others, by the planned steps of its algorithm."""
    if allreduce.steps is None:
        return None
    reads = allreduce.algorithm == "butterfly"  # its copies are done by who gets them
    return sum(
        s.bytes
        for s in allreduce.steps
        if (s.kind == "add" and s.target == device) or (s.kind == "copy" and (s.target if reads else s.source) == device)
    )


def check_trace(plan: gg.SplitPlan, trace: gg.Trace) -> None:
    """The last run of a trace on virtual CPUs is the planned one: subgraphs, nodes, all-reduces, bytes, on every device."""
    assert trace.dropped == 0
    graphs = trace.runs[-1].graphs
    wanted: dict[int, list[int]] = {}  # the subgraphs of each graph, by their place in the plan
    for i, s in enumerate(plan.subgraphs):
        wanted.setdefault(s.graph, []).append(i)
    assert len(graphs) == len(wanted)
    place = {plan.devices.index(d.name): j for j, d in enumerate(trace.devices) if d.name in plan.devices}
    assert sorted(place) == list(range(len(plan.devices)))
    sums = {r.subgraph: r for r in plan.allreduces}
    for graph, subgraphs in zip(graphs, wanted.values(), strict=True):
        seen: dict[tuple[str, int, int], list[TraceEvent]] = {}
        for e in trace.of_graph(graph):
            seen.setdefault((e.kind, e.subgraph, e.device), []).append(e)
        given = next(e for e in trace.of_graph(graph) if e.kind == "queue")
        assert given.computed == len(subgraphs)
        assert given.nodes == sum(plan.subgraphs[i].stop - plan.subgraphs[i].start for i in subgraphs)
        for j in range(len(plan.devices)):
            mine = {(kind, i): events for (kind, i, device), events in seen.items() if device == place[j]}
            assert {i for kind, i in mine if kind == "compute"} == set(range(len(subgraphs)))
            assert {kind for kind, _ in mine} <= {"compute", "allreduce", "wait"}, "virtual CPUs sum with their communicator"
            for k, i in enumerate(subgraphs):
                (computed,) = mine["compute", k]
                check_subgraph(plan, i, j, computed)
                assert ("allreduce", k) in mine if i in sums else ("allreduce", k) not in mine
                for done in mine.get(("allreduce", k), ()):
                    assert done.bytes == sums[i].bytes
                    assert done.moved == moved_by(plan, sums[i], j)
                assert len(mine.get(("allreduce", k), ())) == (i in sums)


def check_subgraph(plan: gg.SplitPlan, i: int, device: int, seen: TraceEvent) -> None:
    """One subgraph on one device."""
    s = plan.subgraphs[i]
    nodes = plan.nodes[s.start : s.stop]
    assert seen.nodes == len(nodes)
    assert seen.timing == "exact" and seen.on_queue
    expected = sum(n.slices[device].compute for n in nodes if n.slices and not n.is_view)
    empty = sum(not n.slices and not n.is_view for n in nodes)
    assert expected <= seen.computed <= expected + empty
    assert seen.label == nodes[-1].name
