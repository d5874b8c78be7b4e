"""What there is to show of a plan, before it is a table, a tree, a page, a drawing or a file.

Every view (terminal, notebook, page, Graphviz, Mermaid, CSV) takes its words, numbers and order from here, so that they
cannot say different things. Shapes and axes are in ggml's order, axis 0 contiguous.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from .._units import binary, counted, percent, ranges
from ..errors import ArgumentError
from ..plan import AllReduce, PlanLeaf, PlanNode, SplitPlan
from .fold import Stretch, layer_of, leafs_first_read, stretches

if TYPE_CHECKING:
    from ..tracing import Trace

__all__ = ["MEMORY", "Content", "Item", "Measured", "MemoryOf", "Piece", "Reduce", "dims", "layers_words", "split_counts"]

_PENDING_NOTE = "(P): a sum that an all-reduce further down completes"
_UNSUMMED_NOTE = "(P): a sum that no all-reduce completes, since the graph ends: whoever reads it adds the devices' summands up"

_UNSUMMED = "The graph ends before an all-reduce: whoever reads it adds the summands up."

MEMORY = (
    ("weights", "slices of split weights"),
    ("mirrored", "weights that every device has whole"),
    ("cache", "placed once: KV caches, recurrent states"),
    ("compute", "buffers of the graph: inputs and everything computed"),
    ("reduction", "where the butterfly puts the other devices' summands"),
)
"""The parts of a device's memory, in the order of `MemoryOf.parts`."""


@dataclass(frozen=True, slots=True)
class Item:
    """A node or a leaf, in words."""

    number: int
    """As sources count: nodes first, leafs behind them."""
    tensor: PlanNode | PlanLeaf
    name: str
    """To show: never empty."""
    what: str
    """``node``, ``view``, or the kind of a leaf."""
    ne: str
    split: str
    look: str
    """``M``, ``P``, ``S`` or nothing: for colours. What is pending looks like ``P``."""
    held: tuple[str, ...]
    """The shape that each device has; ``-`` for nothing."""
    layer: int | None
    marks: tuple[str, ...]
    """``in``, ``out``."""

    @property
    def is_leaf(self) -> bool:
        """Whether the graph only reads it."""
        return isinstance(self.tensor, PlanLeaf)

    @property
    def title(self) -> str:
        """The name with its marks: ``result_output (out)``."""
        return self.name + "".join(f" ({m})" for m in self.marks)

    @property
    def op(self) -> str:
        """The operation; of a leaf what it is."""
        return self.what if isinstance(self.tensor, PlanLeaf) else self.tensor.op

    @property
    def subgraph(self) -> int | None:
        """The subgraph that computes it."""
        return self.tensor.subgraph if isinstance(self.tensor, PlanNode) else None

    @property
    def per_device(self) -> str:
        """`held` in one cell: ``192 | 64``, ``64 each``."""
        words = list(self.held)
        if not words:
            return ""
        if len(set(words)) == 1:
            return f"{words[0]} each"
        groups: list[list[str]] = []
        for word in words:
            if groups and groups[-1][0] == word and len(words) > 3:
                groups[-1].append(word)
            else:
                groups.append([word])
        return " | ".join(g[0] if len(g) == 1 else f"{g[0]} ({len(g)} times)" for g in groups)


@dataclass(frozen=True, slots=True)
class Reduce:
    """An all-reduce, in words."""

    of: AllReduce
    after: str
    text: str
    """In one line."""
    facts: tuple[tuple[str, str], ...]
    """Heading and words, one by one."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring nodes ``start`` to ``stop - 1`` of one layer, or of none."""

    layer: int | None
    start: int
    stop: int
    alike: tuple[int, ...]
    """The layers whose nodes are the same, itself included; empty without a layer."""
    alike_with_leafs: tuple[int, ...]
    """Those whose weights, caches and inputs are the same, too."""


