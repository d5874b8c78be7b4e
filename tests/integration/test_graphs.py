"""What the meta backend gets wrong by itself: partial outputs, partial nodes that are read, splits that compute nonsense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pyggml as gg
from pyggml import ops

Array = npt.NDArray[np.float32]

N, FF, T = 64, 256, 6


def weight(seed: int, *shape: int) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


X = weight(0, T, N) * 8
UP, GATE, DOWN = weight(1, FF, N), weight(2, FF, N), weight(3, N, FF)
HIDDEN = X.astype(np.float64) @ UP.T.astype(np.float64)
SHARES = ["1:1", "3:1", "1:0", "1:2:1", "1:1:1:5"]


def meta_of(shares: str, *rules: tuple[str, str]) -> gg.MetaDevice:
    n = shares.count(":") + 1
    return gg.MetaDevice(f"vcpu:{n}", [(p, s.replace("*", shares)) for p, s in rules])


def run(meta: gg.MetaDevice, weights: dict[str, Any], build: Callable[[gg.Graph, gg.Weights], None], **inputs: Any) -> dict[str, Array]:
    with meta, gg.Weights(meta, weights) as w, gg.Graph(meta) as graph:
        build(graph, w)
        first, again = graph.run(inputs), graph.run(inputs)
        for name in first:
            assert np.array_equal(first[name], again[name]), "a second run differs"
        return first


ROW_PARALLEL = ("up", "S1 *"), ("gate", "S1 *"), ("down", "S0 *")


@pytest.mark.parametrize("shares", SHARES)
def test_an_output_that_ends_the_graph_is_summed(shares: str) -> None:
    def build(g: gg.Graph, w: gg.Weights) -> None:
        g.output("y", w["down"] @ (w["up"] @ g.input("x", (N, T))))

    got = run(meta_of(shares, *ROW_PARALLEL), {"up": UP, "down": DOWN}, build, x=X)
    assert gg.nmse(got["y"], HIDDEN @ DOWN.T) < 1e-11


@pytest.mark.parametrize("shares", SHARES)
def test_several_partial_outputs(shares: str) -> None:
    """Two at the end, one in the middle that others go on from, and the same tensor under two names."""

    def build(g: gg.Graph, w: gg.Weights) -> None:
        x = g.input("x", (N, T))
        a = g.output("a", w["down"] @ (w["up"] @ x))
        g.output("same", a)
        b = g.output("b", w["down"] @ ops.silu(w["up"] @ a))
        g.output("sum", a + b)
        g.output("last", w["down"] @ ops.relu(w["up"] @ x))

    got = run(meta_of(shares, *ROW_PARALLEL), {"up": UP, "down": DOWN}, build, x=X)
    a = HIDDEN @ DOWN.T
    b = silu(a @ UP.T) @ DOWN.T
    want = {"a": a, "same": a, "b": b, "sum": a + b, "last": np.maximum(HIDDEN, 0) @ DOWN.T}
    for name, value in want.items():
        assert gg.nmse(got[name], value) < 1e-11, name


@pytest.mark.parametrize("shares", SHARES)
def test_what_lies_before_a_delayed_sum_can_be_read(shares: str) -> None:
    """Upstream sums behind the products with what is mirrored; each device has a summand of all that lies before."""
    scale, scale2 = weight(5, N), weight(6, N)

    def build(g: gg.Graph, w: gg.Weights) -> None:
        a = g.output("a", w["down"] @ (w["up"] @ g.input("x", (N, T))))
        b = g.output("b", a * w["s1"])
        c = g.output("c", b * w["s2"])
        g.output("d", ops.rms_norm(c))

    got = run(meta_of(shares, *ROW_PARALLEL), {"up": UP, "down": DOWN, "s1": scale, "s2": scale2}, build, x=X)
    a = HIDDEN @ DOWN.T
    c = a * scale * scale2
    for name, value in {"a": a, "b": a * scale, "c": c, "d": c / np.sqrt((c**2).mean(1, keepdims=True) + 1e-5)}.items():
        assert gg.nmse(got[name], value) < 1e-10, name


N_EXPERT, N_USED = 8, 2


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("read_all", [False, True], ids=["output only", "every node"])
def test_moe(shares: str, read_all: bool) -> None:
    """Experts whose sum is delayed over the product with their probabilities and the sum over the experts used."""
    up, down = weight(7, N_EXPERT, FF, N), weight(8, N_EXPERT, N, FF)
    rng = np.random.default_rng(9)
    ids = np.stack([rng.permutation(N_EXPERT)[:N_USED] for _ in range(T)]).astype(np.int32)
    probabilities = rng.uniform(0.1, 1, (T, N_USED, 1)).astype(np.float32)

    def build(g: gg.Graph, w: gg.Weights) -> None:
        x = ops.reshape(g.input("x", (N, T)), N, 1, T)
        chosen, p = g.input("ids", (N_USED, T), "i32"), g.input("p", (1, N_USED, T))
        h = ops.mul_mat_id(w["up_exps"], x, chosen)
        each = ops.mul_mat_id(w["down_exps"], ops.silu(h), chosen)
        weighted = each * p
        parts = [ops.view(weighted, N, T, nb=[weighted.nb[2]], offset=k * weighted.nb[1]) for k in range(N_USED)]
        y = parts[0] + parts[1]
        if read_all:
            g.output("h", h)
            g.output("each", each)
            g.output("weighted", weighted)
        g.output("y", y)

    meta = meta_of(shares, ("up_exps", "S1 *"), ("down_exps", "S0 *"))
    got = run(meta, {"up_exps": up, "down_exps": down}, build, x=X, ids=ids, p=probabilities)
    h = np.einsum("tufe,te->tuf", up[ids].astype(np.float64), X)
    each = np.einsum("tuef,tuf->tue", down[ids].astype(np.float64), silu(h))
    want = {"h": h, "each": each, "weighted": each * probabilities, "y": (each * probabilities).sum(1)}
    for name, value in got.items():
        assert gg.nmse(value, want[name]) < 1e-11, name


@pytest.mark.parametrize("shares", SHARES)
def test_gate_and_up_in_one_weight(shares: str) -> None:
    """A GLU of one source along axis 0 is right where gate and up are two segments, each split by the shares."""
    gate_up = np.concatenate([GATE, UP])

    def build(g: gg.Graph, w: gg.Weights) -> None:
        h = g.output("h", ops.swiglu(w["gate_up"] @ g.input("x", (N, T))))
        g.output("y", w["down"] @ h)

    meta = meta_of(shares, ("gate_up", f"S1[{FF}x2] *"), ("down", "S0 *"))
    got = run(meta, {"gate_up": gate_up, "down": DOWN}, build, x=X)
    h = silu(X.astype(np.float64) @ GATE.T) * (X.astype(np.float64) @ UP.T)
    assert gg.nmse(got["h"], h) < 1e-11
    assert gg.nmse(got["y"], h @ DOWN.T) < 1e-11


# --- what upstream accepts and computes wrongly, or dies of


def softmax_axis0(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return ops.soft_max(w["up"] @ g.input("x", (N, T)))


def glu_of_one(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return ops.swiglu(w["up"] @ g.input("x", (N, T)))


def rope_axis0(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    q = ops.reshape(w["up"] @ g.input("x", (N, T)), FF, 1, T)
    return ops.rope(q, g.input("pos", (T,), "i32"), FF)


def half_a_split_axis(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    h = w["up"] @ g.input("x", (N, T))
    return ops.cont(ops.view(h, FF // 2, T))


def norm_axis0(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return ops.rms_norm(w["up"] @ g.input("x", (N, T)))


def group_norm(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    h = ops.reshape(w["up"] @ g.input("x", (N, T)), 16, 16, T)
    return ops.group_norm(h, 2, 1e-5)


def concat_whole_and_split(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return ops.concat(w["up"] @ g.input("x", (N, T)), g.input("z", (FF, T)), 1)


def concat_along_the_split(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    h = w["up"] @ g.input("x", (N, T))
    return ops.concat(h, h, 0)


def rows_written_where_split(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    h = ops.cont(ops.transpose(w["up"] @ g.input("x", (N, T))))  # [T, FF], split along axis 1
    return ops.set_rows(h, g.input("z", (T, 3)), g.input("rows", (3,), "i64"))


def rows_read_where_split(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return ops.get_rows(w["up"], g.input("rows32", (3,), "i32"))


def sum_of_all(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return ops.sum(w["up"] @ g.input("x", (N, T)))


def argmax_axis0(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return ops.argmax(w["up"] @ g.input("x", (N, T)))


def product_of_whole_and_split(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return (w["up"] @ g.input("x", (N, T))) * g.input("z", (FF, T))


def contraction_with_what_is_whole(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    return w["whole"] @ (w["up"] @ g.input("x", (N, T)))


ILLEGAL = [
    softmax_axis0, glu_of_one, rope_axis0, half_a_split_axis, norm_axis0, group_norm, concat_whole_and_split, concat_along_the_split,
    rows_written_where_split, rows_read_where_split, sum_of_all, argmax_axis0, product_of_whole_and_split, contraction_with_what_is_whole,
]  # fmt: skip
RULES = ("up", "S1 *"), ("z", "M")


@pytest.mark.parametrize("shares", ["1:1", "3:1", "1:2:1"])
@pytest.mark.parametrize("build", ILLEGAL)
def test_refused_with_the_nodes_name(build: Callable[[gg.Graph, gg.Weights], gg.Tensor], shares: str) -> None:
    with meta_of(shares, *RULES) as meta, gg.Weights(meta, {"up": UP, "whole": DOWN}) as w, gg.Graph(meta) as graph:
        graph.output("result", build(graph, w))
        values = {name: np.zeros(t.shape, t.dtype.numpy) for name, t in graph.inputs.items()}
        names = {t.name for t in graph.nodes()}
        for refused in (graph.plan, lambda: graph.run(values)):
            with pytest.raises(gg.SplitError) as caught:
                refused()
            error, text = caught.value, str(caught.value)
            assert error.node in names and repr(error.node) in text
            assert error.op and error.op in text
            assert "src0" in text, "the sources and their splits are named"
            assert error.repair and error.repair in text
    # nothing is left behind: the same devices compute
    test_an_output_that_ends_the_graph_is_summed(shares)


@pytest.mark.parametrize("build", ILLEGAL)
def test_the_same_is_right_where_nothing_is_split(build: Callable[[gg.Graph, gg.Weights], gg.Tensor]) -> None:
    """So it is the split that is refused above, not the operation."""
    with gg.MetaDevice("vcpu:2") as meta, gg.Weights(meta, {"up": UP, "whole": DOWN}) as w, gg.Graph(meta) as graph:
        graph.output("result", build(graph, w))
        rng = np.random.default_rng(1)
        values = {
            name: rng.standard_normal(t.shape).astype(np.float32) if t.dtype.name == "f32" else np.arange(np.prod(t.ne), dtype=t.dtype.numpy)
            for name, t in graph.inputs.items()
        }
        got = graph.run(values)["result"]
        with graph.replica(gg.virtual_cpus(1)[0]) as one:
            assert np.array_equal(one.run(values)["result"], got)
        assert got.std() > 0 or got.size == 1


@pytest.mark.parametrize("shares", ["1:1", "3:1", "0:1"])
def test_soft_max_along_another_axis_is_accepted(shares: str) -> None:
    def build(g: gg.Graph, w: gg.Weights) -> None:
        h = ops.cont(ops.transpose(w["up"] @ g.input("x", (N, T))))
        g.output("y", ops.soft_max(h))

    got = run(meta_of(shares, *RULES), {"up": UP}, build, x=X)["y"]
    e = np.exp(HIDDEN.T - HIDDEN.T.max(1, keepdims=True))
    assert gg.nmse(got, e / e.sum(1, keepdims=True)) < 1e-11
