"""Many graphs and contexts over the same weights, alternately and from two threads; observers that change nothing.

Upstream ends the process here: it keeps the slices of views in two containers that take turns, so that a graph which
holds a view of a shared weight is lost when two others were placed after it.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from split_cases import F32, one_device, tokens_of

import pyggml as gg
from pyggml import ops
from pyggml.testing import TinyModel

Array = npt.NDArray[np.float32]
Make = Callable[..., TinyModel]

N_EMBD, N_FF, N_HEAD = 64, 256, 8
RULES = {"1:1": 2, "3:1": 2, "1:2:1": 3}


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(11)
    shapes = {"up": (N_FF, N_EMBD), "down": (N_EMBD, N_FF), "kv": (N_HEAD, 16, N_EMBD), "scale": (N_FF,), "norm": (N_EMBD,)}
    return {name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(params=RULES)
def shared(request: pytest.FixtureRequest) -> Iterator[tuple[gg.MetaDevice, gg.Weights]]:
    shares = request.param
    rules = [("up", f"S1 {shares}"), ("down", f"S0 {shares}"), ("kv", f"S2 {shares}"), ("scale", f"S0 {shares}")]
    with gg.MetaDevice(f"vcpu:{RULES[shares]}", rules) as meta, gg.Weights(meta, arrays()) as weights:
        yield meta, weights


# Graphs that look at the weights through views. Each returns its output; below is the same in float64.


def reshaped(w: gg.Weights, x: gg.Tensor) -> gg.Tensor:
    """The weight as heads, and back."""
    up = ops.reshape(ops.reshape(w["up"], N_EMBD, N_FF // N_HEAD, N_HEAD, graph=x.owner), N_EMBD, N_FF)
    return w["down"] @ ops.silu(up @ x)


def permuted(w: gg.Weights, x: gg.Tensor) -> gg.Tensor:
    """Heads in the middle: [n_embd, 16, n_head] to [n_embd, n_head, 16], read through a copy."""
    return ops.cont(ops.permute(w["kv"], 0, 2, 1, 3, graph=x.owner)) * first_token(x)


def part_of_rows(w: gg.Weights, x: gg.Tensor) -> gg.Tensor:
    """The second half of each head's rows: a window along an axis that is whole on every device."""
    kv = ops.view(w["kv"], N_EMBD, 8, N_HEAD, nb=w["kv"].nb[1:3], offset=8 * w["kv"].nb[1], graph=x.owner)
    return ops.cont(kv) * first_token(x)


def first_token(x: gg.Tensor) -> gg.Tensor:
    return ops.view(x, N_EMBD, 1)


def plain(w: gg.Weights, x: gg.Tensor) -> gg.Tensor:
    """No view of a weight at all."""
    return w["down"] @ ((w["up"] @ (ops.rms_norm(x) * w["norm"])) * w["scale"])


def viewed_scale(w: gg.Weights, x: gg.Tensor) -> gg.Tensor:
    """A vector as a matrix of one row."""
    return w["down"] @ ((w["up"] @ x) * ops.reshape(w["scale"], N_FF, 1, graph=x.owner))


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def expected(name: str, x: Array) -> Any:
    w = {k: v.astype(np.float64) for k, v in arrays().items()}
    x64 = x.astype(np.float64)
    if name == "reshaped":
        return silu(x64 @ w["up"].T) @ w["down"].T
    if name == "permuted":
        return w["kv"].transpose(1, 0, 2) * x64[0]
    if name == "part_of_rows":
        return w["kv"][:, 8:] * x64[0]
    if name == "plain":
        normed = x64 / np.sqrt((x64**2).mean(1, keepdims=True) + 1e-5) * w["norm"]
        return ((normed @ w["up"].T) * w["scale"]) @ w["down"].T
    return ((x64 @ w["up"].T) * w["scale"]) @ w["down"].T


BUILD = {f.__name__: f for f in (reshaped, permuted, part_of_rows, plain, viewed_scale)}


