"""What differs between two plans: what a changed rule, another device or a newer llama.cpp changed.

A `PlanDiff` is a value like the plans it is made of, and knows nothing of them afterwards. Nodes are matched by name,
operation and order, so that nodes that came or went do not make all others differ; what merely moved up or down in the
lists (indices, numbers of subgraphs, names such as ``node_17``) is no difference.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, FileFormatError
from .layers import is_auto, layer_of, layers_of
from .values import AllReduce, Cause, PlanLeaf, PlanNode, PlanRule, Slice

if TYPE_CHECKING:
    from rich.console import Console

    from .plan import SplitPlan

__all__ = ["ASPECTS", "DIFF_SCHEMA", "Change", "Difference", "MemoryDifference", "PlanDiff", "plan_diff"]

DIFF_SCHEMA = "pyggml.plan-diff/1"

ASPECTS = ("devices", "memory", "host", "strides", "flags", "asked", "rules", "views")
"""What `PlanDiff.without` leaves out: names of devices, bytes of memory, what the host does, strides of slices, flags of
tensors, shares that were asked for, who decided what, and operations that only give memory another shape."""

Value = str | int | float | bool | None | tuple["Value", ...]

_FLAGS = {1: "input", 2: "output", 4: "param", 8: "loss", 16: "compute"}
# larger gaps between nodes that agree are matched by the count of occurrences
_EXACT = 1 << 20
# llama.cpp's scheduler names its copies of inputs after the device
_COPY = re.compile(r"Meta\(.*\)#(.+)#\d+")


@dataclass(frozen=True, slots=True)
class Change:
    """One property, in both plans. Bytes and counts are numbers, splits their short notation, lists tuples."""

    what: str
    before: Value
    after: Value

    @property
    def differs(self) -> bool:
        """Whether there is a difference."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor or an all-reduce that is not what it was."""

    kind: str
    """``rule``; ``weight``, ``fixed`` (a cache), ``input``, ``unallocated``; ``node``, ``view``; ``all-reduce``; ``cut`` (the
    graph is cut behind a node without an all-reduce)."""
    name: str
    """Of an all-reduce: of the node after which it is. Of a rule: its pattern."""
    op: str
    """Of a rule: whose it is."""
    layer: int | None
    status: str
    """``changed``, ``added`` or ``removed``."""
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class MemoryDifference:
    """Bytes on one device, by purpose. Devices are matched by their places in the plans."""

    name: str
    """``SIM0``; where they have other names ``SIM0 -> CUDA0``."""
    total: Change
    """All of it. None: the plan has no such device."""
    kinds: tuple[Change, ...]
    """``weights``, ``mirrored`` (a part of the weights), ``fixed``, …: also those that are the same."""


