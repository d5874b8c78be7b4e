"""Checks: every violation at once, none that only follows from another, with causes and repairs, and nothing allocated.

That the verdict is exact is shown in tests/property/test_check_exact.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyggml as gg
from pyggml.model import ModelOptions
from pyggml.model.arch_rules import ARCH_RULES
from pyggml.plan.check import CheckReport, Violation
from pyggml.testing import tiny_gguf

LAYERS = 3
SMALL = ModelOptions("tensor", n_ctx=64, n_batch=32)


def feed_forward(device: Any) -> gg.Graph:
    """Gated feed-forward layers with norms and residuals."""
    rng = np.random.default_rng(0)
    shapes = {"norm": (64,), "ffn_up": (256, 64), "ffn_gate": (256, 64), "ffn_down": (64, 256)}
    w = gg.Weights(device, {f"blk.{i}.{n}": (rng.standard_normal(s) / 8).astype(np.float32) for i in range(LAYERS) for n, s in shapes.items()})
    g = gg.Graph(device)
    x = g.input("x", ne=(64, 8))
    for i in range(LAYERS):
        h = gg.ops.rms_norm(x) * w[f"blk.{i}.norm"]
        gate, up = w[f"blk.{i}.ffn_gate"] @ h, w[f"blk.{i}.ffn_up"] @ h
        act = gg.ops.swiglu_split(gate, up).rename(f"act-{i}")
        x = (x + (w[f"blk.{i}.ffn_down"] @ act).rename(f"down-{i}")).rename(f"x-{i}")
    g.output("y", x)
    return g


GOOD = [("ffn_(up|gate)", "S1 3:1"), ("ffn_down", "S0 3:1")]


@pytest.fixture(scope="module")
def graph() -> Iterator[gg.Graph]:
    with feed_forward(gg.virtual_cpus(1)[0]) as g:
        yield g


@pytest.fixture(scope="module")
def over() -> Iterator[gg.MetaDevice]:
    with gg.MetaDevice("vcpu:2") as meta:
        yield meta


def about(report: CheckReport) -> list[tuple[str, str]]:
    return [(v.kind, v.node) for v in report]


def test_legal(graph: gg.Graph, over: gg.MetaDevice) -> None:
    report = graph.check(over, rules=GOOD)
    assert report.ok and report.raise_if_illegal() is report and bool(report) and len(report) == 0
    assert "legal" in str(report)
    assert graph.check().ok  # where it is: one device


def test_all_at_once(graph: gg.Graph, over: gg.MetaDevice) -> None:
    """Independent ones in every layer, of all kinds, in the order of the graph."""
    rules = [
        ("blk.0.ffn_down", "S0 1:1"),  # other shares than what it meets
        ("blk.1.norm", "S1"),  # no such axis
        ("blk.1.ffn_gate", "M"),  # beside a split one
        ("blk.2.norm", "S0 1:1"),  # a whole row times a part
        *GOOD,
    ]
    report = graph.check(over, rules=rules)
    (norm,) = (v.node for v in report if v.op == "MUL")
    assert about(report) == [("rule", "blk.1.norm"), ("split", "down-0"), ("split", "act-1"), ("split", norm)]
    # down-1 is only refused because act-1 was taken for whole: no violation of its own
    assert report.unjudged == ("down-1",)
    with pytest.raises(gg.SplitError, match="down-0") as one, gg.MetaDevice("vcpu:2", [r for r in rules if "norm" not in r[0]]) as meta:
        feed_forward(meta).run(x=np.zeros((8, 64), np.float32))
    assert "act-1" not in str(one.value)  # a run stops at the first


def test_causes(graph: gg.Graph, over: gg.MetaDevice) -> None:
    report = graph.check(over, rules=[("ffn_(up|gate)", "S1 3:1"), ("ffn_down", "S0 1:1")])
    v = report.violations[0]
    assert (v.node, v.op, v.kind) == ("down-0", "MUL_MAT", "split") and "shares" in v.reason and v.ne == (64, 8)
    assert [(s.name, s.split) for s in v.sources] == [("blk.0.ffn_down", "S0 128:128"), ("act-0", "S0 192:64")]
    assert [o.tensor for o in v.sources[1].origins] == ["blk.0.ffn_gate", "blk.0.ffn_up"]
    assert {o.tensor: o.rule for o in v.origins} == {
        "blk.0.ffn_down": "your rule 2, 'ffn_down': S0 1:1",
        "blk.0.ffn_gate": "your rule 1, 'ffn_(up|gate)': S1 3:1",
        "blk.0.ffn_up": "your rule 1, 'ffn_(up|gate)': S1 3:1",
    }
    (folded,) = report.folded()
    assert folded.alike == ("down-1", "down-2")
    assert str(report).count("\n  split:") == 1 and "'down-0' and 2 alike" in str(report)


@pytest.mark.parametrize(
    ("rules", "first"),
    [
        ([("ffn_(up|gate)", "S1 3:1"), ("ffn_down", "S0 1:1")], "blk.N.ffn_down (layers 0-2) as S0 192:64"),
        ([("ffn_up", "S1 3:1"), ("ffn_gate", "S1"), ("ffn_down", "S0 3:1")], "blk.N.ffn_gate (layers 0-2) as S1 192:64"),
        ([("ffn_up", "S1 3:1"), ("ffn_down", "S0 3:1")], "blk.N.ffn_gate (layers 0-2) as S1 192:64"),
        ([("ffn_down", "S0 3:1")], "blk.N.ffn_down (layers 0-2) as M"),
        ([("blk.1.ffn_down", "S2"), *GOOD], "mirror "),
        ([("norm", "S0"), *GOOD], "blk.N.norm (layers 0-2) as M"),
        ([("ffn_up", "S0")], "blk.N.ffn_up (layers 0-2) as M"),
        ([("ffn_up", "S0"), *GOOD], "mirror "),
    ],
)
def test_repairs_are_legal(graph: gg.Graph, over: gg.MetaDevice, rules: list[Any], first: str) -> None:
    """With any repair in front of the rules the violation is gone; alone, that makes the graph legal, and it runs."""
    report = graph.check(over, rules=rules)
    groups = report.folded()
    assert groups and str(groups[0].repairs[0]).startswith(first), report
    wanted = graph.run(x=np.ones((8, 64), np.float32))["y"]
    for v in groups:
        assert v.repairs and all(r.tried and r.rules for r in v.repairs), report
        for repair in v.repairs:
            repaired = [*repair.rules, *rules]
            after = graph.check(over, rules=repaired, repairs=False)
            assert not {v.key for v in after} & {(v.kind, n, v.op) for n in (v.node, *v.alike)}
            if len(groups) == 1:
                assert after.ok
                with gg.MetaDevice("vcpu:2", repaired) as meta, feed_forward(meta) as split:
                    assert gg.nmse(split.run(x=np.ones((8, 64), np.float32))["y"], wanted) < 1e-9


def test_a_repair_that_is_not_legal_is_not_named(graph: gg.Graph, over: gg.MetaDevice) -> None:
    """Mirroring only the up projection would leave the gate beside it, and the down projection behind it."""
    report = graph.check(over, rules=[("ffn_up", "S1"), ("ffn_gate", "S1 3:1"), ("ffn_down", "S0 3:1")])
    for repair in report.violations[0].repairs:
        if repair.text.startswith("mirror"):
            assert {r.pattern for r in repair.rules} == {rf"^blk\.(0|1|2)\.{n}$" for n in ("ffn_gate", "ffn_up", "ffn_down")}


def test_nothing_is_allocated() -> None:
    devices = gg.virtual_cpus(2, first=44)
    with feed_forward(gg.cpu()) as g, gg.MetaDevice(devices, [("ffn_down", "S0")]) as meta:
        before = [d.stats() for d in devices]
        assert not g.check(meta).ok and g.check(meta, rules=GOOD).ok
        assert [d.stats() for d in devices] == before


def test_memory_is_exact() -> None:
    devices = gg.virtual_cpus(2, first=46)
    x = {"x": np.ones((8, 64), np.float32)}

    def runs() -> bool:
        try:
            with gg.MetaDevice(devices, GOOD) as meta, feed_forward(meta) as g:
                g.run(x)
        except gg.OutOfMemoryError:
            return False
        return True

    with feed_forward(gg.cpu()) as g, gg.MetaDevice(devices, GOOD) as meta:
        memory = g.replica(meta, values=False).plan().memory
        need, reduction = [m.total for m in memory], memory[0].reduction
        verdicts = []
        for short in (0, 1, 4096, need[0] - need[1] + 1, need[0] // 2):
            gg.virtual_cpus(2, first=46, memory=need[0] - short)
            report = g.check(meta)
            verdicts.append(report.ok)
            # virtual CPUs sum without the buffers that ggml asks for: these may be missing
            assert report.ok == runs() == (short <= reduction), short
            if not report.ok:
                wanted = [("memory", d.name) for d, n in zip(devices, need, strict=True) if n > need[0] - short]
                assert about(report) == wanted and f"{short:,} bytes too few" in report.violations[0].reason
                with pytest.raises(gg.OutOfMemoryError, match="too few"):
                    report.raise_if_illegal()
        assert verdicts == [True, True, False, False, False]
    gg.virtual_cpus(2, first=46)


def test_outputs_that_cannot_be_read(over: gg.MetaDevice) -> None:
    w = {"w": np.ones((64, 32), np.float32)}
    with gg.Weights(gg.cpu(), w) as weights, gg.Graph(gg.cpu()) as g:
        g.output("whole", gg.ops.transpose(g.input("x", ne=(32, 8))))
        g.output("t", gg.ops.transpose(weights["w"] @ g.inputs["x"]))
        report = g.check(over, rules=[("w", "S1")])
        assert about(report) == [("output", "t")] and "cont" in report.violations[0].repairs[0].text
        assert g.check(over, rules=[("w", "M")]).ok
    with gg.MetaDevice("vcpu:2", [("w", "S1")]) as meta, gg.Weights(meta, w) as weights, gg.Graph(meta) as g:
        g.output("t", gg.ops.transpose(weights["w"] @ g.input("x", ne=(32, 8))))
        with pytest.raises(gg.ArgumentError, match="cont"):
            g.run(x=np.ones((8, 32), np.float32))


def test_as_error_and_as_json(graph: gg.Graph, over: gg.MetaDevice) -> None:
    report = graph.check(over, rules=[("norm", "S1"), ("ffn_down", "S0")])
    with pytest.raises(gg.SplitError, match=r"6 violations") as caught:
        report.raise_if_illegal()
    assert caught.value.violations == report.violations and caught.value.node == report.violations[0].node
    d = json.loads(report.to_json())
    assert d["schema"] == "pyggml.check/1" and not d["ok"] and len(d["violations"]) == 6
    first = next(v for v in d["violations"] if v["node"] == "down-0")
    assert first["sources"][0]["origins"][0]["rule"] == "your rule 2, 'ffn_down': S0" and first["repairs"][0]["rules"] == [
        [r"^blk\.(0|1|2)\.ffn_down$", "M"]
    ]
    assert isinstance(hash(report), int) and isinstance(report.violations[0], Violation)


def test_only_simulated_devices_go_on_behind_a_refusal(over: gg.MetaDevice) -> None:
    with pytest.raises(gg.ArgumentError, match="no simulated device"):
        gg.lib.pgg_meta_check_begin(over.ptr)


def test_a_check_leaves_no_trace(graph: gg.Graph, over: gg.MetaDevice) -> None:
    """Behind one, refusals are errors again, also of the same simulated devices."""
    with gg.MetaDevice("sim:2", [("ffn_down", "S0")]) as meta:
        assert not graph.check(meta).ok
        with pytest.raises(gg.SplitError, match="down-0"):
            graph.replica(meta, values=False).plan()


# --- what the search found


def test_a_matrix_that_kernels_do_not_read() -> None:
    """MUL_MAT with the hint that src0 is a Hadamard matrix: kernels make the one of their slice's size."""
    h = np.array([[1.0]])
    while len(h) < 64:
        h = np.block([[h, h], [h, -h]])
    values = {"h": (h / 8).astype(np.float32), "x": np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)}

    def build(device: Any) -> gg.Graph:
        w, g = gg.Weights(device, values), gg.Graph(device)
        y = w["h"] @ g.input("x", ne=(64, 8))
        g.output("y", gg.ops.mul_mat_set_hint(y, gg.lib.GGML_HINT_SRC0_IS_HADAMARD))
        return g

    with build(gg.cpu()) as g, gg.MetaDevice("vcpu:2") as over:
        report = g.check(over, rules=[("^h$", "S1")])
        assert about(report) == [("split", "y")] and "Hadamard" in report.violations[0].reason
        assert [str(r) for r in report.violations[0].repairs] == ["h as M (tried)"]
    with gg.MetaDevice("vcpu:2", [("^h$", "S1")]) as meta, build(meta) as g, pytest.raises(gg.SplitError, match="Hadamard"):
        g.run(x=values["x"])


