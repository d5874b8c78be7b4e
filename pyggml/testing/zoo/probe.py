"""Which tensors a model has, and their shapes: asked of llama.cpp itself, with nothing but the metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..._ffi import ffi, lib, non_null, reason
from ..._ffi.callbacks import Callback
from ...dtype import as_dtype
from ...errors import ModelError
from ..gguf_writer import Value, gguf_header

__all__ = ["Ne", "tensors_of"]

Ne = tuple[int, ...]


def tensors_of(metadata: Mapping[str, Value], known: Iterable[tuple[str, Sequence[int]]] = ()) -> dict[str, Ne]:
    """Name -> shape (ggml's order, without ones at the end) of every tensor that llama.cpp creates for this metadata.

    Optional tensors are among them, also those that exclude each other. ``known``: tensors that llama.cpp asks the
    file about before it knows its own shapes.

    Raises:
        ModelError: llama.cpp refuses the metadata.
    """
    head, _ = gguf_header(metadata, ((name, ne, as_dtype("f32")) for name, ne in known))
    raw = ffi.from_buffer(head)
    gguf = non_null(
        lib.gguf_init_from_buffer(raw, len(head), {"no_alloc": True, "ctx": ffi.NULL}),
        "the metadata is no GGUF",
        ModelError,
    )
    found: dict[str, Ne] = {}

    def tell(tensor: Any) -> None:
        ne = [int(n) for n in tensor.ne]
        while len(ne) > 1 and ne[-1] == 1:
            ne.pop()
        found[ffi.string(tensor.name).decode()] = tuple(ne)

    params = lib.llama_model_default_params()
    nobody = ffi.new("ggml_backend_dev_t[1]")  # the CPU alone, whatever else there is
    params.devices = nobody
    params.n_gpu_layers = 0
    params.use_extra_bufts = False
    try:
        with Callback("set_tensor", tell) as callback:
            model = lib.llama_model_init_from_user(gguf, callback.function, callback.user_data, params)
            callback.check()
        if model == ffi.NULL:
            arch = metadata.get("general.architecture")
            raise ModelError("\n  log: ".join((f"llama.cpp refuses the metadata of a tiny {arch}", *reason())))
        lib.llama_model_free(model)
    finally:
        lib.gguf_free(gguf)
    return found
