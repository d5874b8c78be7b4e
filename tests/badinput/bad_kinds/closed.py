"""Handles that were closed, released or that failed before, and tensors of closed owners."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_case import Case, Unexpected

import pyggml as gg
from pyggml import ops
from pyggml.testing import tiny_gguf

SMALL = {"shares": [(1, 1)], "n_layer": 2, "n_embd": 64, "n_ff": 128, "n_vocab": 64, "head_dim": 16}
CLOSED = (gg.ClosedError,)
X = np.ones((5, 64), np.float32)

# what may be asked of a closed handle
_HARMLESS = {
    "closed", "close", "n_devices", "devices", "rules", "decisions", "device", "path", "info", "options", "is_graph", "inputs", "outputs",
    "keys", "current",
}  # fmt: skip


def _on(label: str) -> Any:
    return gg.cpu() if label == "cpu" else gg.MetaDevice(label, [("^w$", "S1")])


def _graph(label: str, run: bool) -> tuple[gg.Graph, gg.Weights, gg.Tensor, gg.Tensor]:
    device = _on(label)
    weights = gg.Weights(device, {"w": np.ones((8, 64), np.float32)})
    graph = gg.Graph(device, size=32, threads=1)
    x = graph.input("x", (64, 5))
    y = graph.output("y", weights["w"] @ x)
    if run:
        graph.run(x=X)
    return graph, weights, x, y


def _calls(handle: Any, calls: dict[str, Callable[[Any], object]], what: str, names: tuple[str, ...] = ("closed",)) -> Iterator[Case]:
    """Each public name of the handle's class is among the calls, or harmless."""
    public = {n for n, _ in inspect.getmembers(type(handle)) if not n.startswith("_")}
    for name in sorted(public - set(calls) - _HARMLESS):
        if not any(call.startswith(name) for call in calls):
            raise Unexpected(f"no case for {type(handle).__name__}.{name}")
    for name, call in calls.items():
        yield Case(f"{type(handle).__name__}.{name} {what}", lambda c=call: c(handle), names, CLOSED)


def _graphs() -> Iterator[Case]:
    other = gg.MetaDevice("vcpu:2")
    calls: dict[str, Callable[[Any], object]] = {
        "run": lambda g: g.run(x=X),
        "run without inputs": lambda g: g.run(),
        "run with keywords": lambda g: g.run({"x": X}),
        "plan": lambda g: g.plan(),
        "check": lambda g: g.check(),
        "check over devices": lambda g: g.check(other, rules=[("^w$", "S1")]),
        "nodes": lambda g: g.nodes(),
        "observed": lambda g: g.observed(lambda *a: None).__enter__(),
        "input": lambda g: g.input("z", (3,)),
        "replica": lambda g: g.replica(gg.cpu()),
        "replica over devices": lambda g: g.replica(other),
        "compare": lambda g: gg.compare(g, gg.cpu(), {"x": X}),
        "with": lambda g: g.__enter__(),
    }
    for label in ("cpu", "vcpu:2", "vcpu:3", "sim:2"):
        for run in (False, True):
            if label == "sim:2" and run:
                continue
            graph, weights, x, y = _graph(label, run)
            graph.close()
            what = f"of a closed graph on {label}, {'run' if run else 'not run'} before"
            yield from _calls(graph, {**calls, "output": lambda g, w=weights: g.output("q", w["w"])}, what)
            for tensor in (x, y):
                yield from _tensor(tensor, what, weights["w"])
            weights.close()
            yield from _tensor(y, f"{what}, weights too", None)


def _tensor(tensor: gg.Tensor, what: str, weight: gg.Tensor | None) -> Iterator[Case]:
    calls: dict[str, Callable[[gg.Tensor], object]] = {
        name: (lambda t, n=name: getattr(t, n))
        for name in ("ptr", "name", "ne", "nb", "shape", "dtype", "op", "nbytes", "owner")
    }
    calls |= {
        "numpy": lambda t: t.numpy(), "slices": lambda t: t.slices(), "split": lambda t: t.split(), "rename": lambda t: t.rename("q"),
        "+": lambda t: t + t, "@": lambda t: t @ t, "relu": lambda t: ops.relu(t), "reshape": lambda t: ops.reshape(t, 5, 64),
    }  # fmt: skip
    if weight is not None:
        calls["weight @"] = lambda t: weight @ t
    for name, call in calls.items():
        yield Case(f"tensor {name} {what}", lambda c=call: c(tensor), ("closed",), CLOSED)


