"""Why a tensor is split as it is: the chain of causes from a node back to what was decided (docs/plan-explain.md).

A node's causes are those of its sources whose splits decide its own, given that the whole plan is legal. The chain ends at
weights, caches and inputs, which rules or defaults decided, and at nodes that an all-reduce made whole: whatever comes behind
a sum is whole because of the sum. Everything here is read off the plan; no split is inferred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._units import counted
from .values import VIEW_OPS, AllReduce, PlanLeaf, PlanNode, PlanRule

if TYPE_CHECKING:
    from .plan import SplitPlan

__all__ = ["Explainer", "Explanation", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain."""

    number: int
    """Which tensor: below ``len(plan.nodes)`` a node, else a leaf, as in `PlanNode.sources`."""
    tensor: str
    """Its name to read."""
    kind: str
    """Of nodes ``split``, ``partial``, ``mirrored``, ``summand`` (computed from a sum that is not completed yet), ``summed``
    (the chain ends: an all-reduce made it whole), ``nothing`` (it has no elements, or no device has it); of leafs the kind
    of their `Cause`, or ``unknown``."""
    text: str
    """In words."""
    causes: tuple[int, ...]
    """The tensors that decided; each has a step of its own."""
    partners: tuple[int, ...] = ()
    """Leafs that it reads besides, which must go with it: another split of them makes it illegal."""
    rule: int | None = None
    """Of a leaf: the index of the rule that decided, in ``plan.rules``."""
    depth: int = 0
    """Links from the node that is explained."""
    op: str = ""

    @property
    def passes(self) -> bool:
        """Whether it only hands on the split of one other tensor."""
        return len(self.causes) == 1 and not self.partners and self.kind in ("split", "mirrored", "summand")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a node or leaf is split as it is. ``str()`` gives it in words."""

    number: int
    """Which tensor, as in `Step.number`."""
    tensor: str
    """Its name to read."""
    split: str
    """Its split in short notation; ``-`` where it has none."""
    steps: tuple[Step, ...]
    """From the tensor back, causes behind what they cause. Every tensor once."""
    rules: tuple[PlanRule, ...]
    """The rules that are named: another split from any of them changes this tensor's, or makes the plan illegal."""
    text: str
    """The nearest cause in one sentence, with where the splits of the sources come from."""
    sums: tuple[int, ...]
    """The nodes behind which the chain ends, because an all-reduce makes them whole."""
    note: str = ""
    """What else is to know, such as that other nodes have the same name."""

    def lines(self) -> Iterator[tuple[int, str]]:
        """Depth and text of the steps; what only hands a split on is folded into the step behind it."""
        known = {s.number: s for s in self.steps}
        seen: set[int] = set()
        stack: list[tuple[int, int, tuple[str, ...]]] = [(self.number, 0, ())]
        while stack:
            number, depth, via = stack.pop()
            step = known[number]
            if number in seen:
                continue
            seen.add(number)
            if step.passes and depth:
                stack.append((step.causes[0], depth, (*via, step.op)))
                continue
            # nearest to the cause first, each op once in a row
            ops = [op for k, op in enumerate(via[::-1]) if not k or via[::-1][k - 1] != op]
            yield depth, (f"via {', '.join(ops)}: " if ops else "") + step.text
            if not step.passes or not depth:
                stack += [(c, depth + 1, ()) for c in reversed((*step.causes, *step.partners))]

    def __str__(self) -> str:
        lines = [f"{'  ' * depth}{text}" for depth, text in self.lines()]
        lines[0] = self.text
        if self.rules:
            lines.append("rules: " + "; ".join(map(str, self.rules)))
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


