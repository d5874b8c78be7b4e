"""A check says legal exactly when the split can be placed, run and read, and says what one device says.

The repeatable run takes a few hundred rule sets; ``PYGGML_TEST_WIDE=1`` takes more than a thousand of graphs and of models.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from check_worker import Held  # which makes test_ops_values importable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from split_graphs import graph_cases
from test_ops_values import CASES
from test_split_graphs import TOLERANCE, Worker

from pyggml.testing.graph_cases import GraphCase
from pyggml.testing.zoo import ZOO

HERE = Path(__file__).parent
WIDE = bool(os.environ.get("PYGGML_TEST_WIDE"))
GRAPHS, MODELS, OPS_EACH = (1200, 1200, 10) if WIDE else (160, 45, 1)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker("check_worker.py")
    yield made
    made.close()


def check(held: Held, tolerance: float, case: str) -> str:
    """The verdict, which must be that of the run."""
    assert not held.failed, f"{held.failed}\n{case}"
    if held.beyond:
        return "beyond F16"
    runs = not held.refused and held.nmse <= tolerance
    assert held.ok == runs, f"the check says: {held.said}\nthe run: {held.refused or f'NMSE {held.nmse:.3g} (tolerance {tolerance:.3g})'}\n{case}"
    return "legal" if held.ok else "illegal"


SEEN: Counter[str] = Counter()


# --- graphs


@st.composite
def rule_sets(draw: st.DrawFn) -> dict[str, Any]:
    """A graph, and splits of its weights: those that mostly fit, with some of them changed to any."""
    case = draw(graph_cases())
    ratio = ":".join(map(str, case.shares))
    splits = [leaf.split for leaf in case.leafs]
    some = [i for i, leaf in enumerate(case.leafs) if leaf.kind == "weight"]
    for i in some if draw(st.booleans()) else []:
        if draw(st.integers(0, 1)) == 0:
            splits[i] = draw(st.sampled_from(("M", f"S0 {ratio}", f"S1 {ratio}", "S0", "S1", "S2", "S1 5:2", "S3", "P", f"S0 {ratio[::-1]}")))
    return {
        "case": case.to_json(), "splits": splits, "strided": draw(st.integers(0, 7)) == 7,
        "picky": draw(st.sampled_from((0, 0, 48))), "repair": draw(st.booleans()),
    }  # fmt: skip


@settings(
    max_examples=GRAPHS, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)  # fmt: skip
@given(asked=rule_sets())
def test_graphs(worker: Worker, tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any]) -> None:
    line = json.dumps(asked)
    held = Held(**worker.ask(line, tmp_path_factory.getbasetemp() / "last-check.json"))
    case = GraphCase.from_json(asked["case"])
    tolerance = max(TOLERANCE[leaf.dtype] for leaf in case.leafs if leaf.kind != "rows")
    tolerance = max(tolerance, 100 * held.nmse_base if tolerance < 1e-6 else 0)
    verdict = check(held, tolerance, line)
    split = any(s != "M" for leaf, s in zip(case.leafs, asked["splits"], strict=True) if leaf.kind == "weight")
    SEEN["graphs: " + ("split and " if split else "whole and ") + verdict] += 1
    SEEN["repairs that ran"] += held.repaired
    for kind in held.kinds:
        SEEN["kind " + kind] += 1


# --- every operation, alone

# builds that need inputs, or compute on the host
SINGLE = [i for i, c in enumerate(CASES) if c.arrays and all(a.ndim <= 4 for a in c.arrays) and any(a.dtype.kind == "f" for a in c.arrays)]


def splits_of_op(number: int, seed: int) -> list[str]:
    """All sources alike, some of them, or each as it comes."""
    draw = random.Random(f"{number}-{seed}")
    arrays = [a for a in CASES[number].arrays if a.dtype.kind == "f"]
    shares = draw.choice(("1:1", "3:1", "1:0", "1:1:1", "2:1:1", "0:1:1"))
    way, axis = draw.randrange(3), draw.randrange(4)
    out = []
    for k, a in enumerate(arrays):
        split = draw.choice(("M", "S0", "S1", "S2", "S3")) if way == 0 else f"S{axis}" if way == 1 else draw.choice(("M", f"S{axis}"))
        if k and way and a.ndim <= axis:
            split = "M"
        out.append(f"{split} {shares}" if split != "M" else "M")
    if out[0] == "M" and not any(s != "M" for s in out):
        out[0] = f"S0 {shares}"
    return out


@pytest.mark.parametrize("part", range(8))
def test_ops(worker: Worker, tmp_path: Path, part: int) -> None:
    for number in SINGLE[part::8]:
        for seed in range(OPS_EACH):
            splits = splits_of_op(number, seed)
            n = max(s.count(":") for s in splits) + 1
            line = json.dumps({"op": number, "splits": splits, "devices": n})
            held = Held(**worker.ask(line, tmp_path / "last-check.json"))
            SEEN["ops: " + check(held, 1e-9, f"{CASES[number]}: {line}")] += 1


# --- models

ARCHITECTURES = (
    ("llama", False), ("llama", True), ("qwen3", False), ("gemma3", False), ("phi3", False), ("bloom", False), ("gpt-oss", True),
    ("qwen35", False), ("deepseek2", False), ("mamba", False), ("starcoder2", False), ("olmo2", False), ("falcon-h1", False), ("t5", False),
)  # fmt: skip
if WIDE:
    ARCHITECTURES = tuple((a.name, moe) for a in ZOO.values() if a.runs and a.kind != "encoder" for moe in a.variants)


def model_rules(seed: int) -> dict[str, Any]:
    """Rules in front of an architecture's own: some that go together, some that may not."""
    draw = random.Random(seed)
    arch, moe = ARCHITECTURES[seed % len(ARCHITECTURES)]
    shares = draw.choice(((1, 1), (1, 1), (3, 1), (1, 1, 1)))
    other = ":".join(map(str, draw.choice(((1,) * len(shares), (2, *[1] * (len(shares) - 1)), (*[1] * (len(shares) - 1), 0)))))
    rules: list[tuple[str, str]] = []
    for _ in range(draw.choice((0, 1, 1, 1, 2, 2))):
        kind = draw.randrange(9)
        layer = draw.choice(("", "blk.0.", "blk.1."))
        if kind == 0:
            rules += [("attn_|cache_", "M")]
        elif kind == 1:
            rules += [(layer + "ffn_(?!norm)", "M")]
        elif kind == 2:
            rules += [(layer + r"ffn_(up|gate)[^.]*\.weight", f"S1 {other}"), (layer + r"ffn_(up|gate)[^.]*\.bias", f"S0 {other}"),
                      (layer + r"ffn_down[^.]*\.weight", f"S0 {other}")]  # fmt: skip
        elif kind == 3:
            rules += [(r"attn_[qkv]\.weight", f"S1 {other}"), (r"attn_[qkv]\.bias", f"S0 {other}"), (r"attn_output\.weight", f"S0 {other}"), ("cache_[kv]", f"S0 {other}")]
        elif kind == 4:
            rules += [(r"^output\.weight", draw.choice(("M", f"S1 {other}", f"S0 {other}", "S1")))]
        elif kind == 5:
            rules += [("norm", draw.choice(("M", "S0", "S1")))]
        elif kind == 6:
            rules += [(draw.choice(("attn_q", "attn_k", "attn_v", "attn_output", "cache_k", "cache_v")), draw.choice(("M", f"S0 {other}", f"S1 {other}")))]
        elif kind == 7:
            rules += [(layer + draw.choice(("ffn_up", "ffn_gate", "ffn_down", "ffn_gate_inp")), draw.choice(("M", f"S0 {other}", f"S1 {other}", "S2")))]
        else:
            rules += [(draw.choice(("ssm", "attn_qkv", "exps", "token_embd", "bias", "")), draw.choice(("M", "M", "S0", "S1", "P", f"S1 {other}")))]
    return {"arch": arch, "moe": moe, "shares": shares, "rules": rules, "cache": draw.choice(("f32", "f32", "f16", "q8_0"))}