def _weights() -> Iterator[Case]:
    for label in ("cpu", "vcpu:2"):
        graph, weights, x, y = _graph(label, True)
        w = weights["w"]
        pieces = w.slices()
        weights.close()
        what = f"of closed weights on {label}"
        yield Case(f"item {what}", lambda t=weights: t["w"], ("closed",), CLOSED)
        yield Case(f"with {what}", lambda t=weights: t.__enter__(), ("closed",), CLOSED)
        for name in ("ptr", "name", "ne", "nb", "dtype", "op", "nbytes"):
            yield Case(f"{name} {what}", lambda t=w, n=name: getattr(t, n), ("closed",), CLOSED)
        yield Case(f"numpy {what}", lambda t=w: t.numpy(), ("closed",), CLOSED)
        for piece in pieces:
            for name in ("ne", "nb", "nbytes", "numpy"):
                yield Case(f"slice {piece.device} {name} {what}", lambda p=piece, n=name: getattr(p, n)() if n == "numpy" else getattr(p, n), ("closed",), CLOSED)
        # the graph that uses them is open
        yield Case(f"run with {what}", lambda g=graph: g.run(x=X), ("closed",), CLOSED)
        yield Case(f"plan with {what}", lambda g=graph: g.plan(), ("closed",), CLOSED)
        yield Case(f"replica with {what}", lambda g=graph: g.replica(gg.cpu()), ("closed",), CLOSED)
        yield Case(f"compare with {what}", lambda g=graph: gg.compare(g, gg.cpu(), {"x": X}), ("closed",), CLOSED)
        fresh, more, _, _ = _graph(label, False)
        more.close()
        yield Case(f"first run with {what}", lambda g=fresh: g.run(x=X), ("closed",), CLOSED)
        yield Case(f"nodes with {what}", lambda g=fresh: g.nodes(), ("closed",), CLOSED)


def _metas() -> Iterator[Case]:
    meta = gg.MetaDevice("vcpu:2", [("^w$", "S1")])
    meta.close()
    what = "of a closed meta device"
    yield from _calls(meta, {"ptr": lambda m: m.ptr, "name": lambda m: m.name, "with": lambda m: m.__enter__(), "twin": lambda m: m.twin()}, what)
    for name, call in {
        "Graph": lambda: gg.Graph(meta),
        "Weights": lambda: gg.Weights(meta, {"w": X}),
        "Weights.empty": lambda: gg.Weights.empty(meta, {"w": (gg.as_dtype("f32"), (4,))}),
    }.items():
        yield Case(f"{name} on a closed meta device", call, ("closed",), CLOSED)
    used, weights, x, y = _graph("vcpu:2", True)
    used.device.close()
    yield Case("plan of a graph on a closed meta device", lambda: used.plan(), ("closed",), CLOSED)
    yield Case("run of a graph on a closed meta device", lambda: used.run(x=X), ("closed",), CLOSED)
    yield Case("weights on a closed meta device", lambda: weights["w"], ("closed",), CLOSED)
    yield Case("weights on a closed meta device, in a new graph", lambda: gg.Graph(used.device), ("closed",), CLOSED)


def _released() -> Iterator[Case]:
    gone = gg.simulated("GONE", n=2)
    for device in gone:
        device.release()
    calls: dict[str, Callable[[gg.Device], object]] = {
        n: (lambda d, n=n: getattr(d, n)) for n in ("ptr", "name", "description", "type", "backend", "memory", "is_virtual", "is_simulated", "lost")
    }
    calls |= {"stats": lambda d: d.stats(), "reset_stats": lambda d: d.reset_stats(), "twin": lambda d: gg.twin(d)}
    for device in gone:
        for name, call in calls.items():
            yield Case(f"{name} of a released device", lambda c=call, d=device: c(d), ("released",), CLOSED)
    for name, call in {
        "Graph": lambda: gg.Graph(gone[0]),
        "Weights": lambda: gg.Weights(gone[0], {"w": X}),
        "MetaDevice": lambda: gg.MetaDevice(gone),
        "MetaDevice of one": lambda: gg.MetaDevice([*gg.virtual_cpus(1), gone[1]]),
    }.items():
        yield Case(f"{name} on released devices", call, ("released",), CLOSED)


