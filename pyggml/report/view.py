"""Text with colours that can be looked at everywhere: printed plain, on a rich console, in a notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._arguments import file_path

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["DEVICE_COLOURS", "MARKS", "Branch", "Line", "View", "drawn", "write_text"]

Span = tuple[str, str]
"""Text, and its style: ``""``, ``dim``, ``bold``, ``sum``, ``name``, or ``d0`` to ``d15``, the colours of devices."""
Line = tuple[Span, ...]

# the same as on the page (templates/plan.css), in its light theme
DEVICE_COLOURS = ("#3c70d6", "#12887c", "#b4478c", "#5d8a26", "#7b57c4", "#c0553d", "#4a7796", "#8a7516")
MARKS = "0123456789abcdef"
"""One a device: pictures can be read without colours."""

_RICH = {"dim": "dim", "bold": "bold", "sum": "yellow", "name": "cyan"}
_CSS = {"dim": "opacity:.65", "bold": "font-weight:600", "sum": "color:#b97a1c", "name": "color:#3c70d6"}


def _colour(style: str) -> str:
    return DEVICE_COLOURS[int(style[1:]) % len(DEVICE_COLOURS)] if style[:1] == "d" and style[1:].isdigit() else ""


@dataclass(frozen=True, slots=True)
class View:
    """Something to look at. ``print(view)`` gives it without colours, ``view.print()`` with them; notebooks show it."""

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self.lines)

    def __repr__(self) -> str:
        return str(self)

    def __rich__(self) -> Text:
        from rich.text import Text

        out = Text(no_wrap=True, overflow="ellipsis")
        for k, line in enumerate(self.lines):
            if k:
                out.append("\n")
            for text, style in line:
                colour = _colour(style)
                out.append(text, f"bold white on {colour}" if colour else _RICH.get(style))
        return out

    def print(self, console: Console | None = None) -> None:
        """Prints it in colours, to a rich console (default: standard output)."""
        from rich.console import Console

        (console or Console()).print(self)

    def _repr_html_(self) -> str:
        rows = []
        for line in self.lines:
            spans = []
            for text, style in line:
                colour = _colour(style)
                css = f"background:{colour};color:#fff" if colour else _CSS.get(style, "")
                spans.append(f'<span style="{css}">{html.escape(text)}</span>' if css else html.escape(text))
            rows.append("".join(spans))
        return '<pre style="line-height:1.25">' + "\n".join(rows) + "</pre>"


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Writes UTF-8 as it is, whatever the system's encoding and ends of lines are; bytes of names that are none are escaped."""
    with file_path("a file to write", path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text)


@dataclass(slots=True)
class Branch:
    """A line of a tree, and what is below it."""

    line: Line
    below: list[Branch] = field(default_factory=list)


def drawn(tree: Branch) -> View:
    """The tree with its guides."""
    lines: list[Line] = [tree.line]

    def draw(branches: Sequence[Branch], guide: str) -> None:
        for k, branch in enumerate(branches):
            last = k == len(branches) - 1
            lines.append(((guide + ("└── " if last else "├── "), "dim"), *branch.line))
            draw(branch.below, guide + ("    " if last else "│   "))

    draw(tree.below, "")
    return View(tuple(lines))
