"""llama.cpp's context without any check: what contexts and plans share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ffi import ffi, lib
from .._ffi.callbacks import Callback
from .._ffi.interrupts import Held
from .._ffi.spans import span
from ..device import default_threads
from ..dtype import as_dtype
from ..errors import ClosedError, Error, UnsupportedError
from .arch_rules import with_flash_attn
from .loading import LoadedModel, failure, freeing
from .options import FLASH, POOLING, ContextOptions

__all__ = ["NativeContext", "Observer"]

_POLL = 1
"""For how long the threads of the CPU device look for the next graph before they sleep, in steps of 2 to 6 ms: longer than
Python and a sampler take between two tokens, and not so long that a context that rests is in the way of another."""

Observer = Callable[[str, str, bytes], object]
"""Called with (name, op, value as bytes) of a node."""

STATUS = {1: "no room in the cache", 2: "interrupted", -1: "an invalid batch"}
"""What llama_decode returns; 0 is success."""


class NativeContext:
    """A ``llama_context`` and its batch; freed without the `Context`. It checks nothing."""

    def __init__(self, loaded: LoadedModel, options: ContextOptions) -> None:
        self.loaded = loaded.hold()
        self._ptr: Any = ffi.NULL
        self._memory: Any = ffi.NULL
        self._threads: Any = ffi.NULL
        self._attn_f32 = options.attn_f32
        self.n_batch = min(options.n_batch, options.n_ctx)
        if options.embeddings:
            # llama.cpp rounds the tokens of its largest graph up to a multiple of the sequences, but not their outputs, and
            # pooling multiplies the two
            self.n_batch = max(self.n_batch - self.n_batch % options.n_seq_max, options.n_seq_max)
        self.batch = ffi.new("struct llama_batch *")
        try:
            self._start(options)
        except BaseException:
            self.free()
            raise

    def _start(self, options: ContextOptions) -> None:
        params = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
        params.n_ctx = options.n_ctx
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_seq_max = options.n_seq_max
        # with parts of their own, sequences are cut to equal lengths, and pooling would see the last piece only
        params.kv_unified = options.kv_unified or options.embeddings
        n_threads = params.n_threads = params.n_threads_batch = options.threads or default_threads()
        params.flash_attn_type = FLASH[options.flash_attn]
        params.type_k, params.type_v = as_dtype(options.type_k).type_id, as_dtype(options.type_v).type_id
        params.embeddings = options.embeddings
        params.pooling_type = POOLING[options.pooling]
        params.no_perf = True
        params.abort_callback = lib.pgg_interrupt_abort
        with self._building():
            with Held():
                # tensor mode has no way in for an architecture that llama.cpp computes without
                without = self.loaded.meta is not None and not with_flash_attn(self.loaded.info.arch)
                init = lib.pgg_llama_init_without_flash_attn if without else lib.llama_init_from_model
                self._ptr = init(self.loaded.ptr, params[0])
            if self._ptr == ffi.NULL:  # inside: the next call has other reasons
                raise failure(f"llama.cpp cannot make a context for {self.loaded.path}")
        self._memory = lib.llama_get_memory(self._ptr)
        self._keeps = self._memory != ffi.NULL
        if n_threads > 1 and not self.loaded.devices:  # beside other devices the CPU only looks up embeddings, with one thread
            self._keep_threads(n_threads)
        self.batch[0] = lib.llama_batch_init(self.n_batch, 0, options.n_seq_max)

    def _keep_threads(self, n: int) -> None:
        """Gives the context threads of its own; else ggml makes new ones for every graph, that is for every token."""
        params = ffi.new("struct ggml_threadpool_params *", lib.ggml_threadpool_params_default(n))
        params.poll, params.paused = _POLL, True
        with Held():
            self._threads = lib.ggml_threadpool_new(params)
        lib.llama_attach_threadpool(self._ptr, self._threads, ffi.NULL)

    @property
    def ptr(self) -> Any:
        """The ``struct llama_context *``.

        Raises:
            ClosedError: it was freed.
        """
        if self._ptr == ffi.NULL:
            raise ClosedError(f"the Context of {self.loaded.info.path.name} is closed: it cannot be used any more")
        return self._ptr

    @property
    def memory(self) -> Any:
        """The ``llama_memory_t``; NULL for a model that keeps nothing."""
        _ = self.ptr
        return self._memory

    def end(self, seq: int) -> int:
        """The position behind the last token of a sequence."""
        _ = self.ptr
        return int(lib.llama_memory_seq_pos_max(self._memory, seq)) + 1 if self._keeps else 0

    def set_one(self, token: int, pos: int, seq: int) -> None:
        """A batch of one token, with logits."""
        batch = self.batch
        batch.n_tokens = 1
        batch.token[0], batch.pos[0] = token, pos
        batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, seq, 1

    def set_batch(
        self,
        tokens: npt.NDArray[np.int32],
        pos: npt.NDArray[np.int32],
        seqs: Sequence[tuple[int, ...]],
        wanted: npt.NDArray[np.int8],
    ) -> None:
        """Fills the batch; at most `n_batch` tokens."""
        n, batch = len(tokens), self.batch
        batch.n_tokens = n
        ffi.memmove(batch.token, tokens, 4 * n)
        ffi.memmove(batch.pos, pos, 4 * n)
        ffi.memmove(batch.logits, wanted, n)
        for i, of in enumerate(seqs):
            batch.n_seq_id[i] = len(of)
            at = batch.seq_id[i]
            for k, seq in enumerate(of):
                at[k] = seq

    def compute(self, *, encode: bool = False) -> tuple[int, Error | None]:
        """Decodes (or encodes) the batch and waits for it; llama.cpp's status, and unless it is 0 an error with its reasons."""
        with span("llama_encode" if encode else "llama_decode", int(self.batch.n_tokens)):
            if self._attn_f32:
                with self._building():  # inside: the next call has other reasons
                    status, error = self._compute(encode)
            else:
                status, error = self._compute(encode)
            if status == 0:
                lib.llama_synchronize(self.ptr)
        return status, error

    def _compute(self, encode: bool) -> tuple[int, Error | None]:
        status = int((lib.llama_encode if encode else lib.llama_decode)(self.ptr, self.batch[0]))
        if status == 0:
            return 0, None
        what = f"{'encoding' if encode else 'decoding'} {int(self.batch.n_tokens)} tokens failed: {STATUS.get(status, f'status {status}')}"
        return status, failure(f"{self.loaded.info.path.name}: {what}")

    def decode(self, tokens: npt.NDArray[np.int32], n_past: int, *, all_logits: bool) -> None:
        """Decodes tokens of sequence 0 behind n_past others, which are there; more than `n_batch` in parts.

        Raises:
            ModelError, OutOfMemoryError: llama.cpp cannot.
        """
        n = len(tokens)
        ids, at = np.ascontiguousarray(tokens, np.int32), np.arange(n_past, n_past + n, dtype=np.int32)
        wanted = np.full(n, all_logits, np.int8)
        wanted[-1] = 1
        for first in range(0, n, self.n_batch):
            part = slice(first, first + self.n_batch)
            self.set_batch(ids[part], at[part], [(0,)] * len(ids[part]), wanted[part])
            _, error = self.compute()
            if error is not None:
                raise error

    def fill(self, n_past: int) -> None:
        """Puts that many tokens into the cache of sequence 0."""
        for first in range(0, n_past, self.n_batch):
            n = min(self.n_batch, n_past - first)
            self.decode(np.zeros(n, np.int32), first, all_logits=False)

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        # the choice belongs to the thread while llama.cpp builds graphs on it
        if not self._attn_f32:
            yield
            return
        lib.pgg_llama_keep_f32(True)
        try:
            yield
        finally:
            lib.pgg_llama_keep_f32(False)

    @contextlib.contextmanager
    def observe(self, observer: Observer) -> Iterator[None]:
        """Calls the observer for every node that the meta backend computes."""
        meta = self.loaded.meta
        if meta is None:
            raise UnsupportedError("nodes are observed on meta devices: load the model with split_mode='tensor'")

        def seen(node: Any, data: Any) -> None:
            observer(ffi.string(node.name).decode(), ffi.string(lib.ggml_op_desc(node)).decode(), bytes(data))

        with Callback("node_observer", seen) as callback:
            lib.pgg_meta_observe(meta, callback.function, callback.user_data)
            try:
                yield
            finally:
                lib.pgg_meta_observe(meta, ffi.NULL, ffi.NULL)

    def free(self) -> None:
        """Frees the context and lets go of the model."""
        if self._ptr != ffi.NULL:
            with freeing():
                lib.llama_free(self._ptr)
            self._ptr = ffi.NULL
        if self._threads != ffi.NULL:
            lib.ggml_threadpool_free(self._threads)
            self._threads = ffi.NULL
        if self.batch.token != ffi.NULL:
            lib.llama_batch_free(self.batch[0])
            self.batch.token = ffi.NULL
        self.loaded.release()
