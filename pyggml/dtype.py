"""Number formats of ggml tensors, and arrays in them.

Names, block sizes and byte sizes come from ggml itself when the module is imported; nothing is copied by hand.

Axes: numpy's last axis is ggml's axis 0, the contiguous one, and the one along which quantized formats
form blocks. ``QuantizedArray.shape`` is in numpy's order, ``QuantizedArray.ne`` in ggml's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Union, cast

import numpy as np
import numpy.typing as npt

from ._arguments import whole
from ._ffi import ffi, lib
from .errors import DTypeError, ShapeError, UnsupportedError

__all__ = ["DTYPES", "DType", "DTypeLike", "QuantizedArray", "as_dtype", "dequantize", "quantize"]

# Rows are converted in pieces of about this many elements, so that Ctrl-C is noticed and float64 or float16
# input needs little memory of its own. The GIL is released in each piece.
_PIECE = 1 << 20

# ggml_quantize_chunk aborts for these two: they only exist as the other factor inside a matrix product.
_INTERNAL = frozenset({"q8_1", "q8_K"})

# The block formats keep scale and minimum as F16, and square the values in F32 on the way to them: larger values
# would become infinity or, in some formats, an abort. Half of F16's range, as a fitted minimum may lie beyond the values.
_BLOCK_MAX = 32768.0
_F16_MAX = 65504.0
_BF16_MAX = float(np.float32(3.3895314e38))
# importance weights are multiplied by squares of values and summed in F32
_IMATRIX_MAX = 1e9
_MAX_INDEX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class DType:
    """A number format of ggml, one per ``enum ggml_type``.

    Compare with ``==``, use as a key, print with ``str()``: ``str(as_dtype("Q4_k")) == "q4_K"``.
    """

    name: str
    """ggml's own name, such as ``"f32"`` or ``"q4_K"``."""
    type_id: int
    """The value of ``enum ggml_type``."""
    block_size: int
    """Elements in a block; 1 for plain numbers."""
    type_size: int
    """Bytes of a block."""
    is_quantized: bool
    """Whether elements are stored in blocks with a common scale."""
    numpy: np.dtype[Any] | None = field(compare=False)
    """The numpy dtype with the same memory, or None (block formats and bf16)."""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"DType({self.name!r})"

    @property
    def bits_per_element(self) -> float:
        """Average bits of an element, scales included."""
        return self.type_size * 8 / self.block_size

    @property
    def has_quantizer(self) -> bool:
        """Whether `quantize` can make arrays of this format."""
        return (self.is_quantized or self.name in ("f32", "f16", "bf16")) and self.name not in _INTERNAL

    @property
    def needs_imatrix(self) -> bool:
        """Whether `quantize` needs an importance matrix for this format."""
        return bool(lib.ggml_quantize_requires_imatrix(self.type_id))

    def row_bytes(self, ne0: int) -> int:
        """Bytes of a row of ``ne0`` elements (ggml's axis 0). ``ne0`` must be a multiple of ``block_size``."""
        ne0 = whole(f"row_bytes() of {self.name}: ne0", ne0, -_MAX_INDEX, _MAX_INDEX)
        if ne0 < 0 or ne0 % self.block_size:
            raise ShapeError(
                f"a row of {ne0} elements does not divide into blocks of {self.name}: "
                f"expected a multiple of {self.block_size}"
            )
        return ne0 // self.block_size * self.type_size


DTypeLike = Union[DType, str, "np.dtype[Any]", type]


def _load() -> Mapping[str, DType]:
    numpy_names = {
        "f32": "<f4", "f16": "<f2", "f64": "<f8", "i8": "i1", "i16": "<i2", "i32": "<i4", "i64": "<i8",
    }  # fmt: skip
    found: dict[str, DType] = {}
    for type_id in range(int(lib.GGML_TYPE_COUNT)):
        block_size = int(lib.ggml_blck_size(type_id))
        type_size = int(lib.ggml_type_size(type_id))
        if block_size == 0 or type_size == 0:
            continue  # a number whose format upstream has removed
        name = ffi.string(lib.ggml_type_name(type_id)).decode()
        numpy_name = numpy_names.get(name)
        found[name] = DType(
            name=name,
            type_id=type_id,
            block_size=block_size,
            type_size=type_size,
            is_quantized=bool(lib.ggml_is_quantized(type_id)),
            numpy=None if numpy_name is None else np.dtype(numpy_name),
        )
    return MappingProxyType(found)


