"""The kinds of bad input of the tests; each module yields its cases, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bad_case import Case

from . import dtypes, files, indices, shapes, splits

KINDS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "illegal splits": splits.cases,
    "shapes": shapes.cases,
    "dtypes": dtypes.cases,
    "indices": indices.cases,
    "truncated files": files.truncated,
    "corrupted files": files.corrupted,
    "missing files": files.missing,
}
SHARDS: dict[str, int] = {}
"""Processes that share the cases of a kind; 1 unless it says more."""
