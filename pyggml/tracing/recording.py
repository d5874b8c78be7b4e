"""Taking traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._arguments import whole
from .._ffi import ffi, lib, spans
from ..device import Device
from ..errors import ArgumentError
from .values import KINDS, Trace, TraceDevice, TraceEvent

__all__ = ["trace"]

_TIMING = ("host side", "exact", "synchronized", "exact")  # by the flags EXACT and SYNCED
_ON_QUEUE = 4


@contextmanager
def trace(*, sync: bool = False, threads: str = "this", limit: int = 1 << 20) -> Iterator[Trace]:
    """Traces what runs inside of a ``with`` block: graphs, models, planned or not.

    On virtual CPUs and the plain CPU, begins and ends are exact. Others (CUDA, Vulkan, RPC) compute behind the host's back:
    of them the calls are known (``host side``), or with ``sync`` also when the work had ended, at a price.

    Args:
        sync: wait for devices that tell no times after every subgraph and copy. They then take turns, so the times of each are
            right, but the whole takes longer.
        threads: ``this``: only what this thread does and has devices do; ``all``: all threads meanwhile.
        limit: events that are kept (104 bytes each while they are taken, 300 as values); what comes after them is counted in
            `Trace.dropped`.

    Returns:
        A context that gives the `Trace`, which is empty until the block ends. It ends when all that was queued has run. Traces
        may nest, and several threads may take traces at the same time.

    Raises:
        ArgumentError: values that make no sense.
    """
    if threads not in ("this", "all"):
        raise ArgumentError(f"trace(threads={threads!r}): 'this' or 'all'")
    whole("trace(): limit", limit, 0, 1 << 40)
    taken = Trace.__new__(Trace)
    began = time.time_ns()
    number = spans.begin(threads == "all", bool(sync), limit)
    try:
        try:
            yield taken
        finally:
            totals, events = spans.end(number)
            _fill(taken, number, totals, events, bool(sync), began)
    finally:
        lib.pgg_trace_free(number)


def _fill(taken: Trace, number: int, totals: Any, events: Any, sync: bool, began: int) -> None:
    labels = [str(ffi.string(lib.pgg_trace_label(number, i)).decode("utf-8", "replace")) for i in range(totals.n_labels)]
    rows = np.frombuffer(ffi.buffer(events), _DTYPE) if len(events) else np.empty(0, _DTYPE)
    begin = int(totals.begin)
    places: dict[int, int] = {0: -1}
    names: dict[int, str] = {0: ""}
    single: list[tuple[bool, int, str, str, int]] = []
    for address in dict.fromkeys([*rows["device"].tolist(), *rows["peer"].tolist()]):
        if address == 0:
            continue
        device = Device(ffi.cast("ggml_backend_dev_t", address))
        names[address] = name = device.name
        places[address] = -1  # a meta device is the host's way to its devices
        if device.type != "meta":
            single.append((device.type == "cpu", len(name), name, device.backend, address))
    devices: list[TraceDevice] = []
    for _, _, name, backend, address in sorted(single):  # CUDA2 before CUDA10, and the CPU last
        places[address] = len(devices)
        devices.append(TraceDevice(name, backend))
    graphs = _renumbered(rows["graph"], rows["queued"])
    joins = _renumbered(rows["join"], rows["queued"])
    threads = _renumbered(rows["thread"].astype(np.uint64) + 1, rows["queued"])
    order = np.lexsort((-rows["end"], rows["start"]))

    def column(name: str, less: int = 0) -> list[int]:
        return (rows[name][order] - less).tolist()  # type: ignore[no-any-return]

    def of(numbers: list[int]) -> list[int]:
        return [numbers[i] for i in order.tolist()]

    where, flags = column("device"), column("flags")
    found = zip(
        [KINDS[k] for k in column("kind")],
        [places[d] for d in where],
        [places[d] for d in column("peer")],
        of(threads),
        column("queued", begin),
        column("start", begin),
        column("end", begin),
        *(column(name) for name in ("bytes", "moved")),
        of(joins),
        of(graphs),
        *(column(name) for name in ("subgraph", "nodes", "computed")),
        [_TIMING[f & 3] for f in flags],
        [bool(f & _ON_QUEUE) for f in flags],
        [labels[k] if k >= 0 else names[d] if places[d] < 0 else "" for k, d in zip(column("label"), where, strict=True)],
        strict=True,
    )
    taken.__dict__.update(
        devices=tuple(devices),
        events=tuple(map(TraceEvent._make, found)),
        wall=int(totals.end) - begin,
        sync=sync,
        dropped=int(totals.dropped),
        began=began,
    )


def _renumbered(numbers: Any, when: Any) -> list[int]:
    """Numbers from 0 in the order in which they occur first; -1 for 0."""
    new: dict[int, int] = {0: -1}
    for n in numbers[np.argsort(when, kind="stable")].tolist():
        if n not in new:
            new[n] = len(new) - 1
    return [new[n] for n in numbers.tolist()]


def _dtype() -> np.dtype[Any]:
    """numpy's view of ``struct pgg_trace_event``."""
    fields = dict(ffi.typeof("struct pgg_trace_event").fields)
    kinds = {"int64_t": "<i8", "uint64_t": "<u8", "int32_t": "<i4"}
    return np.dtype(
        {
            "names": list(fields),
            "formats": [kinds.get(f.type.cname, "<u8") for f in fields.values()],  # the others are pointers
            "offsets": [f.offset for f in fields.values()],
            "itemsize": ffi.sizeof("struct pgg_trace_event"),
        }
    )


_DTYPE = _dtype()
