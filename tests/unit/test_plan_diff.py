"""What differs between two plans: exactly what was changed, once for all layers, and nothing that only moved."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from typing import Any

import pytest
from test_plan import N_EMBD, Capture, two_layers

import pyggml as gg
from pyggml.plan import PlanLeaf, PlanNode, SplitPlan
from pyggml.plan.diff import ASPECTS, Change, PlanDiff
from pyggml.split import SplitState


def made(n_layer: int = 4, shares: tuple[int, ...] = (3, 1)) -> SplitPlan:
    return SplitPlan.from_captures(two_layers(n_layer, shares).captured())


@pytest.fixture(scope="module")
def plan() -> SplitPlan:
    return made()


def changed(plan: SplitPlan, what: str, index: int, **fields: Any) -> SplitPlan:
    items = list(getattr(plan, what))
    items[index] = dataclasses.replace(items[index], **fields)
    return dataclasses.replace(plan, **{what: tuple(items)})


def test_equal_plans_do_not_differ(plan: SplitPlan) -> None:
    diff = plan.diff(SplitPlan.from_json(plan.to_json()))
    assert not diff and not diff.items and str(diff) == "no difference"
    assert diff.total("all-reduces") == Change("all-reduces", 5, 5)
    with pytest.raises(gg.errors.ArgumentError, match="expected a SplitPlan, got str"):
        plan.diff(plan.to_json())  # type: ignore[arg-type]
    with pytest.raises(gg.errors.ArgumentError, match="all-reduces"):
        diff.total("sums")


def test_other_shares_are_one_line_for_all_layers(plan: SplitPlan) -> None:
    diff = plan.diff(made(shares=(1, 1)))
    assert [d.layer for d in diff.of("weight") if d.name.endswith("ffn_up.weight")] == [0, 1, 2, 3]
    up = diff.of("weight")[0]
    assert (up.name, up.status) == ("blk.0.ffn_up.weight", "changed")
    assert Change("split", "S1 192:64", "S1 128:128") in up.changes
    assert Change("bytes per device", (49152, 16384), (32768, 32768)) in up.changes
    assert not diff.of("all-reduce") and not diff.total("all-reduce bytes").differs
    lines = diff.table().splitlines()
    (line,) = [x for x in lines if x.startswith("blk.N.ffn_up.weight")]
    assert line.split("  ") and "0-3" in line and "S1 192:64" in line and line.endswith("S1 128:128")
    assert sum("SILU" in x for x in lines) == 1, "nodes that ggml named are folded, too"
    assert sum("ffn_up" in x for x in lines) == 2
    assert sum("ffn_up" in x for x in diff.table(fold=False).splitlines()) == 8
    assert "8 views differ" in lines[-1] and "(view)" not in "\n".join(lines[:-1])
    assert "ffn_up-N (view)" in diff.table(views=True)
    assert diff.table(limit=2).count("\n") < diff.table().count("\n") and "more" in diff.table(limit=2)


def test_a_layer_of_its_own_is_a_line_of_its_own(plan: SplitPlan) -> None:
    leaf = next(x for x in plan.leafs if x.name == "blk.2.ffn_up.weight")
    other = changed(plan, "leafs", leaf.index, split=SplitState("M"))
    diff = plan.diff(other)
    assert [(d.name, d.layer) for d in diff] == [("blk.2.ffn_up.weight", 2)]
    assert "blk.2.ffn_up.weight" in str(diff) and "blk.N" not in str(diff)


def test_memory_by_device_and_purpose(plan: SplitPlan) -> None:
    other = made(shares=(1, 1))
    first, second = plan.diff(other).memory
    assert first.name == "SIM0"
    assert first.total == Change("total", plan.memory[0].total, other.memory[0].total)
    assert Change("weights", plan.memory[0].weights, other.memory[0].weights) in first.kinds
    assert Change("compute", 5000, 5000) in first.kinds
    text = str(plan.diff(other))
    assert "SIM0 memory" in text and "compute" not in text, "what is the same is not shown"
    assert f"-{(plan.memory[0].fixed - other.memory[0].fixed) / 1024:.1f} KiB" in text


def test_all_reduces_gone_and_come_and_moved() -> None:
    def graph(delayed: bool, summed: bool = True) -> SplitPlan:
        c = Capture()
        x = c.leaf("x", (N_EMBD,), "MIRRORED", usage=2)
        w = c.leaf("w", (N_EMBD, N_EMBD), "0" if summed else "MIRRORED", (48, 16) if summed else ())
        c.node("sum", "MUL_MAT", (N_EMBD,), "PARTIAL" if summed else "MIRRORED", (w, x))
        if summed and not delayed:
            c.allreduce()
        c.node("scaled", "MUL", (N_EMBD,), "MIRRORED", ("sum", x))
        if delayed:
            c.allreduce()
        c.node("y", "SILU", (N_EMBD,), "MIRRORED", ("scaled",))
        return SplitPlan.from_captures(c.captured())

    at_once, later, without = graph(False), graph(True), graph(False, False)
    (moved,) = at_once.diff(later).of("all-reduce")
    assert (moved.status, moved.name) == ("changed", "scaled")
    assert Change("after", ("sum",), ("scaled",)) in moved.changes
    assert Change("delayed from", (), ("sum",)) in moved.changes
    assert at_once.diff(later).total("delayed all-reduces") == Change("delayed all-reduces", 0, 1)
    assert [d.name for d in at_once.diff(later).of("node")] == ["scaled"], "it holds a summand now"
    assert Change("split", "M", "(P)") in at_once.diff(later).of("node")[0].changes
    (gone,) = at_once.diff(without).of("all-reduce")
    assert (gone.status, gone.name, gone.changes[0]) == ("removed", "sum", Change("bytes", 256, None))
    (come,) = without.diff(at_once).of("all-reduce")
    assert come.status == "added"
    assert "after sum" in str(without.diff(at_once)) and not at_once.diff(without).of("cut")
    assert at_once.diff(without).total("subgraphs") == Change("subgraphs", 2, 1)


def test_nodes_that_come_do_not_make_others_differ(plan: SplitPlan) -> None:
    longer = made(6)
    diff = plan.diff(longer)
    last, *added = sorted(diff.of("node", "view", "weight", "fixed"), key=lambda d: d.status == "added")
    assert (last.name, last.changes) == ("result_norm", (Change("sources", ("l_out-3",), ("l_out-5",)),))
    assert {d.status for d in added} == {"added"}, "indices and subgraphs only moved"
    assert {d.layer for d in added} == {4, 5}
    assert len(diff.of("node", "view")) - 1 == len(longer) - len(plan)
    assert [d.status for d in longer.diff(plan).of("node", "weight")].count("removed") == [d.status for d in added if d.kind in ("node", "weight")].count("added")
    assert "4, 5" in str(diff)


def unnamed(plan: SplitPlan) -> SplitPlan:
    return dataclasses.replace(plan, nodes=tuple(dataclasses.replace(x, name="", label="") for x in plan.nodes))


def test_nodes_without_names_are_matched_by_what_they_do(plan: SplitPlan) -> None:
    diff = unnamed(plan).diff(unnamed(made(6)))
    ops = sorted(d.op for d in diff.of("node", "view") if d.status == "added")
    assert [[c.what for c in d.changes] for d in diff.of("node", "view") if d.status != "added"] == [["sources"]]
    assert ops == sorted(x.op for x in made(6).nodes[-18:-2])


def test_a_node_that_moved(plan: SplitPlan) -> None:
    c = two_layers(2)
    order = list(range(len(c.nodes)))
    order[1], order[2] = order[2], order[1]  # out of order for ggml; names find it anyway
    before = SplitPlan.from_captures(two_layers(2).captured())
    nodes = tuple(dataclasses.replace(before.nodes[i], index=k, sources=()) for k, i in enumerate(order))
    flat = dataclasses.replace(before, nodes=tuple(dataclasses.replace(x, sources=()) for x in before.nodes))
    diff = flat.diff(dataclasses.replace(before, nodes=nodes))
    (moved,) = diff.of("node", "view")
    assert [c.what for c in moved.changes] == ["place"]


def test_rules_and_what_they_decide(tmp_path: Any) -> None:
    with gg.Weights(gg.MetaDevice("sim:2", [("up", "S1"), ("down", "S0")]), {"up": _f32(256, 64), "down": _f32(64, 256)}) as w:
        before = _mlp(w)
    with gg.Weights(gg.MetaDevice("sim:2", [("up", "S1 3:1"), ("down", "S0 3:1")]), {"up": _f32(256, 64), "down": _f32(64, 256)}) as w:
        after = _mlp(w)
    diff = before.diff(after)
    assert [(d.name, d.status, d.changes) for d in diff.of("rule")] == [
        ("up", "changed", (Change("rule", "S1", "S1 3:1"),)),
        ("down", "changed", (Change("rule", "S0", "S0 3:1"),)),
    ]
    assert "S1 192:64  by your rule 1 ('up': S1 3:1)" in str(diff)
    assert not diff.without("rules").of("rule")
    assert "decided" not in str(diff.without("rules")) and "by your rule" not in str(diff.without("rules"))


def _f32(*shape: int) -> Any:
    import numpy as np

    return np.zeros(shape, np.float32)


def _mlp(w: gg.Weights) -> SplitPlan:
    with gg.Graph(w.device) as g:
        g.output("y", w["down"] @ gg.ops.silu(w["up"] @ g.input("x", (64, 3))))
        return g.plan()


def test_a_rule_in_front_does_not_change_those_behind_it() -> None:
    values = {"up": _f32(256, 64), "down": _f32(64, 256)}
    rules = [("up", "S1"), ("down", "S0")]
    with gg.Weights(gg.MetaDevice("sim:2", rules), values) as w:
        before = _mlp(w)
    with gg.Weights(gg.MetaDevice("sim:2", [("nothing", "M"), *rules]), values) as w:
        after = _mlp(w)
    diff = before.diff(after)
    assert [(d.kind, d.name, d.status) for d in diff] == [("rule", "nothing", "added")]


def test_more_devices(plan: SplitPlan) -> None:
    with gg.Weights(gg.MetaDevice("sim:2", [("up", "S1"), ("down", "S0")]), {"up": _f32(256, 64), "down": _f32(64, 256)}) as w:
        two = _mlp(w)
    with gg.Weights(gg.MetaDevice("sim:4", [("up", "S1"), ("down", "S0")]), {"up": _f32(256, 64), "down": _f32(64, 256)}) as w:
        four = _mlp(w)
    diff = two.diff(four)
    assert [m.total.before is None for m in diff.memory] == [False, False, True, True]
    assert {d.name for d in diff.of("weight", "input")} == {"up", "down"}, "what is whole on every device is so on more"
    assert diff and "devices" in str(diff)


def test_names_of_devices_memory_and_host_can_be_left_out(plan: SplitPlan) -> None:
    renamed = dataclasses.replace(
        plan, devices=("A", "B"), memory=tuple(dataclasses.replace(m, name=n, compute=7) for m, n in zip(plan.memory, "AB")), host={"x": 1}
    )
    diff = plan.diff(renamed)
    assert diff and "SIM0 -> A memory" in str(diff)
    assert diff.without("devices", "memory") and not diff.without("devices", "memory", "host")
    with pytest.raises(gg.errors.ArgumentError, match="memory"):
        diff.without("colour")


def _other(value: Any, rng: random.Random) -> Any:
    """A value of the same kind that is not equal."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.randint(1, 9)
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, float):
        return value + 0.5
    if isinstance(value, SplitState):
        return SplitState("M") if value.axis != "M" else SplitState("P")
    if value is None:
        return None
    if isinstance(value, tuple) and value:
        return (*value[:-1], _other(value[-1], rng))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        field = rng.choice([f for f in dataclasses.fields(value) if _other(getattr(value, f.name), rng) != getattr(value, f.name)])
        return dataclasses.replace(value, **{field.name: _other(getattr(value, field.name), rng)})
    return value


