"""The kinds of bad input of the tests; each module yields its cases, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bad_case import Case

from . import arguments, closed, devices, dtypes, files, harness, indices, memory, rpc, shapes, splits

KINDS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "illegal splits": splits.cases,
    "shapes": shapes.cases,
    "dtypes": dtypes.cases,
    "indices": indices.cases,
    "closed handles": closed.cases,
    "truncated files": files.truncated,
    "corrupted files": files.corrupted,
    "missing files": files.missing,
    "absent devices": devices.cases,
    "no memory": memory.cases,
    "killed RPC servers": rpc.cases,
    "wrong arguments": arguments.cases,
}
ALL = {**KINDS, "of the harness": harness.cases}
SHARDS: dict[str, int] = {}
"""Processes that share the cases of a kind; 1 unless it says more."""
