"""Chat templates, conversations, and texts where token ids are taken, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyggml as gg
from pyggml.gguf_check import check_gguf
from pyggml.gguf_info import GGUFArray
from pyggml.model.chat import builtin_templates
from pyggml.testing import tiny_gguf
from pyggml.testing.gguf_writer import write_gguf

CHATML = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Gr\u00fc\u00dfe \u2603"}]


def with_template(path: Path, template: str | None, arch: str = "llama") -> Path:
    """A tiny model whose every byte is a token, with a chat template."""
    info = check_gguf(tiny_gguf(path, arch, vocab="bytes", n_layer=2 if arch == "llama" else None))
    metadata: dict[str, Any] = {k: v.load() if isinstance(v, GGUFArray) else v for k, v in info.metadata.items()}
    tensors = {t.name: np.fromfile(t.path, np.float32, t.nbytes // 4, offset=t.offset).reshape(t.ne[::-1]) for t in info.tensors}
    return write_gguf(path, {**metadata, **({} if template is None else {"tokenizer.chat_template": template})}, tensors)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tmp_path_factory.mktemp("chat") / "chatml.gguf", CHATML)


def test_the_models_own_template(chatml: Path) -> None:
    with gg.Model(chatml) as model:
        assert model.chat_template == model.vocab.chat_template == CHATML
        want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGr\u00fc\u00dfe \u2603<|im_end|>\n"
        assert model.apply_chat_template(TALK, add_assistant=False) == want
        assert model.apply_chat_template(TALK) == want + "<|im_start|>assistant\n"
        assert "<start_of_turn>user" in model.apply_chat_template(TALK, template="gemma")
        long = [{"role": "user", "content": "\u2603" * 5000}]
        assert model.apply_chat_template(long).count("\u2603") == 5000


def test_all_builtin_templates_take_a_conversation(chatml: Path) -> None:
    assert {"chatml", "llama3", "gemma", "phi3"} <= set(builtin_templates())
    with gg.Model(chatml) as model:
        for name in builtin_templates():
            assert "Gr\u00fc\u00dfe \u2603" in model.apply_chat_template(TALK, template=name), name


def test_what_has_no_template_or_an_unknown_one(chatml: Path, tmp_path: Path) -> None:
    with gg.Model(with_template(tmp_path / "bare.gguf", None)) as bare:
        assert bare.chat_template is None
        for call in (lambda: bare.apply_chat_template(TALK), lambda: bare.chat()):
            with pytest.raises(gg.UnsupportedError, match=r"has no chat template: give template=.*chatml"):
                call()
    with gg.Model(with_template(tmp_path / "odd.gguf", "{{ messages | tojson }}")) as odd, pytest.raises(gg.UnsupportedError, match="parse_special"):
        odd.apply_chat_template(TALK)
    with gg.Model(chatml) as model:
        with pytest.raises(gg.UnsupportedError, match=r"'chatlm'.*similar: .*chatml"):
            model.chat(template="chatlm")
        for wrong in ([], "hello", {"role": "user", "content": "x"}, [{"role": "user"}], [{"role": "user", "content": 5}], ["x"], None,
                      [{"role": "user", "content": "cut\0here"}], [{"role": "user", "content": "\ud800"}]):  # fmt: skip
            with pytest.raises(gg.ArgumentError, match="message"):
                model.apply_chat_template(wrong)  # type: ignore[arg-type]
    with gg.Model(tiny_gguf(tmp_path / "ids.gguf")) as ids, pytest.raises(gg.UnsupportedError, match="no tokenizer"):
        ids.chat(template="chatml")


@pytest.mark.parametrize("mode", [None, "tensor"])
@pytest.mark.parametrize("arch", ["llama", "qwen35"])
def test_a_conversation_computes_what_the_whole_text_does(chatml: Path, tmp_path: Path, arch: str, mode: str | None) -> None:
    """Three turns, the second one taken in part: each answer is what a model says that reads everything anew."""
    path = chatml if arch == "llama" else with_template(tmp_path / "m.gguf", CHATML, arch)
    options = {"n_ctx": 1024, "type_k": "f32", "type_v": "f32", "attn_f32": True, "threads": 1}
    with gg.Model(path, "vcpu:2" if mode else None, split_mode=mode, **options) as model, gg.Model(path, **options) as fresh:
        chat = model.chat(system="Be brief.")
        for turn, (said, n) in enumerate((("Hello", 4), ("And then?", 7), ("Good.", 4))):
            answer = []
            before = model.default_context.n_past()
            for token in chat.say(said, max_tokens=n, temperature=0):
                answer.append(token)
                if turn == 1 and len(answer) == 5:
                    break
            want = list(fresh.generate(fresh.tokenize(fresh.apply_chat_template(chat.messages[:-1]), parse_special=True), max_tokens=n, temperature=0))
            assert [t.id for t in answer] == [t.id for t in want][: len(answer)]
            assert chat.messages[-1] == {"role": "assistant", "content": "".join(t.text for t in answer)}
            assert before == 0 if turn == 0 else before > 30
        assert [m["role"] for m in chat.messages] == ["system", *["user", "assistant"] * 3]


def test_only_what_is_new_is_computed(chatml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    real = gg.Context._feed
    monkeypatch.setattr(gg.Context, "_feed", lambda self, tokens, seq: (fed.append(len(tokens)), real(self, tokens, seq))[1])
    with gg.Model(chatml, n_ctx=1024) as model:
        chat = model.chat(system="x" * 300)
        list(chat.say("Hello", max_tokens=3))
        first = fed[0]
        fed.clear()
        list(chat.say("Hello", max_tokens=3))
        assert first > 300 and fed[0] < 100
        chat.messages[0]["content"] = "y" * 300  # changed by hand: read again
        fed.clear()
        list(chat.say("Hello", max_tokens=3))
        assert fed[0] > 300


def test_who_else_uses_the_context_is_noticed(chatml: Path) -> None:
    """What is in the context then is another text, as long as what the conversation had read there."""
    others = {
        "logits": lambda m: m.logits(np.arange(150) % 60),
        "clear": lambda m: (m.default_context.clear(), m.default_context.decode(np.arange(150) % 60)),
        "restore": lambda m: m.default_context.restore(saved),
        "shift": lambda m: m.default_context.shift(3),
    }
    with gg.Model(chatml, n_ctx=1024, threads=1) as model, gg.Model(chatml, n_ctx=1024, threads=1) as fresh:
        model.logits(np.arange(150) % 60)
        saved = model.default_context.save()
        for name, other in others.items():
            for when in ("between", "within"):
                chat = model.chat()
                for i, _ in enumerate(chat.say("Hello", max_tokens=6, temperature=0)):
                    if when == "within" and i == 2:
                        other(model)
                if when == "between":
                    other(model)
                answer = [t.id for t in chat.say("And then?", max_tokens=4, temperature=0)]
                whole = fresh.tokenize(fresh.apply_chat_template(chat.messages[:-1]), parse_special=True)
                assert answer == [t.id for t in fresh.generate(whole, max_tokens=4, temperature=0)], (name, when)
        with pytest.raises(gg.ArgumentError, match="n_ctx"):
            chat.say("x", on_full="shift")


def test_a_conversation_that_does_not_fit(chatml: Path) -> None:
    with gg.Model(chatml, n_ctx=256) as model:
        chat = model.chat()
        list(chat.say("Hello", max_tokens=3))
        before = [dict(m) for m in chat.messages]
        for wrong in ("x" * 400, 5, "a\0b"):
            with pytest.raises(gg.ArgumentError):
                chat.say(wrong)  # type: ignore[arg-type]
            assert chat.messages == before
        assert list(chat.say("Go on", max_tokens=3))


def test_texts_where_token_ids_are_taken(chatml: Path) -> None:
    texts = ["the cat", "was on it", "\u2603"]
    with gg.Model(chatml, "vcpu:2", split_mode="tensor") as model:
        with model.context(embeddings=True, pooling="mean", n_seq_max=3) as context:
            found = context.embed(texts)
            for one, same, text in zip(found, context.embed([model.tokenize(t) for t in texts]), texts, strict=True):
                assert np.array_equal(one, same)
                (alone,) = context.embed(text)
                assert gg.nmse(alone, one) <= 1e-9
            mixed = context.embed(["the cat", model.tokenize("was on it")])
            assert gg.nmse(mixed[1], found[1]) <= 1e-9
            for wrong in ([1, 2, 3], [None], 5, [[]], ["x" * 5000]):
                with pytest.raises(gg.ArgumentError):
                    context.embed(wrong)  # type: ignore[arg-type]
        with model.context() as context:
            ids = [t.id for t in context.generate("the cat", max_tokens=5, temperature=0)]
            context.clear()
            assert ids == [t.id for t in context.generate(model.tokenize("the cat"), max_tokens=5, temperature=0)]
    with gg.Model(chatml) as model, pytest.raises(gg.ArgumentError, match="tokens must be"):
        model.logits("the cat")  # type: ignore[arg-type]


def test_texts_need_a_tokenizer(tmp_path: Path) -> None:
    with gg.Model(tiny_gguf(tmp_path / "ids.gguf")) as model, model.context(embeddings=True) as context, pytest.raises(gg.UnsupportedError, match="no tokenizer"):
        context.embed("the cat")
