"""Illegal splits, by rules over graphs and over models. The error names the node; a split that is let through is right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_case import Case, Unexpected

import pyggml as gg
from pyggml import ops
from pyggml.split import Segment
from pyggml.testing import tiny_gguf

SMALL = {"shares": [(1, 1)], "n_layer": 2, "n_embd": 64, "n_ff": 256, "n_vocab": 64, "head_dim": 16}


def _must_name(*nodes: str) -> Callable[[BaseException], None]:
    """The error knows its node, which is one of these, and says so."""

    def check(error: BaseException) -> None:
        node = getattr(error, "node", None)
        if node not in nodes:
            raise Unexpected(f"the error is about node {node!r}, expected one of {nodes}: {error}")
        if f"'{node}'" not in str(error):
            raise Unexpected(f"the message does not name {node!r}: {error}")

    return check


# --- a rule that does not fit a tensor


def _rules() -> Iterator[Case]:
    weights = {
        "w": (np.ones((8, 64), np.float32), "f32"),
        "row": (np.ones((1, 64), np.float32), "f32"),
        "odd": (np.ones((7, 33), np.float32), "f32"),
        "q": (np.ones((8, 64), np.float32), "q8_0"),
        "k": (np.ones((4, 512), np.float32), "q4_K"),
        "bias": (np.ones(64, np.float32), "f32"),
    }
    bad = {
        "w": ["S0 1:1:1", "S1 3", "S0[32,16]", "S0[16x3]", "S1[8x2] 1:1", "S1[4,4,4]", "S0 0:0", "S1[0,8]", "S3 1:2:3:4"],
        "row": ["S1", "S1 1:0", "S1 0:1", "S2", "S3 1:1"],
        "odd": ["S0 1:2:3", "S1[4,4]", "S0[33x2]", "S1[6]"],
        "q": ["S0 1:1:1", "S0[48,16]", "S0[33,31] 1:1", "S1[4,5]"],
        "k": ["S0[128x4]", "S0[100,412]", "S0 2:1:1:1", "S1[3]"],
        "bias": ["S0[63]", "S0[0,64]", "S0 1:1:1:1", "S0 0:0"],
    }
    # explicit states: entries for other numbers of devices, sums that are off, blocks cut in two
    states = {
        "w": [(0, [(32, 31)]), (0, [(32, 16)]), (1, [(4, 4, 0)]), (1, [(9, 0)]), (0, [(16, 16), (16, 15)]), (1, [(8,)]), (2, [(1, 1)])],
        "q": [(0, [(33, 31)]), (0, [(16, 48)]), (1, [(4, 3)])],
        "k": [(0, [(128, 384)]), (0, [(500, 12)])],
        "bias": [(0, [(30, 30)]), (0, [(65, 0)]), (1, [(64, 64)])],
    }
    for devices in ("vcpu:2", "sim:2"):
        for name, specs in bad.items():
            for spec in specs:
                yield _rule_case(devices, name, weights, spec, spec)
        for name, found in states.items():
            for axis, segments in found:
                state = gg.SplitState(axis, tuple(Segment(s) for s in segments))
                yield _rule_case(devices, name, weights, state, str(state))
        for name in weights:
            yield _rule_case(devices, name, weights, gg.rule(f"^{name}$", "S0", granularity=48), "S0 in units of 48")
            yield _rule_case(devices, name, weights, gg.rule(f"^{name}$", lambda t: f"S0[{t.ne[0] + 1}]"), "a function: one too long")


def _rule_case(devices: str, name: str, weights: dict[str, Any], split: Any, label: str) -> Case:
    array, dtype = weights[name]

    def act() -> None:
        rule = split if isinstance(split, gg.Rule) else gg.rule(f"^{name}$", split)
        with gg.MetaDevice(devices, [rule]) as meta:
            try:
                gg.Weights(meta, {"other": np.ones((8, 64), np.float32), name: gg.quantize(array, dtype) if dtype != "f32" else array}).close()
            finally:
                for device in meta.devices:
                    device.release()

    return Case(f"{name} ({dtype}) over {devices} as {label}", act, (f"'{name}'", "legal repair"), (gg.SplitError,), check=_must_name(name))


# --- rules that fit their tensors, in a graph where they make no sense

A, B = (64, 32), (64, 32)
_SPLITS = ("M", "S0", "S1", "S0 3:1", "S1 3:1", "P")
NODES: dict[str, Callable[[gg.Graph, gg.Tensor, gg.Tensor], gg.Tensor]] = {
    "add": lambda g, a, b: ops.add(a, b),
    "mul": lambda g, a, b: ops.mul(a, b),
    "mul_mat": lambda g, a, b: ops.mul_mat(a, b),
    "mul_mat_x": lambda g, a, b: ops.mul_mat(a, g.input("x", (64, 3))) + ops.mul_mat(b, g.input("y", (64, 3))),
    "chain": lambda g, a, b: ops.mul_mat(ops.cont(ops.transpose(b)), ops.mul_mat(a, g.input("x", (64, 3)))),
    "norm": lambda g, a, b: ops.rms_norm(ops.add(a, b)),
    "soft_max": lambda g, a, b: ops.soft_max(ops.mul(a, b)),
    "concat0": lambda g, a, b: ops.concat(a, b, 0),
    "concat1": lambda g, a, b: ops.concat(a, b, 1),
    "reshape": lambda g, a, b: ops.reshape(ops.add(a, b), (32, 64)),
    "flat": lambda g, a, b: ops.reshape(ops.mul(a, b), (2048,)),
    "swiglu": lambda g, a, b: ops.swiglu_split(a, b),
    "glu": lambda g, a, b: ops.swiglu(ops.add(a, b)),
    "get_rows": lambda g, a, b: ops.add(ops.get_rows(a, g.input("r", (5,), "i32")), ops.get_rows(b, g.input("s", (5,), "i32"))),
    "transpose": lambda g, a, b: ops.cont(ops.transpose(ops.add(a, b))),
    "sum_rows": lambda g, a, b: ops.sum_rows(ops.sub(a, b)),
    "argsort": lambda g, a, b: ops.argsort(ops.add(a, b)),
    "view": lambda g, a, b: ops.cont(ops.view(ops.add(a, b), (40, 20), offset=64 * 4 * 3 + 16)),
    "cumsum": lambda g, a, b: ops.cumsum(ops.mul(a, b)),
    "repeat": lambda g, a, b: ops.add(ops.repeat(a, g.input("big", (128, 64))), ops.repeat(b, g.input("huge", (128, 64)))),
    "pad": lambda g, a, b: ops.pad(ops.add(a, b), 4, 2),
    "rope": lambda g, a, b: ops.rope(ops.reshape(ops.add(a, b), (16, 4, 32)), g.input("pos", (32,), "i32"), 16, "neox"),
    "sqr": lambda g, a, b: ops.sqr(ops.add(a, b)),
    "argmax": lambda g, a, b: ops.argmax(ops.add(a, b)),
    "roll": lambda g, a, b: ops.roll(ops.add(a, b), 3, 1, 0, 0),
}


def _values(graph: gg.Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        name: rng.integers(0, 8, t.shape).astype(np.int32) if t.dtype.name == "i32" else rng.standard_normal(t.shape).astype(np.float32)
        for name, t in graph.inputs.items()
    }


def _graph(device: Any, make: Callable[..., gg.Tensor]) -> tuple[np.ndarray | gg.Error, tuple[str, ...]]:
    rng = np.random.default_rng(1)
    arrays = {"a": rng.standard_normal(A[::-1]).astype(np.float32), "b": rng.standard_normal(B[::-1]).astype(np.float32)}
    with gg.Weights(device, arrays) as weights, gg.Graph(device, size=64, threads=1) as graph:
        graph.output("out", make(graph, weights["a"], weights["b"]))
        names = (*(t.name for t in graph.nodes()), "a", "b", *graph.inputs)
        try:
            return graph.run(_values(graph))["out"], names
        except gg.Error as error:
            return error, names


def _graphs() -> Iterator[Case]:
    for (label, make), devices, a, b in itertools.product(NODES.items(), ("vcpu:2", "vcpu:3"), _SPLITS, _SPLITS):
        if devices == "vcpu:3" and ("3:1" in a or "3:1" in b or "P" in (a, b)):
            continue
        if "P" in (a, b) and label not in ("add", "mul", "mul_mat", "norm", "soft_max", "swiglu", "get_rows"):
            continue

        def act(make: Callable[..., gg.Tensor] = make, devices: str = devices, a: str = a, b: str = b) -> None:
            right, _ = _graph(gg.cpu(), make)
            with gg.MetaDevice(devices, [("^a$", a), ("^b$", b)]) as meta:
                got, names = _graph(meta, make)
            if isinstance(got, gg.Error):
                _must_name(*names)(got)
                raise got
            if isinstance(right, gg.Error) or gg.nmse(got, right) > 1e-9:
                raise Unexpected(f"accepted, and computed wrongly: {right if isinstance(right, gg.Error) else gg.nmse(got, right)}")

        yield Case(f"{label} of a {a} and b {b} over {devices}", act, ("illegal split at node",) if "P" not in (a, b) else (), (gg.SplitError,), harmless=True)


# --- models


def _models(folder: Path) -> Iterator[Case]:
    path = tiny_gguf(folder / "tiny.gguf", **SMALL).path  # type: ignore[arg-type]
    right = gg.Model(path, n_ctx=64, threads=1, flash_attn="on", type_k="f32", type_v="f32", attn_f32=True).logits([1, 2, 3])
    names = [t.name for t in gg.Model(path, n_ctx=8, threads=1).info.tensors]
    misfit = [f"^{name}$" for name in names if not name.startswith("token_embd")]  # that one stays on the host
    for pattern, spec in itertools.product(misfit[:12], ("S0 1:2:3", "S0[7,9]", "S0 0:0")):
        name = pattern[1:-1]
        yield Case(f"a model's {name} as {spec}", lambda p=pattern, s=spec: _load(path, p, s), (f"'{name}'", "legal repair"), (gg.SplitError,), check=_must_name(name))
    for name, spec in itertools.product([n for n in names if n.startswith(("blk.0", "out", "tok"))], ("S0", "S1", "M", "S0 3:1", "S1 3:1")):

        def act(name: str = name, spec: str = spec) -> None:
            got = _load(path, f"^{name}$", spec)
            if gg.nmse(got, right) > 1e-9:
                raise Unexpected(f"accepted, and computed wrongly: NMSE {gg.nmse(got, right)}")

        yield Case(f"a model with {name} as {spec}", act, ("'",), (gg.SplitError,), harmless=True, check=_has_node)


def _has_node(error: BaseException) -> None:
    node = getattr(error, "node", None)
    if not node or f"'{node}'" not in str(error):
        raise Unexpected(f"names no node: {error}")


def _load(path: Path, pattern: str, spec: str) -> np.ndarray:
    with gg.MetaDevice("vcpu:2", [(pattern, spec)]) as meta, gg.Model(
        path, meta, n_ctx=64, threads=1, flash_attn="on", type_k="f32", type_v="f32", attn_f32=True
    ) as model:
        return model.logits([1, 2, 3])


def cases(folder: Path) -> Iterator[Case]:
    yield from _rules()
    yield from _graphs()
    yield from _models(folder)
