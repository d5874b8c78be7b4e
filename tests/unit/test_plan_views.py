"""Views of a plan without a browser: tree, pictures of slices, memory bars, notebook, Graphviz, Mermaid, CSV, the page's data."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import pyggml as gg
from pyggml.errors import ArgumentError
from pyggml.plan import PlanKeyError, PlanNode, SplitPlan
from pyggml.plan.diff import PlanDiff
from pyggml.report.content import Content
from pyggml.report.plan_graph import flow
from pyggml.report.plan_rows import rows
from pyggml.split import Segment, SplitState

N_LAYER, N_EMBD, N_FF = 4, 32, 96


def layered(shares: str = "", n_layer: int = N_LAYER, n_devices: int = 2) -> SplitPlan:
    weights = {}
    for k in range(n_layer):
        weights[f"blk.{k}.norm"] = np.ones(N_EMBD, np.float32)
        weights[f"blk.{k}.ffn_up"] = np.zeros((N_FF, N_EMBD), np.float32)
        weights[f"blk.{k}.ffn_down"] = np.zeros((N_EMBD, N_FF), np.float32)
    rules = [gg.rule("ffn_up", f"S1 {shares}"), gg.rule("ffn_down", f"S0 {shares}")]
    with gg.MetaDevice(gg.simulated("SIM", n=n_devices), rules=rules) as meta, gg.Weights(meta, weights) as w, gg.Graph(meta) as g:
        x = g.input("x", ne=(N_EMBD, 4))
        for k in range(n_layer):
            h = (x.rms_norm(1e-5) * w[f"blk.{k}.norm"]).rename(f"ffn_norm-{k}")
            up = (w[f"blk.{k}.ffn_up"] @ h).silu().rename(f"ffn_silu-{k}")
            x = (x + (w[f"blk.{k}.ffn_down"] @ up).rename(f"ffn_out-{k}")).rename(f"l_out-{k}")
        g.output("y", x.scale(2.0))
        return g.plan()


@pytest.fixture(scope="module")
def plan() -> SplitPlan:
    return layered("2:1")


# the content


def test_every_item_is_described_once(plan: SplitPlan) -> None:
    content = Content(plan)
    assert [x.number for x in content.items] == list(range(len(plan.nodes) + len(plan.leafs)))
    assert all(x.name for x in content.items)
    # layers of pieces cover the graph
    assert [i for p in content.pieces for i in range(p.start, p.stop)] == list(range(len(plan.nodes)))
    assert {x.number for of in content.first_read.values() for x in of} == set(range(len(plan.nodes), len(content.items)))
    for m, planned in zip(content.memory, plan.memory, strict=True):
        assert m.total == planned.total and m.parts[1] == planned.mirrored


def test_what_a_split_means_in_words(plan: SplitPlan) -> None:
    content = Content(plan)

    def said(name: str) -> str:
        x = plan[name]
        return content.meaning(content.items[x.index if isinstance(x, PlanNode) else x.index + len(plan.nodes)])

    assert said("ffn_silu-0") == "Split along axis 0 (96 indices): SIM0 has 64, SIM1 has 32."
    assert said("ffn_out-1").startswith("Partial: every device has a summand")
    assert said("l_out-1") == "Mirrored: each device computes all of it."
    assert said("blk.0.norm") == "Mirrored: each device has all of it."


def test_bands_of_segments_and_of_runs(plan: SplitPlan) -> None:
    content = Content(plan)
    leaf = plan["blk.0.ffn_up"]
    item = content.items[len(plan.nodes) + leaf.index]
    assert content.bands(item) == ((0, 0, 64), (1, 64, 32))
    dealt = replace(leaf, split=SplitState(1, (Segment((16, 8), 3), Segment((0, 24)))))
    assert content.bands(replace(item, tensor=dealt)) == ((0, 0, 16), (1, 16, 8), (0, 24, 16), (1, 40, 8), (0, 48, 16), (1, 64, 32))
    runs = replace(leaf, runs=(((48, 16), (0, 48)), ((64, 32),)))
    assert content.bands(replace(item, tensor=runs)) == ((0, 0, 48), (0, 48, 16), (1, 64, 32))


# on a terminal


def test_tree(plan: SplitPlan) -> None:
    text = str(plan.tree())
    assert text.splitlines()[0].startswith("plan over SIM0, SIM1: ")
    assert "layers 0-2 (3 x)" in text and "ffn_out-0" in text and "ffn_out-1" not in text
    assert text.count("Σ all-reduce 512 B, after ffn_out-0") == 1
    assert str(plan.tree(fold=False)).count("Σ all-reduce") == N_LAYER
    assert "MUL_MAT" not in str(plan.tree("layers")) and "all-reduce" in str(plan.tree("layers"))
    everything = str(plan.tree("all", fold=False))
    for x in (*plan.nodes, *plan.leafs):
        assert f" {x.name}  " in everything or f" {x.name} (" in everything, x.name
    with pytest.raises(ArgumentError, match="detail='most'"):
        plan.tree("most")  # type: ignore[arg-type]


def test_picture_of_a_split_tensor(plan: SplitPlan) -> None:
    text = str(plan.picture("ffn_silu-0"))
    (cells,) = re.findall("│([01]+)│", "\n".join(text.splitlines()[:4]))[:1]
    assert cells == "0" * 40 + "1" * 20
    assert "0  SIM0  64x4" in text and "0-63" in text and "64-95" in text
    down = str(plan.picture("blk.1.ffn_up")).splitlines()
    drawn = [line[1] for line in down if line.startswith("│")]
    assert drawn == ["0"] * 8 + ["1"] * 4
    assert str(plan.picture(3)).startswith(plan.nodes[3].name)
    with pytest.raises(PlanKeyError, match="ffn_silu-0"):
        plan.picture("ffn_silu0")


def test_picture_of_whole_and_partial_tensors(plan: SplitPlan) -> None:
    assert "00000000 + 11111111" in str(plan.picture("ffn_out-0"))
    assert "00000000   11111111" in str(plan.picture("l_out-0"))


def test_pictures_are_in_colour_per_device(plan: SplitPlan) -> None:
    out = io.StringIO()
    plan.picture("ffn_silu-0").print(Console(file=out, force_terminal=True, color_system="truecolor", width=100))
    grounds = re.findall(r"48;2;(\d+;\d+;\d+)m0", out.getvalue()), re.findall(r"48;2;(\d+;\d+;\d+)m1", out.getvalue())
    assert set(grounds[0]) == {"60;112;214"} and set(grounds[1]) == {"18;136;124"}
    assert "background:#3c70d6" in plan.picture("ffn_silu-0")._repr_html_()


def test_memory_bars(plan: SplitPlan) -> None:
    lines = str(plan.memory_bars(40)).splitlines()
    bars = [re.sub("[^█▓▒░▪]", "", line) for line in lines[:4:2]]
    # the same scale; what there is is seen, however little
    assert len(bars[0]) == 40
    assert len(bars[1]) == round(40 * plan.memory[1].total / plan.memory[0].total)
    for bar, m in zip(bars, Content(plan).memory, strict=True):
        for shade, n in zip("█▓▒░▪", m.parts, strict=True):
            assert (shade in bar) == (n > 0)


# for other programs


def test_csv_says_everything(plan: SplitPlan, tmp_path: Path) -> None:
    text = plan.to_csv(tmp_path / "plan.csv")
    assert (tmp_path / "plan.csv").read_bytes() == text.encode()
    lines = list(csv.DictReader(io.StringIO(text)))
    tensors = [*plan.nodes, *plan.leafs]
    assert len(lines) == len(tensors)
    for k, (line, x) in enumerate(zip(lines, tensors, strict=True)):
        assert (int(line["number"]), line["name"], line["op"], line["type"], int(line["bytes"])) == (k, x.name, x.op, x.type, x.bytes)
        assert tuple(int(line[f"ne{a}"]) for a in range(4)) == x.ne
        assert line["split"] == ("" if x.split is None else str(x.split))
        for d, s in zip(plan.devices, x.slices, strict=True):
            assert (line[f"{d} ne"], line[f"{d} bytes"]) == ("x".join(map(str, s.ne)), str(s.bytes))
        if isinstance(x, PlanNode):
            assert tuple(map(int, line["sources"].split())) == x.sources
    assert sum(int(line["all-reduce bytes"] or 0) for line in lines) == plan.allreduce_bytes


def test_names_with_commas_and_lines_survive_csv(plan: SplitPlan) -> None:
    name = 'a,"b"\n;c'
    changed = replace(plan, nodes=(replace(plan.nodes[0], name=name), *plan.nodes[1:]))
    assert next(csv.DictReader(io.StringIO(changed.to_csv())))["name"] == name


@pytest.mark.parametrize("detail", ["layers", "nodes", "all"])
def test_a_flow_has_the_edges_of_the_graph(plan: SplitPlan, detail: Any) -> None:
    found = flow(plan, detail, False)
    keys = [v.key for _, vertices in found.groups for v in vertices]
    assert len(keys) == len(set(keys))
    assert {k for edge in found.edges for k in edge} <= set(keys)
    if detail == "layers":
        assert found.edges == tuple((f"p{k}", f"p{k + 1}") for k in range(len(keys) - 1))
        return
    n = len(plan.nodes)
    reduced = {r.after for r in plan.allreduces}
    wanted = {(f"r{s}" if s in reduced else f"n{s}", f"n{x.index}") for x in plan for s in x.sources if s < n or detail == "all"}
    assert set(found.edges) == wanted | {(f"n{i}", f"r{i}") for i in reduced}


def test_a_folded_layer_is_represented_by_the_one_that_is_shown(plan: SplitPlan) -> None:
    edges = set(flow(plan, "nodes", True).edges)
    # what reads the last of the equal layers reads the shown one
    assert (f"n{plan['node_6'].index}", f"n{plan['ffn_norm-3'].index}") in edges
    assert all(int(a[1:]) < int(b[1:]) or a[1:] == b[1:] for a, b in edges)


def test_graphviz(plan: SplitPlan) -> None:
    text = plan.to_dot("all")
    assert text.startswith("digraph plan {") and 'label="layers 0-2 (3 x)"' in text
    nasty = replace(plan, nodes=(replace(plan.nodes[0], name='"];evil [label="\\', label=""), *plan.nodes[1:]))
    dot = shutil.which("dot")
    for one in (text, plan.to_dot(), plan.to_dot("layers", fold=False), nasty.to_dot()):
        # no quote is left open, escaped ones aside
        assert all(re.sub(r'\\\\|\\"', "", line).count('"') % 2 == 0 for line in one.splitlines())
        if dot:
            svg = subprocess.run([dot, "-Tsvg"], input=one, capture_output=True, text=True, check=True)
            assert svg.stderr == "" and svg.stdout.count('class="node"') == len(re.findall(r"^ +[nrp]\d+ \[", one, re.M))


def test_mermaid(plan: SplitPlan) -> None:
    assert plan.to_mermaid().splitlines()[:3] == ["flowchart TD", '  p0["node_0<br>1 node: M 1"]', '  p1["layers 0-2 #40;3 x#41;<br>6 nodes: M 3, P 1, S0 2<br>Σ 1 all-reduce, 512 B"]:::sum']
    text = plan.to_mermaid("nodes")
    assert '  subgraph g1["layers 0-2 #40;3 x#41;"]' in text and "{{" in text
    nasty = replace(plan, nodes=(replace(plan.nodes[0], name='<b>"x"</b>; end `y` #35;', label=""), *plan.nodes[1:]))
    label = next(line for line in nasty.to_mermaid("nodes").splitlines() if line.strip().startswith("n0["))
    assert "#60;b#62;#34;x#34;#60;/b#62;#59; end #96;y#96; #35;35#59;" in label


class _Text(html.parser.HTMLParser):
    """The text of a page, and its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_notebook(plan: SplitPlan) -> None:
    found = _Text(plan._repr_html_())
    for row in rows(plan, "nodes", True):
        if row.kind == "node":
            assert all(cell in found.words for cell in row.cells[:7] if cell)
        elif row.kind == "reduce":
            assert f"Σ {row.cells[0]}" in found.words
    assert not any(tag in ("script", "link", "img") for tag, _ in found.tags)
    nasty = replace(plan, nodes=(replace(plan.nodes[0], name="<script>x</script>", label=""), *plan.nodes[1:]))
    assert "<script" not in nasty._repr_html_()


