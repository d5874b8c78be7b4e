"""A plan in a notebook: what the page says, without a script."""

from __future__ import annotations

from .._units import binary, counted, percent
from ..plan import SplitPlan
from .content import MEMORY, Content
from .fold import Stretch
from .plan_html import environment
from .plan_rows import Row, rows_of
from .view import DEVICE_COLOURS

__all__ = ["to_notebook"]

# a notebook keeps what it shows
_MOST_ROWS = 400


def to_notebook(plan: SplitPlan) -> str:
    """See `SplitPlan._repr_html_`."""
    content = Content(plan)
    largest = max((m.total for m in content.memory), default=0) or 1
    shown = content.stretches(fold=True)
    room = sum(s.stop - s.start for s in shown) <= _MOST_ROWS
    return environment().get_template("notebook.html.j2").render(
        headline=content.headline,
        memory=[
            {
                "name": m.name,
                "total": f"{binary(m.total)} {m.room}".rstrip(),
                "share": percent(m.share) if m.share else "",
                "colour": DEVICE_COLOURS[j % len(DEVICE_COLOURS)],
                "parts": [{"key": key, "size": binary(n), "width": f"{100 * n / largest:.2f}"} for (key, _), n in zip(MEMORY, m.parts, strict=True) if n],
            }
            for j, m in enumerate(content.memory)
        ],
        pieces=[_piece(content, s, room) for s in shown],
        notes=content.notes if room else (),
    )


def _piece(content: Content, s: Stretch, room: bool) -> tuple[str, str, list[Row]]:
    inside = content.reduces_in(s.start, s.stop)
    times = f" ({len(s.layers)} x)" if len(s.layers) > 1 else ""
    words = counted(s.stop - s.start, "node") + (f", {counted(len(inside), 'all-reduce')}, {binary(sum(r.of.bytes for r in inside))}" if inside else "")
    return content.piece_title(s.layers, s.start, s.stop) + times, words, rows_of(content, s, "nodes") if room else []
