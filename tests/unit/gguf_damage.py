"""Damaged GGUF files for the tests, and the child process that loads those that `check_gguf` lets through.

As a program: ``gguf_damage.py KIND FOLDER`` loads damaged models of a kind, one after the other in this process, and
prints a line for each before and after it. A line without a second one names the file that ended the process.
"""

from __future__ import annotations

import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import pyggml as gg
from pyggml.gguf_check import GGUFArray, check_gguf
from pyggml.testing import tiny_gguf
from pyggml.testing.gguf_writer import write_gguf

SMALL = {"shares": [(1, 1)], "n_layer": 2, "n_embd": 64, "n_ff": 128, "n_vocab": 64, "head_dim": 16}
KINDS = {
    "llama": {"arch": "llama", **SMALL},
    "moe": {"arch": "llama", "moe": True, "n_expert": 4, **SMALL},
    "qwen3": {"arch": "qwen3", **SMALL},
    "qwen35": {"arch": "qwen35", **SMALL, "shares": [(1,)]},
    "bloom": {"arch": "bloom", **{k: v for k, v in SMALL.items() if k != "n_embd"}},
}
_WHOLE = [0, 1, 2, 3, 5, 7, 100, 600, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
_REAL = [0.0, -1.0, float("nan"), float("inf"), 1e38]
# keys that the tiny models do not have
_MORE: dict[str, list[object]] = {
    **{key: [*_WHOLE] for key in (
        "expert_group_count", "expert_group_used_count", "nextn_predict_layers", "pooling_type", "expert_gating_func",
        "attention.sliding_window", "rope.scaling.original_context_length", "leading_dense_block_count",
        "expert_feed_forward_length", "expert_shared_feed_forward_length", "attention.group_norm_groups",
        "embedding_length_out", "attention.temperature_length", "attention.key_length_swa", "rope.dimension_count_swa",
    )},
    **{key: [*_REAL] for key in (
        "rope.freq_base", "rope.scaling.factor", "attention.clamp_kqv", "attention.max_alibi_bias", "attention.scale",
        "expert_weights_scale", "attention.temperature_scale", "rope.scaling.attn_factor", "logit_scale",
    )},
    "rope.scaling.type": ["linear", "yarn", "longrope", "none", "xx", 3],
    "attention.causal": [False],
}  # fmt: skip


def corruptions(raw: bytes, n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """n damaged copies, the same every time; most of them in the header, where it matters."""
    rng = np.random.default_rng(seed)
    info_end = raw.index(b"blk.1.ffn_down.weight") + 60
    lengths = [m.start() for m in re.finditer(rb"[\x01-\x40]\0{7}", raw[:info_end])]
    for i in range(n):
        kind = ("cut", "flip", "byte", "length", "insert", "delete", "swap", "word")[i % 8]
        at = int(rng.integers(0, info_end))
        new = bytearray(raw)
        if kind == "cut":
            del new[int(rng.integers(0, len(raw) if i % 16 else info_end)) :]
        elif kind == "flip":
            for _ in range(int(rng.integers(1, 5))):
                new[int(rng.integers(0, info_end))] ^= 1 << int(rng.integers(0, 8))
        elif kind == "byte":
            new[at] = int(rng.integers(0, 256))
        elif kind == "length":
            at = lengths[int(rng.integers(0, len(lengths)))]
            value = int(rng.choice([0, 1, 255, 1 << 16, 1 << 31, 1 << 32, 1 << 40, (1 << 62) - 1, (1 << 63) - 1, len(raw)]))
            new[at : at + 8] = struct.pack("<Q", value | (1 << 63 if i % 5 == 0 else 0))
        elif kind == "insert":
            new[at:at] = rng.bytes(int(rng.integers(1, 40)))
        elif kind == "delete":
            del new[at : at + int(rng.integers(1, 40))]
        elif kind == "swap":
            other, size = int(rng.integers(0, info_end)), int(rng.integers(1, 24))
            new[at : at + size], new[other : other + size] = new[other : other + size], new[at : at + size]
        else:
            new[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2, 3, 7, 100, 0x7FFFFFFF, 0xFFFFFFFF])))
        yield kind, bytes(new)


