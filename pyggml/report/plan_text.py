"""A plan as text without colour."""

from __future__ import annotations

from .._units import binary, counted, percent, ranges
from ..plan import Detail, SplitPlan
from .content import split_counts
from .fold import layer_of
from .plan_rows import Row, columns, notes, rows

__all__ = ["across", "grid", "host_words", "missed_words", "summary", "table"]


def grid(heads: tuple[str, ...], lines: list[tuple[str, ...]], right: frozenset[int] = frozenset()) -> list[str]:
    """Columns as wide as their widest cell; those in `right` are flush right."""
    widths = [max(len(line[k]) for line in (heads, *lines)) for k in range(len(heads))]

    def joined(line: tuple[str, ...]) -> str:
        cells = (c.rjust(w) if k in right else c.ljust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return [joined(heads), "  ".join("─" * w for w in widths), *map(joined, lines)]


def table(plan: SplitPlan, detail: Detail, fold: bool) -> str:
    """See `SplitPlan.table`."""
    items = rows(plan, detail, fold)
    heads = columns(detail)
    body = [r for r in items if len(r.cells) > 1]
    right = frozenset({1, 2, 4, 5} if detail == "layers" else {6, 7})
    top, rule, *lines = grid(heads, [r.cells for r in body], right)
    text, width = iter(lines), len(rule)
    out = [top, rule, *(next(text) if len(r.cells) > 1 else across(r, width) for r in items)]
    return "\n".join([*out, *notes(plan, detail)])


def across(row: Row, width: int) -> str:
    """A line that is not cut into columns: a title of layers, an all-reduce."""
    if row.kind == "group":
        return f"[{row.cells[0]}]"
    text = f"── {row.cells[0]} "
    return text + "─" * max(2, width - len(text))


def summary(plan: SplitPlan) -> str:
    """See `SplitPlan.summary`."""
    n_views = sum(x.is_view for x in plan.nodes)
    n_graphs = len({s.graph for s in plan.subgraphs})
    counts = (
        f"{counted(len(plan.nodes), 'node')} ({n_views} of them views) in {counted(len(plan.subgraphs), 'subgraph')}"
        + (f" of {n_graphs} graphs" if n_graphs > 1 else "")
    )
    reduces = "no all-reduces"
    if plan.allreduces:
        delayed = sum(r.delayed for r in plan.allreduces)
        how = ", ".join(sorted({r.algorithm for r in plan.allreduces}))
        reduces = f"{counted(len(plan.allreduces), 'all-reduce')} ({how}), {binary(plan.allreduce_bytes)} a run" + (
            f", {delayed} delayed" if delayed else ""
        )
    out = [
        f"{counted(len(plan.devices), 'device')}; {counts}; {reduces}",
        f"nodes by split: {split_counts(plan.nodes)}",
    ]
    weights, shares = plan.weight_bytes(), plan.share_of_weights()
    lines: list[tuple[str, ...]] = []
    limited = any(m.capacity for m in plan.memory)
    for m, w, share in zip(plan.memory, weights, shares, strict=True):
        cells = m.name, binary(m.weights), binary(m.fixed), binary(m.compute), binary(m.reduction), binary(m.total)
        room = (binary(m.capacity) if m.capacity else "", binary(m.free) if m.capacity else "") if limited else ()
        lines.append((*cells, *room, f"{binary(w.split)} ({percent(share)})", binary(w.mirrored)))
    heads = ("device", "weights", "fixed", "compute", "reduction", "total", *(("of", "free") if limited else ()), "split weights read", "mirrored")
    out += grid(heads, lines, frozenset(range(1, len(heads))))
    out += _missed(plan)
    if plan.host:
        out.append("host: " + host_words(plan))
    return "\n".join(out)


def host_words(plan: SplitPlan) -> str:
    """What runs on the host besides; nothing where that is not known."""
    return ", ".join(_host(k, v) for k, v in (plan.host or {}).items())


def _missed_rows(plan: SplitPlan) -> list[tuple[tuple[int, ...], str, str, list[str]]]:
    """What was asked for and not achieved: layers, asked, achieved, kinds of tensors."""
    layers: dict[tuple[str, str, str], list[int]] = {}
    for leaf in plan.missed_shares():
        layer, name = layer_of(leaf.name)
        asked = " : ".join(percent(a) for a in leaf.asked or ())
        achieved = " : ".join(percent(a) for a in plan.achieved_shares(leaf.name))
        layers.setdefault((name.replace("#", "N"), asked, achieved), []).extend(() if layer is None else (layer,))
    names: dict[tuple[tuple[int, ...], str, str], list[str]] = {}
    for (name, asked, achieved), of in layers.items():
        names.setdefault((tuple(of), asked, achieved), []).append(name)
    return [(*key, alike) for key, alike in names.items()]


def missed_words(plan: SplitPlan) -> list[tuple[str, str]]:
    """Kinds of tensors, and what was asked for and achieved."""
    return [
        (", ".join(alike), f"{f'(layers {ranges(layers)}) ' if layers else ''}asked {asked}, got {achieved}")
        for layers, asked, achieved, alike in _missed_rows(plan)
    ]


def _missed(plan: SplitPlan) -> list[str]:
    lines: list[tuple[str, ...]] = []
    for numbers, asked, achieved, alike in _missed_rows(plan):
        lines += [(name, ranges(numbers) if k == 0 else "", asked if k == 0 else "", achieved if k == 0 else "") for k, name in enumerate(alike)]
    return ["", *grid(("not split as asked for: granularity", "layers N", "asked", "achieved"), lines), ""] if lines else []


def _host(key: str, value: object) -> str:
    if isinstance(value, int) and key == "compute_nodes":
        return counted(value, "node") + " computed"
    if isinstance(value, int) and key == "buffer_bytes":
        return binary(value) + " of buffers"
    return f"{key} {binary(value) if isinstance(value, int) and key.endswith('bytes') else value}"
