"""The rows of a plan's table, from its content: folded or not, in three levels of detail."""

from __future__ import annotations

from dataclasses import dataclass

from .._units import binary
from ..errors import ArgumentError
from ..plan import Detail, SplitPlan
from .content import Content, Item, Reduce, layers_words, split_counts
from .fold import Stretch

__all__ = ["COLUMNS", "DETAILS", "LAYER_COLUMNS", "Row", "check_detail", "columns", "notes", "rows", "rows_of"]

COLUMNS = ("node", "op", "type", "ne", "split", "per device", "subgraph", "all-reduce")
LAYER_COLUMNS = ("layers", "times", "nodes", "split", "all-reduces", "all-reduce bytes")
DETAILS = ("layers", "nodes", "all")


@dataclass(frozen=True, slots=True)
class Row:
    """One line: cells under the columns, or a text across all of them."""

    kind: str
    """``node``, ``view``, ``leaf``, ``layer``, ``reduce`` or ``group``; the last two go across."""
    cells: tuple[str, ...]
    split: str = ""
    """``M``, ``P``, ``S`` or nothing, for colours."""
    number: int | None = None
    """Of the node or leaf."""


def columns(detail: Detail) -> tuple[str, ...]:
    """The heads of the columns."""
    return LAYER_COLUMNS if detail == "layers" else COLUMNS


def check_detail(detail: str, details: tuple[str, ...] = DETAILS) -> None:
    """Raises ArgumentError where it is none of `details`."""
    if detail not in details:
        raise ArgumentError(f"detail={detail!r}: one of {', '.join(details)}")


def rows(plan: SplitPlan, detail: Detail, fold: bool) -> list[Row]:
    """All lines of the table."""
    check_detail(detail)
    content = Content(plan)
    if detail == "layers":
        return [_layer_row(content, s) for s in content.stretches(fold=fold)]
    pieces = content.stretches(fold=fold, leafs=detail == "all")
    out = [_leaf_row(leaf) for leaf in content.first_read.get(None, ())] if detail == "all" else []
    open_group: tuple[int, ...] = ()
    for piece in pieces:
        # a title where a group of several layers begins, and a line where it ends
        if len(piece.layers) > 1 and piece.layers != open_group:
            n = len(piece.layers)
            out.append(Row("group", (f"{layers_words(piece.layers)}: {n} x, shown is {piece.layer}",)))
        elif len(open_group) > 1 and piece.layers != open_group:
            what = f"layer {piece.layer}" if piece.layer is not None else "once"
            out.append(Row("group", (what,)))
        open_group = piece.layers
        out += rows_of(content, piece, detail)
    return out


def rows_of(content: Content, piece: Stretch, detail: Detail) -> list[Row]:
    """The lines of one stretch, with its all-reduces."""
    out = []
    for item in content.items[piece.start : piece.stop]:
        if detail == "all":
            out += [_leaf_row(leaf) for leaf in content.first_read.get(item.number, ())]
        reduce = content.reduces.get(item.number)
        if detail == "all" or item.what != "view" or reduce is not None:
            out.append(_node_row(item, reduce))
        if reduce is not None:
            out.append(Row("reduce", (reduce.text,)))
    return out


def _node_row(x: Item, reduce: Reduce | None) -> Row:
    payload = binary(reduce.of.bytes) if reduce is not None else ""
    cells = x.title, x.op, x.tensor.type, x.ne, x.split, x.per_device, str(x.subgraph), payload
    return Row(x.what, cells, x.look, x.number)


def _leaf_row(x: Item) -> Row:
    return Row("leaf", (x.title, x.op, x.tensor.type, x.ne, x.split, x.per_device, "", ""), x.look, x.number)


def _layer_row(content: Content, piece: Stretch) -> Row:
    inside = content.reduces_in(piece.start, piece.stop)
    times = max(len(piece.layers), 1)
    payload = sum(r.of.bytes for r in inside)
    total = binary(payload) if times == 1 else f"{times} x {binary(payload)}"
    cells = (
        content.piece_title(piece.layers, piece.start, piece.stop),
        str(times),
        str(piece.stop - piece.start),
        split_counts(content.plan.nodes[piece.start : piece.stop]),
        str(len(inside)),
        total if payload else "",
    )
    return Row("layer", cells)


def notes(plan: SplitPlan, detail: Detail) -> tuple[str, ...]:
    """What stands below the table."""
    return () if detail == "layers" else Content(plan).notes
