"""Plans as values: from captures written by hand, and from what ggml really inferred."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import pickle
import time
from typing import Any

import pytest

import pyggml as gg
from pyggml._units import binary, percent, ranges
from pyggml.errors import Error, FileFormatError
from pyggml.plan import PlanKeyError, PlanLeaf, PlanNode, SplitPlan, parse_state
from pyggml.report.fold import layer_of, stretches
from pyggml.split import Segment, SplitState

INPUT, OUTPUT, COMPUTE = 1, 2, 16
N_EMBD, N_FF = 64, 256
SHARES = 3, 1


class Capture:
    """A capture of native code (docs/plan-capture.md), written node by node."""

    def __init__(self, n_devices: int = 2, algorithm: str = "butterfly") -> None:
        self.n = n_devices
        self.algorithm = algorithm
        self.nodes: list[dict[str, Any]] = []
        self.leafs: list[dict[str, Any]] = []
        self.allreduces: list[dict[str, Any]] = []
        self.starts = [0]

    def tensor(
        self, name: str, op: str, ne: tuple[int, ...], split: str, counts: tuple[int, ...] = (), **more: Any
    ) -> dict[str, Any]:
        ne = (*ne, *(1,) * (4 - len(ne)))
        state: dict[str, Any] = {"axis": split}
        shapes = [list(ne) for _ in range(self.n)]
        if split.isdigit():
            state["segments"] = more.pop("segments", [{"ne": list(counts), "nr": 1}])
            for j in range(self.n):
                shapes[j][int(split)] = sum(s["ne"][j] * s["nr"] for s in state["segments"])
        idle = more.pop("idle", ())
        slices = []
        for j, shape in enumerate(shapes):
            a, b, c, d = shape
            size = 4 * a * b * c * d
            slices.append({
                "ne": shape,
                "nb": [4, 4 * a, 4 * a * b, 4 * a * b * c],
                "bytes": size,
                "compute": op != "NONE" and size > 0 and j not in idle,
            })  # fmt: skip
        return {
            "name": name,
            "op": op,
            "type": "f32",
            "ne": list(ne),
            "bytes": 4 * ne[0] * ne[1] * ne[2] * ne[3],
            "flags": COMPUTE if op != "NONE" else 0,
            "src": [],
            "split": state,
            "synced": {"axis": "MIRRORED"} if split == "PARTIAL" else state,
            "slices": slices,
            **more,
        }

    def leaf(self, name: str, ne: tuple[int, ...], split: str, counts: tuple[int, ...] = (), usage: int = 1) -> str:
        self.leafs.append({"usage": usage, **self.tensor(name, "NONE", ne, split, counts)})
        return name

    def node(
        self,
        name: str,
        op: str,
        ne: tuple[int, ...],
        split: str,
        sources: tuple[str, ...],
        counts: tuple[int, ...] = (),
        **more: Any,
    ) -> str:
        self.nodes.append({
            "subgraph": len(self.starts) - 1,
            **self.tensor(name, op, ne, split, counts, **more),
            "src": list(sources),
        })  # fmt: skip
        return name

    def allreduce(self, computes: tuple[bool, ...] | None = None) -> None:
        after = len(self.nodes) - 1
        partial = [i for i in range(self.starts[-1], after + 1) if self.nodes[i]["split"]["axis"] == "PARTIAL"]
        self.allreduces.append({
            "after": after,
            "partial": partial,
            "bytes": self.nodes[after]["bytes"],
            "computes": list(computes or (True,) * self.n),
        })  # fmt: skip
        self.starts.append(after + 1)

    def graph(self) -> dict[str, Any]:
        starts = [s for s in self.starts if s < len(self.nodes)]
        at = {x["name"]: i for i, x in enumerate([*self.nodes, *self.leafs])}
        for x in self.nodes:
            x["src"] = [at[s] if isinstance(s, str) else s for s in x["src"]]
        sizes = {
            u: [sum(x["slices"][j]["bytes"] for x in self.leafs if x["usage"] == u) for j in range(self.n)]
            for u in (0, 1)
        }
        return {
            "devices": [f"SIM{j}" for j in range(self.n)],
            "nodes": self.nodes,
            "leafs": self.leafs,
            "subgraphs": [[a, b] for a, b in itertools.pairwise([*starts, len(self.nodes)])],
            "allreduces": self.allreduces,
            "algorithm": self.algorithm,
            "reduce_bytes": [256] * self.n,
            "buffers": [
                {"usage": 1, "fixed": True, "tensors": 2, "bytes": sizes[1]},
                {"usage": 0, "fixed": True, "tensors": 2, "bytes": sizes[0]},
                {"usage": 2, "fixed": False, "tensors": 0, "bytes": [5000] * self.n},
            ],
        }

    def captured(self) -> dict[str, Any]:
        return {"graphs": [json.loads(json.dumps(self.graph()))]}


def shared(n: int, shares: tuple[int, ...] = SHARES) -> tuple[int, ...]:
    return tuple(n * s // sum(shares) for s in shares)


def layer(c: Capture, k: int, x: str, shares: tuple[int, ...] = SHARES, *, delayed: bool = True) -> str:
    """A feed-forward layer whose all-reduce waits for a factor, a cache that nobody shares, and a view."""
    idle = tuple(j for j, s in enumerate(shares) if s == 0)
    up = c.leaf(f"blk.{k}.ffn_up.weight", (N_EMBD, N_FF), "1", shared(N_FF, shares))
    down = c.leaf(f"blk.{k}.ffn_down.weight", (N_FF, N_EMBD), "0", shared(N_FF, shares))
    scale = c.leaf(f"blk.{k}.ffn_scale", (1,), "MIRRORED")
    c.leaf(f"cache_k_l{k}", (N_EMBD, 32), "0", shared(N_EMBD, shares), usage=0)
    norm = c.node(f"norm-{k}", "RMS_NORM", (N_EMBD,), "MIRRORED", (x,))
    h = c.node(f"ffn_up-{k}", "MUL_MAT", (N_FF,), "0", (up, norm), shared(N_FF, shares))
    view = c.node(f"ffn_up-{k} (view)", "VIEW", (N_FF,), "0", (h,), shared(N_FF, shares))
    act = c.node(f"node_{17 * k + 3}", "SILU", (N_FF,), "0", (view,), shared(N_FF, shares))
    c.node(f"cache_k_l{k} (view)", "VIEW", (N_EMBD, 32), "0", (f"cache_k_l{k}",), shared(N_EMBD, shares))
    out = c.node(f"ffn_down-{k}", "MUL_MAT", (N_EMBD,), "PARTIAL", (down, act), idle=idle)
    if delayed:
        out = c.node(f"ffn_out-{k}", "MUL", (N_EMBD,), "MIRRORED", (out, scale))
    c.allreduce(tuple(s > 0 for s in shares))
    return c.node(f"l_out-{k}", "ADD", (N_EMBD,), "MIRRORED", (out, x))


def two_layers(n_layer: int = 2, shares: tuple[int, ...] = SHARES) -> Capture:
    """Layers with delayed all-reduces, then an output that is partial: its all-reduce is behind the last node."""
    c = Capture()
    x = c.leaf("inp_embd", (N_EMBD,), "MIRRORED", usage=2)
    for k in range(n_layer):
        x = layer(c, k, x, shares)
    head = c.leaf("output.weight", (N_EMBD, 32), "0", shared(N_EMBD))
    c.node("result_norm", "RMS_NORM", (N_EMBD,), "MIRRORED", (x,))
    c.node("result_output", "MUL_MAT", (32,), "PARTIAL", (head, "result_norm"), flags=COMPUTE | OUTPUT)
    c.allreduce()
    return c


@pytest.fixture(scope="module")
def plan() -> SplitPlan:
    return SplitPlan.from_captures(two_layers().captured())


def test_everything_of_the_capture_is_there(plan: SplitPlan) -> None:
    assert plan.devices == ("SIM0", "SIM1")
    assert len(plan) == len(plan.nodes) == 18
    assert [x.index for x in plan] == list(range(18))
    assert [(s.start, s.stop) for s in plan.subgraphs] == [(0, 7), (7, 15), (15, 18)]
    assert [x.subgraph for x in plan] == [0] * 7 + [1] * 8 + [2] * 3
    up = plan["ffn_up-0"]
    assert isinstance(up, PlanNode)
    assert (up.op, up.type, up.ne, up.bytes) == ("MUL_MAT", "f32", (256, 1, 1, 1), 1024)
    assert up.split == up.synced == SplitState(0, (Segment((192, 64)),))
    assert [s.ne for s in up.slices] == [(192, 1, 1, 1), (64, 1, 1, 1)]
    assert [s.bytes for s in up.slices] == [768, 256]
    assert up.slices[0].nb == (4, 768, 768, 768)
    assert [x.name for x in plan.sources(up)] == ["blk.0.ffn_up.weight", "norm-0"]
    result = plan["result_output"]
    assert isinstance(result, PlanNode) and result.is_output and not result.is_input
    assert plan["ffn_up-0 (view)"].is_view and not result.is_view  # type: ignore[union-attr]


def test_leafs_are_known_by_what_they_are_for(plan: SplitPlan) -> None:
    kinds = {x.name: x.kind for x in plan.leafs}
    assert kinds["blk.1.ffn_up.weight"] == "weight"
    assert kinds["cache_k_l1"] == "fixed"
    assert kinds["inp_embd"] == "input"
    assert str(plan["blk.0.ffn_up.weight"].split) == "S1 192:64"


def test_a_delayed_allreduce_says_from_where(plan: SplitPlan) -> None:
    first = plan.allreduces[0]
    assert (first.after_name, first.delayed, first.delayed_from, first.over) == ("ffn_out-0", True, ("ffn_down-0",), 1)
    assert first.bytes == 4 * N_EMBD
    assert first.computes == (True, True)
    assert first.algorithm == "butterfly"
    assert plan.nodes[first.after].pending
    assert not plan["l_out-0"].pending and not plan["ffn_down-0"].pending  # type: ignore[union-attr]


def test_the_allreduce_behind_the_last_node_is_kept(plan: SplitPlan) -> None:
    last = plan.allreduces[-1]
    assert (last.after_name, last.delayed, last.delayed_from) == ("result_output", False, ())
    assert last.partial == last.origins == (17,)
    assert len(plan.allreduces) == 3 == len(plan.subgraphs)
    assert plan.allreduce_bytes == 2 * 256 + 128


def test_merged_sums_name_all_their_origins() -> None:
    c = Capture()
    x = c.leaf("x", (N_EMBD,), "MIRRORED", usage=2)
    w = c.leaf("w", (N_EMBD, N_EMBD), "0", shared(N_EMBD))
    a = c.node("a", "MUL_MAT", (N_EMBD,), "PARTIAL", (w, x))
    c.node("between", "RMS_NORM", (N_EMBD,), "MIRRORED", (x,))
    b = c.node("b", "MUL_MAT", (N_EMBD,), "PARTIAL", (w, x))
    c.node("sum", "ADD", (N_EMBD,), "MIRRORED", (a, b))
    c.allreduce()
    c.node("y", "SILU", (N_EMBD,), "MIRRORED", ("sum",))
    plan = SplitPlan.from_captures(c.captured())
    (reduce,) = plan.allreduces
    assert (reduce.delayed_from, reduce.over) == (("a", "b"), 3)
    # what is computed meanwhile from other things is complete
    assert [x.name for x in plan if x.pending] == ["sum"]
    assert "all-reduce 256 B, after sum (merged, delayed from a, b over 3 nodes)" in plan.table()


def test_a_device_without_a_share() -> None:
    plan = SplitPlan.from_captures(two_layers(1, (1, 0)).captured())
    up, down = plan["ffn_up-0"], plan["ffn_down-0"]
    assert isinstance(up, PlanNode) and isinstance(down, PlanNode)
    assert up.zero_share == (1,) and up.slices[1].empty and up.slices[1].bytes == 0
    assert down.zero_share == (1,) and not down.slices[1].empty
    assert plan["norm-0"].zero_share == ()  # type: ignore[union-attr]
    assert plan["ffn_up-0 (view)"].zero_share == (1,)  # type: ignore[union-attr]
    assert plan.allreduces[0].computes == (True, False)
    assert plan.achieved_shares("ffn_up-0") == (1.0, 0.0)
    text = plan.table()
    assert "256 | -" in text
    assert "nothing from SIM1" in text


def test_shares_and_weights(plan: SplitPlan) -> None:
    assert plan.achieved_shares("blk.0.ffn_up.weight") == (0.75, 0.25)
    assert plan.achieved_shares("norm-0") == ()
    first, second = plan.weight_bytes()
    # per layer up and down, and the output matrix; the scales are mirrored
    assert first.split == 2 * 2 * 192 * 64 * 4 + 48 * 32 * 4
    assert second.split == 2 * 2 * 64 * 64 * 4 + 16 * 32 * 4
    assert first.mirrored == second.mirrored == 8
    assert plan.share_of_weights() == (0.75, 0.25)


def test_memory_by_purpose(plan: SplitPlan) -> None:
    first, second = plan.memory
    weights = plan.weight_bytes()
    assert [m.weights for m in plan.memory] == [w.split + w.mirrored for w in weights]
    assert (first.fixed, second.fixed) == (2 * 48 * 32 * 4, 2 * 16 * 32 * 4)
    assert (first.compute, first.reduction) == (5000, 256)
    assert first.total == first.weights + first.fixed + first.compute + first.reduction


def test_asked_shares_stay_with_their_weights() -> None:
    asked = {"blk.0.ffn_up.weight": (0.7, 0.3)}
    plan = SplitPlan.from_captures(two_layers().captured(), asked=asked, host={"nodes": 3, "bytes": 4096})
    leaf = plan["blk.0.ffn_up.weight"]
    assert isinstance(leaf, PlanLeaf) and leaf.asked == (0.7, 0.3)
    assert plan["blk.1.ffn_up.weight"].asked is None  # type: ignore[union-attr]
    assert "host: nodes 3, bytes 4.0 KiB" in plan.summary()
    assert SplitPlan.from_json(plan.to_json()) == plan


def test_runs_and_segments_survive() -> None:
    c = Capture()
    segments = [{"ne": [16, 16], "nr": 2}, {"ne": [8, 24], "nr": 1}]
    c.leafs.append({"usage": 1, **c.tensor("w", "NONE", (4, 96), "1", segments=segments)})
    runs = [[[0, 16], [32, 16], [64, 8]], [[16, 16], [48, 16], [72, 24]]]
    c.node("v", "VIEW", (4, 96), "1", ("w",), segments=segments, runs=runs)
    plan = SplitPlan.from_captures(c.captured())
    v = plan["v"]
    assert str(v.split) == "S1 [16:16 x2, 8:24]"
    assert v.runs == tuple(tuple((a, n) for a, n in at) for at in runs)
    assert plan.achieved_shares("v") == (40 / 96, 56 / 96)
    assert SplitPlan.from_json(plan.to_json()) == plan


def test_tensors_of_no_device_have_no_split() -> None:
    c = Capture()
    x = c.leaf("x", (4,), "MIRRORED", usage=2)
    host = {"usage": -1, **c.tensor("elsewhere", "NONE", (4,), "MIRRORED")}
    for key in ("synced", "slices"):
        del host[key]
    host["split"] = None
    c.leafs.append(host)
    c.node("y", "ADD", (4,), "MIRRORED", (x, "elsewhere"))
    c.node("z", "SILU", (4,), "UNKNOWN", ("y",))
    plan = SplitPlan.from_captures(c.captured())
    assert plan["elsewhere"].split is None and plan["elsewhere"].slices == ()
    assert plan["elsewhere"].kind == "unallocated"  # type: ignore[union-attr]
    assert plan["z"].split is None
    assert SplitPlan.from_json(plan.to_json()) == plan
    assert "elsewhere" in plan.table("all")


def test_several_graphs_of_a_run_are_one_plan() -> None:
    first, second = Capture(), Capture()
    w = first.leaf("blk.0.ffn_up.weight", (N_EMBD, N_EMBD), "1", shared(N_EMBD))
    x = first.leaf("x", (N_EMBD,), "MIRRORED", usage=2)
    first.node("h", "MUL_MAT", (N_EMBD,), "0", (w, x), shared(N_EMBD))
    second.leaf("blk.0.ffn_up.weight", (N_EMBD, N_EMBD), "1", shared(N_EMBD))
    second.leaf("x", (N_EMBD,), "MIRRORED", usage=2)
    # what the first graph computed is a leaf of the second
    second.leafs.append({"usage": 2, **second.tensor("h", "MUL_MAT", (N_EMBD,), "0", shared(N_EMBD))})
    second.node("y", "SILU", (N_EMBD,), "0", ("h",), shared(N_EMBD))
    second.node("z", "MUL_MAT", (N_EMBD,), "0", ("blk.0.ffn_up.weight", "x"), shared(N_EMBD))
    graphs = [*first.captured()["graphs"], *second.captured()["graphs"]]
    plan = SplitPlan.from_captures({"graphs": graphs})
    assert [x.name for x in plan] == ["h", "y", "z"]
    assert plan.sources(plan.nodes[1]) == (plan.nodes[0],)
    assert [x.name for x in plan.leafs].count("blk.0.ffn_up.weight") == 1
    # two inputs may have the same name; the second is another tensor
    assert [x.name for x in plan.leafs].count("x") == 2
    assert [(s.start, s.stop, s.graph) for s in plan.subgraphs] == [(0, 1, 0), (1, 3, 1)]
    assert [x.subgraph for x in plan] == [0, 1, 1]
    assert SplitPlan.from_json(plan.to_json()) == plan


def test_json_and_back(plan: SplitPlan) -> None:
    text = plan.to_json()
    again = SplitPlan.from_json(text)
    assert again == plan and hash(again) == hash(plan)
    assert again.to_json() == text
    assert SplitPlan.from_json(plan.to_json(indent=1)) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    d = json.loads(text)
    assert d["schema"] == "pyggml.plan/2"
    assert d["nodes"][1]["split"] == "S0 192:64"
    assert len({plan, again}) == 1


def test_plans_differ_by_content(plan: SplitPlan) -> None:
    captured = two_layers().captured()
    captured["graphs"][0]["allreduces"][0]["computes"] = [True, False]
    other = SplitPlan.from_captures(captured)
    assert other != plan and hash(other) != hash(plan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.devices = ()  # type: ignore[misc]


def test_names_that_are_not_there(plan: SplitPlan) -> None:
    assert plan[3].name == "node_3"
    assert "ffn_up-0" in plan and "ffn_up-7" not in plan
    with pytest.raises(PlanKeyError, match=r"no node or leaf named 'ffn_up0' among 18 nodes .* ffn_up-0") as e:
        plan["ffn_up0"]
    assert isinstance(e.value, Error) and isinstance(e.value, KeyError)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d.update(schema="pyggml.plan/3"), r"found the schema 'pyggml.plan/3', expected 'pyggml.plan/2' or 'pyggml.plan/1'"),
        (lambda d: d.pop("schema"), "found the schema None"),
        (lambda d: d["nodes"][4].pop("ne"), r"nodes\[4\] cannot be read: 'ne' is missing"),
        (lambda d: d["nodes"][4].update(ne=[1, 2]), r"nodes\[4\] cannot be read"),
        (lambda d: d["nodes"][4].update(split="S7 1:1"), r"nodes\[4\].*'S7 1:1' is no split state"),
        (lambda d: d["nodes"][4].update(src=[999]), r"nodes\[4\].*sources \[999\]"),
        (lambda d: d["nodes"][4]["slices"].pop(), r"nodes\[4\].*1 slices for 2 devices"),
        (lambda d: d["leafs"][2].pop("kind"), r"leafs\[2\].*'kind' is missing"),
        (lambda d: d["allreduces"][1].update(after=99), r"allreduces\[1\]"),
        (lambda d: d.pop("memory"), "memory.*missing"),
        (lambda d: d.update(subgraphs=[[1]]), "subgraphs"),
    ],
)
def test_damaged_plans_are_refused(plan: SplitPlan, damage: Any, says: str) -> None:
    d = json.loads(plan.to_json())
    damage(d)
    with pytest.raises(FileFormatError, match=says):
        SplitPlan.from_json(json.dumps(d))


def test_what_is_no_plan_at_all() -> None:
    with pytest.raises(FileFormatError, match="not JSON"):
        SplitPlan.from_json(b"GGUF\x03")
    with pytest.raises(FileFormatError, match="found a list"):
        SplitPlan.from_json("[]")
    with pytest.raises(FileFormatError, match="holds no graphs"):
        SplitPlan.from_captures({"graphs": []})
    captured = two_layers().captured()
    del captured["graphs"][0]["leafs"][3]["type"]
    with pytest.raises(FileFormatError, match=r"graphs\[0\]\.leafs\[3\].*'type' is missing"):
        SplitPlan.from_captures(captured)


@pytest.mark.parametrize("text", ["M", "P", "-", "S1 48:16", "S0 [64:64 x2, 32:32]", "S2 [1:0 x3]", "S3 1:2:3:4"])
def test_notation_and_back(text: str) -> None:
    state = parse_state(text)
    assert ("-" if state is None else str(state)) == text


@pytest.mark.parametrize("text", ["", "X", "S", "S1", "S4 1:1", "S1 a:b", "S1 [1:1 xq]", "S0 []"])
def test_what_is_no_notation(text: str) -> None:
    with pytest.raises(ValueError):
        parse_state(text)


# folding


@pytest.mark.parametrize(
    ("name", "layer", "bare"),
    [
        ("blk.7.attn_q.weight", 7, "blk.#.attn_q.weight"),
        ("dec.blk.12.ffn_up.weight", 12, "dec.blk.#.ffn_up.weight"),
        ("ffn_out-7", 7, "ffn_out-#"),
        ("Kcur-31 (view) (permuted)", 31, "Kcur-# (view) (permuted)"),
        ("cache_k_l7", 7, "cache_k_l#"),
        ("cache_k_l7 (view)", 7, "cache_k_l# (view)"),
        ("cache_s_l4 (view) (copy of new_state-4)", 4, "cache_s_l# (view) (copy of new_state-#)"),
        ("copy-5 (of l_out-4)", 5, "copy-# (of l_out-#-1)"),
        ("node_217", None, "node_#"),
        ("cache_r_l2 (copy of node_12)", 2, "cache_r_l# (copy of node_#)"),
        ("result_output", None, "result_output"),
        ("per_layer_l", None, "per_layer_l"),
        ("top-2-of-8 experts", None, "top-2-of-8 experts"),
    ],
)
def test_layers_are_taken_from_names(name: str, layer: int | None, bare: str) -> None:
    assert layer_of(name) == (layer, bare)


def folded(c: Capture, **options: bool) -> list[tuple[int | None, tuple[int, ...]]]:
    return [(s.layer, s.layers) for s in stretches(SplitPlan.from_captures(c.captured()), **options)]


def test_identical_layers_are_one() -> None:
    assert folded(two_layers(5)) == [(0, (0, 1, 2, 3, 4)), (None, ())]
    assert folded(two_layers(3), fold=False) == [(0, (0,)), (1, (1,)), (2, (2,)), (None, ())]


def test_nodes_with_automatic_names_belong_to_their_layer() -> None:
    plan = SplitPlan.from_captures(two_layers(2).captured())
    for s in stretches(plan, fold=False)[:2]:
        assert any(plan.nodes[i].name.startswith("node_") for i in range(s.start, s.stop))


def test_shares_that_rotate_over_the_layers() -> None:
    c = Capture()
    x = c.leaf("inp_embd", (N_EMBD,), "MIRRORED", usage=2)
    for k in range(6):
        x = layer(c, k, x, (3, 1) if k % 2 == 0 else (1, 3))
    assert folded(c) == [(0, (0, 2, 4)), (1, (1, 3, 5))]
    text = SplitPlan.from_captures(c.captured()).table()
    assert "[layers 0, 2, 4: 3 x, shown is 0]" in text
    assert "[layers 1, 3, 5: 3 x, shown is 1]" in text


def test_layers_that_differ_only_in_their_allreduce_or_weights() -> None:
    c = Capture()
    x = c.leaf("inp_embd", (N_EMBD,), "MIRRORED", usage=2)
    for k in range(3):
        x = layer(c, k, x)
    other = c.captured()
    other["graphs"][0]["allreduces"][1]["computes"] = [True, False]
    plan = SplitPlan.from_captures(other)
    assert [s.layers for s in stretches(plan)] == [(0, 2), (1,)]
    mixed = c.captured()
    next(x for x in mixed["graphs"][0]["leafs"] if x["name"] == "blk.2.ffn_up.weight")["type"] = "q6_K"
    plan = SplitPlan.from_captures(mixed)
    assert [s.layers for s in stretches(plan)] == [(0, 1, 2)]
    assert [s.layers for s in stretches(plan, leafs=True)] == [(0, 1), (2,)]


# text


TABLE = """\
node                 op        type  ne   split     per device  subgraph  all-reduce
───────────────────  ────────  ────  ───  ────────  ──────────  ────────  ──────────
[layers 0, 1: 2 x, shown is 0]
norm-0               RMS_NORM  f32   64   M         64 each            0
ffn_up-0             MUL_MAT   f32   256  S0 192:64  192 | 64           0
node_3               SILU      f32   256  S0 192:64  192 | 64           0
ffn_down-0           MUL_MAT   f32   64   P         64 each            0
ffn_out-0            MUL       f32   64   (P)       64 each            0       256 B
── all-reduce 256 B, after ffn_out-0 (delayed from ffn_down-0 over 1 node) ──────────
l_out-0              ADD       f32   64   M         64 each            1
[once]
result_norm          RMS_NORM  f32   64   M         64 each            2
result_output (out)  MUL_MAT   f32   32   P         32 each            2       128 B
── all-reduce 128 B, after result_output ────────────────────────────────────────────
(P): a sum that an all-reduce further down completes"""


def squeezed(text: str) -> list[list[str]]:
    return [line.strip("─ ").split() for line in text.splitlines()]


def test_the_table_folds_layers_and_draws_allreduces(plan: SplitPlan) -> None:
    assert squeezed(plan.table()) == squeezed(TABLE)
    widths = {len(line) for line in plan.table().splitlines() if line.startswith("──")}
    assert len(widths) == 1, "lines across are as wide as the table"
    unfolded = plan.table(fold=False)
    assert "l_out-1" in unfolded and "[" not in unfolded


def test_details(plan: SplitPlan) -> None:
    assert "(view)" not in plan.table()
    everything = plan.table("all")
    assert "ffn_up-0 (view)" in everything and "blk.0.ffn_up.weight" in everything and "cache_k_l0" in everything
    lines = squeezed(plan.table("layers"))
    assert lines[2] == [
        "layers",
        "0,",
        "1",
        "2",
        "8",
        "M",
        "2,",
        "P",
        "1,",
        "(P)",
        "1,",
        "S0",
        "4",
        "1",
        "2",
        "x",
        "256",
        "B",
    ]
    assert lines[3][:3] == ["result_norm", "…", "result_output"]


def test_the_summary_has_the_numbers(plan: SplitPlan) -> None:
    text = plan.summary()
    assert (
        "2 devices; 18 nodes (4 of them views) in 3 subgraphs; 3 all-reduces (butterfly), 640 B a run, 2 delayed"
        in text
    )
    assert "nodes by split: M 5, P 3, (P) 2, S0 8" in text
    assert "198.0 KiB (75 %)" in text and "66.0 KiB (25 %)" in text
    assert str(plan) == plan.table() + "\n" + text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_shows_the_same(plan: SplitPlan, width: int) -> None:
    rich_console = pytest.importorskip("rich.console")
    out = io.StringIO()
    plan.render(rich_console.Console(file=out, width=width, color_system=None), detail="nodes")
    text = out.getvalue()
    assert max(map(len, text.splitlines()[:10])) <= width
    if width == 200:
        for line in squeezed(plan.table())[:-1]:
            if line:
                assert line in squeezed(text)


def test_a_narrow_terminal_leaves_out_columns_before_it_cuts_names() -> None:
    c = Capture(2)
    x = c.leaf("x", (64,), "MIRRORED", usage=2)
    w = c.leaf("blk.0.attn_output.weight", (64, 64), "0", usage=1, counts=(32, 32))
    c.node("a_result_of_attention-0", "MUL_MAT", (64,), "PARTIAL", (w, x))
    plan = SplitPlan.from_captures(c.captured())
    shown = {}
    for width in (60, 100):
        out = io.StringIO()
        plan.render(pytest.importorskip("rich.console").Console(file=out, width=width, color_system=None))
        shown[width] = out.getvalue().splitlines()
    assert shown[100][0].split() == ["node", "op", "type", "ne", "split", "per", "device", "subgraph", "all-reduce"]
    assert shown[60][0].split() == ["node", "op", "ne", "split", "per", "device"]
    assert shown[60][1].split() == ["a_result_of_attention-0", "MUL_MAT", "64", "P", "64", "each"]


def test_many_equal_devices_are_counted() -> None:
    c = Capture(8)
    x = c.leaf("x", (64,), "MIRRORED", usage=2)
    c.node("a", "SILU", (64,), "0", (x,), (8,) * 8)
    c.node("b", "SILU", (64,), "0", (x,), (10, 10, 10, 10, 6, 6, 6, 6))
    g = c.captured()
    g["graphs"][0]["reduce_bytes"] = []
    text = SplitPlan.from_captures(g).table()
    assert "8 each" in text
    assert "10 (4 times) | 6 (4 times)" in text


def test_numbers_for_people() -> None:
    assert [binary(n) for n in (0, 1023, 1024, 16384, 1 << 20, 3 << 29)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "16.0 KiB",
        "1.0 MiB",
        "1.50 GiB",
    ]
    assert binary((1 << 20) - 1) == "1.0 MiB"
    assert [percent(x) for x in (0.75, 1 / 3, 0, 1)] == ["75 %", "33.3 %", "0 %", "100 %"]
    assert ranges(range(32)) == "0-31"
    assert ranges([0, 1, 2, 4, 6, 7]) == "0-2, 4, 6, 7"
    assert ranges(range(3, 32, 4)) == "3, 7, 11, … 31"
    assert ranges([5]) == "5"


def test_ten_thousand_nodes_are_fast() -> None:
    c = two_layers(1250)
    assert len(c.nodes) >= 10_000
    text = json.dumps({"graphs": [c.graph()]})
    times = []
    for _ in range(5):
        start = time.process_time()
        plan = SplitPlan.from_captures(text)
        times.append(time.process_time() - start)
    assert len(plan) == len(c.nodes)
    assert min(times) < 0.5
    start = time.process_time()
    assert plan.table().count("\n") < 30
    assert time.process_time() - start < 1.0


# what ggml really infers


def test_a_real_plan() -> None:
    np = pytest.importorskip("numpy")

    devices = gg.simulated("PLAN", n=2)
    rules = [gg.rule(r"ffn_up", "S1 3:1"), gg.rule(r"ffn_down", "S0 3:1")]
    weights = {"ffn_up": np.zeros((N_FF, N_EMBD), np.float32), "ffn_down": np.zeros((N_EMBD, N_FF), np.float32)}
    with gg.MetaDevice(devices, rules=rules) as meta, gg.Weights(meta, weights) as w, gg.Graph(meta) as g:
        x = g.input("x", ne=(N_EMBD, 8))
        g.output("y", w["ffn_down"] @ (w["ffn_up"] @ x).silu())
        plan = g.plan()
    for device in devices:
        device.release()
    assert len(plan.devices) == 2
    assert plan.achieved_shares("ffn_up") == plan.achieved_shares("ffn_down") == (0.75, 0.25)
    assert plan.share_of_weights() == (0.75, 0.25)
    assert [r.bytes for r in plan.allreduces] == [N_EMBD * 8 * 4]
    assert str(plan["ffn_up"].split) == "S1 192:64"
    assert [str(n.split) for n in plan if n.op == "SILU"] == ["S0 192:64"]
    assert [m.weights for m in plan.memory] == [2 * 192 * 64 * 4, 2 * 64 * 64 * 4]
    assert SplitPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("moe", [False, True])
def test_a_real_model_folds(tmp_path: Any, moe: bool) -> None:
    from pyggml.model import plan_model
    from pyggml.testing import tiny_gguf

    n_layer = 4
    model = tiny_gguf(tmp_path / "model.gguf", "llama", moe=moe, n_layer=n_layer)
    devices = gg.simulated("PLAN", n=2)
    plan = plan_model(model.path, devices, n_tokens=1)
    for device in devices:
        device.release()
    assert len(plan.allreduces) == 2 * n_layer
    assert {r.bytes for r in plan.allreduces} == {model.n_embd * 4}
    assert sum(r.delayed for r in plan.allreduces) == (n_layer if moe else 0)
    assert {name for r in plan.allreduces for name in r.delayed_from} == (
        {f"ffn_moe_down-{k}" for k in range(n_layer)} if moe else set()
    )
    # the last layer picks the tokens that have outputs
    assert [s.layers for s in stretches(plan) if s.layer is not None] == [(0, 1, 2), (3,)]
    assert plan.share_of_weights() == (0.5, 0.5)
    assert plan.achieved_shares("blk.0.ffn_gate_exps.weight" if moe else "blk.0.ffn_gate.weight") == (0.5, 0.5)
    assert plan["blk.0.attn_q.weight"].kind == "weight"  # type: ignore[union-attr]
    assert plan["cache_k_l0"].kind == "fixed"  # type: ignore[union-attr]
    text = plan.table()
    assert "[layers 0-2: 3 x, shown is 0]" in text
    assert ("delayed from ffn_moe_down-0" in text) == moe
    assert SplitPlan.from_json(plan.to_json()) == plan


def test_a_detail_that_there_is_not() -> None:
    plan = plan_of_a_reshape()
    with pytest.raises(gg.ArgumentError, match="layers, nodes, all"):
        plan.table("foo")  # type: ignore[arg-type]


def plan_of_a_reshape() -> SplitPlan:
    with gg.Graph(gg.MetaDevice(gg.simulated("S", n=2))) as graph:
        x = graph.input("x", (8, 4))
        graph.output("y", gg.ops.reshape(gg.ops.sqr(x), (4, 8)) + 1.0)
        return graph.plan()


def test_views_of_nodes_without_names_are_called_by_their_number() -> None:
    """ggml would call the view of something without a name `` (reshaped)``, all of them alike."""
    plan = plan_of_a_reshape()
    assert [(x.name, x.label, x.op) for x in plan.nodes] == [("node_0", "node_0", "SQR"), ("node_1", "node_1", "RESHAPE"), ("y", "y", "SCALE")]
