"""Headers of real models without their weights: for plans of models that are too big to keep around.

The tensor data is a hole in the file, so a 40 GB model takes a few MB on disk and reads as zeros. Such a file is for
planning; it computes nothing that means anything.
"""

from __future__ import annotations

import itertools
import os
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..errors import UnsupportedError
from .gguf_writer import Value, write_sparse_gguf

__all__ = ["HEADER_PRESETS", "HeaderPreset", "llama_header"]


@dataclass(frozen=True)
class HeaderPreset:
    """The shape of a published model of architecture llama."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int
    context_length: int
    rope_freq_base: float
    rope_factors: bool
    """Has ``rope_freqs.weight`` (Llama 3.1 and later)."""
    n_expert: int = 0
    n_expert_used: int = 0


HEADER_PRESETS = MappingProxyType({
    "llama-70b": HeaderPreset(80, 8192, 64, 8, 28672, 128256, 131072, 500000.0, True),
    "llama-8b": HeaderPreset(32, 4096, 32, 8, 14336, 128256, 131072, 500000.0, True),
    "mixtral-8x7b": HeaderPreset(32, 4096, 32, 8, 14336, 32000, 32768, 1e6, False, 8, 2),
})  # fmt: skip

_MOSTLY_Q4_K_M = 15  # llama.cpp's enum llama_ftype
_NORMAL, _CONTROL = 1, 3  # token types of a GGUF vocabulary
_N_MERGES = 280_147  # as many as Llama 3 has


def llama_header(path: str | os.PathLike[str], preset: str = "llama-70b", *, vocab: str = "bpe") -> Path:
    """Writes the header of a llama model in Q4_K_M, with a hole for its weights; returns the path.

    ``preset`` is one of `HEADER_PRESETS`. Tensors have the formats that ``llama-quantize`` gives them for Q4_K_M:
    output, some ``attn_v`` and some ``ffn_down`` in more bits. ``vocab="bpe"`` writes an invented vocabulary with as
    many tokens and merges as the real one, so that it costs what the real one costs; ``vocab="none"`` only writes its
    size.
    """
    if preset not in HEADER_PRESETS:
        raise UnsupportedError(f"no header preset {preset!r}: expected one of {', '.join(HEADER_PRESETS)}")
    if vocab not in ("bpe", "none"):
        raise UnsupportedError(f"no vocabulary {vocab!r} for a header: expected 'bpe' or 'none'")
    p = HEADER_PRESETS[preset]
    head_dim = p.n_embd // p.n_head
    metadata: dict[str, Value] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": f"pyggml header of {preset}",
        "llama.block_count": p.n_layer,
        "llama.context_length": p.context_length,
        "llama.embedding_length": p.n_embd,
        "llama.feed_forward_length": p.n_ff,
        "llama.attention.head_count": p.n_head,
        "llama.attention.head_count_kv": p.n_head_kv,
        "llama.rope.freq_base": p.rope_freq_base,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.rope.dimension_count": head_dim,
        "llama.vocab_size": p.n_vocab,
        "general.file_type": _MOSTLY_Q4_K_M,
        "general.quantization_version": 2,
    }
    if p.n_expert:
        metadata["llama.expert_count"] = p.n_expert
        metadata["llama.expert_used_count"] = p.n_expert_used
    metadata.update(_vocabulary(p.n_vocab) if vocab == "bpe" else {"tokenizer.ggml.model": "none"})
    return write_sparse_gguf(path, metadata, _tensors(p, head_dim))


def _more_bits(i: int, n: int) -> bool:
    """Layers in which Q4_K_M spends more bits on attn_v and ffn_down: the first, the last, every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _tensors(p: HeaderPreset, head_dim: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    n_q, n_kv = p.n_head * head_dim, p.n_head_kv * head_dim
    moe = p.n_expert == 8
    if p.rope_factors:
        yield "rope_freqs.weight", (head_dim // 2,), "f32"
    yield "token_embd.weight", (p.n_embd, p.n_vocab), "q4_K"
    for i in range(p.n_layer):
        blk = f"blk.{i}"
        down = "q6_K" if _more_bits(i, p.n_layer) else "q4_K"
        # 80 layers with grouped heads are "70B" to llama-quantize, whose small attn_v gets more bits everywhere
        v = "q8_0" if moe else "q6_K" if _more_bits(i, p.n_layer) else "q5_K" if p.n_layer == 80 else "q4_K"
        yield f"{blk}.attn_norm.weight", (p.n_embd,), "f32"
        yield f"{blk}.attn_q.weight", (p.n_embd, n_q), "q4_K"
        yield f"{blk}.attn_k.weight", (p.n_embd, n_kv), "q8_0" if moe else "q4_K"
        yield f"{blk}.attn_v.weight", (p.n_embd, n_kv), v
        yield f"{blk}.attn_output.weight", (n_q, p.n_embd), "q5_K" if moe else "q4_K"
        yield f"{blk}.ffn_norm.weight", (p.n_embd,), "f32"
        if p.n_expert:
            yield f"{blk}.ffn_gate_inp.weight", (p.n_embd, p.n_expert), "f32"
            yield f"{blk}.ffn_gate_exps.weight", (p.n_embd, p.n_ff, p.n_expert), "q4_K"
            yield f"{blk}.ffn_up_exps.weight", (p.n_embd, p.n_ff, p.n_expert), "q4_K"
            yield f"{blk}.ffn_down_exps.weight", (p.n_ff, p.n_embd, p.n_expert), down
        else:
            yield f"{blk}.ffn_gate.weight", (p.n_embd, p.n_ff), "q4_K"
            yield f"{blk}.ffn_up.weight", (p.n_embd, p.n_ff), "q4_K"
            yield f"{blk}.ffn_down.weight", (p.n_ff, p.n_embd), down
    yield "output_norm.weight", (p.n_embd,), "f32"
    yield "output.weight", (p.n_embd, p.n_vocab), "q6_K"


def _byte_tokens() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = itertools.count(256)
    return [chr(b if b in printable else next(shifted)) for b in range(256)]


def _vocabulary(n_vocab: int) -> dict[str, Value]:
    n_special = 256
    words = (
        "".join(letters) for length in (2, 3, 4) for letters in itertools.product(string.ascii_lowercase, repeat=length)
    )
    tokens = _byte_tokens()
    learned = list(itertools.islice(words, n_vocab - n_special - len(tokens)))
    merges = [f"{w[:-1]} {w[-1]}" for w in learned]
    merges += [f"{w[0]} {w[1:]}" for w in learned if len(w) > 2]
    merges += [f"{w[:2]} {w[2:]}" for w in learned if len(w) > 3]
    first_special = n_vocab - n_special
    special = [f"<|reserved_special_token_{i}|>" for i in range(n_special)]
    special[0], special[1], special[9] = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
    types = np.full(n_vocab, _NORMAL, np.int32)
    types[first_special:] = _CONTROL
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens + learned + special,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges[:_N_MERGES],
        "tokenizer.ggml.bos_token_id": first_special,
        "tokenizer.ggml.eos_token_id": first_special + 9,
    }
