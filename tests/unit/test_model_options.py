"""Options and rules of models, and what is said of them before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyggml as gg
from pyggml.testing import TinyModel, tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return tiny_gguf(tmp_path_factory.mktemp("options") / "tiny.gguf", shares=((1, 1), (3, 1)))


def test_rules_that_match_nothing_are_all_named(tiny: TinyModel) -> None:
    rules = [gg.rule("ffn_upp", "M"), gg.rule("ffn_down", "M"), gg.rule("atn_q", "M")]
    for make in (lambda: gg.Model(tiny, "vcpu:2", split_mode="tensor", rules=rules), lambda: gg.plan_model(tiny, "vcpu:2", rules=rules)):
        with pytest.raises(gg.ArgumentError) as caught:
            make()
        said = str(caught.value)
        assert "'ffn_upp'" in said and "'atn_q'" in said and "'ffn_down'" not in said
        assert "ffn_up.weight" in said and "attn_q.weight" in said, "similar names are missing"


def test_rules_may_be_about_caches_alone(tiny: TinyModel) -> None:
    """Mirrored caches alone are illegal, but that is said about the node: the names are right."""
    with pytest.raises(gg.SplitError, match="cache_k_l0"):
        gg.plan_model(tiny, "vcpu:2", rules=[gg.rule("cache_k", "M")])


def test_rules_outside_of_tensor_mode(tiny: TinyModel) -> None:
    meta = gg.MetaDevice("vcpu:2", [("ffn", "M")])
    for arguments in ({"rules": [("ffn", "M")]}, {"device": meta, "split_mode": "none"}, {"device": meta, "split_mode": "layer"}):
        with pytest.raises(gg.ArgumentError, match="tensor"):
            gg.Model(tiny, **arguments)  # type: ignore[arg-type]


def test_rules_as_an_argument_stand_in_front_of_the_meta_device(tiny: TinyModel) -> None:
    meta = gg.MetaDevice("vcpu:2", [("ffn_(up|gate)", "S1 1:3"), ("ffn_down", "S0 1:3")])
    mine = [("ffn_(up|gate)", "S1 3:1"), ("ffn_down", "S0 3:1")]
    with gg.Model(tiny, meta, rules=mine) as model:
        assert model.decisions["blk.0.ffn_up.weight"].achieved_shares == (0.75, 0.25)
        assert model.plan().achieved_shares("blk.0.ffn_up.weight") == (0.75, 0.25)


def test_a_device_twice(tiny: TinyModel) -> None:
    with pytest.raises(gg.ArgumentError, match="VCPU0 is named twice"):
        gg.Model(tiny, [*gg.virtual_cpus(1), *gg.virtual_cpus(1)], split_mode="tensor")


def test_caches_that_heads_do_not_come_out_even_in(tiny: TinyModel) -> None:
    assert tiny.head_dim == 32
    for option in ("type_k", "type_v"):
        with pytest.raises(gg.DTypeError, match=rf"{option}='q4_K'.* 256 .* 32 elements.*q8_0 too"):
            gg.Model(tiny, **{option: "q4_K"})  # type: ignore[arg-type]
    with pytest.raises(gg.DTypeError, match="type_k: unknown"):
        gg.Model(tiny, type_k="f17")


def test_what_does_not_fit_is_said_for_every_device(tiny: TinyModel) -> None:
    roomy = gg.simulated("ROOMY", n=2, comm=False)
    whole = gg.plan_model(tiny, roomy, options=gg.ModelOptions("tensor", (3, 1)))
    assert all(m.reduction for m in whole.memory)
    need = [m.total for m in whole.memory]
    for memory, fits in ((max(need), [True, True]), (max(need) - 1, [False, True]), (min(need) - 1, [False, False])):
        devices = gg.simulated("TIGHT", n=2, memory=memory, comm=False)
        if all(fits):
            assert gg.plan_model(tiny, devices, options=gg.ModelOptions("tensor", (3, 1))).memory[0].total == need[0]
            continue
        with pytest.raises(gg.OutOfMemoryError) as caught:
            gg.plan_model(tiny, devices, options=gg.ModelOptions("tensor", (3, 1)))
        lines = str(caught.value).splitlines()
        for j, fit in enumerate(fits):
            (line,) = [x for x in lines if x.strip().startswith(f"TIGHT{j} needs")]
            assert line.endswith("enough" if fit else "too little")
        assert caught.value.plan is not None and [m.total for m in caught.value.plan.memory] == need
        # the devices are as good as before
        assert [d.stats().buffer_bytes for d in devices] == [0, 0]


def test_shares_that_granularity_took_away(tiny: TinyModel, tmp_path: Path) -> None:
    fits = gg.plan_model(tiny, "vcpu:2", options=gg.ModelOptions("tensor", (3, 1)))
    assert fits.missed_shares() == () and "granularity" not in str(fits)
    odd = gg.plan_model(tiny, "vcpu:2", options=gg.ModelOptions("tensor", (5, 2)))
    names = {leaf.name for leaf in odd.missed_shares()}
    assert {"blk.0.ffn_up.weight", "blk.1.attn_q.weight"} <= names
    for leaf in odd.missed_shares():
        assert leaf.asked == (5 / 7, 2 / 7) and odd.achieved_shares(leaf.name) != leaf.asked
    assert "blk.N.ffn_up.weight" in odd.summary() and "71.4 % : 28.6 %" in odd.summary()


def test_shares_of_a_graph_that_granularity_took_away() -> None:
    meta = gg.MetaDevice("vcpu:2", [gg.rule("^w$", "S1 3:1", granularity=16)])
    with gg.Weights.empty(meta, {"w": (gg.as_dtype("f32"), (8, 32))}) as weights, gg.Graph(meta) as graph:
        graph.output("y", weights["w"] @ graph.input("x", (8, 2)))
        (leaf,) = graph.plan().missed_shares()
        assert leaf.name == "w" and leaf.asked == (0.75, 0.25) and graph.plan().achieved_shares("w") in ((0.5, 0.5), (1.0, 0.0))


@pytest.mark.parametrize(
    ("split", "shares"),
    [
        (gg.SplitState(1, (gg.Segment((10, 6), 2),)), (0.625, 0.375)),  # written "S1 [10:6 x2]", which is no even split
        (gg.SplitState(1, (gg.Segment((12, 4)), gg.Segment((8, 8)))), (0.625, 0.375)),
        (gg.SplitState(1, (gg.Segment((24, 8)),)), (0.75, 0.25)),
        (gg.Split(1, (1e-5, 1.0)), (1e-5 / (1 + 1e-5), 1 / (1 + 1e-5))),  # written "S1 1e-05:1"
        (gg.Split(1, (1.0, 1e6)), (1 / (1 + 1e6), 1e6 / (1 + 1e6))),
    ],
    ids=str,
)
def test_shares_that_were_asked_for_are_known(split: gg.Split | gg.SplitState, shares: tuple[float, float]) -> None:
    meta = gg.MetaDevice("vcpu:2", [gg.rule("^w$", split)])
    with gg.Weights.empty(meta, {"w": (gg.as_dtype("f32"), (8, 32))}):
        assert meta.decisions["w"].asked_shares == pytest.approx(shares, rel=1e-9)


def test_the_cpu_beside_other_devices(tiny: TinyModel) -> None:
    for device in ("CPU,vcpu:1", [gg.cpu(), *gg.virtual_cpus(1)], gg.MetaDevice([gg.cpu(), *gg.virtual_cpus(1)])):
        with pytest.raises(gg.ArgumentError, match=r"cannot split a model over CPU.*vcpu:1"):
            gg.Model(tiny, device, split_mode="tensor")


def test_a_cache_that_llama_cpp_has_no_rule_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyggml.model.options.arch_rules", lambda info: ())
    with pytest.raises(gg.SplitError) as caught:
        gg.Model(tiny_gguf(tmp_path / "m.gguf", "rwkv7"), "vcpu:2", split_mode="tensor")
    assert caught.value.node == "cache_r_l0" and "cache_r_l0=M" in str(caught.value.repair)


def test_legal_shares_are_named(tmp_path: Path) -> None:
    """Head counts, blocks of the format, divisors; each share that is named is one that a model takes."""
    model = tiny_gguf(tmp_path / "m.gguf", "llama", dtype="q4_K", n_head=4, n_head_kv=2, head_dim=128, n_ff=1024)
    rules = [
        gg.rule(r"blk\.0\.attn_q\.", "S1", units=3), gg.rule(r"blk\.1\.attn_output", "S0 1:2:3"), gg.rule(r"blk\.0\.ffn_up", "S1", granularity=7),
        gg.rule(r"blk\.1\.ffn_down", gg.SplitState(0, (gg.Segment((600, 424)),))),
    ]  # fmt: skip
    found = {v.node: v.repairs[-1].text for v in gg.check_model(model, "vcpu:2", rules=rules) if v.kind == "rule"}
    assert found == {
        "blk.0.attn_q.weight": "S1 in steps of 256 (2 KV heads of 256), such as S1 256:256; units divides 512, such as units=2",
        "blk.1.attn_output.weight": "S0 in steps of 256 (blocks of 256, q4_K; 2 KV heads of 256), such as S0 256:256",
        "blk.0.ffn_up.weight": "S1 in steps of 1, such as S1 512:512; granularity divides 1024, such as granularity=4",
        "blk.1.ffn_down.weight": "S0 in steps of 256 (blocks of 256, q4_K), such as S0 512:512",
    }
    named = [gg.rule(r"blk\.0\.attn_q\.", "S1", units=2), gg.rule(r"blk\.1\.attn_output", "S0"), gg.rule(r"blk\.0\.ffn_up", "S1", granularity=4)]
    named.append(gg.rule(r"blk\.1\.ffn_down", gg.SplitState(0, (gg.Segment((512, 512)),))))
    assert gg.check_model(model, "vcpu:2", rules=named)
    report = gg.check_model(model, "vcpu:3", rules=[gg.rule(r"attn_output", gg.SplitState(0, (gg.Segment((200, 200, 112)),)))])
    assert "cannot be shared by 3 devices: another axis, or M" in str(report)


def test_all_rules_that_do_not_fit_are_named_at_once(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tensor cannot have and what only the graph shows, in one message, before llama.cpp loads the model."""
    rules = [("ffn_up", "S1 1:2:3"), ("attn_q", "S2"), gg.rule("attn_k", "S1", units=5), ("ffn_down", "S0[100] 1:1"), ("attn_output", "M")]
    monkeypatch.setattr("pyggml.model.model.LoadedModel", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(gg.SplitError) as caught:
        gg.Model(tiny, "vcpu:2", split_mode="tensor", rules=rules)
    found = {v.node: str(v) for v in caught.value.violations}
    for layer in range(tiny.n_layer):
        for name, words in (("ffn_up", "3 shares for 2 devices"), ("attn_q", "axis 2 has one element"), ("attn_k", "5 equal units"), ("ffn_down", "add up to 100")):
            assert words in found[f"blk.{layer}.{name}.weight"] and "legal repair" in found[f"blk.{layer}.{name}.weight"]
    with pytest.raises(gg.SplitError) as caught:
        gg.Model(tiny, "vcpu:2", split_mode="tensor", tensor_split=(3, 1), rules=[("ffn_down", "M"), ("attn_q.weight", "S1 1:3")])
    said = str(caught.value)
    assert {v.op for v in caught.value.violations} == {"FLASH_ATTN_EXT", "MUL_MAT"} and len(caught.value.violations) == 2 * tiny.n_layer
    for words in ("attn_q.weight (layers 0, 1) as S1 192:64 (tried)", "ffn_down.weight (layers 0, 1) as S0 384:128 (tried)", "your rule 1, 'ffn_down': M", "your rule 2"):
        assert words in said, said
    with pytest.raises(gg.SplitError) as planned:
        gg.plan_model(tiny, "vcpu:2", rules=[("ffn_down", "M"), ("attn_q.weight", "S1 1:3")], options=gg.ModelOptions("tensor", (3.0, 1.0)))
    assert len(planned.value.violations) == 2 * tiny.n_layer


@pytest.mark.parametrize(
    "device, given, mode, names",
    [
        (None, None, "none", []),
        ("vcpu:1", None, "none", ["VCPU0"]),
        ("vcpu:2", None, "tensor", ["VCPU0", "VCPU1"]),  # whoever names two wants them used
        ("vcpu:2", "none", "none", ["VCPU0"]),  # and none takes the first
        ("vcpu:2", "layer", "layer", ["VCPU0", "VCPU1"]),
    ],
)
def test_the_split_mode_of_so_many_devices(tmp_path: Path, device: str | None, given: str | None, mode: str, names: list[str]) -> None:
    with gg.Model(tiny_gguf(tmp_path / "m.gguf", shares=((1, 1),)), device, split_mode=given, n_ctx=32, threads=1) as model:
        assert (model.options.split_mode, [d.name for d in model.devices]) == (mode, names)
        assert all(name in repr(model) for name in names)


def test_a_model_that_does_not_fit_says_what_each_device_needs(tiny: TinyModel) -> None:
    with pytest.raises(gg.OutOfMemoryError, match=r"a needs .* has 6\.0 MiB.*\n.*b needs .* has 512\.0 KiB: .* too little") as caught:
        gg.Model(tiny, "sim:a@6MiB,sim:b@512KiB")
    assert caught.value.plan is not None and [m.capacity for m in caught.value.plan.memory] == [6 << 20, 512 << 10]
    assert "bytes asked for" in str(caught.value.__cause__), "what the device said"
