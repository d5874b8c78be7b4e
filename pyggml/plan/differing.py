"""Finding what differs between two plans, for `SplitPlan.diff`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from .diff import Change, Difference, MemoryDifference, PlanDiff, Value, as_value
from .layers import layer_of, layers_of
from .matching import COPY, in_order, matched
from .values import AllReduce, Cause, PlanLeaf, PlanNode, PlanRule, Slice

if TYPE_CHECKING:
    from .plan import SplitPlan

__all__ = ["plan_diff"]

_FLAGS = {1: "input", 2: "output", 4: "param", 8: "loss", 16: "compute"}


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
    return tuple(Change(k, as_value(a.get(k)), as_value(b.get(k))) for k in dict.fromkeys((*a, *b)) if a.get(k) != b.get(k) or (k in a) != (k in b))


class _Finder:
    """Matches the tensors of two plans, and looks at each pair."""

    def __init__(self, before: SplitPlan, after: SplitPlan) -> None:
        self.before, self.after = before, after
        self.nodes = matched(before.nodes, after.nodes, lambda x: x.op)
        self.leafs = matched(before.leafs, after.leafs, lambda _: "")
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
    copy = COPY.fullmatch(name) if isinstance(x, PlanLeaf) else None
    return copy[1] if copy else name or f"{'node' if isinstance(x, PlanNode) else 'leaf'} {x.index}"


def _rule_key(rule: PlanRule) -> Any:
    return replace(rule, index=0, number=0)


def _rules(before: Sequence[PlanRule], after: Sequence[PlanRule]) -> Iterator[Difference]:
    """Rules that came, went, or say something else now. Their order matters: one that moved is gone, and has come."""
    a, b = [_rule_key(r) for r in before], [_rule_key(r) for r in after]
    partner = in_order(a, b)
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
