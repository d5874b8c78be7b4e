"""The rows of a plan's table, before they are text, HTML or anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .._units import binary, counted, ranges
from ..errors import ArgumentError
from ..plan import AllReduce, Detail, PlanLeaf, PlanNode, SplitPlan
from .fold import Stretch, leafs_first_read, stretches

__all__ = ["COLUMNS", "LAYER_COLUMNS", "PENDING_NOTE", "Row", "columns", "has_pending", "rows", "split_counts"]

COLUMNS = ("node", "op", "type", "ne", "split", "per device", "subgraph", "all-reduce")
LAYER_COLUMNS = ("layers", "times", "nodes", "split", "all-reduces", "all-reduce bytes")
DETAILS = ("layers", "nodes", "all")
PENDING_NOTE = "(P): a sum that an all-reduce further down completes"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: cells under the columns, or a text across all of them."""

    kind: str
    """``node``, ``view``, ``leaf``, ``layer``, ``reduce`` or ``group``; the last two go across."""
    cells: tuple[str, ...]
    split: str = ""
    """``M``, ``P``, ``S`` or nothing, for colours."""


def columns(detail: Detail) -> tuple[str, ...]:
    """The heads of the columns."""
    return LAYER_COLUMNS if detail == "layers" else COLUMNS


def rows(plan: SplitPlan, detail: Detail, fold: bool) -> list[Row]:
    """All lines of the table."""
    if detail not in DETAILS:
        raise ArgumentError(f"detail={detail!r}: one of {', '.join(DETAILS)}")
    if detail == "layers":
        return [_layer_row(plan, s) for s in stretches(plan, fold=fold)]
    pieces = stretches(plan, fold=fold, leafs=detail == "all")
    reduces = {r.after: r for r in plan.allreduces}
    read = leafs_first_read(plan) if detail == "all" else {}
    out = [_leaf_row(leaf) for leaf in read.get(None, ())]
    open_group: tuple[int, ...] = ()
    for piece in pieces:
        # a title where a group of several layers begins, and a line where it ends
        if len(piece.layers) > 1 and piece.layers != open_group:
            out.append(Row("group", (_title(plan, piece),)))
        elif len(open_group) > 1 and piece.layers != open_group:
            what = f"layer {piece.layer}" if piece.layer is not None else "once"
            out.append(Row("group", (what,)))
        open_group = piece.layers
        for x in plan.nodes[piece.start : piece.stop]:
            out += [_leaf_row(leaf) for leaf in read.get(x.index, ())]
            reduce = reduces.get(x.index)
            if detail == "all" or not x.is_view or reduce is not None:
                out.append(_node_row(x, reduce))
            if reduce is not None:
                out.append(Row("reduce", (_reduce_text(plan, reduce),)))
    return out


def _title(plan: SplitPlan, piece: Stretch) -> str:
    n = len(piece.layers)
    return f"layers {ranges(piece.layers)}: {n} x, shown is {piece.layer}"


def _reduce_text(plan: SplitPlan, r: AllReduce) -> str:
    text = f"all-reduce {binary(r.bytes)}, after {r.after_name or f'node {r.after}'}"
    notes = []
    if r.delayed:
        names = ", ".join(name or f"node {i}" for name, i in zip(r.delayed_from, r.origins, strict=True))
        notes.append(f"{'merged, ' if len(r.origins) > 1 else ''}delayed from {names} over {counted(r.over, 'node')}")
    idle = [plan.devices[j] for j, c in enumerate(r.computes) if not c]
    if idle:
        notes.append(f"nothing from {', '.join(idle)}")
    return text + (f" ({'; '.join(notes)})" if notes else "")


def _dims(ne: tuple[int, ...]) -> str:
    n = max((k + 1 for k in range(4) if ne[k] != 1), default=1)
    return "x".join(map(str, ne[:n]))


def _slices_text(x: PlanNode | PlanLeaf) -> str:
    idle = set(x.zero_share) if isinstance(x, PlanNode) else {j for j, s in enumerate(x.slices) if s.empty}
    words = [("-" if j in idle else _dims(s.ne)) for j, s in enumerate(x.slices)]
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


def _kind_of(x: PlanNode | PlanLeaf) -> str:
    if isinstance(x, PlanNode) and x.pending:
        return "P"
    if x.split is None:
        return ""
    return "S" if isinstance(x.split.axis, int) else x.split.axis


def _split_text(x: PlanNode | PlanLeaf) -> str:
    if isinstance(x, PlanNode) and x.pending:
        return "(P)"
    return "" if x.split is None else str(x.split)


def _name(x: PlanNode | PlanLeaf) -> str:
    marks = " (in)" if isinstance(x, PlanNode) and x.is_input else ""
    marks += " (out)" if isinstance(x, PlanNode) and x.is_output else ""
    # ggml names a view after its source, which may have none: " (reshaped)"
    name = x.name if x.name and not x.name.startswith(" ") else f"node {x.index}{x.name}"
    return name + marks


def _node_row(x: PlanNode, reduce: AllReduce | None) -> Row:
    payload = binary(reduce.bytes) if reduce is not None else ""
    cells = _name(x), x.op, x.type, _dims(x.ne), _split_text(x), _slices_text(x), str(x.subgraph), payload
    return Row("view" if x.is_view else "node", cells, _kind_of(x))


def _leaf_row(x: PlanLeaf) -> Row:
    return Row("leaf", (_name(x), x.kind, x.type, _dims(x.ne), _split_text(x), _slices_text(x), "", ""), _kind_of(x))


def split_counts(nodes: Iterable[PlanNode]) -> str:
    """How many nodes have which split: ``M 12, P 2, S0 4, S1 9``."""
    count: Counter[str] = Counter()
    for x in nodes:
        if x.pending:
            count["(P)"] += 1
        elif x.split is not None:
            count[f"S{x.split.axis}" if isinstance(x.split.axis, int) else x.split.axis] += 1
    return ", ".join(f"{k} {count[k]}" for k in ("M", "P", "(P)", "S0", "S1", "S2", "S3") if count[k])


def _layer_row(plan: SplitPlan, piece: Stretch) -> Row:
    inside = [r for r in plan.allreduces if piece.start <= r.after < piece.stop]
    times = max(len(piece.layers), 1)
    payload = sum(r.bytes for r in inside)
    if piece.layer is None:
        first, last = plan.nodes[piece.start], plan.nodes[piece.stop - 1]
        label = _name(first) if piece.stop - piece.start == 1 else f"{_name(first)} … {_name(last)}"
    else:
        label = f"{'layer' if times == 1 else 'layers'} {ranges(piece.layers)}"
    total = binary(payload) if times == 1 else f"{times} x {binary(payload)}"
    cells = (
        label,
        str(times),
        str(piece.stop - piece.start),
        split_counts(plan.nodes[piece.start : piece.stop]),
        str(len(inside)),
        total if payload else "",
    )
    return Row("layer", cells)


def has_pending(plan: SplitPlan) -> bool:
    """Whether the table needs `PENDING_NOTE`."""
    return any(x.pending for x in plan.nodes)
