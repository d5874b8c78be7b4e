"""Contexts of models in every split mode: sequences, positions, generation, states, embeddings, adapters, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_cases import F32, tokens_of

import pyggml as gg
from pyggml.gguf_check import GGUFArray, check_gguf
from pyggml.testing import TinyModel, tiny_gguf
from pyggml.testing.exact import exact_gelu
from pyggml.testing.gguf_writer import write_gguf

Make = Callable[..., TinyModel]

MODES: dict[str, dict[str, Any]] = {
    "none": {"device": "vcpu:1"},
    "layer": {"device": "vcpu:2", "split_mode": "layer"},
    "tensor": {"device": "vcpu:2", "split_mode": "tensor", "tensor_split": (3, 1)},
    "tensor over 3": {"device": "vcpu:3", "split_mode": "tensor"},
}
TOLERANCE = 1e-10
NAMES = ["llama", "llama-moe", "qwen35"]


def loaded(model: TinyModel, mode: str, **options: Any) -> gg.Model:
    return gg.Model(model, **{**F32, **MODES[mode], **options})


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A llama with a tokenizer."""
    return tiny_gguf(tmp_path_factory.mktemp("words") / "words.gguf", vocab="bytes")


@pytest.fixture
def exactly() -> Iterator[None]:
    with exact_gelu():
        yield