@pytest.mark.parametrize("part", range(max(1, MODELS // 15)))
def test_models(worker: Worker, tmp_path: Path, part: int) -> None:
    for seed in range(15 * part, 15 * part + 15):
        asked = model_rules(seed)
        line = json.dumps(asked)
        held = Held(**worker.ask(line, tmp_path / "last-check.json"))
        verdict = check(held, {"f32": 1e-8, "f16": 1e-5, "q8_0": 5e-3}[asked["cache"]], line)
        SEEN["models: " + verdict] += 1
        for kind in held.kinds:
            SEEN["kind " + kind] += 1


@pytest.mark.parametrize(
    "held", [Held(True, refused="SplitError: no"), Held(False, "violations"), Held(True, nmse=1e-3), Held(True, failed="a defect")], ids=str
)
def test_disagreements_are_seen(held: Held) -> None:
    with pytest.raises(AssertionError):
        check(held, 1e-9, "")


def test_what_was_seen() -> None:
    """After both: verdicts of both kinds, and violations of several."""
    if not SEEN["models: legal"] or not SEEN["graphs: split and legal"] or not SEEN["ops: legal"]:
        pytest.skip("the searches did not run")
    print(dict(SEEN))
    assert min(SEEN["graphs: split and legal"], SEEN["graphs: split and illegal"]) > GRAPHS // 8, SEEN
    assert min(SEEN["models: legal"], SEEN["models: illegal"]) > MODELS // 8, SEEN
    assert min(SEEN["ops: legal"], SEEN["ops: illegal"]) > len(SINGLE) * OPS_EACH // 8, SEEN
    assert SEEN["repairs that ran"] > 0 and all(SEEN["kind " + k] for k in ("rule", "split", "output", "device")), SEEN
