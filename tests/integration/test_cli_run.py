"""`pyggml run`: streamed text in every configuration, and nothing else on the output."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pyggml as gg
from pyggml.benchmark import BenchSetup, BenchTest, measure
from pyggml.cli import main
from pyggml.model import ModelOptions
from pyggml.model.reduction import active_reduction, cuda_reduction
from pyggml.testing import TinyModel, tiny_gguf
from pyggml.testing.gguf_writer import write_gguf

PROMPT = "the cat was on"
GREEDY = ["--temp", "0", "-n", "12", "--ignore-eos"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A llama with a tokenizer."""
    return tiny_gguf(tmp_path_factory.mktemp("words") / "words.gguf", vocab="bytes", n_layer=2)


def command(*arguments: object) -> list[str]:
    # one thread: two of the CPU device wait for each other in turns where other tests run, too
    return [sys.executable, "-m", "pyggml", "run", "-t", "1", *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments)]


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `pyggml run` and returns what is on the output and on the standard error."""

    def call(*arguments: object, status: int = 0, given: str = "") -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        with pytest.raises(SystemExit) as ended:
            main(command(*arguments)[3:])
        out = capsys.readouterr()
        assert ended.value.code == status, out.err
        return out.out, out.err

    return call


def continued(model: TinyModel, prompt: str | list[int] = PROMPT, n: int = 12, **options: object) -> list[gg.model.GeneratedToken]:
    with gg.Model(model, threads=1) as m:
        bias = dict.fromkeys(m.vocab.ends, -np.inf)
        return list(m.generate(prompt, max_tokens=n, **{"temperature": 0, "logit_bias": bias, **options}))  # type: ignore[arg-type]


def tokens_of(model: TinyModel) -> list[int]:
    with gg.Model(model, threads=1) as m:
        return m.tokenize(PROMPT)


def text_of(tokens: list[gg.model.GeneratedToken]) -> str:
    return "".join(t.text for t in tokens)


CONFIGURATIONS = {
    "cpu": ([], r"CPU \(none\)"),
    "none": (["-dev", "vcpu:1"], r"VCPU0 \(none\)"),
    "layer": (["-dev", "vcpu:2", "-sm", "layer", "-ts", "1,1"], r"VCPU0,VCPU1 \(layer, 1:1\)"),
    "tensor": (["-dev", "vcpu:2", "-ts", "3,1", "-fa", "on"], r"VCPU0,VCPU1 \(tensor, 3:1\), all-reduce: shared memory"),
    "rules": (["-dev", "vcpu:3", "--rule", "ffn=M", "-c", "256"], r"VCPU0,VCPU1,VCPU2 \(tensor\), all-reduce: shared memory"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_output_is_the_text_alone(run: Run, words: TinyModel, name: str) -> None:
    options, where = CONFIGURATIONS[name]
    out, err = run(words, "-p", PROMPT, *GREEDY, "-ctk", "f32", "-ctv", "f32", *options)
    want = continued(words)
    assert out == text_of(want) + "\n" and out.strip()
    n = len(tokens_of(words))
    assert re.search(rf"prompt: {n} tokens, [\d.]+ t/s; generated: 12 tokens, [\d.]+ t/s; {where}; seed \d+", err), err
    assert "loading" not in err, "a progress bar where there is no terminal"


def test_prompts(run: Run, words: TinyModel, tmp_path: Path) -> None:
    want = text_of(continued(words)) + "\n"
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    assert run(words, "-f", tmp_path / "prompt.txt", *GREEDY)[0] == want
    assert run(words, "-f", "-", *GREEDY, given=PROMPT)[0] == want
    ids = ",".join(map(str, tokens_of(words)))
    assert run(words, "--tokens", ids, *GREEDY)[0] == want
    assert "nothing to continue" in run(words, status=2)[1]
    assert "one of them" in run(words, "-p", "a", "--tokens", "1", status=2)[1]


def test_a_model_without_a_tokenizer_prints_ids(run: Run, tmp_path: Path) -> None:
    bare = tiny_gguf(tmp_path / "bare.gguf", n_layer=2)
    want = [t.id for t in continued(bare, [1, 2, 3], 5)]
    assert run(bare, "--tokens", "1,2,3", "--temp", 0, "-n", 5, "-dev", "vcpu:2")[0].split() == list(map(str, want))
    assert "no tokenizer" in run(bare, "-p", "text", status=2)[1]


def test_sampling(run: Run, words: TinyModel, tmp_path: Path) -> None:
    chosen = [run(words, "-p", PROMPT, "-n", 15, "-s", seed, "--temp", 1.5, "--top-k", 0, "--top-p", 1, "--min-p", 0)[0] for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] == text_of(continued(words, n=15, seed=1, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, logit_bias={})) + "\n"
    out, err = run(words, "-p", PROMPT, "-n", 10)
    seed = re.search(r"seed (\d+)", err)[1]  # type: ignore[index]
    assert run(words, "-p", PROMPT, "-n", 10, "-s", seed)[0] == out, "a random seed that is told can be used again"
    penal = run(words, "-p", PROMPT, *GREEDY, "--repeat-penalty", 1e6)[0]
    assert penal == text_of(continued(words, repeat_penalty=1e6)) + "\n" != text_of(continued(words)) + "\n"
    (tmp_path / "g.gbnf").write_text('root ::= "yes" | "no"')
    assert run(words, "-p", PROMPT, "--grammar-file", tmp_path / "g.gbnf")[0] in ("yes\n", "no\n")
    assert run(words, "-p", PROMPT, "--grammar", 'root ::= "yes"')[0] == "yes\n"
    assert "grammar" in run(words, "-p", PROMPT, "--grammar", "root ::= (", status=2)[1]
    assert "top_p" in run(words, "-p", PROMPT, "--top-p", 3, status=2)[1]


def test_conversations(run: Run, words: TinyModel) -> None:
    """The first message from -p, others from the input; the answers are those of `Model.chat`."""
    with gg.Model(words, threads=1, n_ctx=512) as m:
        bias = dict.fromkeys(m.vocab.ends, -np.inf)
        chat = m.chat(system="Be brief.", template="chatml")
        want = [text_of(list(chat.say(said, max_tokens=8, temperature=0, logit_bias=bias))) for said in ("Hello", "And then?")]
    how = ["-cnv", "-sys", "Be brief.", "--chat-template", "chatml", "-c", 512, "-n", 8, "--temp", 0, "--ignore-eos"]
    out, err = run(words, *how, given="Hello\n\nAnd then?\n")
    assert out == "".join(f"{answer}\n" for answer in want)
    assert re.search(r"prompt: \d+ tokens, [\d.]+ t/s; generated: 16 tokens", err), err
    assert run(words, *how, "-p", "Hello", "-dev", "vcpu:2", given="And then?\n")[0] == want[0] + "\n", "with -p the input is not read"
    assert run(words, *how, given="")[0] == ""
    assert "chat template" in run(words, "-cnv", "-p", "Hello", status=2)[1]
    assert "give -cnv" in run(words, "-sys", "x", "-p", "Hello", status=2)[1]
    assert "--tokens" in run(words, *how, "--tokens", "1,2", status=2)[1]
    assert "larger -c" in run(words, *how, "-p", "x", "--context-shift", status=2)[1]


def test_the_end_of_the_context(run: Run, words: TinyModel) -> None:
    n = len(tokens_of(words))
    stopped = run(words, "-p", PROMPT, "-c", 32, "--temp", 0, "--ignore-eos")[1]
    assert f"generated: {33 - n} tokens" in stopped
    shifted = run(words, "-p", PROMPT, "-c", 32, "--temp", 0, "--ignore-eos", "--context-shift", "-n", 60, "-dev", "vcpu:2")[1]
    assert "generated: 60 tokens" in shifted
    assert "n_ctx" in run(words, "-p", PROMPT * 9, "-c", 32, status=2)[1]


def test_adapters(run: Run, words: TinyModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n_in, n_out = words.n_embd, words.n_ff
    lora = write_gguf(
        tmp_path / "lora.gguf",
        {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0},
        {
            "blk.0.ffn_up.weight.lora_a": rng.standard_normal((4, n_in)).astype(np.float32),
            "blk.0.ffn_up.weight.lora_b": rng.standard_normal((n_out, 4)).astype(np.float32),
        },
    )
    with gg.Model(words, threads=1) as m:
        m.default_context.set_adapters({m.adapter(lora): 0.5})
        want = "".join(t.text for t in m.generate(PROMPT, max_tokens=12, temperature=0, logit_bias=dict.fromkeys(m.vocab.ends, -np.inf)))
    assert want != text_of(continued(words))
    for options in ([], ["-dev", "vcpu:2"]):
        assert run(words, "-p", PROMPT, *GREEDY, "--lora", f"{lora}:0.5", *options)[0] == want + "\n"
    assert "adapter" in run(words, "-p", PROMPT, "--lora", words, status=2)[1]


@pytest.mark.parametrize("options", [["-dev", "vcpu:2"], []], ids=["tensor", "cpu"])
def test_text_is_streamed_and_ctrl_c_ends_it(words: TinyModel, options: list[str]) -> None:
    endless = command(words, "-p", PROMPT, "--ignore-eos", "--context-shift", "-c", 64, *options)
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(64)) == 64, "the text comes while it is made: there is no end of it"
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.search(rb"generated: \d+ tokens.*; seed \d+\n+interrupted\n$", err, re.DOTALL), err
    assert b"Traceback" not in err


def test_the_progress_bar_is_on_the_terminal_only(words: TinyModel) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(command(words, "-p", PROMPT, *GREEDY), stdout=subprocess.PIPE, stderr=slave, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(slave)
        assert process.stdout is not None
        out = process.stdout.read()
        err = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:  # Linux: nobody has the other end any more
                break
            if not piece:
                break
            err += piece
    os.close(master)
    assert b"loading words.gguf" in err
    assert out.decode() == text_of(continued(words)) + "\n"


def test_encoder_decoder_models(run: Run, tmp_path: Path) -> None:
    t5 = tiny_gguf(tmp_path / "t5.gguf", "t5")
    with gg.Model(t5, threads=1) as m:
        m.default_context.encode([5, 6, 7])
        want = [t.id for t in m.default_context.generate([m.default_context.decoder_start], max_tokens=5, temperature=0)]
    out, err = run(t5, "--tokens", "5,6,7", "--temp", 0, "-n", 5)
    assert out.split() == list(map(str, want)) and "prompt: 3 tokens" in err
    with gg.Model(t5, threads=1) as a, gg.Model(t5, "vcpu:1", threads=1) as b:
        assert gg.compare_models(a, b, [5, 6, 7]).ok
    with pytest.raises(gg.UnsupportedError, match="encoder-decoder"):
        measure([BenchSetup(t5.path, (), ModelOptions())], [BenchTest(4)])
    for arguments in (["bench", str(t5)], ["compare", str(t5), "-sm", "none", "--against", "CPU", "--nodes"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2


# --- which all-reduce


def test_the_active_reduction(words: TinyModel) -> None:
    for device, mode, name, times in (
        ("vcpu:1", "none", "none", 0), ("vcpu:2", "layer", "none", 0), ("vcpu:1", "tensor", "none", 0),
        ("vcpu:2", "tensor", "shared memory", 4), ("vcpu:3", "tensor", "shared memory", 4),
    ):  # fmt: skip
        with gg.Model(words, device, split_mode=mode) as m:
            m.default_context.decode([1, 2])
            found = active_reduction(m.default_context)
            assert (found.name, found.times, found.certain) == (name, times, True)
            assert m.default_context.n_past() == 0
    with gg.Model(words, "vcpu:2", split_mode="tensor", rules=[(".", "M")]) as m:
        assert active_reduction(m.default_context).name == "none", "nothing is summed where everything is mirrored"


@pytest.mark.parametrize(
    ("asked", "n", "nccl", "platform", "name"),
    [
        (None, 4, True, "linux", "NCCL"), (None, 2, False, "linux", "internal"), (None, 4, False, "linux", "butterfly"),
        (None, 2, True, "win32", "internal"), ("nccl", 2, True, "win32", "NCCL"), ("internal", 2, True, "linux", "internal"),
        ("internal", 3, True, "linux", "butterfly"), ("none", 2, True, "linux", "butterfly"), ("typo", 2, True, "linux", "butterfly"),
    ],
)  # fmt: skip
def test_what_cuda_chooses(asked: str | None, n: int, nccl: bool, platform: str, name: str) -> None:
    assert cuda_reduction(asked, n, nccl, platform) == name