KINDS = ["nodes", "leafs", "allreduces", "memory", "subgraphs"]


@pytest.mark.parametrize("what", KINDS)
def test_every_field_of_every_part_is_seen(plan: SplitPlan, what: str) -> None:
    """A plan is equal to another exactly when the difference is nothing."""
    rng = random.Random(what)
    seen = 0
    for index in range(0, len(getattr(plan, what)), 3):
        one = getattr(plan, what)[index]
        for field in dataclasses.fields(one):
            value = _other(getattr(one, field.name), rng)
            if value == getattr(one, field.name) or field.name in ("index", "after", "subgraph") or not field.compare:
                continue
            if field.name == "steps":
                value = getattr(one, field.name)[:-1]
            if field.name in ("sources", "partial", "origins"):
                value = getattr(one, field.name)[:-1]
            if what == "subgraphs" and field.name != "graph":
                continue
            other = changed(plan, what, index, **{field.name: value})
            diff = plan.diff(other)
            assert other != plan
            assert diff and other.diff(plan), (what, field.name)
            assert str(diff) != "no difference" and diff.summary(), field.name
            assert PlanDiff.from_json(diff.to_json()) == diff
            seen += 1
    assert seen >= {'subgraphs': 2, 'memory': 6}.get(what, 8)


def test_what_has_no_better_words_is_named() -> None:
    plan = made(1)
    leafs = tuple(dataclasses.replace(x, index=len(plan.leafs) - 1 - x.index) for x in plan.leafs)
    diff = plan.diff(dataclasses.replace(plan, leafs=leafs))
    assert diff.other == ("leafs",) and diff and "leafs" in str(diff)


