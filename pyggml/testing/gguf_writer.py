"""A minimal GGUF writer: enough for the models of this package, and for files that are wrong on purpose.

Its own few lines instead of the `gguf` package, because `pyggml demo` must not need more than numpy. The tests read
what it writes with the `gguf` package.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Union

import numpy as np
import numpy.typing as npt

from ..dtype import DType, DTypeLike, QuantizedArray, as_dtype

__all__ = ["ArrayValue", "Value", "write_gguf", "write_raw_gguf", "write_sparse_gguf"]

ALIGNMENT = 32

ArrayValue = Union["npt.NDArray[np.generic]", Sequence[str], Sequence[bytes]]
Value = bool | int | float | str | np.generic | ArrayValue

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 5, 6, 7, 8, 9, 10
_NUMPY_TYPES = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7,
    "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip


def _string(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    # Python's int becomes uint32 and its float float32: the types that llama.cpp reads
    if isinstance(value, np.generic):  # of just this type
        return struct.pack("<I", _NUMPY_TYPES[value.dtype.name]) + value.tobytes()
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<IQ", _UINT64, value) if value >= 1 << 32 else struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray):
        head = struct.pack("<IIQ", _ARRAY, _NUMPY_TYPES[value.dtype.name], value.size)
        return head + np.ascontiguousarray(value).tobytes()
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))


def gguf_header(metadata: Mapping[str, Value], tensors: Iterable[tuple[str, Sequence[int], DType]]) -> tuple[bytes, int]:
    """The bytes before the tensor data (padded), and the size of the tensor data; shapes in ggml's order."""
    infos, offset, n_tensors = [], 0, 0
    for name, ne, dtype in tensors:
        infos.append(
            _string(name)
            + struct.pack(f"<I{len(ne)}Q", len(ne), *ne)
            + struct.pack("<IQ", dtype.type_id, offset)
        )
        offset += _pad(dtype.row_bytes(ne[0]) * int(np.prod(ne[1:], dtype=np.int64)))
        n_tensors += 1
    keys = [_string(key) + _value(value) for key, value in metadata.items()]
    head = b"".join([b"GGUF", struct.pack("<IQQ", 3, n_tensors, len(keys)), *keys, *infos])
    return head + b"\0" * (_pad(len(head)) - len(head)), offset


def _pad(n: int) -> int:
    return (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    tensors: Mapping[str, npt.NDArray[np.float32] | QuantizedArray],
) -> Path:
    """Writes metadata and tensors; numpy shapes (the last axis becomes ggml's axis 0)."""
    described = [
        (name, t.shape[::-1], t.dtype if isinstance(t, QuantizedArray) else as_dtype(t.dtype))
        for name, t in tensors.items()
    ]
    head, _ = gguf_header(metadata, described)

    def body(file: BinaryIO) -> None:
        file.write(head)
        for t in tensors.values():
            raw = t.data if isinstance(t, QuantizedArray) else np.ascontiguousarray(t)
            file.write(raw.data.cast("B"))
            file.write(b"\0" * (_pad(raw.nbytes) - raw.nbytes))

    return _replace(path, body)


def write_raw_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    tensors: Iterable[tuple[str, Sequence[int], DType]],
    data: Iterable[npt.NDArray[np.generic]],
) -> Path:
    """Writes tensors of any format, shapes in ggml's order, from their bytes, one after the other."""
    head, _ = gguf_header(metadata, tensors)

    def body(file: BinaryIO) -> None:
        file.write(head)
        for values in data:
            raw = np.ascontiguousarray(values)
            file.write(raw.data.cast("B"))
            file.write(b"\0" * (_pad(raw.nbytes) - raw.nbytes))

    return _replace(path, body)


def write_sparse_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    tensors: Iterable[tuple[str, Sequence[int], DTypeLike]],
) -> Path:
    """Writes the header; the tensor data is a hole in the file that reads as zeros and takes no space on disk."""
    head, n_bytes = gguf_header(metadata, ((name, ne, as_dtype(dtype)) for name, ne, dtype in tensors))

    def body(file: BinaryIO) -> None:
        file.write(head)
        file.truncate(len(head) + n_bytes)

    return _replace(path, body)


def _replace(path: str | os.PathLike[str], body: Callable[[BinaryIO], None]) -> Path:
    # under another name first: a test that is interrupted must not leave half a model for the next one
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            body(file)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
