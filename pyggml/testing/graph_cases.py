"""Graphs described as values: built on any device, computed in float64 by numpy, and judged.

A `GraphCase` says everything (operations, shapes, splits, seeds) and fits into a line of JSON, so that a failure can be
kept in a file and replayed. `judge` builds it on split virtual CPU devices and on one, and compares.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..comparison import nmse
from ..device import cpu, virtual_cpus
from ..dtype import QuantizedArray, as_dtype, dequantize, quantize
from ..errors import SplitError
from ..graph import Graph
from ..meta import MetaDevice
from ..tensor import Tensor
from ..weights import Weights

__all__ = ["OPS", "GraphCase", "Leaf", "Op", "Outcome", "Step", "judge"]

Array = npt.NDArray[Any]
_F16_RANGE = 6e4
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Leaf:
    """A weight (split by a rule of its own) or an input."""

    ne: Shape
    split: str = "M"
    """In the short notation; inputs are always whole."""
    dtype: str = "f32"
    kind: str = "weight"
    """``weight``; ``input``; ``rows``: an input of indices below ``limit``, all different along axis 0."""
    limit: int = 0


@dataclass(frozen=True)
class Step:
    """An operation on tensors by number: leafs first, then the steps before it."""

    op: str
    sources: tuple[int, ...]
    params: tuple[int, ...] = ()


@dataclass(frozen=True)
class GraphCase:
    """A graph, its values and its devices."""

    shares: tuple[int, ...]
    leafs: tuple[Leaf, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    """Numbers of steps (from 0) whose values are read; the last one always is."""
    seed: int = 0
    values: str = "normal"
    """``normal``, ``uniform`` (positive), ``outliers``, ``zeros`` (half of them)."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GraphCase:
        """What `to_json` wrote."""
        d = json.loads(text)
        return cls(
            tuple(d["shares"]),
            tuple(Leaf(_shape(x.pop("ne")), **x) for x in d["leafs"]),
            tuple(Step(x["op"], tuple(x["sources"]), tuple(x["params"])) for x in d["steps"]),
            tuple(d["outputs"]), d["seed"], d["values"],
        )  # fmt: skip


def _shape(ne: Sequence[int]) -> Shape:
    return (*ne, 1, 1, 1, 1)[:4]  # type: ignore[return-value]


@dataclass(frozen=True)
class Op:
    """What an operation needs, returns and computes; arrays are in numpy's order with four axes."""

    build: Callable[..., Tensor]
    """Of the sources and parameters."""
    shape: Callable[..., Shape | None]
    """The result's ne from the sources' ne and the parameters; None where it is not possible."""
    numpy: Callable[..., Array] | None
    """None: no simple reference."""


def _same(*ne: Shape) -> Shape | None:
    return ne[0] if all(n == ne[0] for n in ne) else None


def _unary(f: Callable[[Array], Array], build: Callable[..., Tensor]) -> Op:
    return Op(build, lambda a: a, f)


def _broadcast(a: Shape, b: Shape) -> Shape | None:
    return a if all(n == m or m == 1 for n, m in zip(a, b, strict=True)) else None


def _mul_mat(a: Shape, b: Shape) -> Shape | None:
    if a[0] != b[0] or b[2] % a[2] or b[3] % a[3]:
        return None
    return (a[1], b[1], b[2], b[3])


