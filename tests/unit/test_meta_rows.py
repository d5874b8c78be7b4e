"""Splits in which one device has a whole head, and the others have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pyggml as gg
from pyggml.testing import tiny_gguf


@pytest.mark.parametrize("shares", ["0:1", "1:0"])
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_the_only_head_of_a_token(shares: str, n_tokens: int) -> None:
    """K of a model with one KV head: normed row by row, on the device that has it."""
    rng = np.random.default_rng(0)
    w, scale = rng.standard_normal((32, 64)).astype(np.float32), rng.standard_normal(32).astype(np.float32)
    x = rng.standard_normal((n_tokens, 64)).astype(np.float32)
    with (
        gg.MetaDevice("vcpu:2", rules=[gg.rule("^w$", f"S1 {shares}")]) as meta,
        gg.Weights(meta, {"w": w, "scale": scale}) as weights,
        gg.Graph(meta) as graph,
    ):
        k = weights["w"] @ graph.input("x", ne=(64, n_tokens))
        head = gg.ops.reshape(k, 32, 1, n_tokens)
        y = graph.output("y", gg.ops.mul(gg.ops.rms_norm(head, 0.0), weights["scale"]))
        got = graph.run(x=x)["y"]
        split = y.split()
    assert split is not None and str(split) == f"S1 {shares}"
    k64 = x.astype(np.float64) @ w.astype(np.float64).T
    expected = k64 / np.sqrt((k64**2).mean(axis=1, keepdims=True)) * scale
    assert gg.nmse(got.reshape(n_tokens, 32), expected) < 1e-12


@pytest.mark.parametrize("shares", ["0:1", "1:0"])
def test_columns_that_one_device_has_all_of(shares: str) -> None:
    """The same shapes and split, but not a row: it goes on along axis 0."""
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((32, 64)).astype(np.float32), rng.standard_normal((16, 32)).astype(np.float32)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    with (
        gg.MetaDevice("vcpu:2", rules=[gg.rule("up", f"S1 {shares}"), gg.rule("down", f"S0 {shares}")]) as meta,
        gg.Weights(meta, {"up": up, "down": down}) as weights,
        gg.Graph(meta) as graph,
    ):
        hidden = gg.ops.reshape(weights["up"] @ graph.input("x", ne=(64, 1)), 32, 1, 1)
        graph.output("y", weights["down"] @ hidden)
        got = graph.run(x=x)["y"]
        assert str(hidden.split()) == ("S0 0:32" if shares == "0:1" else "S0 32:0")
    assert gg.nmse(got.reshape(1, 16), x.astype(np.float64) @ up.astype(np.float64).T @ down.astype(np.float64).T) < 1e-12


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
@pytest.mark.parametrize("n_tokens", [1, 7])
def test_a_model_with_one_kv_head(tmp_path: Path, arch: str, n_tokens: int) -> None:
    tiny = tiny_gguf(tmp_path / "m.gguf", arch, n_head_kv=1, shares=((1, 1),))
    options = {"n_ctx": 64, "type_k": "f32", "type_v": "f32", "flash_attn": "on", "attn_f32": True}
    tokens = np.arange(1, n_tokens + 1)
    with gg.Model(tiny, "vcpu:1", **options) as model:
        one = model.logits(tokens)
    with gg.Model(tiny, "vcpu:2", split_mode="tensor", **options) as model:
        split = model.logits(tokens)
        plan = model.plan(n_tokens)
    assert gg.nmse(split, one) <= 1e-9
    # the query heads are split, the KV head that they share is on every device: all have a summand of every sum
    n = tiny.n_head * tiny.head_dim // 2
    assert [str(plan[f"blk.0.attn_{name}.weight"].split) for name in "qkv"] == [f"S1 {n}:{n}", "M", "M"]
    assert plan.allreduces and all(all(r.computes) for r in plan.allreduces)


@pytest.mark.parametrize("shares", [(1, 0), (0, 1)])
@pytest.mark.parametrize("arch", ["llama", "qwen35"])
def test_a_token_of_a_model_on_one_of_two_devices(tmp_path: Path, arch: str, shares: tuple[int, int]) -> None:
    tiny = tiny_gguf(tmp_path / "m.gguf", arch, shares=((1, 1),))
    options = {"n_ctx": 64, "type_k": "f32", "type_v": "f32", "flash_attn": "on", "attn_f32": True}
    with gg.Model(tiny, "vcpu:1", **options) as model:
        one = model.logits([5])
    with gg.Model(tiny, "vcpu:2", split_mode="tensor", tensor_split=shares, **options) as model:
        assert gg.nmse(model.logits([5]), one) <= 1e-9