@dataclass(frozen=True, slots=True)
class MemoryOf:
    """Bytes on one device, by `MEMORY`."""

    name: str
    parts: tuple[int, ...]
    share: float
    """Of the bytes of all split weights, as a fraction."""
    capacity: int = 0
    """What the device has; 0: not known."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts)

    @property
    def room(self) -> str:
        """How much that is of what the device has: ``of 24.00 GiB``; nothing where it is not known."""
        if not self.capacity:
            return ""
        over = self.total - self.capacity
        return f"of {binary(self.capacity)}" + (f", {binary(over)} too much" if over > 0 else "")


@dataclass(frozen=True, slots=True)
class Measured:
    """The times of one subgraph of the plan: means over runs, in microseconds for each device; None where it had no part."""

    compute: tuple[float | None, ...]
    wait: tuple[float | None, ...]
    """For other devices, in the sum behind it."""
    reduce: tuple[float | None, ...]
    """The sum behind it."""


class Content:
    """A plan's content. What costs time is made when it is first asked for.

    Args:
        plan: the plan.
        trace: measured times of runs of it.

    Raises:
        ArgumentError: the trace has no run of this plan, or not its devices.
    """

    def __init__(self, plan: SplitPlan, trace: Trace | None = None) -> None:
        self.plan = plan
        self.measured: tuple[Measured | None, ...] | None = None
        self.n_runs = 0
        if trace is not None:
            self.measured, self.n_runs = _measured(plan, trace)

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """All nodes, then all leafs: an item's place is its number."""
        n = len(self.plan.nodes)
        return tuple(_item(x, x.index) for x in self.plan.nodes) + tuple(_item(x, n + x.index) for x in self.plan.leafs)

    @cached_property
    def reduces(self) -> dict[int, Reduce]:
        """All-reduces by the node that they follow."""
        return {r.after: self._reduce(r) for r in self.plan.allreduces}

    @cached_property
    def first_read(self) -> dict[int | None, list[Item]]:
        """The leafs by the node that reads them first; under None those that belong to no layer."""
        n, items = len(self.plan.nodes), self.items
        return {at: [items[n + leaf.index] for leaf in leafs] for at, leafs in leafs_first_read(self.plan).items()}

    def stretches(self, *, fold: bool, leafs: bool = False) -> list[Stretch]:
        """See `fold.stretches`."""
        return stretches(self.plan, fold=fold, leafs=leafs)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The graph cut at the borders of layers: all of it, with what folding would put together."""
        groups = []
        for leafs in (False, True):
            found = self.stretches(fold=True, leafs=leafs)
            groups.append({layer: s.layers for s in found for layer in s.layers})
        nodes, with_leafs = groups
        return tuple(
            Piece(s.layer, s.start, s.stop, *((), ()) if s.layer is None else (nodes[s.layer], with_leafs[s.layer]))
            for s in self.stretches(fold=False)
        )

    @cached_property
    def layers(self) -> tuple[int | None, ...]:
        """The layer of every item: of a node that of its piece, of a leaf the one in its name."""
        out = [x.layer for x in self.items]
        for p in self.pieces:
            out[p.start : p.stop] = [p.layer] * (p.stop - p.start)
        return tuple(out)

    @cached_property
    def memory(self) -> tuple[MemoryOf, ...]:
        """Bytes of each device. Padding, and weights that this graph does not read, count as slices of split weights."""
        plan = self.plan
        read, shares = plan.weight_bytes(), plan.share_of_weights()
        out = []
        for m, w, share in zip(plan.memory, read, shares, strict=True):
            mirrored = min(m.mirrored or w.mirrored, m.weights)
            out.append(MemoryOf(m.name, (m.weights - mirrored, mirrored, m.fixed, m.compute, m.reduction), share, m.capacity))
        return tuple(out)

    @cached_property
    def headline(self) -> tuple[tuple[str, str], ...]:
        """What there is of what: pairs of a number and its noun."""
        plan = self.plan
        n_graphs = len({s.graph for s in plan.subgraphs})
        pairs = [
            _pair(len(plan.devices), "device"),
            _pair(len(plan.nodes), "node"),
            _pair(len(plan.subgraphs), "subgraph"),
            _pair(len(plan.allreduces), "all-reduce"),
            (binary(plan.allreduce_bytes), "summed a run"),
        ]
        if n_graphs > 1:
            pairs.insert(1, _pair(n_graphs, "graph"))
        return tuple(pairs)

    # words

    def name(self, number: int) -> str:
        """The name to show of a node or leaf."""
        return self.items[number].name

    def meaning(self, item: Item) -> str:
        """What the split of a node or leaf means, in a sentence or two."""
        x, devices = item.tensor, self.plan.devices
        if x.split is None:
            return "On no device of the meta device: the host has it, or it is empty."
        if isinstance(x, PlanNode) and x.pending:
            if x.subgraph in self._unsummed:
                return f"Pending: computed from a partial sum, so every device has a summand of it. {_UNSUMMED}"
            return (
                "Pending: computed from a partial sum whose all-reduce was delayed, so every device has a summand of it. "
                "The all-reduce further down completes it."
            )
        if x.split.axis == "M":
            return f"Mirrored: {_all_of(devices)} {'has' if isinstance(x, PlanLeaf) or x.is_view else 'computes'} all of it."
        if x.split.axis == "P":
            idle = [d for d, s in zip(devices, x.slices, strict=True) if not s.compute] if isinstance(x, PlanNode) else []
            rest = f" {_and(idle)} {'has' if len(idle) == 1 else 'have'} no share and {'counts' if len(idle) == 1 else 'count'} as zero." if idle else ""
            whole = f"Partial: {'a device' if idle else 'every device'} has a summand of the whole tensor"
            if isinstance(x, PlanNode) and x.subgraph in self._unsummed:
                return f"{whole}. {_UNSUMMED}{rest}"
            return f"{whole}, and an all-reduce adds them up.{rest}"
        axis, counts = int(x.split.axis), x.split.counts
        parts = ", ".join(f"{d} has {c}" if c else f"{d} nothing" for d, c in zip(devices, counts, strict=True))
        if len(counts) > 3 and len(set(counts)) == 1:
            parts = f"each device has {counts[0]}"
        text = f"Split along axis {axis} ({counted(x.ne[axis], 'index', 'indices')}): {parts}."
        n_bands = len(self.bands(item))
        if n_bands > len(devices):
            text += f" The axis is dealt out in {n_bands} stretches."
        return text

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What the splits in brackets mean, where there are some."""
        ends = {x.subgraph in self._unsummed for x in self.plan.nodes if x.pending}
        return tuple(_UNSUMMED_NOTE if unsummed else _PENDING_NOTE for unsummed in sorted(ends))

    @cached_property
    def _unsummed(self) -> frozenset[int]:
        """The subgraphs that no all-reduce follows."""
        return frozenset(range(len(self.plan.subgraphs))) - {r.subgraph for r in self.plan.allreduces}

    def asked(self, item: Item) -> str:
        """What share of a leaf was asked for, where it is not what it got."""
        leaf = item.tensor
        counts = leaf.split.counts if leaf.split is not None else ()
        if not isinstance(leaf, PlanLeaf) or leaf.asked is None or len(counts) != len(leaf.asked) or not sum(counts):
            return ""
        got = [c / sum(counts) for c in counts]
        if all(abs(a - g) <= 0.005 for a, g in zip(leaf.asked, got, strict=True)):
            return ""
        asked = " : ".join(percent(a) for a in leaf.asked)
        return f"Asked for {asked}, got {' : '.join(percent(g) for g in got)}: shares are rounded to the tensor's granularity."

    def bands(self, item: Item) -> tuple[tuple[int, int, int], ...]:
        """Device, start and length of the stretches of the split axis, from its beginning; nothing where it is whole."""
        x = item.tensor
        if x.split is None or not isinstance(x.split.axis, int):
            return ()
        if x.runs is not None:
            return tuple(sorted(((j, a, n) for j, at in enumerate(x.runs) for a, n in at if n), key=lambda b: b[1]))
        out: list[tuple[int, int, int]] = []
        at = 0
        for segment in x.split.segments:
            for _ in range(segment.nr):
                for j, n in enumerate(segment.ne):
                    if n and out and out[-1][0] == j:
                        out[-1] = j, out[-1][1], out[-1][2] + n
                    elif n:
                        out.append((j, at, n))
                    at += n
        return tuple(out)

    def _reduce(self, r: AllReduce) -> Reduce:
        plan = self.plan
        after = self.name(r.after)
        text = f"all-reduce {binary(r.bytes)}, after {r.after_name or f'node {r.after}'}"
        origins = ", ".join(name or f"node {i}" for name, i in zip(r.delayed_from, r.origins, strict=False))
        notes = []
        if r.delayed:
            notes.append(f"{'merged, ' if len(r.origins) > 1 else ''}delayed from {origins} over {counted(r.over, 'node')}")
        idle = [plan.devices[j] for j, c in enumerate(r.computes) if not c]
        if idle:
            notes.append(f"nothing from {', '.join(idle)}")
        facts = [
            ("payload", f"{binary(r.bytes)} ({r.bytes:,} bytes)" if r.bytes >= 1024 else f"{r.bytes} bytes"),
            ("tensor", f"{r.type} {dims(r.ne)}"),
            ("algorithm", r.how),
            ("summands from", _and(d for d, c in zip(plan.devices, r.computes, strict=True) if c)),
        ]
        if idle:
            facts.append(("nothing from", _and(idle)))
        if r.delayed:
            merged = "; one sum for all of them" if len(r.origins) > 1 else ""
            facts.append(("delayed", f"summed here instead of directly after {origins}, {counted(r.over, 'node')} earlier{merged}"))
        if r.why:
            facts.append(("why", r.why))
        if r.sent is not None and r.received is not None:
            facts.append(("sent", _by_device(plan.devices, r.sent)))
            facts.append(("received", _by_device(plan.devices, r.received)))
        if r.steps:
            rounds = len({s.round for s in r.steps})
            facts.append(("steps", f"{len(r.steps)} in {counted(rounds, 'round')}"))
        return Reduce(r, after, text + (f" ({'; '.join(notes)})" if notes else ""), tuple(facts))

    def piece_title(self, layers: tuple[int, ...], start: int, stop: int) -> str:
        """``layers 0-79``, ``layer 3``, or the nodes from first to last."""
        if layers:
            return layers_words(layers)
        first, last = self.items[start], self.items[stop - 1]
        return first.title if stop - start == 1 else f"{first.title} … {last.title}"

    def reduces_in(self, start: int, stop: int) -> list[Reduce]:
        """The all-reduces behind nodes ``start`` to ``stop - 1``."""
        return [self.reduces[i] for i in range(start, stop) if i in self.reduces]


