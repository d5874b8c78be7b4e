"""Arguments of the public interface that make no sense: types, numbers, names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_case import Case

import pyggml as gg
from pyggml import ops
from pyggml.benchmark import BenchSetup, BenchTest, measure
from pyggml.model import ModelOptions, plan_model
from pyggml.testing import llama_header, tiny_gguf

SMALL = {"shares": [(1, 1)], "n_layer": 2, "n_embd": 64, "n_ff": 128, "n_vocab": 64, "head_dim": 16}
WRONG = (gg.ArgumentError, gg.ShapeError, gg.DTypeError, gg.UnsupportedError)
X = np.ones((5, 64), np.float32)


def _splits() -> Iterator[Case]:
    for text in ("", "S", "S4", "S-1", "M1", "S1 a:b", "S1 1:", "S1[", "S1[]", "S1[a]", "S1[1x]", "S1 1;2", "X", "S1 3,1", "S1 -1:1", "s1", "S1[1.5]", "S1 1..2"):
        if text in ("s1",):
            continue
        yield Case(f"rule('w', {text!r})", lambda t=text: gg.rule("w", t), (repr(text),), (gg.ArgumentError,))
        yield Case(f"MetaDevice with the rule {text!r}", lambda t=text: gg.MetaDevice("vcpu:2", [("w", t)]), (repr(text),), (gg.ArgumentError,))
    for pattern in ("(", "[", "*", "a{2,1}", "(?P<n>", "\\"):
        yield Case(f"rule({pattern!r})", lambda p=pattern: gg.rule(p, "M"), (repr(pattern),), (gg.ArgumentError,))
    for granularity in (0, -1, -64):
        yield Case(f"granularity {granularity}", lambda g=granularity: gg.rule("w", "S0", granularity=g), (str(granularity),), (gg.ArgumentError,))
    for axis in (4, -1, "X", "", 1.5, None):
        yield Case(f"SplitState({axis!r})", lambda a=axis: gg.SplitState(a), (repr(axis),), (gg.ArgumentError,))
    yield Case("SplitState of no segments", lambda: gg.SplitState(1), ("0 segments",), (gg.ArgumentError,))
    yield Case("SplitState of 17 segments", lambda: gg.SplitState(1, (gg.Segment((1, 1)),) * 17), ("17",), (gg.ArgumentError,))
    yield Case("SplitState of uneven segments", lambda: gg.SplitState(1, (gg.Segment((1, 1)), gg.Segment((1,)))), ("as many",), (gg.ArgumentError,))
    for rules in (5, "S1", [5], [("w",)], [("w", "S1", 3, 4)], [None], [("w", 5)], [(5, "S1")], {"w": 1}):
        yield Case(f"MetaDevice(rules={rules!r})", lambda r=rules: gg.MetaDevice("vcpu:2", r), (), WRONG)
    for split in (5, None, [1, 2], object(), 1.5, b"S1"):
        yield Case(f"rule('w', {split!r:.20})", lambda s=split: gg.rule("w", s), (), WRONG)

        def by_function(s: Any = split) -> None:
            with gg.MetaDevice("vcpu:2", [gg.rule("w", lambda t: s)]) as meta:
                gg.Weights(meta, {"w": X}).close()

        if split is not None:
            yield Case(f"a rule's function that returns {split!r:.20}", by_function, (), WRONG)


def _split_values() -> Iterator[Case]:
    segment, state, split = gg.Segment, gg.SplitState, gg.Split
    values: dict[str, Callable[[], object]] = {}
    for ne in ((-1, 65), (32.0, 32.0), (31.5, 32.5), ("a", "b"), (None, 64), None, 5, "32", (2**70, 64 - 2**70), ((32, 32),)):
        values[f"Segment({ne!r})"] = lambda n=ne: segment(n)
    for nr in (0, -2, 2.0, "2", None, 2**40, 0.5):
        values[f"Segment(nr={nr!r})"] = lambda r=nr: segment((16, 16), r)
    for segments in (5, (5,), (None,), "ab", {"a": 1}, ((32, 32),)):
        values[f"SplitState(1, {segments!r})"] = lambda s=segments: state(1, s)
    for axis in ([1], "S1", 1.0, b"M", 2**70, -4, {}):
        values[f"SplitState({axis!r})"] = lambda a=axis: state(a, (segment((32, 32)),))
        values[f"Split({axis!r})"] = lambda a=axis: split(a)
    for axis in ("M", "P"):
        values[f"SplitState({axis}) of segments"] = lambda a=axis: state(a, (segment((32, 32)),))
        values[f"Split({axis}) of shares"] = lambda a=axis: split(a, (1, 1))
    for shares in (("a", "b"), 5, (None, 1), (1j, 1), "31", (10**400, 1), (), [[1, 2]]):
        values[f"Split(1, {shares!r:.20})"] = lambda s=shares: split(1, s)
    for pairs in (5, (), ((64,),), (("a", 1),), ((32.0, 2),), ((-64, -1),), ((2**63, 1), (64 - 2**63, 1)), (64,), "64"):
        values[f"Split(1, None, {pairs!r:.30})"] = lambda s=pairs: split(1, None, s)
    for what, make in values.items():
        yield Case(what, make, (what.partition("(")[0],), (gg.ArgumentError,))

    def placed(rule: Callable[[], object]) -> None:
        with gg.MetaDevice("vcpu:2", [rule()]) as meta:  # type: ignore[list-item]
            gg.Weights(meta, {"w": np.ones((64, 64), np.float32)}).close()

    for text in ("S1[64x1x1]", "S1[+64]", "S1[6_4]", "S1[\u0666\u0664]", "S1 \u0663:\u0661", "S1[32,]", "S1[99999999999999999999999]", "S1[64x99999999999999999999]"):
        yield Case(f"rule('w', {text!r})", lambda t=text: gg.rule("w", t), (repr(text),), (gg.ArgumentError,))
    yield Case("Split.parse(5)", lambda: split.parse(5), ("5",), (gg.ArgumentError,))  # type: ignore[arg-type]
    for granularity in (1.5, "x", None, float("nan"), float("inf"), 2**70, [1]):
        yield Case(f"rule(granularity={granularity!r})", lambda g=granularity: gg.rule("w", "S0", granularity=g), ("granularity",), (gg.ArgumentError,))
        if granularity is not None:
            yield Case(f"rule(units={granularity!r})", lambda g=granularity: gg.rule("w", "S0", units=g), ("units",), (gg.ArgumentError,))
    for layers in (1.5, -1, [1.5], "a", "", "5-3", range(0), True, b"1", [None], "9999-0", {}, [2**70, -1]):
        yield Case(f"rule(layers={layers!r})", lambda n=layers: gg.rule("w", "S0", layers=n), ("layers",), (gg.ArgumentError,))
    yield Case("rule('(?i)w', layers=1)", lambda: gg.rule("(?i)w", "S0", layers=1), ("(?i)w",), (gg.ArgumentError,))
    made: dict[str, Callable[[], gg.Rule]] = {
        "'('": lambda: gg.Rule("(", split("M")), "'S1'": lambda: gg.Rule("w", "S1"), "None": lambda: gg.Rule(None, split(1)), "5": lambda: gg.Rule("w", 5),  # type: ignore[arg-type]
        "granularity=0": lambda: gg.Rule("w", split(1), 0), "granularity=-2": lambda: gg.Rule("w", split(1), -2), "granularity='a'": lambda: gg.Rule("w", split(1), "a"),  # type: ignore[arg-type]
        "units=0": lambda: gg.Rule("w", split(1), 1, 0), "units=2.5": lambda: gg.Rule("w", split(1), 1, 2.5),  # type: ignore[arg-type]
    }  # fmt: skip
    for name, rule in made.items():
        yield Case(f"Rule of {name}", lambda r=rule: placed(r), (name,), (gg.ArgumentError,))
    # legal as values, but not for this tensor, or not what a rule may give
    for what, misfit in {
        "shares beyond any float": split(1, (1e308, 1e308)), "shares of nothing": split(1, (0.0, 0.0)), "64 segments": split(1, None, ((1, 1),) * 64),
        "axis of one element": state(3, (segment((1, 0)),)), "too many repeats": state(1, (segment((32, 32), 2**20),)),
    }.items():  # fmt: skip
        yield Case(what, lambda s=misfit: placed(lambda: gg.rule("w", s)), ("'w'", "legal repair"), (gg.SplitError,))
        yield Case(f"{what}, of a function", lambda s=misfit: placed(lambda: gg.rule("w", lambda t: s)), ("'w'", "legal repair"), (gg.SplitError,))
    for text in ("S9", "", "bogus", "S1[a]"):
        yield Case(f"a rule's function that returns {text!r}", lambda s=text: placed(lambda: gg.rule("^w$", lambda t: s)), ("'^w$'", "'w'", repr(text)), (gg.ArgumentError,))


def _devices() -> Iterator[Case]:
    for value in (None, 5, 1.5, object(), ["vcpu:2"], [None], [5], {"a": 1}, b"vcpu:2", [gg.cpu(), "vcpu:1"]):
        yield Case(f"MetaDevice({value!r:.20})", lambda v=value: gg.MetaDevice(v), (), WRONG)
        yield Case(f"parse_devices({value!r:.20})", lambda v=value: gg.parse_devices(v), (), WRONG)
        if not isinstance(value, (list, dict)):
            yield Case(f"get_device({value!r:.20})", lambda v=value: gg.get_device(v), (), WRONG)
            yield Case(f"rpc({value!r:.20})", lambda v=value: gg.rpc(v), (), WRONG)
        yield Case(f"Graph({value!r:.20})", lambda v=value: gg.Graph(v), (), WRONG)
        yield Case(f"Weights({value!r:.20})", lambda v=value: gg.Weights(v, {"w": X}), (), WRONG)
        yield Case(f"twin({value!r:.20})", lambda v=value: gg.twin(v), (), WRONG)
        yield Case(f"virtual_cpus({value!r:.20})", lambda v=value: gg.virtual_cpus("2" if v == 5 else v), (), WRONG)
    for arguments in ({"n": 0}, {"n": -1}, {"memory": -1}, {"bandwidth": -1.0}, {"flops": -1.0}, {"n": "a"}, {"memory": "1G"}, {"n": 1.5}, {"memory": 2**70}, {"bandwidth": "x"}):
        yield Case(f"simulated({arguments})", lambda a=arguments: gg.simulated("S", **a), (), WRONG)
    for more in ({"bandwidth": float("nan")}, {"flops": float("inf")}, {"bandwidth": None}, {"flops": 1j}, {"bandwidth": True}, {"comm": "yes"}, {"comm": None}, {"comm": 2}, {"n": 10**7}):
        yield Case(f"simulated({more})", lambda a=more: gg.simulated("S", **a), (next(iter(more)),), (gg.ArgumentError,))
    for first in ("a", None, 0.5, [1], float("nan")):
        yield Case(f"virtual_cpus(first={first!r})", lambda f=first: gg.virtual_cpus(1, first=f), ("first",), (gg.ArgumentError,))
    for backend in (5, b"CPU", ["CPU"], object()):
        yield Case(f"devices({backend!r:.20})", lambda b=backend: gg.devices(b), ("backend",), (gg.ArgumentError,))
    for word in ("vcpu:" + "9" * 5000, "sim:" + "9" * 5000, "vcpu:2x" + "9" * 5000, "sim:2@" + "9" * 5000, "vcpu:\u0662"):
        yield Case(f"parse_devices({word!r:.20})", lambda w=word: gg.parse_devices(w), (word[:20],), (gg.DeviceNotFoundError,))
        yield Case(f"get_device({word!r:.20})", lambda w=word: gg.get_device(w), (word[:20],), (gg.DeviceNotFoundError,))
    for memory in (-1, "1G", 1.5, 2**70):
        yield Case(f"virtual_cpus(memory={memory!r})", lambda m=memory: gg.virtual_cpus(1, memory=m, first=60), (), WRONG)
    for threads in ("2", 1.5, None, [1]):
        yield Case(f"virtual_cpus(threads={threads!r})", lambda t=threads: gg.virtual_cpus(1, threads=t), (), WRONG)
    for name in (5, None, object(), "a\0b", "x" * 100000):
        if isinstance(name, str) and len(name) > 1000:
            continue
        yield Case(f"simulated({name!r:.20})", lambda n=name: gg.simulated(n), (), WRONG)


def _graphs() -> Iterator[Case]:
    for size in (0, -1, "a", 1.5, None, 2**70, 2**45):
        yield Case(f"Graph(size={size!r})", lambda s=size: gg.Graph(gg.cpu(), size=s), ("size",) if isinstance(size, int) else (), (*WRONG, gg.OutOfMemoryError))
    for threads in (0, -1, "a", 1.5, 10**6):
        yield Case(f"Graph(threads={threads!r})", lambda t=threads: gg.Graph(gg.cpu(), threads=t), ("threads",), WRONG)

    def graph() -> gg.Graph:
        g = gg.Graph(gg.cpu(), size=16)
        g.output("y", ops.relu(g.input("x", (64, 5))))
        return g

    kept = graph()
    for name in ("", "x" * 64, "é" * 32, None, 5, b"x", "a\0b", "\ud800"):
        yield Case(f"input({name!r:.20})", lambda n=name: gg.Graph(gg.cpu(), size=4).input(n, (4,)), (), WRONG)
        yield Case(f"rename({name!r:.20})", lambda n=name: kept.inputs["x"].rename(n), (), WRONG)
        yield Case(f"weight {name!r:.20}", lambda n=name: gg.Weights(gg.cpu(), {n: X}), (), WRONG)
        yield Case(f"output({name!r:.20})", lambda n=name: kept.output(n, kept.inputs["x"]), (), WRONG)
    for tensor in (None, 5, X, "x", object(), kept, [kept.inputs["x"]]):
        yield Case(f"output of {type(tensor).__name__}", lambda t=tensor: kept.output("z", t), (), WRONG)
    for ne in (None, "a", 5, ("a",), (1.5,), (None,), [[1]], object(), {"a": 1}, "4"):
        yield Case(f"input of ne {ne!r:.20}", lambda n=ne: gg.Graph(gg.cpu(), size=4).input("x", n), (), WRONG)
    yield Case("the same input twice", lambda: kept.input("x", (3,)), ("'x'",), WRONG)
    yield Case("the same output twice", lambda: kept.output("y", kept.inputs["x"]), ("'y'",), WRONG)
    yield Case("a graph without outputs", lambda: gg.Graph(gg.cpu(), size=4).run(), ("output",), WRONG)
    yield Case("a plan without outputs", lambda: gg.Graph(gg.cpu(), size=4).plan(), ("output",), WRONG)

    def full() -> None:
        with gg.Graph(gg.cpu(), size=4) as g:
            t = g.input("x", (4,))
            for _ in range(10):
                t = ops.relu(t)

    yield Case("more tensors than there is room for", full, ("4",), (gg.ArgumentError, gg.OutOfMemoryError))
    ran = graph()
    ran.run(x=X)
    yield Case("an input after a run", lambda: ran.input("q", (3,)), ("run",), WRONG)
    yield Case("an output after a run", lambda: ran.output("q", ran.inputs["x"]), ("run",), WRONG)
    yield Case("a node after a run", lambda: ops.relu(ran.inputs["x"]), ("run",), WRONG)
    for inputs, name in (({}, "'x'"), ({"x": X, "z": X}, "'z'"), ({"X": X}, "'X'"), ({"": X}, "''"), (None, "'x'")):
        yield Case(f"run({inputs and list(inputs)})", lambda i=inputs: ran.run(i), (name,), WRONG)
    for observer in (None, 5, "print"):
        yield Case(f"observed({observer!r})", lambda o=observer: ran.observed(o).__enter__(), ("observer",), WRONG)
    for inputs in (5, "x", [1], X, object()):
        yield Case(f"run({type(inputs).__name__})", lambda i=inputs: ran.run(i), (), WRONG)
    other = graph()
    yield Case("a tensor of another graph", lambda: other.output("q", kept.inputs["x"]), ("'x'",), WRONG)
    yield Case("tensors of two graphs", lambda: kept.inputs["x"] + other.inputs["x"], ("'x'",), WRONG)
    weights = gg.Weights(gg.virtual_cpus(1)[0], {"far": X})
    yield Case("a weight of another device", lambda: ops.relu(weights["far"], graph=kept), ("'far'", "VCPU0", "CPU"), WRONG)
    yield Case("a weight without a graph", lambda: ops.relu(weights["far"]), ("graph",), WRONG)
    for arguments in ({"tensors": None}, {"tensors": 5}, {"tensors": [X]}, {"tensors": {}}, {"tensors": "w"}, {"tensors": {"w": X}, "progress": 5}):
        yield Case(f"Weights({arguments!r:.40})", lambda a=arguments: gg.Weights(gg.cpu(), **a), (), WRONG)
    for tolerance in ("a", None, -1, float("nan"), True):
        yield Case(f"compare(tolerance={tolerance!r})", lambda t=tolerance: gg.compare(graph(), gg.cpu(), {"x": X}, tolerance=t), (), WRONG)
    for seed in ("x", 1.5, -1, None):
        yield Case(f"compare(seed={seed!r})", lambda s=seed: gg.compare(graph(), gg.cpu(), seed=s), ("seed",), WRONG)
    for on in (None, "vcpu:2", 5):
        yield Case(f"compare(on={on!r})", lambda o=on: gg.compare(graph(), o, {"x": X}), (), WRONG)
        yield Case(f"replica({on!r})", lambda o=on: graph().replica(o), (), WRONG)
    yield Case("nmse of two shapes", lambda: gg.nmse(np.ones(3), np.ones(4)), ("(3,)", "(4,)"), WRONG)


def _arrays() -> Iterator[Case]:
    ragged = [[1.0, 2.0], [3.0]]
    graph = gg.Graph(gg.cpu(), size=16)
    x = graph.input("x", (64, 5))
    graph.output("y", ops.relu(x))
    weights = gg.Weights(gg.cpu(), {"w": X})
    f32, q4 = gg.as_dtype("f32"), gg.as_dtype("q4_0")
    yield Case("rows of unequal length as a weight", lambda: gg.Weights(gg.cpu(), {"odd": ragged}), ("'odd'",), WRONG)  # type: ignore[dict-item]
    yield Case("rows of unequal length as an input", lambda: graph.run(x=ragged), ("'x'",), WRONG)
    yield Case("rows of unequal length to quantize", lambda: gg.quantize(ragged, "q8_0"), ("quantize",), WRONG)
    for name in ("v", 5, None, [1], {}, b"w", 1.5):
        yield Case(f"weights[{name!r}]", lambda n=name: weights[n], (f"no weight {name!r}; there are w",), (gg.Error,))
    for shape in (5, None, "ab", (2.5,), ("a",), ([1],), (None, 2)):
        yield Case(f"QuantizedArray of shape {shape!r}", lambda s=shape: gg.QuantizedArray(f32, s, b"x" * 8), ("shape",), WRONG)
    for ne0 in ("32", None, 32.0, [32]):
        yield Case(f"row_bytes({ne0!r})", lambda n=ne0: q4.row_bytes(n), ("row_bytes() of q4_0",), WRONG)
    for imatrix in (np.ones(256, complex), "abc", object(), np.zeros(256, "M8[s]"), [None] * 256, b"x" * 256):
        yield Case(f"imatrix {imatrix!r:.20}", lambda i=imatrix: gg.quantize(np.ones((2, 256), np.float32), "iq2_xxs", imatrix=i), ("imatrix",), WRONG)
    shapes: tuple[Any, ...] = (None, 5, [("odd", (f32, (4,)))], {"odd": "f32"}, {"odd": ("f32", (4,))}, {"odd": (f32, None)}, {"odd": (f32, (4.0,))}, {"odd": (f32, ())}, {"odd": (q4, (5,))}, {"odd": (f32,)})
    for given in shapes:
        yield Case(f"Weights.empty({given!r:.40})", lambda g=given: gg.Weights.empty(gg.cpu(), g), ("odd",) if isinstance(given, dict) else ("empty",), WRONG)
    for path in (None, 5, 0, b"model.gguf", ["a"], object()):
        yield Case(f"Weights.from_gguf({path!r:.20})", lambda p=path: gg.Weights.from_gguf(gg.cpu(), p), ("path",), WRONG)
    for pattern in ("(", None, 5, b"x"):
        yield Case(f"Weights.from_gguf(pattern={pattern!r})", lambda p=pattern: gg.Weights.from_gguf(gg.cpu(), "model.gguf", p), ("pattern" if pattern == b"x" else "regular expression",), WRONG)
    yield Case("progress of from_gguf that is no function", lambda: gg.Weights.from_gguf(gg.cpu(), "model.gguf", progress=5), ("progress",), WRONG)  # type: ignore[arg-type]
    for what, call in {
        "tensor / 0": lambda: x / 0, "tensor / 0.0": lambda: x / 0.0, "tensor + 10**400": lambda: x + 10**400, "10**400 * tensor": lambda: 10**400 * x, "10**400 / tensor": lambda: 10**400 / x,
    }.items():  # fmt: skip
        yield Case(what, call, ("number",), WRONG)


def _ops() -> Iterator[Case]:
    graph = gg.Graph(gg.cpu(), size=512)
    x = graph.input("x", (64, 5))
    for bad in (None, 5, "x", X, object(), [x], 1.5):
        for op, call in {
            "relu": lambda b: ops.relu(b, graph=graph), "mul_mat": lambda b: ops.mul_mat(x, b), "get_rows": lambda b: ops.get_rows(x, b),
            "soft_max": lambda b: ops.soft_max(b, graph=graph), "add": lambda b: ops.add(x, b), "concat": lambda b: ops.concat(b, x, 0),
        }.items():  # fmt: skip
            yield Case(f"{op} of {type(bad).__name__}", lambda c=call, b=bad: c(b), (op,), WRONG)
    for bad in (None, "a", object(), [1.0], float("nan"), x):
        for op, call in {
            "scale": lambda b: ops.scale(x, b), "rms_norm": lambda b: ops.rms_norm(x, b), "clamp": lambda b: ops.clamp(x, b, b),
            "leaky_relu": lambda b: ops.leaky_relu(x, b),
        }.items():  # fmt: skip
            yield Case(f"{op} with {bad!r:.20}", lambda c=call, b=bad: c(b), (op,) if not isinstance(bad, (str, type(None), list)) else (), WRONG)
    for bad in (1.5, "a", None, 2**70, -(2**70), [1]):
        for op, call in {
            "top_k": lambda b: ops.top_k(x, b), "roll": lambda b: ops.roll(x, b), "view": lambda b: ops.view(x, b), "reshape": lambda b: ops.reshape(x, b, 5),
            "pad": lambda b: ops.pad(x, b),
        }.items():  # fmt: skip
            if (op, bad) != ("view", [1]):  # one size
                yield Case(f"{op} with {bad!r:.20}", lambda c=call, b=bad: c(b), (op,), WRONG)
    for bad in ("nothing", "", 99, -1, None, 1.5, True):
        yield Case(f"unary {bad!r}", lambda b=bad: ops.unary(x, b), ("unary",), WRONG)
        yield Case(f"argsort {bad!r}", lambda b=bad: ops.argsort(x, b), ("argsort",), WRONG)
        yield Case(f"glu {bad!r}", lambda b=bad: ops.glu(x, b), ("glu",), WRONG)
    for bad in ((lambda: x + "a"), (lambda: x @ X), (lambda: x @ None), (lambda: "a" * x), (lambda: x / None), (lambda: x - [1]), (lambda: x ** "a")):
        yield Case("operators with what is no tensor", bad, (), (TypeError, gg.ArgumentError))


def _models(folder: Path) -> Iterator[Case]:
    path = tiny_gguf(folder / "tiny.gguf", **SMALL).path  # type: ignore[arg-type]
    table: dict[str, tuple[Any, ...]] = {
        "split_mode": ("row", "x", "", 5, ["tensor"]),
        "tensor_split": ((), (1,), (1, 2, 3), (0, 0), (-1, 2), (float("nan"), 1), (float("inf"), 1), "ab", 5, ("a", "b"), (None, 1), (1e308, 1e308), (1e-300, 1)),
        "n_ctx": (0, -1, 2**40, "a", None, 1.5j),
        "n_batch": (0, -1, 2**40, "a", None, 1.5),
        "type_k": ("x", None, 5, "q4_K", "i32", "", "iq2_xxs"),
        "type_v": ("x", None, 5, "q4_K", "i32", "", "iq2_xxs"),
        "flash_attn": ("yes", 1, None, True, "off"),
        "threads": (0, -1, 513, "a", 1.5),
        "progress": (5, "a"),
        "device": (5, 1.5, object(), [None], ["vcpu:2"]),
    }
    for name, values in table.items():
        for value in values:
            arguments = {"device": "vcpu:2", "split_mode": "tensor", "n_ctx": 64, name: value}
            yield Case(f"Model({name}={value!r:.20})", lambda a=arguments: gg.Model(path, **a).close(), (), (*WRONG, gg.ModelError, gg.OutOfMemoryError))
    for n_tokens, n_past in ((0, 0), (-1, 0), (1, -1), (65, 0), (1, 64), (64, 1), (2**40, 0), (1, 2**40)):
        yield Case(
            f"plan of {n_tokens} behind {n_past}", lambda n=n_tokens, p=n_past: plan_model(path, "vcpu:2", n_tokens=n, n_past=p, options=ModelOptions("tensor", n_ctx=64)),
            (str(n_tokens), str(n_past)), (gg.ArgumentError,),
        )  # fmt: skip
    for wrong in ("1", 1.5, None):
        yield Case(f"plan of {wrong!r} tokens", lambda n=wrong: plan_model(path, "vcpu:2", n_tokens=n), ("n_tokens",), (gg.ArgumentError,))
        yield Case(f"rpc({wrong!r})", lambda a=wrong: gg.rpc(a), ("host:port",), (gg.ArgumentError, gg.DeviceError))
    yield Case("a path of bytes", lambda: gg.Model(b"model.gguf"), ("fsdecode",), (gg.ArgumentError,))  # type: ignore[arg-type]
    yield Case("progress that is no function", lambda: gg.Model(path, progress=5), ("progress",), (gg.ArgumentError,))  # type: ignore[arg-type]
    for mode, device in (("layer", "vcpu:2"), ("none", "cpu"), ("none", None), ("row", "vcpu:2")):
        yield Case(f"plan in mode {mode} on {device}", lambda m=mode, d=device: plan_model(path, d, options=ModelOptions(m)), (), WRONG)
    for rules in ([("ffn_upp", "M")], [("ffn", "M"), ("nothing", "S1")], [("ffn",)], [5], "ffn", [("ffn_up", "S7")]):
        yield Case(f"rules {rules}", lambda r=rules: gg.Model(path, "vcpu:2", split_mode="tensor", rules=r), (), WRONG)
    yield Case("rules without tensor mode", lambda: gg.Model(path, rules=[("ffn", "M")]), ("tensor",), WRONG)
    yield Case("a device twice", lambda: gg.Model(path, [*gg.virtual_cpus(1), *gg.virtual_cpus(1)], split_mode="tensor"), ("VCPU0", "twice"), WRONG)
    for device in (None, "vcpu:2"):
        model = gg.Model(path, device, split_mode="tensor" if device else "none", n_ctx=64, threads=1)
        yield from _contexts(model)
    model = gg.Model(path, n_ctx=64, threads=1)
    yield Case("an observer without a meta device", lambda: model.logits([1], observer=lambda *a: None), ("tensor",), WRONG)
    for arch in ("gpt99", "", "LLAMA", 5):
        yield Case(f"tiny_gguf of {arch!r}", lambda a=arch: tiny_gguf(folder / "x.gguf", a), (repr(arch),), (gg.UnsupportedError,))
    yield Case("tiny_gguf of no shares", lambda: tiny_gguf(folder / "x.gguf", shares=[()]), ("shares",), (gg.ShapeError,))
    yield Case("a preset that is not there", lambda: llama_header(folder / "x.gguf", "900b"), ("900b",), WRONG)


def _contexts(model: gg.Model) -> Iterator[Case]:
    table: dict[str, tuple[Any, ...]] = {
        "n_ctx": (0, -1, 2**40, "a", None, 1.5),
        "n_batch": (0, -1, 2**40, "a", None),
        "n_seq_max": (0, -1, 257, "a", None, 1.5),
        "type_k": ("x", "q4_K", 5),
        "flash_attn": ("yes", 1),
        "pooling": ("x", 1),
        "threads": (0, 513, "a"),
        "nothing": (1,),
    }
    for name, values in table.items():
        for value in values:
            yield Case(f"context({name}={value!r:.20})", lambda n=name, v=value: model.context(**{n: v}), (name,), WRONG)
    context = model.context(n_seq_max=2, n_ctx=128)
    context.decode([1, 2, 3])
    calls: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
        "a gap": (lambda: context.decode([1], pos=5), ("5", "3")),
        "an overlap": (lambda: context.decode([1], pos=1), ("1", "3")),
        "sequence 2 of 2": (lambda: context.decode([1], seq=2), ("2",)),
        "sequence -1": (lambda: context.decode([1], seq=-1), ("-1",)),
        "no sequence": (lambda: context.decode([1], seq=()), ("seq",)),
        "a sequence that is none": (lambda: context.decode([1], seq="a"), ("a",)),
        "too many": (lambda: context.decode([1] * 65, seq=1), ("65", "64")),
        "an empty batch": (lambda: context.decode(gg.Batch()), ("empty",)),
        "logits=some": (lambda: context.decode([1], logits="some"), ("some",)),
        "seq_rm from -1": (lambda: context.seq_rm(0, -1), ("p0",)),
        "seq_rm to before its start": (lambda: context.seq_rm(0, 3, 1), ("p1",)),
        "seq_cp of a part": (lambda: context.seq_cp(0, 1, 1, 2), ("kv_unified",)),
        "seq_cp to 7": (lambda: context.seq_cp(0, 7), ("7",)),
        "seq_add below 0": (lambda: context.seq_add(0, -1), ("-1",)),
        "seq_add of a": (lambda: context.seq_add(0, "a"), ("delta",)),  # type: ignore[arg-type]
        "seq_add beyond all": (lambda: context.seq_add(0, 2**31 - 1), ("2147483647",)),
        "keep a": (lambda: context.generate([1], keep="a"), ("keep",)),  # type: ignore[arg-type]
        "keep -1": (lambda: context.generate([1], keep=-1), ("keep",)),
        "a sampler that is none": (lambda: context.generate([1], sampler=5), ("sampler",)),  # type: ignore[arg-type]
        "all tokens forbidden": (lambda: context.generate([1], logit_bias=dict.fromkeys(range(model.n_vocab), float("-inf"))), ("logit_bias",)),
        "tokens that are no numbers": (lambda: model.detokenize("abc"), ("token ids",)),  # type: ignore[arg-type]
        "half tokens": (lambda: model.detokenize([1.5]), ("token ids",)),  # type: ignore[list-item]
        "an adapter of None": (lambda: model.adapter(None), ("None",)),  # type: ignore[arg-type]
        "shift by 4 of 3": (lambda: context.shift(4), ("n_discard",)),
        "shift, keeping 4 of 3": (lambda: context.shift(1, keep=4), ("keep",)),
        "n_past of 9": (lambda: context.n_past(9), ("9",)),
    }

    def then_right(act: Callable[[], object]) -> Callable[[], object]:
        def do() -> None:
            try:
                act()
            finally:
                assert context.n_past(0) == 3 and context.n_past(1) == 0, "the context has changed"

        return do

    for name, (act, words) in calls.items():
        yield Case(f"{name}, {model.options.split_mode}", then_right(act), words, (*WRONG, gg.IndexRangeError))


def _comparisons() -> Iterator[Case]:
    with gg.Graph(gg.cpu()) as graph:
        graph.output("y", graph.input("x", (8, 2)) + 1.0)
        for what, act in {
            "no graph": lambda: gg.compare(5, gg.cpu()),  # type: ignore[arg-type]
            "no device": lambda: gg.compare(graph, 0),  # type: ignore[arg-type]
            "inputs without names": lambda: gg.compare(graph, gg.cpu(), [1]),  # type: ignore[arg-type]
            "an input that is not there": lambda: gg.compare(graph, gg.cpu(), {"z": 1}),
        }.items():
            yield Case(f"compare with {what}", act, (), WRONG)


def _model_comparisons(folder: Path) -> Iterator[Case]:
    path = tiny_gguf(folder / "compared.gguf", **SMALL).path  # type: ignore[arg-type]
    a, b = (gg.Model(path, n_ctx=64, threads=1) for _ in range(2))
    split = gg.Model(path, "vcpu:2", split_mode="tensor", n_ctx=64, threads=1)
    for name, compare, other in (("compare_models", gg.compare_models, b), ("compare_nodes", gg.compare_nodes, split)):
        for what, act in {
            "no model": lambda f=compare: f(5, a, [1]),
            "a path": lambda f=compare: f(a, path, [1]),
            "itself": lambda f=compare: f(split, split, [1]),
            "no tokens": lambda f=compare, m=other: f(a, m, []),
            "words as tokens": lambda f=compare, m=other: f(split, m, ["a"]),
            "None": lambda f=compare, m=other: f(a, m, None),
            "a token that is not there": lambda f=compare, m=other: f(a, m, [1, 10**9]),
            "a tolerance below 0": lambda f=compare, m=other: f(a, m, [1], tolerance=-1),
            "a tolerance that is no number": lambda f=compare, m=other: f(a, m, [1], tolerance=float("nan")),
            "a tolerance of letters": lambda f=compare, m=other: f(a, m, [1], tolerance="1"),
        }.items():  # fmt: skip
            yield Case(f"{name} with {what}", act, (), (*WRONG, gg.IndexRangeError))
    yield Case("compare_models of a text without a tokenizer", lambda: gg.compare_models(a, b, "text"), ("tokenizer",), WRONG)
    for weight in ("nothing", "", 5, None, "a\0b", "\ud800"):
        yield Case(f"weight({weight!r})", lambda w=weight: split.weight(w), (), WRONG)
    for tokens in ([], "a", [1.5], [10**9], [-1], list(range(65)), None):
        yield Case(f"feed({tokens!r:.20})", lambda t=tokens: a.default_context.feed(t), (), (*WRONG, gg.IndexRangeError))
    setup = BenchSetup(path, (), ModelOptions("none"))
    for numbers in ((0, 0), (-1, 5), (1, 1, -1), ("a",), (1.5,), (None,)):
        yield Case(f"BenchTest{numbers}", lambda n=numbers: BenchTest(*n), (), WRONG)
    for what, act in {
        "no setups": lambda: measure([], [BenchTest(1)]),
        "no tests": lambda: measure([setup], []),
        "no repetitions": lambda: measure([setup], [BenchTest(1)], repetitions=0),
        "half a repetition": lambda: measure([setup], [BenchTest(1)], repetitions=0.5),  # type: ignore[arg-type]
        "a file that is not there": lambda: measure([BenchSetup(folder / "no.gguf", (), ModelOptions("none"))], [BenchTest(1)]),
        "row mode": lambda: measure([BenchSetup(path, (), ModelOptions("row"))], [BenchTest(1)]),
        "tensor mode on the CPU": lambda: measure([BenchSetup(path, (), ModelOptions("tensor"))], [BenchTest(1)]),
    }.items():
        yield Case(f"measure with {what}", act, (), (*WRONG, gg.ModelNotFoundError))


def _attributes() -> Iterator[Case]:
    for name in ("nothing", "Grahp", "version", "run"):
        yield Case(f"pyggml.{name}", lambda n=name: getattr(gg, n), (name,), (AttributeError,))
    for call, arguments in ((gg.Graph, ()), (gg.Weights, ()), (gg.Model, ()), (gg.MetaDevice, ()), (gg.quantize, ()), (gg.rule, ("w",))):
        yield Case(f"{call.__name__} without its arguments", lambda c=call, a=arguments: c(*a), (), (TypeError,))
        yield Case(f"{call.__name__} with one that it does not have", lambda c=call: c(nothing=1), ("nothing",), (TypeError,))


def cases(folder: Path) -> Iterator[Case]:
    yield from _splits()
    yield from _split_values()
    yield from _devices()
    yield from _graphs()
    yield from _arrays()
    yield from _ops()
    yield from _models(folder)
    yield from _comparisons()
    yield from _model_comparisons(folder)
    yield from _attributes()
