"""Plans from JSON and to JSON: the capture of native code, and the plan's own schema (docs/plan-capture.md)."""

from __future__ import annotations

import contextlib
import gc
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import FileFormatError
from ..split import Decision, Rule, Segment, SplitState
from .plan import OLD_SCHEMA, SCHEMA, SplitPlan
from .stored import check_values
from .values import (
    VIEW_OPS,
    AllReduce,
    Cause,
    PlanLeaf,
    PlannedMemory,
    PlanNode,
    PlanRule,
    ReduceStep,
    Runs,
    Shape,
    Slice,
    Subgraph,
    butterfly_steps,
    parse_state,
    shared_memory_steps,
)

# enum ggml_backend_buffer_usage; -1: no buffer
_KINDS = {0: "fixed", 1: "weight", 2: "input", -1: "unallocated"}
_WEIGHTS = 1
_AXES: dict[str, int | str] = {"0": 0, "1": 1, "2": 2, "3": 3, "MIRRORED": "M", "PARTIAL": "P"}
_COPY = re.compile(r".*#(.+)#\d+")
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
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{what}: not JSON: {error}") from None
    if not isinstance(text, Mapping):
        raise FileFormatError(f"{what}: found a {type(text).__name__}, expected an object")
    return text


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known about who decided."""

    rules: Sequence[Rule]
    n_yours: int
    decisions: Mapping[str, Decision] | None
    otherwise: str

    def plan_rules(self) -> tuple[PlanRule, ...]:
        """The rules as the plan has them."""
        out = []
        for i, one in enumerate(self.rules):
            yours = i < self.n_yours
            split = "a function" if callable(one.split) else str(one.split)
            number = i + 1 if yours else i - self.n_yours + 1
            out.append(PlanRule(i, "yours" if yours else "architecture", number, one.pattern, split, one.granularity, one.units))
        return tuple(out)

    def has_indices(self, name: str) -> bool:
        """Whether a rule asked for so many indices on each device, which it got: shares were not asked for."""
        found = None if self.decisions is None else self.decisions.get(name)
        return found is not None and found.rule is not None and found.asked == str(found.state)

    def of(self, name: str, op: str, kind: str) -> Cause | None:
        """What decided about a leaf."""
        if self.decisions is None:
            return None
        if kind == "unallocated":
            return Cause("host")
        if op in VIEW_OPS and kind != "input":
            name = name.partition(" (")[0]  # a view of a cache: what decided about the cache
        elif op != "NONE":
            return Cause("computed")
        if kind == "input":
            return Cause("input")
        if not name:
            return Cause("computed")
        found = self.decisions.get(name)
        if found is not None and found.rule is not None:
            return Cause("rule", found.rule, found.asked)
        return Cause(self.otherwise)


def _leaf_label(name: str, index: int) -> str:
    """The name to read: what llama.cpp's scheduler copies to the devices is called ``Meta(A,B)#embd#0``."""
    found = _COPY.fullmatch(name)
    return (found[1] if found else name.strip()) or f"leaf {index}"


# Views of what has no name are called " (reshaped)".
def _label(name: str, source: PlanNode | PlanLeaf | None) -> str:
    if name and not name.startswith(" ("):
        return name
    if source is None or not source.label:
        return name.strip()
    if source.name and name.startswith(source.name):
        return source.label + name[len(source.name) :]
    return source.label + name[max(name.rfind(" ("), 0) :]


# What slices and splits have in common over a graph's nodes is kept once: a large model repeats few of them.
class _Cache:
    def __init__(self, n_devices: int) -> None:
        self.n_devices = n_devices
        self.slices: dict[Any, tuple[Slice, ...]] = {}
        self.states: dict[Any, SplitState | None] = {}
        self.steps: dict[Any, tuple[ReduceStep, ...] | None] = {}

    def steps_of(
        self, algorithm: str, communicator: str, x: PlanNode, size: int, computes: tuple[bool, ...]
    ) -> tuple[ReduceStep, ...] | None:
        """What the devices do for the sum of a node; None where that is the secret of a communicator."""
        n_elements = x.ne[0] * x.ne[1] * x.ne[2] * x.ne[3]
        key = algorithm, communicator, x.type, n_elements, size, computes
        if key not in self.steps:
            ours = algorithm == "communicator" and communicator == "VCPU"
            if algorithm == "butterfly" or (ours and x.type not in ("f32", "f16", "bf16")):  # virtual CPUs leave others to ggml
                self.steps[key] = butterfly_steps(self.n_devices, size, computes)
            else:
                self.steps[key] = shared_memory_steps(self.n_devices, n_elements, size, computes) if ours else None
        return self.steps[key]

    def steps_read(self, steps: Sequence[Sequence[Any]]) -> tuple[ReduceStep, ...]:
        """From a plan's JSON."""
        key = tuple(map(tuple, steps))
        found = self.steps.get(key)
        if found is None:
            if not all(0 <= s[3] < self.n_devices and (s[2] is None or 0 <= s[2] < self.n_devices) for s in key):
                raise ValueError(f"a step names a device that is not among the {self.n_devices}")
            found = self.steps[key] = tuple(ReduceStep(*s) for s in key)
        return found

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


