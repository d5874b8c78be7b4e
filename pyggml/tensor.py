"""Tensors of a graph or of a set of weights."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._ffi import ffi, lib
from ._handle import Borrowed
from .dtype import DTYPES_BY_ID, DType, QuantizedArray, as_array, dequantize
from .errors import ClosedError, DTypeError, ShapeError

if TYPE_CHECKING:
    from .ops.methods import TensorMethods
    from .split import SplitState
else:
    TensorMethods = object  # pyggml.ops attaches them

__all__ = ["Slice", "Tensor", "as_bytes"]

_FLOAT32 = np.dtype(np.float32)
MAX_ELEMENTS = 1 << 48  # of one tensor: beyond it sizes in bytes could overflow in ggml's own arithmetic


class Tensor(TensorMethods):
    """One ``struct ggml_tensor``, kept alive by its owner (a `Graph` or `Weights`).

    ``ne`` is in ggml's order, axis 0 contiguous; ``shape`` is the same in numpy's order, trailing ones dropped.
    Operators build graph nodes (``w @ x`` is ggml's ``mul_mat(w, x)``); every op of ggml is a method and a function
    of `pyggml.ops`.
    """

    __slots__ = ("__weakref__", "_ne", "_owner", "_ptr")

    def __init__(self, owner: Any, ptr: Any) -> None:
        self._owner = weakref.ref(owner)
        self._ptr = ptr
        self._ne: tuple[int, int, int, int] | None = None  # never changes: read from C once

    @property
    def owner(self) -> Any:
        """The graph or the weights that it belongs to."""
        owner = self._owner()
        if owner is None:
            raise ClosedError("this tensor's graph or weights are gone: nothing kept them; keep a reference to them as long as their tensors are used")
        if owner.closed:
            raise ClosedError("this tensor's graph or weights are closed: it cannot be used any more")
        return owner

    @property
    def ptr(self) -> Any:
        """The ``struct ggml_tensor *``; valid while the owner is open."""
        self.owner  # noqa: B018  (raises when it is closed)
        return self._ptr

    @property
    def name(self) -> str:
        """ggml's name, at most 63 bytes."""
        return str(ffi.string(self.ptr.name).decode("utf-8", "replace"))

    @property
    def ne(self) -> tuple[int, int, int, int]:
        """Elements along each axis, axis 0 first."""
        ptr = self.ptr
        if self._ne is None:
            self._ne = tuple(int(n) for n in ptr.ne)  # type: ignore[assignment]
        return self._ne  # type: ignore[return-value]

    @property
    def nb(self) -> tuple[int, int, int, int]:
        """Strides in bytes, axis 0 first."""
        return tuple(int(n) for n in self.ptr.nb)  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, ...]:
        """``ne`` reversed, without the trailing axes of one element: what ``numpy()`` has."""
        return numpy_shape(self.ne)

    @property
    def dtype(self) -> DType:
        """The number format."""
        return DTYPES_BY_ID[self.ptr.type]

    @property
    def op(self) -> str:
        """The operation that computes it, ``NONE`` for inputs and weights."""
        return str(ffi.string(lib.ggml_op_desc(self.ptr)).decode())

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return int(lib.ggml_nbytes(self.ptr))

    def rename(self, name: str) -> Tensor:
        """Gives it a name; rules, plans and errors use it."""
        self.owner._rename(self, name)
        return self

    def split(self, *, synced: bool = True) -> SplitState | None:
        """How ggml split it, once allocated on a meta device; None elsewhere.

        Args:
            synced: as the nodes behind it see it (a partial sum counts as summed), else as it is computed.
        """
        from .split import read_state

        state = ffi.new("struct ggml_backend_meta_split_state *")
        owner = self.owner
        with Borrowed((owner,)):
            if not lib.pgg_meta_split_state(self.ptr, synced, state):
                return None
            return read_state(state, owner.n_devices)

    def slices(self) -> list[Slice]:
        """What each device of a meta device holds, device 0 first; empty elsewhere."""
        found = []
        owner = self.owner
        with Borrowed((owner,)):
            for i in range(owner.n_devices):
                ptr = lib.pgg_meta_slice(self.ptr, i)
                if ptr != ffi.NULL:
                    found.append(Slice(self, ptr, i))
        return found

    def numpy(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """A copy of the value, assembled from all devices. Formats without a numpy dtype come out as float32.

        Of a graph only outputs can be read: the memory of other nodes is used again while it runs.

        Args:
            out: where to put it; an array in C order with the shape and dtype of the result. Large values that are
                read again and again are read about twice as fast into memory that is already there.
        """
        owner = self.owner
        with owner._reading():
            owner._check_readable(self)
            return read_tensor(self.ptr, self.dtype, self.ne, out)

    def __repr__(self) -> str:
        if self._owner() is None or self._owner().closed:  # type: ignore[union-attr]
            return "<Tensor (closed)>"
        return f"<Tensor {self.name!r} {self.op} {self.dtype} ne={list(self.ne)}>"


class Slice:
    """A device's part of a tensor; ``ne``, ``nb`` and ``nbytes`` as for a tensor."""

    __slots__ = ("_ptr", "_tensor", "device")

    def __init__(self, tensor: Tensor, ptr: Any, device: int) -> None:
        self._tensor, self._ptr, self.device = tensor, ptr, device

    @property
    def ne(self) -> tuple[int, int, int, int]:
        """Elements along each axis, axis 0 first."""
        self._tensor.owner  # noqa: B018
        return tuple(int(n) for n in self._ptr.ne)  # type: ignore[return-value]

    @property
    def nb(self) -> tuple[int, int, int, int]:
        """Strides in bytes, axis 0 first."""
        self._tensor.owner  # noqa: B018
        return tuple(int(n) for n in self._ptr.nb)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes on this device."""
        return int(lib.ggml_nbytes(self._ptr)) if 0 not in self.ne else 0

    def numpy(self) -> npt.NDArray[Any]:
        """A copy of this device's part."""
        owner = self._tensor.owner
        with owner._reading():
            owner._check_readable(self._tensor)
            return read_tensor(self._ptr, self._tensor.dtype)

    def __repr__(self) -> str:
        return f"<Slice of {self._tensor.name!r} on device {self.device}, ne={list(self.ne)}>"


@functools.lru_cache(maxsize=4096)
def numpy_shape(ne: tuple[int, ...]) -> tuple[int, ...]:
    """ggml's ne as a numpy shape."""
    last = max((i for i, n in enumerate(ne) if n != 1), default=0)
    return tuple(reversed(ne[: last + 1]))


def check_readable(ptr: Any) -> None:
    """Refuses to touch a tensor without memory, which would be a segmentation fault."""
    root = ptr.view_src if ptr.view_src != ffi.NULL else ptr
    if root.buffer == ffi.NULL or ptr.buffer == ffi.NULL:
        name = ffi.string(ptr.name).decode("utf-8", "replace")
        raise ClosedError(f"tensor {name!r} has no memory yet: run the graph first, and mark it as an output to keep it")


def read_tensor(
    ptr: Any, dtype: DType, ne: tuple[int, ...] | None = None, out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """The value of an allocated tensor or slice, in numpy's order; into ``out`` where it is given.

    Raises:
        ShapeError, DTypeError: ``out`` has another shape, another dtype, or is not one piece of memory.
    """
    if ne is None:
        ne = tuple(int(n) for n in ptr.ne)
    shape, kind = numpy_shape(ne), dtype.numpy or _FLOAT32
    target = np.empty(shape, kind) if out is None else _checked_out(out, shape, kind)
    if 0 in ne:
        return target
    check_readable(ptr)
    if not lib.ggml_is_contiguous(ptr):
        target[...] = _read_strided(ptr, dtype, ne, shape)
    elif dtype.numpy is None:
        raw = np.empty(int(lib.ggml_nbytes(ptr)), np.uint8)
        lib.ggml_backend_tensor_get(ptr, ffi.from_buffer(raw), 0, raw.nbytes)
        value = dequantize(QuantizedArray(dtype, shape, raw))
        if out is None:
            return value
        target[...] = value
    else:
        lib.ggml_backend_tensor_get(ptr, ffi.from_buffer(target), 0, target.nbytes)
    return target


def _checked_out(out: Any, shape: tuple[int, ...], kind: Any) -> npt.NDArray[Any]:
    if not isinstance(out, np.ndarray) or out.dtype != kind:
        found = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise DTypeError(f"out= is {found}, expected an array of {np.dtype(kind)}")
    if (1,) * (out.ndim - len(shape)) + shape != out.shape:  # leading ones mean nothing to ggml
        raise ShapeError(f"out= has shape {out.shape}, expected {shape}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ShapeError("out= must be writable and in C order: np.empty(shape, dtype) is")
    return out


def _read_strided(ptr: Any, dtype: DType, ne: tuple[int, ...], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A view that is not one piece of memory: its stretch of bytes is read, and the strides applied here."""
    if dtype.numpy is None:
        raise DTypeError(f"a strided view in {dtype} cannot be read: use .cont() on it")
    raw = np.empty(int(lib.ggml_nbytes(ptr)), np.uint8)
    lib.ggml_backend_tensor_get(ptr, ffi.from_buffer(raw), 0, raw.nbytes)
    strides = tuple(int(ptr.nb[i]) for i in reversed(range(len(shape))))
    return np.array(np.lib.stride_tricks.as_strided(raw.view(dtype.numpy), shape, strides))


def as_bytes(value: Any, ne: tuple[int, ...], dtype: DType, name: str) -> npt.NDArray[np.uint8]:
    """A value for a tensor as contiguous bytes in its format; without a copy where none is needed.

    Raises:
        ShapeError: the shape is not the tensor's (or its ne reversed in full).
        DTypeError: the value has another format and conversion would lose what was meant.
    """
    if isinstance(value, QuantizedArray):
        if value.dtype != dtype:
            raise DTypeError(f"{name!r} is {dtype}, got an array of {value.dtype}")
        shape: tuple[int, ...] = value.shape
        raw = value.data
    else:
        array = as_array(repr(name), value)
        shape = array.shape
        if dtype.numpy is None:
            raise DTypeError(f"{name!r} is {dtype}, got {array.dtype}: convert it with pyggml.quantize(array, {dtype.name!r})")
        if array.dtype != dtype.numpy:
            if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and np.dtype(dtype.numpy).kind in "iu"):
                raise DTypeError(f"{name!r} is {dtype}, got {array.dtype}: convert it first")
            try:
                with np.errstate(over="raise"):
                    converted = array.astype(dtype.numpy)
            except FloatingPointError:
                raise DTypeError(f"{name!r} is {dtype}: values of the {array.dtype} array do not fit, they would become infinite") from None
            if array.dtype.kind in "iu" and converted.dtype.kind in "iu" and not np.array_equal(converted, array):
                raise DTypeError(f"{name!r} is {dtype}: values of the {array.dtype} array do not fit")
            array = converted
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    wanted = tuple(reversed(ne))
    if shape != numpy_shape(ne) and tuple(shape) != wanted and (1,) * (len(ne) - len(shape)) + tuple(shape) != wanted:
        raise ShapeError(
            f"{name!r} has ne {list(ne)}, so numpy shape {numpy_shape(ne)}; got an array of shape {tuple(shape)}"
            + (" (transpose it?)" if tuple(reversed(shape)) == numpy_shape(ne) else "")
        )
    return raw


from . import ops as _ops  # noqa: E402, F401  (the methods; ops needs the class first)
