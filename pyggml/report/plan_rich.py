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
# what a line across the table says as well, or the all-reduces between the lines
_SPARE = ("all-reduce", "subgraph", "type")


def render(plan: SplitPlan, console: Console | None, detail: Detail, fold: bool) -> None:
    """See `SplitPlan.render`."""
    console = console or Console()
    items = rows(plan, detail, fold)
    heads = columns(detail)
    # rich has no rows across all columns: one table for each stretch between them, with the same widths
    body = [r.cells for r in items if len(r.cells) > 1]
    widest = {head: max(len(line[k]) for line in (heads, *body)) for k, head in enumerate(heads)}
    shown = _shown(widest, console.width)
    widths = dict(zip(shown, _fitted([widest[head] for head in shown], console.width), strict=True))
    total = sum(widths.values()) + 2 * (len(widths) - 1)
    table = _new_table(widths, True, detail)
    for row in items:
        if len(row.cells) > 1:
            table.add_row(*_cells(row, heads, shown), style="dim" if row.kind in ("view", "leaf") else None)
            continue
        if table.row_count or table.show_header:
            console.print(table)
        console.print(_across(row, min(total, console.width)))
        table = _new_table(widths, False, detail)
    if table.row_count or table.show_header:
        console.print(table)
    for note in notes(plan, detail):
        console.print(Text(note, style="dim"))
    console.print()
    console.print(Text(summary(plan)), soft_wrap=True)


def _shown(widest: dict[str, int], room: int) -> tuple[str, ...]:
    """The columns that a narrow terminal has room for: those first that other lines say, too."""
    shown = dict(widest)
    for head in _SPARE:
        if sum(shown.values()) + 2 * (len(shown) - 1) > room:
            shown.pop(head, None)
    return tuple(shown)


def _fitted(widths: list[int], room: int) -> list[int]:
    """Takes from the widest columns what a narrow terminal does not have; cells wrap then."""
    widths = list(widths)
    while sum(widths) + 2 * (len(widths) - 1) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    return widths


def _new_table(widths: dict[str, int], header: bool, detail: Detail) -> Table:
    table = Table(box=None, show_header=header, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    heads = columns(detail)
    right = {heads[k] for k in ((1, 2, 4, 5) if detail == "layers" else (6, 7))}
    for head, width in widths.items():
        table.add_column(head, width=width, justify="right" if head in right else "left", overflow="fold")
    return table


def _cells(row: Row, heads: tuple[str, ...], shown: tuple[str, ...]) -> list[Text]:
    cells = dict(zip(heads, row.cells, strict=True))
    return [Text(cells[head], style=_COLOURS[row.split] if head == "split" else "") for head in shown]


def _across(row: Row, width: int) -> Text:
    return Text(across(row, width), style="bold cyan" if row.kind == "group" else "yellow")