# --- sequences


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_sequences_do_not_see_each_other(tiny: Make, name: str, mode: str) -> None:
    model, (a, b) = tiny(name), (tokens_of(tiny(name), n, n) for n in (9, 5))
    with loaded(model, mode) as m, loaded(model, "none") as one, m.context(n_seq_max=3, n_ctx=768) as context:
        want_a, want_b = one.logits(a), one.logits(b)
        both = context.decode(gg.Batch().add(a, 0, logits="all").add(b, 2, logits="all"))
        assert gg.nmse(both, np.concatenate([want_a, want_b])) <= TOLERANCE
        assert [context.n_past(s) for s in range(3)] == [9, 0, 5]
        # a copy goes its own way
        context.seq_cp(0, 1)
        more = [7, 8]
        assert gg.nmse(context.decode(more, 1), one.logits([*a, *more])[-1:]) <= TOLERANCE
        assert gg.nmse(context.decode([3], 0), one.logits([*a, 3])[-1:]) <= TOLERANCE
        context.seq_keep(1)
        assert [context.n_past(s) for s in range(3)] == [0, 11, 0]
        context.clear()
        assert [context.n_past(s) for s in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_a_common_beginning_is_computed_once(tiny: Make, mode: str) -> None:
    model, a = tiny("llama"), tokens_of(tiny("llama"), 6)
    with loaded(model, mode) as m, m.context(n_seq_max=2, kv_unified=True) as context:
        context.decode(a, seq=(0, 1))
        assert context.n_past(0) == context.n_past(1) == 6
        want = m.logits([*a, 4])[-1:]
        assert gg.nmse(context.decode([4], 1), want) <= TOLERANCE
        context.seq_cp(1, 0, 6)  # a part: one cache for all
        assert context.n_past(0) == 7


@pytest.mark.parametrize("mode", MODES)
def test_taking_tokens_out_and_shifting(tiny: Make, mode: str) -> None:
    model, a = tiny("llama"), tokens_of(tiny("llama"), 12)
    with loaded(model, mode) as m, m.default_context as context, loaded(model, "none") as one:
        context.decode(a)
        context.seq_rm(0, 8)
        assert context.n_past() == 8
        assert gg.nmse(context.decode([1]), one.logits([*a[:8], 1])[-1:]) <= TOLERANCE
        # the keys behind the gap are turned as if they had been at their new place; the values saw what is gone
        context.shift(3, keep=2)
        assert context.n_past() == 6
        shifted = context.decode([2])
        other = one.default_context
        other.decode([*a[:8], 1], from_empty=True)
        other.shift(3, keep=2)
        assert gg.nmse(shifted, other.decode([2])) <= TOLERANCE
        assert gg.nmse(shifted, one.logits([*a[:8], 1, 2])[-1:]) > 1e-6, "the shift changed nothing"


def test_a_recurrent_state_cannot_be_cut(tiny: Make) -> None:
    model = tiny("qwen35")
    with loaded(model, "tensor") as m, m.context() as context:
        context.decode(tokens_of(model, 8))
        with pytest.raises(gg.UnsupportedError, match="recurrent"):
            context.seq_rm(0, 4)
        assert context.n_past() == 8
        context.seq_rm(0)
        assert context.n_past() == 0


@pytest.mark.parametrize("mode", ["none", "tensor"])
def test_batches_longer_than_n_batch(tiny: Make, mode: str) -> None:
    model, a = tiny("llama"), tokens_of(tiny("llama"), 50)
    with loaded(model, mode, n_batch=16) as m, loaded(model, "none") as one:
        assert gg.nmse(m.logits(a), one.logits(a)) <= TOLERANCE
        out = m.default_context.decode(gg.Batch().add(a, logits="none").add([5], logits="last"), from_empty=True)
        assert out.shape == (1, model.n_vocab) and gg.nmse(out, one.logits([*a, 5])[-1:]) <= TOLERANCE


def test_a_closed_model_leaves_its_contexts_alone(tiny: Make) -> None:
    model, a = tiny("llama"), tokens_of(tiny("llama"), 5)
    m = loaded(model, "tensor")
    want, context = m.logits(a), m.context()
    m.close()
    with pytest.raises(gg.ClosedError):
        m.logits(a)
    assert np.array_equal(context.decode(a, logits="all"), want)
    context.close()
    assert all(d.stats().buffer_bytes == 0 for d in gg.virtual_cpus(2))


# --- generation


@pytest.mark.parametrize("name", NAMES)
def test_greedy_generation_is_the_argmax_in_every_mode(tiny: Make, name: str) -> None:
    model, a = tiny(name), tokens_of(tiny(name), 6)
    with loaded(model, "none") as one:
        want: list[int] = []
        for _ in range(8):
            want.append(int(one.logits([*a, *want])[-1].argmax()))
    for mode in MODES:
        with loaded(model, mode) as m:
            assert [t.id for t in m.generate(a, max_tokens=8, temperature=0)] == want
            assert [t.id for t in m.generate(a, max_tokens=8, sampler=gg.GREEDY)] == want


def test_samplers(words: TinyModel) -> None:
    with loaded(words, "tensor") as m:
        chosen = [[t.id for t in m.generate("the cat", max_tokens=12, seed=seed)] for seed in (1, 1, 2)]
        assert chosen[0] == chosen[1] != chosen[2]
        assert m.sampler().names[-2:] == ("temp", "dist")
        assert [t.id for t in m.generate("the cat", max_tokens=3, temperature=0, logit_bias={65: 1000})] == [65] * 3
        spoken = "".join(t.text for t in m.generate("the cat", grammar='root ::= "yes" | "n\u00f6"'))
        assert spoken in ("yes", "n\u00f6")
        for options in (
            {"mirostat": 1}, {"mirostat": 2}, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"typical_p": 0.5}, {"top_n_sigma": 1.0},
            {"xtc_probability": 0.5}, {"dry_multiplier": 0.8}, {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1},
        ):  # fmt: skip
            assert len(list(m.generate("the cat", max_tokens=5, seed=3, **options))) == 5
        with m.sampler(temperature=0, repeat_penalty=1e6) as shared:  # remembers over two generations
            first = [t.id for t in m.generate("the cat", max_tokens=5, sampler=shared)]
            again = [t.id for t in m.generate("the cat", max_tokens=5, sampler=shared)]
            shared.reset()
            assert [t.id for t in m.generate("the cat", max_tokens=5, sampler=shared)] == first != again


def test_a_penalised_token_does_not_come_again(words: TinyModel) -> None:
    with loaded(words, "none") as m:
        ids = [t.id for t in m.generate("the cat", max_tokens=20, temperature=0, repeat_penalty=1e6)]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "wrong", [{"top_k": -1}, {"top_p": 2}, {"temperature": -1}, {"seed": -1}, {"logit_bias": {10**6: 1}}, {"warmth": 1}, {"mirostat": 3}, {"max_tokens": -1}, {"on_full": "x"}]
)
def test_samplers_that_make_no_sense(words: TinyModel, wrong: dict[str, Any]) -> None:
    with loaded(words, "none") as m:
        with pytest.raises(gg.ArgumentError, match=str(next(iter(wrong)))):
            m.generate("the cat", **wrong)
        with pytest.raises(gg.ModelError, match="grammar"):
            m.sampler(grammar="root ::= (")


