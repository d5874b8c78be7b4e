"""Holds checks against runs; cases come as lines of JSON, so that a case that ends or hangs this process ends no test run."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_ops_values import CASES

import pyggml as gg
from pyggml._ffi import ffi
from pyggml.gguf_check import check_gguf
from pyggml.model import ModelOptions
from pyggml.testing import tiny_gguf
from pyggml.testing.graph_cases import _F16_RANGE, OPS, GraphCase, _reference, _values

SUPPORTS_OP = 9  # the place in struct ggml_backend_device_i (ggml-backend-impl.h)
PICKY = 48  # virtual devices from this number on refuse slices


@dataclass(frozen=True)
class Held:
    """What the check said, and what came of the run."""

    ok: bool
    said: str = ""
    kinds: tuple[str, ...] = ()
    refused: str = ""
    """What the run raised; empty where it ran."""
    nmse: float = 0.0
    """Split against one device, the worst output."""
    nmse_base: float = 0.0
    """One device against float64."""
    beyond: bool = False
    repaired: int = 0
    """Repairs that were taken, and ran."""
    failed: str = ""
    """What is a defect in any case."""


# --- graphs


def graph_held(case: GraphCase, splits: Sequence[str], strided: bool, picky: int, repair: bool) -> Held:
    """One rule for each weight of a graph.

    Args:
        strided: the outputs are transposed, not copied: what is split along the rows cannot be read so.
        picky: the last device computes no matrix product with fewer rows than this; 0: it takes all.
    """
    values = _values(case)
    exact = _reference(case, values)
    if exact is not None and any(np.abs(x).max() > _F16_RANGE for x in exact):
        return Held(True, beyond=True)
    weights = {f"w{i}": v for i, (leaf, v) in enumerate(zip(case.leafs, values, strict=True)) if leaf.kind == "weight"}
    given = {f"in{i}": v for i, (leaf, v) in enumerate(zip(case.leafs, values, strict=True)) if leaf.kind != "weight"}
    rules = [(f"^w{i}$", split) for i, (leaf, split) in enumerate(zip(case.leafs, splits, strict=True)) if leaf.kind == "weight"]
    devices = gg.virtual_cpus(len(case.shares), first=PICKY - len(case.shares) + 1 if picky else 0)

    def build(device: Any) -> gg.Graph:
        held = gg.Weights(device, weights) if weights else None
        graph = gg.Graph(device)
        tensors: list[gg.Tensor] = []
        for i, leaf in enumerate(case.leafs):
            tensors.append(held[f"w{i}"] if held is not None and leaf.kind == "weight" else graph.input(f"in{i}", leaf.ne, leaf.dtype))
        for step in case.steps:
            tensors.append(OPS[step.op].build(*(tensors[s] for s in step.sources), *step.params))
        for k in case.outputs:
            out = tensors[len(case.leafs) + k]
            graph.output(f"out{k}", gg.ops.transpose(out) if strided else out)
        return graph

    def run(rules: Sequence[Any]) -> dict[str, Any]:
        with gg.MetaDevice(devices, rules) as meta:
            graph = build(meta)
            with graph, contextlib.ExitStack() as stack:
                for w in graph._weights.values():
                    stack.callback(w.close)
                return graph.run(given)

    with picky_device(devices[-1], picky), build(gg.virtual_cpus(1)[0]) as plain:
        one = plain.run(given)
        with gg.MetaDevice(devices, rules) as meta:
            report = plain.check(meta, repairs=repair)
        base = 0.0
        if exact is not None:
            for k in case.outputs:
                want = exact[k].swapaxes(-1, -2) if strided else exact[k]
                base = max(base, gg.nmse(one[f"out{k}"].reshape(-1), want.reshape(-1)))
        common: dict[str, Any] = {"ok": report.ok, "said": str(report), "kinds": tuple(v.kind for v in report), "nmse_base": base}
        if any(not v.reason or not v.repairs for v in report):
            return Held(**common, failed=f"a violation without reason or repair: {report}")
        try:
            split = run(rules)
        except gg.Error as error:
            common["refused"] = f"{type(error).__name__}: {error}"
        else:
            common["nmse"] = max(gg.nmse(split[n], one[n]) for n in one)
        repaired = 0
        groups = report.folded()
        if repair and len(groups) == 1:
            # nothing else is wrong: with any of its repairs it must run, and be right
            for r in groups[0].repairs:
                if r.tried:
                    got = run([*r.rules, *rules])
                    worst = max(gg.nmse(got[n], one[n]) for n in one)
                    if worst > max(2e-3, 100 * base):
                        return Held(**common, failed=f"repaired, it is wrong by {worst}: {r}\n{report}")
                    repaired += 1
        return Held(**common, repaired=repaired)


@contextlib.contextmanager
def picky_device(device: gg.Device, rows: int) -> Any:
    """Meanwhile the device supports no MUL_MAT with fewer rows of its first source."""
    if not rows:
        yield
        return
    table = ffi.cast("void **", device.ptr)
    before = table[SUPPORTS_OP]
    upstream = ffi.cast("bool (*)(ggml_backend_dev_t, const struct ggml_tensor *)", before)

    @ffi.callback("bool (ggml_backend_dev_t, const struct ggml_tensor *)")
    def supports(dev: Any, op: Any) -> bool:
        return bool(upstream(dev, op)) and not (op.op == gg.lib.GGML_OP_MUL_MAT and op.src[0].ne[1] < rows)

    table[SUPPORTS_OP] = ffi.cast("void *", supports)
    try:
        yield
    finally:
        table[SUPPORTS_OP] = before


# --- every operation, alone


def op_held(number: int, splits: Sequence[str], n_devices: int) -> Held:
    """A case of tests/unit/test_ops_values.py, whose numbers are weights, split by a rule of its own each."""
    case = CASES[number]
    fixed = [i for i, a in enumerate(case.arrays) if a.dtype.kind == "f"]
    given = {f"in{i}": a for i, a in enumerate(case.arrays) if i not in fixed}
    rules = [(f"^w{i}$", split) for i, split in zip(fixed, splits, strict=True)]
    devices = gg.virtual_cpus(n_devices)

    def build(device: Any, stack: contextlib.ExitStack) -> gg.Graph:
        held = stack.enter_context(gg.Weights(device, {f"w{i}": case.arrays[i] for i in fixed}))
        graph = stack.enter_context(gg.Graph(device))
        inputs = {i: graph.input(f"in{i}", tuple(reversed(a.shape)), a.dtype) for i, a in enumerate(case.arrays) if i not in fixed}
        graph.output("out", case.build(*(inputs[i] if i in inputs else held[f"w{i}"] for i in range(len(case.arrays)))))
        return graph

    with contextlib.ExitStack() as stack:
        plain = build(gg.virtual_cpus(1)[0], stack)
        wanted = plain.run(given)["out"]
        with gg.MetaDevice(devices, rules) as meta:
            report = plain.check(meta, repairs=False)
    common: dict[str, Any] = {"ok": report.ok, "said": str(report), "kinds": tuple(v.kind for v in report)}
    try:
        with gg.MetaDevice(devices, rules) as meta, contextlib.ExitStack() as stack:
            got = build(meta, stack).run(given)["out"]
    except gg.Error as error:
        return Held(**common, refused=f"{type(error).__name__}: {error}")
    finite = np.isfinite(wanted)  # masks: the same numbers must be missing
    same = bool((finite == np.isfinite(got)).all())
    return Held(**common, nmse=gg.nmse(np.where(finite, got, 0), np.where(finite, wanted, 0)) if same else float("inf"))


# --- models

_FOLDER = tempfile.TemporaryDirectory()
_OPTIONS = {"n_ctx": 64, "n_batch": 32, "threads": 1}
_models: dict[str, tuple[Any, Any, list[Any] | None]] = {}


def _logits(model: gg.Model, tokens: Any) -> list[Any]:
    context = model.default_context
    if context.decoder_start is not None:
        context.encode(tokens)
    return [context.decode(tokens, logits="all", from_empty=True), context.decode(tokens[:1], logits="all")]


def model_held(arch: str, moe: bool, shares: Sequence[float], rules: Sequence[tuple[str, str]], cache: str) -> Held:
    """A tiny model with rules in front of those of its architecture."""
    key = f"{arch}-{moe}-{cache}"
    loaded: dict[str, Any] = {**_OPTIONS, "type_k": cache, "type_v": cache, "attn_f32": cache == "f32"}
    if key not in _models:
        if len(_models) > 60:
            _models.clear()
        file = tiny_gguf(Path(_FOLDER.name) / f"{key}.gguf", arch, moe=moe or None)
        tokens = np.random.default_rng(1).integers(0, file.n_vocab, 17)
        wanted = None
        with contextlib.suppress(gg.DTypeError), gg.Model(file, "vcpu:1", **loaded) as one:  # heads that are no whole blocks
            wanted = _logits(one, tokens)
        _models[key] = file, tokens, wanted
    file, tokens, wanted = _models[key]
    names = [t.name for t in check_gguf(file).tensors] + [f"cache_{kind}_l{i}" for kind in "kvrs" for i in range(file.n_layer)]
    rules = [r for r in rules if any(re.search(r[0], n) for n in names)]  # others are refused in any case
    options = ModelOptions("tensor", tuple(shares), **loaded)
    report = gg.check_model(file, f"vcpu:{len(shares)}", rules=rules, options=options, repairs=False)
    common: dict[str, Any] = {"ok": report.ok, "said": str(report), "kinds": tuple(v.kind for v in report)}
    if any(not v.reason for v in report):
        return Held(**common, failed=f"a violation without a reason: {report}")
    try:
        with gg.Model.with_options(file, f"vcpu:{len(shares)}", options, rules=[gg.rule(*r) for r in rules]) as split:
            got = _logits(split, tokens)
    except gg.Error as error:
        return Held(**common, refused=f"{type(error).__name__}: {error}")
    if wanted is None:
        return Held(**common, failed="one device refuses what several do")
    return Held(**common, nmse=max(gg.nmse(g, w) for g, w in zip(got, wanted, strict=True)))


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever else is printed is not an answer
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "arch" in asked:
                held = model_held(asked["arch"], asked["moe"], asked["shares"], [(p, s) for p, s in asked["rules"]], asked["cache"])
            elif "op" in asked:
                held = op_held(asked["op"], asked["splits"], asked["devices"])
            else:
                held = graph_held(GraphCase.from_json(asked["case"]), asked["splits"], asked["strided"], asked["picky"], asked["repair"])
            answer = {"outcome": asdict(held)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
