"""What `gg.trace()` costs while it is on: the same work with and without it, in turns.

Decoding single tokens over two virtual CPU devices, for a model of 33M parameters (a trace's usual case), and for a tiny one whose
subgraphs take some ten microseconds (its worst case); and a graph of 1,000 small nodes on the CPU, which is one event a run.
What a trace costs when it ends, for making its events values, is stated for each event. Off, every hook is one relaxed load, and a
span of Python's is a look at a number, whose time is stated too. Processor time does not count what other programs take.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _bench import Row, alternate, duration, parser, ratio, seconds, show

import pyggml as gg
from pyggml._ffi.spans import span
from pyggml.testing.tiny import tiny_gguf

SHAPES = {
    "33M": {"n_layer": 8, "n_embd": 512, "n_head": 8, "n_head_kv": 4, "head_dim": 64, "n_ff": 2048, "n_vocab": 8192},
    "tiny": {},
}


def both_ways(what: str, work: Callable[[], object], rounds: int) -> list[Row]:
    ending: list[float] = []
    events: list[int] = []

    def off() -> tuple[float, float]:
        before = time.process_time()
        return seconds(work), time.process_time() - before

    def on() -> tuple[float, float]:
        with contextlib.ExitStack() as stack:
            trace = stack.enter_context(gg.trace())
            taken = off()
            before = time.thread_time()
        ending.append(time.thread_time() - before)
        events.append(len(trace.events))
        assert not trace.dropped
        return taken

    off(), on()
    with_trace, without = alternate(rounds, on, off)
    n = events[-1]
    rows = []
    for i, clock in enumerate(("", ", processor time")):
        ours, theirs = [t[i] for t in with_trace], [t[i] for t in without]
        value, spread = ratio(ours, theirs)
        rows.append(Row(f"{what}, traced ({n} events){clock}", duration(ours), f"not traced: {duration(theirs)}", value, spread=spread))
    each = statistics.median(ending) / n * 1e9
    return [*rows, Row(f"{what}: when the trace ends, processor time", duration(ending), "-", each, unit="ns an event")]


def models(options: argparse.Namespace) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        for name in options.models:
            path = tiny_gguf(Path(folder) / f"{name}.gguf", "llama", shares=((1, 1),), **SHAPES[name]).path
            with gg.Model(path, "vcpu:2", split_mode="tensor", n_ctx=256, flash_attn="on") as model:
                context = model.default_context
                prompt = np.arange(16, dtype=np.int32)

                def decode(context: gg.Context = context, prompt: object = prompt) -> None:
                    context.decode(prompt, from_empty=True)
                    for k in range(options.tokens):
                        context.decode([k])

                rows += both_ways(f"decode, {name} llama, vcpu:2, {options.tokens} tokens", decode, options.rounds)
    return rows


def graph(options: argparse.Namespace) -> list[Row]:
    with gg.Graph(gg.cpu(), threads=1) as made:
        x = y = made.input("x", (64, 64))
        for _ in range(1000):
            y = y + x
        made.output("y", y)
        value = np.ones((64, 64), np.float32)
        what = "Graph.run, 1000 nodes (add) of 64x64 F32, 50 runs"
        return both_ways(what, lambda: [made.run(x=value) for _ in range(50)], options.rounds)


def processor(work: Callable[[], object]) -> float:
    before = time.thread_time()
    work()
    return time.thread_time() - before


def off_cost() -> list[Row]:
    n = 200_000

    def spans() -> None:
        for _ in range(n):
            with span("x"):
                pass

    def nothing() -> None:
        for _ in range(n):
            pass

    taken = [(a - b) / n for a, b in zip(*alternate(9, lambda: processor(spans), lambda: processor(nothing)), strict=True)]
    return [Row("a span while nobody traces, processor time", duration(taken), "-", statistics.median(taken) * 1e9, unit="ns")]


def main() -> None:
    args = parser(__doc__, rounds=15)
    args.add_argument("--models", nargs="*", choices=list(SHAPES), default=list(SHAPES), help="which models (default: all)")
    args.add_argument("--tokens", type=int, default=32, help="tokens that are decoded (default: 32)")
    options = args.parse_args()
    show(models(options) + graph(options) + off_cost(), options.json)


if __name__ == "__main__":
    main()