# By what is a whole result decided? Every one of these sources must be whole for it to be legal, so any one of them that is
# whole decides: those of "alike"; the first one: of "first"; only all together: the rest.
_FIRST = frozenset({
    "ADD_ID", "GET_ROWS", "SET_ROWS", "ROPE", "ROPE_BACK", "PAD", "FLASH_ATTN_EXT", "NORM", "RMS_NORM", "RMS_NORM_BACK", "GROUP_NORM", "L2_NORM",
    "SUM_ROWS", "CUMSUM", "MEAN", "ARGMAX", "COUNT_EQUAL", "ARGSORT", "TOP_K", "CONT", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE",
    "CROSS_ENTROPY_LOSS", "CROSS_ENTROPY_LOSS_BACK",
})  # fmt: skip
_ELEMENTWISE = frozenset({"ADD", "SUB", "MUL", "DIV"})
_TOGETHER = frozenset({"MUL_MAT", "MUL_MAT_ID", "CONCAT"})
_ROWS = frozenset({"NORM", "RMS_NORM", "L2_NORM", "SUM_ROWS", "CUMSUM", "MEAN", "ARGSORT", "TOP_K", "SOFT_MAX", "ROPE", "ROPE_BACK", "GROUP_NORM", "RMS_NORM_BACK", "ARGMAX"})