def _models(folder: Path) -> Iterator[Case]:
    path = tiny_gguf(folder / "tiny.gguf", **SMALL).path  # type: ignore[arg-type]
    calls: dict[str, Callable[[gg.Model], object]] = {
        "logits": lambda m: m.logits([1, 2]),
        "logits with an observer": lambda m: m.logits([1], observer=lambda *a: None),
        "plan": lambda m: m.plan(),
        "n_vocab": lambda m: m.n_vocab,
        "meta_device_ptr": lambda m: m.meta_device_ptr,
        "with": lambda m: m.__enter__(),
        "logits of a wrong token": lambda m: m.logits([-1]),
        "context": lambda m: m.context(),
        "default_context": lambda m: m.default_context,
        "weight_splits": lambda m: m.weight_splits(),
        "vocab": lambda m: m.vocab,
        "tokenize": lambda m: m.tokenize("a"),
        "detokenize": lambda m: m.detokenize([1]),
        "sampler": lambda m: m.sampler(),
        "generate": lambda m: m.generate([1]),
        "adapter": lambda m: m.adapter("lora.gguf"),
        "description": lambda m: m.description,
        "weight": lambda m: m.weight("output_norm.weight"),
        "check": lambda m: m.check(),
        "split_rules": lambda m: m.split_rules(),
        "chat_template": lambda m: m.chat_template,
        "apply_chat_template": lambda m: m.apply_chat_template([{"role": "user", "content": "a"}], template="chatml"),
        "chat": lambda m: m.chat(template="chatml"),
        "compare_models": lambda m: gg.compare_models(m, other, [1, 2]),
        "compare_models as the reference": lambda m: gg.compare_models(other, m, [1, 2]),
        "compare_nodes": lambda m: gg.compare_nodes(m, other, [1, 2]),
    }
    other = gg.Model(path, threads=1, n_ctx=64)
    on_context: dict[str, Callable[[gg.Context], object]] = {
        "decode": lambda c: c.decode([1, 2]),
        "feed": lambda c: c.feed([1, 2]),
        "decoder_start": lambda c: c.decoder_start,
        "ptr": lambda c: c.ptr,
        "n_past": lambda c: c.n_past(),
        "clear": lambda c: c.clear(),
        "seq_rm": lambda c: c.seq_rm(0),
        "seq_cp": lambda c: c.seq_cp(0, 0),
        "seq_keep": lambda c: c.seq_keep(0),
        "seq_add": lambda c: c.seq_add(0, 1),
        "shift": lambda c: c.shift(1),
        "generate": lambda c: c.generate([1]),
        "embed": lambda c: c.embed([[1]]),
        "encode": lambda c: c.encode([1]),
        "pooling": lambda c: c.pooling,
        "save": lambda c: c.save(),
        "save a sequence": lambda c: c.save(0),
        "restore": lambda c: c.restore(b""),
        "set_adapters": lambda c: c.set_adapters(),
        "memory": lambda c: c.memory(),
        "vocab": lambda c: c.vocab,
        "with": lambda c: c.__enter__(),
    }
    for device, mode in ((None, "none"), ("vcpu:2", "tensor"), ("vcpu:2", "layer")):
        model = gg.Model(path, device, split_mode=mode, n_ctx=64, threads=1)
        model.logits([1, 2, 3])
        alone, own, vocab, sampler = model.context(), model.default_context, model.vocab, model.sampler()
        going_on = alone.generate([1, 2], temperature=0)
        next(going_on)
        model.close()
        alone.clear()
        alone.decode([1, 2, 3])  # its weights live as long as it does
        alone.close()
        yield Case(f"going on with a generation, closed, {mode}", lambda g=going_on: next(g), ("Context", "closed"), CLOSED)
        sampler.close()
        for name, use in {
            "tokenize": lambda v: v.tokenize("a"),
            "detokenize": lambda v: v.detokenize([1]),
            "piece": lambda v: v.piece(1),
            "len": lambda v: len(v),
            "bos": lambda v: v.bos,
            "is_end": lambda v: v.is_end(1),
            "ends": lambda v: v.ends,
        }.items():
            yield Case(f"{name} of the vocabulary of a closed model, {mode}", lambda u=use, v=vocab: u(v), ("closed",), CLOSED)
        for name, use in {"ptr": lambda s: s.ptr, "names": lambda s: s.names, "reset": lambda s: s.reset()}.items():
            yield Case(f"{name} of a closed sampler, {mode}", lambda u=use, s=sampler: u(s), ("Sampler", "closed"), CLOSED)
        public = {n for n, _ in inspect.getmembers(gg.Model) if not n.startswith("_")} - _HARMLESS - {"with_options", "devices"}
        for name in public:
            if not any(c.startswith(name) for c in calls):
                raise Unexpected(f"no case for Model.{name}")
        for name, call in calls.items():
            yield Case(f"Model.{name}, closed, {mode}", lambda c=call, m=model: c(m), ("closed",), CLOSED)
        for name in {n for n, _ in inspect.getmembers(gg.Context) if not n.startswith("_")} - _HARMLESS - {"n_ctx_seq"}:
            if not any(c.startswith(name) for c in on_context):
                raise Unexpected(f"no case for Context.{name}")
        for name, use in on_context.items():
            for label, context in (("", alone), (" of the model", own)):
                yield Case(f"Context.{name}{label}, closed, {mode}", lambda u=use, c=context: u(c), ("Context", "closed"), CLOSED)


