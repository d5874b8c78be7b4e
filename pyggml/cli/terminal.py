"""Consoles, and progress on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import ModelOptions
    from ..split import Rule

__all__ = ["open_model", "progress", "stderr", "stdout"]


def stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def stdout() -> Any:
    """As wide as the terminal; into a file or a pipe wide enough for tables not to wrap."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 132))


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[float], None]]:
    """A bar on the standard error, where that is a terminal; what it gives is called with the fraction that is done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = stderr()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn()
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


def open_model(path: str | Path, device: Any, options: ModelOptions, rules: Sequence[Rule] = (), label: str = "") -> Any:
    """The model, with a bar while it is loaded.

    Raises:
        UnsupportedError: the devices are simulated; that is said before anything is read.
    """
    from ..device import parse_devices
    from ..meta import refuse_simulated
    from ..model import Model

    devices = device if device is None else parse_devices(device)
    for one in devices or ():
        refuse_simulated(one, f"{Path(path).name} cannot run")
    with progress(f"loading {Path(path).name} {label}".rstrip()) as call:
        return Model.with_options(path, devices, options, rules=rules, progress=call)
