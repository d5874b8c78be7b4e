"""A vocabulary that can write any text: every byte is a token, and some words are."""

from __future__ import annotations

import itertools

import numpy as np

from ..errors import ShapeError
from .gguf_writer import Value

__all__ = ["byte_vocabulary"]

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_WORDS = (
    "the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "they", "at", "be", "this",
    "have", "from", "or", "one", "had", "by", "but", "not", "what", "all", "were", "we", "when", "your", "can", "said",
)  # fmt: skip
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def byte_vocabulary(n_vocab: int) -> dict[str, Value]:
    """The metadata of a SentencePiece tokenizer with ``n_vocab`` tokens, at least 260.

    Raises:
        ShapeError: too few.
    """
    special = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{b:02X}>" for b in range(256)]
    if n_vocab < len(special) + len(raw) + 1:
        raise ShapeError(f"a vocabulary of {n_vocab} tokens: text needs {len(special) + len(raw) + 1} at least")
    n_words = n_vocab - len(special) - len(raw)
    letters = [_SPACE, *"etaoinshrdlu"]
    found = [*letters, *(_SPACE + w for w in _WORDS)]
    found += [f"{_SPACE}w{i}" for i in range(max(0, n_words - len(found)))]
    words = list(itertools.islice(found, n_words))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": special + raw + words,
        "tokenizer.ggml.scores": np.array([0.0] * (len(special) + 256) + [-1.0 - i for i in range(n_words)], np.float32),
        "tokenizer.ggml.token_type": np.array([_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * 256 + [_NORMAL] * n_words, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
