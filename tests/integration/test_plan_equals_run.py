"""What a plan says against what the single devices counted in a run, and what was traced; no code of the plan takes part in either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from split_cases import F32
from trace_checks import check_trace

import pyggml as gg
from pyggml import ffi, lib, ops
from pyggml.testing import TinyModel

Make = Callable[..., TinyModel]


def check_n_computed(plan: gg.SplitPlan, j: int, counted: int) -> None:
    """Nodes that device j is asked to compute. Nodes without elements may be among them."""
    expected = sum(n.slices[j].compute for n in plan.nodes if n.slices and not n.is_view)
    empty = sum(not n.slices and not n.is_view for n in plan.nodes)
    assert expected <= counted <= expected + empty


def check_counts(plan: gg.SplitPlan, devices: list[gg.Device], sums: int | None = None) -> None:
    """Calls, all-reduces and bytes of each device against the plan; its counters were reset before the run."""
    if sums is not None:
        assert len(plan.allreduces) == sums
    for j, (memory, device) in enumerate(zip(plan.memory, devices, strict=True)):
        seen = device.stats()
        assert memory.name == device.name
        assert seen.graph_computes == len(plan.subgraphs)
        check_n_computed(plan, j, seen.nodes)
        assert seen.allreduces == len(plan.allreduces)
        assert seen.allreduce_bytes == plan.allreduce_bytes
        assert seen.copies == 0, "virtual CPUs sum with their communicator, not with copies"
        assert seen.buffer_bytes == memory.total
        assert seen.buffer_bytes_peak == memory.total


SPLITS = [("vcpu:2", (1, 1)), ("vcpu:2", (3, 1)), ("vcpu:3", (1, 1, 1)), ("vcpu:3", (1, 2, 1)), ("vcpu:2", (1, 0)), ("vcpu:1", (1,))]


@pytest.mark.parametrize("device, shares", SPLITS)
@pytest.mark.parametrize("n_past, n_tokens", [(0, 17), (0, 1), (16, 1), (5, 12), (20, 30), (10, 45)])
@pytest.mark.parametrize("name", ["llama", "llama-moe", "qwen35"])
def test_models(tiny: Make, name: str, device: str, shares: tuple[float, ...], n_past: int, n_tokens: int) -> None:
    devices = gg.parse_devices(device)
    before = [d.stats().buffer_bytes for d in devices]
    assert before == [0] * len(devices), "another test left something on the devices"
    for d in devices:
        d.reset_stats()
    options = {**F32, "n_batch": 32}
    with gg.Model(tiny(name), device, split_mode="tensor", tensor_split=shares, **options) as model:
        tokens = np.arange(n_past + n_tokens, dtype=np.int32)
        context = model.default_context  # decode as the plan does: logits of the last token only
        for first in range(0, n_past, 32):
            context.decode(tokens[first : min(first + 32, n_past)])
        peak = [d.stats().buffer_bytes_peak for d in devices]
        for d in devices:
            d.reset_stats()
        with gg.trace() as taken:
            context.decode(tokens[n_past:])
        plan = model.plan(n_tokens, n_past)
        if n_tokens <= 32:
            check_trace(plan, taken)
        else:  # in parts, each a run of the trace
            assert len(taken.runs) == 2 and {s.graph for s in plan.subgraphs} == {0, 1}
        got = [d.stats() for d in devices]
        assert [s.graph_computes for s in got] == [len(plan.subgraphs)] * len(devices)
        assert [s.allreduces for s in got] == [len(plan.allreduces)] * len(devices)
        assert [s.allreduce_bytes for s in got] == [plan.allreduce_bytes] * len(devices)
        for j, s in enumerate(got):
            check_n_computed(plan, j, s.nodes)
        assert [s.copies for s in got] == [0] * len(devices)
        # with tokens in the cache already, buffers for sums exist in the larger of both sizes
        assert [s.buffer_bytes for s in got] == [m.total for m in plan.memory] or n_past > n_tokens
        if not n_past:
            assert [s.buffer_bytes_peak for s in got] == [m.total for m in plan.memory]
        assert all(p <= s.buffer_bytes_peak for p, s in zip(peak, got, strict=True))
    assert [d.stats().buffer_bytes for d in devices] == before


def test_a_plan_for_memory_counts_what_the_cache_was_filled_with(tiny: Make) -> None:
    """A prompt of 20 before the token: the buffers for sums that it needed are still there."""
    devices = gg.parse_devices("vcpu:2")
    with gg.Model(tiny("llama"), "vcpu:2", split_mode="tensor", **F32) as model:
        model.default_context.decode(np.zeros(20, np.int32))
        model.default_context.decode(np.zeros(1, np.int32))
        assert [d.stats().buffer_bytes for d in devices] == [m.total for m in model.plan(1, n_past=20).memory]


# --- graphs


@pytest.fixture(params=SPLITS, ids=lambda p: f"{p[0]} {p[1]}")
def mlp(request: pytest.FixtureRequest) -> Iterator[tuple[gg.MetaDevice, gg.Weights]]:
    device, shares = request.param
    s = ":".join(map(str, shares))
    rules = [("up", f"S1 {s}"), ("gate", f"S1 {s}"), ("down", f"S0 {s}"), ("exps_up", f"S1 {s}")]
    rng = np.random.default_rng(3)
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in
            {"up": (256, 64), "gate": (256, 64), "down": (64, 256), "scale": (64,)}.items()}  # fmt: skip
    with gg.MetaDevice(device, rules) as meta:
        assert [d.stats().buffer_bytes for d in meta.devices] == [0] * meta.n_devices
        with gg.Weights(meta, made) as weights:
            yield meta, weights


def _one_sum(g: gg.Graph, w: gg.Weights, x: gg.Tensor) -> int:
    g.output("y", w["down"] @ ops.silu(w["up"] @ x))
    return 1


def _sum_inside(g: gg.Graph, w: gg.Weights, x: gg.Tensor) -> int:
    g.output("y", ops.rms_norm(w["down"] @ ops.swiglu_split(w["gate"] @ x, w["up"] @ x)) * w["scale"])
    return 1


def _residuals(g: gg.Graph, w: gg.Weights, x: gg.Tensor) -> int:
    for _ in range(4):
        x = x + w["down"] @ ops.gelu(w["up"] @ ops.rms_norm(x))
    g.output("y", x)
    return 4


def _delayed(g: gg.Graph, w: gg.Weights, x: gg.Tensor) -> int:
    y = (w["down"] @ (w["up"] @ x)) * w["scale"]  # the sum may wait for the product with what is mirrored
    g.output("y", y + x)
    return 1


def _two_outputs(g: gg.Graph, w: gg.Weights, x: gg.Tensor) -> int:
    h = w["up"] @ x
    g.output("h", h)
    g.output("y", w["down"] @ h)
    return 1


def _no_sum(g: gg.Graph, w: gg.Weights, x: gg.Tensor) -> int:
    g.output("y", ops.silu(w["up"] @ x) * (w["gate"] @ x))
    return 0


GRAPHS = [_one_sum, _sum_inside, _residuals, _delayed, _two_outputs, _no_sum]


@pytest.mark.parametrize("n_tokens", [1, 19])
@pytest.mark.parametrize("build", GRAPHS)
def test_graphs(mlp: tuple[gg.MetaDevice, gg.Weights], build: Callable[..., int], n_tokens: int) -> None:
    meta, weights = mlp
    with gg.Graph(meta) as graph:
        sums = build(graph, weights, graph.input("x", (64, n_tokens)))
        if meta.n_devices == 1:  # it has them all alone
            sums = 0
        for d in meta.devices:
            d.reset_stats()
        plan = graph.plan()
        assert [d.stats().graph_computes for d in meta.devices] == [0] * meta.n_devices, "a plan runs nothing"
        graph.run(x=np.ones((n_tokens, 64), np.float32))
        check_counts(plan, list(meta.devices), sums)
        for d in meta.devices:
            d.reset_stats()
        with gg.trace() as taken:
            graph.run(x=np.ones((n_tokens, 64), np.float32))
        check_counts(plan, list(meta.devices), sums)  # a second run is like the first
        check_trace(plan, taken)


# --- planning takes nothing


def watched(devices: list[gg.Device]) -> dict[str, Any]:
    bufts = {d.name: lib.ggml_backend_dev_buffer_type(d.ptr) for d in devices}
    bufts["CPU"] = lib.ggml_backend_cpu_buffer_type()
    for buft in bufts.values():
        assert buft != ffi.NULL
        lib.pgg_buft_watch(buft)
    return bufts


def totals(bufts: dict[str, Any]) -> dict[str, int]:
    return {name: int(lib.pgg_buft_allocated_total(buft)) for name, buft in bufts.items()}


@pytest.mark.parametrize("name", ["llama", "llama-moe", "qwen35"])
def test_planning_a_model_allocates_nothing(tiny: Make, name: str) -> None:
    devices = gg.parse_devices("vcpu:3")
    bufts = watched(devices)
    before = totals(bufts)
    plan = gg.model.plan_model(tiny(name), "vcpu:3", n_tokens=17, options=gg.model.ModelOptions("tensor", (1.0, 2.0, 1.0)))
    assert plan.memory[0].total > 1 << 20
    assert totals(bufts) == before
    with gg.Model(tiny(name), "vcpu:3", split_mode="tensor", tensor_split=(1, 2, 1), **F32) as model:
        loaded = totals(bufts)
        assert all(loaded[n] > before[n] for n in bufts), "the counters do count"
        model.plan(17)
        model.plan(1, n_past=30)
        assert totals(bufts) == loaded


def test_planning_a_graph_allocates_nothing(mlp: tuple[gg.MetaDevice, gg.Weights]) -> None:
    meta, weights = mlp
    bufts = watched(list(meta.devices))
    with gg.Graph(meta) as graph:
        _residuals(graph, weights, graph.input("x", (64, 19)))
        before = totals(bufts)
        graph.plan()
        assert totals(bufts) == before
        graph.run(x=np.ones((19, 64), np.float32))
        after = totals(bufts)
        assert all(after[d.name] > before[d.name] for d in meta.devices)
        graph.plan()
        assert totals(bufts) == after
