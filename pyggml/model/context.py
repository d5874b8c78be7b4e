"""llama.cpp's context: the cache of one or several sequences, and the graphs that run on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import whole
from .._ffi import ffi, lib
from .._ffi.callbacks import Callback
from .._handle import Handle
from ..device import default_threads
from ..dtype import as_dtype
from ..errors import ArgumentError, IndexRangeError, ModelError, UnsupportedError
from ..meta import refuse_simulated
from .loading import LoadedModel, failure, freeing
from .options import FLASH, MAX_TOKENS, POOLING, ContextOptions, check_cache

__all__ = ["Batch", "Context", "NativeContext", "Observer", "Tokens"]

Tokens = Sequence[int] | npt.NDArray[Any]
Observer = Callable[[str, str, bytes], object]
"""Called with (name, op, value as bytes) of a node."""

_STATUS = {1: "no room in the cache", 2: "interrupted", -1: "an invalid batch"}


class Batch:
    """Tokens of one or several sequences that are decoded together. Shows what `Context.decode` takes.

    >>> batch = Batch()
    >>> batch.add([1, 15, 7], seq=0)
    >>> batch.add([1, 42], seq=1, logits="all")
    """

    def __init__(self) -> None:
        self._parts: list[tuple[npt.NDArray[Any], tuple[int, ...], int | None, str]] = []

    def add(self, tokens: Tokens, seq: int | Sequence[int] = 0, *, pos: int | None = None, logits: str = "last") -> Batch:
        """Tokens that follow each other.

        Args:
            tokens: token ids.
            seq: the sequence that they belong to; several: a common beginning, computed once.
            pos: position of the first; None: behind what the sequence has.
            logits: for which tokens logits are wanted: ``last``, ``all``, ``none``.

        Raises:
            ArgumentError: no tokens, no integers, or an unknown word.
        """
        if logits not in ("last", "all", "none"):
            raise ArgumentError(f"logits={logits!r}: 'last', 'all' or 'none'")
        if pos is not None:
            whole("pos", pos, 0, MAX_TOKENS)
        seqs = tuple(seq) if isinstance(seq, Sequence) else (seq,)
        if not seqs:
            raise ArgumentError("seq=(): tokens belong to one sequence at least")
        self._parts.append((token_ids(tokens), seqs, pos, logits))
        return self

    def __len__(self) -> int:
        return sum(len(tokens) for tokens, *_ in self._parts)


def token_ids(tokens: Tokens) -> npt.NDArray[Any]:
    """Tokens as a user gave them.

    Raises:
        ArgumentError: none, or no list of integers.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ArgumentError(f"tokens must be a list of at least one token id, got {ids.dtype} of shape {ids.shape}")
    return ids


