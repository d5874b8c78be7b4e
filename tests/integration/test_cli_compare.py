"""`pyggml compare` and what is behind it: it agrees where it should, and finds what differs."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from split_cases import F32, tokens_of

import pyggml as gg
from pyggml.cli import cli
from pyggml.gguf_check import check_gguf
from pyggml.model_comparison import _Sums
from pyggml.testing import TinyModel, tiny_gguf

Make = Callable[..., TinyModel]
EXACT = ["-ctk", "f32", "-ctv", "f32", "--attn-f32"]
TEXT = "the cat was on it, and the dog was not. " * 20


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A llama with a tokenizer."""
    return tiny_gguf(tmp_path_factory.mktemp("words") / "words.gguf", vocab="bytes", n_layer=2)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["compare", *(a if isinstance(a, str) else str(os.fspath(a)) if isinstance(a, os.PathLike) else str(a) for a in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def with_weight_changed(model: TinyModel, to: Path, name: str, at: int, value: float) -> Path:
    """A copy of the model in which one number is another."""
    shutil.copy(model, to)
    tensor = check_gguf(to).tensor(name)
    assert tensor is not None and tensor.dtype.name == "f32"
    with to.open("r+b") as file:
        file.seek(tensor.offset + 4 * at)
        file.write(np.float32(value).tobytes())
    return to


@pytest.mark.parametrize("options", [["-dev", "vcpu:2", "-ts", "3,1"], ["-dev", "vcpu:3"], ["-dev", "vcpu:2", "-sm", "layer"]], ids=" ".join)
def test_splits_agree_with_one_device(words: TinyModel, options: list[str]) -> None:
    result = run(words, *options, *EXACT, "-p", "the cat was on it")
    assert result.exit_code == 0, result.output
    assert "tolerance 1e-09" in result.output and result.output.rstrip().endswith("\nagree")
    assert "same top token      100 %" in result.output


def test_two_models_do_not_agree(words: TinyModel, tmp_path: Path) -> None:
    other = tiny_gguf(tmp_path / "other.gguf", vocab="bytes", n_layer=2, seed=1)
    result = run(words, "--against-model", other, "-p", "the cat", "--json", tmp_path / "out.json")
    assert result.exit_code == 1 and "DO NOT AGREE" in result.output
    assert "words.gguf on VCPU0,VCPU1 (tensor) against other.gguf on VCPU0 (none), " in result.output
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["ok"] is False and told["nmse"] > 0.1 and told["kl_mean"] > 0.01 and told["same_top"] < 0.5
    assert told["perplexity"] != pytest.approx(told["reference_perplexity"], rel=0.01)


@pytest.mark.parametrize(
    ("weight", "node", "sources"),
    [
        ("blk.1.ffn_up.weight", "ffn_up-1", ["ffn_norm-1", "blk.1.ffn_up.weight"]),
        ("blk.0.attn_v.weight", "Vcur-0", ["attn_norm-0", "blk.0.attn_v.weight"]),
        ("blk.1.ffn_down.weight", "ffn_out-1", ["ffn_swiglu-1", "ffn_up-1"]),  # split along its inputs: a partial sum
        ("output.weight", "result_output", ["result_norm", "output.weight"]),
    ],
)
def test_the_first_diverging_node_is_the_one_that_reads_the_changed_weight(
    words: TinyModel, tmp_path: Path, weight: str, node: str, sources: list[str]
) -> None:
    changed = with_weight_changed(words, tmp_path / "changed.gguf", weight, 777, 20.0)
    result = run(words, "-ts", "3,1", *EXACT, "--against-model", changed, "--nodes", "-n", 8, "--json", "-")
    assert result.exit_code == 1
    told = json.loads(result.stdout)["nodes"]
    assert told["first"]["name"] == node and told["n_compared"] > 0.8 * told["n_nodes"]

    def below(traced: dict[str, Any]) -> dict[str, Any]:
        return {traced["name"]: traced, **{k: v for s in traced["sources"] for k, v in below(s).items()}}

    family = below(told["first"])
    assert set(sources) <= set(family)
    off = {name for name, x in family.items() if x["difference"] is not None and x["difference"]["nmse"] > 1e-9}
    assert off == {node, weight}, "only the node and the weight differ, not what else it is computed from"
    text = run(words, "-ts", "3,1", *EXACT, "--against-model", changed, "--nodes", "-n", 8).output
    assert re.search(rf"first diverging node, and what it is computed from:\n  {node} \(MUL_MAT", text) and "DO NOT AGREE" in text


def test_nodes_of_a_split_agree(words: TinyModel) -> None:
    for against in ([], ["--against", "CPU"]):  # nodes of the CPU are seen on a virtual device
        result = run(words, "-dev", "vcpu:3", *EXACT, "--nodes", "-p", "the cat", *against)
        assert result.exit_code == 0 and "no node differs by more" in result.output, result.output
    with pytest.raises(gg.UnsupportedError, match="--nodes needs -sm tensor"):
        run(words, "-sm", "layer", "--nodes")


@pytest.mark.parametrize("name", ["llama-moe", "qwen35", "qwen3-one-kv-head"])
def test_nodes_of_other_architectures(tiny: Make, name: str) -> None:
    model = tiny(name)
    with gg.Model(model, "vcpu:2", split_mode="tensor", **F32) as split, gg.Model(model, "vcpu:1", split_mode="tensor", **F32) as one:
        found = gg.compare_nodes(split, one, tokens_of(model, 9))
    assert found.ok, str(found)
    assert found.n_compared > 0.7 * found.n_nodes


@pytest.mark.parametrize(("weight", "node"), [("blk.1.ffn_gate.weight", "ffn_gate-1"), ("blk.1.attn_output.weight", "attn_out-1"), ("output.weight", "result_output")])
def test_a_device_with_the_wrong_rows_is_found(tiny: Make, weight: str, node: str) -> None:
    """What a wrong split does: the second device computes with columns or rows that belong elsewhere."""
    model, tokens = tiny("llama"), tokens_of(tiny("llama"), 12)
    with gg.Model(model, "vcpu:2", split_mode="tensor", tensor_split=(3, 1), **F32) as split, gg.Model(model, "vcpu:1", split_mode="tensor", **F32) as one:
        assert gg.compare_models(split, one, tokens).ok and gg.compare_nodes(split, one, tokens).ok
        piece = gg.lib.pgg_meta_slice(split._loaded.tensor(weight), 1)
        value = np.empty(int(gg.lib.ggml_nbytes(piece)) // 4, np.float32)
        gg.lib.ggml_backend_tensor_get(piece, gg.ffi.from_buffer(value), 0, value.nbytes)
        wrong = np.roll(value, int(piece.ne[0]) if weight != "blk.1.attn_output.weight" else 1)
        gg.lib.ggml_backend_tensor_set(piece, gg.ffi.from_buffer(wrong), 0, wrong.nbytes)
        found = gg.compare_nodes(split, one, tokens)
        assert found.first is not None and found.first.name == node and found.first.difference is not None
        assert not gg.compare_models(split, one, tokens).ok
        seen = {s.name: s.difference.nmse for s in found.first.sources if s.difference is not None}
        assert seen[weight] > 0.01, "the weight itself is told to differ"


def test_other_reference_configurations(words: TinyModel) -> None:
    result = run(words, "-dev", "vcpu:3", *EXACT, "--against", "vcpu:2", "--against-tensor-split", "1,3", "-p", "a")
    assert result.exit_code == 0 and "VCPU0,VCPU1,VCPU2 (tensor) against VCPU0,VCPU1 (tensor, 1:3)" in result.output
    result = run(words, *EXACT, "--against", "vcpu:2", "--against-rule", "ffn=M", "-p", "a")
    assert result.exit_code == 0
    for same in (["-sm", "none"], ["--against", "vcpu:2"]):
        result = run(words, *same)
        assert result.exit_code == 2 and "compared with itself" in result.output


def test_prompts(words: TinyModel, tmp_path: Path, tiny: Make) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    result = run(words, "-f", tmp_path / "text.txt", "-c", 64, "-b", 24)
    n = int(re.search(r"(\d+) tokens in (\d+) chunks", result.output)[1])  # type: ignore[index]
    assert result.exit_code == 0 and n > 640
    assert run(words, "-p", "a", "-f", tmp_path / "text.txt").exit_code == 2
    result = run(tiny("llama"), "--tokens", "1,2,3", "--json", "-")
    assert json.loads(result.stdout)["n_tokens"] == 3 and json.loads(result.stdout)["n_scored"] == 2
    assert run(tiny("llama"), "--tokens", "1,x").exit_code == 2
    with pytest.raises(gg.UnsupportedError, match="no tokenizer"):
        run(tiny("llama"), "-p", "text")
    with pytest.raises(gg.IndexRangeError):
        run(tiny("llama"), "--tokens", "1,999999")


# --- the numbers


def reference_numbers(x: Any, r: Any, tokens: Any) -> dict[str, float]:
    """The same from the definitions, one position at a time."""
    x, r = np.asarray(x, np.float64), np.asarray(r, np.float64)

    def p(row: Any) -> Any:
        e = np.exp(row - row.max())
        return e / e.sum()

    kl = [float(np.sum(p(b) * np.log(p(b) / p(a)))) for a, b in zip(x, r, strict=True)]
    nll = [[-np.log(p(rows[i])[tokens[i + 1]]) for i in range(len(tokens) - 1)] for rows in (x, r)]
    return {
        "nmse": gg.nmse(x, r), "max_abs": float(np.abs(x - r).max()), "kl_mean": float(np.mean(kl)), "kl_max": max(kl),
        "kl_max_at": int(np.argmax(kl)), "same_top": float(np.mean(x.argmax(-1) == r.argmax(-1))),
        "perplexity": float(np.exp(np.mean(nll[0]))), "reference_perplexity": float(np.exp(np.mean(nll[1]))),
    }  # fmt: skip


@pytest.mark.parametrize("n_batch", [7, 64])
def test_the_numbers_are_those_of_their_definitions(tiny: Make, n_batch: int) -> None:
    a, b = tiny("llama"), tiny("llama", seed=5)
    tokens = tokens_of(a, 40)
    fractions: list[float] = []
    with gg.Model(a, "vcpu:2", split_mode="tensor", **{**F32, "n_batch": n_batch}) as x, gg.Model(b, "vcpu:1", **F32) as r:
        found = gg.compare_models(x, r, tokens, progress=fractions.append)
        want = reference_numbers(x.logits(tokens), r.logits(tokens), tokens)
        assert not found.ok
        with pytest.raises(gg.ComparisonError, match="DO NOT AGREE"):
            found.check()
        assert {k: getattr(found, k) for k in want} == pytest.approx(want, rel=1e-9)
        assert (found.n_tokens, found.n_chunks, found.n_scored) == (40, 1, 39)
        assert fractions == sorted(fractions) and fractions[-1] == 1
        # in chunks: each by itself
        many = gg.compare_models(x, r, tokens_of(a, 300), tolerance=10)
        assert many.ok and (many.n_tokens, many.n_chunks, many.n_scored) == (300, 3, 297)
        parts = [tokens_of(a, 300)[i : i + 128] for i in (0, 128, 256)]
        alone = [gg.compare_models(x, r, part) for part in parts]
        assert many.kl_mean == pytest.approx(np.average([p.kl_mean for p in alone], weights=[128, 128, 44]))
        assert x.default_context.n_past() == r.default_context.n_past() == 0


@pytest.mark.parametrize(
    ("dtype", "options", "tolerance"),
    [
        ("f32", F32, 1e-9), ("f32", {**F32, "attn_f32": False}, 1e-5), ("f32", {}, 1e-5), ("f16", F32, 1e-5), ("bf16", {}, 2e-4), ("q8_0", {}, 5e-3),
        ("f32", {**F32, "type_k": "q8_0", "type_v": "q8_0"}, 5e-3),
    ],
)  # fmt: skip
def test_the_tolerance_is_that_of_the_formats(tiny: Make, dtype: str, options: dict[str, Any], tolerance: float) -> None:
    model = tiny("llama", dtype=dtype)
    with gg.Model(model, "vcpu:2", split_mode="tensor", **options) as x, gg.Model(model, "vcpu:1", **{**options, "n_ctx": 256}) as r:
        found = gg.compare_models(x, r, tokens_of(model, 30))
        assert found.tolerance == tolerance and found.ok
    with gg.Model(model, **options) as x, gg.Model(tiny("llama", dtype=dtype, seed=1), **options) as r:
        assert not gg.compare_models(x, r, [1, 2, 3]).ok


def test_every_chunk_of_a_text_begins_as_the_text(words: TinyModel) -> None:
    with gg.Model(words, "vcpu:2", split_mode="tensor", **F32) as x, gg.Model(words, **F32) as r:
        ids = x.tokenize(TEXT)
        found = gg.compare_models(x, r, TEXT)
        assert ids[0] == x.vocab.bos and found.n_tokens - found.n_chunks == len(ids) - 1 and found.n_chunks > 2


def test_what_is_no_number_is_a_difference() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((4, 50)).astype(np.float32)

    def nmse(x: Any, r: Any) -> float:
        sums = _Sums()
        sums.add(np.asarray(x, np.float32), np.asarray(r, np.float32), np.array([1, 2, 3]))
        return sums.nmse

    bad, forbidden = r.copy(), r.copy()
    bad[2, 3] = np.nan
    forbidden[1, 7] = -np.inf
    assert nmse(r, r) == 0 and nmse(forbidden, forbidden) == 0
    for x, y in ((bad, r), (r, bad), (bad, bad), (forbidden, r), (r, forbidden), (-forbidden, -forbidden)):
        assert nmse(x, y) == np.inf
    sums = _Sums()
    sums.add(forbidden, forbidden, np.array([1, 2, 3]))
    assert sums.kl == 0 and np.isfinite(sums.perplexity(0))


def test_models_that_cannot_be_compared(tiny: Make) -> None:
    model = tiny("llama")
    with gg.Model(model, **F32) as x, gg.Model(tiny("llama", n_vocab=600), **F32) as other:
        with pytest.raises(gg.ArgumentError, match="600"):
            gg.compare_models(x, other, [1, 2])
        with pytest.raises(gg.ArgumentError, match="same Model"):
            gg.compare_models(x, x, [1, 2])
        with pytest.raises(gg.ArgumentError, match="expected a Model"):
            gg.compare_models(x, model, [1, 2])  # type: ignore[arg-type]
        with gg.Model(model, "vcpu:1", **F32) as y:
            with pytest.raises(gg.UnsupportedError, match="meta device"):
                gg.compare_nodes(x, y, [1, 2])
            with pytest.raises(gg.ArgumentError):
                gg.compare_models(x, y, [])
    with gg.Model(model, "vcpu:2", split_mode="tensor", **F32) as x, gg.Model(tiny("llama", n_layer=3), "vcpu:1", split_mode="tensor", **F32) as y:
        with pytest.raises(gg.ArgumentError, match="different graphs"):
            gg.compare_nodes(x, y, [1, 2])
        with pytest.raises(gg.ArgumentError, match="at most"):
            gg.compare_nodes(x, x.__class__(model, "vcpu:1", split_mode="tensor", **F32), np.ones(500, int))


def test_the_demo_compares() -> None:
    result = CliRunner().invoke(cli, ["demo", "-ts", "3,1"])
    assert result.exit_code == 0 and "tolerance 1e-09" in result.output and result.output.rstrip().endswith("agree")
