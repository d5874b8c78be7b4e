"""A plan as the text of a graph: for Graphviz and for Mermaid."""

from __future__ import annotations

from dataclasses import dataclass

from .._units import binary, counted
from ..plan import Detail, PlanNode, SplitPlan
from .content import Content, Item, Reduce, split_counts
from .fold import Stretch
from .plan_rows import check_detail

__all__ = ["Flow", "Vertex", "flow", "to_dot", "to_mermaid"]


@dataclass(frozen=True, slots=True)
class Vertex:
    """One box."""

    key: str
    kind: str
    """``node``, ``view``, ``leaf``, ``layers`` or ``reduce``."""
    lines: tuple[str, ...]
    look: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """Boxes in groups (of no title: in none), and which one goes into which."""

    groups: tuple[tuple[str, tuple[Vertex, ...]], ...]
    edges: tuple[tuple[str, str], ...]


def flow(plan: SplitPlan, detail: Detail, fold: bool) -> Flow:
    """What reads what, folded. A layer that is not shown is represented by the one that is; views that are not shown by
    what they are views of."""
    check_detail(detail)
    content = Content(plan)
    shown = content.stretches(fold=fold, leafs=detail == "all")
    stands_for = _Folded(content, shown)
    n = len(plan.nodes)
    # the box in which a node ends up, behind its all-reduce if there is one
    box: dict[int, str] = {}
    groups: list[tuple[str, tuple[Vertex, ...]]] = []
    edges: dict[tuple[str, str], None] = {}
    leafs = content.first_read if detail == "all" else {}
    if leafs.get(None):
        groups.append(("", tuple(_item_vertex(x) for x in leafs[None])))
    for k, s in enumerate(shown):
        title = content.piece_title(s.layers, s.start, s.stop) + (f" ({len(s.layers)} x)" if len(s.layers) > 1 else "")
        if detail == "layers":
            groups.append(("", (_piece_vertex(content, s, f"p{k}", title),)))
            box.update(dict.fromkeys(range(s.start, s.stop), f"p{k}"))
            continue
        inside: list[Vertex] = []
        for item in content.items[s.start : s.stop]:
            inside += [_item_vertex(x) for x in leafs.get(item.number, ())]
            reduce = content.reduces.get(item.number)
            if detail == "all" or item.what != "view" or reduce is not None:
                inside.append(_item_vertex(item))
                box[item.number] = f"n{item.number}"
            if reduce is not None:
                inside.append(_reduce_vertex(reduce))
                edges[f"n{item.number}", f"r{item.number}"] = None
                box[item.number] = f"r{item.number}"
        groups.append((title if s.layer is not None else "", tuple(inside)))
    for s in shown:
        for i in range(s.start, s.stop):
            to = box.get(i)
            if to is None:
                continue
            # into the node itself, not into its all-reduce
            to = f"n{i}" if to.startswith("r") else to
            for source in _seen(plan, content, i, box, stands_for):
                if box[source] != to:
                    edges[box[source], to] = None
            if detail == "all":
                edges.update(dict.fromkeys((f"n{x}", to) for x in plan.nodes[i].sources if x >= n and stands_for.leaf(x)))
    return Flow(tuple(groups), tuple(edges))


def _seen(plan: SplitPlan, content: Content, i: int, box: dict[int, str], stands_for: _Folded) -> list[int]:
    """The sources of a node that have a box; through views that have none."""
    out, todo, n = [], list(plan.nodes[i].sources), len(plan.nodes)
    done = set()
    while todo:
        s = todo.pop(0)
        if s >= n or s in done:
            continue
        done.add(s)
        s = stands_for.node(s)
        if s in box:
            # a folded layer's result that is made further down comes from the layer before: not an edge of this one
            if s < i:
                out.append(s)
        elif content.items[s].what == "view":
            todo += plan.nodes[s].sources
    return out


class _Folded:
    """Which node of a layer that is shown stands for a node of a layer that is not."""

    def __init__(self, content: Content, shown: list[Stretch]) -> None:
        self._content = content
        self._shown = {layer: s.layer for s in shown for layer in s.layers}
        self._starts: dict[int, list[int]] = {}
        self._at: list[tuple[int, int, int]] = []
        for p in content.pieces:
            starts = self._starts.setdefault(-1 if p.layer is None else p.layer, [])
            self._at += [(-1 if p.layer is None else p.layer, len(starts), p.start)] * (p.stop - p.start)
            starts.append(p.start)
        first = {leaf.number for s in shown for i in range(s.start, s.stop) for leaf in content.first_read.get(i, ())}
        self._leafs = first | {leaf.number for leaf in content.first_read.get(None, ())}

    def node(self, i: int) -> int:
        layer, k, start = self._at[i]
        other = self._shown.get(layer)
        return i if other is None else self._starts[other][k] + i - start

    def leaf(self, number: int) -> bool:
        return number in self._leafs