class NativeContext:
    """A ``llama_context`` and its batch; freed without the `Context`. It checks nothing."""

    def __init__(self, loaded: LoadedModel, options: ContextOptions) -> None:
        self.loaded = loaded.hold()
        self.ptr: Any = ffi.NULL
        self._attn_f32 = options.attn_f32
        self.n_batch = min(options.n_batch, options.n_ctx)
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
        params.kv_unified = options.kv_unified
        params.n_threads = params.n_threads_batch = options.threads or default_threads()
        params.flash_attn_type = FLASH[options.flash_attn]
        params.type_k, params.type_v = as_dtype(options.type_k).type_id, as_dtype(options.type_v).type_id
        params.embeddings = options.embeddings
        params.pooling_type = POOLING[options.pooling]
        params.no_perf = True
        params.abort_callback = lib.pgg_interrupt_abort
        with self._building():
            self.ptr = lib.llama_init_from_model(self.loaded.ptr, params[0])
            if self.ptr == ffi.NULL:  # inside: the next call has other reasons
                raise failure(f"llama.cpp cannot make a context for {self.loaded.path}")
        self.batch[0] = lib.llama_batch_init(self.n_batch, 0, options.n_seq_max)

    @property
    def memory(self) -> Any:
        """The ``llama_memory_t``; NULL for a model that keeps nothing."""
        return lib.llama_get_memory(self.ptr)

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

    def compute(self, *, encode: bool = False) -> int:
        """Decodes (or encodes) the batch and waits for it; llama.cpp's status."""
        with self._building():
            status = int((lib.llama_encode if encode else lib.llama_decode)(self.ptr, self.batch[0]))
        if status == 0:
            lib.llama_synchronize(self.ptr)
        return status

    def decode(self, tokens: npt.NDArray[np.int32], n_past: int, *, all_logits: bool) -> None:
        """Decodes tokens of sequence 0 behind n_past others, which are there.

        Raises:
            ModelError, OutOfMemoryError: llama.cpp cannot.
        """
        n = len(tokens)
        wanted = np.full(n, all_logits, np.int8)
        wanted[-1] = 1
        self.set_batch(np.ascontiguousarray(tokens, np.int32), np.arange(n_past, n_past + n, dtype=np.int32), [(0,)] * n, wanted)
        status = self.compute()
        if status != 0:
            raise failure(f"llama_decode of {n} tokens behind {n_past} failed: {_STATUS.get(status, f'status {status}')}")

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
        if self.ptr != ffi.NULL:
            with freeing():
                lib.llama_free(self.ptr)
            self.ptr = ffi.NULL
        if self.batch.token != ffi.NULL:
            lib.llama_batch_free(self.batch[0])
            self.batch.token = ffi.NULL
        self.loaded.release()