def _measured(plan: SplitPlan, trace: Trace) -> tuple[tuple[Measured | None, ...], int]:
    from ..tracing import Trace

    if not isinstance(trace, Trace):
        raise ArgumentError(f"expected a Trace, got {type(trace).__name__}: take one with `with pyggml.trace() as trace:`")
    names = [d.name for d in trace.devices]
    missing = [d for d in plan.devices if d not in names]
    if missing:
        raise ArgumentError(f"the trace has no device {_and(missing)}, which the plan is for; it has {_and(names)}: trace a run on the plan's devices")
    at = [names.index(d) for d in plan.devices]

    def mine(times: tuple[float | None, ...]) -> tuple[float | None, ...]:
        return tuple(None if (t := times[j]) is None else t / 1000 for j in at)

    times = trace.times_by_subgraph(plan)
    found = {(t.graph, t.subgraph): Measured(mine(t.compute), mine(t.wait), mine(t.reduce)) for t in times}
    # graphs by their order in the plan, subgraphs by their order in the graph
    graphs = sorted({s.graph for s in plan.subgraphs})
    seen: Counter[int] = Counter()
    out = []
    for s in plan.subgraphs:
        out.append(found.get((graphs.index(s.graph), seen[s.graph])))
        seen[s.graph] += 1
    return tuple(out), max((t.runs for t in times), default=0)


