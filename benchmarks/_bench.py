"""What the benchmarks share: alternating measurements, medians, and how a result is shown.

Two things are compared by running them in turns in one go, so that whatever else the machine does hits both alike, and by
the medians of many turns. A target is printed beside the ratio; it never decides the exit status.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

T = TypeVar("T")

LEFT_OUT = 77
"""Exit status of a benchmark that lacks what it compares with; it says what."""


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    ours: str
    against: str
    value: float
    """The ratio (or, where there is nothing to compare with, the number itself)."""
    target: float | None = None
    """None: only stated."""
    at_most: bool = True
    """Whether the value should be at most the target, else at least."""
    unit: str = "x"
    spread: str = ""
    """How far the turns are from each other."""

    @property
    def shown(self) -> str:
        digits = 3 if self.unit == "x" and 0.8 <= self.value < 1.2 else 2 if self.unit in ("x", "s") else 0
        return f"{self.value:.{digits}f} {self.unit}".replace(" x", "x")

    @property
    def wanted(self) -> str:
        if self.target is None:
            return "-"
        return f"{'<=' if self.at_most else '>='} {self.target:g} {self.unit}".replace(" x", "x")

    @property
    def reached(self) -> str:
        if self.target is None:
            return ""
        return "yes" if (self.value <= self.target if self.at_most else self.value >= self.target) else "no"


COLUMNS = ("what", "ours", "against", "measured", "to reach", "reached", "middle half of the turns")


def cells(row: Row) -> tuple[str, ...]:
    return (row.what, row.ours, row.against, row.shown, row.wanted, row.reached, row.spread)


def parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side (default: {rounds})")
    made.add_argument("--json", action="store_true", help="print the result as JSON")
    return made


def alternate(rounds: int, *sides: Callable[[], T]) -> list[list[T]]:
    """What each side returns, in turns: a round runs every side once, beginning with another one each time."""
    taken: list[list[T]] = [[] for _ in sides]
    for i in range(rounds):
        for j in range(len(sides)):
            k = (i + j) % len(sides)
            taken[k].append(sides[k]())
    return taken


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, str]:
    """Median of a over median of b, and where the middle half of the single turns' ratios lies."""
    single = sorted(x / y for x, y in zip(a, b, strict=True))
    middle = f"{single[len(single) // 4]:.2f} to {single[-1 - len(single) // 4]:.2f}"
    return statistics.median(a) / statistics.median(b), middle


def duration(taken: Sequence[float]) -> str:
    """The median, readable."""
    value = statistics.median(taken)
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.0f} ns"


def show(rows: Sequence[Row], as_json: bool) -> None:
    """Prints the rows: on a terminal as a table of rich, when it is there."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(markdown(rows))
        return
    if not Console().is_terminal:
        print(markdown(rows))
        return
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*cells(row))
    Console().print(table)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
