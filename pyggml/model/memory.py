"""Where the bytes of a model and a context are."""

from __future__ import annotations

from dataclasses import dataclass

from .._ffi import ffi, lib
from .native_context import NativeContext

__all__ = ["MemoryUse", "memory_of"]


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes on one device."""

    device: str
    """The device's name; of host memory the buffer type's, such as ``CPU_Mapped``."""
    weights: int
    caches: int
    """KV caches and recurrent states."""
    compute: int
    """Buffers of graphs."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.caches + self.compute


def memory_of(context: NativeContext) -> tuple[MemoryUse, ...]:
    """What llama.cpp says for its buffer types; a meta device's are told by its devices."""
    n = lib.pgg_llama_memory(context.ptr, ffi.NULL, 0)
    rows = ffi.new("struct pgg_memory_row[]", n)
    lib.pgg_llama_memory(context.ptr, rows, n)
    meta = context.loaded.meta
    found: dict[str, list[int]] = {}
    for row in rows:
        device = lib.ggml_backend_buft_get_device(row.buft)
        if meta is not None and device == meta:
            continue
        named = device != ffi.NULL and not lib.ggml_backend_buft_is_host(row.buft)
        name = ffi.string(lib.ggml_backend_dev_name(device) if named else lib.ggml_backend_buft_name(row.buft)).decode()
        sums = found.setdefault(name, [0, 0, 0])
        for k, size in enumerate((row.model, row.context, row.compute)):
            sums[k] += int(size)
    if meta is not None:
        found = _of_meta(meta) | found
    return tuple(MemoryUse(name, *sums) for name, sums in found.items() if any(sums))


def _of_meta(meta: object) -> dict[str, list[int]]:
    n = lib.pgg_meta_memory(meta, ffi.NULL, 0)
    rows = ffi.new("struct pgg_meta_buffer[]", n)
    lib.pgg_meta_memory(meta, rows, n)
    devices = [lib.pgg_meta_device_at(meta, j) for j in range(lib.pgg_meta_device_n(meta))]
    names = [ffi.string(lib.ggml_backend_dev_name(d)).decode() for d in devices]
    found = {name: [0, 0, 0] for name in names}
    for row in rows:
        weights = row.usage == lib.GGML_BACKEND_BUFFER_USAGE_WEIGHTS
        kind = 0 if weights else 1 if row.fixed and row.usage == lib.GGML_BACKEND_BUFFER_USAGE_ANY else 2
        for j, name in enumerate(names):
            found[name][kind] += int(row.bytes[j])
    return found
