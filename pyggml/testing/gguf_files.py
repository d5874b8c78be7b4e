"""GGUF files made of others: split into parts, and headers filled with random weights."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._arguments import whole
from ..dtype import as_dtype, quantize
from ..errors import UnsupportedError
from ..gguf_check import check_gguf
from ..gguf_info import GGUFArray, GGUFInfo, GGUFTensor
from .gguf_writer import Value, write_raw_gguf

__all__ = ["split_gguf", "synthetic_weights"]

_MAX_PARTS = 999


def split_gguf(
    source: str | os.PathLike[str], prefix: str | os.PathLike[str], n_parts: int, *, no_tensor_first_split: bool = False
) -> tuple[Path, ...]:
    """Splits a GGUF file as llama.cpp's ``gguf-split`` does: ``PREFIX-00001-of-00003.gguf`` and so on.

    The metadata is in the first part; the others have the numbers of the split alone. Tensors keep their order and are
    spread over the parts by their bytes.

    Args:
        no_tensor_first_split: the first part has metadata only.

    Returns:
        The paths, in order; the first one is what a model is loaded from.

    Raises:
        ArgumentError: more parts than tensors.
    """
    info = check_gguf(source, model=False)
    whole("n_parts", n_parts, 1, min(_MAX_PARTS, len(info.tensors) + no_tensor_first_split))
    groups = [(), *_groups(info.tensors, n_parts - 1)] if no_tensor_first_split else _groups(info.tensors, n_parts)
    paths = []
    for i, tensors in enumerate(groups):
        numbers = {"split.no": np.uint16(i), "split.count": np.uint16(n_parts), "split.tensors.count": np.int32(len(info.tensors))}
        metadata: dict[str, Value] = {**(_metadata(info) if i == 0 else {}), **numbers}
        path = Path(f"{os.fspath(prefix)}-{i + 1:05d}-of-{n_parts:05d}.gguf")
        paths.append(write_raw_gguf(path, metadata, ((t.name, t.ne, t.dtype) for t in tensors), _read(tensors)))
    return tuple(paths)


def synthetic_weights(header: str | os.PathLike[str], path: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """The model of a GGUF header (a file that was cut behind it will do) with random weights, in the formats it names.

    For tests of a real model's shapes without its weights: what it computes means nothing, but is finite and depends on
    all of it. Weights have the scale of a trained model's; the same header and seed give the same bytes.

    Raises:
        FileFormatError, ModelNotFoundError: see `check_gguf`. UnsupportedError: a format that cannot be written.
    """
    info = check_gguf(header, whole=False)
    for t in info.tensors:
        if t.dtype.name.startswith("i") and t.dtype.name[1:].isdigit():
            raise UnsupportedError(f"{t.path}: tensor {t.name!r} has numbers ({t.dtype}) that mean something: no random ones can take their place")
    described = ((t.name, t.ne, t.dtype) for t in info.tensors)
    return write_raw_gguf(path, _metadata(info), described, (_random(t, seed) for t in info.tensors))


def _metadata(info: GGUFInfo) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, value in info.metadata.items():
        kind = info.types[key]
        if isinstance(value, GGUFArray):
            found[key] = value.load()
        else:
            found[key] = value if kind in ("string", "bool") else np.dtype(kind).type(value)
    return found


def _groups(tensors: Sequence[GGUFTensor], n: int) -> list[tuple[GGUFTensor, ...]]:
    """Neighbours together, about the same bytes each, none empty."""
    total, out, at = sum(t.nbytes for t in tensors), [], 0
    done = 0
    for i in range(n):
        group: list[GGUFTensor] = []
        while at < len(tensors) - (n - 1 - i) and (not group or done < total * (i + 1) / n):
            group.append(tensors[at])
            done += tensors[at].nbytes
            at += 1
        out.append(tuple(group))
    return out


def _read(tensors: Sequence[GGUFTensor]) -> Iterator[Any]:
    for t in tensors:
        yield np.fromfile(t.path, np.uint8, t.nbytes, offset=t.offset)


def _random(t: GGUFTensor, seed: int) -> Any:
    rng = np.random.default_rng([seed, zlib.crc32(t.name.encode())])
    values = rng.standard_normal(int(np.prod(t.ne, dtype=np.int64)), np.float32).reshape(t.ne[::-1])
    if t.name.startswith("rope_"):
        values = np.ones_like(values)
    elif len(t.ne) > 1:
        values /= np.float32(np.sqrt(t.ne[0]))
    else:
        values = (values * np.float32(0.1) + (0 if t.name.endswith(".bias") else 1)).astype(np.float32)
    if t.dtype == as_dtype("f32"):
        return values
    if t.dtype.name == "f16":
        return values.astype(np.float16)
    shape = (t.ne[2], t.ne[0]) if len(t.ne) > 2 else t.ne[:1]  # a row of importances for each expert
    imatrix = np.ones(shape, np.float32) if t.dtype.needs_imatrix else None
    return quantize(values, t.dtype, imatrix=imatrix).data
