"""Weights and meta devices that a run stands on cannot be closed under it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import pyggml as gg


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