def test_a_sampler_of_another_model(words: TinyModel, tiny: Make) -> None:
    with gg.Model(words) as m, gg.Model(tiny("llama")) as other, gg.Model(words, "vcpu:2", split_mode="tensor") as split:
        sampler = m.sampler(temperature=0)
        with pytest.raises(gg.ArgumentError, match=r"of words\.gguf, not of"):
            other.generate([1, 2], sampler=sampler)
        assert len(list(split.generate([1, 2], sampler=sampler, max_tokens=3))) == 3, "the same file, loaded otherwise"


@pytest.mark.parametrize("mode", ["none", "tensor"])
def test_a_full_context(words: TinyModel, mode: str) -> None:
    with loaded(words, mode, n_ctx=32) as m:
        n = len(m.tokenize("the cat"))
        stopped = list(m.generate("the cat", temperature=0, logit_bias={2: -np.inf}))
        assert n + len(stopped) == 33  # the last one is chosen, but not put into the cache
        shifted = list(m.generate("the cat", temperature=0, logit_bias={2: -np.inf}, on_full="shift", max_tokens=100))
        assert len(shifted) == 100 and [t.id for t in shifted[: len(stopped)]] == [t.id for t in stopped]
        with m.context(n_ctx=2) as small:  # one token is forgotten at least
            assert len(list(small.generate([5], temperature=0, logit_bias={2: -np.inf}, on_full="shift", max_tokens=10))) == 10
        assert len(list(m.generate("the cat", on_full="shift", keep=31, max_tokens=50, logit_bias={2: -np.inf}))) == 50
        with pytest.raises(gg.ArgumentError, match=r"keep=32: .* fewer than the 32 tokens"):
            m.generate("the cat", on_full="shift", keep=32)


def test_arguments_that_are_none(tiny: Make) -> None:
    with loaded(tiny("llama"), "tensor") as m, m.context() as context:
        with pytest.raises(gg.ArgumentError, match="unequal lengths"):
            context.decode([[1, 2], [3]])  # type: ignore[list-item]
        with pytest.raises(gg.ArgumentError, match="observer=3"):
            context.decode([1, 2], observer=3)  # type: ignore[arg-type]
        for wrong in (None, 5):
            with pytest.raises(gg.ArgumentError, match="list of adapters"):
                context.set_adapters(wrong)  # type: ignore[arg-type]
        assert context.decode([1, 2]).shape == (1, m.n_vocab), "a refused argument poisoned the context"


