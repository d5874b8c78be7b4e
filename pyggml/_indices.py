"""Row and expert indices are looked at before anything runs: a wrong one is memory of somebody else.

Indices that are inputs or weights, which nothing in the graph writes into, are checked here, by value. Those that the graph computes are checked where it
runs: by our CPU devices in front of the kernel; on other devices only indices that are in range by construction
(ARGSORT, TOP_K, ARGMAX) are let through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._ffi import ffi, lib
from .errors import IndexRangeError, UnsupportedError
from .meta import target_devices

if TYPE_CHECKING:
    from .graph import Graph

# op -> which source holds the indices, which source (or -1: the destination's) and axis they index
_INDEXED = {
    lib.GGML_OP_GET_ROWS: (1, 0, 1),
    lib.GGML_OP_SET_ROWS: (1, 2, 1),
    lib.GGML_OP_MUL_MAT_ID: (2, 0, 2),
    lib.GGML_OP_ADD_ID: (2, 1, 1),
    lib.GGML_OP_SSM_SCAN: (6, 0, 3),
}
_IN_RANGE = {lib.GGML_OP_ARGSORT, lib.GGML_OP_TOP_K, lib.GGML_OP_ARGMAX}
_VIEWS = {lib.GGML_OP_VIEW, lib.GGML_OP_RESHAPE, lib.GGML_OP_PERMUTE, lib.GGML_OP_TRANSPOSE}
_LOOKS = _VIEWS | {lib.GGML_OP_CONT}


@dataclass(frozen=True, slots=True)
class IndexCheck:
    """Values of one tensor that must be below a limit."""

    node: str
    op: str
    source: str
    root: str
    limit: int
    dtype: npt.DTypeLike
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def verify(self, inputs: dict[str, npt.NDArray[Any]]) -> None:
        """Raises IndexRangeError for the first index out of range."""
        if self.root not in inputs:
            return
        raw = inputs[self.root].reshape(-1).view(np.uint8)[self.offset :]
        values = np.lib.stride_tricks.as_strided(raw.view(self.dtype), self.shape, self.strides)
        bad = (values < 0) | (values >= self.limit)
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise IndexRangeError(
                f"{self.op} node {self.node!r}: index {int(values[where])} of {self.source!r} at {where} is out of range: {f'0 to {self.limit - 1} are possible' if self.limit else 'there is nothing to choose from'}"
            )


def checks(graph: Graph, cgraph: Any) -> list[IndexCheck]:
    """The checks that a run needs; static indices are verified at once.

    Raises:
        IndexRangeError: indices in weights are out of range.
        UnsupportedError: the graph computes indices that nobody can check on this device.
    """
    inputs = {_address(t.ptr): name for name, t in graph._inputs.items()}
    written = _written(cgraph)
    found = []
    for i in range(lib.ggml_graph_n_nodes(cgraph)):
        node = lib.ggml_graph_node(cgraph, i)
        if node.op not in _INDEXED:
            continue
        index, indexed, axis = _INDEXED[node.op]
        source = node.src[index]
        limit = int(node.src[indexed].ne[axis])
        name = ffi.string(node.name).decode()
        op = ffi.string(lib.ggml_op_desc(node)).decode()
        root = source.view_src if source.view_src != ffi.NULL else source
        if root.op == lib.GGML_OP_NONE and _address(root) not in written:
            dtype = {lib.GGML_TYPE_I32: np.int32, lib.GGML_TYPE_I64: np.int64}.get(root.type)
            if dtype is None:
                continue
            check = IndexCheck(
                name,
                op,
                ffi.string(source.name).decode(),
                inputs.get(_address(root), ""),
                limit,
                dtype,
                tuple(int(n) for n in reversed(list(source.ne))),
                tuple(int(n) for n in reversed(list(source.nb))),
                int(source.view_offs),
            )
            if check.root:
                found.append(check)
            elif root.buffer != ffi.NULL:
                raw = np.empty(int(lib.ggml_nbytes(root)), np.uint8)
                if not any(d.is_simulated for d in target_devices(graph.device)):
                    lib.ggml_backend_tensor_get(root, ffi.from_buffer(raw), 0, raw.nbytes)
                    object.__setattr__(check, "root", "weights")
                    check.verify({"weights": raw})
            continue
        _check_computed(graph, source, limit, name, op, written)
    return found


def _address(tensor: Any) -> int:
    return int(ffi.cast("uintptr_t", tensor))


def _written(cgraph: Any) -> set[int]:
    """The tensors whose memory nodes of other tensors write into (CPY, SET, what is done in place): their values are computed."""
    nodes = (lib.ggml_graph_node(cgraph, i) for i in range(lib.ggml_graph_n_nodes(cgraph)))
    return {_address(n.view_src) for n in nodes if n.view_src != ffi.NULL and n.op not in _VIEWS}


def _check_computed(graph: Graph, source: Any, limit: int, node: str, op: str, written: set[int]) -> None:
    origin = source
    while origin.op in _LOOKS and origin.src[0] != ffi.NULL:
        origin = origin.src[0]
    if origin.op in _IN_RANGE and _address(origin) not in written and int(origin.src[0].ne[0]) <= limit:
        return
    unchecked = [d.name for d in target_devices(graph.device) if d.type != "cpu" and not d.is_virtual and not d.is_simulated]
    if unchecked:
        raise UnsupportedError(
            f"{op} node {node!r} takes indices that the graph computes ({ffi.string(source.name).decode()!r}, "
            f"{ffi.string(lib.ggml_op_desc(origin)).decode()}), and {unchecked[0]} does not check them: "
            "make them an input, or take them from argsort, top_k or argmax"
        )