def _pair(n: int, noun: str) -> tuple[str, str]:
    return f"{n:,}", counted(n, noun).split(" ", 1)[1]


def _and(words: Iterable[str]) -> str:
    *most, last = list(words) or ["no device"]
    return f"{', '.join(most)} and {last}" if most else last


def _by_device(devices: tuple[str, ...], sizes: tuple[int, ...]) -> str:
    if len(set(sizes)) == 1:
        return f"{binary(sizes[0])} by each device" if len(devices) > 1 else binary(sizes[0])
    return ", ".join(f"{d} {binary(n)}" for d, n in zip(devices, sizes, strict=True))


def _all_of(devices: tuple[str, ...]) -> str:
    return "each device" if len(devices) > 1 else devices[0] if devices else "no device"


def layers_words(layers: tuple[int, ...]) -> str:
    """``layers 0-79``, ``layer 3``; of many stretches the first three and the last."""
    parts = ranges(layers).split(", ")
    if len(parts) > 6:
        parts[3:-1] = ["…"]
    return f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(parts).replace('…,', '…')}"


@lru_cache(maxsize=4096)
def dims(ne: tuple[int, ...]) -> str:
    """A shape without the axes of length one at its end."""
    n = max((k + 1 for k in range(4) if ne[k] != 1), default=1)
    return "x".join(map(str, ne[:n]))


def _item(x: PlanNode | PlanLeaf, number: int) -> Item:
    is_node = isinstance(x, PlanNode)
    pending = isinstance(x, PlanNode) and x.pending
    idle = set(x.zero_share) if isinstance(x, PlanNode) else {j for j, s in enumerate(x.slices) if s.empty}
    marks = tuple(m for m, is_it in (("in", x.is_input), ("out", x.is_output)) if is_it) if isinstance(x, PlanNode) else ()
    look = ""
    if pending:
        look = "P"
    elif x.split is not None:
        look = "S" if isinstance(x.split.axis, int) else x.split.axis
    shown = x.label or x.name
    if not shown or shown.startswith(" "):
        # ggml names a view after its source, which may have none: " (reshaped)"
        shown = f"{'node' if is_node else 'leaf'} {x.index}{x.name}"
    return Item(
        number,
        x,
        shown,
        ("view" if x.is_view else "node") if isinstance(x, PlanNode) else x.kind,
        dims(x.ne),
        "(P)" if pending else "" if x.split is None else str(x.split),
        look,
        tuple("-" if j in idle else dims(s.ne) for j, s in enumerate(x.slices)),
        layer_of(x.name)[0],
        marks,
    )


def split_counts(nodes: Iterable[PlanNode]) -> str:
    """How many nodes have which split: ``M 12, P 2, S0 4, S1 9``."""
    count: Counter[str] = Counter()
    for x in nodes:
        if x.pending:
            count["(P)"] += 1
        elif x.split is not None:
            count[f"S{x.split.axis}" if isinstance(x.split.axis, int) else x.split.axis] += 1
    return ", ".join(f"{k} {count[k]}" for k in ("M", "P", "(P)", "S0", "S1", "S2", "S3") if count[k])
