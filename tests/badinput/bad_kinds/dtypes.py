"""Number formats that are unknown, that an operation or device does not take, or that do not fit a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_case import Case, Unexpected

import pyggml as gg
from pyggml import ops
from pyggml.dtype import DTYPES

from .shapes import OPERATIONS

REFUSED = (gg.DTypeError, gg.UnsupportedError, gg.ShapeError, gg.ArgumentError)
FORMATS = ("f16", "bf16", "f64", "i8", "i16", "i32", "i64", "q4_0", "q8_0", "q4_K", "iq4_nl", "tq1_0", "q8_1", "q8_K", "iq2_xxs")

# what the checks let through, a device or its kernel refuses; then the node is named
AT_LAST = (*REFUSED, gg.SplitError, gg.GGMLAbort)


def _names_it(op: str, dtype: str) -> Callable[[BaseException], None]:
    def check(error: BaseException) -> None:
        text = str(error)
        if not ("'out'" in text if isinstance(error, gg.GGMLAbort) else op.split("_2d")[0] in text.lower() and (dtype in text or "'out'" in text)):
            raise Unexpected(f"names neither the node nor {op} and {dtype}: {text}")

    return check


def _run(device: Any, op: str, which: int, dtype: str) -> None:
    tensors, make = OPERATIONS[op]
    block = DTYPES[dtype].block_size
    with gg.Graph(device, size=64, threads=1) as graph:
        made, values = [], {}
        for i, (own, ne) in enumerate(tensors):
            kind = dtype if i == which else own
            if block > 1 and i == which:  # whole blocks everywhere along axis 0, so that only the format is wrong
                ne = (block * ne[0], *ne[1:])
            elif block > 1 and ne[0] == tensors[which][1][0]:
                ne = (block * ne[0], *ne[1:])
            t = graph.input(f"in{i}", ne, kind)
            made.append(t)
            if t.dtype.numpy is not None:
                values[t.name] = np.zeros(t.shape, t.dtype.numpy)
            else:
                values[t.name] = gg.QuantizedArray(t.dtype, tuple(reversed(t.ne)), np.zeros(t.nbytes, np.uint8))
        graph.output("out", make(*made))
        graph.run(values)


def _operations() -> Iterator[Case]:
    cpu, meta = gg.cpu(), gg.MetaDevice("vcpu:2")
    for op, (tensors, _) in OPERATIONS.items():
        for which in range(len(tensors)):
            for number, dtype in enumerate(FORMATS):
                if dtype == tensors[which][0]:
                    continue
                device = meta if (number + which) % 3 == 0 else cpu
                yield Case(f"{op} with {dtype} for in{which} on {device.name}", lambda d=device, o=op, w=which, t=dtype: _run(d, o, w, t),
                           (), AT_LAST, harmless=True, check=_names_it(op, dtype))  # fmt: skip


def _conversions() -> Iterator[Case]:
    """From each format to each: kernels called functions that were not there, which ended the process."""
    rng = np.random.default_rng(0)

    def act(make: Callable[[gg.Tensor, gg.Tensor], gg.Tensor], source: str) -> None:
        with gg.Graph(gg.cpu(), size=16, threads=1) as graph:
            a, b = graph.input("a", (256, 2), source), graph.input("b", (256, 2))
            kind = a.dtype.numpy
            value = gg.QuantizedArray(a.dtype, (2, 256), rng.integers(0, 256, a.nbytes).astype(np.uint8)) if kind is None else np.ones((2, 256), kind)
            graph.output("out", make(a, b))
            graph.run({"a": value, "b": np.ones((2, 256), np.float32)})

    for source in DTYPES:
        yield Case(f"add of {source} and f32", lambda s=source: act(lambda a, b: ops.add(a, b), s), (), AT_LAST, harmless=True, check=_names_it("add", source))
        for to in DTYPES:
            for op, make in {"cast": lambda a, b, t=to: ops.cast(a, t), "add_cast": lambda a, b, t=to: ops.add_cast(a, b, t)}.items():
                yield Case(f"{op} of {source} to {to}", lambda m=make, s=source: act(m, s), (), (*AT_LAST, gg.IndexRangeError), harmless=True, check=_names_out_or(op))


def _names_out_or(op: str) -> Callable[[BaseException], None]:
    def check(error: BaseException) -> None:
        if not any(word in str(error) for word in (op, "'out'", "cannot convert")):
            raise Unexpected(f"names neither the node nor {op}: {error}")

    return check


def _names() -> Iterator[Case]:
    unknown = ("", "f33", "q4", "q4_0 ", "int4", "fp8", "Q9_K", "float128", "q4_k_m", "u8", "f32,", "é", "\0", "complex64", "bool", "None", "q4_0_4_4")
    for name in unknown:
        if name.strip() in DTYPES:
            continue
        yield Case(f"as_dtype({name!r})", lambda n=name: gg.as_dtype(n), (repr(name),), (gg.DTypeError,))
        yield Case(f"input of {name!r}", lambda n=name: gg.Graph(gg.cpu(), size=4).input("x", (32,), n), (repr(name),), (gg.DTypeError,))
    for other in (None, 1, 2.5, [], {}, object(), np.complex64, np.uint32, np.dtype("S3"), np.dtype([("a", "f4")]), bytes, dict, "U3", np.datetime64):
        yield Case(f"as_dtype({other!r})", lambda n=other: gg.as_dtype(n), (), (gg.DTypeError,))


def _arrays() -> Iterator[Case]:
    odd = [np.zeros(32, t) for t in ("c8", "c16", "u2", "u4", "u8", "S4", "U4", "M8[s]", "m8[s]", "O", "V4", "?", "u1")]
    for device in (gg.cpu(), gg.MetaDevice("vcpu:2")):
        for array in odd:
            yield Case(f"weight of {array.dtype} on {device.name}", lambda d=device, a=array: gg.Weights(d, {"odd": a}), ("odd",), (gg.DTypeError,))
        for value in ("text", object(), None, {"a": 1}, [["a"]]):
            yield Case(f"weight {value!r:.30} on {device.name}", lambda d=device, v=value: gg.Weights(d, {"odd": v}), ("odd",), (gg.DTypeError,))
    for to in ("q8_0", "q4_K", "f16"):
        for array in odd:
            yield Case(f"quantize {array.dtype} to {to}", lambda a=array, t=to: gg.quantize(np.resize(a, 256), t), (to,), (gg.DTypeError,))
    for value in (np.nan, np.inf, -np.inf, 1e39):
        for to in ("q8_0", "q4_0", "q6_K", "iq4_nl", "bf16"):
            yield Case(f"quantize {value} to {to}", lambda v=value, t=to: gg.quantize(np.full(256, v), t), (to,), (gg.DTypeError,))
    for name, dtype in DTYPES.items():
        array = np.ones((2, 256), np.float32)
        if not dtype.has_quantizer:
            yield Case(f"quantize to {name}", lambda a=array, n=name: gg.quantize(a, n), (name,), (gg.UnsupportedError,))
        elif dtype.needs_imatrix:
            yield Case(f"quantize to {name} without imatrix", lambda a=array, n=name: gg.quantize(a, n), (name, "imatrix"), (gg.DTypeError,))


def _runs() -> Iterator[Case]:
    values: list[Any] = [np.zeros((5, 32), t) for t in ("c8", "S4", "U4", "O", "M8[s]", "V4")]
    values += ["text", None, object(), {"a": 1}, gg.quantize(np.zeros((5, 32), np.float32), "q8_0"), gg.quantize(np.zeros((5, 32), np.float32), "f16")]
    whole: list[Any] = [*(np.zeros(5, t) for t in ("f4", "f8", "c8", "S4", "O")), np.array([0, 0, 0, 0, 2**40]), "text", None, [0.5] * 5]
    for device in (gg.cpu(), gg.MetaDevice("vcpu:2", [("w", "S1")])):
        weights = gg.Weights(device, {"w": np.ones((6, 32), np.float32)})
        graph = gg.Graph(device, size=16, threads=1)
        x, rows = graph.input("x", (32, 5)), graph.input("rows", (5,), "i32")
        y = graph.output("y", weights["w"] @ gg.ops.get_rows(x, rows))
        good = {"x": np.zeros((5, 32), np.float32), "rows": np.zeros(5, np.int32)}
        for value in values:
            yield Case(f"run with x = {type(value).__name__} {getattr(value, 'dtype', '')}", lambda g=graph, v=value, o=good: g.run({**o, "x": v}), ("'x'",), (gg.DTypeError, gg.ShapeError))  # fmt: skip
        for value in whole:
            yield Case(f"run with rows = {value!r:.40}", lambda g=graph, v=value, o=good: g.run({**o, "rows": v}), ("'rows'",), (gg.DTypeError, gg.ShapeError))
        graph.run(good)
        for t in ("f8", "f2", "i4", "c8"):
            yield Case(f"read into {t} on {device.name}", lambda y=y, t=t: y.numpy(np.empty((5, 6), t)), ("out",), (gg.DTypeError,))
        q = gg.Graph(device, size=16, threads=1)
        q.output("y", q.input("w", (32, 2), "q8_0") @ q.input("x", (32, 2)))
        x2 = np.zeros((2, 32), np.float32)
        for value in (x2, gg.quantize(x2, "q4_0"), gg.quantize(x2, "f16"), x2.astype(np.int8)):
            yield Case(f"run a q8_0 input with {getattr(value, 'dtype', '')} on {device.name}", lambda g=q, v=value, x=x2: g.run(w=v, x=x), ("'w'", "q8_0"), (gg.DTypeError,))  # fmt: skip


def cases(folder: Path) -> Iterator[Case]:
    yield from _operations()
    yield from _conversions()
    yield from _names()
    yield from _arrays()
    yield from _runs()
