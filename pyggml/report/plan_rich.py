"""A plan on a terminal, with rich."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..plan import Detail, SplitPlan
from .plan_rows import Row, columns, notes, rows
from .plan_text import across, summary

__all__ = ["render"]

# mirrored is the quiet default; what is split or summed stands out
_COLOURS = {"S": "green", "P": "yellow", "M": "dim", "": ""}


def render(plan: SplitPlan, console: Console | None, detail: Detail, fold: bool) -> None:
    """See `SplitPlan.render`."""
    console = console or Console()
    items = rows(plan, detail, fold)
    heads = columns(detail)
    split_at = heads.index("split")
    # rich has no rows across all columns: one table for each stretch between them, with the same widths
    body = [r.cells for r in items if len(r.cells) > 1]
    widths = _fitted([max(len(line[k]) for line in (heads, *body)) for k in range(len(heads))], console.width)
    total = sum(widths) + 2 * (len(widths) - 1)
    table = _new_table(heads, widths, True, detail)
    for row in items:
        if len(row.cells) > 1:
            table.add_row(*_cells(row, split_at), style="dim" if row.kind in ("view", "leaf") else None)
            continue
        if table.row_count or table.show_header:
            console.print(table)
        console.print(_across(row, min(total, console.width)))
        table = _new_table(heads, widths, False, detail)
    if table.row_count or table.show_header:
        console.print(table)
    for note in notes(plan, detail):
        console.print(Text(note, style="dim"))
    console.print()
    console.print(Text(summary(plan)), soft_wrap=True)


def _fitted(widths: list[int], room: int) -> list[int]:
    """Takes from the widest columns what a narrow terminal does not have; cells wrap then."""
    widths = list(widths)
    while sum(widths) + 2 * (len(widths) - 1) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    return widths


def _new_table(heads: tuple[str, ...], widths: list[int], header: bool, detail: Detail) -> Table:
    table = Table(box=None, show_header=header, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    right = {1, 2, 4, 5} if detail == "layers" else {6, 7}
    for k, head in enumerate(heads):
        table.add_column(head, width=widths[k], justify="right" if k in right else "left", overflow="fold")
    return table


def _cells(row: Row, split_at: int) -> list[Text]:
    return [Text(c, style=_COLOURS[row.split] if k == split_at else "") for k, c in enumerate(row.cells)]


def _across(row: Row, width: int) -> Text:
    return Text(across(row, width), style="bold cyan" if row.kind == "group" else "yellow")
