"""Reads the header of a GGUF file and refuses what llama.cpp would stumble over.

libllama trusts a file more than it should: some wrong numbers end in an assertion, some in a division by zero or a
null pointer. So every file goes through `check_gguf` first. It believes no length that the file gives, reads only
the header, a window at a time (no memory map: a file that shrinks meanwhile would be a bus error), and says which
file, what, at which byte, found and expected.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ._arguments import file_path
from .dtype import DType, dtype_from_id
from .errors import FileFormatError, ModelNotFoundError
from .gguf_info import GGUFArray, GGUFInfo, GGUFTensor, Metadata, TruncatedFileError
from .gguf_rules import check_model

__all__ = ["GGUFArray", "GGUFInfo", "GGUFTensor", "TruncatedFileError", "check_gguf"]

_WINDOW = 4 << 20
_MAX_KEY = 65535  # the format's own limit
_MAX_NAME = 63  # GGML_MAX_NAME less the final zero
_MAX_STRING = 64 << 20
# Real vocabularies have some 300,000 tokens and 600,000 merges. llama.cpp copies these arrays element by element:
# a length blown up by a flipped bit must not keep it busy for minutes.
_MAX_STRINGS = 1 << 24
_MAX_ARRAY_BYTES = 256 << 20
_MAX_TENSOR_BYTES = 1 << 42
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # name, number of axes, format, offset
_MIN_KEY_BYTES = 8 + 1 + 4 + 1

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: ("uint8", "<B"), 1: ("int8", "<b"), 2: ("uint16", "<H"), 3: ("int16", "<h"), 4: ("uint32", "<I"),
    5: ("int32", "<i"), 6: ("float32", "<f"), 7: ("bool", "<B"), 10: ("uint64", "<Q"), 11: ("int64", "<q"),
    12: ("float64", "<d"),
}  # fmt: skip
_SPLIT_NAME = re.compile(r"^(?P<prefix>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$", re.DOTALL)


def check_gguf(path: str | os.PathLike[str], *, model: bool = True, whole: bool = True) -> GGUFInfo:
    """Reads and checks the header of a GGUF file; for the first file of a split model, of all its files.

    Raises `ModelNotFoundError` when there is no such file, `ArgumentError` when the path is none, and `FileFormatError` for everything that is wrong with it.
    With ``model=False`` only the format is checked, not whether llama.cpp can take it for a model. With ``whole=False``
    the tensors may lie beyond the end of the file: its header is enough for a plan.
    """
    name = file_path("a GGUF file", path)
    if not os.fspath(path):
        raise ModelNotFoundError("no file: the path is empty")
    first = _read_file(name, whole)
    info = _join_splits(first, whole)
    if model:
        check_model(info)
    return info


def _read_file(path: Path, whole: bool) -> GGUFInfo:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise FileFormatError(f"{path}: is a directory, expected a GGUF file")
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{path}: is not a regular file, expected a GGUF file")
        with open(path, "rb", buffering=0) as file:
            return _Reader(path, file, os.fstat(file.fileno()).st_size, whole).read()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"{path}: no such file") from None
    except OSError as e:
        raise FileFormatError(f"{path}: cannot be read: {e.strerror or e}") from None
    except ValueError as e:
        if isinstance(e, FileFormatError):
            raise
        raise ModelNotFoundError(f"{str(path)!r}: not a file name: {e}") from None


class _Reader:
    """One pass over the header of one file."""

    def __init__(self, path: Path, file: Any, size: int, whole: bool) -> None:
        self.path, self.file, self.size, self.whole = path, file, size, whole
        self.pos = 0
        self.window = b""
        self.start = 0  # of the window, in the file

    def fail(self, what: str, at: int, found: object, expected: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {what} at byte {at}: found {found}, expected {expected}")

    def need(self, n: int, what: str) -> None:
        """Makes the next n bytes available in the window."""
        if self.pos + n > self.size:
            raise FileFormatError(
                f"{self.path}: the file ends inside {what} at byte {self.pos}: found {max(0, self.size - self.pos)} more "
                f"bytes, expected {n}; it may be truncated: fetch it again"
            )
        if self.pos < self.start or self.pos + n > self.start + len(self.window):
            self.file.seek(self.pos)
            want = min(max(n, _WINDOW), self.size - self.pos)
            pieces: list[bytes] = []
            while want > 0:
                piece = self.file.read(want)
                if not piece:
                    break
                pieces.append(piece)
                want -= len(piece)
            self.window, self.start = b"".join(pieces), self.pos
            if len(self.window) < n:
                raise FileFormatError(f"{self.path}: became shorter while it was read, at byte {self.pos}")

    def unpack(self, fmt: str, what: str) -> Any:
        n = struct.calcsize(fmt)
        self.need(n, what)
        (value,) = struct.unpack_from(fmt, self.window, self.pos - self.start)
        self.pos += n
        return value

    def string(self, what: str, limit: int) -> bytes:
        at = self.pos
        n = self.unpack("<Q", f"the length of {what}")
        if n > limit:
            raise self.fail(f"length of {what}", at, n, f"at most {limit}")
        self.need(n, what)
        begin = self.pos - self.start
        self.pos += n
        return self.window[begin : begin + n]

    def name(self, what: str, limit: int) -> str:
        at = self.pos
        raw = self.string(what, limit)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self.fail(what, at, repr(raw[:40]), "UTF-8 text") from None
        if not text or "\0" in text:
            raise self.fail(what, at, repr(text), "a name that is not empty and has no zero bytes")
        return text

    def read(self) -> GGUFInfo:
        n_tensors, n_keys, version = self.preamble()
        metadata: dict[str, Metadata] = {}
        types: dict[str, str] = {}
        for i in range(n_keys):
            at = self.pos
            key = self.name(f"metadata key {i}", _MAX_KEY)
            if key in metadata:
                raise self.fail(f"metadata key {i}", at, f"{key!r} again", "every key once")
            metadata[key], types[key] = self.value(key)
        tensors = self.tensors(n_tensors, self.alignment(metadata, types))
        arch = metadata.get("general.architecture")
        return GGUFInfo(
            paths=(self.path,),
            version=version,
            arch=arch if isinstance(arch, str) else None,
            metadata=MappingProxyType(metadata),
            types=MappingProxyType(types),
            tensors=tensors,
            n_bytes=self.size,
        )

    def preamble(self) -> tuple[int, int, int]:
        self.need(24, "the GGUF header")
        magic, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", self.window, 0)
        if magic != b"GGUF":
            raise self.fail("magic number", 0, repr(magic), "b'GGUF' (is it a GGUF file?)")
        if version not in (2, 3):
            if version & 0xFFFF == 0:
                raise self.fail("version", 4, f"{version:#x}", "2 or 3; this is a big-endian file: convert it")
            raise self.fail("version", 4, version, "2 or 3; convert the model again with a recent llama.cpp")
        if n_tensors > self.size // _MIN_TENSOR_BYTES:
            raise self.fail("number of tensors", 8, n_tensors, f"at most what fits into {self.size} bytes")
        if n_keys > self.size // _MIN_KEY_BYTES:
            raise self.fail("number of metadata keys", 16, n_keys, f"at most what fits into {self.size} bytes")
        self.pos = 24
        return n_tensors, n_keys, version

    def value(self, key: str) -> tuple[Metadata, str]:
        at = self.pos
        kind = self.unpack("<I", f"the type of {key}")
        if kind == _STRING:
            return self.string(f"the value of {key}", _MAX_STRING).decode(errors="replace"), "string"
        if kind == _ARRAY:
            return self.array(key), "array"
        if kind not in _SCALARS:
            raise self.fail(f"type of metadata key {key!r}", at, kind, "a GGUF type from 0 to 12")
        name, fmt = _SCALARS[kind]
        value = self.unpack(fmt, f"the value of {key}")
        return (bool(value) if name == "bool" else value), name

    def array(self, key: str) -> GGUFArray:
        at = self.pos
        kind = self.unpack("<I", f"the element type of {key}")
        n = self.unpack("<Q", f"the length of {key}")
        left = self.size - self.pos
        begin = self.pos
        if kind == _STRING:
            if n > left // 8 or n > _MAX_STRINGS:
                raise self.fail(f"length of array {key!r}", at + 4, n, f"at most {min(left // 8, _MAX_STRINGS)} strings")
            if key == "tokenizer.ggml.tokens":
                self.distinct_strings(key, n)
            else:
                self.skip_strings(key, n)
            return GGUFArray("string", n, self.path, begin, self.pos - begin)
        if kind not in _SCALARS:
            raise self.fail(f"element type of array {key!r}", at, kind, "a GGUF type from 0 to 12, no array")
        name, fmt = _SCALARS[kind]
        nbytes = n * struct.calcsize(fmt)
        if nbytes > left or nbytes > _MAX_ARRAY_BYTES:
            limit = min(left, _MAX_ARRAY_BYTES)
            raise self.fail(f"length of array {key!r}", at + 4, f"{n} ({nbytes} bytes)", f"at most {limit} bytes")
        self.pos += nbytes
        return GGUFArray(name, n, self.path, begin, nbytes)

    def skip_strings(self, key: str, n: int) -> None:
        # the hot loop of a large vocabulary: nothing but one unpack per string
        unpack, done = struct.Struct("<Q").unpack_from, 0
        while done < n:
            self.need(8, f"string {done} of {key}")
            window, at, end = self.window, self.pos - self.start, len(self.window) - 8
            while done < n and at <= end:
                at += 8 + unpack(window, at)[0]
                done += 1
            last, self.pos = self.pos, self.start + at
            if self.pos > self.size:
                raise self.fail(f"string {done - 1} of {key!r}", last, "a length beyond the end of the file", "less")

    def distinct_strings(self, key: str, n: int) -> None:
        seen: set[bytes] = set()
        unpack, done = struct.Struct("<Q").unpack_from, 0
        while done < n:
            begin = self.pos
            length = self.unpack("<Q", f"the length of string {done} of {key}")
            if length > _WINDOW:
                raise self.fail(f"length of string {done} of {key!r}", begin, length, f"at most {_WINDOW}")
            self.pos = begin
            self.need(8 + length, f"string {done} of {key}")
            window, at, end = self.window, self.pos - self.start, len(self.window)
            while done < n and at + 8 <= end:
                stop = at + 8 + unpack(window, at)[0]
                if stop > end:
                    break
                token = window[at + 8 : stop]
                if token in seen:
                    raise self.fail(f"token {done} of {key!r}", self.start + at, f"{token!r} again", "every token once")
                # llama.cpp gives empty tokens names of their own
                seen.add(token or b"[EMPTY_%d]" % done)
                at = stop
                done += 1
            self.pos = self.start + at

    def alignment(self, metadata: Mapping[str, Metadata], types: Mapping[str, str]) -> int:
        key = "general.alignment"
        if key not in metadata:
            return 32
        value = metadata[key]
        if types[key] != "uint32" or not isinstance(value, int) or value < 8 or value & (value - 1):
            found = f"{value!r} ({types[key]})"
            raise FileFormatError(f"{self.path}: {key}: found {found}, expected a uint32 power of two, at least 8")
        return value

    def tensors(self, n: int, alignment: int) -> tuple[GGUFTensor, ...]:
        found: list[GGUFTensor] = []
        names: set[str] = set()
        expected = 0
        for i in range(n):
            at = self.pos
            name = self.name(f"the name of tensor {i}", _MAX_NAME)
            if name in names:
                raise self.fail(f"name of tensor {i}", at, f"{name!r} again", "every name once")
            names.add(name)
            ne, dtype, nbytes = self.tensor_type(name)
            at = self.pos
            offset = self.unpack("<Q", f"the offset of tensor {name}")
            if offset != expected:
                raise self.fail(f"offset of tensor {name!r}", at, offset, f"{expected}: tensors follow each other")
            expected = _pad(offset + nbytes, alignment)
            found.append(GGUFTensor(name, ne, dtype, self.path, offset, nbytes))
        data = _pad(self.pos, alignment)
        for t in found:
            if self.whole and data + t.offset + t.nbytes > self.size:
                raise TruncatedFileError(
                    f"{self.path}: tensor {t.name!r} ends at byte {data + t.offset + t.nbytes}: found a file of {self.size} "
                    "bytes; it may be truncated: fetch it again",
                    header_size=data,
                    whole_size=data + found[-1].offset + found[-1].nbytes,
                )
        return tuple(GGUFTensor(t.name, t.ne, t.dtype, t.path, data + t.offset, t.nbytes) for t in found)

    def tensor_type(self, name: str) -> tuple[tuple[int, ...], DType, int]:
        at = self.pos
        n_axes = self.unpack("<I", f"the number of axes of tensor {name}")
        if n_axes > 4:
            raise self.fail(f"number of axes of tensor {name!r}", at, n_axes, "at most 4")
        ne = tuple(self.unpack("<Q", f"the shape of tensor {name}") for _ in range(n_axes)) or (1,)
        n_elements = 1
        for n in ne:
            n_elements *= n
        if n_elements == 0 or n_elements >= 1 << 63:
            raise self.fail(f"shape of tensor {name!r}", at + 4, list(ne), "1 to 2^63 elements")
        at = self.pos
        type_id = self.unpack("<I", f"the format of tensor {name}")
        dtype = dtype_from_id(type_id)
        if dtype is None:
            raise self.fail(f"format of tensor {name!r}", at, type_id, "a number format that ggml knows")
        if ne[0] % dtype.block_size:
            raise self.fail(
                f"shape of tensor {name!r}", at, list(ne), f"axis 0 a multiple of {dtype.block_size}, the block of {dtype}"
            )
        nbytes = n_elements // dtype.block_size * dtype.type_size
        if nbytes >= _MAX_TENSOR_BYTES:
            raise self.fail(f"size of tensor {name!r}", at, f"{nbytes} bytes", f"less than {_MAX_TENSOR_BYTES}")
        return ne, dtype, nbytes


def _pad(n: int, alignment: int) -> int:
    return (n + alignment - 1) // alignment * alignment


def _join_splits(first: GGUFInfo, whole: bool) -> GGUFInfo:
    """The whole of a split model, from its first file."""
    path = first.paths[0]
    count = _split_number(first, "split.count")
    if count is None or count <= 1:
        return first
    number = _split_number(first, "split.no")
    name = _SPLIT_NAME.match(path.name)
    if name is None or int(name["count"]) != count or number is None or int(name["no"]) != number + 1:
        raise FileFormatError(
            f"{path}: is file {'?' if number is None else number + 1} of a model split into {count}: "
            f"expected a name that says so, such as model-00001-of-{count:05d}.gguf"
        )
    siblings = [path.with_name(f"{name['prefix']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    if number != 0:
        raise FileFormatError(f"{path}: is file {number + 1} of a split model, expected the first: {siblings[0]}")
    parts = [first, *_other_splits(siblings, whole)]
    tensors = tuple(t for part in parts for t in part.tensors)
    names: dict[str, Path] = {}
    for t in tensors:
        if t.name in names:
            raise FileFormatError(f"{t.path}: tensor {t.name!r}: found in {names[t.name]} too, expected every name once")
        names[t.name] = t.path
    total = first.metadata.get("split.tensors.count")
    if first.types.get("split.tensors.count") != "int32" or total != len(tensors):
        raise FileFormatError(f"{path}: split.tensors.count: found {total!r}, expected {len(tensors)} as int32")
    return GGUFInfo(
        paths=tuple(siblings),
        version=first.version,
        arch=first.arch,
        metadata=first.metadata,
        types=first.types,
        tensors=tensors,
        n_bytes=sum(part.n_bytes for part in parts),
    )


def _other_splits(siblings: list[Path], whole: bool) -> Iterator[GGUFInfo]:
    for i, path in enumerate(siblings[1:], start=1):
        try:
            part = _read_file(path, whole)
        except ModelNotFoundError:
            raise ModelNotFoundError(f"{path}: no such file; it is part {i + 1} of {siblings[0]}") from None
        number = _split_number(part, "split.no")
        if number != i:
            raise FileFormatError(f"{path}: split.no: found {number}, expected {i}")
        count = _split_number(part, "split.count")
        if count != len(siblings):
            raise FileFormatError(f"{path}: split.count: found {count}, expected {len(siblings)}: it is a part of a model that was split otherwise")
        yield part


def _split_number(info: GGUFInfo, key: str) -> int | None:
    value = info.metadata.get(key)
    if value is None:
        return None
    if info.types[key] != "uint16" or not isinstance(value, int):
        raise FileFormatError(f"{info.paths[0]}: {key}: found {value!r} ({info.types[key]}), expected a uint16")
    return value
