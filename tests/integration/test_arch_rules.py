"""Architectures that llama.cpp refuses to split, or splits in a way that cannot work, with the rules that this library has for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pyggml as gg
from pyggml._ffi import lib
from pyggml.gguf_check import check_gguf
from pyggml.model.arch_rules import ARCH_RULES, arch_rules
from pyggml.testing import ZOO, tiny_gguf
from pyggml.testing.exact import exact_gelu
from pyggml.testing.verify import verify_arch

CASES = [(name, moe) for name in ARCH_RULES for moe in ZOO[name].variants]
# at most 1e-12 in all of them, as GELU is computed by its formula here
TOLERANCE = 1e-11
# Everything but the output is whole on every device; their own file may have no output matrix at all.
NOT_SPLIT = {"mamba", "mamba2", "bitnet"}
UNEVEN = {"stablelm", "talkie", "qwen3next"}  # llama.cpp's own rules work where heads come out even
UPSTREAM_REFUSES = {name for name in ZOO if not lib.pgg_llama_arch_supports_tensor_split(name.encode())}


@pytest.fixture(autouse=True)
def _exact_gelu() -> Iterator[None]:
    with exact_gelu():
        yield


def test_every_refused_architecture_has_rules_or_a_reason() -> None:
    assert len(UPSTREAM_REFUSES) == 31
    assert set(ARCH_RULES) >= UPSTREAM_REFUSES


@pytest.mark.parametrize("name, moe", CASES, ids=[f"{n}-moe" if m and ZOO[n].moe == "both" else n for n, m in CASES])
def test_rules(tmp_path: Path, name: str, moe: bool) -> None:
    for shares in ((1, 1), (1, 1, 1), (3, 1)):
        found = verify_arch(name, tmp_path, moe=moe, shares=shares)
        assert not found.error
        assert found.nmse <= TOLERANCE, shares
        # the shared experts of the zoo are 128 columns wide, which three devices cannot share evenly
        assert [t for t in found.missed if "shexp" not in t or shares != (1, 1, 1)] == [], shares
        if name in NOT_SPLIT:
            assert not found.is_split
        else:
            assert found.allreduces >= found.n_layer - ("nemotron" in name), shares  # its layers are mixers or FFNs
            assert found.weights_split > 0.15, shares  # chameleon's vocabulary is larger than the rest of it


def test_layers_of_linear_attention_are_split_by_heads(tmp_path: Path) -> None:
    """Gated delta nets with their convolutions and states; one K head alone is whole on every device."""
    for name, least in (("kimi-linear", 0.95), ("kimi-k3", 0.95), ("bailingmoe3", 0.95), ("glm5-next", 0.9), ("qwen4exp", 0.9)):
        found = verify_arch(name, tmp_path, prompts=(1, 17, 40))
        assert not found.error and found.nmse <= TOLERANCE, name
        assert found.weights_split >= least, name
        model = tiny_gguf(tmp_path / "m.gguf", name, shares=((1, 1),))
        plan = gg.plan_model(model, "vcpu:2", n_tokens=5)
        nets = [n for n in plan.nodes if n.op == "GATED_DELTA_NET"]
        assert nets and all(n.split is not None and n.split.axis == 0 for n in nets)
        states = {x.name: x.split for x in plan.leafs if x.name.startswith(("cache_r_l", "cache_s_l", "conv_states_all-")) and " " not in x.name}
        assert len(states) == 2 * len(nets) and all(s is not None and s.axis == 0 for s in states.values())
    for name in ("qwen3next", "qwen4exp"):
        found = verify_arch(name, tmp_path, shares=(1, 0))  # made for it: with one K head
        assert not found.error and found.nmse <= TOLERANCE


def test_what_is_whole_in_some_layers_is_split_in_others(tmp_path: Path) -> None:
    found = verify_arch("gemma3n", tmp_path, sizes={"n_layer": 12})
    assert not found.error and found.nmse <= TOLERANCE
    with gg.Model(tiny_gguf(tmp_path / "m.gguf", "gemma3n", n_layer=12), "vcpu:2", split_mode="tensor", n_ctx=64) as m:
        assert [m.weight_splits()[f"blk.{i}.ffn_down.weight"].axis for i in (0, 9, 10, 11)] == ["M", "M", 0, 0]
    with gg.Model(tiny_gguf(tmp_path / "m.gguf", "t5"), "vcpu:2", split_mode="tensor", n_ctx=64) as m:
        splits = m.weight_splits()
        assert splits["dec.blk.0.cross_attn_o.weight"].axis == 0 and splits["dec.blk.0.attn_o.weight"].axis == "M"


def test_the_reason_is_the_only_thing_in_the_way(tmp_path: Path) -> None:
    """Rules that split all of a layer are refused where the table says, and nowhere else."""
    mamba = tiny_gguf(tmp_path / "mamba.gguf", "mamba", shares=((1, 1),))
    inner = next(t.ne[0] for t in gg.Model(mamba).info.tensors if t.name == "blk.0.ssm_out.weight")
    scan = [
        gg.rule(r"ssm_in\.weight", f"S1[{inner}x2]"), gg.rule(r"ssm_(conv1d|dt)\.weight|ssm_a$", "S1"), gg.rule(r"ssm_(conv1d|dt)\.bias|ssm_d$", "S0"),
        gg.rule(r"ssm_(x|out)\.weight", "S0"), gg.rule(r"^(cache_[rs]_l|conv_states_all-|ssm_states_all-)", "S0", units=inner),
    ]  # fmt: skip
    report = gg.check_model(mamba, "vcpu:2", rules=scan, repairs=False)
    assert {v.op for v in report.violations} == {"SSM_SCAN"}
    t5 = tiny_gguf(tmp_path / "t5.gguf", "t5encoder", shares=((1, 1),))
    heads = [gg.rule(r"attn_[qkv]\.weight", "S1", units=2), gg.rule(r"attn_rel_b", "S0", units=2), gg.rule(r"attn_o\.weight", "S0", units=2)]
    report = gg.check_model(t5, "vcpu:2", rules=heads, repairs=False)
    assert {v.op for v in report.violations} == {"SOFT_MAX"} and report.unjudged


def test_without_the_rules_it_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would not be needed: rules of ours for what llama.cpp can do by itself are dead weight."""
    monkeypatch.setattr("pyggml.model.options.arch_rules", lambda info: ())
    for name in ARCH_RULES:
        if name not in UPSTREAM_REFUSES and name not in ("hrm_text", "wavtokenizer-dec"):  # llama.cpp mirrors them
            uneven = {"shares": (1, 1, 1), "made_for": (1, 1)} if name in UNEVEN else {}
            assert verify_arch(name, tmp_path, moe=None, **uneven).error, name
    for name in ("plamo3", "falcon", "llama-embed"):  # the head cannot be told from its dimensions
        assert verify_arch(name, tmp_path, sizes={"n_head_kv": 1}).error, name


