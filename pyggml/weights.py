"""Weights: tensors that are placed once and shared by any number of graphs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arguments import tensor_name, whole
from ._ffi import ffi, lib, non_null
from ._ffi.interrupts import Held
from ._handle import Handle
from .dtype import DType, QuantizedArray, as_array, as_dtype
from .errors import ArgumentError, DTypeError, Error, FileFormatError, OutOfMemoryError, ShapeError
from .meta import MetaDevice, Target, check_device_open, check_target, on_device, refuse_simulated
from .tensor import MAX_ELEMENTS, Tensor, as_bytes

__all__ = ["WeightKeyError", "Weights"]

_MAX_INDEX = (1 << 63) - 1

Progress = Callable[[int, int], object]


class WeightKeyError(Error, KeyError):
    """There is no weight of that name."""

    def __str__(self) -> str:
        return str(self.args[0])


class Weights(Handle, Mapping[str, Tensor]):
    """Named tensors in one buffer of a device, split by the rules of a `MetaDevice`.

    Args:
        device: where they go.
        tensors: name -> numpy array (float32, float16, float64, int8 to int64) or `QuantizedArray`. Numpy's last axis
            is ggml's axis 0: an array of shape (256, 64) has ne [64, 256].
        progress: called with (bytes done, bytes in all) while they are uploaded.

    Raises:
        SplitError: a rule does not fit a tensor; the tensor and legal splits are named. Nothing stays allocated.
        OutOfMemoryError: a device has not enough memory.
    """

    is_graph = False

    def __init__(
        self,
        device: Target | str,
        tensors: Mapping[str, npt.NDArray[Any] | QuantizedArray],
        *,
        progress: Progress | None = None,
    ) -> None:
        if not isinstance(tensors, Mapping):
            raise ArgumentError(f"Weights: tensors must be a dict of arrays by name, got {type(tensors).__name__}")
        _check_progress(progress)
        arrays = {name: value if isinstance(value, QuantizedArray) else as_array(f"weight {name!r}", value) for name, value in tensors.items()}
        shapes = {name: (_dtype_of(name, value), _ne_of(name, value)) for name, value in arrays.items()}
        self._place(device, shapes)
        try:
            total = sum(value.nbytes for value in arrays.values())
            done = 0
            for name, value in arrays.items():
                dtype, ne = shapes[name]
                raw = as_bytes(value, ne, dtype, name)
                with on_device(self.device):
                    lib.ggml_backend_tensor_set(self._tensors[name].ptr, ffi.from_buffer(raw), 0, raw.nbytes)
                done += raw.nbytes
                if progress is not None:
                    progress(done, total)
        except BaseException:
            self.close()
            raise

    @classmethod
    def empty(cls, device: Target | str, shapes: Mapping[str, tuple[DType, tuple[int, ...]]]) -> Weights:
        """Tensors without values (for plans): name -> (dtype, ne in ggml's order)."""
        if not isinstance(shapes, Mapping) or not all(isinstance(s, (tuple, list)) and len(s) == 2 for s in shapes.values()):
            raise ArgumentError(f"Weights.empty(): expected a dict of (DType, ne) by name, got {shapes!r:.80}")
        self = cls.__new__(cls)
        self._place(device, shapes)
        return self

    @classmethod
    def from_gguf(
        cls,
        device: Target | str,
        path: str | os.PathLike[str],
        pattern: str = "",
        *,
        progress: Progress | None = None,
    ) -> Weights:
        """The tensors of a GGUF file whose name contains the regular expression.

        Raises:
            FileFormatError: the file is corrupt; ModelNotFoundError: there is none.
            ArgumentError: no tensor matches (the message names some that there are), or the pattern is none.
        """
        from .gguf_check import check_gguf

        _check_progress(progress)
        try:
            wanted = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ArgumentError(f"from_gguf(): {pattern!r:.80} is no regular expression: {error}") from None
        if not isinstance(wanted.pattern, str):
            raise ArgumentError(f"from_gguf(): the pattern {pattern!r:.80} is of bytes: names are str")
        info = check_gguf(path, model=False)
        chosen = [t for t in info.tensors if wanted.search(t.name)]
        if not chosen:
            some = ", ".join(t.name for t in info.tensors[:5])
            raise ArgumentError(f"{path}: none of {len(info.tensors)} tensors matches {pattern!r}; there are {some}, …")
        self = cls.empty(device, {t.name: (as_dtype(t.dtype), t.ne) for t in chosen})
        try:
            total = sum(t.nbytes for t in chosen)
            done = 0
            for t in chosen:
                # read, not mapped: a file that shrinks meanwhile is an error then, and no bus error
                raw = np.fromfile(t.path, np.uint8, t.nbytes, offset=t.offset)
                if raw.nbytes != t.nbytes:
                    raise FileFormatError(f"{t.path}: tensor {t.name!r} has {raw.nbytes} bytes left of {t.nbytes}: the file was cut meanwhile")
                with on_device(self.device):
                    lib.ggml_backend_tensor_set(self._tensors[t.name].ptr, ffi.from_buffer(raw), 0, raw.nbytes)
                done += raw.nbytes
                if progress is not None:
                    progress(done, total)
        except BaseException:
            self.close()
            raise
        return self

    def _place(self, device: Target | str, shapes: Mapping[str, tuple[DType, tuple[int, ...]]]) -> None:
        if not shapes:
            raise ArgumentError("Weights without a tensor")
        self.device = device = check_target("Weights", device)
        ctx = lib.ggml_init({"mem_size": lib.ggml_tensor_overhead() * (len(shapes) + 1), "mem_buffer": ffi.NULL, "no_alloc": True})
        non_null(ctx, "ggml_init failed", OutOfMemoryError)
        held: list[Any] = [ffi.NULL]
        self._own(_free, held, ctx)
        self._ctx = ctx
        self._tensors: dict[str, Tensor] = {}
        try:
            for name, (dtype, ne) in shapes.items():
                raw_name = tensor_name(name)
                if not isinstance(dtype, DType) or not isinstance(ne, (tuple, list)):
                    raise ArgumentError(f"{name!r}: expected (DType, ne), got ({dtype!r:.40}, {ne!r:.40})")
                ne = tuple(whole(f"{name!r}: ne[{i}]", n, -_MAX_INDEX, _MAX_INDEX) for i, n in enumerate(ne))
                if not 1 <= len(ne) <= 4 or any(n < 1 for n in ne) or math.prod(ne) > MAX_ELEMENTS:
                    raise ShapeError(f"{name!r} has ne {list(ne)}: 1 to 4 axes of at least one element, 2^48 in all, are possible")
                if ne[0] % dtype.block_size:
                    raise ShapeError(f"{name!r}: ne[0]={ne[0]} is no multiple of {dtype.block_size}, the block of {dtype}")
                ptr = lib.ggml_new_tensor(ctx, dtype.type_id, len(ne), list(ne))
                lib.ggml_set_name(ptr, raw_name)
                self._tensors[name] = Tensor(self, ptr)
            buft = lib.ggml_backend_dev_buffer_type(device.ptr)
            total = sum(lib.ggml_nbytes(t.ptr) for t in self._tensors.values())
            short = f"{device.name} has not enough memory for {len(shapes)} tensors of {total:,} bytes in all"
            try:
                with on_device(device), Held():
                    held[0] = non_null(lib.ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft), short, OutOfMemoryError)
            except OutOfMemoryError as error:
                if short in str(error):
                    raise
                raise OutOfMemoryError(f"{short}: {error}") from error  # a meta device says which devices, not how much
            lib.ggml_backend_buffer_set_usage(held[0], lib.GGML_BACKEND_BUFFER_USAGE_WEIGHTS)
        except BaseException:
            self.close()
            raise

    @property
    def n_devices(self) -> int:
        """Devices of the meta device; 0 on a plain one."""
        return self.device.n_devices if isinstance(self.device, MetaDevice) else 0

    def _check_open(self) -> None:
        super()._check_open()
        check_device_open(self, self.device)

    def _check_readable(self, tensor: Tensor) -> None:
        refuse_simulated(self.device, f"weight {tensor.name!r} has no value")

    @property
    def bytes_per_device(self) -> tuple[int, ...]:
        """Bytes of the tensors on each device, without padding; one number on a plain device."""
        self._check_open()
        if not self.n_devices:
            return (sum(t.nbytes for t in self._tensors.values()),)
        parts = [[s.nbytes for s in t.slices()] for t in self._tensors.values()]
        return tuple(sum(part[j] for part in parts) for j in range(self.n_devices))

    def __getitem__(self, name: str) -> Tensor:
        self._check_open()
        try:
            return self._tensors[name]
        except (KeyError, TypeError):  # the latter of what has no hash
            have = ", ".join(list(self._tensors)[:8])
            raise WeightKeyError(f"no weight {name!r}; there are {have}{', …' if len(self._tensors) > 8 else ''}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __repr__(self) -> str:
        return "<Weights (closed)>" if self.closed else f"<{len(self)} Weights on {self.device.name}>"


def _check_progress(progress: Any) -> None:
    if progress is not None and not callable(progress):
        raise ArgumentError(f"Weights: progress must be a function of (bytes done, bytes in all), got {type(progress).__name__}")


def _dtype_of(name: str, value: Any) -> DType:
    if isinstance(value, QuantizedArray):
        return value.dtype
    kinds = {"float64": "f32"}  # numpy's default; ggml computes in f32
    try:
        return as_dtype(kinds.get(value.dtype.name, value.dtype))
    except DTypeError as error:
        raise DTypeError(f"weight {name!r}: {error}") from None


def _ne_of(name: str, value: Any) -> tuple[int, ...]:
    shape = tuple(value.shape) or (1,)
    if len(shape) > 4:
        raise ShapeError(f"weight {name!r} has {len(shape)} axes; ggml has 4")
    return tuple(int(n) for n in reversed(shape))


def _free(held: list[Any], ctx: Any) -> None:
    if held[0] != ffi.NULL:
        lib.ggml_backend_buffer_free(held[0])
    lib.ggml_free(ctx)