def test_a_notebook_of_a_large_plan_stays_small() -> None:
    plan = layered(n_layer=80)
    # no layer is like another
    nodes = tuple(replace(x, op=f"OP{x.index}") for x in plan.nodes)
    text = replace(plan, nodes=nodes)._repr_html_()
    assert "has them" in text and len(text) < 60_000


# the page


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert "<" not in text and ">" not in text and "&" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_page_is_one_file(plan: SplitPlan, tmp_path: Path) -> None:
    page = plan.to_html(tmp_path / "plan.html", title="a <title> & more")
    assert (tmp_path / "plan.html").read_text("utf-8") == page
    found = _Text(page)
    for tag, attributes in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form") or attributes.get("method") == "dialog"
        assert not {"src", "srcset", "action", "onclick", "onload"} & set(attributes)
        assert tag != "a" or (attributes["href"] or "").startswith("#")
    assert "url(" not in page and "@import" not in page and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "a <title> & more" in found.words
    # scripts that are not ours are not run
    (policy,) = [a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy and re.search(r"script-src 'sha256-[\w+/]+=+'", policy)
    assert plan.to_html() == plan.to_html(), "the same plan, the same page"


def test_the_pages_data(plan: SplitPlan) -> None:
    d = data_of(plan.to_html())
    strings, columns, n = d["strings"], d["cols"], len(plan.nodes)
    tensors = [*plan.nodes, *plan.leafs]
    assert [strings[k] for k in columns["name"]] == [x.name for x in tensors]
    assert columns["bytes"] == [x.bytes for x in tensors]
    assert [tuple(s) for s in columns["src"]] == [x.sources for x in plan.nodes]
    assert {int(k): r["bytes"] for k, r in d["reduces"].items()} == {r.after: r.bytes for r in plan.allreduces}
    assert [[s[1] for s in d["slices"][k]] for k in columns["slices"]] == [[s.bytes for s in x.slices] for x in tensors]
    # equal layers say the same: their words are there once
    said = [strings[d["why"]["text"][plan[f"ffn_out-{k}"].index]] for k in range(N_LAYER)]
    assert len(set(said)) == 1
    assert said[0].replace("\x01", "2") == plan.explain("ffn_out-2").steps[0].text
    assert len(d["pieces"]) == len(Content(plan).pieces) and d["n"] == n


def test_names_that_are_no_unicode_text(plan: SplitPlan, tmp_path: Path) -> None:
    # bytes of a GGUF that are no UTF-8
    broken = replace(plan, nodes=(replace(plan.nodes[0], name="a\udcffb", label=""), *plan.nodes[1:]))
    broken.to_html(tmp_path / "plan.html", title="t\udcff")
    assert data_of((tmp_path / "plan.html").read_text("utf-8"))
    broken.to_csv(tmp_path / "plan.csv")


# what a graph ends with


def two_branches(up: str, down: str) -> SplitPlan:
    """Two partial results, added last."""
    weights = {n: np.zeros(s, np.float32) for n, s in {"up_a": (64, 32), "up_b": (64, 32), "down_a": (32, 64), "down_b": (32, 64)}.items()}
    rules = [gg.rule("up", up), gg.rule("down", down)]
    with gg.MetaDevice(gg.simulated("SIM", n=2), rules=rules) as meta, gg.Weights(meta, weights) as w, gg.Graph(meta) as g:
        x = g.input("x", ne=(32, 4))
        a, b = ((w[f"down_{n}"] @ (w[f"up_{n}"] @ x)).rename(n) for n in "ab")
        g.output("y", a + b)
        return g.plan()


def test_a_sum_that_the_graph_ends_before_is_shown_as_one() -> None:
    plan = two_branches("S1", "S0")
    content = Content(plan)
    y = plan["y"]
    assert not plan.allreduces and y.pending and content.items[y.index].split == "(P)"
    assert plan.explain("y").text == (
        "`y` is a summand on every device because ADD works on `a` (partial) and `b` (partial), before the devices' summands are added up; "
        "no all-reduce follows: whoever reads it adds up the devices' summands"
    )
    assert "no all-reduce follows" in plan.explain("a").text and not plan.explain("y").sums
    assert all("graph ends before an all-reduce" in content.meaning(content.items[plan[n].index]) for n in "aby")
    out = io.StringIO()
    plan.render(Console(file=out, width=120))
    for text in (plan.table(), out.getvalue()):
        assert "(P): a sum that no all-reduce completes" in text and "further down" not in text
    assert "(P): a sum that no all-reduce completes" in plan._repr_html_() and "(P):" not in layered()._repr_html_()
    assert SplitPlan.from_json(plan.to_json()) == plan
    assert plan.check().ok, "what is read is right"


def test_one_device_alone_has_a_summand() -> None:
    plan = layered("1:0")
    assert plan.explain("ffn_out-0").text.endswith("summed after it: 512 bytes x 1 device")


def test_nothing_is_called_whole_on_every_device_and_on_none() -> None:
    plan = layered()
    leaf = replace(plan.leafs[0], split=None, slices=())
    text = replace(plan, leafs=(leaf, *plan.leafs[1:])).explain(leaf.name).text
    assert text == f"`{leaf.label}` is on no device: it is empty, or the host's"


def test_what_repeats_does_not_work_element_by_element() -> None:
    with gg.MetaDevice(gg.simulated("SIM", n=2), rules=[("w", "S1")]) as meta, gg.Weights(meta, {"w": np.zeros((64, 32), np.float32)}) as w, gg.Graph(meta) as g:
        h = w["w"] @ g.input("x", ne=(32, 4))
        g.output("y", gg.ops.repeat(h, g.input("like", ne=(64, 8))))
        assert g.plan().explain("y").text.startswith("`y` is split S0 32:32 because each device repeats its own part: ")


def test_many_stretches_of_layers_are_shortened() -> None:
    from pyggml.report.content import layers_words

    assert layers_words((3,)) == "layer 3" and layers_words(tuple(range(80))) == "layers 0-79"
    assert layers_words((0, 3, 4, 7, 8, 11)) == "layers 0, 3, 4, 7, 8, 11"
    assert layers_words((0, 3, 4, 7, 8, 11, 12, 15, 16)) == "layers 0, 3, 4, … 16"
    assert layers_words((1, 5, 9, 13, 17)) == "layers 1, 5, 9, … 17"


# what is asked wrongly


@pytest.mark.parametrize("what", [None, 1.5, b"y", object(), [1]])
def test_what_is_no_name_and_no_index_is_said(plan: SplitPlan, what: Any) -> None:
    for ask in (plan.explain, plan.picture, plan.__getitem__):
        with pytest.raises(ArgumentError, match="expected a name or the index of a node"):
            ask(what)
    assert what not in plan


@pytest.mark.parametrize("index", [10**9, -(10**9)])
def test_an_index_beyond_the_nodes_is_said(plan: SplitPlan, index: int) -> None:
    for ask in (plan.explain, plan.picture, plan.__getitem__):
        with pytest.raises(PlanKeyError, match=f"no node {index}: it has {len(plan)}"):
            ask(index)


def test_tensors_of_another_plan_are_not_explained(plan: SplitPlan) -> None:
    other = layered("1:1", n_layer=6)
    for x in (other.nodes[0], other.nodes[-1], other.leafs[-1]):
        for ask in (plan.explain, plan.picture):
            with pytest.raises(PlanKeyError, match="is of another plan"):
                ask(x)
    assert str(plan.picture(plan.nodes[3])) == str(plan.picture(3))


def test_a_trace_that_is_none_is_said(plan: SplitPlan) -> None:
    with pytest.raises(ArgumentError, match="expected a Trace, got str"):
        plan.to_html(trace="trace.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("read", [SplitPlan.from_json, PlanDiff.from_json, gg.Trace.from_json])
def test_json_that_is_too_deep_is_refused(read: Any) -> None:
    with pytest.raises(gg.FileFormatError, match="not JSON"):
        read("[" * 100_000)


@pytest.mark.parametrize(
    "memory, said",
    [
        ({"SIM0": 1, "SIM9": 1}, "memory of SIM9: the plan's devices are SIM0, SIM1"),
        ([1], "memory of 1 device, the plan has 2"),
        (5, "expected bytes by device, or a list"),
        ("24", "expected bytes by device, or a list"),
        ([None, 5], "memory of SIM0: None: expected a number of bytes"),
        ([float("nan"), 5], "memory of SIM0: nan: expected a number of bytes"),
        ([5, -1], "memory of SIM1: -1: expected a number of bytes"),
    ],
)
def test_memory_that_is_none_is_said(plan: SplitPlan, memory: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        plan.check(memory)


def test_memory_of_one_device_or_of_none(plan: SplitPlan) -> None:
    assert plan.check({"SIM1": 24e9}).ok and plan.check([0, 0]).ok
    assert [v.node for v in plan.check({"SIM1": 1}).violations] == ["SIM1"]


@pytest.mark.parametrize("width", [0, -1, 1.5, "x", 10**6])
def test_bars_have_a_width(plan: SplitPlan, width: Any) -> None:
    with pytest.raises(ArgumentError, match="memory_bars"):
        plan.memory_bars(width)


def test_a_later_graph_that_reads_a_summand_is_a_violation() -> None:
    from pyggml.plan import Subgraph

    plan = two_branches("S1", "S0")
    y = plan["y"]
    assert isinstance(y, PlanNode)
    later = replace(y, index=y.index + 1, name="z", label="z", op="SILU", sources=(y.index,), subgraph=1, pending=False)
    leafs = tuple(range(len(plan.nodes), len(plan.nodes) + len(plan.leafs)))
    nodes = [replace(x, sources=tuple(s + 1 if s in leafs else s for s in x.sources)) for x in plan.nodes]
    n = len(nodes)
    longer = replace(plan, nodes=(*nodes, later), subgraphs=(*plan.subgraphs, Subgraph(n, n + 1, 1)))
    (violation,) = longer.check().violations
    assert violation.node == "y" and "a later graph reads what one device has of it" in violation.reason
