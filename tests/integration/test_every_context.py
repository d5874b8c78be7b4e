"""Sequences, states, positions and adapters of every architecture: split as on one device. PYGGML_TEST_WIDE=1: all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pyggml as gg
from pyggml.testing import ZOO, TinyModel, tiny_gguf
from pyggml.testing.exact import exact_gelu
from pyggml.testing.gguf_writer import write_gguf

WIDE = bool(os.environ.get("PYGGML_TEST_WIDE"))
FEW = {"gemma3", "granitehybrid", "deepseek2", "gpt-oss", "phi3", "kimi-k3", "qwen4exp"}
ALL = [(name, moe) for name, arch in ZOO.items() if arch.runs and arch.kind == "decoder" for moe in arch.variants]
SOME = [(name, moe) for name, moe in ALL if WIDE or name in FEW]
IDS = [f"{name}-moe" if moe and ZOO[name].moe == "both" else name for name, moe in SOME]
SPLITS = {"3,1": ("vcpu:2", (3, 1)), "3": ("vcpu:3", (1, 1, 1))}
F32: dict[str, Any] = {"n_ctx": 64, "n_batch": 64, "type_k": "f32", "type_v": "f32", "attn_f32": True, "threads": 1, "flash_attn": "on"}

# what llama.cpp cannot do on one device either, and what is refused by name
NOT_AT_ALL = {("lfm2", False), ("lfm2", True), ("plamo2", True), ("kimi-linear", False)}  # its assertions: shift; several sequences
REFUSED = {("glm5-next", False): "a view of a permuted tensor cannot be followed"}
NO_ADAPTER = {"gpt-oss": "a partial bias is added to a complete sum"}  # for the experts' down matrix, which has a bias


@pytest.fixture(autouse=True)
def _exact_gelu() -> Iterator[None]:
    with exact_gelu():
        yield


def story(model: gg.Model, n_vocab: int, unified: bool) -> list[npt.NDArray[np.float64]]:
    """Three sequences that begin together, are copied, cut, kept, shifted, saved and restored: all logits on the way."""
    rng = np.random.default_rng(3)
    a, b, c = (rng.integers(0, n_vocab, n) for n in (9, 5, 6))
    out: list[npt.NDArray[np.float64]] = []

    def note(logits: npt.NDArray[np.float32]) -> None:
        out.append(np.where(np.abs(logits) > 1e30, 0, logits).astype(np.float64))  # chameleon

    def made() -> gg.Context:
        return model.context(n_seq_max=3, n_ctx=256 if unified else 768, kv_unified=unified, n_batch=8)

    with made() as context:
        note(context.decode(gg.Batch().add(a[:4], 0, logits="all").add(b, 2, logits="all")))
        note(context.decode(a[4:], 0, logits="all"))
        context.seq_cp(0, 1)
        note(context.decode(gg.Batch().add([7], 0).add([8], 1).add([9], 2)))
        note(context.decode(gg.Batch().add([3], 2).add(c, 1, logits="all")))
        try:
            context.seq_rm(2, 4)
            note(context.decode([11, 12], 2, logits="all"))
        except gg.UnsupportedError:
            note(np.zeros(1, np.float32))
        context.seq_keep(1)
        note(context.decode([5], 1))
        try:
            context.shift(3, keep=2, seq=1)
            note(context.decode([5, 6], 1, logits="all"))
        except gg.UnsupportedError:
            note(np.ones(1, np.float32))
        state = context.save(1)
    with made() as context:
        context.restore(state, 0)
        note(context.decode([5, 6], 0, logits="all"))
        note(np.array([t.id for t in context.generate([4], max_tokens=4, temperature=0)], np.float32))
        note(context.decode([1], 2))
    return out


@pytest.mark.parametrize("name, moe", SOME, ids=IDS)
def test_sequences_and_states(tmp_path: Path, name: str, moe: bool) -> None:
    for device, shares in SPLITS.values():
        model = tiny_gguf(tmp_path / "m.gguf", name, moe=moe, shares=(shares,))
        with gg.Model(model, "vcpu:1", **F32) as one, gg.Model(model, device, split_mode="tensor", tensor_split=shares, **F32) as split:
            for unified in (False, True):
                if (name, unified) in NOT_AT_ALL:
                    with pytest.raises(gg.Error):
                        story(one, model.n_vocab, unified)
                    continue
                if (name, unified) in REFUSED:
                    with pytest.raises(gg.SplitError, match=REFUSED[name, unified]):
                        story(split, model.n_vocab, unified)
                    continue
                want, got = (story(m, model.n_vocab, unified) for m in (one, split))
                for x, y in zip(got, want, strict=True):
                    assert gg.nmse(x, y) <= 1e-9 or np.array_equal(x, y), (shares, unified)


def adapter_for(model: TinyModel, path: Path) -> Path:
    """A LoRA adapter for every matrix of attention, FFN and recurrent layers."""
    rng = np.random.default_rng(1)
    tensors = {}
    with gg.Model(model, n_ctx=64) as m:
        for t in m.info.tensors:
            if t.name.startswith("blk.") and t.name.endswith(".weight") and len(t.ne) > 1 and min(t.ne[:2]) >= 8 and "norm" not in t.name and "conv" not in t.name:
                tensors[t.name + ".lora_a"] = (0.05 * rng.standard_normal((*t.ne[:1:-1], 4, t.ne[0]))).astype(np.float32)
                tensors[t.name + ".lora_b"] = (0.05 * rng.standard_normal((*t.ne[:1:-1], t.ne[1], 4))).astype(np.float32)
    about = {"general.architecture": model.arch, "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    return write_gguf(path, about, tensors)


@pytest.mark.parametrize("name, moe", SOME, ids=IDS)
def test_adapters(tmp_path: Path, name: str, moe: bool) -> None:
    for device, shares in SPLITS.values():
        model = tiny_gguf(tmp_path / "m.gguf", name, moe=moe, shares=(shares,))
        lora = adapter_for(model, tmp_path / "lora.gguf")
        tokens = np.random.default_rng(1).integers(0, model.n_vocab, 9)
        with gg.Model(model, "vcpu:1", **F32) as one, gg.Model(model, device, split_mode="tensor", tensor_split=shares, **F32) as split:
            bare = one.logits(tokens)
            for m in (one, split):
                m.default_context.set_adapters({m.adapter(lora): 1.5})
            if name in NO_ADAPTER:
                with pytest.raises(gg.SplitError, match=NO_ADAPTER[name]):
                    split.logits(tokens)
                continue
            for given in (tokens, tokens[:1]):
                want, got = (np.where(np.abs(x) > 1e30, 0, x) for x in (one.logits(given), split.logits(given)))
                assert gg.nmse(got, want) <= 1e-9, shares
            if name != "graniteswitch":  # it has adapters of its own, and takes no others
                assert gg.nmse(want, np.where(np.abs(bare) > 1e30, 0, bare)[:1]) > 1e-4, "the adapter changes nothing"
            split.default_context.set_adapters()
            assert gg.nmse(split.logits(tokens), bare) <= 1e-9, shares