def test_json_is_what_it_says(plan: SplitPlan) -> None:
    diff = plan.diff(made(shares=(1, 0)))
    d = json.loads(diff.to_json(indent=1))
    assert d["schema"] == "pyggml.plan-diff/1" and d["same"] is False
    assert d["memory"][0]["total"] == [plan.memory[0].total, made(shares=(1, 0)).memory[0].total]
    assert PlanDiff.from_json(diff.to_json()) == diff
    assert hash(PlanDiff.from_json(diff.to_json())) == hash(diff)
    for damage in ("{", "[]", '{"schema": "pyggml.plan/1"}', diff.to_json().replace('"status"', '"state"')):
        with pytest.raises(gg.errors.FileFormatError):
            PlanDiff.from_json(damage)


def test_terminal_and_text_say_the_same(plan: SplitPlan) -> None:
    from rich.console import Console

    diff = plan.diff(made(shares=(1, 0)))
    out = io.StringIO()
    diff.render(Console(file=out, width=140))
    words = [x.split() for x in out.getvalue().splitlines() if x.strip()]
    for line in str(diff).splitlines():
        if line.strip() and "─" not in line:
            assert line.split() in words
    narrow = io.StringIO()
    diff.render(Console(file=narrow, width=60))
    assert max(map(len, narrow.getvalue().splitlines())) <= 60
    assert diff._repr_html_().startswith("<pre>") and "-&gt;" in plan.diff(made(6))._repr_html_()
    assert repr(diff).startswith("<PlanDiff: ") and len(repr(diff)) < 200


