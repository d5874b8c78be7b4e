"""Plans from JSON and to JSON: the capture of native code, and the plan's own schema (docs/plan-capture.md)."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import FileFormatError
from ..split import Segment, SplitState
from .plan import SCHEMA, SplitPlan
from .values import AllReduce, PlanLeaf, PlannedMemory, PlanNode, Runs, Shape, Slice, Subgraph, parse_state

# enum ggml_backend_buffer_usage; -1: no buffer
_KINDS = {0: "fixed", 1: "weight", 2: "input", -1: "unallocated"}
_WEIGHTS = 1
_AXES: dict[str, int | str] = {"0": 0, "1": 1, "2": 2, "3": 3, "MIRRORED": "M", "PARTIAL": "P"}
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError)


def _damaged(what: str, where: str, error: Exception) -> FileFormatError:
    why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
    return FileFormatError(f"{what}: {where} cannot be read: {why}; make it again with this version of pyggml")


@contextlib.contextmanager
def _not_collecting() -> Iterator[None]:
    """A big plan is half a million objects that all live: the collector would look through them again and again, and
    take longer than reading them does."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _loaded(text: Mapping[str, Any] | str | bytes, what: str) -> Mapping[str, Any]:
    if isinstance(text, (str, bytes)):
        try:
            text = json.loads(text)
        except ValueError as error:
            raise FileFormatError(f"{what}: not JSON: {error}") from None
    if not isinstance(text, Mapping):
        raise FileFormatError(f"{what}: found a {type(text).__name__}, expected an object")
    return text


# What slices and splits have in common over a graph's nodes is kept once: a large model repeats few of them.
class _Cache:
    def __init__(self, n_devices: int) -> None:
        self.n_devices = n_devices
        self.slices: dict[Any, tuple[Slice, ...]] = {}
        self.states: dict[Any, SplitState | None] = {}

    def slices_of(self, items: Iterable[tuple[int, int, int, int, int, int, int, int, int, bool]]) -> tuple[Slice, ...]:
        """From ne, nb, bytes and compute of each, in a row."""
        key = tuple(items)
        found = self.slices.get(key)
        if found is None:
            if len(key) not in (0, self.n_devices):
                raise ValueError(f"{len(key)} slices for {self.n_devices} devices")
            found = self.slices[key] = tuple(Slice(x[:4], x[4:8], int(x[8]), bool(x[9])) for x in key)
        return found

    def state_of(self, state: Mapping[str, Any] | None) -> SplitState | None:
        if state is None:
            return None
        found = state.get("segments")
        segments = tuple([(tuple(s["ne"]), s["nr"]) for s in found]) if found else ()
        key = state["axis"], segments
        if key not in self.states:
            axis = _AXES.get(state["axis"])
            # NONE and UNKNOWN: a tensor of no device
            self.states[key] = None if axis is None else SplitState(axis, tuple(Segment(ne, nr) for ne, nr in segments))
        return self.states[key]


def _shape(ne: Sequence[int]) -> Shape:
    a, b, c, d = ne
    return int(a), int(b), int(c), int(d)


def _runs(runs: Sequence[Sequence[Sequence[int]]] | None) -> Runs | None:
    return None if runs is None else tuple(tuple((int(start), int(n)) for start, n in at) for at in runs)


#
# the capture of native code
#


def _capture_slices(t: Mapping[str, Any], cache: _Cache) -> tuple[Slice, ...]:
    return cache.slices_of([(*s["ne"], *s["nb"], s["bytes"], s["compute"]) for s in t.get("slices", ())])


def _capture_leaf(t: Mapping[str, Any], index: int, cache: _Cache, asked: Mapping[str, Sequence[float]]) -> PlanLeaf:
    state = cache.state_of(t["split"])
    shares = asked.get(t["name"])
    return PlanLeaf(
        index,
        t["name"],
        t["op"],
        t["type"],
        _shape(t["ne"]),
        t["bytes"],
        t["flags"],
        _KINDS.get(t["usage"], "unallocated"),
        state,
        _capture_slices(t, cache),
        _runs(t.get("runs")),
        None if shares is None else tuple(float(s) for s in shares),
    )


