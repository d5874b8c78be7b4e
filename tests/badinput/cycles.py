"""Creates, runs and closes things again and again, and prints how many bytes of memory that cost: ``cycles.py WHAT N``."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

import pyggml as gg
from pyggml.testing import tiny_gguf

WARM_UP = 100  # allocators settle, caches fill, threads get their stacks


def graphs() -> Callable[[], None]:
    a, b, x = (np.ones(shape, np.float32) for shape in ((64, 64), (64, 64), (8, 64)))

    def cycle() -> None:
        with gg.MetaDevice("vcpu:2", [("up", "S1"), ("down", "S0")]) as meta, gg.Weights(meta, {"up": a, "down": b}) as weights:
            with gg.Graph(meta, size=32) as graph:
                graph.output("y", weights["down"] @ gg.ops.relu(weights["up"] @ graph.input("x", (64, 8))))
                assert graph.run(x=x)["y"][0, 0] == 64 * 64

    return cycle


def plans() -> Callable[[], None]:
    def cycle() -> None:
        with gg.MetaDevice("vcpu:2", [("up", "S1"), ("down", "S0")]) as meta:
            f32 = gg.as_dtype("f32")
            with gg.Weights.empty(meta, {"up": (f32, (64, 64)), "down": (f32, (64, 64))}) as weights, gg.Graph(meta, size=32) as graph:
                graph.output("y", weights["down"] @ gg.ops.relu(weights["up"] @ graph.input("x", (64, 8))))
                assert len(graph.plan().allreduces) == 1

    return cycle


def _tiny() -> Path:
    folder = Path(tempfile.mkdtemp())
    return tiny_gguf(folder / "tiny.gguf", shares=[(1, 1)], n_layer=2, n_embd=64, n_ff=256, n_vocab=64, head_dim=16).path


def models() -> Callable[[], None]:
    path = _tiny()

    def cycle() -> None:
        with gg.Model(path, "vcpu:2", split_mode="tensor", n_ctx=64, threads=1) as model:
            assert model.logits([1, 2, 3]).shape == (3, 64)

    return cycle


def model_plans() -> Callable[[], None]:
    from pyggml.model import ModelOptions, plan_model

    path = _tiny()
    options = ModelOptions("tensor", n_ctx=64)

    def cycle() -> None:
        assert plan_model(path, "vcpu:2", options=options).allreduces

    return cycle


def failures() -> Callable[[], None]:
    """What was begun before an error is given back too."""
    a = np.ones((64, 64), np.float32)
    path = _tiny()

    def cycle() -> None:
        for act in (
            lambda: gg.Weights(gg.MetaDevice("vcpu:2", [("w", "S0 1:2:3")]), {"w": a}),
            lambda: gg.Model(path, gg.MetaDevice("vcpu:2", [("ffn_up", "S0 1:2:3")]), n_ctx=64),
            split_error,
        ):
            try:
                act()
            except gg.SplitError:
                pass
            else:
                raise AssertionError("nothing was raised")

    def split_error() -> None:
        with gg.MetaDevice("vcpu:2", [("w", "S0"), ("v", "S1")]) as meta, gg.Weights(meta, {"w": a, "v": a}) as weights, gg.Graph(meta, size=16) as graph:
            graph.output("y", weights["w"] + weights["v"])
            graph.run()

    return cycle


KINDS = {"graphs": graphs, "plans": plans, "models": models, "plans of models": model_plans, "failures": failures}


def main(what: str, n: int) -> None:
    cycle = KINDS[what]()
    process = psutil.Process()
    for _ in range(WARM_UP):
        cycle()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(n):
        cycle()
    gc.collect()
    print(process.memory_info().rss - before, process.num_threads(), process.num_fds())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
