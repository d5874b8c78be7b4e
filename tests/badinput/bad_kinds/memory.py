"""Memory that runs out: of virtual and simulated devices, for weights, graphs, models and contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_case import Case

import pyggml as gg
from pyggml import ops
from pyggml.model import ModelOptions, plan_model
from pyggml.testing import tiny_gguf

FULL = (gg.OutOfMemoryError,)
KIB, MIB = 1 << 10, 1 << 20


def _fits(device: Any) -> None:
    """The device is as good as before: nothing stayed allocated."""
    with gg.Weights(device, {"w": np.ones((4, 16), np.float32)}) as weights, gg.Graph(device, size=8) as graph:
        graph.output("y", weights["w"] @ graph.input("x", (16, 2)))
        y = graph.run(x=np.ones((2, 16), np.float32))["y"]
        if not all(d.is_simulated for d in getattr(device, "devices", [device])):
            assert np.array_equal(y, np.full((2, 4), 16.0)), "a small graph afterwards is wrong"


def _then_fits(device: Any, act: Callable[[], object]) -> Callable[[], object]:
    def do() -> None:
        try:
            act()
        finally:
            _fits(device)

    return do


def _big_weights(device: Any, n: int) -> None:
    gg.Weights(device, {"small": np.ones((4, 16), np.float32), "w": np.ones((n, 1024), np.float32)}).close()


def _big_graph(device: Any, n: int) -> None:
    with gg.Graph(device, size=64, threads=1) as graph:
        x = graph.input("x", (1024, 2))
        wide = ops.repeat_4d(x, 1024, n, 1, 1)
        graph.output("y", ops.sum_rows(ops.sqr(wide)))
        graph.run(x=np.ones((2, 1024), np.float32))


def _virtual() -> Iterator[Case]:
    for number, memory in enumerate((64 * KIB, 256 * KIB, MIB, 2 * MIB)):
        devices = gg.virtual_cpus(3, memory=memory, first=8 + 3 * number)
        targets = {
            "one": devices[0],
            "two, mirrored": gg.MetaDevice(devices[:2]),
            "two, split": gg.MetaDevice(devices[:2], [("^w$", "S1")]),
            "two, 3:1": gg.MetaDevice(devices[:2], [("^w$", "S1 3:1")]),
            "three": gg.MetaDevice(devices, [("^w$", "S1 1:2:1")]),
        }
        for label, device in targets.items():
            per_device = 3 if label == "three" else 2 if label.startswith("two, ") else 1
            for factor in (1, 2, 50):
                rows = factor * per_device * memory // 4096 + 64
                names = ("VCPU", f"{rows * 4096 + 256:,}")
                yield Case(f"weights of {rows} rows on {label} of {memory} bytes", _then_fits(device, lambda d=device, n=rows: _big_weights(d, n)), names, FULL)
                yield Case(f"graph of {rows} rows on {label} of {memory} bytes", _then_fits(device, lambda d=device, n=rows: _big_graph(d, n)), ("VCPU", "cannot allocate", "in use"), FULL)


def _simulated() -> Iterator[Case]:
    for memory in (64 * KIB, MIB, 64 * MIB):
        devices = gg.simulated("SMALL", n=2, memory=memory)
        meta = gg.MetaDevice(devices, [("^w$", "S1 3:1")])
        for device in (devices[0], meta):
            for factor in (2, 9, 1000):
                shape = (1024, factor * memory // 4096 + 64)
                yield Case(
                    f"empty weights {shape} on {device.name} of {memory}",
                    lambda d=device, s=shape: gg.Weights.empty(d, {"w": (gg.as_dtype("f32"), s)}), ("SMALL",), FULL,
                )  # fmt: skip
                yield Case(f"plan of a graph of {shape} on {device.name} of {memory}", lambda d=device, n=shape[1]: _planned(d, n), ("SMALL", "bytes asked for", "bytes free"), FULL)


def _planned(device: Any, n: int) -> None:
    with gg.Graph(device, size=64) as graph:
        x = graph.input("x", (1024, 2))
        graph.output("y", ops.sum_rows(ops.sqr(ops.repeat_4d(x, 1024, n, 1, 1))))
        graph.plan()


def _host() -> Iterator[Case]:
    # far more than any machine has: refused by the host, not killed by it
    for device in (gg.cpu(), gg.virtual_cpus(1)[0], gg.MetaDevice("vcpu:2", [("^w$", "S1")])):
        for n in (2**34, 2**36, 2**37):
            yield Case(f"{n * 1024} elements on {device.name}", lambda d=device, n=n: gg.Weights.empty(d, {"w": (gg.as_dtype("f32"), (1024, n))}), ("memory",), FULL)
            yield Case(f"a graph of {n * 1024} elements on {device.name}", lambda d=device, n=n: _big_graph(d, n), ("memory",), FULL)


def _models(folder: Path) -> Iterator[Case]:
    path = tiny_gguf(folder / "tiny.gguf", "llama", shares=[(1, 1)], n_layer=2, n_vocab=2048).path
    # (memory of each device, context): the weights do not fit, the KV cache does not, the compute buffer does not
    first = 24
    for memory, n_ctx in ((64 * KIB, 64), (400 * KIB, 64), (MIB, 64), (3 * MIB, 65536), (4 * MIB, 100000), (6 * MIB, 262144)):
        devices = gg.virtual_cpus(2, memory=memory, first=first)
        first += 2
        for mode in ("tensor", "layer", "none"):
            yield Case(f"model over {memory} bytes, n_ctx={n_ctx}, {mode}", lambda d=devices, m=mode, c=n_ctx: gg.Model(path, d, split_mode=m, n_ctx=c, threads=1).close(), ("tiny.gguf",), FULL)  # fmt: skip
            yield Case(f"the same with a batch of 512, {mode}", lambda d=devices, m=mode, c=n_ctx: gg.Model(path, d, split_mode=m, n_ctx=c, n_batch=c, threads=1).close(), ("tiny.gguf",), FULL)  # fmt: skip
    for memory, n_ctx in ((64 * KIB, 64), (MIB, 64), (4 * MIB, 65536), (6 * MIB, 262144)):
        devices = gg.simulated("SMALL", n=2, memory=memory)
        yield Case(f"plan over {memory} bytes, n_ctx={n_ctx}", lambda d=devices, c=n_ctx: plan_model(path, d, options=ModelOptions("tensor", n_ctx=c)), ("SMALL",), FULL)


def cases(folder: Path) -> Iterator[Case]:
    yield from _virtual()
    yield from _simulated()
    yield from _host()
    yield from _models(folder)
