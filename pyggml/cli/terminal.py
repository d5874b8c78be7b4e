"""Consoles, and progress on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import ModelOptions
    from ..split import Rule

__all__ = ["open_model", "stderr", "stdout"]


def stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def stdout() -> Any:
    """As wide as the terminal; into a file or a pipe wide enough for tables not to wrap."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 132))


def open_model(path: str | Path, device: str, options: ModelOptions, rules: Sequence[Rule] = (), label: str = "") -> Any:
    from rich.progress import BarColumn, Progress, TextColumn

    from ..model import Model

    console = stderr()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"loading {Path(path).name} {label}", total=1.0)
        return Model.with_options(path, device, options, rules=rules, progress=lambda f: bar.update(task, completed=f))
