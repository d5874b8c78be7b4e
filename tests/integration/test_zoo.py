"""Every architecture that llama.cpp knows: it runs, or the reason why not is llama.cpp's; and what tensor mode does with it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from zoo_outputs import Output, compute, loaded

import pyggml as gg
from pyggml._ffi import lib
from pyggml.dtype import as_dtype
from pyggml.gguf_check import check_gguf
from pyggml.gguf_info import GGUFArray
from pyggml.model import ModelOptions, plan_model
from pyggml.model.options import ENCODERS
from pyggml.testing import ZOO, Architecture, TinyModel, tiny, tiny_gguf
from pyggml.testing.exact import exact_gelu
from pyggml.testing.gguf_writer import write_gguf
from pyggml.testing.verify import verify_arch

ALL = [(name, moe) for name, arch in ZOO.items() if arch.runs for moe in arch.variants]
IDS = [f"{name}-moe" if moe and ZOO[name].moe == "both" else name for name, moe in ALL]
TENSOR = [(name, moe) for name, moe in ALL if lib.pgg_llama_arch_supports_tensor_split(name.encode())]
WIDE = bool(os.environ.get("PYGGML_TEST_WIDE"))
SPLITS: dict[str, tuple[int, ...]] = {"2": (1, 1), "3": (1, 1, 1), "3,1": (3, 1)}
ZERO_SHARES: tuple[tuple[int, ...], ...] = ((0, 1), (2, 0, 1))

# What llama.cpp allows in tensor mode, but cannot do with its own rules: the op or tensor and the words of our error.
ALIBI = ("FLASH_ATTN_EXT", "ALiBi")
NO_RULE = ("cache_", "suffix_fallback")  # llama.cpp looks for a weight that this layer has not got
REFUSED: dict[str, tuple[str, str]] = {
    "bloom": ALIBI,
    "jais": ALIBI,
    "jina-bert-v2": ALIBI,
    "refact": ALIBI,
    "chameleon": ("Qcur", "attn_q_norm.bias"),  # the norms of q and k are split, their biases are not
    "arwkv7": NO_RULE,  # the states of RWKV
    "rwkv6": NO_RULE,
    "rwkv6qwen2": NO_RULE,
    "rwkv7": NO_RULE,
    "graniteswitch": NO_RULE,  # the router has a cache and no attention of its own
    "nanbeige": NO_RULE,  # the second round through the layers has caches of its own
    "t5encoder": NO_RULE,
}
# llama.cpp mirrors everything, or all but the output
NOT_SPLIT = {"hrm_text", "wavtokenizer-dec"}

# at most 1e-12 in all of them, as GELU is computed by its formula here
TOLERANCE = 1e-11

# llama.cpp scales the inputs of gemma4's router; qwen4exp and kimi-k3 mix several streams before it
LOW_MARGIN = {"gemma4": 0.1, "kimi-k3": 0.02, "qwen4exp": 1e-3}


def tokens_of(model: TinyModel, n: int) -> npt.NDArray[np.int32]:
    return np.random.default_rng([1, n]).integers(0, model.n_vocab, n).astype(np.int32)


@pytest.fixture(autouse=True)
def _exact_gelu() -> Iterator[None]:
    with exact_gelu():
        yield


def run(model: TinyModel, n: int, device: str = "vcpu:1", shares: tuple[int, ...] | None = None) -> Output:
    with loaded(model, device, shares) as native:
        return compute(native, ZOO[model.arch].kind, tokens_of(model, n))


@pytest.mark.parametrize(("name", "moe"), ALL, ids=IDS)
def test_runs(tmp_path: Path, name: str, moe: bool) -> None:
    model = tiny_gguf(tmp_path / "m.gguf", name, moe=moe, shares=((1, 1),))
    info = check_gguf(model)
    assert info.arch == name
    assert any("_exps." in t.name for t in info.tensors) == moe
    logits: dict[str, Output] = {}
    with loaded(model, "vcpu:1", None) as native:
        out = compute(native, ZOO[name].kind, tokens_of(model, 17), logits.__setitem__ if moe else None)
    assert np.isfinite(out).all()
    # something is computed, and it depends on the tokens
    assert 0.2 < out.std() < 6
    assert np.abs(np.diff(out, axis=0)).mean() > 0.1
    if moe:
        assert logits, "no router was asked"
    for values in logits.values():
        ordered = np.sort(values, axis=1)[:, ::-1]
        assert (ordered[:, model.n_expert_used - 1] - ordered[:, model.n_expert_used]).min() > LOW_MARGIN.get(name, 0.4)


@pytest.mark.parametrize(("name", "moe"), TENSOR, ids=[i for i, at in zip(IDS, ALL, strict=True) if at in TENSOR])
def test_tensor_mode(tmp_path: Path, name: str, moe: bool) -> None:
    """As llama.cpp splits it: what comes out is what one device computes, every device has its share; or it is refused."""
    for split, shares in SPLITS.items():
        model = tiny_gguf(tmp_path / f"{split}.gguf", name, moe=moe, shares=(shares,))
        device = f"vcpu:{len(shares)}"
        if name in REFUSED:
            where, why = REFUSED[name]
            with pytest.raises(gg.Error) as caught:
                run(model, 17, device, shares)
            assert where in str(caught.value) or where == getattr(caught.value, "op", None)
            assert why in str(caught.value)
            continue
        devices = gg.parse_devices(device)
        for n in (1, 17):
            one = run(model, n)
            for d in devices:
                d.reset_stats()
            assert gg.nmse(run(model, n, device, shares), one) <= TOLERANCE, (split, n)
            assert (devices[0].stats().allreduces == 0) == (name in NOT_SPLIT)
        for zero in ZERO_SHARES if split == "3" else ():
            assert gg.nmse(run(model, 17, f"vcpu:{len(zero)}", zero), one) <= TOLERANCE, zero
        options = ModelOptions("tensor", tuple(float(s) for s in shares), n_ctx=64, n_batch=64)
        plan = plan_model(model, device, n_tokens=17, options=options)
        parts = [leaf for leaf in plan.leafs if leaf.kind in ("weight", "fixed") and leaf.split and isinstance(leaf.split.axis, int)]
        assert parts or name in NOT_SPLIT
        for leaf in parts:
            asked = [leaf.split.counts and sum(leaf.split.counts) * s / sum(shares) for s in shares]
            assert list(leaf.split.counts) == asked, leaf.name


@pytest.mark.parametrize("name", ["cohere2moe", "deepseek2-ocr", "gemma4", "hy_v3", "qwen35moe", "qwen3next", "granite_swa"])
def test_gate_and_up_of_experts_in_one_matrix(tmp_path: Path, name: str) -> None:
    model = tiny_gguf(tmp_path / "m.gguf", name, moe=True, fused_experts=True, shares=((3, 1),))
    assert any("ffn_gate_up_exps" in t.name for t in check_gguf(model).tensors)
    if name == "granite_swa":  # llama.cpp's rule for it asks for a number that files of this architecture do not have
        with pytest.raises(gg.Error, match=r"ffn_gate_up_exps.weight.*2\*n_ff_exp"):
            run(model, 17, "vcpu:2", (3, 1))
    else:
        assert gg.nmse(run(model, 17, "vcpu:2", (3, 1)), run(model, 17)) <= TOLERANCE


# Rules of one's own that make it possible, for shares of 3:1
HELPS: dict[str, list[tuple[str, str]]] = {
    **{key: [("attn_|cache_", "M")] for key in ("bloom", "jais", "jina-bert-v2", "refact")},  # attention whole on every device
    "chameleon": [("attn_(q|k)_norm.bias", "S1 3:1"), ("^output", "M")],
    "nanbeige": [("cache_(k|v)", "S0 3:1")],
    "graniteswitch": [
        ("(attn_(q|k|v)|ffn_(gate|up)).lora_b", "S1 3:1"),
        ("(attn_output|ffn_down).lora_a", "S0 3:1"),
        ("cache_[kv]_l[01]", "S0 3:1"),
        ("cache_", "M"),
    ],
}


@pytest.mark.parametrize("name", [name for name in HELPS if ZOO[name].kind == "decoder"])
def test_rules_that_help(tmp_path: Path, name: str) -> None:
    assert name in REFUSED
    model = tiny_gguf(tmp_path / "m.gguf", name, shares=((3, 1),))
    options = {"n_ctx": 64, "flash_attn": "on", "type_k": "f32", "type_v": "f32", "attn_f32": True, "threads": 1}
    with gg.Model(model, gg.MetaDevice("vcpu:2", HELPS[name]), tensor_split=(3, 1), **options) as split:
        out = split.logits(tokens_of(model, 17))
        plan = split.plan(17)
    assert gg.nmse(np.where(np.abs(out) < 1e30, out, 0), run(model, 17)) <= TOLERANCE
    assert len(plan.allreduces) >= model.n_layer
    split_bytes, mirrored = (sum(getattr(w, kind) for w in plan.weight_bytes()) for kind in ("split", "mirrored"))
    assert split_bytes > 0.4 * mirrored / len(plan.devices), "hardly anything is split"


def gguf_parts(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Metadata and tensors of an F32 model, to be written again with changes."""
    info = check_gguf(path)
    metadata = {k: v.load() if isinstance(v, GGUFArray) else v for k, v in info.metadata.items()}
    return metadata, {t.name: np.fromfile(t.path, np.float32, t.nbytes // 4, offset=t.offset).reshape(t.ne[::-1]) for t in info.tensors}


def test_files_that_would_crash_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found while the zoo was made: each ends the process (or corrupts its memory) if llama.cpp sees it."""

    def make(name: str, drop: re.Pattern[str] | None = None, **values: object) -> TinyModel:
        arch = ZOO[name]
        changed = {"attention." + key.replace("__", "."): value for key, value in values.items()}
        arch = dataclasses.replace(arch, values={**arch.values, **changed}, drop=drop or arch.drop, least=1)  # type: ignore[dict-item]
        monkeypatch.setattr(tiny, "ZOO", {name: arch})
        return tiny_gguf(tmp_path / "m.gguf", name, shares=((1,),), **({"head_dim": 16} if name == "rwkv7" else {}))

    zeros = np.zeros(2, np.int32)
    with pytest.raises(gg.FileFormatError, match=r"wkv\.head_size: found 16, expected a multiple of 64"):
        check_gguf(make("rwkv7"))
    with pytest.raises(gg.FileFormatError, match="time_mix_first"):
        check_gguf(make("rwkv6qwen2", drop=re.compile("(?!)")))
    with pytest.raises(gg.FileFormatError, match=r"indexer\.types: found 0 in all layers"):
        check_gguf(make("glm-dsa", indexer__types=zeros))
    with pytest.raises(gg.FileFormatError, match=r"compress_ratios: found .*, expected 4 in at least one layer"):
        check_gguf(make("deepseek4", compress_ratios=np.array([0, 128, 0, 0], np.int32)))
    monkeypatch.setattr(tiny, "ZOO", ZOO)
    # divisions by zero, a null pointer, and graphs that never end
    for name, key, value, words in (
        ("olmo2", "attention.head_count", None, "head_count: found nothing, expected at least 1, as there is 'blk.0.attn"),
        ("phimoe", "attention.head_count", 0, "head_count: found 0, expected at least 1"),
        ("modern-bert", "attention.head_count_kv", 0, "head_count_kv: found 0, expected at least 1"),
        ("afmoe", "attention.sliding_window", None, "sliding_window: found None, expected at least 1"),
        ("afmoe", "attention.sliding_window", 0, "sliding_window: found 0, expected at least 1"),
        ("rwkv6", "wkv.head_size", 0, "head_size: found 0"),
        ("deepseek4", "attention.output_group_count", 0, "output_group_count: found 0"),
        ("deepseek4", "hyper_connection.sinkhorn_iterations", 1 << 20, "sinkhorn_iterations: found 1048576, expected at most 1000"),
    ):
        path = tiny_gguf(tmp_path / "m.gguf", name, shares=((1,),)).path
        metadata, tensors = gguf_parts(path)
        metadata[f"{name}.{key}"] = value
        write_gguf(path, {k: v for k, v in metadata.items() if v is not None}, tensors)
        with pytest.raises(gg.FileFormatError, match=words):
            gg.Model(path)
    for suffix in ("", "_swa"):  # the kernel would never end
        arch = ZOO["gemma3"]
        monkeypatch.setattr(tiny, "ZOO", {"gemma3": dataclasses.replace(arch, values={**arch.values, f"rope.dimension_count{suffix}": 0})})
        with gg.Model(tiny_gguf(tmp_path / "m.gguf", "gemma3", shares=((1,),)), n_ctx=64) as model, pytest.raises(gg.Error, match="rotates 0 elements"):
            model.logits([1, 2])
    with pytest.raises(gg.FileFormatError, match=r"indexer\.types of layer 0: found 1, expected 1 in layers without a sliding window"):
        check_gguf(make("dots3note", indexer__types=np.array([1, 1], np.int32)))


def test_encoders_are_those_that_give_no_logits() -> None:
    assert {name for name, arch in ZOO.items() if arch.kind == "encoder"} == ENCODERS


@pytest.mark.parametrize("name", [*sorted(ENCODERS), "t5"])
def test_logits_that_nobody_wrote_are_refused(tmp_path: Path, name: str) -> None:
    with gg.Model(tiny_gguf(tmp_path / "m.gguf", name), "vcpu:1", n_ctx=64) as model:
        with pytest.raises(gg.Error, match="encode" if name == "t5" else "embed"):
            model.logits([1, 2, 3])
        with pytest.raises(gg.Error, match="encode" if name == "t5" else "embed"):
            next(model.generate([1, 2, 3]))
        if name == "t5":
            model.default_context.encode([1, 2, 3])
            assert model.default_context.decode([1]).std() > 0.1
        else:
            with model.context(embeddings=True, pooling="none") as context:
                assert context.embed([[1, 2, 3]])[0].std() > 0.01
                with pytest.raises(gg.UnsupportedError, match="embed"):
                    context.decode([1])


def test_every_architecture_is_there() -> None:
    source = Path(__file__).parents[2] / "vendor/llama.cpp/src/llama-arch.cpp"
    if not source.exists():
        pytest.skip("no source of llama.cpp beside the tests")
    names = set(re.findall(r'\{\s*LLM_ARCH_\w+,\s*"([^"]+)"\s*\}', source.read_text())) - {"(unknown)"}
    assert names == set(ZOO)


@pytest.mark.parametrize("name", [name for name, arch in ZOO.items() if arch.reason])
def test_the_reason_is_llama_cpps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    arch = ZOO[name]
    with pytest.raises(gg.UnsupportedError, match=re.escape(arch.reason)):
        tiny_gguf(tmp_path / "m.gguf", name)
    monkeypatch.setattr(tiny, "ZOO", {name: dataclasses.replace(arch, reason="")})
    said = {
        "gptj": "unsupported model architecture",
        "clip": "CLIP cannot be used as main model",
        "dflash": "requires ctx_other",
        "eagle3": "requires ctx_other",
        "gemma4-assistant": "unused tensor",  # a file of it: requires ctx_other, too; metadata alone does not get that far
        "plm": "a->ne[0] == b->ne[0]",
    }
    with pytest.raises(gg.Error, match=re.escape(said[name])):
        run(tiny_gguf(tmp_path / "m.gguf", name, shares=((1,),)), 3)


def test_names_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    strange: dict[str, set[str]] = {}
    n = 0
    for name, moe in ALL:
        if name not in known:  # newer than the package
            continue
        n += 1
        names = {gguf.TENSOR_NAMES[t].replace("{bid}", "0") for t in gguf.MODEL_TENSORS[known[name]]}
        for t in check_gguf(tiny_gguf(tmp_path / "m.gguf", name, moe=moe, shares=((1,),))).tensors:
            stem = re.sub(r"\.\d+\.", ".0.", re.sub(r"\.(weight|bias|scale)$", "", t.name))
            if stem not in names:
                strange.setdefault(name, set()).add(stem)
    assert n > 120
    assert strange == {}, strange


@pytest.mark.parametrize("dtype", ["q8_0", "q4_K"] if WIDE else ["q8_0"])
@pytest.mark.parametrize("name", list(ZOO) if WIDE else ["gemma3", "gpt-oss", "mamba2", "deepseek2", "lfm2", "bert", "rwkv7"])
def test_quantized(tmp_path: Path, name: str, dtype: str) -> None:
    if not ZOO[name].runs:
        pytest.skip("does not run")
    if "n_embd" in ZOO[name].sizes and dtype == "q4_K":
        pytest.skip("its rows are no whole blocks")
    model = tiny_gguf(tmp_path / "m.gguf", name, dtype=dtype, shares=((1, 1),))
    block = as_dtype(dtype).block_size  # rows that are none, of convolutions, stay as they are
    formats = [t.dtype.name for t in check_gguf(model).tensors if len(t.ne) > 1 and t.ne[0] % block == 0]
    assert formats.count(dtype) > len(formats) // 4
    out = run(model, 9)
    assert np.isfinite(out).all()
    assert out.std() > 0.2


def test_several_and_one_kv_head(tmp_path: Path) -> None:
    for name in ("gemma3", "qwen2", "gpt-oss", "cohere2"):
        arch: Architecture = ZOO[name]
        several = tiny_gguf(tmp_path / "m.gguf", name, shares=((1, 1),))
        assert several.n_head_kv > 1
        assert several.n_head == arch.gqa * several.n_head_kv
        one = tiny_gguf(tmp_path / "m.gguf", name, n_head_kv=1, shares=((1, 1),))
        assert (one.n_head_kv, check_gguf(one).metadata[f"{name}.attention.head_count_kv"]) == (1, 1)
        assert np.isfinite(run(one, 5)).all()


def test_what_the_table_of_gelu_does(tmp_path: Path) -> None:
    """ggml's CPU rounds the argument to F16: a value that differs in its last bit is now and then the next entry, 5e-4 off."""
    by_formula = verify_arch("bert", tmp_path, shares=(1, 1, 1)).nmse
    gg.lib.pgg_cpu_exact_gelu(False)  # undoes the fixture's
    try:
        by_table = verify_arch("bert", tmp_path, shares=(1, 1, 1)).nmse
    finally:
        gg.lib.pgg_cpu_exact_gelu(True)
    assert by_formula <= 1e-12 < by_table <= 5e-9