def _capture_leaf(
    t: Mapping[str, Any], index: int, cache: _Cache, asked: Mapping[str, Sequence[float]], known: Provenance
) -> PlanLeaf:
    state = cache.state_of(t["split"])
    kind = _KINDS.get(t["usage"], "unallocated")
    shares = None if known.has_indices(t["name"]) else asked.get(t["name"])
    return PlanLeaf(
        index,
        t["name"],
        t["op"],
        t["type"],
        _shape(t["ne"]),
        t["bytes"],
        t["flags"],
        kind,
        state,
        _capture_slices(t, cache),
        _runs(t.get("runs")),
        None if shares is None else tuple(float(s) for s in shares),
        known.of(t["name"], t["op"], kind),
        _leaf_label(t["name"], index),
    )


@_not_collecting()
def from_captures(
    captures: Mapping[str, Any] | str | bytes,
    host: Mapping[str, Any] | None,
    asked: Mapping[str, Sequence[float]] | None,
    known: Provenance,
    communicator: str,
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
                leaf = _capture_leaf(t, len(leafs), cache, asked or {}, known)
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
            pending = _pending(g) if len(devices) > 1 else set()
            for i, t in enumerate(g["nodes"]):
                at_item = number, "nodes", i
                # a cast names itself as its destination
                sources = tuple(first + s if s < n else targets[s - n] for s in t["src"] if s >= 0 and s != i)
                label = t["name"]
                if not label or label.startswith(" ("):
                    of = sources[0] if sources else None
                    label = _label(label, None if of is None else nodes[of] if of < n_nodes else leafs[of - n_nodes]) or f"node {first + i}"
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
                        sources,
                        first_sub + t["subgraph"],
                        i in pending,
                        _runs(t.get("runs")),
                        label,
                    )
                )
            where = f"graphs[{number}].subgraphs"
            subgraphs += [Subgraph(first + start, first + stop, number) for start, stop in g["subgraphs"]]
            # one device has every sum alone: ggml cuts the graph all the same, and then has nothing to do
            for i, r in enumerate(g["allreduces"] if len(devices) > 1 else ()):
                where = f"graphs[{number}].allreduces[{i}]"
                allreduces.append(_capture_allreduce(r, g["algorithm"], communicator, nodes, first, cache))
        where = "buffers"
        memory = _memory(graphs, devices, leafs)
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
        known.plan_rules(),
    )


def _pending(g: Mapping[str, Any]) -> set[int]:
    """The nodes between partial sums and their delayed all-reduce that work on summands.

    Where a graph ends before the all-reduce (two partial results are added last), there is none: those to the end.
    """
    nodes, found = g["nodes"], set()
    parts = [(r["partial"], r["after"] + 1) for r in g["allreduces"]]
    summed = {stop for _, stop in parts}
    parts += [([i for i in range(start, stop) if _is_partial(nodes[i])], stop) for start, stop in g["subgraphs"] if stop not in summed]
    for partial, stop in parts:
        if not partial or partial == [stop - 1]:
            continue
        waiting = set(partial)
        for i in range(min(partial) + 1, stop):
            if i not in waiting and not waiting.isdisjoint(nodes[i]["src"]):
                waiting.add(i)
                found.add(i)
    return found


def _is_partial(t: Mapping[str, Any]) -> bool:
    state = t["split"]
    return state is not None and _AXES.get(state["axis"]) == "P"


