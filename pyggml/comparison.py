"""Comparisons: does a split compute what one device computes?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._arguments import whole
from .errors import ArgumentError, Error

if TYPE_CHECKING:
    from .graph import Graph
    from .meta import Target
    from .tensor import Tensor

__all__ = ["Comparison", "ComparisonError", "NodeDifference", "TracedTensor", "ancestry", "compare", "nmse"]

DEFAULT_TOLERANCE = 1e-7


class ComparisonError(Error, AssertionError):
    """Two runs that should agree do not."""


def nmse(a: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Normalised mean squared error: sum((a - r)^2) / sum(r^2), in float64. NaN and infinities must be in the same places.

    The measure of llama.cpp's test-backend-ops. Infinity where one is not a number and the other is.
    """
    x, r = np.asarray(a, np.float64), np.asarray(reference, np.float64)
    if x.shape != r.shape:
        raise ArgumentError(f"shapes {x.shape} and {r.shape} cannot be compared")
    if np.array_equal(x, r, equal_nan=True):
        return 0.0
    fine = np.isfinite(r)
    if not np.array_equal(fine, np.isfinite(x)) or not np.array_equal(x[~fine], r[~fine], equal_nan=True):
        return float("inf")
    error = float(np.sum((x[fine] - r[fine]) ** 2))
    power = float(np.sum(r[fine] ** 2))
    return error / power if power > 0 else (0.0 if error == 0 else float("inf"))


@dataclass(frozen=True, slots=True)
class NodeDifference:
    """One tensor in both runs."""

    name: str
    op: str
    nmse: float
    max_abs: float


@dataclass(frozen=True, slots=True)
class TracedTensor:
    """A node or leaf in the ancestry of a node, with what it is computed from."""

    name: str
    op: str
    """What ggml computes, or ``weight``, ``fixed`` (a cache), ``input``."""
    type: str
    ne: tuple[int, ...]
    split: str
    difference: NodeDifference | None
    """None: its value was not seen (an input, part of a fused pair, or a view that is not one piece of memory)."""
    sources: tuple[TracedTensor, ...]


def ancestry(tensor: TracedTensor, indent: str = "") -> Iterator[str]:
    """A line for a tensor and for each of those that it is computed from, indented by their distance."""
    d = tensor.difference
    seen = "not seen" if d is None else f"NMSE {d.nmse:.3g}, largest difference {d.max_abs:.3g}"
    shape = "x".join(map(str, tensor.ne))
    yield f"{indent}{tensor.name or '(no name)'} ({tensor.op}, {tensor.type} {shape}{', ' if tensor.split else ''}{tensor.split}): {seen}"
    for source in tensor.sources:
        yield from ancestry(source, indent + "  ")


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of `compare`."""

    outputs: tuple[NodeDifference, ...]
    tolerance: float
    first_diverging: NodeDifference | None
    """The first node in order of computation that is off, when an output is off."""
    device: str
    reference: str
    traced: TracedTensor | None = field(default=None, repr=False)
    """The first diverging node with what it is computed from."""

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(d.nmse <= self.tolerance for d in self.outputs)

    @property
    def nmse(self) -> float:
        """The largest of the outputs'."""
        return max(d.nmse for d in self.outputs)

    def check(self) -> Comparison:
        """Raises ComparisonError unless ``ok``."""
        if not self.ok:
            raise ComparisonError(str(self))
        return self

    def __str__(self) -> str:
        lines = [f"{self.device} against {self.reference}, tolerance {self.tolerance:g} (NMSE)"]
        lines += [
            f"  {'ok  ' if d.nmse <= self.tolerance else 'DIFF'} {d.name} ({d.op}): NMSE {d.nmse:.3g}, largest difference {d.max_abs:.3g}"
            for d in self.outputs
        ]
        if self.traced is not None:
            lines += ["  first diverging node, and what it is computed from:", *ancestry(self.traced, "    ")]
        elif self.first_diverging is not None:
            d = self.first_diverging
            lines.append(f"  first diverging node: {d.name} ({d.op}), NMSE {d.nmse:.3g}")
        return "\n".join(lines)