class Context(Handle):
    """A context of a model: made by `Model.context`. Several contexts of a model share its weights.

    A failure while it computes poisons the context, not the model.
    """

    def __init__(self, loaded: LoadedModel, options: ContextOptions) -> None:
        options.check(loaded.options.split_mode)
        check_cache(loaded.info, options)
        self.options = options
        self.name = loaded.info.path.name
        self._devices = loaded.devices
        self._n_vocab = loaded.n_vocab
        self._native = NativeContext(loaded, options)
        self._own(NativeContext.free, self._native)

    @property
    def ptr(self) -> Any:
        """The ``struct llama_context *``."""
        self._check_open()
        return self._native.ptr

    @property
    def n_ctx_seq(self) -> int:
        """Tokens that one sequence can have."""
        return self.options.n_ctx if self.options.kv_unified else self.options.n_ctx // self.options.n_seq_max

    # decoding

    def decode(
        self,
        tokens: Tokens | Batch,
        seq: int | Sequence[int] = 0,
        *,
        pos: int | None = None,
        logits: str = "last",
        observer: Observer | None = None,
        from_empty: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Puts tokens into the cache and computes logits.

        Args:
            tokens: token ids of one sequence, or a `Batch` of several. More than ``n_batch`` are computed in parts.
            seq, pos, logits: see `Batch.add`; a batch has its own.
            observer: called with (name, op, value as bytes) of every node of the meta graphs; it changes nothing.
            from_empty: forget all sequences first.

        Returns:
            float32 of shape (tokens whose logits were wanted, n_vocab), in their order.

        Raises:
            IndexRangeError: a token is not in the vocabulary, or there is no such sequence.
            ArgumentError: they do not fit into the context, or positions leave a gap.
        """
        batch = tokens if isinstance(tokens, Batch) else Batch().add(tokens, seq, pos=pos, logits=logits)
        self._refuse_simulated("no logits were computed")
        with self._in_use(poisons=False):
            ids, at, seqs, wanted = self._laid_out(batch, from_empty)
            watch = self._native.observe(observer) if observer is not None else contextlib.nullcontext()
            out = np.empty((int(wanted.sum()), self._n_vocab), np.float32)
            row = 0
            with watch:
                if from_empty:
                    lib.llama_memory_clear(self._native.memory, True)
                for first in range(0, len(ids), self._native.n_batch):
                    part = slice(first, first + self._native.n_batch)
                    self._native.set_batch(ids[part], at[part], seqs[part], wanted[part])
                    self._compute()
                    for i in np.flatnonzero(wanted[part]):
                        out[row] = self._floats(lib.llama_get_logits_ith(self._native.ptr, int(i)), self._n_vocab, "logits; is it a model for embeddings?")
                        row += 1
        return out

    def _compute(self, *, encode: bool = False) -> None:
        n = int(self._native.batch.n_tokens)
        with self._poisoning():
            status = self._native.compute(encode=encode)
            error = failure(f"{self.name}: {'encoding' if encode else 'decoding'} {n} tokens failed: {_STATUS.get(status, f'status {status}')}") if status else None
            if error is not None and status not in (1, -1):  # after those the context is as it was before
                raise error
        if error is not None:
            raise error

    def _floats(self, pointer: Any, n: int, what: str) -> npt.NDArray[np.float32]:
        if pointer == ffi.NULL:
            raise ModelError(f"{self.name}: llama.cpp gives no {what}")
        return np.frombuffer(ffi.buffer(pointer, n * 4), np.float32)

    def _refuse_simulated(self, what: str) -> None:
        for device in self._devices:
            refuse_simulated(device, f"{self.name}: {what}")

    def _laid_out(self, batch: Batch, from_empty: bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], list[tuple[int, ...]], npt.NDArray[np.int8]]:
        if not batch._parts:
            raise ArgumentError("the batch is empty: add tokens to it")
        ends: dict[int, int] = {}
        ids, at, seqs, wanted = [], [], [], []
        for tokens, of, given, logits in batch._parts:
            self._check_tokens(tokens)
            for one in of:
                self._check_sequence(one)
                ends.setdefault(one, 0 if from_empty else self._end(one))
            pos = ends[of[0]] if given is None else given
            n = len(tokens)
            if pos + n > self.n_ctx_seq:
                more = "" if self.options.n_seq_max == 1 else f" ({self.options.n_ctx} for {self.options.n_seq_max} sequences)"
                raise ArgumentError(
                        f"{n} tokens behind {pos} do not fit into a context of {self.n_ctx_seq}{more}: make it with a larger n_ctx"
                    )
            for one in of:
                if pos != ends[one] and self._native.memory != ffi.NULL:
                    raise ArgumentError(f"sequence {one} has {ends[one]} tokens: the next position is {ends[one]}, not {pos}; seq_rm() takes tokens out")
                ends[one] = pos + n
            want = np.full(n, logits == "all", np.int8)
            want[-1] = logits != "none"
            ids.append(tokens.astype(np.int32))
            at.append(np.arange(pos, pos + n, dtype=np.int32))
            seqs += [of] * n
            wanted.append(want)
        return np.concatenate(ids), np.concatenate(at), seqs, np.concatenate(wanted)

    def _end(self, seq: int) -> int:
        return int(lib.llama_memory_seq_pos_max(self._native.memory, seq)) + 1 if self._native.memory != ffi.NULL else 0

    def _check_tokens(self, ids: npt.NDArray[Any]) -> None:
        bad = np.flatnonzero((ids < 0) | (ids >= self._n_vocab))
        if bad.size:
            raise IndexRangeError(f"token {int(ids[bad[0]])} at position {int(bad[0])} is not in the vocabulary: 0 to {self._n_vocab - 1}")

    def _check_sequence(self, seq: int) -> None:
        if not isinstance(seq, (int, np.integer)) or not 0 <= seq < self.options.n_seq_max:
            raise IndexRangeError(f"sequence {seq!r}: this context has 0 to {self.options.n_seq_max - 1} (n_seq_max={self.options.n_seq_max})")

    # the cache

    def n_past(self, seq: int = 0) -> int:
        """Tokens that a sequence has: the position of the next one."""
        with self._in_use(poisons=False):
            self._check_sequence(seq)
            return self._end(seq)

    def clear(self) -> None:
        """Forgets all sequences."""
        with self._in_use():
            lib.llama_memory_clear(self._native.memory, True)

    def seq_rm(self, seq: int | None = None, p0: int = 0, p1: int | None = None) -> None:
        """Takes the tokens at positions ``p0`` to ``p1 - 1`` out of a sequence.

        Args:
            seq: None: of every sequence.
            p1: None: to the end.

        Raises:
            UnsupportedError: a recurrent state cannot be cut within a sequence.
        """
        with self._in_use(poisons=False):
            start, stop = self._range(p0, p1)
            if seq is not None:
                self._check_sequence(seq)
            with self._poisoning():
                done = lib.llama_memory_seq_rm(self._needed_memory(), -1 if seq is None else seq, start, stop)
            if not done:
                raise UnsupportedError(
                    f"{self.name}: positions {p0} to {'the end' if p1 is None else p1} of sequence {seq} cannot be taken out alone: "
                    "the state of a recurrent model has no positions; take out the whole sequence, or load a saved state"
                )

    def seq_cp(self, source: int, to: int, p0: int = 0, p1: int | None = None) -> None:
        """Gives the tokens at positions ``p0`` to ``p1 - 1`` of a sequence to another one, too. Nothing is computed.

        Raises:
            UnsupportedError: a part of a sequence, while the sequences have caches of their own (``kv_unified=False``).
        """
        with self._in_use(poisons=False):
            start, stop = self._range(p0, p1)
            self._check_sequence(source)
            self._check_sequence(to)
            whole_one = start == 0 and (p1 is None or p1 > self._end(source))
            if not self.options.kv_unified and not whole_one:
                raise UnsupportedError("seq_cp() of a part of a sequence needs one cache for all: make the context with kv_unified=True")
            with self._poisoning():
                lib.llama_memory_seq_cp(self._needed_memory(), source, to, 0 if whole_one else start, -1 if whole_one else stop)

    def seq_keep(self, seq: int) -> None:
        """Forgets all other sequences."""
        with self._in_use(poisons=False):
            self._check_sequence(seq)
            with self._poisoning():
                lib.llama_memory_seq_keep(self._needed_memory(), seq)

    def seq_add(self, seq: int, delta: int, p0: int = 0, p1: int | None = None) -> None:
        """Moves positions ``p0`` to ``p1 - 1`` of a sequence by ``delta``; the keys are turned accordingly at the next decode.

        Raises:
            UnsupportedError: the positions of this model cannot be shifted. ArgumentError: some would be below 0.
        """
        with self._in_use(poisons=False):
            start, stop = self._range(p0, p1)
            self._check_sequence(seq)
            whole("delta", delta, -MAX_TOKENS, MAX_TOKENS)
            if start + delta < 0:
                raise ArgumentError(f"seq_add(delta={delta}): position {start} would come to {start + delta}; positions begin at 0")
            memory = self._needed_memory()
            if not lib.llama_memory_can_shift(memory):
                raise UnsupportedError(f"{self.name}: llama.cpp cannot shift positions in this model's cache")
            with self._poisoning():
                lib.llama_memory_seq_add(memory, seq, start, stop, delta)

    def shift(self, n_discard: int, *, keep: int = 0, seq: int = 0) -> None:
        """Context shift: forgets ``n_discard`` tokens behind the first ``keep``, and closes the gap.

        Raises:
            ArgumentError: there are not so many. UnsupportedError: see `seq_add`.
        """
        end = self.n_past(seq)
        whole("keep", keep, 0, end)
        whole("n_discard", n_discard, 0, end - keep)
        if n_discard and keep + n_discard < end and not lib.llama_memory_can_shift(self._needed_memory()):
            raise UnsupportedError(f"{self.name}: llama.cpp cannot shift positions in this model's cache")
        if n_discard:
            self.seq_rm(seq, keep, keep + n_discard)
            self.seq_add(seq, -n_discard, keep + n_discard)

    def _needed_memory(self) -> Any:
        memory = self._native.memory
        if memory == ffi.NULL:
            raise UnsupportedError(f"{self.name} keeps nothing between calls: it has no sequences")
        return memory

    def _range(self, p0: int, p1: int | None) -> tuple[int, int]:
        start = whole("p0", p0, 0, MAX_TOKENS)
        return start, -1 if p1 is None else whole("p1", p1, start, MAX_TOKENS)
