"""Rows, experts and tokens that are not there: given as inputs, held by weights, or computed by the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_case import Case

import pyggml as gg
from pyggml import ops
from pyggml.testing import tiny_gguf

SMALL = {"shares": [(1, 1)], "n_layer": 2, "n_embd": 64, "n_ff": 128, "n_vocab": 64, "head_dim": 16}

# operation -> format of its indices, their ne, the first number that is out of range, and the node made of (w, x, ids)
INDEXED: dict[str, tuple[str, tuple[int, ...], int, tuple[int, ...], tuple[int, ...], Callable[..., gg.Tensor]]] = {
    "get_rows": ("i32", (3,), 8, (16, 8), (16, 1), lambda w, x, ids: ops.get_rows(w, ids)),
    "set_rows": ("i64", (3,), 8, (16, 8), (16, 3), lambda w, x, ids: ops.set_rows(w, x, ids)),
    "mul_mat_id": ("i32", (2, 3), 4, (16, 8, 4), (16, 1, 3), lambda w, x, ids: ops.mul_mat_id(w, x, ids)),
    "add_id": ("i32", (2, 3), 4, (16, 4), (16, 2, 3), lambda w, x, ids: ops.add_id(x, w, ids)),
}
_SPLIT = {"get_rows": "S0", "set_rows": "M", "mul_mat_id": "S1", "add_id": "M"}  # of the tensor that is indexed
DEVICES: dict[str, Callable[[str], Any]] = {
    "cpu": lambda op: gg.cpu(),
    "vcpu:1": lambda op: gg.MetaDevice("vcpu:1"),
    "vcpu:2, mirrored": lambda op: gg.MetaDevice("vcpu:2"),
    "vcpu:2, split": lambda op: gg.MetaDevice("vcpu:2", [("^w$", _SPLIT[op])]),
    "vcpu:3, split": lambda op: gg.MetaDevice("vcpu:3", [("^w$", _SPLIT[op])]),
}
REFUSED = (gg.IndexRangeError, gg.ArgumentError)  # the latter by native code, where the index is only known then


def _array(ne: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return np.ones(tuple(reversed(ne)), dtype)


def _bad(limit: int, dtype: str) -> list[int]:
    return [-1, -2, limit, limit + 1, 1000, -(2**31), 2**31 - 1] + ([2**33, -(2**40), 2**63 - 1] if dtype == "i64" else [])


def _ids(ne: tuple[int, ...], dtype: str, value: int, where: int) -> np.ndarray:
    # distinct, so that only one index is wrong
    n = int(np.prod(ne))
    ids = (np.arange(n) % 3).astype(np.int64 if dtype == "i64" else np.int32)
    ids[where % n] = value
    return ids.reshape(tuple(reversed(ne)))


def _as_input(device: Any, op: str, value: int, where: int) -> None:
    dtype, ids_ne, _, w_ne, x_ne, make = INDEXED[op]
    with gg.Weights(device, {"w": _array(w_ne)}) as weights, gg.Graph(device, size=32, threads=2) as graph:
        w = weights["w"] if op != "set_rows" else graph.input("w", w_ne)
        node = make(w, graph.input("x", x_ne), graph.input("ids", ids_ne, dtype))
        graph.output("y", node.cont() if op == "set_rows" else node)
        values = {"x": _array(x_ne), "ids": _ids(ids_ne, dtype, value, where), **({"w": _array(w_ne)} if op == "set_rows" else {})}
        graph.run(values)


def _as_weight(device: Any, op: str, value: int, where: int) -> None:
    dtype, ids_ne, _, w_ne, x_ne, make = INDEXED[op]
    with gg.Weights(device, {"w": _array(w_ne), "ids": _ids(ids_ne, dtype, value, where)}) as weights, gg.Graph(device, size=32, threads=2) as graph:
        w = weights["w"] if op != "set_rows" else graph.input("w", w_ne)
        node = make(w, graph.input("x", x_ne), weights["ids"])
        graph.output("y", node.cont() if op == "set_rows" else node)
        graph.run({"x": _array(x_ne), **({"w": _array(w_ne)} if op == "set_rows" else {})})


def _computed(device: Any, op: str, value: int, where: int) -> None:
    """The indices are an i32 cast of floats: nobody can know them before."""
    _, ids_ne, _, w_ne, x_ne, make = INDEXED[op]
    with gg.Weights(device, {"w": _array(w_ne)}) as weights, gg.Graph(device, size=32, threads=2) as graph:
        w = weights["w"] if op != "set_rows" else graph.input("w", w_ne)
        ids = ops.cast(ops.scale(graph.input("f", ids_ne), 1.0), "i32")
        node = make(w, graph.input("x", x_ne), ids.rename("ids"))
        graph.output("y", node.cont() if op == "set_rows" else node)
        values = _ids(ids_ne, "i64", value, where).astype(np.float32)
        graph.run({"x": _array(x_ne), "f": values, **({"w": _array(w_ne)} if op == "set_rows" else {})})


def _later(device: Any, op: str) -> Callable[[int], object]:
    """A graph that ran well before; only this run's index is wrong."""
    dtype, ids_ne, _, w_ne, x_ne, make = INDEXED[op]
    graph = gg.Graph(device, size=32, threads=2)
    w = graph.input("w", w_ne)
    node = make(w, graph.input("x", x_ne), graph.input("ids", ids_ne, dtype))
    graph.output("y", node.cont() if op == "set_rows" else node)
    good = {"x": _array(x_ne), "w": _array(w_ne), "ids": _ids(ids_ne, dtype, 2, 5)}
    if op == "set_rows":
        good["ids"] = np.arange(3, dtype=np.int64)
    graph.run(good)

    def act(value: int) -> None:
        try:
            graph.run({**good, "ids": _ids(ids_ne, dtype, value, 1)})
        finally:
            graph.run(good)  # refused before anything ran: not poisoned

    return act