def _capture_allreduce(
    r: Mapping[str, Any], algorithm: str, communicator: str, nodes: list[PlanNode], first: int, cache: _Cache
) -> AllReduce:
    partial = tuple(first + i for i in r["partial"])
    sums = set(partial)
    origins = tuple(i for i in partial if sums.isdisjoint(nodes[i].sources))
    x = nodes[first + r["after"]]
    delayed = bool(partial) and partial != (x.index,)
    computes = tuple(map(bool, r["computes"]))
    return AllReduce(
        x.index,
        x.name,
        partial,
        origins,
        tuple(nodes[i].name for i in origins) if delayed else (),
        int(r["bytes"]),
        computes,
        algorithm,
        x.subgraph,
        x.type,
        x.ne,
        _reasons(nodes, partial, origins, x.index) if delayed else (),
        communicator if algorithm == "communicator" else "",
        cache.steps_of(algorithm, communicator, x, int(r["bytes"]), computes),
    )


def _reasons(nodes: Sequence[PlanNode], partial: tuple[int, ...], origins: tuple[int, ...], after: int) -> tuple[str, ...]:
    """Why ggml delayed an all-reduce: what is computed from the partial sums before it. (It looks for just these.)"""
    waiting = set(partial)
    found = dict.fromkeys("add_id" for i in partial if nodes[i].op == "ADD_ID")
    for i in range(min(partial) + 1, after + 1):
        x = nodes[i]
        if waiting.isdisjoint(x.sources):
            continue
        waiting.add(i)
        if x.op == "MUL":
            found["mul"] = None
        elif x.op == "ADD_ID":
            found["add_id"] = None
        elif x.op == "VIEW":
            found["experts"] = None
    if len(origins) > 1:
        found["merged"] = None
    return tuple(found)


def _memory(graphs: Sequence[Mapping[str, Any]], devices: tuple[str, ...], leafs: Sequence[PlanLeaf]) -> tuple[PlannedMemory, ...]:
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
        rows.append(PlannedMemory(name, weights, fixed, compute, reduction, _mirrored(leafs, j)))
    return tuple(rows)


def _mirrored(leafs: Sequence[PlanLeaf], j: int) -> int:
    # a view of a weight takes nothing
    whole = (x for x in leafs if x.kind == "weight" and x.op == "NONE" and x.split is not None and not isinstance(x.split.axis, int))
    return sum(x.slices[j].bytes for x in whole)


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
    if x.cause is not None:
        cause: dict[str, Any] = {"kind": x.cause.kind}
        out["cause"] = cause
        if x.cause.rule is not None:
            cause["rule"] = x.cause.rule
        if x.cause.asked is not None:
            cause["asked"] = x.cause.asked
    return out


def _rule_dict(x: PlanRule) -> dict[str, Any]:
    out: dict[str, Any] = {"origin": x.origin, "number": x.number, "pattern": x.pattern, "split": x.split}
    if x.granularity != 1:
        out["granularity"] = x.granularity
    if x.units is not None:
        out["units"] = x.units
    return out


def _allreduce_dict(x: AllReduce) -> dict[str, Any]:
    return {
        "after": x.after,
        "partial": x.partial,
        "origins": x.origins,
        "delayed": x.delayed,
        "reasons": x.reasons,
        "type": x.type,
        "ne": x.ne,
        "bytes": x.bytes,
        "computes": x.computes,
        "algorithm": x.algorithm,
        "communicator": x.communicator,
        "steps": None if x.steps is None else [[s.round, s.kind, s.source, s.target, s.bytes] for s in x.steps],
    }


@_not_collecting()
def to_json(plan: SplitPlan, indent: int | None) -> str:
    return json.dumps(to_dict(plan), indent=indent, separators=(",", ":") if indent is None else None, ensure_ascii=False)


def to_dict(plan: SplitPlan) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "devices": plan.devices,
        "nodes": [_node_dict(x) for x in plan.nodes],
        "leafs": [_leaf_dict(x) for x in plan.leafs],
        "subgraphs": [[s.start, s.stop, s.graph] for s in plan.subgraphs],
        "allreduces": [_allreduce_dict(r) for r in plan.allreduces],
        "memory": [
            {
                "name": m.name,
                "weights": m.weights,
                "mirrored": m.mirrored,
                "fixed": m.fixed,
                "compute": m.compute,
                "reduction": m.reduction,
                **({"capacity": m.capacity} if m.capacity else {}),
            }
            for m in plan.memory
        ],
        "rules": [_rule_dict(r) for r in plan.rules],
        "host": plan.host,
    }


