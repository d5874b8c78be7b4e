"""Rules as data: out of a plan, into a file, and back."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import pyggml as gg
from pyggml.testing import ZOO, tiny_gguf

RULES = (
    gg.rule("ffn_(up|gate)", "S1 3:1"),
    gg.rule(r"^blk\.0\.\"odd\"", "S0", granularity=2, units=12),
    gg.rule("fused", "S1[256,64x2] 1:2"),
    gg.rule("exact", gg.SplitState(1, (gg.Segment((192, 64)), gg.Segment((3, 5), 2)))),
    gg.rule("", "M"),
)
KINDS = ["rules.json", *(["rules.toml"] if sys.version_info >= (3, 11) else [])]


@pytest.mark.parametrize("name", KINDS)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    gg.save_rules(tmp_path / name, RULES)
    assert gg.load_rules(tmp_path / name) == RULES
    assert gg.rules_from_json(gg.rules_to_json(RULES)) == RULES


@pytest.mark.parametrize("arch", ["llama", "qwen35", "phi3", "deepseek2"])
def test_llama_cpps_policy_as_data(tmp_path: Path, arch: str) -> None:
    """Read, given back, and changed."""
    model = tiny_gguf(tmp_path / "m.gguf", arch, shares=((3, 1),), n_layer=4 if arch == "llama" else None)
    options = gg.ModelOptions("tensor", (3.0, 1.0))
    plan = gg.plan_model(model, "vcpu:2", options=options)
    rules = plan.split_rules()
    assert len(rules) < len([leaf for leaf in plan.leafs if leaf.kind in ("weight", "fixed")])
    gg.save_rules(tmp_path / "policy.json", rules)
    again = gg.load_rules(tmp_path / "policy.json")
    # other shares were asked for: the rules decide, so nothing changes
    same = gg.plan_model(model, "vcpu:2", rules=again, options=gg.ModelOptions("tensor", (1.0, 1.0)))
    assert same.nodes == plan.nodes and same.allreduces == plan.allreduces and same.memory == plan.memory
    changed = [gg.rule(r.pattern, "M") if "ffn" in r.pattern else r for r in again]
    assert len(gg.plan_model(model, "vcpu:2", rules=changed, options=options).allreduces) < len(plan.allreduces)


def test_the_policy_of_a_model(tmp_path: Path) -> None:
    """`Model.split_rules`: saved, given back, the same model; changed, another one."""
    model = tiny_gguf(tmp_path / "m.gguf", shares=((3, 1),))
    options = {"split_mode": "tensor", "n_ctx": 64, "type_k": "f32", "type_v": "f32", "attn_f32": True}
    with gg.Model(model, "vcpu:2", tensor_split=(3, 1), **options) as one:
        rules, want, splits = one.split_rules(), one.logits([1, 2, 3]), one.weight_splits()
    assert {gg.Split.parse("S0").axis, 1} <= {r.split.axis for r in rules}  # type: ignore[union-attr]
    gg.save_rules(tmp_path / "r.json", rules)
    with gg.Model(model, "vcpu:2", rules=gg.load_rules(tmp_path / "r.json"), **options) as again:  # even shares: the rules decide
        assert again.weight_splits() == splits and (again.logits([1, 2, 3]) == want).all()
    changed = [gg.rule("ffn", "M"), *rules]
    with gg.Model(model, "vcpu:2", rules=changed, **options) as other:
        assert other.weight_splits() != splits and gg.nmse(other.logits([1, 2, 3]), want) <= 1e-9
    with gg.Model(model, "vcpu:1") as bare, pytest.raises(gg.UnsupportedError, match="nothing is split"):
        bare.split_rules()


@pytest.mark.parametrize("layers, found", [(1, {1}), ("1", {1}), (range(1, 3), {1, 2}), ([0, 3], {0, 3}), ("0,2-3", {0, 2, 3}), ("10-12", set())])
def test_layers(tmp_path: Path, layers: object, found: set[int]) -> None:
    """Only in these, caches as well; layer 1 is not layer 10."""
    model = tiny_gguf(tmp_path / "m.gguf", n_layer=4, shares=((1, 1),))
    rules = [gg.rule("ffn_", "M", layers=layers)]  # type: ignore[arg-type]
    if not found:
        with pytest.raises(gg.ArgumentError, match="no tensor"):
            gg.plan_model(model, "vcpu:2", rules=rules)
        return
    gg.save_rules(tmp_path / "r.json", rules)
    for given in (rules, gg.load_rules(tmp_path / "r.json")):
        plan = gg.plan_model(model, "vcpu:2", rules=given)
        whole = {leaf.name for leaf in plan.leafs if leaf.kind == "weight" and leaf.split is not None and leaf.split.axis == "M" and "ffn_down" in leaf.name}
        assert whole == {f"blk.{i}.ffn_down.weight" for i in found}
    one = gg.rule("^cache_k", "M", layers=1)
    assert [n for n in ("cache_k_l1", "cache_k_l10", "cache_k_l11", "cache_v_l1", "blk.1.attn_k") if re.search(one.pattern, n)] == ["cache_k_l1"]
    rule = gg.rule("ffn|attn$", "M", layers=1)
    assert [n for n in ("blk.1.ffn_up", "blk.10.ffn_up", "blk.1.attn", "blk.0.attn", "blk.1.attn_q") if re.search(rule.pattern, n)] == ["blk.1.ffn_up", "blk.1.attn"]


@pytest.mark.parametrize("layers", ["", "x", "3-1", "1-", -1, [], [-1], 1.5, [None], "1;2", range(20000)])
def test_layers_that_are_none(layers: object) -> None:
    with pytest.raises(gg.ArgumentError, match="numbers of layers"):
        gg.rule("ffn", "M", layers=layers)  # type: ignore[arg-type]


def test_functions_cannot_be_saved() -> None:
    with pytest.raises(gg.ArgumentError, match="'w' is a function"):
        gg.rules_to_json([gg.rule("w", lambda t: "M")])


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not JSON"), ("5", "list of rules"), ('{"rule": 5}', "list of rules"), ('{"schema": "x/2"}', "x/2"),
        ('{"rule": [5]}', "rule 0: found a int"), ('{"rule": [{"pattern": "a"}]}', "'split' is missing"),
        ('{"rule": [{"pattern": "a", "split": "S9"}]}', "S9"), ('{"rule": [{"pattern": "(", "split": "M"}]}', "regular expression"),
        ('{"rule": [{"pattern": "a", "split": "M", "shares": 1}]}', "no 'shares'"), ('{"rule": [{"pattern": "a", "split": 3}]}', "split = 3"),
        ('{"rule": [{"pattern": "a", "split": {"axis": 1}}]}', "no split state"), ('{"rule": [{"pattern": "a", "split": {"axis": 7, "segments": []}}]}', "axes are"),
        ('{"rule": [{"pattern": "a", "split": "M", "layers": "x"}]}', "numbers of layers"), ('{"rule": [{"pattern": 5, "split": "M"}]}', "regular expression"),
        ('{"rule": [{"pattern": "a", "split": "M", "units": "x"}]}', "units = 'x'"), ('{"rule": [{"pattern": "a", "split": "M", "granularity": 0}]}', "at least 1"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(gg.FileFormatError, match=words):
        gg.rules_from_json(text)
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(gg.FileFormatError, match=r"r\.json"):
        gg.load_rules(tmp_path / "r.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(gg.ModelNotFoundError):
        gg.load_rules(tmp_path / "none.json")


def test_the_policy_of_every_architecture_as_rules(tmp_path: Path) -> None:
    """Given back, also without the shares, they make the same plan. llama.cpp renames some caches within graphs, and has some of odd names."""
    for name, arch in ZOO.items():
        if not arch.runs:
            continue
        tiny = tiny_gguf(tmp_path / "m.gguf", name, shares=((3, 1),))
        first = gg.plan_model(tiny, "vcpu:2", options=gg.ModelOptions("tensor", tensor_split=(3.0, 1.0)))
        again = gg.plan_model(tiny, "vcpu:2", rules=first.split_rules())
        assert [(x.name, x.split) for x in (*first.nodes, *first.leafs)] == [(x.name, x.split) for x in (*again.nodes, *again.leafs)], name