DTYPES: Mapping[str, DType] = _load()
"""Every number format by ggml's name."""

DTYPES_BY_ID: Mapping[int, DType] = MappingProxyType({d.type_id: d for d in DTYPES.values()})
"""Every number format by the value of ``enum ggml_type``."""
_BY_ALIAS = {name.lower(): d for name, d in DTYPES.items()} | {
    alias: DTYPES[name]
    for alias, name in {
        "float32": "f32", "float": "f32", "float16": "f16", "half": "f16", "bfloat16": "bf16",
        "float64": "f64", "double": "f64", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    }.items()
    if name in DTYPES
}  # fmt: skip


def as_dtype(dtype: DTypeLike) -> DType:
    """The `DType` for a `DType`, a name in any case (``"q4_K"``, ``"Q4_K"``, ``"float16"``) or a numpy dtype."""
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str):
        found = _BY_ALIAS.get(dtype.strip().lower())
        if found is not None:
            return found
        hint = ""
        stem = dtype.strip().lower()
        for suffix in ("_s", "_m", "_l", "_xl"):
            if stem.endswith(suffix) and stem[: -len(suffix)] in _BY_ALIAS:
                base = _BY_ALIAS[stem[: -len(suffix)]].name
                hint = f" ({dtype} is a mix of formats for a whole file; a tensor has one, such as {base})"
        raise DTypeError(f"unknown number format {dtype!r}{hint}: expected one of {', '.join(DTYPES)}")
    try:
        wanted = None if dtype is None else np.dtype(dtype)  # numpy takes None for float64
    except TypeError:
        wanted = None
    if wanted is not None:
        for candidate in DTYPES.values():
            if candidate.numpy is not None and candidate.numpy == wanted:
                return candidate
    raise DTypeError(f"no ggml number format for {dtype!r}: expected a name such as 'f32' or 'q4_K', or a numpy dtype")


def as_array(what: str, value: Any) -> npt.NDArray[Any]:
    """What numpy makes of a value.

    Raises:
        DTypeError: it makes nothing of it (rows of unequal length).
    """
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DTypeError(f"{what}: this {type(value).__name__} is no array of numbers: {error}") from None


def dtype_from_id(type_id: int) -> DType | None:
    """The `DType` for a value of ``enum ggml_type``, or None when ggml has no such format (any more)."""
    return DTYPES_BY_ID.get(type_id)


