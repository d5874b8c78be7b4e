"""Views into split tensors, what is made of nothing, views of the host's tensors, and sums without memory: upstream is wrong, or dies.

Programs that show it without this library: docs/upstream, 25 to 28.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pyggml as gg
from pyggml import ops
from pyggml._ffi import ffi, lib

Array = npt.NDArray[np.float32]

N, HEAD, N_HEAD, T = 32, 16, 6, 5
F32 = 4
RNG = np.random.default_rng(21)
W = (RNG.standard_normal((HEAD * N_HEAD, N)) / np.sqrt(N)).astype(np.float32)
X = RNG.standard_normal((T, N)).astype(np.float32)
Q = (X.astype(np.float64) @ W.T.astype(np.float64)).reshape(T, N_HEAD, HEAD)
SHARES = ["1:1", "2:1", "1:5", "1:2:3", "1:0", "0:1", "2:0:1", "1:1:1:1:2"]
PARTS = [(0, 4), (1, 3), (4, 12), (8, 8), (12, 4), (15, 1)]  # the first dimension of each head, and how many


def meta_of(shares: str, *rules: gg.Rule | tuple[str, str]) -> gg.MetaDevice:
    return gg.MetaDevice(f"vcpu:{shares.count(':') + 1}", [gg.rule("^w$", f"S1 {shares}", units=N_HEAD), *rules])


def heads(g: gg.Graph, w: gg.Weights) -> gg.Tensor:
    """[HEAD, N_HEAD, T], by heads."""
    return ops.reshape(w["w"] @ g.input("x", (N, T)), HEAD, N_HEAD, T)


def part_of(t: gg.Tensor, first: int, n: int, token: int = 0) -> gg.Tensor:
    """n dimensions of every head from the first one on, without the first tokens."""
    return ops.view(t, n, t.ne[1], t.ne[2] - token, nb=t.nb[1:3], offset=first * t.nb[0] + token * t.nb[2])


def check(shares: str, build: Callable[[gg.Graph, gg.Weights], dict[str, gg.Tensor]], want: dict[str, Any]) -> None:
    with meta_of(shares) as meta, gg.Weights(meta, {"w": W}) as weights, gg.Graph(meta) as graph:
        for name, t in build(graph, weights).items():
            graph.output(name, t)
        got = graph.run(x=X)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape and gg.nmse(got[name], value) < 1e-11, name


@pytest.mark.parametrize("shares", SHARES)
def test_parts_of_every_head(shares: str) -> None:
    """Of all tokens, and of those behind the first: the one counts outside of the split axis, the other does not."""
    cases = list(itertools.product(PARTS, (0, 1, 3)))
    check(
        shares,
        lambda g, w: (lambda q: {f"{c}": ops.cont(part_of(q, *c[0], token=c[1])) for c in cases})(heads(g, w)),
        {f"{c}": Q[c[1] :, :, c[0][0] : c[0][0] + c[0][1]] for c in cases},
    )


@pytest.mark.parametrize("shares", SHARES)
def test_views_of_views(shares: str) -> None:
    """The offset of the inner one counts from its source's, in the strides of the whole head; and of a copy, which has its own."""

    def build(g: gg.Graph, w: gg.Weights) -> dict[str, gg.Tensor]:
        outer = part_of(heads(g, w), 3, 11, token=1)
        inner = part_of(outer, 6, 4, token=2)
        copy = ops.cont(outer)
        return {
            "inner": ops.cont(inner), "innermost": ops.cont(part_of(inner, 3, 1, token=1)), "of a copy": ops.cont(part_of(copy, 7, 4, token=2)),
            "one token": ops.cont(ops.view(outer, 4, N_HEAD, nb=[outer.nb[1]], offset=7 * F32 + 3 * outer.nb[2])),
        }  # fmt: skip

    check(shares, build, {"inner": Q[3:, :, 9:13], "innermost": Q[4, :, 12:13], "of a copy": Q[3:, :, 10:14], "one token": Q[4, :, 10:14]})