def _np_mul_mat(a: Array, b: Array) -> Array:
    wide = a.repeat(b.shape[1] // a.shape[1], 1).repeat(b.shape[0] // a.shape[0], 0)
    return np.asarray(np.einsum("dcmk,dcnk->dcnm", wide, b))


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _permuted(a: Shape, axes: Sequence[int]) -> Shape:
    out = [0] * 4
    for i, to in enumerate(axes):
        out[to] = a[i]
    return _shape(out)


PERMUTATIONS = ((1, 0, 2, 3), (0, 2, 1, 3), (2, 1, 0, 3), (1, 2, 0, 3), (2, 0, 1, 3))


def _np_permute(a: Array, p: int) -> Array:
    order = [0] * 4  # numpy's axis 3 is ggml's axis 0
    for i, to in enumerate(PERMUTATIONS[p]):
        order[3 - to] = 3 - i
    return np.asarray(a.transpose(order))


# ways to see the same elements with other axes
def _reshaped(a: Shape, way: int) -> Shape | None:
    x, y, z, w = a
    if way == 0:  # heads out of axis 0
        return (16, x // 16, y, z) if x % 16 == 0 and x > 16 and w == 1 else None
    if way == 1:  # heads back into axis 0
        return (x * y, z, w, 1)
    if way == 2:  # the axes behind the first become one
        return (x, y * z * w, 1, 1)
    return (x // 2, 2 * y, z, w) if x % 2 == 0 and x > 2 else None


def _part(a: Shape, axis: int, half: int) -> Shape | None:
    if a[axis] % 2:
        return None
    return _shape([n // 2 if k == axis else n for k, n in enumerate(a)])


def _build_part(a: Tensor, axis: int, half: int) -> Tensor:
    ne, nb = list(_shape(a.ne)), list(a.nb)
    ne[axis] //= 2
    return ops.cont(ops.view(a, *ne, nb=nb[1:4], offset=half * ne[axis] * nb[axis]))


def _np_part(a: Array, axis: int, half: int) -> Array:
    return np.asarray(np.split(a, 2, 3 - axis)[half])


def _concat(a: Shape, b: Shape, axis: int) -> Shape | None:
    if any(n != m for k, (n, m) in enumerate(zip(a, b, strict=True)) if k != axis):
        return None
    return _shape([n + m if k == axis else n for k, (n, m) in enumerate(zip(a, b, strict=True))])


def _np_rows(a: Array, rows: Array) -> Array:
    return np.asarray(a[:, :, rows.reshape(-1), :])


def _np_set_rows(a: Array, b: Array, rows: Array) -> Array:
    out = np.array(a)
    out[:, :, rows.reshape(-1), :] = b
    return out


def _mul_mat_id(w: Shape, x: Shape, ids: Shape) -> Shape | None:
    # x [K, 1 or used, tokens], ids [used, tokens]
    if w[0] != x[0] or w[3] != 1 or x[3] != 1 or x[2] != ids[1] or x[1] not in (1, ids[0]) or ids[2:] != (1, 1):
        return None
    return (w[1], ids[0], x[2], 1)


def _np_mul_mat_id(w: Array, x: Array, ids: Array) -> Array:
    chosen = w[0][ids[0, 0]]  # [tokens, used, M, K]
    wide = np.broadcast_to(x[0], (x.shape[1], chosen.shape[1], x.shape[3]))
    return np.asarray(np.einsum("tumk,tuk->tum", chosen, wide)[None])


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(-x)))


def _np_swiglu(a: Array) -> Array:
    gate, up = np.split(a, 2, 3)
    return np.asarray(_silu(gate) * up)


OPS: Mapping[str, Op] = {
    "mul_mat": Op(ops.mul_mat, _mul_mat, _np_mul_mat),
    "mul_mat_id": Op(ops.mul_mat_id, _mul_mat_id, _np_mul_mat_id),
    "silu": _unary(_silu, ops.silu),
    "relu": _unary(lambda x: np.maximum(x, 0), ops.relu),
    "tanh": _unary(np.tanh, ops.tanh),
    "neg": _unary(np.negative, ops.neg),
    "abs": _unary(np.abs, ops.abs),
    "sqr": _unary(np.square, ops.sqr),
    "scale": _unary(lambda x: 0.5 * x, lambda a: ops.scale(a, 0.5)),
    "clamp": _unary(lambda x: np.clip(x, -1, 1), lambda a: ops.clamp(a, -1.0, 1.0)),
    "add": Op(ops.add, _broadcast, np.add),
    "mul": Op(ops.mul, _broadcast, np.multiply),
    "swiglu": Op(ops.swiglu, lambda a: (a[0] // 2, *a[1:]) if a[0] % 2 == 0 else None, _np_swiglu),
    "swiglu_split": Op(ops.swiglu_split, _same, lambda a, b: _silu(a) * b),
    "rms_norm": _unary(lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5), ops.rms_norm),
    "norm": _unary(lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5), ops.norm),
    "soft_max": _unary(_softmax, ops.soft_max),
    # of squares: a sum that cancels measures rounding, nothing else
    "sum_rows": Op(lambda a: ops.sum_rows(ops.sqr(a)), lambda a: (1, *a[1:]), lambda x: (x * x).sum(-1, keepdims=True)),
    "mean": Op(lambda a: ops.mean(ops.sqr(a)), lambda a: (1, *a[1:]), lambda x: (x * x).mean(-1, keepdims=True)),
    "cumsum": _unary(lambda x: x.cumsum(-1), ops.cumsum),
    "cont": _unary(lambda x: x, ops.cont),
    "dup": _unary(lambda x: x, ops.dup),
    "permute": Op(
        lambda a, p: ops.cont(ops.permute(a, *PERMUTATIONS[p])), lambda a, p: _permuted(a, PERMUTATIONS[p]), _np_permute
    ),
    "reshape": Op(lambda a, way: ops.reshape(a, _known(_reshaped(_shape(a.ne), way))), _reshaped,
                  lambda x, way: x.reshape(_known(_reshaped(_shape(x.shape[::-1]), way))[::-1])),
    "part": Op(_build_part, _part, _np_part),
    "concat": Op(ops.concat, _concat, lambda a, b, axis: np.concatenate([a, b], 3 - axis)),
    "repeat": Op(lambda a, axis: ops.repeat_4d(a, *(2 * n if k == axis else n for k, n in enumerate(_shape(a.ne)))),
                 lambda a, axis: _shape([2 * n if k == axis else n for k, n in enumerate(a)]),
                 lambda x, axis: np.concatenate([x, x], 3 - axis)),
    "get_rows": Op(ops.get_rows, lambda a, r: (a[0], r[0], 1, 1) if a[2:] == (1, 1) else None, _np_rows),
    # it writes into its first source: here into a copy, so that every step is a value
    "set_rows": Op(lambda a, b, r: ops.set_rows(ops.cont(a), b, r), lambda a, b, r: a if b == (a[0], r[0], 1, 1) and a[2:] == (1, 1) else None, _np_set_rows),
}  # fmt: skip


def _known(ne: Shape | None) -> Shape:
    assert ne is not None
    return ne


# --- values


def _values(case: GraphCase) -> list[Array | QuantizedArray]:
    out: list[Array | QuantizedArray] = []
    for i, leaf in enumerate(case.leafs):
        rng = np.random.default_rng([case.seed, i])
        shape = leaf.ne[::-1]
        if leaf.kind == "rows":
            kind = np.int64 if leaf.dtype == "i64" else np.int32
            rows = [rng.permutation(leaf.limit)[: leaf.ne[0]] for _ in range(math.prod(leaf.ne[1:]))]
            out.append(np.stack(rows).astype(kind).reshape(shape))
            continue
        x = rng.standard_normal(shape) if case.values != "uniform" else rng.uniform(0, 1, shape)
        if case.values == "outliers":
            x = np.where(rng.uniform(size=shape) < 0.02, 20 * x, x)
        elif case.values == "zeros":
            x = np.where(rng.uniform(size=shape) < 0.5, 0, x)
        if leaf.kind == "weight" and leaf.ne[1] > 1:
            x = x / math.sqrt(leaf.ne[0])
        dtype = as_dtype(leaf.dtype)
        if dtype.name == "f32":
            out.append(x.astype(np.float32))
        elif dtype.name == "f16":
            out.append(x.astype(np.float16))
        else:
            out.append(quantize(x.astype(np.float32), dtype))
    return out


def _reference(case: GraphCase, values: Sequence[Array | QuantizedArray]) -> list[Array] | None:
    """The steps' values in float64, or None where an operation has no numpy form."""
    known: list[Array] = []
    for leaf, value in zip(case.leafs, values, strict=True):
        plain = dequantize(value) if isinstance(value, QuantizedArray) else value
        known.append(plain.reshape(leaf.ne[::-1]).astype(np.float64 if leaf.kind != "rows" else np.int64))
    for step in case.steps:
        f = OPS[step.op].numpy
        if f is None:
            return None
        known.append(np.asarray(f(*(known[s] for s in step.sources), *step.params)))
    return known[len(case.leafs) :]


# --- judging


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    refused: str = ""
    """The SplitError's message; empty where it ran."""
    nmse_one: float = 0.0
    """Split against one device, the worst output."""
    nmse_exact: float = 0.0
    """Split against float64."""
    nmse_base: float = 0.0
    """One device against float64: what the arithmetic costs without any split."""
    allreduces: int = 0
    beyond: bool = False
    """A step's values leave the range of F16, to which kernels of some formats round: nothing can be said."""
    wrong: str = ""
    """What is a defect whatever the numbers are: a count that the plan has not, an error without a node."""


def _run(case: GraphCase, device: Any, values: Sequence[Array | QuantizedArray], plan: bool = False) -> tuple[dict[str, Array], Any]:
    weights = {f"w{i}": v for i, (leaf, v) in enumerate(zip(case.leafs, values, strict=True)) if leaf.kind == "weight"}
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(Weights(device, weights)) if weights else {}
        graph = stack.enter_context(Graph(device))
        tensors: list[Tensor] = []
        given = {}
        for i, leaf in enumerate(case.leafs):
            if leaf.kind == "weight":
                tensors.append(held[f"w{i}"])
            else:
                tensors.append(graph.input(f"in{i}", leaf.ne, leaf.dtype))
                given[f"in{i}"] = values[i]
        for step in case.steps:
            made = OPS[step.op].build(*(tensors[s] for s in step.sources), *step.params)
            tensors.append(made)
        for k in case.outputs:
            graph.output(f"out{k}", tensors[len(case.leafs) + k])
        names = {t.name for t in graph.nodes()} | set(weights)
        found = None
        try:
            if plan:
                found = graph.plan()
                for d in device.devices:
                    d.reset_stats()
            got = graph.run(given)
        except SplitError as error:
            if error.node not in names or repr(error.node) not in str(error):
                raise AssertionError(f"the message does not name a node of the graph: {error}") from error
            raise
        if found is not None:
            _check_counts(found, device)
        return got, found


def _check_counts(plan: Any, device: MetaDevice) -> None:
    for memory, d in zip(plan.memory, device.devices, strict=True):
        s = d.stats()
        counted = (s.allreduces, s.allreduce_bytes, s.copies, s.buffer_bytes)
        planned = (len(plan.allreduces), plan.allreduce_bytes, 0, memory.total)
        if counted != planned:
            raise AssertionError(f"{d.name} counted all-reduces, their bytes, copies, bytes {counted}, the plan says {planned}")


def judge(case: GraphCase) -> Outcome:
    """Runs a case split, whole on every device, on one device and on the CPU, and with numpy."""
    values = _values(case)
    exact = _reference(case, values)
    if exact is not None and any(np.abs(x).max() > _F16_RANGE for x in exact):
        return Outcome(beyond=True)
    one_device = virtual_cpus(1)[0]
    one, _ = _run(case, one_device, values)
    plain, _ = _run(case, cpu(), values)
    devices = virtual_cpus(len(case.shares))
    try:
        with MetaDevice(devices) as meta:
            mirrored, _ = _run(case, meta, values)
        for name in one:
            if not np.array_equal(one[name], mirrored[name], equal_nan=True):
                return Outcome(wrong=f"{name} differs between one device and several that have everything")
            if nmse(one[name], plain[name]) > 1e-9:
                return Outcome(wrong=f"{name} differs between a virtual CPU and the CPU")
        rules = [(f"^w{i}$", leaf.split) for i, leaf in enumerate(case.leafs) if leaf.kind == "weight"]
        with MetaDevice(devices, rules) as meta:
            try:
                split, plan = _run(case, meta, values, plan=True)
            except SplitError as error:
                return Outcome(refused=str(error))
    except AssertionError as error:
        return Outcome(wrong=str(error))
    worst = [max(nmse(split[n], one[n]) for n in one), 0.0, 0.0]
    if exact is not None:
        for k in case.outputs:
            want = exact[k].reshape(-1)
            worst[1] = max(worst[1], nmse(split[f"out{k}"].reshape(-1), want))
            worst[2] = max(worst[2], nmse(one[f"out{k}"].reshape(-1), want))
    return Outcome("", worst[0], worst[1], worst[2], len(plan.allreduces))
