"""A difference between plans on a terminal, with rich: what was in red, what is in green."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..plan.diff import PlanDiff
from .diff_rows import HEADS, headline, sections, totals
from .diff_text import remarks

__all__ = ["render"]

_NAMES = {"added": "green", "removed": "red", "changed": ""}


def render(diff: PlanDiff, console: Console | None, fold: bool, views: bool) -> None:
    """See `PlanDiff.render`."""
    console = console or Console()
    console.print(Text(headline(diff), style="bold" if diff else "green"))
    if found := totals(diff):
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for k, head in enumerate(("", "before", "after", "difference")):
            table.add_column(head, justify="right" if k else "left", no_wrap=k > 0)
        for label, before, after, by in found:
            style = "" if by in ("", "same") else "red" if by.startswith("+") else "green"
            table.add_row(Text(label), Text(before), Text(after), Text(by, style=style))
        console.print()
        console.print(table)
    parts = sections(diff, fold, views)
    if parts:
        console.print()
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for head in HEADS:
            table.add_column(head, overflow="fold")
        for part in parts:
            table.add_row(Text(f"[{part.title}]", style="bold cyan"))
            for row in part.rows:
                name, op, layers, what, before, after = row.cells
                table.add_row(
                    Text(name, style=_NAMES[row.status]), Text(op, style="dim"), Text(layers), Text(what, style="dim"),
                    Text(before, style="red"), Text(after, style="green"),
                )  # fmt: skip
        console.print(table)
    for line in remarks(diff, views):
        console.print(Text(line, style="dim"))