def test_blocks_that_would_be_cut() -> None:
    """A cast of split F32 rows into blocks of 32: shares of 48 and 16 columns are none."""
    values = {"w": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}

    def build(device: Any) -> gg.Graph:
        w, g = gg.Weights(device, values), gg.Graph(device)
        g.output("y", gg.ops.cast(w["w"] * g.input("one", ne=(1,)), "q8_0"))
        return g

    with build(gg.cpu()) as g, gg.MetaDevice("vcpu:2") as over:
        report = g.check(over, rules=[("w", "S0 3:1")])
        assert about(report) == [("split", "y")] and "no whole blocks of 32 (q8_0)" in report.violations[0].reason
        assert g.check(over, rules=[("w", "S0")]).ok
    with gg.MetaDevice("vcpu:2", [("w", "S0 3:1")]) as meta, build(meta) as g, pytest.raises(gg.SplitError, match="whole blocks"):
        g.run(one=np.ones(1, np.float32))


# --- models


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("check") / "llama.gguf", "llama").path


def test_models(llama: Path) -> None:
    assert gg.check_model(llama, "vcpu:2", options=SMALL).ok
    report = gg.check_model(llama, "vcpu:2", rules=[("blk.0.ffn_down", "S0 3:1"), ("attn_norm", "S1"), ("blk.1.attn_q", "M")], options=SMALL)
    assert {(v.kind, v.node) for v in report} == {
        ("rule", "blk.0.attn_norm.weight"), ("rule", "blk.1.attn_norm.weight"), ("split", "ffn_out-0"),
        next(("split", v.node) for v in report if v.op == "FLASH_ATTN_EXT"),
    }  # fmt: skip
    v = next(v for v in report if v.node == "ffn_out-0")
    assert v.sources[0].origins[0].rule == "your rule 1, 'blk.0.ffn_down': S0 3:1"
    assert {o.rule for o in v.sources[1].origins} == {"llama.cpp's own rules"}


