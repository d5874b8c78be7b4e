"""What test_vulkan.py measures, run in a process of its own.

Mesa's lavapipe is one device. GGML_VK_VISIBLE_DEVICES=0,0,0 makes three of it, and ggml reads that once, when it is
loaded: so the process that measures is started with it, and the one that runs the other tests is left alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

import pyggml as gg
from pyggml._ffi import ffi, lib

N_DEVICES = 3
F32 = {"attn_f32": True, "type_k": "f32", "type_v": "f32", "flash_attn": "on", "n_ctx": 128}
TOKENS = np.arange(1, 33) * 7 % 300

Array = npt.NDArray[Any]


class WorkerError(AssertionError):
    """A function raised in the worker: its traceback; or the worker died."""


class Worker:
    """A process that runs the functions of this module, one at a time."""

    def __init__(self, visible: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        before = os.environ.get("GGML_VK_VISIBLE_DEVICES")
        os.environ["GGML_VK_VISIBLE_DEVICES"] = visible
        try:
            self._process = context.Process(target=_serve, args=(there,), daemon=True)
            self._process.start()
        finally:
            del os.environ["GGML_VK_VISIBLE_DEVICES"]
            if before is not None:
                os.environ["GGML_VK_VISIBLE_DEVICES"] = before
        there.close()

    def __call__(self, function: Callable[..., Any], *args: Any, timeout: float = 240, **kwargs: Any) -> Any:
        """The function's result. Raises WorkerError when it raised, when the process died, or after the timeout."""
        try:
            self._here.send((function.__name__, args, kwargs))
            if not self._here.poll(timeout):
                self.kill()
                raise WorkerError(f"{function.__name__}{args} took more than {timeout} s")
            good, result = self._here.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(10)
            raise WorkerError(f"the process died in {function.__name__}{args}: status {self._process.exitcode}") from None
        if not good:
            raise WorkerError(result)
        return result

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def finish(self) -> int | None:
        """Lets it end by itself: the exit status, None if it hangs."""
        self._here.send(None)
        self._process.join(60)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join(10)


def _serve(connection: Connection) -> None:
    while (job := connection.recv()) is not None:
        name, args, kwargs = job
        try:
            answer = True, globals()[name](*args, **kwargs)
        except Exception:
            answer = False, traceback.format_exc()
        connection.send(answer)


#
# what is measured
#


def vulkan_devices() -> list[str]:
    return [d.name for d in gg.devices() if d.backend == "Vulkan"]


@dataclass(frozen=True)
class Split:
    """A model split over devices, against the same model on one device."""

    logits: Array
    repeated: bool
    """The same context gave the same logits again, bit by bit."""
    planned: gg.SplitPlan
    ran: gg.SplitPlan
    """What was captured from the real devices while they computed."""


def _captured(model: gg.Model, tokens: Array) -> tuple[Array, gg.SplitPlan]:
    lib.pgg_meta_capture_begin(model.meta_device_ptr)
    try:
        logits = model.logits(tokens)
    finally:
        text = lib.pgg_meta_capture_take(model.meta_device_ptr)
    captured = json.loads(ffi.string(text))
    lib.pgg_free(text)
    return logits, gg.SplitPlan.from_captures(captured)


@lru_cache(maxsize=64)
def _one(path: str, device: str, options: tuple[tuple[str, Any], ...]) -> Array:
    with gg.Model(path, None if device == "cpu" else device, **dict(options)) as model:
        return model.logits(TOKENS)


def one(path: str, device: str, **options: Any) -> Array:
    """Logits on one device."""
    return _one(path, device, tuple(sorted({**F32, **options}.items())))


def split(path: str, devices: str, shares: tuple[float, ...] | None, **options: Any) -> Split:
    """Logits, and what was planned and done for them; for the plans, of a single token: all its logits are wanted."""
    chosen = {**F32, **options, "split_mode": "tensor", "tensor_split": shares}
    with gg.Model(path, devices, **chosen) as model:
        logits = model.logits(TOKENS)
        again = model.logits(TOKENS)
    with gg.Model(path, devices, **chosen) as model:
        planned = model.plan(1)
        _, ran = _captured(model, TOKENS[:1])
    return Split(logits, np.array_equal(logits, again), planned, ran)


