"""What a model of any kind computes, through the raw bindings: logits of decoders, embeddings of encoders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

import pyggml as gg
from pyggml._ffi import ffi, lib, non_null
from pyggml._ffi.callbacks import Callback

Output = npt.NDArray[np.float32]
Seen = Callable[[str, Output], object]

N_CTX = 128


@contextmanager
def loaded(path: str | os.PathLike[str], device: str, shares: tuple[float, ...] | None) -> Iterator[Any]:
    """A ``llama_model`` on one device, or split over several. (A `gg.Model` makes a context at once; encoders need another.)"""
    devices = gg.parse_devices(device)
    params = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
    listed = ffi.new("ggml_backend_dev_t[]", [*(d.ptr for d in devices), ffi.NULL])
    params.devices, params.n_gpu_layers, params.use_extra_bufts = listed, 999, False
    params.split_mode = lib.LLAMA_SPLIT_MODE_NONE if shares is None else lib.LLAMA_SPLIT_MODE_TENSOR
    split = ffi.new("float[]", lib.llama_max_devices())
    if shares is not None:
        split[0 : len(shares)] = list(shares)
        params.tensor_split = split
        lib.pgg_meta_next_policy(ffi.NULL, ffi.NULL)
    model = non_null(lib.llama_model_load_from_file(os.fsencode(path), params[0]), f"cannot load {path}", gg.ModelError)
    made = lib.pgg_meta_last_device() if shares is not None else ffi.NULL
    try:
        yield model
    finally:
        lib.llama_model_free(model)
        if made != ffi.NULL:
            lib.pgg_meta_device_release(made)


def compute(model: Any, kind: str, tokens: npt.NDArray[np.int32], seen: Seen | None = None) -> Output:
    """One row for each token: logits, of an encoder embeddings. ``seen``: called with each node of the mixtures of experts.

    F32 everywhere, also in attention: then only the order of sums differs between one device and several.
    """
    params = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
    params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
    params.n_threads = params.n_threads_batch = 1
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.type_k = params.type_v = gg.as_dtype("f32").type_id
    params.embeddings, params.pooling_type = kind in ("encoder", "both"), lib.LLAMA_POOLING_TYPE_NONE
    watch = Callback("sched_eval", _watcher(seen)) if seen is not None else None
    if watch is not None:
        params.cb_eval, params.cb_eval_user_data = watch.function, watch.user_data
    batch = ffi.new("struct llama_batch *", lib.llama_batch_init(len(tokens), 0, 1))
    lib.pgg_llama_keep_f32(True)
    try:
        ctx = non_null(lib.llama_init_from_model(model, params[0]), "cannot make a context", gg.ModelError)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
                batch.seq_id[i][0] = 0
            run = lib.llama_decode if kind in ("decoder", "diffusion") else lib.llama_encode
            assert run(ctx, batch[0]) == 0
            if kind == "encoder":
                n, get = lib.llama_model_n_embd_out(model), lib.llama_get_embeddings_ith
            else:
                n, get = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)), lib.llama_get_logits_ith
            if kind == "both":
                lib.llama_set_embeddings(ctx, False)
                assert lib.llama_decode(ctx, batch[0]) == 0
            rows = [np.frombuffer(ffi.buffer(non_null(get(ctx, i), "no output"), 4 * n), np.float32).copy() for i in range(len(tokens))]
        finally:
            lib.llama_free(ctx)
    finally:
        lib.pgg_llama_keep_f32(False)
        lib.llama_batch_free(batch[0])
        if watch is not None:
            watch.close()
    out = np.array(rows)
    return np.where(np.abs(out) < 1e30, out, np.float32(0))  # chameleon's image tokens have the lowest number there is


def _watcher(seen: Seen) -> Callable[[Any, bool], bool]:
    def watch(tensor: Any, ask: bool) -> bool:
        name = ffi.string(tensor.name).decode()
        if ask:
            return name.startswith("ffn_moe_logits-")
        n = lib.ggml_nbytes(tensor)
        raw = ffi.new("char[]", n)
        lib.ggml_backend_tensor_get(tensor, raw, 0, n)
        seen(name, np.frombuffer(ffi.buffer(raw), np.float32).reshape(-1, tensor.ne[0]).copy())
        return True

    return watch
