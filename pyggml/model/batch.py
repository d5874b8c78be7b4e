"""Tokens that are decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import whole
from ..errors import ArgumentError
from .options import MAX_TOKENS

__all__ = ["Batch", "Tokens", "single_token", "token_ids"]

Tokens = Sequence[int] | npt.NDArray[Any]


class Batch:
    """Tokens of one or several sequences that are decoded together. Shows what `Context.decode` takes.

    >>> batch = Batch()
    >>> batch.add([1, 15, 7], seq=0)
    >>> batch.add([1, 42], seq=1, logits="all")
    """

    def __init__(self) -> None:
        self._parts: list[tuple[npt.NDArray[Any], tuple[int, ...], int | None, str]] = []

    def add(self, tokens: Tokens, seq: int | Sequence[int] = 0, *, pos: int | None = None, logits: str = "last") -> Batch:
        """Tokens that follow each other.

        Args:
            tokens: token ids.
            seq: the sequence that they belong to; several: a common beginning, computed once.
            pos: position of the first; None: behind what the sequence has.
            logits: for which tokens logits are wanted: ``last``, ``all``, ``none``.

        Raises:
            ArgumentError: no tokens, no integers, or an unknown word.
        """
        if logits not in ("last", "all", "none"):
            raise ArgumentError(f"logits={logits!r}: 'last', 'all' or 'none'")
        if pos is not None:
            whole("pos", pos, 0, MAX_TOKENS)
        seqs = tuple(seq) if isinstance(seq, Sequence) else (seq,)
        if not seqs:
            raise ArgumentError("seq=(): tokens belong to one sequence at least")
        self._parts.append((token_ids(tokens), seqs, pos, logits))
        return self

    def __len__(self) -> int:
        return sum(len(tokens) for tokens, *_ in self._parts)


def token_ids(tokens: Tokens) -> npt.NDArray[Any]:
    """Tokens as a user gave them.

    Raises:
        ArgumentError: none, or no list of integers.
    """
    try:
        ids = np.asarray(tokens)
    except ValueError:  # lists of unequal lengths
        raise ArgumentError("tokens must be a list of at least one token id, got lists of unequal lengths; a Batch takes several sequences") from None
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ArgumentError(f"tokens must be a list of at least one token id, got {ids.dtype} of shape {ids.shape}")
    return ids


def single_token(tokens: Tokens | Batch) -> int:
    """The only token of a list or an array. -1: there are more, or they are no tokens, as `token_ids` says."""
    if isinstance(tokens, np.ndarray):
        return int(tokens[0]) if tokens.shape == (1,) and tokens.dtype.kind in "iu" else -1
    if isinstance(tokens, (list, tuple)) and len(tokens) == 1:
        one = tokens[0]
        return int(one) if type(one) is int or isinstance(one, np.integer) else -1
    return -1