def growing(path: str, devices: str, sizes: Sequence[int], **options: Any) -> list[float]:
    """NMSE of batches of these sizes, one after the other in one context, against the CPU."""
    chosen = {**F32, **options, "n_ctx": max(sizes)}
    tokens = np.arange(1, max(sizes) + 1) * 7 % 300
    with gg.Model(path, None, **chosen) as model:
        expected = model.logits(tokens)
    if "," in devices:
        chosen["split_mode"] = "tensor"
    with gg.Model(path, devices, **chosen) as model:
        return [gg.nmse(model.logits(tokens[:n]), expected[:n]) for n in sizes]


def counted(path: str, devices: str, shares: tuple[float, ...]) -> tuple[int, int, int]:
    """Subgraphs and all-reduces of a run, as captured; and the graphs that the virtual CPU device among the devices
    counted itself."""
    with gg.Model(path, devices, split_mode="tensor", tensor_split=shares, **F32) as model:
        model.logits(TOKENS[:1])
        (counting,) = (d for d in model.devices if d.is_virtual)
        counting.reset_stats()
        _, ran = _captured(model, TOKENS[:1])
        stats = counting.stats()
    return len(ran.subgraphs), len(ran.allreduces), stats.graph_computes


def observed(path: str, devices: str) -> tuple[Array, Array, list[tuple[str, str, int]]]:
    """Logits without and with a callback on every node, and the nodes that it saw."""
    seen: list[tuple[str, str, int]] = []
    with gg.Model(path, devices, split_mode="tensor", **F32) as model:
        plain = model.logits(TOKENS)
        watched = model.logits(TOKENS, observer=lambda name, op, data: seen.append((name, op, len(data))))
        after = model.logits(TOKENS)
    assert np.array_equal(plain, after)
    return plain, watched, seen


def mlp_values(dtype: str, seed: int = 0) -> tuple[dict[str, Any], Array]:
    """Weights of an MLP whose columns have different sizes, and an input."""
    rng = np.random.default_rng(seed)
    up = (rng.standard_normal((256, 64)) * np.linspace(0.02, 0.3, 256)[:, None]).astype(np.float32)
    down = (rng.standard_normal((64, 256)) * np.linspace(0.01, 0.2, 256)[None, :]).astype(np.float32)
    weights = {"up": up, "down": down}
    return (
        {name: value if dtype == "f32" else gg.quantize(value, dtype) for name, value in weights.items()},
        rng.standard_normal((8, 64)).astype(np.float32),
    )


def _mlp(device: Any, weights: gg.Weights, x_ne: tuple[int, int] = (64, 8)) -> gg.Graph:
    graph = gg.Graph(device)
    x = graph.input("x", ne=x_ne)
    with_silu = gg.ops.silu(gg.ops.mul_mat(weights["up"], x))
    graph.output("y", gg.ops.mul_mat(weights["down"], with_silu))
    return graph


def mlp(devices: str, shares: str, dtype: str = "f32", poison: bool = False) -> dict[str, Any]:
    """A graph that ends in a partial sum, split and on one device. poison: run it with NaN first, which leaves NaN in
    the slices of all devices."""
    values, x = mlp_values(dtype)
    with (
        gg.MetaDevice(devices, rules=[gg.rule("up", f"S1 {shares}", granularity=32), gg.rule("down", f"S0 {shares}")]) as meta,
        gg.Weights(meta, values) as weights,
        _mlp(meta, weights) as graph,
    ):
        if poison:
            assert np.isnan(graph.run(x=np.full_like(x, np.nan))["y"]).all()
        y = graph.run(x=x)["y"]
        plan = graph.plan()
        kept = [w.numpy() for w in (weights["up"], weights["down"])] if dtype == "f32" else []
    single = gg.get_device(devices.split(",")[-1] if "vcpu" not in devices else "Vulkan0")
    with gg.Weights(single, values) as weights, _mlp(single, weights) as graph:
        reference = graph.run(x=x)["y"]
    exact = [np.asarray(v if isinstance(v, np.ndarray) else gg.dequantize(v), np.float64) for v in (values["up"], values["down"])]
    hidden = x.astype(np.float64) @ exact[0].T
    return {
        "y": y,
        "one": reference,
        "exact": (hidden / (1 + np.exp(-hidden))) @ exact[1].T,
        "plan": plan,
        "weights kept": all(np.array_equal(k, v) for k, v in zip(kept, (values["up"], values["down"]))),
    }