def _difference(name: str, op: str, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> NodeDifference:
    with np.errstate(invalid="ignore", over="ignore"):
        delta = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    finite = delta[np.isfinite(delta)]
    if not finite.size and delta.size:
        return NodeDifference(name, op, float("inf"), float("nan"))  # not a single number: nothing was compared
    return NodeDifference(name, op, nmse(a, b), float(finite.max()) if finite.size else 0.0)


def check_tolerance(tolerance: object) -> None:
    """Raises ArgumentError for what is no NMSE."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ArgumentError(f"tolerance={tolerance!r}: expected a number, 0 or more")


def random_inputs(graph: Graph, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Values for a graph's inputs: normal numbers; integers in the range that their use as indices allows, else 0 to 7."""
    rng = np.random.default_rng(whole("seed", seed, 0, (1 << 63) - 1))
    limits = graph._index_limits()
    out: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in graph.inputs.items():
        kind = tensor.dtype.numpy
        if kind is None:
            raise ArgumentError(f"input {name!r} is {tensor.dtype}: give compare() its value")
        if np.dtype(kind).kind == "f":
            out[name] = rng.standard_normal(tensor.shape).astype(kind)
        else:
            out[name] = rng.integers(0, limits.get(name, 8), tensor.shape).astype(kind)
    return out


def compare(
    graph: Graph,
    on: Target | str,
    inputs: Mapping[str, Any] | None = None,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    seed: int = 0,
) -> Comparison:
    """Runs a graph where it is and on another device, with the same weights and inputs.

    Args:
        on: the device to compare with, usually one device such as ``cpu()``.
        inputs: values; None: random ones (integers in the range that their use as indices allows).
        tolerance: the largest NMSE of an output.

    Returns:
        A `Comparison`; where an output is off, both graphs run again with every node kept, and the first node that
        is off is named.

    Raises:
        ArgumentError: no graph, no device, no inputs by name, or a tolerance below 0.
    """
    from .graph import Graph
    from .meta import check_target

    if not isinstance(graph, Graph):
        raise ArgumentError(f"compare(): expected a Graph, got {type(graph).__name__}; models are compared by compare_models()")
    on = check_target("compare(on=)", on)
    check_tolerance(tolerance)
    if inputs is not None and not isinstance(inputs, Mapping):
        raise ArgumentError(f"compare(inputs=): expected values by name, got {type(inputs).__name__}")
    values = dict(inputs) if inputs is not None else random_inputs(graph, seed)
    mine = graph.run(values)
    with graph.replica(on) as reference:
        theirs = reference.run(values)
        outputs = tuple(_difference(name, graph.outputs[name].op, mine[name], theirs[name]) for name in mine)
        ok = all(d.nmse <= tolerance for d in outputs)
        traced = None if ok else _first_diverging(graph, on, values, tolerance)
        for weights in reference._weights.values():
            weights.close()
    return Comparison(outputs, tolerance, None if traced is None else traced.difference, graph.device.name, on.name, traced)


def _first_diverging(graph: Graph, on: Target, values: Mapping[str, Any], tolerance: float) -> TracedTensor | None:
    found: dict[int, NodeDifference] = {}
    with graph.replica(graph.device, keep_all=True) as a, graph.replica(on, keep_all=True) as b:
        a.run(values)
        b.run(values)
        for x, y in zip(a.nodes(), b.nodes(), strict=True):
            if x.dtype.numpy is None or not _is_plain(x):
                continue
            found[_key(x)] = d = _difference(x.name, x.op, x.numpy(), y.numpy())
            if d.nmse > tolerance:
                return _traced(a, x, found, 3)
    return None


def _key(tensor: Tensor) -> int:
    from ._ffi import ffi

    return int(ffi.cast("uintptr_t", tensor.ptr))


def _traced(graph: Graph, tensor: Tensor, found: Mapping[int, NodeDifference], levels: int) -> TracedTensor:
    from .plan import VIEW_OPS

    op, difference = tensor.op, found.get(_key(tensor))
    if op == "NONE":  # both graphs were given the same values
        op = "input" if any(_key(t) == _key(tensor) for t in graph.inputs.values()) else "weight"
        difference = NodeDifference(tensor.name, op, 0.0, 0.0)
    # views are on the way, not a level of their own
    deeper = levels if op in VIEW_OPS else levels - 1
    sources = [_traced(graph, s, found, deeper) for s in graph._sources(tensor.ptr)] if levels > 0 else []
    state = tensor.split(synced=False)
    ne = tensor.ne[: max((k + 1 for k, n in enumerate(tensor.ne) if n != 1), default=1)]
    return TracedTensor(tensor.name, op, tensor.dtype.name, ne, "" if state is None else str(state), difference, tuple(sources))


def _is_plain(tensor: Any) -> bool:
    from ._ffi import lib

    return bool(lib.ggml_is_contiguous(tensor.ptr))
