"""A difference between plans as text without colour."""

from __future__ import annotations

from .._units import counted
from ..plan.diff import PlanDiff
from .diff_rows import HEADS, headline, hidden_views, sections, totals
from .plan_text import grid

__all__ = ["headline", "remarks", "table"]


def table(diff: PlanDiff, fold: bool, views: bool, limit: int | None) -> str:
    """See `PlanDiff.table`."""
    out = [headline(diff)]
    if found := totals(diff):
        out += ["", *grid(("", "before", "after", "difference"), list(found), frozenset({1, 2, 3}))]
    parts = sections(diff, fold, views)
    lines = [row.cells for part in parts for row in part.rows]
    shown = lines if limit is None else lines[:limit]
    if shown:
        heads, rule, *body = grid(HEADS, list(shown))
        out += ["", heads, rule]
        rest = iter(body)
        left = len(shown)
        for part in parts:
            if left > 0:
                out += [f"[{part.title}]", *(next(rest) for _ in part.rows[:left])]
                left -= len(part.rows)
    out += remarks(diff, views, len(lines) - len(shown))
    return "\n".join(out)


def remarks(diff: PlanDiff, views: bool, cut: int = 0) -> list[str]:
    """What is not in the table."""
    out = []
    if cut:
        out.append(f"… and {counted(cut, 'line')} more")
    if (n := hidden_views(diff)) and not views:
        out.append(f"({counted(n, 'view differs', 'views differ')}, too)")
    return out