def alternate(threads: bool) -> float:
    """The largest NMSE of two graphs over the same weights, one with views of them, run in turns or from two threads."""
    values, x = mlp_values("f32")
    worst = [0.0]
    failures: list[BaseException] = []
    with (
        gg.MetaDevice("Vulkan0,Vulkan1", rules=[gg.rule("up", "S1 3:1"), gg.rule("down", "S0 3:1")]) as meta,
        gg.Weights(meta, values) as weights,
        _mlp(meta, weights) as first,
        gg.Graph(meta) as second,
    ):
        view = gg.ops.reshape(weights["up"], 64, 256)
        second.output("h", gg.ops.mul_mat(view, second.input("x", ne=(64, 8))))
        hidden = x.astype(np.float64) @ values["up"].astype(np.float64).T
        expected = {"h": hidden, "y": (hidden / (1 + np.exp(-hidden))) @ values["down"].astype(np.float64).T}

        def run(graph: gg.Graph, times: int) -> None:
            try:
                for _ in range(times):
                    for name, value in graph.run(x=x).items():
                        worst[0] = max(worst[0], gg.nmse(value, expected[name]))
            except BaseException as error:
                failures.append(error)

        if threads:
            running = [threading.Thread(target=run, args=(graph, 50)) for graph in (first, second)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
        else:
            for _ in range(10):
                run(first, 1)
                run(second, 1)
    if failures:
        raise failures[0]
    return worst[0]


def overwritten_indices() -> list[str]:
    """What is said of indices that the graph writes over an input's or a weight's; no kernel of Vulkan looks at them."""
    said = []
    rows = np.array([0, 1, 2], np.int32)
    for device in ("Vulkan0", "Vulkan0,Vulkan1"):
        for place in ("input", "weight"):
            for write in ("cpy", "set"):
                with (
                    gg.MetaDevice(device) as meta,
                    gg.Weights(meta, {"w": np.ones((8, 16), np.float32), "ids": rows}) as weights,
                    gg.Graph(meta, size=32) as graph,
                ):
                    ids = weights["ids"] if place == "weight" else graph.input("ids", (3,), "i32")
                    new = graph.input("new", (3,), "f32" if write == "cpy" else "i32")
                    over = gg.ops.cpy(gg.ops.scale(new, 1.0), ids) if write == "cpy" else gg.ops.set(ids, new, inplace=True)
                    graph.output("y", gg.ops.get_rows(weights["w"], over))
                    values = {"new": np.array([0, 9_999_999, 2]), **({"ids": rows} if place == "input" else {})}
                    try:
                        said.append(str(graph.run(values)["y"].shape))
                    except gg.Error as error:
                        said.append(f"{type(error).__name__}: {error}")
    return said


def positions_at_an_offset() -> list[str | float]:
    """ROPE whose positions are a view that begins within a longer tensor: the refusal; with a copy of the view, the NMSE against the CPU."""
    rng = np.random.default_rng(0)
    values = {"x": rng.standard_normal((6, 4, 16)).astype(np.float32), "positions": np.arange(100, 110, dtype=np.int32)}
    found: list[str | float] = []

    def rotated(device: Any, copied: bool) -> Array:
        with gg.Graph(device, size=16) as graph:
            x, positions = graph.input("x", (16, 4, 6)), gg.ops.view(graph.input("positions", (10,), "i32"), (6,), offset=8)
            graph.output("y", gg.ops.rope(x, positions.cont() if copied else positions, 16, "neox"))
            return graph.run(values)["y"]

    want = rotated(gg.cpu(), False)
    for device in (gg.get_device("Vulkan0"), gg.MetaDevice("Vulkan0,Vulkan1"), gg.MetaDevice("vcpu:1,Vulkan0")):
        try:
            found.append(gg.nmse(rotated(device, False), want))
        except gg.Error as error:
            found.append(f"{type(error).__name__}: {error}")
        found.append(gg.nmse(rotated(device, True), want))
    return found


def illegal_then_legal() -> tuple[str, float]:
    """The message of an illegal split on Vulkan devices, and the NMSE of a legal one after it."""
    values, x = mlp_values("f32")
    message = ""
    with (
        gg.MetaDevice("Vulkan0,Vulkan1", rules=[gg.rule("up", "S1 1:1")]) as meta,
        gg.Weights(meta, values) as weights,
        _mlp(meta, weights) as graph,
    ):
        try:
            graph.run(x=x)
        except gg.SplitError as error:
            message = str(error)
    result = mlp("Vulkan0,Vulkan1", "1:1")
    return message, gg.nmse(result["y"], result["exact"])
