"""The plan as a value: its published JSON Schema, old files, who decided what, and the steps of all-reduces."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from test_plan import Capture, shared, two_layers

import pyggml as gg
from pyggml import ops
from pyggml.plan import Cause, PlanLeaf, PlanNode, PlanRule, SplitPlan
from pyggml.plan.values import ReduceStep, butterfly_steps, shared_memory_steps
from pyggml.testing import tiny_gguf

Validator = jsonschema.Draft202012Validator


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "moe.gguf"
    tiny_gguf(path, "llama", moe=True)
    return path


@pytest.fixture(scope="module")
def plans(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SplitPlan]:
    """One by hand, and of real graphs and models: delayed sums, segments, devices without a share, rules of all origins."""
    mamba = tmp_path_factory.mktemp("tiny") / "mamba2.gguf"
    qwen = tmp_path_factory.mktemp("tiny") / "qwen35.gguf"
    tiny_gguf(mamba, "mamba2")
    tiny_gguf(qwen, "qwen35")
    return {
        "by hand": SplitPlan.from_captures(two_layers(2, (1, 0)).captured(), host={"nodes": 3, "bytes": 1.5}),
        "MoE": gg.plan_model(moe, "vcpu:3", n_tokens=3, rules=[gg.rule("ffn_(up|gate)_exps", "S1"), gg.rule("ffn_down_exps", "S0")]),
        "architecture": gg.plan_model(mamba, "sim:2", rules=[gg.rule("output", "M")]),
        "segments": gg.plan_model(qwen, "vcpu:2", n_tokens=5),
    }


def keys(schema: Any, value: Any, root: Any, where: str = "plan") -> Iterator[str]:
    """The keys of a value that the schema says nothing of."""
    if "$ref" in schema:
        schema = {**root["$defs"][schema["$ref"].rpartition("/")[2]], **{k: v for k, v in schema.items() if k != "$ref"}}
    if isinstance(value, dict) and "properties" in schema:
        for key, x in value.items():
            if key not in schema["properties"]:
                yield f"{where}.{key}"
            else:
                yield from keys(schema["properties"][key], x, root, f"{where}.{key}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for i, x in enumerate(value):
            yield from keys(schema["items"], x, root, f"{where}[{i}]")


def test_the_schema_is_a_schema_and_is_the_file() -> None:
    schema = SplitPlan.json_schema()
    Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == gg.plan.SCHEMA
    assert json.loads((Path(gg.plan.__file__).parent / "schema" / "plan-2.json").read_text()) == schema


def test_plans_are_as_the_schema_says(plans: dict[str, SplitPlan]) -> None:
    schema = SplitPlan.json_schema()
    for name, plan in plans.items():
        d = json.loads(plan.to_json())
        Validator(schema).validate(d)
        assert list(keys(schema, d, schema)) == [], f"{name}: keys that the schema does not describe"
        again = SplitPlan.from_json(plan.to_json())
        assert again == plan and hash(again) == hash(plan), name


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(schema="pyggml.plan/1"),
        lambda d: d.pop("rules"),
        lambda d: d["nodes"][4].update(ne=[1, 2, 3]),
        lambda d: d["nodes"][4].update(split="S7 1:1"),
        lambda d: d["nodes"][4].update(split="S1"),
        lambda d: d["nodes"][4].update(bytes=-1),
        lambda d: d["nodes"][4]["slices"][0].__setitem__(3, 1),
        lambda d: d["leafs"][2].update(kind="weights"),
        lambda d: d["leafs"][2].update(cause={"kind": "rules"}),
        lambda d: d["allreduces"][0].update(reasons=["because"]),
        lambda d: d["allreduces"][0].update(algorithm="ring"),
        lambda d: d["allreduces"][0]["steps"][0].__setitem__(1, "move"),
        lambda d: d["memory"][0].pop("mirrored"),
        lambda d: d.update(host=[1]),
    ],
)
def test_the_schema_refuses_what_is_no_plan(plans: dict[str, SplitPlan], damage: Callable[[Any], Any]) -> None:
    d = json.loads(plans["by hand"].to_json())
    damage(d)
    assert list(Validator(SplitPlan.json_schema()).iter_errors(d))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d.pop("rules"), "rules cannot be read: 'rules' is missing"),
        (lambda d: d["leafs"][2].update(cause={"kind": "rule", "rule": 7}), r"leafs\[2\].*rule 7: there are 0"),
        (lambda d: d["allreduces"][0]["steps"].append([0, "add", 5, 0, 1]), r"allreduces\[0\].*a step names a device that is not among the 2"),
        (lambda d: d["allreduces"][0]["steps"].append([0]), r"allreduces\[0\]"),
        (lambda d: d["allreduces"][0].pop("ne"), r"allreduces\[0\].*'ne' is missing"),
        (lambda d: d["memory"][0].pop("mirrored"), "memory.*'mirrored' is missing"),
    ],
)
def test_new_keys_that_are_damaged_are_refused(plans: dict[str, SplitPlan], damage: Callable[[Any], Any], says: str) -> None:
    d = json.loads(plans["by hand"].to_json())
    damage(d)
    with pytest.raises(gg.FileFormatError, match=says):
        SplitPlan.from_json(json.dumps(d))


def test_files_of_version_1_are_read(plans: dict[str, SplitPlan]) -> None:
    """Without what they did not have: rules, causes; what the nodes tell is told all the same."""
    plan = plans["by hand"]
    d = json.loads(plan.to_json())
    d["schema"] = "pyggml.plan/1"
    del d["rules"]
    for r in d["allreduces"]:
        for key in ("type", "ne", "reasons", "communicator", "steps"):
            del r[key]
    for m in d["memory"]:
        del m["mirrored"]
    old = copy.deepcopy(d)
    again = SplitPlan.from_json(json.dumps(d))
    assert old == d
    assert again == plan, "by hand nobody decided, and the butterfly is known"
    assert SplitPlan.from_json(again.to_json()) == again


def test_names_can_be_read() -> None:
    c = Capture()
    x = c.leaf("x", (8,), "MIRRORED", usage=2)
    c.leafs.append({"usage": 1, **c.tensor(" (view)", "VIEW", (8,), "MIRRORED")})
    c.node("Qcur-0", "MUL", (8,), "MIRRORED", (x, x))
    for name, of in ((" (reshaped)", 0), (" (reshaped) (permuted)", 1), (" (cont)", 2)):
        c.nodes.append({"subgraph": 0, **c.tensor(name, "CONT", (8,), "MIRRORED"), "src": [of]})
    c.nodes.append({"subgraph": 0, **c.tensor("", "SILU", (8,), "MIRRORED"), "src": []})
    plan = SplitPlan.from_captures(c.captured())
    assert [n.label for n in plan] == ["Qcur-0", "Qcur-0 (reshaped)", "Qcur-0 (reshaped) (permuted)", "Qcur-0 (reshaped) (permuted) (cont)", "node 4"]
    assert [n.name for n in plan][1] == " (reshaped)" and plan["Qcur-0 (reshaped)"] is plan.nodes[1]
    assert SplitPlan.from_json(plan.to_json()) == plan


# who decided


def leaf(plan: SplitPlan, name: str) -> PlanLeaf:
    found = plan[name]
    assert isinstance(found, PlanLeaf)
    return found


def test_who_decided_in_a_graph() -> None:
    rules = [gg.rule("up", "S1 3:1"), gg.rule("down", lambda t: "S0 3:1" if t.ne[0] == 256 else None)]
    with gg.MetaDevice("sim:2", rules) as meta, gg.Weights(meta, {"up": np.zeros((256, 64), np.float32), "down": np.zeros((64, 256), np.float32), "b": np.zeros(64, np.float32)}) as w, gg.Graph(meta) as g:  # fmt: skip
        g.output("y", w["down"] @ ops.silu(w["up"] @ g.input("x", ne=(64, 2))) + w["b"])
        plan = g.plan()
    assert plan.rules == (PlanRule(0, "yours", 1, "up", "S1 3:1"), PlanRule(1, "yours", 2, "down", "a function"))
    assert leaf(plan, "up").cause == Cause("rule", 0, "S1 3:1")
    assert leaf(plan, "down").cause == Cause("rule", 1, "S0 3:1")
    assert leaf(plan, "b").cause == Cause("default") and leaf(plan, "x").cause == Cause("input")
    assert plan.provenance(leaf(plan, "down")) == "your rule 2 ('down': S0 3:1)"
    assert plan.provenance(leaf(plan, "b")) == "no rule matched: mirrored"
    assert str(plan.rules[0]) == "your rule 1 ('up': S1 3:1)"


def test_who_decided_in_a_model(plans: dict[str, SplitPlan]) -> None:
    plan = plans["MoE"]
    assert leaf(plan, "blk.1.ffn_up_exps.weight").cause == Cause("rule", 0, "S1")
    assert leaf(plan, "blk.1.ffn_down_exps.weight").cause == Cause("rule", 1, "S0")
    assert leaf(plan, "cache_k_l0").cause == leaf(plan, "blk.0.attn_q.weight").cause == Cause("policy")
    assert {x.cause.kind for x in plan.leafs if x.cause and x.kind == "input"} == {"input"}
    plan = plans["architecture"]
    assert plan.rules[0] == PlanRule(0, "yours", 1, "output", "M")
    assert {r.origin for r in plan.rules[1:]} == {"architecture"} and [r.number for r in plan.rules[1:]] == list(range(1, len(plan.rules)))
    assert leaf(plan, "output_norm.weight").cause == Cause("rule", 0, "M")
    cause = leaf(plan, "blk.0.ssm_in.weight").cause
    assert cause is not None and cause.rule is not None and plan.rules[cause.rule].origin == "architecture"
    views = [x for x in plan.leafs if x.kind == "fixed" and x.op == "VIEW"]
    assert views and all(v.cause == leaf(plan, "cache_r_l0").cause for v in views), "of a view of a cache: who decided about the cache"
    assert not [r for r in plan.split_rules() if "view" in r.pattern]


# all-reduces


def summed(n: int, steps: tuple[ReduceStep, ...], values: list[float], computes: list[bool]) -> list[float]:
    """What the devices have after the steps, which see the values from before their round."""
    have = [v if c else 99.0 for v, c in zip(values, computes, strict=True)]  # without a summand: rubbish
    for at in sorted({s.round for s in steps}):
        before = list(have)
        for s in steps:
            if s.round == at and s.kind == "zero":
                have[s.target] = 0.0
            elif s.round == at:
                assert s.source is not None
                have[s.target] = before[s.source] + (have[s.target] if s.kind == "add" else 0.0)
    return have


@pytest.mark.parametrize("n", range(2, 17))
@pytest.mark.parametrize("idle", [(), (0,), (1,)])
def test_the_steps_of_the_butterfly_add_up(n: int, idle: tuple[int, ...]) -> None:
    values, computes = [float(1 << j) for j in range(n)], [j not in idle for j in range(n)]
    total = sum(v for v, c in zip(values, computes, strict=True) if c)
    assert summed(n, butterfly_steps(n, 8, computes), values, computes) == [total] * n


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("n_elements", [1, 31, 32, 33, 100, 4096])
def test_the_steps_of_virtual_cpus_cover_the_tensor(n: int, n_elements: int) -> None:
    steps = shared_memory_steps(n, n_elements, 4 * n_elements, [True] * n)
    stretch = {s.target: s.bytes for s in steps if s.kind == "add"}
    assert sum(stretch.values()) == 4 * n_elements
    for j, size in stretch.items():
        assert {(s.source, s.bytes) for s in steps if s.kind == "add" and s.target == j} == {(k, size) for k in range(n) if k != j}
        assert {(s.target, s.bytes) for s in steps if s.kind == "copy" and s.source == j} == {(k, size) for k in range(n) if k != j}
    assert not [s for s in shared_memory_steps(n, n_elements, 4 * n_elements, [j > 0 for j in range(n)]) if s.kind == "add" and s.source == 0]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("shares", ["even", "first has none"])
def test_the_butterflys_bytes_are_those_that_the_devices_counted(moe: Path, n: int, shares: str) -> None:
    devices = gg.simulated("COUNTS", n=n, comm=False)
    split = f"S1 {':'.join(['0' if shares != 'even' else '1'] + ['1'] * (n - 1))}"
    try:
        made = {"up": np.zeros((960, 64), np.float32), "down": np.zeros((64, 960), np.float32)}
        rules = [gg.rule("up", split, granularity=8), gg.rule("down", split.replace("S1", "S0"), granularity=8)]
        with gg.MetaDevice(devices, rules) as meta, gg.Weights(meta, made) as w, gg.Graph(meta) as g:
            x = g.input("x", ne=(64, 3))
            for _ in range(3):
                x = x + w["down"] @ ops.gelu(w["up"] @ ops.rms_norm(x))
            g.output("y", x)
            for d in devices:
                d.reset_stats()
            plan = g.plan()
        assert len(plan.allreduces) == 3 and {r.algorithm for r in plan.allreduces} == {"butterfly"}
        assert [r.ne for r in plan.allreduces] == [(64, 3, 1, 1)] * 3 and {r.type for r in plan.allreduces} == {"f32"}
        counted = [d.stats().copy_bytes for d in devices]
        assert [sum(r.received[j] for r in plan.allreduces if r.received) for j in range(n)] == counted
        assert sum(counted) == sum(sum(r.sent or ()) for r in plan.allreduces) > 0
        zeros = [s.target for r in plan.allreduces for s in r.steps or () if s.kind == "zero"]
        assert zeros == ([0] * 3 if shares != "even" else [])
    finally:
        for d in devices:
            d.release()


def test_a_communicator_that_is_not_known_has_no_steps() -> None:
    c = two_layers()
    c.algorithm = "communicator"
    plan = SplitPlan.from_captures(c.captured())
    assert all(r.steps is None and r.sent is None and r.received is None for r in plan.allreduces)
    assert "not known" in plan.allreduces[0].how
    assert SplitPlan.from_json(plan.to_json()) == plan
    nccl = SplitPlan.from_captures(c.captured(), communicator="CUDA")
    assert nccl.allreduces[0].steps is None and "CUDA" in nccl.allreduces[0].how
    ours = SplitPlan.from_captures(c.captured(), communicator="VCPU").allreduces[0]
    assert ours.sent == (256, 256) == ours.received, "each reads half of the other's, and writes half of it"


def test_why_all_reduces_are_delayed(plans: dict[str, SplitPlan]) -> None:
    assert [r.reasons for r in plans["by hand"].allreduces] == [("mul",), ("mul",), ()]
    assert plans["by hand"].allreduces[0].why == "a sum times a factor that every device has is the sum of the products"
    assert [r.reasons for r in plans["MoE"].allreduces] == [(), ("mul", "experts")] * 2
    assert {r.how.partition(":")[0] for r in plans["MoE"].allreduces} == {"shared memory"}
    c = Capture()
    x, w = c.leaf("x", (64,), "MIRRORED", usage=2), c.leaf("w", (64, 64), "0", shared(64))
    a, b = (c.node(name, "MUL_MAT", (64,), "PARTIAL", (w, x)) for name in "ab")
    c.node("sum", "ADD", (64,), "MIRRORED", (a, b))
    c.allreduce()
    (merged,) = SplitPlan.from_captures(c.captured()).allreduces
    assert merged.reasons == ("merged",) and merged.merged and "one all-reduce, not two" in merged.why


def test_memory_of_mirrored_weights(plans: dict[str, SplitPlan]) -> None:
    for plan in plans.values():
        assert [m.mirrored for m in plan.memory] == [w.mirrored for w in plan.weight_bytes()]
        assert all(0 < m.mirrored <= m.weights for m in plan.memory)


def test_what_is_computed(plans: dict[str, SplitPlan]) -> None:
    plan = plans["by hand"]
    up, view = plan["ffn_up-0"], plan["ffn_up-0 (view)"]
    assert isinstance(up, PlanNode) and isinstance(view, PlanNode)
    assert up.computed and not view.computed and up.zero_share == (1,)


def test_what_devices_have_is_told_and_not_compared(tmp_path: Path) -> None:
    tiny = tiny_gguf(tmp_path / "m.gguf", shares=((1, 1),))
    small, large, virtual = (gg.plan_model(tiny, words) for words in ("sim:a@64MiB,sim:b@32MiB", "sim:a@24GiB,sim:b", "vcpu:2"))
    assert [m.capacity for m in small.memory] == [64 << 20, 32 << 20] and [m.capacity for m in large.memory] == [24 << 30, 0]
    assert [m.capacity for m in virtual.memory] == [0, 0], "they share the memory of the host"
    assert small.memory[0].free == (64 << 20) - small.memory[0].total and large.memory[1].free == 0
    assert small == large and hash(small) == hash(large) and not small.diff(large)
    again = SplitPlan.from_json(small.to_json())
    assert [m.capacity for m in again.memory] == [64 << 20, 32 << 20]
    assert "64.0 MiB" in small.summary() and "  of  " in small.summary() and "  of  " not in virtual.summary()
    for shown in (str(small.memory_bars()), small.to_html(), small._repr_html_()):
        assert "of 64.0 MiB" in shown and "of 32.0 MiB" in shown
    with pytest.raises(gg.FileFormatError, match="memory"):
        SplitPlan.from_json(small.to_json().replace(f'"capacity": {64 << 20}', '"capacity": -1').replace(f'"capacity":{64 << 20}', '"capacity":-1'))