def test_repairs_of_models_run(llama: Path) -> None:
    tokens = [1, 2, 3, 4]
    with gg.Model(llama, "vcpu:1", n_ctx=64, attn_f32=True, type_k="f32", type_v="f32") as one:
        wanted = one.logits(tokens)
    for rules in ([("ffn_down", "S0 3:1")], [("attn_q", "M")], [("attn_k", "S1 3:1")], [("ffn_up", "S0")]):
        (v,) = gg.check_model(llama, "vcpu:2", rules=rules, options=SMALL).folded()
        assert v.repairs and all(r.tried for r in v.repairs)
        for repair in v.repairs:
            with gg.Model(
                llama, "vcpu:2", split_mode="tensor", rules=[*repair.rules, *rules], n_ctx=64, attn_f32=True, type_k="f32", type_v="f32"
            ) as split:
                assert gg.nmse(split.logits(tokens), wanted) < 1e-9, repair


def test_options_rules_and_memory_of_models(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ModelOptions("tensor", n_ctx=64, n_batch=32, type_k="q4_K", type_v="iq2_xxs", flash_attn="off")
    report = gg.check_model(llama, "vcpu:2", rules=[("nosuch", "M"), ("ffn_down", "S0 3:1")], options=options)
    kinds = [v.kind for v in report]
    assert kinds.count("option") >= 2 and kinds.count("rule") == 1 and kinds.count("split") == 2
    assert "nosuch" in next(v.reason for v in report if v.kind == "rule")
    assert all(v.repairs for v in report), report
    report = gg.check_model(llama, "sim:2@1MiB", options=SMALL)
    assert [v.kind for v in report] == ["memory", "memory"] and "too few" in str(report)
    monkeypatch.delitem(ARCH_RULES, "olmoe")
    report = gg.check_model(tiny_gguf(tmp_path / "olmoe.gguf", "olmoe"), "vcpu:2", options=SMALL)
    assert [v.kind for v in report] == ["model"] and "olmoe" in str(report) and report.violations[0].repairs
    with pytest.raises(gg.UnsupportedError, match="splits no tensor"):
        gg.check_model(llama, "vcpu:2", options=ModelOptions("layer"))
    with pytest.raises(gg.ArgumentError, match="do not fit"):
        gg.check_model(llama, "vcpu:2", options=SMALL, n_tokens=65)


def test_a_loaded_model(llama: Path) -> None:
    with gg.Model(llama, "vcpu:2", split_mode="tensor", n_ctx=64) as model:
        assert model.check().ok and model.check(3, 7).ok


def test_a_header_is_enough(llama: Path, tmp_path: Path) -> None:
    from pyggml.gguf_check import check_gguf

    end = min(t.offset for t in check_gguf(llama).tensors)
    (tmp_path / "cut.gguf").write_bytes(llama.read_bytes()[:end])
    assert gg.check_model(tmp_path / "cut.gguf", "vcpu:2", options=SMALL).ok


# --- plans


def test_a_plan_of_its_own(over: gg.MetaDevice) -> None:
    """What is legal, and perhaps not what was meant; memory that others have."""
    with gg.MetaDevice("sim:2", [("ffn_(up|gate)", "S1 1:0"), ("ffn_down", "S0 1:0")]) as meta, feed_forward(gg.cpu()) as g:
        plan = g.replica(meta, values=False).plan()
    report = plan.check()
    assert report.ok and len(report.notices) == 1 and "SIM1 has no part of any split weight" in str(report)
    need = [m.total for m in plan.memory]
    assert plan.check(need).ok and plan.check([0, 0]).ok and plan.check({plan.devices[0]: need[0]}).ok
    assert about(plan.check([need[0] - 1, need[1]])) == [("memory", "SIM0")]
    assert about(gg.SplitPlan.from_json(plan.to_json()).check({"SIM1": 1})) == [("memory", "SIM1")]
    with pytest.raises(gg.ArgumentError, match="3 devices"):
        plan.check([1, 2, 3])


def test_shares_that_could_not_be_had(graph: gg.Graph, over: gg.MetaDevice) -> None:
    rules = [gg.rule("ffn_(up|gate)", "S1 2:1", granularity=32), gg.rule("ffn_down", "S0 2:1", granularity=32)]
    report = graph.check(over, rules=rules)
    assert report.ok and any("blk.0.ffn_down: shares 0.667:0.333 were asked for, it has 0.625:0.375" in n for n in report.notices)
    with gg.MetaDevice("vcpu:2", rules) as meta, feed_forward(meta) as g:
        assert len(g.plan().check().notices) == 3


def test_a_sum_that_nothing_completes(over: gg.MetaDevice) -> None:
    with gg.MetaDevice("sim:2", GOOD) as meta, feed_forward(gg.cpu()) as g:
        text = g.replica(meta, values=False).plan().to_json()
    plan = gg.SplitPlan.from_json(text)
    broken = dataclasses.replace(plan, allreduces=plan.allreduces[1:])
    assert plan.check().ok and about(broken.check()) == [("split", "down-0")]


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    space: dict[str, Any] = {}
    exec(first, space)
    assert capsys.readouterr().out == shown
    exec(second, space)


def test_rules_that_decide_nothing_are_noticed(llama: Path) -> None:
    """A wrong letter, a rule behind another, a function that leaves all to others; a weight that stays on the host."""
    rules = [("^ffn_upp$", "S1"), ("ffn_(up|gate)", "S1"), ("ffn_gate", "S1"), ("ffn_down", lambda t: None)]
    with feed_forward(gg.cpu()) as g, gg.MetaDevice("vcpu:2", rules) as meta:
        notices = g.check(meta).notices
    assert len(notices) == 3
    assert notices[0].startswith("your rule 1, '^ffn_upp$': S1, decides nothing: nothing of that name is on the devices")
    assert notices[1].startswith("your rule 3, 'ffn_gate': S1, decides nothing: ") and notices[1].endswith("decides your rule 2, in front of it")
    assert "your rule 4, 'ffn_down': a function, decides nothing: it leaves " in notices[2]
    report = gg.check_model(llama, "vcpu:2", rules=[("token_embd", "S1")], options=SMALL)
    assert report.ok and [n.partition(":")[0] for n in report.notices] == ["your rule 1, 'token_embd'"]
    assert gg.check_model(llama, "vcpu:2", rules=[("ffn", "M")], options=SMALL).notices == ()


def test_each_device_that_is_too_small_is_told(llama: Path) -> None:
    report = gg.check_model(llama, "sim:a@200KiB,sim:b@100KiB", options=SMALL)
    assert [(v.kind, v.node) for v in report.folded()] == [("memory", "a"), ("memory", "b")]
    assert "there are 200.0 KiB" in str(report) and "there are 100.0 KiB" in str(report)


def test_summands_are_f32() -> None:
    """ggml puts a summand on every device by arithmetic on floats, and would end the process for other formats."""
    with gg.MetaDevice("vcpu:2", [("w", "P")]) as meta:
        for value in (np.ones((4, 64), np.float16), gg.quantize(np.ones((4, 64), np.float32), "q8_0")):
            with pytest.raises(gg.SplitError, match=r"tensor 'w' .* cannot be split as P: only f32 .* legal repair: M"):
                gg.Weights(meta, {"w": value})


def test_what_is_whole_only_by_an_assumption_is_no_violation() -> None:
    """Grouped heads whose products cannot be split: what is computed from the product, by products of activations, too."""
    n, width, heads, of = 6, 16, 8, 4
    rng = np.random.default_rng(0)
    shapes = {"wq": (heads * width, 64), "wk": (of * width, 64), "wv": (of * width, 64), "wo": (64, heads * width)}
    rules = [("^w[qkv]$", "S1 3:1"), ("^wo$", "S0 3:1")]
    with gg.Weights("cpu", {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}) as w, gg.Graph("cpu") as g:
        x = g.input("x", ne=(64, n))
        q = (w["wq"] @ x).reshape(width, heads, n).permute(0, 2, 1, 3)
        k = (w["wk"] @ x).reshape(width, of, n).permute(0, 2, 1, 3)
        v = (w["wv"] @ x).reshape(width, of, n).permute(1, 2, 0, 3).cont()
        scores = (k @ q).rename("scores").soft_max()
        attended = (v @ scores).rename("attended")
        g.output("y", w["wo"] @ attended.permute(0, 2, 1, 3).cont(heads * width, n))
        with gg.MetaDevice("vcpu:2", rules) as meta:
            report = g.check(meta)
    assert about(report) == [("split", "scores")]
    assert report.unjudged == ("attended", "y")


@pytest.mark.parametrize(
    "of, what, shares, op, reason, words",
    [
        (8, "diag_mask_inf", "3:1", "DIAG_MASK_INF", "no rule for this op with a split source", r"add a mask \(ADD\) instead, or use FLASH_ATTN_EXT"),
        (8, "soft_max_ext", "3:1", "SOFT_MAX", "split in ways that do not go together", r"add the mask \(ADD\).*FLASH_ATTN_EXT"),
        (4, "", "3:1", "MUL_MAT", "other shares", "grouped heads: FLASH_ATTN_EXT"),
        (8, "", "5:1", "RESHAPE", "a head must not be cut", "granularity=<a head's size>"),
    ],
)
def test_repairs_in_words_stay_beside_those_that_were_tried(of: int, what: str, shares: str, op: str, reason: str, words: str) -> None:
    """Mirroring is always legal, and seldom what one wants: another op, or another granularity, splits all the same."""
    n, width, heads = 6, 16, 8
    shapes = {"wq": (heads * width, 64), "wk": (of * width, 64)}
    with gg.Weights("cpu", {k: np.ones(s, np.float32) for k, s in shapes.items()}) as w, gg.Graph("cpu") as g:
        x = g.input("x", ne=(64, n))
        q, k = ((w[name] @ x).reshape(width, h, n).permute(0, 2, 1, 3) for name, h in (("wq", heads), ("wk", of)))
        y = k @ q
        if what == "diag_mask_inf":
            y = gg.ops.diag_mask_inf(y, 0)
        elif what:
            y = gg.ops.soft_max_ext(y, g.input("mask", ne=(n, n)), 1.0, 0.0)
        g.output("y", y)
        with gg.MetaDevice("vcpu:2", [("w", f"S1 {shares}")]) as meta:
            report = g.check(meta)
    first = report.violations[0]
    assert len(report) == (2 if op == "RESHAPE" else 1), "one for each that is cut"
    assert first.op == op and reason in first.reason
    assert first.repairs[0].tried and first.repairs[0].text.startswith("mirror ")
    assert not first.repairs[-1].tried and re.search(words, first.repairs[-1].text)