def test_nothing_is_lost_between_two_plans_of_anything(plan: SplitPlan) -> None:
    """Whatever the plans are, every tensor of both is matched or named."""
    other = SplitPlan.from_captures(two_layers(3, (0, 1)).captured())
    strange = unnamed(other)
    for a, b in ((plan, other), (plan, strange), (strange, plan), (other, SplitPlan.from_captures(Capture_of_one().captured()))):
        diff = a.diff(b)
        added, removed = (sum(d.status == s for d in diff.of("node", "view")) for s in ("added", "removed"))
        assert len(a) - removed == len(b) - added
        added, removed = (sum(d.status == s for d in diff.of("weight", "fixed", "input")) for s in ("added", "removed"))
        assert len(a.leafs) - removed == len(b.leafs) - added


def Capture_of_one() -> Capture:
    c = Capture()
    c.node("y", "SILU", (4,), "MIRRORED", (c.leaf("x", (4,), "MIRRORED", usage=2),))
    return c


def test_aspects_are_all_known_words(plan: SplitPlan) -> None:
    diff = plan.diff(made(shares=(1, 0)))
    for aspect in ASPECTS:
        assert diff.without(aspect).without(aspect) == diff.without(aspect)
    assert not diff.without("views").of("view")
    assert isinstance(plan.nodes[0], PlanNode) and isinstance(plan.leafs[0], PlanLeaf)
