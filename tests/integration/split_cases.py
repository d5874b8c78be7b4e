"""Models and measures that several tests of splits share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pyggml as gg
from pyggml.testing import TinyModel

Logits = npt.NDArray[np.float32]

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-moe": ("llama", {"moe": True}),  # 8 experts, 2 used
    "qwen35": ("qwen35", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-one-kv-head": ("qwen3", {"n_head_kv": 1}),
    "refact": ("refact", {}),
    "bloom": ("bloom", {}),
}

SPLITS: dict[str, tuple[str, tuple[float, ...]]] = {
    "2": ("vcpu:2", (1, 1)),
    "3": ("vcpu:3", (1, 1, 1)),
    "3,1": ("vcpu:2", (3, 1)),
}

# F32 everywhere, also in attention: then only the order of sums differs between one device and several
F32: dict[str, Any] = {"n_ctx": 128, "flash_attn": "on", "type_k": "f32", "type_v": "f32", "attn_f32": True, "threads": 1}


def tokens_of(tiny: TinyModel, n: int, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng([seed, n]).integers(0, tiny.n_vocab, n).astype(np.int32)


def one_device(tiny: TinyModel, tokens: npt.NDArray[np.int32], device: str | None = "vcpu:1", **options: Any) -> Logits:
    with gg.Model(tiny, device, **{**F32, **options}) as model:
        out = model.logits(tokens)
    assert np.isfinite(out).all()
    assert out.std() > 0.1, "logits that are all alike prove nothing"
    return out


def is_split(tensor: gg.plan.PlanLeaf | gg.plan.PlanNode) -> bool:
    return tensor.split is not None and isinstance(tensor.split.axis, int)


def check_shares(plan: gg.SplitPlan, tiny: TinyModel, shares: tuple[float, ...]) -> None:
    """Every weight and cache that is split has the shares asked for; every device has heads, FFN columns and cache."""
    asked = tuple(s / sum(shares) for s in shares)
    split = [leaf for leaf in plan.leafs if leaf.kind in ("weight", "fixed") and is_split(leaf)]
    names = {leaf.name for leaf in split}
    parts = ["attn_q", "attn_output", "cache_k", "cache_v", "ffn_down_exps" if tiny.n_expert else "ffn_down"]
    parts += ["ssm_out", "cache_r", "cache_s"] if tiny.arch == "qwen35" else []
    for part in parts:
        assert any(part in name for name in names), f"no {part} is split, only {sorted(names)}"
    for leaf in split:
        assert plan.achieved_shares(leaf.name) == pytest.approx(asked, abs=1e-12), leaf.name
        assert not any(s.empty for s in leaf.slices), leaf.name