def test_one_kv_head_is_on_every_device(tmp_path: Path) -> None:
    """Query heads are split over all devices where llama.cpp would put them all on one; fused matrices are whole."""
    for name, axis in (("llama", 1), ("gemma", 1), ("falcon", "M")):
        found = verify_arch(name, tmp_path, sizes={"n_head_kv": 1}, shares=(3, 1))
        assert not found.error and found.nmse <= TOLERANCE
        assert not [t for t in found.missed if "attn" in t]
        model = tiny_gguf(tmp_path / "m.gguf", name, n_head_kv=1, shares=((3, 1),))
        with gg.Model(model, "vcpu:2", split_mode="tensor", tensor_split=(3, 1)) as m:
            q = m.weight_splits()["blk.0.attn_qkv.weight" if name == "falcon" else "blk.0.attn_q.weight"]
            assert q.axis == axis and (axis == "M" or q.counts[0] == 3 * q.counts[1])


def test_no_rules_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ARCH_RULES, "olmoe")
    model = tiny_gguf(tmp_path / "m.gguf", "olmoe")
    with pytest.raises(gg.UnsupportedError, match="'olmoe', and no rules for it are known here; rules of your own"):
        gg.plan_model(model, "vcpu:2")
    assert gg.plan_model(model, "vcpu:2", rules=[("", "M")]).allreduces == ()