@_not_collecting()
def from_captures(
    captures: Mapping[str, Any] | str | bytes,
    host: Mapping[str, Any] | None,
    asked: Mapping[str, Sequence[float]] | None,
) -> SplitPlan:
    what = "capture of a plan"
    captures = _loaded(captures, what)
    graphs = captures.get("graphs")
    if not isinstance(graphs, Sequence) or not graphs:
        raise FileFormatError(f"{what}: it holds no graphs; expected those that one run computed on a meta device")
    where = "graphs[0].devices"
    at_item = 0, "", 0
    try:
        devices = tuple(str(d) for d in graphs[0]["devices"])
        cache = _Cache(len(devices))
        nodes: list[PlanNode] = []
        leafs: list[PlanLeaf] = []
        leaf_at: dict[PlanLeaf, int] = {}
        subgraphs: list[Subgraph] = []
        allreduces: list[AllReduce] = []
        n_nodes = sum(len(g["nodes"]) for g in graphs)
        for number, g in enumerate(graphs):
            where = f"graphs[{number}].devices"
            if tuple(g["devices"]) != devices:
                raise ValueError(f"found {g['devices']}, expected those of the first graph, {list(devices)}")
            first, first_sub, n = len(nodes), len(subgraphs), len(g["nodes"])
            # a leaf may be the result of a graph before this one
            earlier = {(x.name, x.op, x.type, x.ne): x.index for x in nodes if x.op != "NONE"} if number else {}
            targets: list[int] = []
            where = ""
            for i, t in enumerate(g["leafs"]):
                at_item = number, "leafs", i
                leaf = _capture_leaf(t, len(leafs), cache, asked or {})
                made = earlier.get((leaf.name, leaf.op, leaf.type, leaf.ne))
                if made is not None:
                    targets.append(made)
                    continue
                # weights and caches that several graphs of a run read are the same tensors
                at = len(leafs)
                if len(graphs) > 1 and leaf.kind in ("weight", "fixed") and leaf.name:
                    at = leaf_at.setdefault(replace(leaf, index=-1), at)
                if at == len(leafs):
                    leafs.append(leaf)
                targets.append(n_nodes + at)
            pending = _pending(g)
            for i, t in enumerate(g["nodes"]):
                at_item = number, "nodes", i
                nodes.append(
                    PlanNode(
                        first + i,
                        t["name"],
                        t["op"],
                        t["type"],
                        _shape(t["ne"]),
                        t["bytes"],
                        t["flags"],
                        cache.state_of(t["split"]),
                        cache.state_of(t.get("synced")),
                        _capture_slices(t, cache),
                        tuple(first + s if s < n else targets[s - n] for s in t["src"] if s >= 0),
                        first_sub + t["subgraph"],
                        i in pending,
                        _runs(t.get("runs")),
                    )
                )
            where = f"graphs[{number}].subgraphs"
            subgraphs += [Subgraph(first + start, first + stop, number) for start, stop in g["subgraphs"]]
            for i, r in enumerate(g["allreduces"]):
                where = f"graphs[{number}].allreduces[{i}]"
                allreduces.append(_capture_allreduce(r, g["algorithm"], nodes, first))
        where = "buffers"
        memory = _memory(graphs, devices)
    except _DAMAGE as error:
        raise _damaged(what, where or "graphs[{}].{}[{}]".format(*at_item), error) from None
    return SplitPlan(
        devices,
        tuple(nodes),
        tuple(leafs),
        tuple(subgraphs),
        tuple(allreduces),
        memory,
        None if host is None else dict(host),
    )


def _pending(g: Mapping[str, Any]) -> set[int]:
    """The nodes between partial sums and their delayed all-reduce that work on summands."""
    nodes, found = g["nodes"], set()
    for r in g["allreduces"]:
        partial, after = r["partial"], r["after"]
        if not partial or partial == [after]:
            continue
        waiting = set(partial)
        for i in range(min(partial) + 1, after + 1):
            if i not in waiting and not waiting.isdisjoint(nodes[i]["src"]):
                waiting.add(i)
                found.add(i)
    return found


def _capture_allreduce(r: Mapping[str, Any], algorithm: str, nodes: list[PlanNode], first: int) -> AllReduce:
    after = first + r["after"]
    partial = tuple(first + i for i in r["partial"])
    sums = set(partial)
    origins = tuple(i for i in partial if sums.isdisjoint(nodes[i].sources))
    delayed = bool(partial) and partial != (after,)
    names = tuple(nodes[i].name for i in origins) if delayed else ()
    return AllReduce(
        after,
        nodes[after].name,
        partial,
        origins,
        names,
        r["bytes"],
        tuple(map(bool, r["computes"])),
        algorithm,
        nodes[after].subgraph,
    )


def _memory(graphs: Sequence[Mapping[str, Any]], devices: tuple[str, ...]) -> tuple[PlannedMemory, ...]:
    # Every graph lists all buffers of the meta device that existed then; the last one has seen the most. Reduction
    # buffers belong to the backend that computed and only grow.
    rows = []
    for j, name in enumerate(devices):
        weights = fixed = compute = 0
        for b in graphs[-1]["buffers"]:
            size = int(b["bytes"][j])
            if b["usage"] == _WEIGHTS:
                weights += size
            elif b["fixed"] and b["usage"] == 0:
                fixed += size
            else:
                compute += size
        reduction = max(int(g["reduce_bytes"][j]) if g["reduce_bytes"] else 0 for g in graphs)
        rows.append(PlannedMemory(name, weights, fixed, compute, reduction))
    return tuple(rows)


#
# the plan's own schema
#


