"""A difference between plans on a terminal, with rich: what was in red, what is in green."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..plan.diff import PlanDiff
from .diff_rows import HEADS, DiffRow, headline, sections, totals
from .diff_text import remarks

__all__ = ["render"]

_NAMES = {"added": "green", "removed": "red", "changed": ""}


def render(diff: PlanDiff, console: Console | None, fold: bool, views: bool) -> None:
    """See `PlanDiff.render`."""
    console = console or Console()
    console.print(Text(headline(diff), style="bold" if diff else "green"))
    if found := totals(diff):
        table = _table()
        for k, head in enumerate(("", "before", "after", "difference")):
            table.add_column(head, justify="right" if k else "left", no_wrap=k > 0)
        for label, before, after, by in found:
            style = "" if by in ("", "same") else "red" if by.startswith("+") else "green"
            table.add_row(Text(label), Text(before), Text(after), Text(by, style=style))
        console.print()
        console.print(table)
    parts = sections(diff, fold, views)
    cells = [HEADS, *(row.cells for part in parts for row in part.rows)]
    widths = _fitted([max(len(line[k]) for line in cells) for k in range(len(HEADS))], console.width)
    for n, part in enumerate(parts):
        table = _table(header=n == 0)
        for head, width in zip(HEADS, widths, strict=True):
            table.add_column(head, width=width, overflow="fold")
        if n == 0:
            console.print()
            console.print(table)
            table.show_header = False
        console.print(Text(f"[{part.title}]", style="bold cyan"))
        for row in part.rows:
            table.add_row(*_texts(row))
        console.print(table)
    for line in remarks(diff, views):
        console.print(Text(line, style="dim"))


def _table(header: bool = True) -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=header, header_style="bold")


def _fitted(widths: list[int], room: int) -> list[int]:
    """Takes from the widest columns what a narrow terminal does not have; cells wrap then."""
    while sum(widths) + 2 * (len(widths) - 1) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    return widths


def _texts(row: DiffRow) -> tuple[Text, ...]:
    name, op, layers, what, before, after = row.cells
    styles = (name, _NAMES[row.status]), (op, "dim"), (layers, ""), (what, "dim"), (before, "red"), (after, "green")
    return tuple(Text(text, style=style) for text, style in styles)