def _leaf_cause(t: Mapping[str, Any], n_rules: int) -> Cause | None:
    found = t.get("cause")
    if found is None:
        return None
    cause = Cause(found["kind"], found.get("rule"), found.get("asked"))
    if cause.rule is not None and not 0 <= cause.rule < n_rules:
        raise ValueError(f"rule {cause.rule}: there are {n_rules}")
    return cause


@_not_collecting()
def from_json(text: str | bytes) -> SplitPlan:
    what = "plan"
    d = _loaded(text, what)
    old = d.get("schema") == OLD_SCHEMA
    if not old and d.get("schema") != SCHEMA:
        raise FileFormatError(f"{what}: found the schema {d.get('schema')!r}, expected {SCHEMA!r} or {OLD_SCHEMA!r}")
    where = "devices"
    try:
        devices = tuple(str(x) for x in d["devices"])
        cache = _Cache(len(devices))
        n_nodes, n_tensors = len(d["nodes"]), len(d["nodes"]) + len(d["leafs"])
        where = "rules"
        rules = tuple(
            PlanRule(i, r["origin"], r["number"], r["pattern"], r["split"], r.get("granularity", 1), r.get("units"))
            for i, r in enumerate(() if old else d["rules"])
        )
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
                _leaf_cause(t, len(rules)),
                _leaf_label(t["name"], i),
            )
            leafs.append(leaf)
        nodes: list[PlanNode] = []
        for i, t in enumerate(d["nodes"]):
            where = f"nodes[{i}]"
            sources = tuple(t["src"])
            if not all(0 <= s < n_tensors for s in sources):
                raise ValueError(f"sources {list(sources)}: there are {n_tensors} nodes and leafs")
            label = t["name"]
            if not label or label.startswith(" ("):
                of = sources[0] if sources else i
                source = leafs[of - n_nodes] if of >= n_nodes else nodes[of] if of < i else None
                label = _label(label, source) or f"node {i}"
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
                label,
            )
            nodes.append(node)
        where = "subgraphs"
        subgraphs = tuple(Subgraph(int(a), int(b), int(g)) for a, b, g in d["subgraphs"])
        allreduces = []
        for i, r in enumerate(d["allreduces"]):
            where = f"allreduces[{i}]"
            allreduces.append(_read_allreduce(r, nodes, cache, old))
        where = "memory"
        memory = tuple(
            PlannedMemory(
                m["name"],
                m["weights"],
                m["fixed"],
                m["compute"],
                m["reduction"],
                _mirrored(leafs, j) if old else m["mirrored"],
                m.get("capacity", 0),
            )
            for j, m in enumerate(d["memory"])
        )
        where = "host"
        host = d["host"]
    except _DAMAGE as error:
        raise _damaged(what, where, error) from None
    plan = SplitPlan(devices, tuple(nodes), tuple(leafs), subgraphs, tuple(allreduces), memory, host, rules)
    try:
        check_values(plan)
    except ValueError as error:
        raise FileFormatError(f"{what}: {error}") from None
    return plan


def _read_allreduce(r: Mapping[str, Any], nodes: list[PlanNode], cache: _Cache, old: bool) -> AllReduce:
    partial, origins = tuple(r["partial"]), tuple(r["origins"])
    x = nodes[r["after"]]
    computes = tuple(map(bool, r["computes"]))
    if old:  # what version 1 did not say; who the communicator is, it does not know
        steps = cache.steps_of(r["algorithm"], "", x, int(r["bytes"]), computes)
        reasons = _reasons(nodes, partial, origins, x.index) if r["delayed"] else ()
    else:
        found = r["steps"]
        steps = None if found is None else cache.steps_read(found)
        reasons = tuple(r["reasons"])
    return AllReduce(
        x.index,
        x.name,
        partial,
        origins,
        tuple(nodes[k].name for k in origins) if r["delayed"] else (),
        r["bytes"],
        computes,
        r["algorithm"],
        x.subgraph,
        x.type if old else r["type"],
        x.ne if old else _shape(r["ne"]),
        reasons,
        "" if old else r["communicator"],
        steps,
    )