def _graphs() -> Iterator[Case]:
    for label, make_device in DEVICES.items():
        for op, (dtype, _, limit, *_rest) in INDEXED.items():
            device = make_device(op)
            for number, value in enumerate(_bad(limit, dtype)):
                yield Case(f"{op} on {label}: input index {value}", lambda d=device, o=op, v=value, w=number: _as_input(d, o, v, w), ("ids", str(value)), REFUSED)
                yield Case(f"{op} on {label}: weight index {value}", lambda d=device, o=op, v=value, w=number: _as_weight(d, o, v, w), ("ids", str(value)), REFUSED)
            for number, value in enumerate((-1, limit, limit + 7, 100000)):
                yield Case(f"{op} on {label}: computed index {value}", lambda d=device, o=op, v=value, w=number: _computed(d, o, v, w), ("ids", str(value)), REFUSED)
            act = _later(device, op)
            for value in (-1, limit):
                yield Case(f"{op} on {label}: in a later run, {value}", lambda a=act, v=value: a(v), ("ids", str(value)), (gg.IndexRangeError,))


def _tokens(folder: Path) -> Iterator[Case]:
    path = tiny_gguf(folder / "tiny.gguf", **SMALL).path  # type: ignore[arg-type]
    for device, mode in ((None, "none"), ("vcpu:2", "tensor"), ("vcpu:2", "layer")):
        model = gg.Model(path, device, split_mode=mode, n_ctx=64, n_batch=16, threads=1)
        right = model.logits([1, 2, 3])
        for value in (-1, 64, 65, 1000, 2**31 - 1, -(2**31), 2**40):
            for where in (0, 2):
                tokens = [1, 2, 3]
                tokens[where] = value

                def act(m: gg.Model = model, t: list[int] = tokens, r: np.ndarray = right) -> None:
                    try:
                        m.logits(t)
                    finally:
                        assert np.array_equal(m.logits([1, 2, 3]), r), "later logits differ"

                yield Case(f"token {value} on {device} ({mode})", act, (str(value), "63"), (gg.IndexRangeError,))
        for tokens in ([], [[1, 2]], [1.0], ["a"], None, [None], np.zeros((2, 2), int), 5, "text", [True]):
            yield Case(f"tokens {tokens!r}", lambda m=model, t=tokens: m.logits(t), ("token",), (gg.ArgumentError,))
        yield Case(f"65 tokens on {device}", lambda m=model: m.logits([1] * 65), ("65", "64", "n_ctx"), (gg.ArgumentError,))


def cases(folder: Path) -> Iterator[Case]:
    yield from _graphs()
    yield from _tokens(folder)
