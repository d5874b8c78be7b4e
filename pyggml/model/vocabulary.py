"""Text and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ffi import ffi, lib
from ..errors import ArgumentError, IndexRangeError, UnsupportedError
from .loading import LoadedModel

__all__ = ["Vocabulary"]

_MAX_TEXT = 1 << 30


class Vocabulary:
    """What a model's file says of its tokens. It can be used as long as the model or a context of it is open."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded, self._name = loaded, loaded.info.path.name
        self._n = loaded.n_vocab

    @property
    def _ptr(self) -> Any:
        return self._loaded.vocab

    def __len__(self) -> int:
        _ = self._loaded.ptr  # it raises where the model is closed, as everything else does
        return self._n

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be turned into tokens; models for tests often have only numbers."""
        return bool(lib.llama_vocab_type(self._ptr) != lib.LLAMA_VOCAB_TYPE_NONE)

    @property
    def bos(self) -> int | None:
        """The token that begins a text."""
        return self._special(lib.llama_vocab_bos(self._ptr))

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return self._special(lib.llama_vocab_eos(self._ptr))

    def _special(self, token: int) -> int | None:
        return int(token) if token >= 0 else None

    def is_end(self, token: int) -> bool:
        """Whether a generation ends with this token."""
        return bool(lib.llama_vocab_is_eog(self._ptr, self._checked(token)))

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens with which a generation ends. llama.cpp is asked about every token: keep the answer."""
        vocab = self._ptr
        return tuple(i for i in range(len(self)) if lib.llama_vocab_is_eog(vocab, i))

    @property
    def chat_template(self) -> str | None:
        """The template with which the model was trained to converse, in Jinja; None where its file has none."""
        found = lib.llama_model_chat_template(self._loaded.ptr, ffi.NULL)
        return None if found == ffi.NULL else str(ffi.string(found).decode("utf-8", "replace"))

    def tokenize(self, text: str, *, special: bool = True, parse_special: bool = False) -> list[int]:
        """The tokens of a text.

        Args:
            special: with the tokens that the model wants around a text (BOS, EOS).
            parse_special: ``<|im_start|>`` and the like become their tokens; else they are text.

        Raises:
            UnsupportedError: the model has no tokenizer. ArgumentError: no string.
        """
        if not isinstance(text, str):
            raise ArgumentError(f"tokenize() takes a str, got {type(text).__name__}")
        self._need_tokenizer()
        raw = text.encode("utf-8", "surrogatepass")
        if len(raw) > _MAX_TEXT:
            raise ArgumentError(f"a text of {len(raw)} bytes: at most {_MAX_TEXT} are possible")
        n = len(raw) + 8
        for _ in range(2):
            out = ffi.new("llama_token[]", n)
            found = int(lib.llama_tokenize(self._ptr, raw, len(raw), out, n, special, parse_special))
            if found >= 0:
                return list(ffi.unpack(out, found)) if found else []
            n = -found
        raise ArgumentError(f"{self._name}: llama.cpp cannot tokenize this text of {len(raw)} bytes")

    def detokenize(self, tokens: Sequence[int] | npt.NDArray[Any], *, special: bool = False) -> str:
        """The text of tokens. Bytes that are no valid UTF-8 become U+FFFD.

        Args:
            special: show special tokens, too.

        Raises:
            IndexRangeError: a token is not in the vocabulary. ArgumentError: they are no whole numbers.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ArgumentError(f"detokenize() takes a list of token ids, got {ids.dtype} of shape {ids.shape}")
        for token in ids.ravel():
            self._checked(int(token))
        self._need_tokenizer()
        given = np.ascontiguousarray(ids, np.int32)
        n = 16 * len(given) + 64
        for _ in range(2):
            out = ffi.new("char[]", n)
            found = int(lib.llama_detokenize(self._ptr, ffi.from_buffer("llama_token *", given), len(given), out, n, False, special))
            if found >= 0:
                return bytes(ffi.buffer(out, found)).decode("utf-8", "replace")
            n = -found
        raise ArgumentError(f"{self._name}: llama.cpp cannot write out these {len(given)} tokens")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; a character may be spread over several. Empty without a tokenizer."""
        if not self.has_tokenizer:
            return b""
        token, n = self._checked(token), 32
        for _ in range(2):
            out = ffi.new("char[]", n)
            found = int(lib.llama_token_to_piece(self._ptr, token, out, n, 0, special))
            if found >= 0:
                return bytes(ffi.buffer(out, found))
            n = -found
        return b""

    def _need_tokenizer(self) -> None:
        if not self.has_tokenizer:
            raise UnsupportedError(f"{self._name} has no tokenizer (tokenizer.ggml.model is 'none'): give token ids, 0 to {len(self) - 1}")

    def _checked(self, token: int) -> int:
        if not 0 <= token < self._n:
            raise IndexRangeError(f"token {token} is not in the vocabulary: 0 to {len(self) - 1}")
        return int(token)