def _item_vertex(x: Item) -> Vertex:
    second = " ".join(w for w in (x.op, x.tensor.type if x.is_leaf else "", x.ne) if w)
    third = " | ".join(w for w in (x.split, x.per_device) if w)
    kind = x.what if isinstance(x.tensor, PlanNode) else "leaf"
    return Vertex(f"n{x.number}", kind, tuple(w for w in (x.title, second, third) if w), x.look)


def _reduce_vertex(r: Reduce) -> Vertex:
    return Vertex(f"r{r.of.after}", "reduce", (f"Σ all-reduce {binary(r.of.bytes)}",), "P")


def _piece_vertex(content: Content, s: Stretch, key: str, title: str) -> Vertex:
    inside = content.reduces_in(s.start, s.stop)
    lines = [title, f"{counted(s.stop - s.start, 'node')}: {split_counts(content.plan.nodes[s.start : s.stop])}"]
    if inside:
        lines.append(f"Σ {counted(len(inside), 'all-reduce')}, {binary(sum(r.of.bytes for r in inside))}")
    return Vertex(key, "layers", tuple(lines), "P" if inside else "")


_FILL = {"S": "#dce6fa", "P": "#fcf1dc", "M": "#f0f0ec", "": "#ffffff"}


def to_dot(plan: SplitPlan, detail: Detail, fold: bool) -> str:
    """See `SplitPlan.to_dot`."""
    found = flow(plan, detail, fold)
    out = [
        "digraph plan {",
        "  graph [rankdir=TB, fontname=sans, labelloc=t, label=" + _quoted(f"plan over {', '.join(plan.devices)}") + "];",
        '  node [shape=box, style="rounded,filled", fontname=sans, fontsize=10, color="#8a8f98", fillcolor="#ffffff"];',
        '  edge [color="#8a8f98", arrowsize=0.6];',
    ]
    for k, (title, vertices) in enumerate(found.groups):
        indent = "  "
        if title:
            out += [f"  subgraph cluster_{k} {{", f'    label={_quoted(title)}; color="#c9c9c1"; style=rounded; fontsize=11;']
            indent = "    "
        for v in vertices:
            shape = ', shape=box, style=filled, width=4, height=0.25, color="#d9952f"' if v.kind == "reduce" else ", shape=note" if v.kind == "leaf" else ""
            out.append(f'{indent}{v.key} [label={_quoted(*v.lines)}, fillcolor="{_FILL[v.look]}"{shape}];')
        if title:
            out.append("  }")
    out += [f"  {a} -> {b};" for a, b in found.edges]
    return "\n".join([*out, "}", ""])


def _quoted(*lines: str) -> str:
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines) + '"'


def to_mermaid(plan: SplitPlan, detail: Detail, fold: bool) -> str:
    """See `SplitPlan.to_mermaid`."""
    found = flow(plan, detail, fold)
    out = ["flowchart TD"]
    for k, (title, vertices) in enumerate(found.groups):
        indent = "  "
        if title:
            out.append(f"  subgraph g{k}[{_entities(title)}]")
            indent = "    "
        for v in vertices:
            text = _entities(*v.lines)
            shape = f"{{{{{text}}}}}" if v.kind == "reduce" else f"([{text}])" if v.kind == "leaf" else f"[{text}]"
            out.append(f"{indent}{v.key}{shape}{f':::{_CLASS[v.look]}' if v.look else ''}")
        if title:
            out.append("  end")
    out += [f"  {a} --> {b}" for a, b in found.edges]
    out += [f"  classDef {name} fill:{_FILL[look]},stroke:{'#d9952f' if look == 'P' else '#8a8f98'},color:#1c1f24" for look, name in _CLASS.items()]
    return "\n".join([*out, ""])


_CLASS = {"S": "split", "P": "sum", "M": "mirrored"}


def _entities(*lines: str) -> str:
    """A label: quoted, and what Mermaid or HTML would read as more than text as numbers of characters."""
    return '"' + "<br>".join("".join(f"#{ord(c)};" if c in "\"#<>&;`\\[]{}()|" else " " if c in "\r\n" else c for c in line) for line in lines) + '"'
