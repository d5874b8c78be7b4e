"""Decode and prefill of a llama of 153M parameters on two virtual CPU devices of one thread each (tensor mode), against one
CPU device with two threads.

Weights are random, in F16 and in Q8_0; no weights are repacked on either side, flash attention and the KV cache are alike.
Prefill is a prompt of 512 tokens in one batch, decode is 64 tokens behind it, one by one. The logits of both sides are
compared first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _bench import Row, alternate, parser, ratio, seconds, show

import pyggml
from pyggml.testing.tiny import tiny_gguf

SHAPE = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_head_kv": 4, "head_dim": 64, "n_ff": 3072, "n_vocab": 32000}


class Side:
    """A model on some device, and what is timed of it."""

    def __init__(self, path: Path, device: str | None, threads: int | None, n_prompt: int, n_tokens: int) -> None:
        self.model = pyggml.Model(
            path, device, split_mode="tensor" if device else "none", n_ctx=n_prompt + n_tokens, n_batch=n_prompt,
            flash_attn="on", threads=threads,
        )  # fmt: skip
        self.context = self.model.default_context
        rng = np.random.default_rng(0)
        self.prompt = rng.integers(0, SHAPE["n_vocab"], n_prompt, dtype=np.int32)
        self.tokens = rng.integers(0, SHAPE["n_vocab"], (n_tokens, 1), dtype=np.int32)

    def prefill(self) -> float:
        self.context.clear()
        return len(self.prompt) / seconds(lambda: self.context.decode(self.prompt))

    def decode(self) -> float:
        self.context.seq_rm(0, len(self.prompt))

        def work() -> None:
            for token in self.tokens:
                self.context.decode(token)

        return len(self.tokens) / seconds(work)


def measure(folder: Path, dtype: str, options: argparse.Namespace) -> list[Row]:
    path = tiny_gguf(folder / f"{dtype}.gguf", dtype=dtype, shares=((1, 1),), **SHAPE).path
    split = Side(path, "vcpu:2", None, options.prompt, options.tokens)
    whole = Side(path, None, 2, options.prompt, options.tokens)
    a, b = split.model.logits(split.prompt[:8]), whole.model.logits(split.prompt[:8])
    nmse = float(((a - b) ** 2).sum() / (b**2).sum())
    if not nmse < 1e-3:
        raise SystemExit(f"{dtype}: the two sides do not compute the same: NMSE {nmse}")
    rows = []
    for what, sides in (("prefill", (split.prefill, whole.prefill)), ("decode", (split.decode, whole.decode))):
        for side in sides:
            side()
        ours, theirs = alternate(options.rounds, *sides)
        value, spread = ratio(ours, theirs)
        rows.append(
            Row(f"{what}, 153M {dtype}, vcpu:2", f"{np.median(ours):.1f} tokens/s", f"CPU, 2 threads: {np.median(theirs):.1f} tokens/s",
                value, 0.95, at_most=False, spread=spread)
        )  # fmt: skip
    split.model.close()
    whole.model.close()
    return rows


def main() -> None:
    args = parser(__doc__, rounds=9)
    args.add_argument("--dtypes", nargs="+", default=["f16", "q8_0"], help="formats of the weights (default: f16 q8_0)")
    args.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default: 512)")
    args.add_argument("--tokens", type=int, default=64, help="tokens that are decoded (default: 64)")
    options = args.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        show([row for dtype in options.dtypes for row in measure(Path(folder), dtype, options)], options.json)


if __name__ == "__main__":
    main()
