"""What the header of a GGUF file says, as values."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .dtype import DType
from .errors import FileFormatError

__all__ = ["GGUFArray", "GGUFInfo", "GGUFTensor", "Metadata", "TruncatedFileError"]


class TruncatedFileError(FileFormatError):
    """A GGUF file whose header is whole, but whose tensors are not all there. Enough for a plan."""

    def __init__(self, message: str, header_size: int, whole_size: int) -> None:
        super().__init__(message)
        self.header_size = header_size
        """Bytes before the tensors."""
        self.whole_size = whole_size
        """Bytes that the file should have at least."""


@dataclass(frozen=True, slots=True)
class GGUFArray:
    """An array in the metadata of a GGUF file. Its values stay in the file until `load`."""

    type: str
    """``"string"``, or the name of a numpy dtype."""
    length: int
    path: Path = field(repr=False)
    offset: int = field(repr=False)
    nbytes: int = field(repr=False)

    def __len__(self) -> int:
        return self.length

    def load(self) -> npt.NDArray[Any] | list[str]:
        """The values: a list of str, or a numpy array."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                raw = file.read(self.nbytes)
        except OSError as e:
            raise FileFormatError(f"{self.path}: cannot be read any more: {e.strerror}") from None
        changed = FileFormatError(f"{self.path}: the file was changed since it was checked; check it again")
        if len(raw) != self.nbytes:
            raise changed
        if self.type != "string":
            return np.frombuffer(raw, np.dtype(self.type).newbyteorder("<"))
        values, at = [], 0
        for _ in range(self.length):
            if at + 8 > len(raw):
                raise changed
            (n,) = struct.unpack_from("<Q", raw, at)
            if at + 8 + n > len(raw):
                raise changed
            values.append(raw[at + 8 : at + 8 + n].decode(errors="replace"))
            at += 8 + n
        return values


Metadata = bool | int | float | str | GGUFArray


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies in its file."""

    name: str
    ne: tuple[int, ...]
    """Elements per axis in ggml's order: axis 0 is contiguous."""
    dtype: DType
    path: Path
    offset: int
    """Bytes from the beginning of the file."""
    nbytes: int


@dataclass(frozen=True)
class GGUFInfo:
    """The header of a GGUF file, or of all files of a split model."""

    paths: tuple[Path, ...]
    version: int
    arch: str | None
    """``general.architecture``; None in a file that is no model."""
    metadata: Mapping[str, Metadata] = field(repr=False)
    types: Mapping[str, str] = field(repr=False)
    """The GGUF type of each metadata value, such as ``"uint32"``; ``"array"`` for arrays."""
    tensors: tuple[GGUFTensor, ...] = field(repr=False)
    n_bytes: int
    """Size of all files together."""

    @property
    def path(self) -> Path:
        """The file, or the first of several."""
        return self.paths[0]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(t.nbytes for t in self.tensors)

    def tensor(self, name: str) -> GGUFTensor | None:
        """The tensor of that name, or None."""
        return next((t for t in self.tensors if t.name == name), None)
