"""Buffer types: where a device keeps tensors, and how much of it has been taken."""

from __future__ import annotations

from typing import Any

from ._ffi import ffi, lib

__all__ = ["BufferType", "host_buffer_type"]


class BufferType:
    """A ``ggml_backend_buffer_type_t``. Bytes are counted from when it is first looked at."""

    __slots__ = ("_ptr",)

    def __init__(self, ptr: Any) -> None:
        self._ptr = ptr
        lib.pgg_buft_watch(ptr)

    @property
    def name(self) -> str:
        """ggml's name, such as ``CPU``, ``CUDA0``, ``VCPU1``."""
        return str(ffi.string(lib.ggml_backend_buft_name(self._ptr)).decode())

    @property
    def alignment(self) -> int:
        """Bytes that tensors are aligned to."""
        return int(lib.ggml_backend_buft_get_alignment(self._ptr))

    @property
    def max_size(self) -> int | None:
        """The largest buffer in bytes, None where there is no limit."""
        size = int(lib.ggml_backend_buft_get_max_size(self._ptr))
        return None if size >= 2**63 else size

    @property
    def is_host(self) -> bool:
        """Whether the CPU can read and write it."""
        return bool(lib.ggml_backend_buft_is_host(self._ptr))

    @property
    def allocated(self) -> int:
        """Bytes in its buffers now."""
        return int(lib.pgg_buft_allocated(self._ptr))

    @property
    def allocated_total(self) -> int:
        """Bytes of all buffers ever made of it."""
        return int(lib.pgg_buft_allocated_total(self._ptr))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BufferType) and self._ptr == other._ptr

    def __hash__(self) -> int:
        return hash(int(ffi.cast("uintptr_t", self._ptr)))

    def __repr__(self) -> str:
        return f"<BufferType {self.name}, {self.allocated:,} bytes allocated>"


def host_buffer_type() -> BufferType:
    """The CPU's own buffer type."""
    return BufferType(lib.ggml_backend_cpu_buffer_type())