class Job:
    """A graph over shared weights, its inputs and what it has to give."""

    def __init__(self, meta: gg.MetaDevice, weights: gg.Weights, name: str, n_tokens: int = 5) -> None:
        self.name, self.n = name, n_tokens
        self.graph = gg.Graph(meta)
        self.graph.output("y", BUILD[name](weights, self.graph.input("x", (N_EMBD, n_tokens))))

    def run(self, seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((self.n, N_EMBD)).astype(np.float32)
        got = self.graph.run(x=x)["y"]
        want = expected(self.name, x)
        assert got.size == want.size  # axes of one element at the front are left out
        assert gg.nmse(got.reshape(want.shape), want) < 1e-10, self.name


@pytest.mark.parametrize("a, b", list(itertools.permutations(BUILD, 2)))
def test_two_graphs_in_turns(shared: tuple[gg.MetaDevice, gg.Weights], a: str, b: str) -> None:
    first = Job(*shared, a)
    first.run(0)
    second = Job(*shared, b)  # placed while the first one is
    for seed in range(1, 5):
        second.run(seed)
        first.run(seed)
    with first.graph:
        pass  # closed
    second.run(9)
    second.graph.close()


def test_many_graphs_in_turns(shared: tuple[gg.MetaDevice, gg.Weights]) -> None:
    jobs = [Job(*shared, name, n_tokens) for n_tokens in (1, 3, 8) for name in BUILD]
    order = np.random.default_rng(0)
    for seed, i in enumerate(order.integers(0, len(jobs), 90)):
        jobs[i].run(seed)
    for job in jobs[::2]:
        job.graph.close()
    for seed, job in enumerate(jobs[1::2]):
        job.run(seed)
        job.graph.close()


def test_graphs_that_come_and_go(shared: tuple[gg.MetaDevice, gg.Weights]) -> None:
    stays = Job(*shared, "part_of_rows")
    for seed in range(30):
        stays.run(seed)
        goes = Job(*shared, list(BUILD)[seed % len(BUILD)], 1 + seed % 4)
        goes.run(seed)
        goes.graph.close()
    stays.graph.close()


def in_threads(*work: Callable[[], None]) -> None:
    """Runs them at once; what one of them raises is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(work))

    def call(job: Callable[[], None]) -> None:
        try:
            start.wait(20)
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(job,), daemon=True) for job in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("a, b", [("reshaped", "part_of_rows"), ("plain", "permuted"), ("reshaped", "reshaped"), ("viewed_scale", "plain")])
def test_two_threads_over_the_same_weights(shared: tuple[gg.MetaDevice, gg.Weights], a: str, b: str) -> None:
    def work(name: str, first_seed: int) -> Callable[[], None]:
        def call() -> None:
            job = Job(*shared, name)
            for seed in range(40):
                job.run(first_seed + seed)
            job.graph.close()

        return call

    in_threads(work(a, 0), work(b, 1000))


def test_two_threads_that_place_and_close(shared: tuple[gg.MetaDevice, gg.Weights]) -> None:
    def work(first_seed: int) -> Callable[[], None]:
        def call() -> None:
            for seed in range(25):
                job = Job(*shared, list(BUILD)[(seed + first_seed) % len(BUILD)], 1 + seed % 3)
                job.run(first_seed + seed)
                job.run(first_seed + seed + 1)
                job.graph.close()

        return call

    in_threads(work(0), work(1000))


def test_plans_while_another_thread_runs(shared: tuple[gg.MetaDevice, gg.Weights]) -> None:
    planned: list[gg.SplitPlan] = []

    def run() -> None:
        job = Job(*shared, "reshaped")
        for seed in range(40):
            job.run(seed)
        job.graph.close()

    def plan() -> None:
        job = Job(*shared, "plain")
        planned.extend(job.graph.plan() for _ in range(10))
        job.run(3)
        job.graph.close()

    in_threads(run, plan)
    assert len({p.to_json() for p in planned}) == 1


# --- models


@pytest.mark.parametrize("name", ["llama", "qwen35"])
def test_models_in_turns_on_the_same_devices(tiny: Make, name: str) -> None:
    a, b = tiny(name), tiny("llama-moe")
    ta, tb = tokens_of(a, 9), tokens_of(b, 7)
    want_a, want_b = one_device(a, ta), one_device(b, tb)
    with (
        gg.Model(a, "vcpu:2", split_mode="tensor", tensor_split=(3, 1), **F32) as first,
        gg.Model(b, "vcpu:2", split_mode="tensor", **F32) as second,
        gg.Model(a, "vcpu:3", split_mode="tensor", **F32) as third,
    ):
        for _ in range(3):
            assert gg.nmse(first.logits(ta), want_a) <= 1e-10
            assert gg.nmse(second.logits(tb), want_b) <= 1e-10
            assert gg.nmse(third.logits(ta), want_a) <= 1e-10


def test_models_in_two_threads(tiny: Make) -> None:
    def work(name: str, device: str) -> Callable[[], None]:
        model, tokens = tiny(name), tokens_of(tiny(name), 9)
        want = one_device(model, tokens)

        def call() -> None:
            with gg.Model(model, device, split_mode="tensor", **F32) as m:
                for _ in range(6):
                    assert gg.nmse(m.logits(tokens), want) <= 1e-10

        return call

    in_threads(work("llama", "vcpu:2"), work("llama-moe", "vcpu:3"))


# two contexts of one loaded model: llama.cpp's own way of sharing weights between sequences of graphs
@pytest.mark.parametrize("threads", [False, True], ids=["in turns", "in two threads"])
@pytest.mark.parametrize("name", ["llama", "llama-moe", "qwen35"])
def test_two_contexts_of_one_model(tiny: Make, name: str, threads: bool) -> None:
    tiny_model = tiny(name)
    tokens = [tokens_of(tiny_model, n, n) for n in (11, 4)]
    want = [one_device(tiny_model, t) for t in tokens]
    with gg.Model(tiny_model, "vcpu:2", split_mode="tensor", tensor_split=(3, 1), **F32) as model, model.context() as second:

        def work(i: int) -> Callable[[], None]:
            def call() -> None:
                for _ in range(5):
                    got = model.logits(tokens[i]) if i == 0 else second.decode(tokens[i], logits="all", from_empty=True)
                    assert gg.nmse(got, want[i]) <= 1e-10

            return call

        if threads:
            in_threads(work(0), work(1))
        else:
            for _ in range(3):
                for i in (0, 1):
                    assert gg.nmse((model.logits(tokens[i]) if i == 0 else second.decode(tokens[i], logits="all", from_empty=True)), want[i]) <= 1e-10


# --- observers


@pytest.mark.parametrize("device, shares", [("vcpu:2", (1, 1)), ("vcpu:2", (3, 1)), ("vcpu:3", (1, 1, 1))])
@pytest.mark.parametrize("name", ["llama", "llama-moe", "qwen35"])
def test_observed(tiny: Make, name: str, device: str, shares: tuple[float, ...]) -> None:
    """Bit-equal with an observer on every node, and every node is what one device has there."""
    tiny_model = tiny(name)
    tokens = tokens_of(tiny_model, 6)

    def observed(device: str, shares: tuple[float, ...]) -> tuple[Array, list[tuple[str, str, bytes]]]:
        seen: list[tuple[str, str, bytes]] = []
        with gg.Model(tiny_model, device, split_mode="tensor", tensor_split=shares, **F32) as model:
            before = model.logits(tokens)
            during = model.logits(tokens, observer=lambda *node: seen.append(node))
            after = model.logits(tokens)
            nodes = model.plan(len(tokens)).nodes
        assert np.array_equal(before, during) and np.array_equal(before, after)
        missing = Counter((n.name, n.op) for n in nodes if n.bytes) - Counter(n[:2] for n in seen)
        # the first of a fused pair has no value; what is no single piece of memory is seen through the node it is of
        assert {op for _, op in missing} <= {"RMS_NORM", "PERMUTE", "TRANSPOSE", "VIEW", "GATED_DELTA_NET"}
        return during, seen

    one, nodes = observed("vcpu:1", (1,))
    split, split_nodes = observed(device, shares)
    assert gg.nmse(split, one) <= 1e-10
    assert [n[:2] for n in nodes] == [n[:2] for n in split_nodes]
    compared = 0
    for (node, op, a), (_, _, b) in zip(nodes, split_nodes, strict=True):
        assert len(a) == len(b), node
        if len(a) % 4 == 0 and not _is_integer(op):
            x, y = (np.frombuffer(v, np.float32) for v in (a, b))
            if np.isfinite(x).all():
                assert gg.nmse(y, x) <= 1e-9, (node, op)
                compared += 1
        else:
            assert a == b, node
    assert compared > 0.8 * len(nodes)


def _is_integer(op: str) -> bool:
    return op in ("ARGSORT", "TOP_K")


def test_an_observer_that_raises(tiny: Make) -> None:
    tiny_model = tiny("llama")
    tokens = tokens_of(tiny_model, 3)

    def observer(name: str, op: str, value: bytes) -> None:
        if op == "MUL_MAT":
            raise KeyError(name)

    with gg.Model(tiny_model, "vcpu:2", split_mode="tensor", **F32) as model, pytest.raises(KeyError):
        model.logits(tokens, observer=observer)
    with gg.Model(tiny_model, "vcpu:2", split_mode="tensor", **F32) as model:
        assert gg.nmse(model.logits(tokens), one_device(tiny_model, tokens)) <= 1e-10


def test_an_observer_sees_its_own_graph_or_context_alone(tiny: Make) -> None:
    """Not what another graph, context or thread does on the same meta device; and observers within each other lose nothing."""
    meta = gg.MetaDevice("vcpu:2")
    with gg.Graph(meta) as a, gg.Graph(meta) as b:
        for name, graph in (("a", a), ("b", b)):
            graph.output(name, graph.input("x", (8, 2)) + 1.0)
        x = np.ones((2, 8), np.float32)
        seen_a: list[str] = []
        seen_b: list[str] = []
        with a.observed(lambda name, op, value: seen_a.append(name)):
            b.run(x=x)
            assert seen_a == []
            with b.observed(lambda name, op, value: seen_b.append(name)):
                b.run(x=x)
            a.run(x=x)
        a.run(x=x)
        assert (seen_a, seen_b) == (["a"], ["b"])

    tiny_model = tiny("llama")
    tokens = tokens_of(tiny_model, 6)
    with gg.Model(tiny_model, "vcpu:2", split_mode="tensor", **F32) as model, model.context() as other:
        counts: list[int] = []

        def observed_nodes() -> int:
            seen: list[str] = []
            model.logits(tokens, observer=lambda name, op, value: seen.append(name))
            return len(seen)

        alone = observed_nodes()

        def watch() -> None:
            for _ in range(5):
                counts.append(observed_nodes())

        in_threads(watch, lambda: [other.decode(tokens, from_empty=True) for _ in range(20)])
        assert counts == [alone] * 5