def _text(state: SplitState | None) -> str:
    return "-" if state is None else str(state)


def _slices_dict(slices: tuple[Slice, ...]) -> list[Any]:
    return [[s.ne, s.nb, s.bytes, s.compute] for s in slices]


def _node_dict(x: PlanNode) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": x.name,
        "op": x.op,
        "type": x.type,
        "ne": x.ne,
        "bytes": x.bytes,
        "flags": x.flags,
        "split": _text(x.split),
        "synced": _text(x.synced),
        "slices": _slices_dict(x.slices),
        "src": x.sources,
        "subgraph": x.subgraph,
    }
    if x.pending:
        out["pending"] = True
    if x.runs is not None:
        out["runs"] = x.runs
    return out


def _leaf_dict(x: PlanLeaf) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": x.name,
        "op": x.op,
        "type": x.type,
        "ne": x.ne,
        "bytes": x.bytes,
        "flags": x.flags,
        "kind": x.kind,
        "split": _text(x.split),
        "slices": _slices_dict(x.slices),
    }
    if x.runs is not None:
        out["runs"] = x.runs
    if x.asked is not None:
        out["asked"] = x.asked
    return out


def to_dict(plan: SplitPlan) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "devices": plan.devices,
        "nodes": [_node_dict(x) for x in plan.nodes],
        "leafs": [_leaf_dict(x) for x in plan.leafs],
        "subgraphs": [[s.start, s.stop, s.graph] for s in plan.subgraphs],
        "allreduces": [
            {
                "after": r.after,
                "partial": r.partial,
                "origins": r.origins,
                "delayed": r.delayed,
                "bytes": r.bytes,
                "computes": r.computes,
                "algorithm": r.algorithm,
            }
            for r in plan.allreduces
        ],
        "memory": [
            {"name": m.name, "weights": m.weights, "fixed": m.fixed, "compute": m.compute, "reduction": m.reduction}
            for m in plan.memory
        ],
        "host": plan.host,
    }


@_not_collecting()
def from_json(text: str | bytes) -> SplitPlan:
    what = "plan"
    d = _loaded(text, what)
    if d.get("schema") != SCHEMA:
        raise FileFormatError(f"{what}: found the schema {d.get('schema')!r}, expected {SCHEMA!r}")
    where = "devices"
    try:
        devices = tuple(str(x) for x in d["devices"])
        cache = _Cache(len(devices))
        n_tensors = len(d["nodes"]) + len(d["leafs"])
        nodes = []
        for i, t in enumerate(d["nodes"]):
            where = f"nodes[{i}]"
            sources = tuple(t["src"])
            if not all(0 <= s < n_tensors for s in sources):
                raise ValueError(f"sources {list(sources)}: there are {n_tensors} nodes and leafs")
            node = PlanNode(
                i,
                t["name"],
                t["op"],
                t["type"],
                _shape(t["ne"]),
                t["bytes"],
                t["flags"],
                parse_state(t["split"]),
                parse_state(t["synced"]),
                cache.slices_of([(*ne, *nb, s, c) for ne, nb, s, c in t["slices"]]),
                sources,
                t["subgraph"],
                bool(t.get("pending", False)),
                _runs(t.get("runs")),
            )
            nodes.append(node)
        leafs = []
        for i, t in enumerate(d["leafs"]):
            where = f"leafs[{i}]"
            leaf = PlanLeaf(
                i,
                t["name"],
                t["op"],
                t["type"],
                _shape(t["ne"]),
                t["bytes"],
                t["flags"],
                t["kind"],
                parse_state(t["split"]),
                cache.slices_of([(*ne, *nb, s, c) for ne, nb, s, c in t["slices"]]),
                _runs(t.get("runs")),
                tuple(t["asked"]) if "asked" in t else None,
            )
            leafs.append(leaf)
        where = "subgraphs"
        subgraphs = tuple(Subgraph(int(a), int(b), int(g)) for a, b, g in d["subgraphs"])
        allreduces = []
        for i, r in enumerate(d["allreduces"]):
            where = f"allreduces[{i}]"
            origins = tuple(r["origins"])
            names = tuple(nodes[k].name for k in origins) if r["delayed"] else ()
            after = nodes[r["after"]]
            allreduces.append(
                AllReduce(
                    after.index,
                    after.name,
                    tuple(r["partial"]),
                    origins,
                    names,
                    r["bytes"],
                    tuple(map(bool, r["computes"])),
                    r["algorithm"],
                    after.subgraph,
                )
            )
        where = "memory"
        memory = tuple(
            PlannedMemory(m["name"], m["weights"], m["fixed"], m["compute"], m["reduction"]) for m in d["memory"]
        )
        host = d["host"]
    except _DAMAGE as error:
        raise _damaged(what, where, error) from None
    return SplitPlan(devices, tuple(nodes), tuple(leafs), subgraphs, tuple(allreduces), memory, host)
