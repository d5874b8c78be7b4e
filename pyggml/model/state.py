"""Saved states: llama.cpp's own bytes, in an envelope that shows whether they are whole and for this model."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass

from ..errors import ArgumentError, FileFormatError
from ..gguf_info import GGUFInfo
from .options import ContextOptions

__all__ = ["Envelope", "describe", "opened", "sealed"]

_MAGIC = b"pyggml.state/1\0\0"
_HEAD = struct.Struct("<16sIIQ")  # magic, length of the description, CRC-32 of all that follows, length of the state


@dataclass(frozen=True)
class Envelope:
    """What a state was made with. Split mode and devices are not in it: a state moves between them."""

    kind: str
    """``context`` or ``sequence``."""
    arch: str
    n_layer: int
    n_embd: int
    n_vocab: int
    type_k: str
    type_v: str
    n_seq_max: int
    """0 for a sequence: it fits into a context for fewer or more."""
    n_stream: int
    """Parts of the cache: 1 with ``kv_unified=True``, else ``n_seq_max``."""
    transposed: bool
    """Whether V is stored transposed (without flash attention)."""


def describe(kind: str, info: GGUFInfo, n_vocab: int, options: ContextOptions) -> Envelope:
    """The envelope for states of a context."""

    def number(key: str) -> int:
        value = info.metadata.get(f"{info.arch}.{key}", 0)
        return value if isinstance(value, int) else 0

    return Envelope(
        kind, str(info.arch), number("block_count"), number("embedding_length"), n_vocab, options.type_k, options.type_v,
        options.n_seq_max if kind == "context" else 0,
        options.n_stream,
        # "auto" may choose either, and llama.cpp checks it itself then
        options.flash_attn == "off",
    )  # fmt: skip


def sealed(envelope: Envelope, state: bytes) -> bytes:
    """A state in its envelope."""
    about = json.dumps(asdict(envelope)).encode()
    return _HEAD.pack(_MAGIC, len(about), zlib.crc32(state, zlib.crc32(about)), len(state)) + about + state


def opened(expected: Envelope, data: bytes) -> bytes:
    """The state in an envelope.

    Raises:
        FileFormatError: it is none, or damaged. ArgumentError: it is another model's, or of a cache of another kind.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ArgumentError(f"a saved state is bytes, got {type(data).__name__}")
    data = bytes(data)
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise FileFormatError(f"these {len(data)} bytes are no state that pyggml saved")
    _, n_about, crc, n_state = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + n_about + n_state:
        raise FileFormatError(f"a saved state of {_HEAD.size + n_about + n_state} bytes was cut or grew: it has {len(data)}")
    about, state = data[_HEAD.size : _HEAD.size + n_about], data[_HEAD.size + n_about :]
    if zlib.crc32(state, zlib.crc32(about)) != crc:
        raise FileFormatError("a saved state was changed since it was saved: its checksum differs")
    try:
        found = json.loads(about)
    except ValueError as error:
        raise FileFormatError(f"a saved state whose description is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise FileFormatError(f"a saved state whose description is no table, but {found!r:.40}")
    wanted = asdict(expected)
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ArgumentError(f"the saved state does not fit this context: {key} is {found.get(key)!r} there and {value!r} here")
    return state