@dataclass(frozen=True, eq=False)
class QuantizedArray:
    """An array in one of ggml's number formats: raw bytes with a shape. A value: its data cannot be written.

    Made by `quantize`, or from raw bytes, for instance those of a tensor in a GGUF file.
    """

    dtype: DType
    shape: tuple[int, ...]
    """In numpy's order: the last axis is ggml's axis 0."""
    data: npt.NDArray[np.uint8] = field(repr=False)
    """The bytes, row after row; one axis, not writable."""

    def __post_init__(self) -> None:
        dtype = as_dtype(self.dtype)
        if not isinstance(self.shape, (tuple, list)):
            raise ShapeError(f"QuantizedArray(shape={self.shape!r:.80}): expected a tuple of sizes in numpy's order")
        sizes = tuple(whole(f"QuantizedArray: shape[{i}]", n, -_MAX_INDEX, _MAX_INDEX) for i, n in enumerate(self.shape))
        shape = _checked_shape(sizes, dtype)
        want = math.prod(shape[:-1]) * dtype.row_bytes(shape[-1])
        try:
            data = np.frombuffer(memoryview(cast(Any, self.data)).cast("B"), dtype=np.uint8)
        except (TypeError, ValueError) as e:
            raise DTypeError(f"data of a QuantizedArray: {e}; expected contiguous bytes") from None
        if data.size != want:
            raise ShapeError(f"{data.size} bytes of data for shape {shape} of {dtype}: expected {want}")
        data.flags.writeable = False
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "data", data)

    @property
    def ne(self) -> tuple[int, ...]:
        """The shape in ggml's order (``shape`` reversed)."""
        return self.shape[::-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return int(self.data.size)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The same as `pyggml.dequantize(self)`."""
        return dequantize(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise DTypeError(f"an array of {self.dtype} cannot become a numpy array without a copy: use .data")
        out = dequantize(self)
        return out if dtype is None else out.astype(dtype, copy=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantizedArray):
            return NotImplemented
        return (
            self.dtype == other.dtype and self.shape == other.shape and bool(np.array_equal(self.data, other.data))
        )

    __hash__ = None  # type: ignore[assignment]


def quantize(
    array: npt.ArrayLike, dtype: DTypeLike, imatrix: npt.ArrayLike | None = None
) -> QuantizedArray:
    """The array in one of ggml's number formats, made by ggml's own quantizers.

    ``array`` holds float32, float64 or float16; its last axis (ggml's axis 0) must be a multiple of the format's
    block size. ``imatrix`` gives an importance per element of a row, as llama.cpp's ``llama-imatrix`` measures
    it: shape ``(last axis,)``, or ``(first axis, last axis)`` for three axes (one row per expert). Some formats need
    it (`DType.needs_imatrix`), others use it when it is given.

    >>> q = quantize(np.ones((2, 64), np.float32), "q8_0")
    >>> q.ne, q.nbytes
    ((64, 2), 136)
    """
    to = as_dtype(dtype)
    source = as_array("quantize", array)
    if source.dtype not in (np.float32, np.float64, np.float16):
        raise DTypeError(
            f"cannot quantize an array of {source.dtype} to {to}: expected float32, float64 or float16; "
            "convert it with .astype(np.float32)"
        )
    if not to.has_quantizer:
        possible = ", ".join(d.name for d in DTYPES.values() if d.has_quantizer)
        raise UnsupportedError(f"ggml has no quantizer for {to}: expected one of {possible}")
    shape = _checked_shape(source.shape, to)
    ne0 = shape[-1]
    n_rows = math.prod(shape[:-1])
    rows = source.reshape(n_rows, ne0)
    weights = _checked_imatrix(imatrix, shape, to)
    rows_per_matrix = n_rows if weights is None else n_rows // weights.shape[0]
    limit = _value_limit(to)
    row_bytes = to.row_bytes(ne0)
    out = np.empty(n_rows * row_bytes, np.uint8)
    begin = 0
    while begin < n_rows:
        matrix = begin // rows_per_matrix
        end = min(begin + max(1, _PIECE // ne0), (matrix + 1) * rows_per_matrix)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which is refused by name
            piece = np.ascontiguousarray(rows[begin:end], dtype=np.float32)
        _check_values(piece, begin, shape, to, limit, "array")
        lib.ggml_quantize_chunk(
            to.type_id,
            ffi.cast("const float *", piece.ctypes.data),
            ffi.cast("void *", out.ctypes.data + begin * row_bytes),
            0,
            end - begin,
            ne0,
            ffi.NULL if weights is None else ffi.cast("const float *", weights[matrix].ctypes.data),
        )
        begin = end
    return QuantizedArray(to, shape, out)


def dequantize(quantized: QuantizedArray) -> npt.NDArray[np.float32]:
    """The values of an array in one of ggml's number formats, as float32 with the same shape."""
    if not isinstance(quantized, QuantizedArray):
        raise DTypeError(f"dequantize: found {type(quantized).__name__}, expected a QuantizedArray")
    dtype = quantized.dtype
    if dtype.numpy is not None:
        return quantized.data.view(dtype.numpy).reshape(quantized.shape).astype(np.float32)
    to_float = lib.ggml_get_type_traits(dtype.type_id).to_float
    if to_float == ffi.NULL:
        raise UnsupportedError(f"ggml cannot convert {dtype} to float: it only exists inside matrix products")
    ne0 = quantized.shape[-1]
    n_rows = math.prod(quantized.shape[:-1])
    row_bytes = dtype.row_bytes(ne0)
    out = np.empty(quantized.shape, np.float32)
    step = max(1, _PIECE // ne0)
    for begin in range(0, n_rows, step):
        to_float(
            ffi.cast("const void *", quantized.data.ctypes.data + begin * row_bytes),
            ffi.cast("float *", out.ctypes.data + begin * ne0 * 4),
            (min(begin + step, n_rows) - begin) * ne0,
        )
    return out


def _checked_shape(shape: tuple[int, ...], dtype: DType) -> tuple[int, ...]:
    if not 1 <= len(shape) <= 4:
        raise ShapeError(f"shape {shape}: ggml tensors have 1 to 4 axes, found {len(shape)}")
    if min(shape) < 1:
        raise ShapeError(f"shape {shape}: every axis must have at least one element")
    if shape[-1] % dtype.block_size:
        raise ShapeError(
            f"shape {shape}: the last axis ({shape[-1]} elements, ggml's axis 0) does not divide into blocks of "
            f"{dtype}: expected a multiple of {dtype.block_size}"
        )
    return shape


def _value_limit(dtype: DType) -> float:
    if dtype.name == "f32":
        return math.inf
    return _BLOCK_MAX if dtype.is_quantized else _BF16_MAX if dtype.name == "bf16" else _F16_MAX


def _check_values(
    piece: npt.NDArray[np.float32], first_row: int, shape: tuple[int, ...], dtype: DType, limit: float, what: str
) -> None:
    # a minimum and a maximum are cheaper than a mask; NaN and infinity come through both
    low, high = float(piece.min()), float(piece.max())
    if math.isfinite(low) and math.isfinite(high) and -limit <= low and high <= limit:
        return
    with np.errstate(invalid="ignore"):
        row, column = (int(i) for i in np.argwhere(~(np.abs(piece) <= min(limit, np.finfo(np.float32).max)))[0])
    position = tuple(int(i) for i in np.unravel_index((first_row + row) * shape[-1] + column, shape))
    value = float(piece[row, column])
    if math.isfinite(value):
        raise DTypeError(f"{what}{list(position)} is {value:g}: {dtype} holds values up to {limit:g}; scale the array")
    raise DTypeError(f"{what}{list(position)} is {value} as float32: {dtype} needs finite values")


def _checked_imatrix(
    imatrix: npt.ArrayLike | None, shape: tuple[int, ...], dtype: DType
) -> npt.NDArray[np.float32] | None:
    if imatrix is None:
        if dtype.needs_imatrix:
            raise DTypeError(
                f"{dtype} needs an importance matrix: pass imatrix= with shape ({shape[-1]},), "
                "for instance the mean of the squared activations"
            )
        return None
    try:
        weights = np.asarray(imatrix)
        if weights.dtype.kind not in "fiub":
            raise TypeError(f"it is an array of {weights.dtype}")
        with np.errstate(over="ignore"):
            weights = np.ascontiguousarray(weights, dtype=np.float32)
    except (TypeError, ValueError) as e:
        raise DTypeError(f"imatrix: {e}; expected numbers") from None
    allowed = [(shape[-1],)] + ([(shape[0], shape[-1])] if len(shape) == 3 else [])
    if weights.shape not in allowed:
        expected = " or ".join(str(s) for s in allowed)
        raise ShapeError(f"imatrix has shape {weights.shape} for an array of shape {shape}: expected {expected}")
    bad = np.argwhere(~((weights >= 0) & (weights <= _IMATRIX_MAX)))
    if len(bad):
        position = tuple(int(i) for i in bad[0])
        raise DTypeError(
            f"imatrix{list(position)} is {float(weights[position]):g}: expected finite values from 0 to {_IMATRIX_MAX:g}"
        )
    return weights.reshape(-1, shape[-1])
