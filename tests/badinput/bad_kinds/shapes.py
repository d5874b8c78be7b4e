"""Shapes that do not fit: of operations, inputs, weights, values given to a run, arrays to read into."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_case import Case, Unexpected

import pyggml as gg
from pyggml import ops

REFUSED = (gg.ShapeError, gg.ArgumentError, gg.UnsupportedError)

# operation -> (format and ne of each tensor, how the node is made)
Tensors = tuple[tuple[str, tuple[int, ...]], ...]
OPERATIONS: dict[str, tuple[Tensors, Callable[..., gg.Tensor]]] = {
    "add": ((("f32", (8, 4)), ("f32", (8,))), ops.add),
    "sub": ((("f32", (8, 4, 2)), ("f32", (8, 4))), ops.sub),
    "mul": ((("f32", (8, 4, 2)), ("f32", (8, 4, 2))), ops.mul),
    "div": ((("f32", (6, 4)), ("f32", (3, 2))), ops.div),
    "mul_mat": ((("f32", (16, 6)), ("f32", (16, 5))), ops.mul_mat),
    "mul_mat_id": ((("f32", (16, 6, 4)), ("f32", (16, 2, 5)), ("i32", (2, 5))), ops.mul_mat_id),
    "add_id": ((("f32", (8, 2, 5)), ("f32", (8, 4)), ("i32", (2, 5))), ops.add_id),
    "get_rows": ((("f32", (8, 4)), ("i32", (3,))), ops.get_rows),
    "set_rows": ((("f32", (8, 6)), ("f32", (8, 3)), ("i64", (3,))), ops.set_rows),
    "soft_max_ext": ((("f32", (8, 4, 2)), ("f32", (8, 4))), lambda a, m: ops.soft_max_ext(a, m, 1.0, 0.0)),
    "rope": ((("f32", (16, 2, 5)), ("i32", (5,))), lambda a, b: ops.rope(a, b, 16, "neox")),
    "concat": ((("f32", (8, 4)), ("f32", (8, 3))), lambda a, b: ops.concat(a, b, 1)),
    "cpy": ((("f32", (8, 4)), ("f32", (32,))), ops.cpy),
    "repeat": ((("f32", (4, 2)), ("f32", (8, 4))), ops.repeat),
    "swiglu_split": ((("f32", (8, 4)), ("f32", (8, 4))), ops.swiglu_split),
    "cross_entropy_loss": ((("f32", (8, 4)), ("f32", (8, 4))), ops.cross_entropy_loss),
    "count_equal": ((("i32", (8, 4)), ("i32", (8, 4))), ops.count_equal),
    "flash_attn_ext": (
        (("f32", (16, 5, 4)), ("f32", (16, 32, 2)), ("f32", (16, 32, 2)), ("f16", (32, 5))),
        lambda q, k, v, m: ops.flash_attn_ext(q, k, v, m, 1.0),
    ),
    "im2col": ((("f16", (3, 3, 2, 4)), ("f32", (8, 8, 2, 1))), lambda a, b: ops.im2col(a, b, 1, 1, 0, 0, 1, 1)),
    "conv_2d": ((("f16", (3, 3, 2, 4)), ("f32", (8, 8, 2, 1))), ops.conv_2d),
    "ssm_conv": ((("f32", (8, 6, 1)), ("f32", (4, 6))), ops.ssm_conv),
    "group_norm": ((("f32", (4, 4, 6, 1)),), lambda a: ops.group_norm(a, 3)),
}
_WRONG = (lambda n: n + 1, lambda n: n * 2 + 1, lambda n: 1, lambda n: n * 3)


def _values(dtype: str, tensor: gg.Tensor) -> np.ndarray:
    kind = tensor.dtype.numpy
    return np.zeros(tensor.shape, kind) if np.dtype(kind).kind == "i" else np.ones(tensor.shape, kind)


def build_and_run(device: Any, tensors: Tensors, make: Callable[..., gg.Tensor]) -> None:
    """Whatever can be built must also run, or be refused."""
    with gg.Graph(device, size=64, threads=1) as graph:
        inputs = [graph.input(f"in{i}", ne, dtype) for i, (dtype, ne) in enumerate(tensors)]
        graph.output("out", make(*inputs))
        graph.run({t.name: _values(d, t) for (d, _), t in zip(tensors, inputs)})


def _operations() -> Iterator[Case]:
    cpu = gg.cpu()
    meta = gg.MetaDevice("vcpu:2")
    for op, (tensors, make) in OPERATIONS.items():
        for i, axis, wrong in itertools.product(range(len(tensors)), range(4), _WRONG):
            dtype, ne = tensors[i]
            full = [*ne, 1, 1, 1, 1][:4]
            new = wrong(full[axis])
            if new == full[axis]:
                continue
            full[axis] = new
            changed = (*tensors[:i], (dtype, tuple(full)), *tensors[i + 1 :])
            device = meta if (axis + i) % 3 == 0 else cpu
            yield Case(
                f"{op}{tuple(ne for _, ne in changed)} on {device.name}", lambda d=device, c=changed, m=make: build_and_run(d, c, m),
                (op.split("_2d")[0],), REFUSED, harmless=True,
            )  # fmt: skip


def _named(error: BaseException, op: str) -> None:
    if op not in str(error).lower():
        raise Unexpected(f"names no {op}: {error}")


def _of_no_elements() -> Iterator[Case]:
    """Views without elements: ggml divides by some of the sizes, which ended the process."""
    more: dict[str, tuple[Tensors, Callable[..., gg.Tensor]]] = {
        "out_prod": ((("f32", (6, 5, 2)), ("f32", (4, 5, 2))), ops.out_prod),
        "conv_1d_dw": ((("f16", (3, 1, 4)), ("f32", (8, 4))), ops.conv_1d_dw),
        "conv_3d": ((("f16", (3, 3, 3, 4)), ("f32", (6, 6, 6, 2))), lambda a, b: ops.conv_3d(a, b, 2)),
    }
    meta = gg.MetaDevice("vcpu:2")

    def act(device: Any, tensors: Tensors, make: Callable[..., gg.Tensor], empty: tuple[tuple[int, int], ...]) -> None:
        with gg.Graph(device, size=64, threads=1) as graph:
            sources = []
            for i, (dtype, ne) in enumerate(tensors):
                whole = graph.input(f"in{i}", ne, dtype)
                sizes = tuple(0 if (i, axis) in empty else n for axis, n in enumerate(whole.ne))
                sources.append(whole if sizes == whole.ne else ops.view(whole, sizes, nb=whole.nb[1:]))
            graph.output("out", make(*sources))
            graph.run({name: _values(t.dtype.name, t) for name, t in graph.inputs.items()})

    for number, (op, (tensors, make)) in enumerate((OPERATIONS | more).items()):
        axes = list(itertools.product(range(len(tensors)), range(4)))
        for k, empty in enumerate([*((a,) for a in axes), *itertools.combinations(axes, 2)]):
            device = meta if (k + number) % 3 == 0 else gg.cpu()
            yield Case(f"{op} with no elements along {empty} on {device.name}", lambda d=device, t=tensors, m=make, e=empty: act(d, t, m, e), (),
                       (*REFUSED, gg.IndexRangeError), harmless=True, check=lambda error, o=op.split("_2d")[0].split("_3d")[0]: _named(error, o))  # fmt: skip


def _unary() -> Iterator[Case]:
    def on(make: Callable[[gg.Tensor], object], ne: tuple[int, ...] = (8, 4), dtype: str = "f32") -> Callable[[], object]:
        def act() -> None:
            with gg.Graph(gg.cpu(), size=16) as graph:
                make(graph.input("a", ne, dtype))

        return act

    for ne in ((33,), (8, 5), (0,), (-1, -32), (8, 4, 1, 1, 1), (2**40, 2**40), ()):
        yield Case(f"reshape to {ne}", on(lambda a, ne=ne: ops.reshape(a, ne)), ("reshape",), REFUSED)
    for ne, offset in (((8, 5), 0), ((9, 4), 0), ((8, 4), 4), ((8, 4), 128), ((1,), 128), ((8,), 3), ((8,), -4), ((2**45,), 0), ((8, 2), 2**60)):
        yield Case(f"view {ne} at {offset}", on(lambda a, ne=ne, o=offset: ops.view(a, ne, offset=o)), ("view",), REFUSED)
    for nb in ((33,), (2**40,), (-32,), (32, 32), ()):
        yield Case(f"view with strides {nb}", on(lambda a, nb=nb: ops.view(a, (8, 4), nb=nb)), ("view",), REFUSED)
    for nb1, offset in ((33, 0), (32, 2), (30, 4), (34, 2)):  # between elements: whatever two floats have there would be added
        for name, call in {"acc": ops.acc, "set": ops.set}.items():
            yield Case(f"{name} into a window with nb1 {nb1} at {offset}", on(lambda a, f=call, n=nb1, o=offset: f(a, ops.view(a, (4, 2)), n, 128, 128, o)), (name, "multiple of 4"), REFUSED)  # fmt: skip
        yield Case(f"view with nb1 {nb1} at {offset}", on(lambda a, n=nb1, o=offset: ops.view(a, (4, 2), nb=(n,), offset=o)), ("view", "multiple of 4"), REFUSED)
    for axes in ((0, 1, 2, 2), (0, 1, 2, 4), (-1, 0, 1, 2), (4, 5, 6, 7), (0, 0, 0, 0)):
        yield Case(f"permute {axes}", on(lambda a, x=axes: ops.permute(a, *x)), ("permute",), REFUSED)
    for k in (0, -1, 9, 100, 2**40):
        yield Case(f"top_k {k}", on(lambda a, k=k: ops.top_k(a, k)), ("top_k",), REFUSED)
        yield Case(f"argsort_top_k {k}", on(lambda a, k=k: ops.argsort_top_k(a, k)), ("argsort_top_k",), REFUSED)
    for pads in ((-1, 0, 0, 0), (0, -9, 0, 0), (2**40, 2**40, 0, 0)):
        yield Case(f"pad {pads}", on(lambda a, p=pads: ops.pad(a, *p)), ("pad",), REFUSED)
    for n in (0, -3, 4, 5, 7):
        yield Case(f"group_norm of 6 channels in {n}", on(lambda a, n=n: ops.group_norm(a, n), (4, 4, 6)), ("group_norm",), REFUSED)
    for ne in ((7,), (5, 4), (1,)):
        for name in ("swiglu", "reglu", "geglu", "geglu_erf"):
            yield Case(f"{name} of {ne}", on(lambda a, f=getattr(ops, name): f(a), ne), (name.split("_")[0],), REFUSED)
    for axis in (-1, 4, 17):
        yield Case(f"concat along {axis}", on(lambda a, x=axis: ops.concat(a, a, x)), ("concat",), REFUSED)


def _inputs_and_weights() -> Iterator[Case]:
    def graph_input(ne: Any, dtype: str = "f32") -> None:
        with gg.Graph(gg.cpu(), size=8) as graph:
            graph.input("tokens", ne, dtype)

    for ne in ((), (0,), (4, 0), (-1,), (1, 2, 3, 4, 5), (8, -8), (4, 4, 0, 4), (2**62, 2**62), (2**70,), (2**40, 2**40)):
        yield Case(f"input ne {ne}", lambda ne=ne: graph_input(ne), ("tokens",), REFUSED)
    for dtype, block in (("q4_0", 32), ("q8_0", 32), ("q4_K", 256), ("iq4_nl", 32), ("q6_K", 256), ("mxfp4", 32)):
        for n in (1, block - 1, block + 1, block // 2, 3 * block + 16):
            yield Case(f"input {dtype} ne[0]={n}", lambda n=n, d=dtype: graph_input((n, 2), d), ("tokens", str(n), dtype), REFUSED)

    meta = gg.MetaDevice("vcpu:2")
    for shape in ((0,), (4, 0), (0, 4), (1, 2, 3, 4, 5), (2, 2, 2, 2, 2, 2), (4, 0, 4)):
        for device in (gg.cpu(), meta):
            array = np.zeros(shape, np.float32)
            yield Case(f"weight of shape {shape}", lambda d=device, a=array: gg.Weights(d, {"good": np.ones(4, np.float32), "odd": a}), ("odd",), REFUSED)
    for ne in ((0,), (-4,), (4, -1), (2**40, 2**40), (1, 1, 1, 1, 1), (2**63,), (2**31, 2**31, 2**31)):
        yield Case(f"empty weight ne {ne}", lambda ne=ne: gg.Weights.empty(meta, {"odd": (gg.as_dtype("f32"), ne)}), ("odd",), REFUSED)
    for n in (1, 31, 33, 48):
        yield Case(f"quantize {n} to q8_0", lambda n=n: gg.quantize(np.zeros((2, n), np.float32), "q8_0"), (str(n), "q8_0"), REFUSED)
        yield Case(
            f"QuantizedArray of {n} bytes", lambda n=n: gg.QuantizedArray(gg.as_dtype("q8_0"), (2, 32), np.zeros(n, np.uint8)), (str(n),), REFUSED
        )


def _values_of_runs() -> Iterator[Case]:
    wrong = [(), (8,), (5,), (8, 5), (5, 9), (4, 8), (6, 8), (5, 8, 1), (1, 5, 8, 2), (40,), (0, 8), (5, 0), (2, 5, 8), (1, 1, 1, 1, 40)]
    for device in (gg.cpu(), gg.MetaDevice("vcpu:2", [("w", "S1")]), gg.MetaDevice("vcpu:3")):
        weights = gg.Weights(device, {"w": np.ones((6, 8), np.float32)})
        graph = gg.Graph(device, size=16, threads=1)
        y = graph.output("y", weights["w"] @ graph.input("x", (8, 5)))
        for shape in wrong:
            if shape == (5, 8, 1):
                continue
            yield Case(f"run with x of shape {shape} on {device.name}", lambda g=graph, s=shape: g.run(x=np.zeros(s, np.float32)), ("'x'", str(shape)), REFUSED)
        graph.run(x=np.ones((5, 8), np.float32))
        for shape in ((6, 5), (5, 5), (6,), (5, 6, 1), (30,), (0,)):
            yield Case(f"read into shape {shape} on {device.name}", lambda y=y, s=shape: y.numpy(np.empty(s, np.float32)), ("out", str(shape)), REFUSED)
        yield Case(
            f"read into a strided array on {device.name}", lambda y=y: y.numpy(np.empty((5, 12), np.float32)[:, ::2]), ("C order",), REFUSED
        )


def cases(folder: Path) -> Iterator[Case]:
    yield from _operations()
    yield from _of_no_elements()
    yield from _unary()
    yield from _inputs_and_weights()
    yield from _values_of_runs()
