"""A plan drawn with characters: the tree, the memory bars, and what each device has of one tensor."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from .._arguments import whole
from .._units import binary, counted, percent
from ..plan import Detail, PlanLeaf, PlanNode, SplitPlan
from .content import MEMORY, Content, Item
from .fold import Stretch
from .plan_rows import check_detail
from .view import MARKS, Branch, Line, View, drawn

__all__ = ["memory_bars", "picture", "tree"]

_WIDTH, _HEIGHT = 60, 12
_SHADES = "█▓▒░▪"  # in the order of MEMORY
_LOOKS = {"P": "sum", "M": "dim", "S": "", "": "dim"}


def tree(plan: SplitPlan, detail: Detail, fold: bool) -> View:
    """See `SplitPlan.tree`."""
    check_detail(detail)
    content = Content(plan)
    root = Branch((("plan", "bold"), (f" over {', '.join(plan.devices)}: " + ", ".join(f"{n} {what}" for n, what in content.headline[1:]), "")))
    if detail == "all":
        outside = [_item_branch(leaf) for leaf in content.first_read.get(None, ())]
        if outside:
            root.below.append(Branch((("inputs and weights of no layer", "bold"),), outside))
    for s in content.stretches(fold=fold, leafs=detail == "all"):
        root.below.append(_stretch_branch(content, s, detail))
    return drawn(root)


def _stretch_branch(content: Content, s: Stretch, detail: Detail) -> Branch:
    inside = content.reduces_in(s.start, s.stop)
    words = f"  {counted(s.stop - s.start, 'node')}"
    times = f" ({len(s.layers)} x)" if len(s.layers) > 1 else ""
    branch = Branch(((content.piece_title(s.layers, s.start, s.stop), "bold"), (times, "name"), (words, "dim")))
    if detail == "layers":
        branch.below = [_reduce_branch(r.text) for r in inside]
        return branch
    at: Branch | None = None
    number: int | None = None
    for item in content.items[s.start : s.stop]:
        if item.subgraph != number or at is None:
            number, at = item.subgraph, Branch(((f"subgraph {item.subgraph}", "dim"),))
            branch.below.append(at)
        if detail == "all":
            at.below += [_item_branch(leaf) for leaf in content.first_read.get(item.number, ())]
        reduce = content.reduces.get(item.number)
        if detail == "all" or item.what != "view" or reduce is not None:
            at.below.append(_item_branch(item))
        if reduce is not None:
            branch.below.append(_reduce_branch(reduce.text))
            at = None
    # views that are not shown may be all of a subgraph's part
    branch.below = [b for b in branch.below if b.below or b.line[0][1] != "dim"]
    return branch


def _reduce_branch(text: str) -> Branch:
    return Branch(((f"Σ {text}", "sum"),))


def _item_branch(x: Item) -> Branch:
    return Branch(((x.title, "dim" if x.is_leaf else ""), (f"  {x.op}  {x.tensor.type} {x.ne}  ", "dim"), (x.split, _LOOKS[x.look]), (f"  {x.per_device}", "dim")))


def memory_bars(plan: SplitPlan, width: int) -> View:
    """See `SplitPlan.memory_bars`."""
    width = whole("memory_bars(): width", width, 1, 10_000)
    content = Content(plan)
    largest = max((m.total for m in content.memory), default=0) or 1
    names = max((len(d) for d in plan.devices), default=0)
    lines: list[Line] = []
    for j, m in enumerate(content.memory):
        # what there is is seen, however little; the largest part gives the room
        cells = [max(1, round(width * n / largest)) if n else 0 for n in m.parts]
        cells[m.parts.index(max(m.parts))] -= max(0, sum(cells) - max(1, round(width * m.total / largest)))
        bar = "".join(shade * n for shade, n in zip(_SHADES, cells, strict=True))
        share = f"  {percent(m.share)} of split weights" if m.share else ""
        lines.append(((f" {MARKS[j % 16]} ", f"d{j % 16}"), (f" {m.name:<{names}} ", "bold"), (bar.ljust(width), ""), (f"  {binary(m.total)}", "bold"), (f" {m.room}" if m.room else "", ""), (share, "dim")))
        parts = ", ".join(f"{key} {binary(n)}" for (key, _), n in zip(MEMORY, m.parts, strict=True) if n)
        lines.append(((" " * (names + 5) + parts, "dim"),))
    lines.append(((" " * (names + 5) + "  ".join(f"{shade} {key}" for shade, (key, _) in zip(_SHADES, MEMORY, strict=True)), "dim"),))
    return View(tuple(lines))


def picture(plan: SplitPlan, name: str | int | PlanNode | PlanLeaf) -> View:
    """See `SplitPlan.picture`."""
    content = Content(plan)
    x = plan.tensor(name)
    item = content.items[x.index + (len(plan.nodes) if isinstance(x, PlanLeaf) else 0)]
    lines: list[Line] = [((item.title, "bold"), (f"  {item.op}  {x.type} {item.ne}  {binary(x.bytes)}  ", "dim"), (item.split, _LOOKS[item.look]))]
    bands = content.bands(item)
    if bands and x.split is not None and isinstance(x.split.axis, int):
        lines += _box(content, item, x.split.axis, bands)
    elif item.held:
        lines += _copies(plan, item)
    lines += _legend(plan, item, bands)
    lines.append(((content.meaning(item), ""),))
    return View(tuple(lines))


def _box(content: Content, item: Item, axis: int, bands: tuple[tuple[int, int, int], ...]) -> list[Line]:
    ne = item.tensor.ne
    flat = axis == 0
    down = axis if axis else 1
    starts = [start for _, start, _ in bands]

    def owner(cell: int, cells: int) -> int:
        return bands[bisect_right(starts, (2 * cell + 1) * ne[axis] // (2 * cells)) - 1][0]

    one_row = flat and all(n == 1 for n in ne[1:])
    width = min(_WIDTH, max(ne[0], 2 * len(content.plan.devices))) if flat else min(36, max(ne[0], 8))
    height = 1 if one_row else 4 if flat else min(_HEIGHT, ne[axis])
    rows: list[Line] = []
    for y in range(height):
        cells = [owner(k, width) for k in range(width)] if flat else [owner(y, height)] * width
        rows.append((("│", "dim"), *_runs_of(cells), ("│", "dim")))
    arrow = f" axis 0: {ne[0]} →" + ("" if one_row else f"   axis {down}: {ne[down]} ↓")
    rest = [f"axis {k}: {ne[k]}" for k in range(1, 4) if k != down and ne[k] > 1]
    return [((arrow + (f"   (of each {', '.join(rest)})" if rest else ""), "dim"),), (("┌" + "─" * width + "┐", "dim"),), *rows, (("└" + "─" * width + "┘", "dim"),)]


def _runs_of(cells: Iterable[int]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for j in cells:
        mark, style = MARKS[j % 16], f"d{j % 16}"
        if out and out[-1][1] == style:
            out[-1] = out[-1][0] + mark, style
        else:
            out.append((mark, style))
    return out


def _copies(plan: SplitPlan, item: Item) -> list[Line]:
    """Whole tensors beside each other: copies, or summands."""
    between = " + " if item.look == "P" else "   "
    spans: list[tuple[str, str]] = [("  ", "")]
    for j in range(len(plan.devices)):
        spans += [(between if j else "", "sum"), ("-" * 8, "dim") if item.held[j] == "-" else (MARKS[j % 16] * 8, f"d{j % 16}")]
    return [tuple(spans)] * 2


def _legend(plan: SplitPlan, item: Item, bands: tuple[tuple[int, int, int], ...]) -> list[Line]:
    names = max((len(d) for d in plan.devices), default=0)
    shapes = max((len(h) for h in item.held), default=0)
    out: list[Line] = []
    for j, s in enumerate(item.tensor.slices):
        mine = [f"{a}-{a + n - 1}" if n > 1 else str(a) for k, a, n in bands if k == j]
        more = f", … {len(mine)} stretches" if len(mine) > 4 else ""
        where = f"  {', '.join(mine[:4])}{more}" if mine else ""
        out.append((("  ", ""), (f" {MARKS[j % 16]} ", f"d{j % 16}"), (f" {plan.devices[j]:<{names}}  {item.held[j]:<{shapes}}  {binary(s.bytes):>10}", ""), (where, "dim")))
    return out
