"""Numbers for people."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

__all__ = ["binary", "counted", "percent", "ranges"]


def binary(n: int) -> str:
    """Bytes in binary units: ``512 B``, ``16.0 KiB``, ``3.25 GiB``."""
    if abs(n) < 1024:
        return f"{n} B"
    value = float(n)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 1023.95 or unit == "TiB":
            break
    return f"{value:.2f} {unit}" if unit in ("GiB", "TiB") else f"{value:.1f} {unit}"


def percent(fraction: float) -> str:
    """``75 %``, ``33.3 %``."""
    text = f"{100 * fraction:.1f}"
    return text.removesuffix(".0") + " %"


def counted(n: int, one: str, many: str | None = None) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def ranges(numbers: Iterable[int]) -> str:
    """``0-2, 5, 9-11``; with a step where it is regular: ``3, 7, 11, … 31``."""
    left = sorted(set(numbers))
    step = left[1] - left[0] if len(left) > 3 else 0
    if step > 1 and all(b - a == step for a, b in pairwise(left)):
        return f"{left[0]}, {left[1]}, {left[2]}, … {left[-1]}" if len(left) > 4 else ", ".join(map(str, left))
    parts: list[str] = []
    i = 0
    while i < len(left):
        k = i
        while k + 1 < len(left) and left[k + 1] == left[k] + 1:
            k += 1
        parts.append(str(left[i]) if k == i else f"{left[i]}-{left[k]}" if k > i + 1 else f"{left[i]}, {left[k]}")
        i = k + 1
    return ", ".join(parts)