@pytest.mark.parametrize("shares", SHARES)
def test_permuted(shares: str) -> None:
    """[HEAD, T, N_HEAD], as attention has it, and [N_HEAD, T, HEAD]: heads along axes 2 and 0."""

    def build(g: gg.Graph, w: gg.Weights) -> dict[str, gg.Tensor]:
        q = heads(g, w)
        for_attention, first = ops.permute(part_of(q, 12, 4, token=1), 0, 2, 1, 3), ops.permute(part_of(q, 10, 6), 2, 0, 1, 3)
        inside = ops.cont(ops.permute(q, 0, 2, 1, 3))
        part = ops.view(inside, 4, T - 2, N_HEAD, nb=inside.nb[1:3], offset=12 * F32 + 2 * inside.nb[1])
        return {"attention": ops.cont(for_attention), "first": ops.cont(first), "of a copy": ops.cont(part)}

    turned = Q.transpose(1, 0, 2)
    check(shares, build, {"attention": turned[:, 1:, 12:], "first": Q[:, :, 10:].transpose(2, 0, 1), "of a copy": turned[:, 2:, 12:]})


@pytest.mark.parametrize("shares", SHARES)
def test_what_latent_attention_does(shares: str) -> None:
    """The last dimensions of each head are rotated and put back behind the others, as MLA does with Q."""
    nope, rope = 12, 4

    def build(g: gg.Graph, w: gg.Weights) -> dict[str, gg.Tensor]:
        q = heads(g, w)
        rotated = ops.rope(part_of(q, nope, rope), g.input("pos", (T,), "i32"), rope)
        return {"q": ops.concat(part_of(q, 0, nope), rotated, 0), "norm": ops.rms_norm(part_of(q, nope, rope))}

    pos = np.arange(3, 3 + T, dtype=np.int32)
    results = []
    for device in (gg.cpu(), meta_of(shares)):
        with gg.Weights(device, {"w": W}) as weights, gg.Graph(device) as graph:
            for name, t in build(graph, weights).items():
                graph.output(name, t)
            results.append(graph.run(x=X, pos=pos))
    for name, value in results[0].items():
        assert gg.nmse(results[1][name], value) < 1e-11, name


@pytest.mark.parametrize("shares", SHARES)
def test_a_cache_that_is_split_by_heads(shares: str) -> None:
    """A weight is the root of the view: part of every head of some positions, through the weight as it is and as rows."""
    cache = RNG.standard_normal((8, N_HEAD, HEAD)).astype(np.float32)
    with meta_of(shares, gg.rule("^cache$", f"S1 {shares}")) as meta, gg.Weights(meta, {"cache": cache}) as w, gg.Graph(meta) as g:
        c = w["cache"]
        part = ops.view(c, 5, N_HEAD, 4, nb=c.nb[1:3], offset=11 * F32 + 3 * c.nb[2], graph=g)
        row = ops.view(c, 5, N_HEAD, nb=[c.nb[1]], offset=11 * F32 + 7 * c.nb[2], graph=g)
        g.output("part", ops.sqr(part))
        g.output("row", ops.sqr(row))
        got = g.run()
    assert np.array_equal(got["part"], cache[3:7, :, 11:] ** 2) and np.array_equal(got["row"], cache[7, :, 11:] ** 2)


def test_a_view_that_begins_at_another_head_is_refused() -> None:
    """Whose heads it has depends on the shares: no offset would be right."""
    with meta_of("1:2") as meta, gg.Weights(meta, {"w": W}) as w, gg.Graph(meta) as g:
        q = heads(g, w)
        g.output("y", ops.cont(ops.view(q, HEAD, 3, T, nb=q.nb[1:3], offset=3 * q.nb[1])))
        with pytest.raises(gg.SplitError, match="VIEW"):
            g.run(x=X)


@pytest.mark.parametrize("shares", SHARES)
def test_made_of_nothing(shares: str) -> None:
    """ARANGE is whole on every device, in front of split and of whole tensors; it cannot be shared out to split ones."""
    check(
        shares,
        lambda g, w: {"scaled": heads(g, w) * ops.arange(1, 1 + HEAD, graph=g), "itself": ops.arange(0, 3, graph=g)},
        {"scaled": Q * np.arange(1, 1 + HEAD), "itself": np.arange(3.0)},
    )
    with meta_of(shares) as meta, gg.Weights(meta, {"w": W}) as w, gg.Graph(meta) as g:
        g.output("y", (w["w"] @ g.input("x", (N, T))) * ops.arange(0, HEAD * N_HEAD, graph=g))
        with pytest.raises(gg.SplitError, match="MUL"):
            g.run(x=X)