def test_generating_costs_nothing_that_grows_with_the_vocabulary(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(tiny("llama"), "none") as m:
        monkeypatch.setattr(gg.Context, "_floats", lambda *a: pytest.fail("logits were copied"))
        assert len(list(m.generate([1, 2, 3], max_tokens=4, temperature=0))) == 4


# --- text


def test_text_and_tokens(words: TinyModel, tiny: Make) -> None:
    with gg.Model(words) as m:
        for text in ("the cat was on it", "n\u00e4ive \u2603 \U0001f408", " two  spaces ", "w1 w2", "\x00", ""):
            ids = m.tokenize(text, special=False)
            assert m.detokenize(ids).strip() == text.strip()
            assert b"".join(m.vocab.piece(i) for i in ids).decode().strip() == text.strip()
        assert m.tokenize("the")[0] == m.vocab.bos == 1 and m.vocab.eos == 2
        assert m.vocab.is_end(2) and not m.vocab.is_end(70)
        assert m.tokenize("</s>", special=False) != [2] and 2 in m.tokenize("</s>", special=False, parse_special=True)
        long = "the cat " * 5000
        assert m.detokenize(m.tokenize(long, special=False)).strip() == long.strip()
        for wrong in ([-1], [10**9], [len(m.vocab)]):
            with pytest.raises(gg.IndexRangeError):
                m.detokenize(wrong)
        with pytest.raises(gg.ArgumentError):
            m.tokenize(5)  # type: ignore[arg-type]
    with gg.Model(tiny("llama")) as bare:
        assert not bare.vocab.has_tokenizer
        with pytest.raises(gg.UnsupportedError, match="no tokenizer"):
            bare.generate("the cat")
        assert all(t.text == "" for t in bare.generate([1, 2], max_tokens=3))


# --- states


@pytest.mark.parametrize("name", NAMES)
def test_states_move_between_modes(tiny: Make, name: str) -> None:
    model, a = tiny(name), tokens_of(tiny(name), 9)
    models = {mode: loaded(model, mode) for mode in MODES}
    try:
        want = models["none"].logits([*a, 5])[-1:]
        for source in models.values():
            with source.context() as context:
                context.decode(a)
                whole = context.save()
            with source.context(n_seq_max=2, n_ctx=512) as context:
                context.decode(a)
                sequence = context.save(0)
            for target in models.values():
                with target.context() as context:
                    context.restore(whole)
                    assert context.n_past() == 9
                    assert gg.nmse(context.decode([5]), want) <= TOLERANCE
                with target.context(n_seq_max=2, n_ctx=512) as context:
                    context.restore(sequence, 1)
                    assert [context.n_past(s) for s in (0, 1)] == [0, 9]
                    assert gg.nmse(context.decode([5], 1), want) <= TOLERANCE
    finally:
        for m in models.values():
            m.close()


def test_states_that_do_not_fit(tiny: Make) -> None:
    a = tokens_of(tiny("llama"), 9)
    with loaded(tiny("llama"), "tensor") as m, m.context() as context:
        context.decode(a)
        state = context.save()
        for cut in (0, 1, 20, 60, len(state) - 1):
            with pytest.raises(gg.FileFormatError):
                context.restore(state[:cut])
        for at in range(0, len(state), max(1, len(state) // 50)):
            damaged = bytearray(state)
            damaged[at] ^= 0x10
            with pytest.raises(gg.FileFormatError):
                context.restore(bytes(damaged))
        assert context.n_past() == 9, "a refused state changed the context"
        with pytest.raises(gg.ArgumentError, match="kind"):
            context.restore(context.save(0))
        with m.context(n_seq_max=2) as other, pytest.raises(gg.ArgumentError, match="n_stream"):
            other.restore(context.save(0), 1)
        with m.context(type_k="f16", type_v="f16") as other, pytest.raises(gg.ArgumentError, match="type_k"):
            other.restore(state)
        with m.context(n_ctx=256, n_batch=64) as small, loaded(tiny("llama"), "tensor", n_ctx=2048) as large:
            n = 600
            large.default_context.decode(np.ones(n, np.int32))
            with pytest.raises(gg.ModelError, match="does not take"):
                small.restore(large.default_context.save())
            assert small.n_past() == 0
            assert gg.nmse(small.decode(a, logits="all"), m.logits(a)) == 0, "the context does not work any more"
    with loaded(tiny("qwen3"), "none") as m, pytest.raises(gg.ArgumentError, match="arch"):
        m.default_context.restore(state)


# --- embeddings


@pytest.mark.parametrize("pooling", ["none", "mean", "cls", "last"])
@pytest.mark.parametrize("name", ["llama", "qwen35"])
def test_embeddings_are_the_same_in_every_mode(tiny: Make, name: str, pooling: str) -> None:
    model = tiny(name)
    texts = [tokens_of(model, n, n) for n in (7, 1, 12, 5, 30)]
    found: dict[str, list[Any]] = {}
    for mode in MODES:
        with loaded(model, mode) as m, m.context(embeddings=True, pooling=pooling, n_seq_max=3, n_batch=32) as context:
            assert context.pooling == pooling
            found[mode] = context.embed(texts)
            alone = [context.embed([t], normalize=False)[0] for t in texts]
            for vector, one in zip(found[mode], alone, strict=True):
                assert np.allclose(np.linalg.norm(vector, axis=-1), 1, atol=1e-5)
                assert gg.nmse(vector * np.linalg.norm(one, axis=-1, keepdims=True), one) <= 1e-9
    for mode in MODES:
        for x, y, text in zip(found[mode], found["none"], texts, strict=True):
            assert x.shape == ((len(text), model.n_embd) if pooling == "none" else (model.n_embd,))
            assert gg.nmse(x, y) <= TOLERANCE
    assert gg.nmse(found["none"][0][-1:], found["none"][2][-1:]) > 1e-3, "all embeddings are alike"


def test_pooling_is_what_it_says(tiny: Make) -> None:
    model, a = tiny("llama"), tokens_of(tiny("llama"), 7)
    with loaded(model, "tensor") as m:

        def embedded(pooling: str) -> Any:
            with m.context(embeddings=True, pooling=pooling) as context:
                return context.embed([a], normalize=False)[0]

        tokens = embedded("none")
        assert gg.nmse(embedded("mean"), tokens.mean(0)) <= 1e-10
        assert gg.nmse(embedded("last"), tokens[-1]) <= 1e-10
        assert gg.nmse(embedded("cls"), tokens[0]) <= 1e-10
        with pytest.raises(gg.ArgumentError, match="embeddings=True"):
            m.default_context.embed([a])
        with m.context(embeddings=True) as context, pytest.raises(gg.ArgumentError, match="text 1 has 3000 tokens"):
            context.embed([a, [1] * 3000])


@pytest.mark.parametrize("name, n_labels", [("bert", 1), ("bert", 3), ("qwen3", 2)])
@pytest.mark.usefixtures("exactly")
def test_ranks(tmp_path: Path, name: str, n_labels: int) -> None:
    """A classifier behind the first token of an encoder, or behind the last one of a decoder, in every mode."""
    bare = tiny_gguf(tmp_path / "bare.gguf", name)
    info = check_gguf(bare)
    rng = np.random.default_rng(n_labels)
    matrices = {"cls.output.weight": rng.standard_normal((n_labels, bare.n_embd)).astype(np.float32)}
    if name == "bert":
        matrices["cls.weight"] = (rng.standard_normal((bare.n_embd, bare.n_embd)) / np.sqrt(bare.n_embd)).astype(np.float32)
    with gg.Model(bare, **F32) as m:
        old = {t.name: m.weight(t.name) for t in info.tensors if not t.name.startswith("cls")}
    metadata = {k: v.load() if isinstance(v, GGUFArray) else v for k, v in info.metadata.items()}
    labels = {} if n_labels == 1 else {f"{name}.classifier.output_labels": [f"label {i}" for i in range(n_labels)]}
    model = write_gguf(tmp_path / "rank.gguf", {**metadata, **labels}, {**old, **matrices})
    texts = [tokens_of(bare, n, n) for n in (7, 1, 12)]
    with gg.Model(bare, **F32) as m, m.context(embeddings=True, pooling="cls" if name == "bert" else "last") as context:
        x = np.stack(context.embed(texts, normalize=False)).astype(np.float64)
    if name == "bert":
        x = np.tanh(x @ matrices["cls.weight"].T)
    want = x @ matrices["cls.output.weight"].T
    if name == "qwen3":
        want = np.exp(want) / np.exp(want).sum(-1, keepdims=True)
    for mode in MODES:
        with gg.Model(model, **{**F32, **MODES[mode]}) as m, m.context(embeddings=True, pooling="rank", n_seq_max=3) as context:
            got = context.embed(texts)
            assert [v.shape for v in got] == [(n_labels,)] * 3 and gg.nmse(np.stack(got), want) <= TOLERANCE, mode


def test_ranks_need_a_classifier(tiny: Make, tmp_path: Path) -> None:
    """llama.cpp hands out the first numbers of the embedding otherwise."""
    with gg.Model(tiny("llama"), "vcpu:2", split_mode="tensor") as m, pytest.raises(gg.UnsupportedError, match=r"needs a classifier.*'mean'"):
        m.context(embeddings=True, pooling="rank")
    bare = tiny_gguf(tmp_path / "bare.gguf", "bert")
    info = check_gguf(bare)
    metadata = {k: v.load() if isinstance(v, GGUFArray) else v for k, v in info.metadata.items()}
    with gg.Model(bare) as m:
        old = {t.name: m.weight(t.name) for t in info.tensors if not t.name.startswith("cls")}
    dense = np.ones((bare.n_embd, bare.n_embd), np.float32)
    model = write_gguf(tmp_path / "rank.gguf", {**metadata, "bert.pooling_type": 4}, {**old, "cls.weight": dense})
    with gg.Model(model) as m, pytest.raises(gg.UnsupportedError, match=r"ends in cls\.weight .* llama.cpp reads 1"):
        m.context(embeddings=True)


# --- adapters


def write_adapter(path: Path, model: TinyModel, names: list[str], *, rank: int = 4, arch: str = "llama", **wrong: int) -> Path:
    rng = np.random.default_rng(len(names))
    tensors = {}
    for t in gg.Model(model).info.tensors:
        if t.name in names:
            n_in, n_out = t.ne[:2]
            lead = t.ne[2:][::-1]
            tensors[f"{t.name}.lora_a"] = 0.3 * rng.standard_normal((*lead, rank, n_in)).astype(np.float32)
            tensors[f"{t.name}.lora_b"] = 0.3 * rng.standard_normal((*lead, n_out + wrong.get("n_out", 0), rank)).astype(np.float32)
    assert len(tensors) == 2 * len(names)
    metadata = {"general.type": "adapter", "general.architecture": arch, "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    return write_gguf(path, metadata, tensors)


DENSE = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
EXPERTS = ["attn_q", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]


@pytest.mark.parametrize("name, kinds", [("llama", [k]) for k in DENSE] + [("llama", DENSE), ("llama-moe", EXPERTS)])
def test_adapters(tiny: Make, tmp_path: Path, name: str, kinds: list[str]) -> None:
    """llama.cpp itself cannot do this in tensor mode: it mirrors the adapter, and the split of the weight does not fit then."""
    model, a = tiny(name), tokens_of(tiny(name), 9)
    path = write_adapter(tmp_path / "lora.gguf", model, [f"blk.1.{k}.weight" for k in kinds])
    want: dict[float, Any] = {}
    for mode in MODES:
        with loaded(model, mode) as m, m.context() as context, m.adapter(path) as adapter:
            bare = context.decode(a, logits="all")
            for scale in (1.0, -0.5):
                context.set_adapters({adapter: scale})
                got = context.decode(a, logits="all", from_empty=True)
                assert gg.nmse(got, bare) > 1e-4, "the adapter does nothing"
                assert gg.nmse(got, want.setdefault(scale, got)) <= TOLERANCE
            context.set_adapters()
            assert gg.nmse(context.decode(a, logits="all", from_empty=True), bare) <= 1e-13
            assert gg.nmse(m.logits(a), bare) <= 1e-13, "an adapter of one context is seen in another"


def test_adapters_that_are_none(tiny: Make, tmp_path: Path) -> None:
    model = tiny("llama")
    with loaded(model, "tensor") as m, loaded(model, "none") as other, m.context() as context:
        with pytest.raises(gg.FileFormatError, match="no LoRA adapter"):
            m.adapter(model.path)
        with pytest.raises(gg.ModelNotFoundError):
            m.adapter(tmp_path / "nothing.gguf")
        with pytest.raises(gg.FileFormatError, match="'qwen3'"):
            m.adapter(write_adapter(tmp_path / "a.gguf", model, ["blk.0.ffn_up.weight"], arch="qwen3"))
        with pytest.raises(gg.ModelError, match="incorrect shape"):
            m.adapter(write_adapter(tmp_path / "b.gguf", model, ["blk.0.ffn_up.weight"], n_out=32))
        fine = write_adapter(tmp_path / "c.gguf", model, ["blk.0.ffn_up.weight"])
        foreign = other.adapter(fine)
        with pytest.raises(gg.ArgumentError, match="no adapter of"):
            context.set_adapters([foreign])
        closed = m.adapter(fine)
        closed.close()
        with pytest.raises(gg.ClosedError):
            context.set_adapters([closed])
        assert context.decode([1]).shape == (1, model.n_vocab)
        foreign.close()


# --- memory


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_what_the_devices_have(tiny: Make, mode: str) -> None:
    with loaded(tiny("llama"), mode) as m:
        m.logits([1, 2, 3])
        use = {u.device: u for u in m.default_context.memory()}
        devices = gg.parse_devices(MODES[mode]["device"])
        for d in devices:
            at = use[d.name]
            reduction = m.plan(3).memory[devices.index(d)].reduction if mode.startswith("tensor") else 0
            assert at.total + reduction == d.stats().buffer_bytes
            assert at.weights and at.compute and (at.caches or mode == "layer")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert all(d.stats().buffer_bytes == 0 for d in gg.virtual_cpus(3)), "a context or a model was not freed"