def _poisoned() -> Iterator[Case]:
    """A kernel failed in the middle of a run: what the graph holds is unknown, so it can only be closed."""
    for label in ("cpu", "vcpu:2"):
        for first in (-1, 99):
            device = _on(label)
            graph = gg.Graph(device, size=32, threads=1)
            table, ids = graph.input("table", (8, 4)), ops.cast(ops.scale(graph.input("f", (3,)), 1.0), "i32")
            graph.output("y", ops.get_rows(table, ids))
            good = {"table": np.ones((4, 8), np.float32), "f": np.zeros(3, np.float32)}
            graph.run(good)
            try:
                graph.run({**good, "f": np.full(3, first, np.float32)})
            except gg.Error as error:
                reason = str(error)
            else:
                raise Unexpected("the wrong index was let through")
            for name, call in {
                "run": lambda g=graph, v=good: g.run(v),
                "run again": lambda g=graph, v=good: g.run(v),
                "plan": lambda g=graph: g.plan(),
                "nodes": lambda g=graph: g.nodes(),
                "replica": lambda g=graph: g.replica(gg.cpu()),
                "input": lambda g=graph: g.input("q", (3,)),
                "with": lambda g=graph: g.__enter__(),
                "compare": lambda g=graph, v=good: gg.compare(g, gg.cpu(), v),
            }.items():
                yield Case(f"{name} of a graph that failed on {label} at {first}", call, (str(first), reason[:30], "close it"), (gg.PoisonedError,))
            graph.close()
            yield Case(f"run of a poisoned and closed graph on {label}", lambda g=graph, v=good: g.run(v), ("closed",), CLOSED)


def _running(folder: Path) -> Iterator[Case]:
    """Handles that run just now: in another thread, or in the call whose callback this is."""
    path = tiny_gguf(folder / "running.gguf", **SMALL).path  # type: ignore[arg-type]
    model = gg.Model(path, "vcpu:2", split_mode="tensor", n_ctx=64, threads=1)
    right = model.logits([1, 2, 3])

    def within(act: Callable[[], object]) -> Callable[[], object]:
        def do() -> None:
            try:
                model.logits([1], observer=lambda *a: act())
            finally:
                model.default_context._poison = None  # the exception came out of our own observer: nothing was left half-done
                assert np.array_equal(model.logits([1, 2, 3]), right), "later logits differ"

        return do

    for name, act in {"close": model.close, "logits": lambda: model.logits([1])}.items():
        yield Case(f"Model.{name} within its own run", within(act), ("Model", "run") if name == "close" else ("Context", "in use"), (gg.BusyError,))
    for label in ("cpu", "vcpu:2"):
        device = _on(label)
        weights = gg.Weights(device, {"w": np.eye(256, dtype=np.float32)})
        graph = gg.Graph(device, size=4000, threads=1)
        y = graph.input("x", (256, 256))
        for _ in range(60):
            y = ops.cont(ops.transpose(ops.cont(ops.transpose(weights["w"] @ y)))) if label == "cpu" else ops.sqr(y)
        graph.output("y", y)
        x = np.ones((256, 256), np.float32)
        graph.run(x=x)

        def meanwhile(act: Callable[[], object], graph: gg.Graph = graph, x: np.ndarray = x) -> Callable[[], object]:
            def do() -> None:
                stop = threading.Event()

                def run() -> None:
                    while not stop.is_set():
                        try:
                            graph.run(x=x)
                        except gg.BusyError:  # the other one was first
                            pass

                thread = threading.Thread(target=run)
                thread.start()
                try:
                    for _ in range(1000):
                        act()
                finally:
                    stop.set()
                    thread.join()

            return do

        for i in range(3):
            yield Case(f"run {i} of a graph that runs on {label}", meanwhile(lambda g=graph, x=x: g.run(x=x)), ("Graph", "in use"), (gg.BusyError,))


def cases(folder: Path) -> Iterator[Case]:
    yield from _graphs()
    yield from _weights()
    yield from _metas()
    yield from _released()
    yield from _models(folder)
    yield from _poisoned()
    yield from _running(folder)
