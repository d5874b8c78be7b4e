"""libllama through `pyggml.lib`, as little as the tests of the native layer need (`pyggml.Model` comes above it)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from pyggml._ffi import ffi, lib, non_null

FIELDS = (
    "graph_computes", "nodes", "allreduces", "allreduce_bytes", "copies", "copy_bytes",
    "sets", "set_bytes", "gets", "get_bytes", "buffer_bytes", "buffer_bytes_peak",
)  # fmt: skip


def sim(name: str, **params: Any) -> Any:
    p = ffi.new("struct pgg_sim_params *")
    text = ffi.new("char[]", name.encode())
    p.name = text
    for key, value in params.items():
        setattr(p, key, value)
    return lib.pgg_sim_device(p)


def stats(dev: Any) -> dict[str, int]:
    s = ffi.new("struct pgg_device_stats *")
    (lib.pgg_sim_stats if lib.pgg_sim_is(dev) else lib.pgg_vcpu_stats)(dev, s)
    return {name: getattr(s, name) for name in FIELDS}


def host_stats() -> dict[str, int]:
    s = ffi.new("struct pgg_device_stats *")
    lib.pgg_host_stats(s)
    return {name: getattr(s, name) for name in FIELDS}


@contextlib.contextmanager
def plan_mode() -> Iterator[None]:
    lib.pgg_plan_mode_begin()
    try:
        yield
    finally:
        lib.pgg_plan_mode_end()


@contextlib.contextmanager
def model(
    path: os.PathLike[str] | str,
    devices: Sequence[Any],
    split: str = "TENSOR",
    n_gpu_layers: int = 999,
    extra_bufts: bool = False,
) -> Iterator[Any]:
    p = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
    listed = ffi.new("ggml_backend_dev_t[]", [*devices, ffi.NULL])
    p.devices = listed
    p.n_gpu_layers = n_gpu_layers
    p.split_mode = getattr(lib, f"LLAMA_SPLIT_MODE_{split}")
    p.load_mode = lib.LLAMA_LOAD_MODE_MMAP
    p.use_extra_bufts = extra_bufts
    m = non_null(lib.llama_model_load_from_file(os.fsencode(path), p[0]), f"no model from {path}")
    try:
        yield m
    finally:
        lib.llama_model_free(m)


@contextlib.contextmanager
def context(m: Any, n_ctx: int = 512, n_batch: int = 512) -> Iterator[Any]:
    p = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
    p.n_ctx, p.n_batch, p.n_ubatch = n_ctx, n_batch, n_batch
    p.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    p.type_k = p.type_v = lib.GGML_TYPE_F32
    ctx = non_null(lib.llama_init_from_model(m, p[0]), "no context")
    try:
        yield ctx
    finally:
        lib.llama_free(ctx)


def decode(ctx: Any, tokens: Sequence[int], pos: int = 0, all_logits: bool = False) -> None:
    batch = ffi.new("struct llama_batch *", lib.llama_batch_init(len(tokens), 0, 1))
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, pos + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i == len(tokens) - 1
        assert lib.llama_decode(ctx, batch[0]) == 0
        lib.llama_synchronize(ctx)
    finally:
        lib.llama_batch_free(batch[0])