class Explainer:
    """Explanations of one plan; `SplitPlan.explain` makes one for one question.

    Args:
        plan: the plan. What decides every node is looked for once, in a few milliseconds for thousands of nodes.
    """

    def __init__(self, plan: SplitPlan) -> None:
        self.plan = plan
        self._n = len(plan.nodes)
        self._tensors: tuple[PlanNode | PlanLeaf, ...] = (*plan.nodes, *plan.leafs)
        self._summed_after = {i: r for r in plan.allreduces for i in range(min((*r.partial, r.after)), r.after + 1)}
        self._leaf_rules = [0 if x.cause is None or x.cause.rule is None else 1 << x.cause.rule for x in plan.leafs]
        self._of_name: dict[str, list[int]] = {}
        self._causes: list[tuple[int, ...]] = []
        self._partners: list[tuple[int, ...]] = []
        self._named: list[int] = []
        cost: list[tuple[int, int]] = []  # decisions on the way, links to the end
        for x in plan.nodes:
            causes = self._find(x, cost)
            partners = tuple(s for s in dict.fromkeys(x.sources) if s >= self._n and s not in causes and self._decided(s))
            if x.split is None:
                partners = ()
            named, decided, links = 0, 0, 0
            for s in (*causes, *partners):
                if s >= self._n:
                    named |= self._leaf_rules[s - self._n]
                    decided += self._decided(s)
                elif not self._ends_at(s, x):
                    named |= self._named[s]
                    decided += cost[s][0]
                    links = max(links, cost[s][1])
            self._causes.append(causes)
            self._partners.append(partners)
            self._named.append(named)
            cost.append((decided, links + 1))

    # what decides

    def _decided(self, number: int) -> bool:
        """Whether somebody decided about a leaf: inputs are whole whatever one does."""
        return number >= self._n and self.plan.leafs[number - self._n].kind in ("weight", "fixed")

    def _axis(self, number: int) -> int | str | None:
        """The split axis as a reader sees it: sums are completed."""
        x = self._tensors[number]
        state = x.synced if isinstance(x, PlanNode) else x.split
        return None if state is None else state.axis

    def _waiting(self, number: int, reader: PlanNode) -> bool:
        """Whether the reader sees a summand of it."""
        if number >= self._n:
            return self._axis(number) == "P"  # a partial bias
        x = self.plan.nodes[number]
        partial = x.pending or (x.split is not None and x.split.axis == "P")
        return partial and reader.pending and x.subgraph == reader.subgraph and number < reader.index

    def _ends_at(self, number: int, reader: PlanNode) -> bool:
        """Whether the chain ends at a source, which was summed before it is read."""
        if number >= self._n:
            return False
        x = self.plan.nodes[number]
        partial = x.pending or (x.split is not None and x.split.axis == "P")
        return number >= reader.index or (partial and not self._waiting(number, reader))

    def _find(self, x: PlanNode, cost: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """The sources whose splits decide a node's."""
        if x.split is None:
            return ()
        # a cast names itself as its destination
        sources = [s for s in dict.fromkeys(x.sources) if self._axis(s) is not None and (s >= self._n or s < x.index)]
        if x.pending:
            return tuple(s for s in sources if self._waiting(s, x))
        if x.split.axis != "M":
            return tuple(s for s in sources if isinstance(self._axis(s), int)) or tuple(sources)
        if not sources:
            return ()
        if x.op in _TOGETHER:
            return tuple(sources[:2])
        if x.op in _FIRST:
            return (sources[0],)
        if x.op in _ELEMENTWISE:
            # what is broadcast says nothing of what it is broadcast to
            sources = [s for k, s in enumerate(sources) if not k or self._tensors[s].ne == x.ne]

        def effort(number: int) -> tuple[int, int]:
            if number >= self._n:
                return int(self._decided(number)), 0
            return (0, 0) if self._ends_at(number, x) else cost[number]

        return (min(sources, key=effort),)

    def rules_of(self, number: int) -> tuple[PlanRule, ...]:
        """The rules that the explanation of a tensor names."""
        named = self._leaf_rules[number - self._n] if number >= self._n else self._named[number]
        return tuple(r for r in self.plan.rules if named >> r.index & 1)

    # in words

    def explain(self, number: int) -> Explanation:
        """Why a tensor is split as it is.

        Args:
            number: of the node; or ``len(plan.nodes)`` and the index of a leaf.
        """
        x = self._tensors[number]
        steps, sums = [], []
        seen = {number}
        stack: list[tuple[int, int, bool]] = [(number, 0, False)]
        while stack:
            at, depth, ends = stack.pop()
            step = self.step(at, ends, depth)
            steps.append(step)
            if ends:
                sums.append(at)
            for s in reversed((*step.causes, *step.partners)):
                if s not in seen:
                    seen.add(s)
                    stack.append((s, depth + 1, self.ends_at(s, at)))
        return Explanation(number, x.label, _text(x), tuple(steps), self.rules_of(number), self.headline(number), tuple(sorted(sums)), self._note(x))

    def headline(self, number: int) -> str:
        """The nearest cause of a tensor, with where the splits of its sources come from: `Explanation.text`."""
        x = self._tensors[number]
        return self._leaf_text(x) if isinstance(x, PlanLeaf) else self._node_text(x, self._causes[number], self._partners[number], True)

    def step(self, number: int, ends: bool = False, depth: int = 0) -> Step:
        """The one link of a tensor.

        Args:
            number: of the node or leaf.
            ends: the chain ends here, at a sum; see `ends_at`.
            depth: links from the tensor that is explained.
        """
        t = self._tensors[number]
        if isinstance(t, PlanLeaf):
            kind = "unknown" if t.cause is None else t.cause.kind
            return Step(number, t.label, kind, self._leaf_text(t), (), (), None if t.cause is None else t.cause.rule, depth, t.op)
        if ends:
            return Step(number, t.label, "summed", self._summed_text(t), (), (), None, depth, t.op)
        causes, partners = self._causes[number], self._partners[number]
        return Step(number, t.label, _kind(t), self._node_text(t, causes, partners, False), causes, partners, None, depth, t.op)

    def ends_at(self, cause: int, reader: int) -> bool:
        """Whether the chain ends at a cause of a node, because it was summed before the node reads it."""
        x = self._tensors[reader]
        return isinstance(x, PlanNode) and self._ends_at(cause, x)

    def _note(self, x: PlanNode | PlanLeaf) -> str:
        if not self._of_name:
            for node in self.plan.nodes:
                self._of_name.setdefault(node.name, []).append(node.index)
        alike = self._of_name[x.name] if isinstance(x, PlanNode) and x.name else []
        if len(alike) < 2:
            return ""
        return f"{len(alike)} nodes are named {x.name!r}: {', '.join(map(str, alike))}; this is {x.index}"

    def _roots(self, number: int) -> list[tuple[PlanLeaf, str]]:
        """The leafs from which a node has its split, each with the op that reads it."""
        found: dict[int, tuple[PlanLeaf, str]] = {}
        stack, seen = [number], {number}
        while stack and len(found) < 4:
            x = self.plan.nodes[stack.pop()]
            for s in reversed(self._causes[x.index]):
                if s >= self._n:
                    found.setdefault(s, (self.plan.leafs[s - self._n], x.op))
                elif s not in seen and not self._ends_at(s, x):
                    seen.add(s)
                    stack.append(s)
        return list(found.values())

    def _who(self, leaf: PlanLeaf) -> str:
        cause = leaf.cause
        if cause is None:
            return ""
        if cause.rule is not None:
            return self.plan.rules[cause.rule].title
        return {"policy": "llama.cpp's policy", "default": "no rule", "input": "an input"}.get(cause.kind, cause.kind)

    def _brief(self, number: int, reader: PlanNode, full: bool) -> str:
        """A source in a few words: ``ffn_gate_par-3` (S0)``; in full with ``from `ffn_up`, S1, via MUL_MAT``."""
        x = self._tensors[number]
        whole = reader.split is not None and reader.split.axis == "M" and not reader.pending  # goes without saying
        if isinstance(x, PlanLeaf):
            words = [w for w in (self._who(x), "M" if _axis_text(x) == "whole" else _axis_text(x)) if w]
            return f"`{x.label}` ({', '.join(words)})"
        if self._ends_at(number, reader):
            return f"`{x.label}` (summed)" if whole else f"`{x.label}` (whole: summed)"
        if whole:
            return f"`{x.label}`"
        if x.pending:
            return f"`{x.label}` (a summand)"
        if self._axis(number) == "M" or (x.split is not None and x.split.axis == "P"):
            return f"`{x.label}` ({_axis_text(x)})"
        roots = [(leaf, op) for leaf, op in (self._roots(number) if full else ()) if leaf.split is not None and isinstance(leaf.split.axis, int)]
        words = [f"`{leaf.label}`, {_axis_text(leaf)}, via {op}" for leaf, op in roots[:2]] + (["others"] if len(roots) > 2 else [])
        return f"`{x.label}` ({_axis_text(x)}{', from ' if words else ''}{_and(words) if words else ''})"

    def _leaf_text(self, x: PlanLeaf) -> str:
        said = self.plan.provenance(x) if x.split is not None else "it is empty, or the host's"
        text = f"`{x.label}` is {_state_text(x)}" + (f": {said}" if said else "")
        counts = x.split.counts if x.split is not None else ()
        if x.asked and sum(counts) and any(abs(c / sum(counts) - a) > 0.005 for c, a in zip(counts, x.asked, strict=False)):
            text += f"; asked for {':'.join(f'{a:.3g}' for a in x.asked)}, got {':'.join(f'{c / sum(counts):.3g}' for c in counts)}: rounded to whole units"
        return text

    def _summed_text(self, x: PlanNode) -> str:
        reduce = self._summed_after.get(x.index)
        if reduce is None:
            return f"`{x.label}` is whole: it is summed"
        after = self.plan.nodes[reduce.after]
        where = "after it" if after is x else f"after `{after.label}`"
        return f"`{x.label}` is whole: the devices' summands are added up {where} ({_size(reduce)})"

    def _node_text(self, x: PlanNode, causes: tuple[int, ...], partners: tuple[int, ...], full: bool) -> str:
        def brief(number: int) -> str:
            return self._brief(number, x, full)

        if x.split is None:
            return f"`{x.label}` has no split: it is empty, or on no device of the meta device"
        text = f"`{x.label}` is {_state_text(x)}"
        if not causes:
            return f"{text}: {x.op} makes it of nothing, on every device"
        reason = _because(x, [brief(s) for s in causes], self._axis(x.sources[0]))
        text += f" because {reason}"
        if partners:
            text += f"; {_and(map(brief, partners))} must go with it"
        reduce = self._summed_after.get(x.index)
        if reduce is not None and (reduce.after == x.index or x.split.axis == "P"):
            text += f"; summed {self._where(x, reduce)}: {_size(reduce)}"
        elif reduce is None and (x.pending or x.split.axis == "P"):
            text += "; no all-reduce follows: whoever reads it adds up the devices' summands"
        return text

    def _where(self, x: PlanNode, reduce: AllReduce) -> str:
        if reduce.after == x.index:
            return "after it"
        why = f" ({reduce.why})" if reduce.why else ""
        return f"later, after `{self.plan.nodes[reduce.after].label}`{why}"


def _kind(x: PlanNode) -> str:
    if x.split is None:
        return "nothing"
    if x.pending:
        return "summand"
    return {"M": "mirrored", "P": "partial"}.get(str(x.split.axis), "split")


def _text(x: PlanNode | PlanLeaf) -> str:
    return "-" if x.split is None else str(x.split)


def _axis_text(x: PlanNode | PlanLeaf) -> str:
    if x.split is None:
        return "on no device"
    return {"M": "whole", "P": "partial"}.get(str(x.split.axis), f"S{x.split.axis}")


def _state_text(x: PlanNode | PlanLeaf) -> str:
    if x.split is None:
        return "on no device"
    if isinstance(x, PlanNode) and x.pending:
        return "a summand on every device"
    return {"M": "mirrored", "P": "partial"}.get(str(x.split.axis), f"split {x.split}")


def _size(reduce: AllReduce) -> str:
    return f"{reduce.bytes:,} bytes x {counted(sum(reduce.computes), 'device')}"


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _because(x: PlanNode, names: list[str], first: int | str | None) -> str:
    """Why the causes decide, for this op. ``first``: the split axis of the op's first source."""
    all_of, op = _and(names), x.op
    be = "is" if len(names) == 1 else "are"
    both = "both " if len(names) == 2 else ""
    assert x.split is not None
    if x.pending:
        return f"{op} works on {all_of}, before the devices' summands are added up"
    axis = x.split.axis
    if op in ("MUL_MAT", "MUL_MAT_ID"):
        if axis == "P":
            return f"{both}{all_of} {be} split along the summed axis"
        if axis == "M":
            return f"{both}{all_of} {be} whole"
        if axis == 0 and len(names) == 1:
            return f"{op} makes one row of results for each row (axis 1) of {all_of}"
        if axis == 1 and len(names) == 1:
            return f"{op} works on each column (axis 1) of {all_of} by itself"
        return f"{op} works on each batch (axis {axis}) of {all_of} by itself"
    if axis == "M":
        if op in _ELEMENTWISE:
            return f"{op} works element by element, and {all_of} {be} whole"
        if op in VIEW_OPS:
            return f"it is the memory of {all_of} in another shape"
        if op == "CONCAT":
            return f"{both}{all_of} {be} whole"
        if op in _FIRST or len(set(x.sources)) == 1:
            return f"{all_of} {be} whole"
        return f"{op} needs all of its sources alike, and {all_of} {be} whole"
    if op in VIEW_OPS:
        moved = f": axis {first} of its source is axis {axis} here" if isinstance(first, int) and first != axis else ""
        return f"it is the memory of {all_of} in another shape{moved}"
    if op in ("CONT", "DUP"):
        return f"it is a copy of {all_of}"
    if op == "CPY":
        return f"{all_of} {be} split: each device copies its own elements to its own"
    if op == "SET_ROWS":
        return f"it is what rows are written into, with each device's own part of them: {all_of}"
    if op == "GET_ROWS":
        return f"each device takes its part of the rows of {all_of}"
    if op == "FLASH_ATTN_EXT":
        return f"each device computes attention for its own heads: {all_of}"
    if op in ("GATED_DELTA_NET", "SSM_SCAN"):
        return f"each device has its own heads: {all_of}"
    if op == "SSM_CONV":
        return f"each channel is convolved by itself: {all_of}"
    if op == "CONCAT":
        return f"{all_of} {be} joined along another axis than they are split along"
    if op == "REPEAT":
        return f"each device repeats its own part: {all_of}"
    if op in _ROWS:
        return f"{op} works on each row by itself: {all_of}"
    return f"{op} works element by element: {all_of}"
