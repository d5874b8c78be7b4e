"""What is run, read or planned by one thread cannot be closed or changed under it by another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyggml as gg
from pyggml import ops
from pyggml import tensor as tensor_module


@pytest.mark.parametrize("victim", ["weights", "meta"])
def test_close_while_another_thread_runs(victim: str) -> None:
    rng = np.random.default_rng(0)
    meta = gg.MetaDevice("vcpu:2", [("w", "S1")])
    weights = gg.Weights(meta, {"w": rng.standard_normal((512, 512)).astype(np.float32)})
    started = threading.Event()
    refused: list[BaseException] = []
    with gg.Graph(meta) as g:
        x = g.input("x", (512, 64))
        y = weights["w"] @ x
        for _ in range(20):
            y = y + weights["w"] @ x
        g.output("y", y)
        data = rng.standard_normal((64, 512)).astype(np.float32)
        right = g.run(x=data)["y"]

        def close() -> None:
            started.wait()
            try:
                (weights if victim == "weights" else meta).close()
            except gg.BusyError as error:
                refused.append(error)

        def seen(name: str, op: str, value: bytes) -> None:
            if not started.is_set():
                started.set()
                thread.join()  # the other thread tries to close while this run is under way

        thread = threading.Thread(target=close)
        thread.start()
        with g.observed(seen):
            assert np.array_equal(g.run(x=data)["y"], right)
    assert len(refused) == 1 and "while a graph runs" in str(refused[0])
    weights.close()
    meta.close()


def in_another_thread(act: Callable[[], object]) -> list[BaseException]:
    """What it raised there, once it has ended."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return raised


@pytest.mark.parametrize("what", ["weight", "slice", "output"])
def test_close_while_another_thread_reads(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read memory that is given back."""
    meta = gg.MetaDevice("vcpu:2", [("w", "S1")])
    weights = gg.Weights(meta, {"w": np.arange(4096, dtype=np.float32).reshape(64, 64)})
    with gg.Graph(meta) as g:
        y = g.output("y", weights["w"] @ g.input("x", (64, 1)))
        right = g.run(x=np.ones((1, 64), np.float32))["y"]
        owner: gg.Graph | gg.Weights = g if what == "output" else weights
        refused: list[BaseException] = []
        read = tensor_module.read_tensor

        def slowly(*args: Any) -> Any:
            refused.extend(in_another_thread(owner.close))
            return read(*args)

        monkeypatch.setattr(tensor_module, "read_tensor", slowly)
        if what == "output":
            assert np.array_equal(y.numpy(), right.reshape(-1))
        elif what == "slice":
            assert np.array_equal(weights["w"].slices()[1].numpy().reshape(-1), np.arange(2048, 4096))
        else:
            assert np.array_equal(weights["w"].numpy().reshape(-1), np.arange(4096))
        assert [type(e) for e in refused] == [gg.BusyError]
        monkeypatch.undo()
    weights.close()


def test_an_output_cannot_be_read_while_it_is_computed() -> None:
    meta = gg.MetaDevice("vcpu:2", [("w", "S1")])
    with gg.Weights(meta, {"w": np.ones((64, 64), np.float32)}) as weights, gg.Graph(meta) as g:
        y = g.output("y", weights["w"] @ g.input("x", (64, 1)))
        x = np.ones((1, 64), np.float32)
        g.run(x=x)
        refused: list[BaseException] = []
        with g.observed(lambda *node: refused.extend(in_another_thread(y.numpy))):
            g.run(x=x)
        assert [type(e) for e in refused] == [gg.BusyError]
        assert np.array_equal(y.numpy(), np.full(64, 64))


@pytest.mark.parametrize("victim", ["graph", "weights", "meta"])
def test_close_while_another_thread_plans(victim: str) -> None:
    refused: list[BaseException] = []
    armed = False

    def split(info: gg.TensorInfo) -> str | None:
        if armed:
            refused.extend(in_another_thread({"graph": g, "weights": weights, "meta": meta}[victim].close))
        return "S1"

    meta = gg.MetaDevice("vcpu:2", [gg.rule("w", split)])
    weights = gg.Weights(meta, {"w": np.ones((64, 64), np.float32)})
    g = gg.Graph(meta)
    g.output("y", weights["w"] @ g.input("x", (64, 1)))
    armed = True
    plan = g.plan()
    armed = False
    assert refused and {type(e) for e in refused} == {gg.BusyError}
    assert plan.nodes[0].split is not None
    g.close()
    weights.close()
    meta.close()


def test_a_meta_device_that_is_closed_while_weights_are_placed() -> None:
    meta = gg.MetaDevice("vcpu:2", [("", "S1")])
    with pytest.raises(gg.ClosedError):
        gg.Weights(meta, {n: np.ones((64, 64), np.float32) for n in "ab"}, progress=lambda done, total: meta.close())


def test_two_threads_that_build_one_graph() -> None:
    """ggml takes a node's memory without a lock: both would get the same one, and the sum would be wrong."""

    class Slow(float):
        def __float__(self) -> float:
            refused.extend(in_another_thread(lambda: ops.add(x, x)))
            return 2.0

    refused: list[BaseException] = []
    with gg.Graph(gg.cpu()) as g:
        x = g.input("x", (4, 1))
        g.output("y", ops.scale(x, Slow()))
        assert [type(e) for e in refused] == [gg.BusyError]
        assert np.array_equal(g.run(x=np.ones((1, 4), np.float32))["y"].reshape(-1), np.full(4, 2))