def test_without_flash_attention(tmp_path: Path) -> None:
    """llama.cpp turns it off for grok, and wants it in tensor mode: it is computed without, and a V cache cannot have blocks then."""
    model = tiny_gguf(tmp_path / "m.gguf", "grok", head_dim=32, shares=((1, 1),))
    with gg.Model(model, "vcpu:2", n_ctx=32) as split:
        assert "FLASH_ATTN_EXT" not in {n.op for n in split.plan(3).nodes} and split.plan(3).allreduces
        assert split.logits([1, 2, 3]).shape == (3, split.n_vocab)
    for device in (None, "vcpu:2"):
        with pytest.raises(gg.UnsupportedError, match=r"type_v='q8_0' needs flash attention, which llama.cpp turns off for the architecture 'grok'"):
            gg.Model(model, device, n_ctx=32, type_v="q8_0")


@pytest.mark.parametrize("name", ["deepseek2", "granitehybrid", "olmoe"])
@pytest.mark.parametrize("dtype", ["q8_0", "q4_K"])
def test_quantized(tmp_path: Path, name: str, dtype: str) -> None:
    """Whole blocks on every device: shares of heads and columns are rounded together."""
    model = tiny_gguf(tmp_path / "m.gguf", name, dtype=dtype, shares=((3, 1),))
    options = {"n_ctx": 64, "type_k": "f32", "type_v": "f32", "attn_f32": True, "threads": 1}
    tokens = [1, 5, 9, 2, 77, 31]
    with gg.Model(model, "vcpu:1", **options) as one, gg.Model(model, "vcpu:2", split_mode="tensor", tensor_split=(3, 1), **options) as split:
        # activations are quantized in blocks: whole ones on each device, so the same blocks
        assert gg.nmse(split.logits(tokens), one.logits(tokens)) <= 1e-4
        assert split.plan(6).missed_shares() == ()


def test_files_that_are_damaged(tmp_path: Path) -> None:
    """Rules are made before llama.cpp refuses a file by name: numbers and shapes of nonsense are no errors of theirs."""
    for name in ARCH_RULES:
        info = check_gguf(tiny_gguf(tmp_path / "m.gguf", name, shares=((1, 1),)))
        assert arch_rules(info)
        for key, value in info.metadata.items():
            if key.startswith(name) and isinstance(value, int) and not key.endswith("block_count"):  # which `check_gguf` limits
                for wrong in (0, 1, 3, 600, (1 << 32) - 1):
                    arch_rules(replace(info, metadata={**info.metadata, key: wrong}))
        for i, t in enumerate(info.tensors):
            for other in ((), (replace(t, ne=t.ne[:1]),), (replace(t, ne=(1,)),), (replace(t, ne=t.ne[::-1]),)):
                arch_rules(replace(info, tensors=(*info.tensors[:i], *other, *info.tensors[i + 1 :])))


def test_rules_of_ones_own_stand_in_front(tmp_path: Path) -> None:
    model = tiny_gguf(tmp_path / "m.gguf", "deepseek2", shares=((1, 1),))
    with gg.Model(model, "vcpu:2", split_mode="tensor", rules=[("ffn", "M")], n_ctx=64) as m:
        splits = m.weight_splits()
        assert {s.axis for name, s in splits.items() if "ffn_up" in name} == {"M"}
        assert splits["blk.0.attn_output.weight"].axis == 0 and splits["blk.0.attn_k_b.weight"].axis == 2
    with gg.Model(model, "vcpu:1") as m, pytest.raises(gg.UnsupportedError, match="nothing is split"):
        m.weight_splits()