class Raw:
    """ggml's own functions over a meta device: what this library's ops cannot say (no elements, the host's tensors)."""

    def __init__(self, *backends: Any, leaves: Callable[[Any], tuple[Any, ...]]) -> None:
        self.backends = backends
        params = {"mem_size": 1 << 20, "mem_buffer": ffi.NULL, "no_alloc": True}
        self.static, self.ctx = lib.ggml_init(params), lib.ggml_init(params)
        self.leaves = leaves(self.static)
        self.buffer = lib.ggml_backend_alloc_ctx_tensors(self.static, backends[0])
        self.graph = lib.ggml_new_graph(self.ctx)

    def close(self) -> None:
        lib.ggml_backend_buffer_free(self.buffer)
        lib.ggml_free(self.ctx)
        lib.ggml_free(self.static)
        for backend in self.backends:
            lib.ggml_backend_free(backend)


def set_values(t: Any, values: npt.NDArray[Any]) -> None:
    lib.ggml_backend_tensor_set(t, ffi.from_buffer(values), 0, values.nbytes)


def values_of(t: Any) -> Array:
    out = np.empty(tuple(t.ne)[::-1], np.float32)
    lib.ggml_backend_tensor_get(t, ffi.from_buffer(out), 0, out.nbytes)
    return out


@pytest.mark.parametrize("shares", SHARES)
def test_without_elements(shares: str) -> None:
    """The tokens in front of the first one, put in front of all of them; then the split weight."""
    with meta_of(shares) as meta, gg.Weights(meta, {"w": W}) as w:
        raw = Raw(lib.ggml_backend_dev_init(meta.ptr, ffi.NULL), leaves=lambda c: (lib.ggml_new_tensor_2d(c, lib.GGML_TYPE_F32, N, T),))
        (x,) = raw.leaves
        none = lib.ggml_view_2d(raw.ctx, x, N, 0, N * F32, 0)
        y = lib.ggml_mul_mat(raw.ctx, w["w"].ptr, lib.ggml_concat(raw.ctx, lib.ggml_scale(raw.ctx, none, 2.0), x, 1))
        lib.ggml_build_forward_expand(raw.graph, y)
        alloc = lib.ggml_gallocr_new(lib.ggml_backend_get_default_buffer_type(raw.backends[0]))
        try:
            assert lib.ggml_gallocr_alloc_graph(alloc, raw.graph)
            set_values(x, X)
            for _ in range(2):
                assert lib.ggml_backend_graph_compute(raw.backends[0], raw.graph) == lib.GGML_STATUS_SUCCESS
                assert gg.nmse(values_of(y).reshape(T, -1), Q.reshape(T, -1)) < 1e-11
        finally:
            lib.ggml_gallocr_free(alloc)
            raw.close()


FF = 24
UP = (RNG.standard_normal((FF, N)) / 5).astype(np.float32)
DOWN = (RNG.standard_normal((N, FF)) / 5).astype(np.float32)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("kind", ["reshape", "view", "transpose"])
def test_views_of_what_the_host_computed(shares: str, kind: str) -> None:
    """They come between the nodes of the devices, two in a row where one is reshaped twice."""
    scheduled(shares, kind, at_sums=False)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("kind", ["reshape", "view", "transpose"])
def test_views_of_the_host_behind_sums(shares: str, kind: str) -> None:
    """Directly behind a sum, which is delayed over a product and read; and behind one that ends its graph but for the view."""
    scheduled(shares, kind, at_sums=True)


