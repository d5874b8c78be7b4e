"""Tensors without memory, through the raw bindings: an error, not a read at address zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pyggml as gg
from pyggml import lib
from pyggml._ffi import ffi


@pytest.fixture
def ctx() -> Iterator[Any]:
    made = lib.ggml_init({"mem_size": 1 << 20, "mem_buffer": ffi.NULL, "no_alloc": True})
    yield made
    lib.ggml_free(made)


def doubled(ctx: Any) -> tuple[Any, Any]:
    x = lib.ggml_new_tensor_1d(ctx, lib.GGML_TYPE_F32, 8)
    lib.ggml_set_name(x, b"x")
    graph = lib.ggml_new_graph(ctx)
    lib.ggml_build_forward_expand(graph, lib.ggml_add(ctx, x, x))
    return graph, x


@pytest.mark.parametrize("device", ["CPU", "VCPU0"])
def test_a_graph(ctx: Any, device: str) -> None:
    graph, _ = doubled(ctx)
    backend = lib.ggml_backend_dev_init(gg.get_device(device).ptr, ffi.NULL)
    try:
        with pytest.raises(gg.ArgumentError, match="'node_0' has no memory"):
            lib.ggml_backend_graph_compute(backend, graph)
            lib.ggml_backend_synchronize(backend)
    finally:
        lib.ggml_backend_free(backend)


def test_a_source_alone(ctx: Any) -> None:
    graph, x = doubled(ctx)
    node = lib.ggml_graph_node(graph, 0)
    held = ffi.new("float[8]")
    node.data = held
    with pytest.raises(gg.ArgumentError, match="'x' has no memory"):
        lib.ggml_graph_compute_with_ctx(ctx, graph, 1)
    x.data = ffi.new("float[8]", [1.0] * 8)
    values = ffi.new("float[8]", [1.0] * 8)
    x.data = values
    assert lib.ggml_graph_compute_with_ctx(ctx, graph, 1) == lib.GGML_STATUS_SUCCESS
    assert list(held) == [2.0] * 8


@pytest.mark.parametrize(
    "act",
    [
        lambda t: lib.ggml_set_f32(t, 1.0), lambda t: lib.ggml_set_i32(t, 1), lambda t: lib.ggml_get_f32_1d(t, 0),
        lambda t: lib.ggml_set_f32_1d(t, 0, 1.0), lambda t: lib.ggml_get_i32_1d(t, 0), lambda t: lib.ggml_set_i32_1d(t, 0, 1),
        lambda t: lib.ggml_get_f32_nd(t, 0, 0, 0, 0), lambda t: lib.ggml_set_f32_nd(t, 0, 0, 0, 0, 1.0),
        lambda t: lib.ggml_get_i32_nd(t, 0, 0, 0, 0), lambda t: lib.ggml_set_i32_nd(t, 0, 0, 0, 0, 1),
    ],
)  # fmt: skip
def test_single_elements(ctx: Any, act: Callable[[Any], object]) -> None:
    _, x = doubled(ctx)
    with pytest.raises(gg.Error, match="'x' has no memory of the host"):
        act(x)
    values = ffi.new("float[8]")
    x.data = values
    act(x)