def with_vocabulary(path: Path) -> Path:
    """A small dense llama that has a vocabulary: arrays of strings are where lengths are believed too easily."""
    metadata, tensors = parts(tiny_gguf(path, **SMALL).path)  # type: ignore[arg-type]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(10)), *(f"▁word{i}" for i in range(51))]
    metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(64, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, *[6] * 10, *[1] * 51], np.int32),
        "general.tags": ["a", "", "c"],
    }
    return write_gguf(path, metadata, tensors)


def parts(path: Path) -> tuple[dict, dict]:
    """Metadata and tensors of an F32 model, to be written again with changes."""
    info, raw = check_gguf(path), path.read_bytes()
    metadata = {k: v.load() if isinstance(v, GGUFArray) else v for k, v in info.metadata.items()}
    return metadata, {t.name: np.frombuffer(raw, np.float32, t.nbytes // 4, t.offset).reshape(t.ne[::-1]) for t in info.tensors}


def mistakes(metadata: dict) -> Iterator[tuple[str, object]]:
    """For every key, and some that are not there: the value left out, of another type, or out of its range."""
    for key, value in metadata.items():
        yield key, None
        if isinstance(value, bool):
            yield key, not value
        elif isinstance(value, int):
            yield from ((key, v) for v in (*_WHOLE, -0.5, "text"))
        elif isinstance(value, float):
            yield from ((key, v) for v in (*_REAL, 3))
        elif isinstance(value, np.ndarray):
            yield from ((key, v) for v in (value * 0, value - 100, value + 1000, value[:2], 5))
        elif isinstance(value, str):
            yield from ((key, v) for v in ("", "xyz", "clip", "mamba", "rwkv6", "gpt2", "llama", "bert", "t5", 5))
    for key, values in _MORE.items():
        yield from ((f"{metadata['general.architecture']}.{key}", v) for v in values)


def load(path: Path, what: str) -> str:
    print("trying", what, flush=True)
    try:
        with gg.Model(path, threads=1, n_ctx=64, n_batch=64) as model:
            model.logits([1, 2, 3])
    except gg.FileFormatError:
        outcome = "checked"
    except gg.Error as error:
        outcome = f"refused {type(error).__name__}"
    else:
        outcome = "computed"
    print(outcome, flush=True)
    return outcome.split()[0]


def main(kind: str, folder: Path) -> None:
    outcomes: Counter[str] = Counter()
    path = folder / "damaged.gguf"
    if kind in ("bytes", "bytes with vocabulary"):
        whole = tiny_gguf(folder / "whole.gguf", **SMALL).path if kind == "bytes" else with_vocabulary(folder / "whole.gguf")  # type: ignore[arg-type]
        raw = whole.read_bytes()
        for i, (how, damaged) in enumerate(corruptions(raw, 1600, seed=2)):
            path.write_bytes(damaged)
            outcomes[load(path, f"{i} {how}")] += 1
    elif kind.startswith("less "):
        metadata, tensors = parts(tiny_gguf(folder / "whole.gguf", kind.removeprefix("less "), shares=[(1,)]).path)
        for name in tensors:
            if not re.search(r"\.([4-9]|\d\d+)\.", name):  # the first layers are of all kinds
                write_gguf(path, metadata, {k: v for k, v in tensors.items() if k != name})
                outcomes[load(path, f"without {name}")] += 1
    else:
        metadata, tensors = parts(tiny_gguf(folder / "whole.gguf", **KINDS.get(kind, {"arch": kind, "shares": [(1,)]})).path)  # type: ignore[arg-type]
        for key, value in mistakes(metadata):
            changed = {**metadata, key: value}
            write_gguf(path, {k: v for k, v in changed.items() if v is not None}, tensors)
            outcomes[load(path, f"{key} = {value!r}")] += 1
    print("done", *(f"{what}={n}" for what, n in sorted(outcomes.items())))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