def scheduled(shares: str, kind: str, at_sums: bool) -> None:
    host = RNG.standard_normal((T, N)).astype(np.float32)
    rules = [("up", f"S1 {shares}"), ("down", f"S0 {shares}")]
    with gg.MetaDevice(f"vcpu:{shares.count(':') + 1}", rules) as meta, gg.Weights(meta, {"up": UP, "down": DOWN}) as w:
        on_meta, on_cpu = lib.ggml_backend_dev_init(meta.ptr, ffi.NULL), lib.ggml_backend_dev_init(gg.cpu().ptr, ffi.NULL)
        raw = Raw(on_meta, on_cpu, leaves=lambda c: tuple(lib.ggml_new_tensor_2d(c, lib.GGML_TYPE_F32, N, n) for n in (T, 1)))
        x, scale = raw.leaves
        c, (up, down) = raw.ctx, (w["up"].ptr, w["down"].ptr)
        h = lib.ggml_new_tensor_2d(c, lib.GGML_TYPE_F32, *((T, N) if kind == "transpose" else (N, T)))
        lib.ggml_set_input(h)
        doubled, tripled = lib.ggml_scale(c, h, 2.0), lib.ggml_scale(c, h, 3.0)
        look: Callable[[Any], Any] = {
            "reshape": lambda t: lib.ggml_reshape_2d(c, lib.ggml_reshape_1d(c, t, N * T), N, T),
            "view": lambda t: lib.ggml_view_2d(c, t, N, T, N * F32, 0),
            "transpose": lambda t: lib.ggml_transpose(c, t),
        }[kind]
        want: list[Any] = [X.astype(np.float64) @ UP.T @ DOWN.T]
        outputs = [lib.ggml_mul_mat(c, down, lib.ggml_mul_mat(c, up, x))]
        outputs.append(lib.ggml_mul(c, outputs[0], scale))  # the sum is delayed over it
        want.append(want[0] * X[0])
        if not at_sums:
            outputs.append(lib.ggml_sqr(c, outputs[-1]))
            want.append(want[-1] ** 2)
        outputs.append(lib.ggml_add(c, outputs[-1], look(doubled)))
        want.append(want[-1] + 2 * host)
        last = lib.ggml_mul_mat(c, down, lib.ggml_mul_mat(c, up, lib.ggml_add(c, outputs[-1], look(tripled))))
        outputs.append(last)
        want.append((want[-1] + 3 * host) @ UP.T @ DOWN.T)
        by_host = lib.ggml_cont(c, look(doubled))
        if at_sums:  # what the host looks at ends a graph of the devices, behind their sum
            outputs += [by_host, lib.ggml_add(c, last, by_host)]
            want += [2.0 * host, want[-1] + 2 * host]
        of_host = (doubled, tripled, by_host)
        for t in (doubled, tripled, *outputs):
            lib.ggml_set_output(t)
            lib.ggml_build_forward_expand(raw.graph, t)
        sched = lib.ggml_backend_sched_new(ffi.new("ggml_backend_t[2]", [on_meta, on_cpu]), ffi.NULL, 2, 64, False, False)
        try:
            for i in range(lib.ggml_graph_n_nodes(raw.graph)):
                node = lib.ggml_graph_node(raw.graph, i)
                if node.view_src == ffi.NULL:
                    lib.ggml_backend_sched_set_tensor_backend(sched, node, on_cpu if node in of_host else on_meta)
            assert lib.ggml_backend_sched_alloc_graph(sched, raw.graph)
            set_values(x, X)
            set_values(scale, X[:1])
            for _ in range(2):
                set_values(h, np.ascontiguousarray(host.T) if kind == "transpose" else host)  # its memory is used again
                assert lib.ggml_backend_sched_graph_compute(sched, raw.graph) == lib.GGML_STATUS_SUCCESS
                got = {i: gg.nmse(values_of(t).reshape(T, N), want[i]) for i, t in enumerate(outputs)}
                assert max(got.values()) < 1e-11, got
        finally:
            lib.ggml_backend_sched_free(sched)
            raw.close()


@pytest.mark.parametrize("n_virtual", [1, 2])
def test_sums_without_memory(n_virtual: int) -> None:
    """Devices of different kinds sum over buffers of each. One that has no room is named, and there is a sum once it has.

    The room grows: for nothing, for the graph, for some of the buffers (three devices have two each), for all.
    """
    number, bytes_of_sum = 50, N * T * F32
    tight, *others = gg.virtual_cpus(n_virtual, first=number)
    y = X.astype(np.float64) @ UP.T @ DOWN.T
    said: list[str] = []

    def run() -> Array:
        with gg.Graph(meta) as g:
            g.output("y", ops.silu(w["down"] @ (w["up"] @ g.input("x", (N, T)))))
            return g.run(x=X)["y"]

    try:
        with gg.MetaDevice([tight, *others, gg.cpu()], [("up", "S1"), ("down", "S0")]) as meta, gg.Weights(meta, {"up": UP, "down": DOWN}) as w:
            used = tight.memory.total - tight.memory.free
            for room in range(0, 12 * bytes_of_sum, bytes_of_sum // 2):
                gg.virtual_cpus(1, first=number, memory=used + room)
                try:
                    got = run()
                except gg.OutOfMemoryError as error:
                    said.append(str(error))
                    assert tight.memory.total - tight.memory.free == used, "a failed graph left memory allocated"
                else:
                    break
            else:
                pytest.fail(f"still no memory: {said[-1]}")
            assert gg.nmse(got, y / (1 + np.exp(-y))) < 1e-11
    finally:
        gg.virtual_cpus(1, first=number)
    for_graph = [s for s in said if f"VCPU{number}" in s and "graph's tensors" in s]
    for_sums = [s for s in said if f"VCPU{number} has no memory for the other devices' summands: {bytes_of_sum} bytes" in s]
    assert for_graph and len(for_sums) >= n_virtual and for_graph + for_sums == said
