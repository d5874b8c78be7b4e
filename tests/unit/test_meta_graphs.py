"""One meta backend that computes graphs of different sizes, as llama.cpp's contexts do."""

from __future__ import annotations

import numpy as np
import pytest

import pyggml as gg
from pyggml._ffi import ffi, lib

RNG = np.random.default_rng(0)
WEIGHT = (RNG.standard_normal((64, 64)) / 8).astype(np.float32)
X = RNG.standard_normal((4, 64)).astype(np.float32)

# nodes behind the sums, and sums; a subgraph ends at each sum
SIZES = {"long": (300, 2), "cut": (0, 12), "longer": (400, 1), "both": (300, 12)}


def _graph(meta: gg.MetaDevice, weights: gg.Weights, n_nodes: int, n_sums: int) -> gg.Graph:
    graph = gg.Graph(meta)
    t = graph.input("x", ne=(64, 4))
    for _ in range(n_sums):
        t = weights["down"] @ gg.ops.silu(weights["up"] @ t)
    for _ in range(n_nodes):
        t = gg.ops.scale(t, 1.01)
    graph.output("y", t)
    return graph


@pytest.mark.parametrize("order", ["long cut long", "both longer both", "cut longer cut long", "longer cut both cut longer long"])
def test_graphs_of_different_sizes(order: str) -> None:
    with (
        gg.MetaDevice("vcpu:2", rules=[("up", "S1"), ("down", "S0")]) as meta,
        gg.Weights(meta, {"up": WEIGHT, "down": WEIGHT}) as weights,
    ):
        graphs = {name: _graph(meta, weights, *SIZES[name]) for name in SIZES}
        expected = {name: graph.run(x=X)["y"] for name, graph in graphs.items()}
        backend = lib.ggml_backend_dev_init(meta.ptr, ffi.NULL)
        try:
            for name in order.split():
                graph = graphs[name]
                lib.ggml_backend_tensor_set(graph.inputs["x"].ptr, ffi.from_buffer(X), 0, X.nbytes)
                assert lib.ggml_backend_graph_compute(backend, graph._cgraph) == lib.GGML_STATUS_SUCCESS
                assert np.array_equal(graph.outputs["y"].numpy(), expected[name])
        finally:
            lib.ggml_backend_free(backend)
            for graph in graphs.values():
                graph.close()
