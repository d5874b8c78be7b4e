"""Python does as much for a token of a large vocabulary as for one of a small: counted, not timed."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import pyggml as gg
from pyggml._ffi import callbacks
from pyggml.testing import tiny_gguf

SMALL, LARGE = 1_000, 128_000
N_TOKENS = 8
SLACK = 16 << 10  # bytes: caches of the interpreter, other numbers
Work = Callable[[gg.Model], object]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[gg.Model, gg.Model]]:
    folder = tmp_path_factory.mktemp("vocabularies")
    sizes: dict[str, Any] = {"n_layer": 1, "n_embd": 32, "n_head": 1, "n_head_kv": 1, "head_dim": 32, "n_ff": 32, "shares": ((1,),)}
    made = [gg.Model(tiny_gguf(folder / f"{n}.gguf", n_vocab=n, **sizes), n_ctx=64, threads=1) for n in (SMALL, LARGE)]
    assert [m.n_vocab for m in made] == [SMALL, LARGE]
    yield made[0], made[1]
    for m in made:
        m.close()


def is_clocks(frame: FrameType | None) -> bool:
    """Whether it runs because 50 ms have passed: the look for Ctrl-C while C computes."""
    while frame is not None:
        if frame.f_code.co_filename == callbacks.__file__:
            return True
        frame = frame.f_back
    return False


def steps(work: Work, model: gg.Model) -> Counter[str]:
    """Bytecodes of Python, by function, and calls of what is written in C, by name."""
    counted: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "call" and is_clocks(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            counted[f"{frame.f_code.co_filename}:{frame.f_code.co_name}"] += 1
        return trace

    def profile(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and not is_clocks(frame):
            counted[f"C: {getattr(function, '__name__', function)}"] += 1

    before = sys.gettrace(), sys.getprofile()
    gc.disable()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        work(model)
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
        gc.enable()
    return counted


def peak(work: Work, model: gg.Model) -> int:
    """The most memory that Python and numpy had beside each other, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        work(model)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def generated(**options: Any) -> Work:
    def work(model: gg.Model) -> None:
        context = model.default_context
        context.clear()
        assert sum(1 for _ in context.generate([1, 2, 3], max_tokens=N_TOKENS, **options)) == N_TOKENS

    return work


def fed(model: gg.Model) -> None:
    context = model.default_context
    context.clear()
    for token in range(N_TOKENS):
        context.feed([token])


def decoded(model: gg.Model) -> None:
    context = model.default_context
    context.clear()
    for token in range(N_TOKENS):
        context.decode([token])


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(generated(temperature=0), id="greedy"),
        pytest.param(generated(seed=1), id="usual chain"),
        pytest.param(generated(seed=1, top_k=0, repeat_penalty=1.1, dry_multiplier=0.8), id="all tokens, penalties"),
        pytest.param(generated(seed=1, mirostat=2), id="mirostat"),
        pytest.param(fed, id="feed"),
    ],
)
def test_generation_does_not_grow_with_the_vocabulary(models: tuple[gg.Model, gg.Model], work: Work) -> None:
    small, large = models
    for model in models:
        work(model)  # what is made once
    few, many = steps(work, small), steps(work, large)
    assert sum(few.values()) > 1000 and few["C: llama_decode"] == few["C: llama_synchronize"] >= N_TOKENS  # something was counted
    assert many == few
    assert peak(work, large) <= peak(work, small) + SLACK


def test_decode_grows_by_its_logits_alone(models: tuple[gg.Model, gg.Model]) -> None:
    # also the proof that the counting above would see it
    small, large = models
    for model in models:
        decoded(model)
    assert steps(decoded, large) == steps(decoded, small)  # one copy, whatever its size
    one = 4 * (LARGE - SMALL)
    grown = peak(decoded, large) - peak(decoded, small)
    assert one - SLACK <= grown <= 2 * one + SLACK  # the row that is made while the caller has the last one


def test_a_loop_over_the_vocabulary_would_be_seen(models: tuple[gg.Model, gg.Model]) -> None:
    def likeliest(model: gg.Model) -> int:
        logits = model.logits([1])[0]
        best = 0
        for i in range(len(logits)):
            if logits[i] > logits[best]:
                best = i
        return best

    few, many = (sum(steps(likeliest, model).values()) for model in models)
    assert many - few >= LARGE - SMALL
    assert np.argmax(models[0].logits([1])[0]) == likeliest(models[0])


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_context_on_the_cpu_keeps_its_threads(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", shares=((1, 1),))
    before = threads()
    with gg.Model(path, n_ctx=64, threads=3) as model:
        own = threads() - before
        assert len(own) == 2  # the third is the caller's
        one = model.default_context.decode([1])
        with model.context(threads=2) as other:
            assert len(threads() - before) == 3
            assert np.array_equal(other.decode([1]), one)
        for token in range(4):
            model.default_context.decode([token])
            assert threads() - before == own
    assert threads() <= before
    with gg.Model(path, n_ctx=64, threads=1) as model:
        assert threads() <= before
        assert np.array_equal(model.default_context.decode([1]), one)


@pytest.mark.parametrize("tokens", [[5], (5,), np.array([5]), np.array([5], np.uint8), [np.int64(5)]], ids=repr)
def test_the_short_way_of_one_token_is_that_of_a_batch(models: tuple[gg.Model, gg.Model], tokens: Any) -> None:
    context = models[0].default_context
    context.clear()
    context.feed([1, 2])
    expected = context.decode(gg.Batch().add([5]))
    context.seq_rm(0, 2)
    found = context.decode(tokens)
    assert found.shape == (1, SMALL) and found.dtype == np.float32
    assert np.array_equal(found, expected)
    again = context.decode(tokens)
    assert not np.array_equal(found, again)  # another position; and what was returned stays as it was
    assert np.array_equal(found, expected)
    assert context.n_past() == 4


@pytest.mark.parametrize("tokens", [[-1], [SMALL], [1 << 40], [1 << 80], [True], [1.0], [[1]], np.array([1.0]), np.array([True]), np.array([[1]]), np.array(1), "a", [None], []], ids=repr)
@pytest.mark.parametrize("name", ["decode", "feed"])
def test_what_is_no_token_is_refused_and_nothing_is_changed(models: tuple[gg.Model, gg.Model], name: str, tokens: Any) -> None:
    context = models[0].default_context
    context.clear()
    context.feed([1])
    with pytest.raises((gg.ArgumentError, gg.IndexRangeError)):
        getattr(context, name)(tokens)
    for seq in (1, -1, 1.0, None, "0", True):
        with pytest.raises((gg.Error, TypeError)):
            getattr(context, name)([1], seq)
    assert context.n_past() == 1
    context.clear()
    for token in range(64):
        context.feed([token])
    with pytest.raises(gg.ArgumentError, match="1 tokens behind 64 do not fit into a context of 64"):
        getattr(context, name)([1])
    assert context.n_past() == 64