@dataclass(frozen=True, slots=True, repr=False)
class PlanDiff:
    """What differs between two plans, ``before.diff(after)``. True where something does; ``print(diff)`` tells it."""

    devices: tuple[tuple[str, ...], tuple[str, ...]]
    """Names before and after."""
    totals: tuple[Change, ...]
    """``nodes``, ``subgraphs``, ``all-reduces``, ``all-reduce bytes``, …: also those that are the same."""
    memory: tuple[MemoryDifference, ...]
    """One a device."""
    items: tuple[Difference, ...]
    """Rules first, then weights, caches and inputs, nodes in their order, all-reduces."""
    host: tuple[Change, ...] = ()
    """What the host does besides."""
    other: tuple[str, ...] = ()
    """Names of fields of the plan that differ where nothing above does."""

    def __bool__(self) -> bool:
        return bool(
            self.items
            or self.other
            or self.devices[0] != self.devices[1]
            or any(c.differs for c in (*self.totals, *self.host))
            or any(c.differs for m in self.memory for c in m.kinds)
        )

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def total(self, what: str) -> Change:
        """One of `totals`, such as ``"all-reduces"``."""
        found = next((c for c in self.totals if c.what == what), None)
        if found is None:
            raise ArgumentError(f"total({what!r}): one of {', '.join(c.what for c in self.totals)}")
        return found

    def of(self, *kinds: str) -> tuple[Difference, ...]:
        """The items of some kinds: ``diff.of("weight", "fixed")``."""
        return tuple(d for d in self.items if d.kind in kinds)

    def without(self, *aspects: str) -> PlanDiff:
        """The same without some aspects: those in `ASPECTS`.

        Raises:
            ArgumentError: an aspect that there is not.
        """
        if strange := set(aspects) - set(ASPECTS):
            raise ArgumentError(f"{', '.join(sorted(map(repr, strange)))}: expected some of {', '.join(ASPECTS)}")
        out = self
        if "devices" in aspects:
            now = self.devices[1] if len(self.devices[0]) == len(self.devices[1]) else None
            out = out if now is None else replace(out, devices=(now, now))
        if "memory" in aspects:
            out = replace(out, memory=())
        if "host" in aspects:
            out = replace(out, host=())
        items = []
        for item in out.items:
            if (item.kind == "view" and "views" in aspects) or (item.kind == "rule" and "rules" in aspects):
                continue
            kept = tuple(c for c in item.changes if c.what not in aspects and not (c.what == "decided by" and "rules" in aspects))
            if kept or not item.changes:
                items.append(item if len(kept) == len(item.changes) else replace(item, changes=kept))
        totals = tuple(c for c in out.totals if not (c.what in aspects or ("views" in aspects and c.what in ("nodes", "views"))))
        return replace(out, items=tuple(items), totals=totals, other=tuple(o for o in out.other if o not in aspects))

    # JSON

    def to_dict(self) -> dict[str, Any]:
        """Words and numbers for JSON, schema ``pyggml.plan-diff/1`` (docs/plan-diff.md)."""
        return {
            "schema": DIFF_SCHEMA,
            "same": not self,
            "devices": {"before": list(self.devices[0]), "after": list(self.devices[1])},
            "totals": _changes_dict(self.totals),
            "memory": [{"name": m.name, "total": _changes_dict((m.total,))[0][1:], "kinds": _changes_dict(m.kinds)} for m in self.memory],
            "items": [
                {"kind": d.kind, "name": d.name, "op": d.op, "layer": d.layer, "status": d.status, "changes": _changes_dict(d.changes)}
                for d in self.items
            ],
            "host": _changes_dict(self.host),
            "other": list(self.other),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent, separators=(",", ":") if indent is None else None, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> PlanDiff:
        """From what `to_json` wrote.

        Raises:
            FileFormatError: it is not JSON, of another schema, or damaged.
        """
        try:
            d = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise FileFormatError(f"difference of plans: not JSON: {error}") from None
        found = d.get("schema") if isinstance(d, dict) else None
        if found != DIFF_SCHEMA:
            raise FileFormatError(f"difference of plans: found the schema {found!r}, expected {DIFF_SCHEMA!r}")
        try:
            return cls(
                (tuple(d["devices"]["before"]), tuple(d["devices"]["after"])),
                _changes_from(d["totals"]),
                tuple(MemoryDifference(m["name"], Change("total", *m["total"]), _changes_from(m["kinds"])) for m in d["memory"]),
                tuple(Difference(i["kind"], i["name"], i["op"], i["layer"], i["status"], _changes_from(i["changes"])) for i in d["items"]),
                _changes_from(d["host"]),
                tuple(d["other"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"difference of plans: it cannot be read: {error!r}") from None

    # showing

    def summary(self) -> str:
        """One line: how many tensors differ, all-reduces, memory."""
        from ..report.diff_text import headline

        return headline(self)

    def table(self, *, fold: bool = True, views: bool = False, limit: int | None = None) -> str:
        """All of it as text without colour.

        Args:
            fold: the same change in several layers is one line.
            views: operations that only give memory another shape, too.
            limit: lines about tensors, at most; what is left out is counted.
        """
        from ..report.diff_text import table

        return table(self, fold, views, limit)

    def render(self, console: Console | None = None, *, fold: bool = True, views: bool = False) -> None:
        """Prints it to a rich console (default: standard output). Arguments as for `table`."""
        from ..report.diff_rich import render

        render(self, console, fold, views)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(self.table())}</pre>"

    def __repr__(self) -> str:
        return f"<PlanDiff: {self.summary()}>"


def _plain(value: Value) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _changes_dict(changes: tuple[Change, ...]) -> list[Any]:
    return [[c.what, _plain(c.before), _plain(c.after)] for c in changes]


def _value(value: Any) -> Value:
    """A value of any JSON: lists become tuples, objects text."""
    if isinstance(value, (list, tuple)):
        return tuple(_value(v) for v in value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else json.dumps(value, default=str)


def _changes_from(changes: Sequence[Any]) -> tuple[Change, ...]:
    return tuple(Change(str(what), _value(before), _value(after)) for what, before, after in changes)


#
# finding what differs
#


def plan_diff(before: SplitPlan, after: SplitPlan) -> PlanDiff:
    """See `SplitPlan.diff`."""
    if type(after) is not type(before):
        raise ArgumentError(f"diff(): expected a SplitPlan, got {type(after).__name__}; SplitPlan.from_json reads a stored one")
    same = before == after
    finder = None if same else _Finder(before, after)
    out = PlanDiff(
        (before.devices, after.devices),
        tuple(Change(what, count(before), count(after)) for what, count in _TOTALS.items()),
        _memory(before, after),
        tuple(finder.items()) if finder else (),
        _host(before.host, after.host),
    )
    return out if same or out else replace(out, other=tuple(_differing_fields(before, after)))


_TOTALS: dict[str, Callable[[SplitPlan], int | None]] = {
    "nodes": lambda plan: len(plan.nodes),
    "views": lambda plan: sum(x.is_view for x in plan.nodes),
    "subgraphs": lambda plan: len(plan.subgraphs),
    "graphs": lambda plan: len({s.graph for s in plan.subgraphs}),
    "all-reduces": lambda plan: len(plan.allreduces),
    "delayed all-reduces": lambda plan: sum(r.delayed for r in plan.allreduces),
    "all-reduce bytes": lambda plan: plan.allreduce_bytes,
    "bytes moved": lambda plan: _moved(plan.allreduces),
}


def _moved(allreduces: Sequence[AllReduce]) -> int | None:
    """Bytes that leave a device for another, in a run; None: an algorithm is not known."""
    sent = [r.sent for r in allreduces]
    return None if None in sent else sum(sum(at) for at in sent if at is not None)


def _differing_fields(before: SplitPlan, after: SplitPlan) -> Iterator[str]:
    for f in fields(before):
        if f.compare and getattr(before, f.name) != getattr(after, f.name):
            yield f.name


def _memory(before: SplitPlan, after: SplitPlan) -> tuple[MemoryDifference, ...]:
    rows = []
    for j in range(max(len(before.memory), len(after.memory))):
        a = before.memory[j] if j < len(before.memory) else None
        b = after.memory[j] if j < len(after.memory) else None
        one = a or b
        assert one is not None
        kinds = [f.name for f in fields(one) if f.compare and f.name != "name" and isinstance(getattr(one, f.name), int)]
        names = list(dict.fromkeys(m.name for m in (a, b) if m is not None))
        changes = (Change(k, None if a is None else getattr(a, k), None if b is None else getattr(b, k)) for k in kinds)
        total = Change("total", None if a is None else a.total, None if b is None else b.total)
        rows.append(MemoryDifference(" -> ".join(names), total, tuple(changes)))
    return tuple(rows)


def _host(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> tuple[Change, ...]:
    a, b = before or {}, after or {}
    if (before is None) != (after is None) and not a and not b:
        return (Change("host", before is not None, after is not None),)
    return tuple(Change(k, _value(a.get(k)), _value(b.get(k))) for k in dict.fromkeys((*a, *b)) if a.get(k) != b.get(k) or (k in a) != (k in b))


class _Finder:
    """Matches the tensors of two plans, and looks at each pair."""

    def __init__(self, before: SplitPlan, after: SplitPlan) -> None:
        self.before, self.after = before, after
        self.nodes = _matched(before.nodes, after.nodes, lambda x: x.op)
        self.leafs = _matched(before.leafs, after.leafs, lambda _: "")
        self.layers = layers_of(before), layers_of(after)
        # the same number on both sides where two tensors are one
        self.numbers: tuple[dict[int, int], dict[int, int]] = {}, {}
        for n, (i, k, _) in enumerate(self.nodes):
            self._number(n, i, k)
        for n, (i, k, _) in enumerate(self.leafs, len(self.nodes)):
            self._number(n, None if i is None else i + len(before.nodes), None if k is None else k + len(after.nodes))

    def _number(self, n: int, before: int | None, after: int | None) -> None:
        if before is not None:
            self.numbers[0][before] = n
        if after is not None:
            self.numbers[1][after] = n

    def items(self) -> Iterator[Difference]:
        yield from _rules(self.before.rules, self.after.rules)
        for i, k, _ in self.leafs:
            a = None if i is None else self.before.leafs[i]
            b = None if k is None else self.after.leafs[k]
            one = b or a
            assert one is not None
            yield from self._tensor(a, b, one.kind, layer_of(one.name)[0], ())
        for i, k, moved in self.nodes:
            x = None if i is None else self.before.nodes[i]
            y = None if k is None else self.after.nodes[k]
            node = y or x
            assert node is not None
            layer = self.layers[1][k] if k is not None else self.layers[0][node.index]
            places = (Change("place", i, k),) if moved else ()
            yield from self._tensor(x, y, "view" if node.is_view else "node", layer, places)
        yield from self._allreduces()
        yield from self._cuts()

    # tensors

    def _tensor(
        self, a: PlanNode | PlanLeaf | None, b: PlanNode | PlanLeaf | None, kind: str, layer: int | None, more: tuple[Change, ...]
    ) -> Iterator[Difference]:
        if a is None or b is None:
            one = a or b
            assert one is not None
            what = Change("tensor", None if a is None else _brief(a), None if b is None else _brief(b))
            yield Difference(kind, _label(one), one.op, layer, "added" if a is None else "removed", (what,))
            return
        changes = (*more, *self._changes(a, b))
        if changes:
            yield Difference(kind, _label(b), b.op, layer, "changed", changes)

    def _changes(self, a: PlanNode | PlanLeaf, b: PlanNode | PlanLeaf) -> Iterator[Change]:
        for name in _NODE_FIELDS if isinstance(a, PlanNode) else _LEAF_FIELDS:
            x, y = getattr(a, name), getattr(b, name)
            if name == "sources":
                # indices: the same number may be another node, another number the same
                if [self.numbers[0][s] for s in x] != [self.numbers[1][s] for s in y]:
                    yield Change(name, self._names(0, x), self._names(1, y))
            elif x == y and name != "cause":
                continue
            elif name == "cause":
                if self._decided(self.before, x) != self._decided(self.after, y):
                    yield Change("decided by", self.before.provenance(a) or None, self.after.provenance(b) or None)  # type: ignore[arg-type]
            elif name == "asked" and not any(p.split and isinstance(p.split.axis, int) for p in (a, b)):
                continue  # the shares of the model; this one is whole
            elif name == "slices":
                yield from _slice_changes(a, b)
            elif name in ("split", "pending"):
                # told once: what an all-reduce is still to complete is "(P)"
                if name == "split" or a.split == b.split:
                    yield Change("split", _split(a), _split(b))
            else:
                yield Change(name, _readable(name, x), _readable(name, y))

    @staticmethod
    def _decided(plan: SplitPlan, cause: Cause | None) -> Any:
        """A cause without the rule's number, which changes with the rules before it."""
        if cause is None or cause.rule is None:
            return cause
        return cause.kind, cause.asked, _rule_key(plan.rules[cause.rule])

    def _names(self, side: int, indices: Sequence[int]) -> tuple[str, ...]:
        plan = (self.before, self.after)[side]
        n = len(plan.nodes)
        return tuple(_label(plan.nodes[i] if i < n else plan.leafs[i - n]) for i in indices)

    # all-reduces

    def _allreduces(self) -> Iterator[Difference]:
        old, new = self.before.allreduces, self.after.allreduces
        at = {self.numbers[0][r.after]: r for r in old}
        pairs: list[tuple[AllReduce | None, AllReduce | None]] = []
        gone = dict.fromkeys(at)
        left = []
        for r in new:
            number = self.numbers[1][r.after]
            if number in gone:
                del gone[number]
                pairs.append((at[number], r))
            else:
                left.append(r)
        # the same sum, completed elsewhere
        origins = {self.numbers[0][o]: number for number in gone for o in at[number].origins}
        for r in left:
            found = next((origins[n] for o in r.origins if (n := self.numbers[1][o]) in origins and origins[n] in gone), None)
            pairs.append((None if found is None else at[found], r))
            if found is not None:
                del gone[found]
        pairs += [(at[number], None) for number in gone]
        pairs.sort(key=lambda pair: pair[1].after if pair[1] is not None else pair[0].after if pair[0] is not None else 0)
        for a, b in pairs:
            one = b or a
            assert one is not None
            layer = self.layers[1][b.after] if b is not None else self.layers[0][one.after]
            if a is None or b is None:
                what = Change("bytes", None if a is None else a.bytes, None if b is None else b.bytes)
                yield Difference("all-reduce", self._reduced(a, b), "", layer, "added" if a is None else "removed", (what,))
            elif changes := tuple(self._reduce_changes(a, b)):
                yield Difference("all-reduce", self._reduced(a, b), "", layer, "changed", changes)

    def _reduced(self, a: AllReduce | None, b: AllReduce | None) -> str:
        return _label(self.after.nodes[b.after]) if b is not None else _label(self.before.nodes[a.after]) if a is not None else ""

    def _reduce_changes(self, a: AllReduce, b: AllReduce) -> Iterator[Change]:
        if self.numbers[0][a.after] != self.numbers[1][b.after]:
            yield Change("after", self._names(0, (a.after,)), self._names(1, (b.after,)))
        for f in fields(a):
            x, y = getattr(a, f.name), getattr(b, f.name)
            if f.name in ("after", "after_name", "subgraph"):
                continue
            if f.name in ("partial", "origins"):
                if [self.numbers[0][s] for s in x] != [self.numbers[1][s] for s in y]:
                    yield Change(f.name, self._names(0, x), self._names(1, y))
            elif f.name == "steps":
                yield from _step_changes(a, b)
            elif x != y and not (f.name == "delayed_from" and [*map(layer_of, x)] == [*map(layer_of, y)]):
                change = Change(f.name.replace("_", " "), _readable(f.name, x), _readable(f.name, y))
                if not (f.name == "computes" and _same_for_all(change)):
                    yield change

    def _cuts(self) -> Iterator[Difference]:
        """Ends of subgraphs that no all-reduce explains."""

        def cuts(side: int, plan: SplitPlan) -> dict[int, tuple[int, int]]:
            summed = {r.after for r in plan.allreduces}
            return {self.numbers[side][s.stop - 1]: (s.stop - 1, s.graph) for s in plan.subgraphs if s.stop > s.start and s.stop - 1 not in summed}

        a, b = cuts(0, self.before), cuts(1, self.after)
        for number in dict.fromkeys((*a, *b)):
            x, y = a.get(number), b.get(number)
            if (x is None) != (y is None) or (x and y and x[1] != y[1]):
                side, (index, _) = (1, y) if y is not None else (0, x or (0, 0))
                node = (self.before, self.after)[side].nodes[index]
                status = "added" if x is None else "removed" if y is None else "changed"
                change = Change("graph", None if x is None else x[1], None if y is None else y[1])
                yield Difference("cut", _label(node), "", self.layers[side][index], status, (change,))


_NODE_FIELDS = tuple(f.name for f in fields(PlanNode) if f.name not in ("index", "name", "label", "subgraph"))
_LEAF_FIELDS = tuple(f.name for f in fields(PlanLeaf) if f.name not in ("index", "name", "label"))


def _label(x: PlanNode | PlanLeaf) -> str:
    name = x.label or x.name
    copy = _COPY.fullmatch(name) if isinstance(x, PlanLeaf) else None
    return copy[1] if copy else name or f"{'node' if isinstance(x, PlanNode) else 'leaf'} {x.index}"


def _rule_key(rule: PlanRule) -> Any:
    return replace(rule, index=0, number=0)


def _rules(before: Sequence[PlanRule], after: Sequence[PlanRule]) -> Iterator[Difference]:
    """Rules that came, went, or say something else now. Their order matters: one that moved is gone, and has come."""
    a, b = [_rule_key(r) for r in before], [_rule_key(r) for r in after]
    partner = _in_order(a, b)
    gone = [i for i in range(len(a)) if i not in partner]
    new = [k for k in range(len(b)) if k not in set(partner.values())]
    for i in gone:
        same = next((k for k in new if (b[k].origin, b[k].pattern) == (a[i].origin, a[i].pattern) and b[k] != a[i]), None)
        if same is None:
            yield Difference("rule", a[i].pattern, a[i].origin, None, "removed", (Change("rule", _rule_text(a[i]), None),))
        else:
            new.remove(same)
            yield Difference("rule", a[i].pattern, a[i].origin, None, "changed", (Change("rule", _rule_text(a[i]), _rule_text(b[same])),))
    for k in new:
        yield Difference("rule", b[k].pattern, b[k].origin, None, "added", (Change("rule", None, _rule_text(b[k])),))


def _rule_text(rule: PlanRule) -> str:
    more = (f", {rule.units} units" if rule.units is not None else "") + (f", in steps of {rule.granularity}" if rule.granularity != 1 else "")
    return rule.split + more


def _step_changes(a: AllReduce, b: AllReduce) -> Iterator[Change]:
    if a.steps == b.steps:
        return
    changes = Change("bytes sent", a.sent, b.sent), Change("bytes received", a.received, b.received)
    found = [c for c in changes if c.differs]
    yield from found or (Change("steps", _steps(a), _steps(b)),)


def _steps(r: AllReduce) -> str | None:
    if r.steps is None:
        return None
    words = (f"{s.kind} {'' if s.source is None else f'{s.source}>'}{s.target}" for s in r.steps)
    return "; ".join(f"{s.round}: {word} {s.bytes}" for s, word in zip(r.steps, words, strict=True))


def _split(x: PlanNode | PlanLeaf) -> str:
    text = "none" if x.split is None else str(x.split)
    if isinstance(x, PlanNode) and x.pending:
        return "(P)" if text == "M" else f"(P) {text}"
    return text


def _dims(ne: Sequence[int]) -> str:
    n = max((k + 1 for k in range(len(ne)) if ne[k] != 1), default=1)
    return "x".join(map(str, ne[:n]))


def _brief(x: PlanNode | PlanLeaf) -> str:
    return f"{x.type} {_dims(x.ne)}, {_split(x)}"


def _readable(name: str, value: Any) -> Value:
    if name == "ne":
        return _dims(value)
    if name == "flags":
        return ", ".join(word for bit, word in _FLAGS.items() if value & bit) or "none"
    if name == "synced":
        return "none" if value is None else str(value)
    if name == "runs":
        return "in order" if value is None else " | ".join(",".join(f"{a}-{a + n - 1}" for a, n in at) or "-" for at in value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, tuple):
        return tuple(_readable("", v) for v in value)
    return str(value)


def _slice_changes(a: PlanNode | PlanLeaf, b: PlanNode | PlanLeaf) -> Iterator[Change]:
    def shapes(x: PlanNode | PlanLeaf) -> Value:
        idle = set(x.zero_share) if isinstance(x, PlanNode) else {j for j, s in enumerate(x.slices) if s.empty}
        return tuple("-" if j in idle else _dims(s.ne) for j, s in enumerate(x.slices))

    def each(of: Callable[[Slice], Value]) -> tuple[Value, Value]:
        return tuple(map(of, a.slices)), tuple(map(of, b.slices))

    changes = (
        Change("per device", shapes(a), shapes(b)),
        Change("bytes per device", *each(lambda s: s.bytes)),
        Change("computed", *each(lambda s: s.compute)),
        Change("strides", *each(lambda s: s.nb)),
    )
    found = [c for c in changes if c.differs]
    if not found:
        found = [Change("slices", *each(lambda s: s.ne))]  # only an empty slice's shape
    yield from (c for c in found if not _same_for_all(c))


def _same_for_all(change: Change) -> bool:
    """Whether every device has the same, before and after: there are only more devices, or fewer."""
    both = change.before, change.after
    if not all(isinstance(v, tuple) for v in both):
        return False
    return len({len(v) for v in both if isinstance(v, tuple)}) == 2 and len({x for v in both if isinstance(v, tuple) for x in v}) == 1


#
# matching
#


def _matched(
    before: Sequence[PlanNode | PlanLeaf], after: Sequence[PlanNode | PlanLeaf], op: Callable[[PlanNode | PlanLeaf], str]
) -> list[tuple[int | None, int | None, bool]]:
    """Pairs of indices in the order of both; whether they are out of order; None: it has come, or is gone."""
    a = [(layer_of(_COPY.sub(r"\1", x.name)), op(x)) for x in before]
    b = [(layer_of(_COPY.sub(r"\1", x.name)), op(x)) for x in after]
    # what has no name of its own is known by its shape first
    partner = _in_order([_with_shape(key, x) for key, x in zip(a, before, strict=True)], [_with_shape(key, x) for key, x in zip(b, after, strict=True)])
    pairs = [*sorted(partner.items()), (len(a), len(b))]
    i = k = 0
    for x, y in pairs:
        partner.update((i + p, k + q) for p, q in _in_order(a[i:x], b[k:y]).items())
        i, k = x + 1, y + 1
    moved = set()
    for strict in (True, False):
        # what has a name of its own, and is elsewhere now; then: is another operation now
        rest_a, rest_b = set(range(len(a))) - set(partner), set(range(len(b))) - set(partner.values())
        where = _unique((b[k] if strict else b[k][0], k) for k in sorted(rest_b) if not is_auto(after[k].name))
        for own, i in _unique((a[i] if strict else a[i][0], i) for i in sorted(rest_a) if not is_auto(before[i].name)).items():
            if own in where:
                partner[i] = where[own]
                moved.add(i)
    out: list[tuple[int | None, int | None, bool]] = []
    gone, last = [i for i in range(len(a)) if i not in partner], 0
    back = {k: i for i, k in partner.items()}
    out_of_order = moved - _rising(partner)
    for k in range(len(b)):
        found = back.get(k)
        if found is None:
            out.append((None, k, False))
            continue
        while last < len(gone) and gone[last] < found and found not in out_of_order:
            out.append((gone[last], None, False))
            last += 1
        out.append((found, k, found in out_of_order))
    out += [(i, None, False) for i in gone[last:]]
    return out


def _with_shape(key: Hashable, x: PlanNode | PlanLeaf) -> Hashable:
    return (key, x.type, x.ne) if is_auto(x.name) else key


def _rising(partner: Mapping[int, int]) -> set[int]:
    """The largest part of the pairs that is in the order of both sides."""
    order = sorted(partner)
    return {order[p] for p in _longest_rise([partner[i] for i in order])}


def _unique(items: Any) -> dict[Any, int]:
    found = list(items)
    count = Counter(key for key, _ in found)
    return {key: at for key, at in found if count[key] == 1}


def _in_order(a: Sequence[Hashable], b: Sequence[Hashable]) -> dict[int, int]:
    """Which of `b` each of `a` is, in order: by what occurs once in both, then between those."""
    out: dict[int, int] = {}
    todo = [(0, len(a), 0, len(b))]
    while todo:
        i, i_stop, k, k_stop = todo.pop()
        while i < i_stop and k < k_stop and a[i] == b[k]:
            out[i] = k
            i, k = i + 1, k + 1
        while i < i_stop and k < k_stop and a[i_stop - 1] == b[k_stop - 1]:
            i_stop, k_stop = i_stop - 1, k_stop - 1
            out[i_stop] = k_stop
        if i == i_stop or k == k_stop:
            continue
        in_a, in_b = _unique((a[x], x) for x in range(i, i_stop)), _unique((b[x], x) for x in range(k, k_stop))
        both = [(at, in_b[key]) for key, at in in_a.items() if key in in_b]
        fixed = [both[p] for p in _longest_rise([y for _, y in both])]
        if fixed:
            for x, y in (*fixed, (i_stop, k_stop)):
                todo.append((i, x, k, y))
                if x < i_stop:
                    out[x] = y
                i, k = x + 1, y + 1
        elif (i_stop - i) * (k_stop - k) <= _EXACT:
            for block in SequenceMatcher(None, a[i:i_stop], b[k:k_stop], autojunk=False).get_matching_blocks():
                out.update((i + block.a + n, k + block.b + n) for n in range(block.size))
        else:
            out.update(_by_occurrence(a, range(i, i_stop), b, range(k, k_stop)))
    return out


def _by_occurrence(a: Sequence[Hashable], of_a: Collection[int], b: Sequence[Hashable], of_b: Collection[int]) -> Iterator[tuple[int, int]]:
    """The first with the first of the same name, and so on, as far as the order allows."""
    where: dict[Hashable, list[int]] = {}
    for y in of_b:
        where.setdefault(b[y], []).append(y)
    used: Counter[Hashable] = Counter()
    pairs = []
    for x in of_a:
        places = where.get(a[x], ())
        if used[a[x]] < len(places):
            pairs.append((x, places[used[a[x]]]))
            used[a[x]] += 1
    for p in _longest_rise([y for _, y in pairs]):
        yield pairs[p]


def _longest_rise(values: Sequence[int]) -> list[int]:
    """Places of the longest rising subsequence of different numbers."""
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for p, value in enumerate(values):
        at = bisect_left(tails, value)
        before.append(ends[at - 1] if at else -1)
        if at == len(tails):
            tails.append(value)
            ends.append(p)
        else:
            tails[at], ends[at] = value, p
    out = []
    p = ends[-1] if ends else -1
    while p >= 0:
        out.append(p)
        p = before[p]
    return out[::-1]
