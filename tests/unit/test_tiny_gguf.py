"""Tiny models: llama.cpp loads them, they compute something, and every device gets exactly the share asked for."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import pyggml as gg
from pyggml.dtype import QuantizedArray, as_dtype
from pyggml.gguf_check import check_gguf
from pyggml.model import ModelOptions, plan_model
from pyggml.testing import HEADER_PRESETS, llama_header, tiny_gguf
from pyggml.testing.gguf_writer import write_gguf

KINDS = {
    "llama": {"arch": "llama"},
    "moe": {"arch": "llama", "moe": True},
    "qwen3": {"arch": "qwen3"},
    "qwen35": {"arch": "qwen35"},
    "refact": {"arch": "refact"},
    "bloom": {"arch": "bloom"},
    "llama q8_0": {"arch": "llama", "dtype": "q8_0"},
    "moe q4_0": {"arch": "llama", "moe": True, "dtype": "q4_0"},
    "llama q4_K": {"arch": "llama", "dtype": "q4_K", "n_layer": 1},
    "qwen35 q8_0": {"arch": "qwen35", "dtype": "q8_0"},
    "llama bf16": {"arch": "llama", "dtype": "bf16"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, gg.testing.TinyModel]:
    folder = tmp_path_factory.mktemp("tiny")
    return {kind: tiny_gguf(folder / f"{kind}.gguf", **arguments) for kind, arguments in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_with_it(models: dict, kind: str) -> None:
    model = models[kind]
    ids = [(7 * i + 3) % model.n_vocab for i in range(24)]
    with gg.Model(model, threads=1) as m:
        logits = m.logits(ids)
    assert logits.shape == (24, model.n_vocab)
    assert np.isfinite(logits).all()
    # as wide as a trained model's, different for every token, and no token always wins
    assert 0.5 < logits.std() < 2
    assert np.abs(np.diff(logits, axis=0)).mean() > 0.3
    assert len(set(logits.argmax(axis=1))) > 6


@pytest.mark.parametrize("shares", [(1, 1), (1, 1, 1), (3, 1)])
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("refact", "bloom")])  # ALiBi: a split is refused
def test_every_device_gets_its_share(models: dict, kind: str, shares: tuple[int, ...]) -> None:
    """As ggml infers it for what llama.cpp loads: weights, KV caches and recurrent states, all layers."""
    plan = plan_model(
        models[kind], f"vcpu:{len(shares)}", options=ModelOptions("tensor", tuple(float(s) for s in shares), n_ctx=64, n_batch=64)
    )
    split = [leaf for leaf in plan.leafs if leaf.kind in ("weight", "fixed") and leaf.split and isinstance(leaf.split.axis, int)]
    names = {leaf.name for leaf in split}
    assert "output.weight" in names
    assert any("attn_output" in name or "ssm_out" in name for name in names)
    assert any("ffn_down" in name for name in names)
    assert any(name.startswith("cache_") for name in names)
    for leaf in split:
        axis = leaf.split.axis
        got = [s.ne[axis] for s in leaf.slices]
        assert got == [leaf.ne[axis] * s / sum(shares) for s in shares], leaf.name


def test_fewer_splits_make_a_smaller_model(models: dict, tmp_path: Path) -> None:
    small = tiny_gguf(tmp_path / "a.gguf", shares=[(1, 1)])
    assert small.n_bytes < models["llama"].n_bytes / 4
    assert (small.n_head_kv, small.n_ff) == (2, 256)


def test_experts_are_chosen_with_a_margin(models: dict) -> None:
    """All experts are used, and the last one taken is well ahead of the next, so rounding cannot swap them."""
    model = models["moe"]
    router: dict[str, np.ndarray] = {}

    def observer(name: str, op: str, value: bytes) -> None:
        if name.startswith("ffn_moe_logits-"):
            router[name] = np.frombuffer(value, np.float32).reshape(-1, model.n_expert)

    with gg.Model(model, "vcpu:1", split_mode="tensor", n_ctx=512, n_batch=512) as m:
        m.logits(np.arange(model.n_vocab), observer=observer)
    assert len(router) == model.n_layer
    for values in router.values():
        ordered = np.sort(values, axis=1)[:, ::-1]
        margin = ordered[:, model.n_expert_used - 1] - ordered[:, model.n_expert_used]
        assert margin.min() > 0.5
        taken = np.argsort(-values, axis=1)[:, : model.n_expert_used]
        assert np.bincount(taken.ravel(), minlength=model.n_expert).min() > 20


@pytest.mark.parametrize("kind", ["llama", "moe", "qwen35", "bloom", "llama q8_0"])
def test_the_gguf_package_reads_the_same(models: dict, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    model = models[kind]
    reader = gguf.GGUFReader(model.path)
    info = check_gguf(model)
    assert [t.name for t in reader.tensors] == [t.name for t in info.tensors]
    for theirs, ours in zip(reader.tensors, info.tensors, strict=True):
        assert theirs.shape.tolist() == list(ours.ne)
        assert (int(theirs.tensor_type), int(theirs.data_offset)) == (ours.dtype.type_id, ours.offset)
        assert int(theirs.n_bytes) == ours.nbytes
    assert reader.fields["general.architecture"].contents() == model.arch
    assert reader.fields[f"{model.arch}.attention.head_count"].contents() == model.n_head == info.metadata[f"{model.arch}.attention.head_count"]
    embd = next(t for t in reader.tensors if t.name == "output_norm.weight").data
    assert embd.shape == (model.n_embd,)
    assert 0.7 < embd.min() < 0.9 < 1.1 < embd.max() < 1.3


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    def content(**arguments: object) -> bytes:
        return tiny_gguf(tmp_path / "x.gguf", shares=[(1, 1)], **arguments).path.read_bytes()  # type: ignore[arg-type]

    assert content() == content()
    assert content() != content(seed=1)
    assert not list(tmp_path.glob(".*")), "a temporary file was left"


def test_is_fast_and_small(tmp_path: Path) -> None:
    for kind in ("llama", "moe", "qwen35"):
        tiny_gguf(tmp_path / "warm.gguf", **KINDS[kind])
        begin = time.process_time()
        model = tiny_gguf(tmp_path / "x.gguf", **KINDS[kind])
        assert time.process_time() - begin < 1
        assert model.n_bytes < 30e6


def test_explicit_numbers_win(tmp_path: Path) -> None:
    model = tiny_gguf(tmp_path / "x.gguf", "qwen3", n_head_kv=1, n_layer=3, n_embd=96, n_ff=64, n_vocab=50, head_dim=16)
    assert (model.n_head_kv, model.n_layer, model.n_embd, model.n_ff, model.n_vocab, model.head_dim) == (1, 3, 96, 64, 50, 16)
    with gg.Model(model, threads=1) as m:
        assert np.isfinite(m.logits([1, 2, 3])).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "gpt-5"}, "expected one of afmoe, apertus, "),
        ({"arch": "gptj"}, "llama.cpp has its name and no implementation"),
        ({"arch": "qwen3", "moe": True}, "no mixture of experts .* expected one of afmoe, "),
        ({"arch": "olmoe", "moe": False}, "only mixtures of experts .* expected one of apertus, "),
        ({"n_head": 5, "n_head_kv": 2}, "n_head=5 is not a multiple of n_head_kv=2"),
        ({"n_layer": 0}, "n_layer=0"),
        ({"arch": "jamba", "n_layer": 1}, "n_layer=1: expected at least 2 for jamba"),
        ({"head_dim": 7}, "even"),
        ({"arch": "bloom", "n_embd": 100}, "n_embd = n_head"),
        ({"moe": True, "n_expert_used": 9}, "n_expert_used < n_expert"),
        ({"shares": [(0, 0)]}, "at least one above 0"),
        ({"shares": [(1.5, 1)]}, "whole numbers"),
        ({"dtype": "q8_1"}, "no quantizer for q8_1"),
        ({"dtype": "iq2_xs"}, "importance matrix"),
        ({"dtype": "q8_0", "n_embd": 100}, "multiple of 32"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(gg.Error, match=message):
        tiny_gguf(tmp_path / "x.gguf", **arguments)
    assert not list(tmp_path.iterdir())


class TestHeader:
    def test_size_of_the_published_file(self, tmp_path: Path) -> None:
        """Llama 3.3 70B in Q4_K_M is a file of 42.5 GB with 724 tensors; the hole takes no space."""
        path = llama_header(tmp_path / "h.gguf")
        status = path.stat()
        assert 42.50e9 < status.st_size < 42.54e9
        assert status.st_blocks * 512 < 8e6
        info = check_gguf(path)
        assert len(info.tensors) == 724
        formats = [t.dtype.name for t in info.tensors]
        # half of the layers spend more bits on ffn_down and attn_v; the other attn_v of a 70B get q5_K
        assert (formats.count("q4_K"), formats.count("q5_K"), formats.count("q6_K")) == (441, 40, 81)

    def test_vocabulary_is_one_for_llama_cpp(self, tmp_path: Path) -> None:
        info = check_gguf(llama_header(tmp_path / "h.gguf", "llama-8b"))
        tokens, merges = info.metadata["tokenizer.ggml.tokens"], info.metadata["tokenizer.ggml.merges"]
        assert (len(tokens), len(merges)) == (128256, 280147)
        words = set(tokens.load())
        assert len(words) == 128256
        assert all(set(merge.split(" ")) <= words for merge in merges.load()[::1000])

    @pytest.mark.parametrize("preset", HEADER_PRESETS)
    def test_can_be_planned(self, tmp_path: Path, preset: str) -> None:
        path = llama_header(tmp_path / "h.gguf", preset, vocab="none")
        plan = plan_model(path, "vcpu:2", options=ModelOptions("tensor", n_ctx=512, n_batch=64))
        assert len(plan.allreduces) == 2 * HEADER_PRESETS[preset].n_layer

    @pytest.mark.parametrize("arguments", [{"preset": "llama-7b"}, {"vocab": "spm"}])
    def test_nonsense_is_refused(self, tmp_path: Path, arguments: dict) -> None:
        with pytest.raises(gg.UnsupportedError, match="expected"):
            llama_header(tmp_path / "h.gguf", **arguments)


def test_writer_takes_what_gguf_has(tmp_path: Path) -> None:
    q = gg.quantize(np.ones((2, 64), np.float32), "q8_0")
    metadata = {"b": True, "i": 7, "big": 1 << 40, "f": 0.5, "s": "ä", "n": np.arange(3, dtype=np.int16), "l": ["x", "", "ÿ"], "z": np.zeros(0)}
    path = write_gguf(tmp_path / "x.gguf", metadata, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "q": q, "i": np.arange(4)})
    info = check_gguf(path, model=False)
    found = {k: v for k, v in info.metadata.items() if k not in ("n", "l", "z")}
    assert found == {"b": True, "i": 7, "big": 1 << 40, "f": 0.5, "s": "ä"}
    assert info.metadata["n"].load().tolist() == [0, 1, 2]
    assert info.metadata["l"].load() == ["x", "", "ÿ"]
    assert len(info.metadata["z"]) == 0
    assert [(t.name, t.ne, t.dtype.name) for t in info.tensors] == [("a", (3, 2), "f32"), ("q", (64, 2), "q8_0"), ("i", (4,), "i64")]
    raw = path.read_bytes()
    t = info.tensor("q")
    assert t is not None
    assert QuantizedArray(as_dtype("q8_0"), (2, 64), np.frombuffer(raw[t.offset : t.offset + t.nbytes], np.uint8)) == q
    assert info.tensor("none") is None
