"""llama.cpp's context: the cache of one or several sequences, and the graphs that run on it."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import whole
from .._ffi import ffi, lib
from .._ffi.spans import span
from .._handle import Handle
from ..errors import ArgumentError, IndexRangeError, ModelError, UnsupportedError
from ..meta import refuse_simulated
from .adapters import Adapter
from .batch import Batch, Tokens, single_token, token_ids
from .loading import LoadedModel, failure, freeing
from .memory import MemoryUse, memory_of
from .native_context import NativeContext, Observer
from .options import ENCODERS, MAX_TOKENS, POOLING, ContextOptions, check_cache, check_pooling
from .sampling import Sampler, SamplerOptions, sampler_options
from .state import Envelope, describe, opened, sealed
from .vocabulary import Vocabulary

__all__ = ["Context", "GeneratedToken"]


_NO_LOGITS = "logits; is it a model for embeddings?"


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One step of a generation."""

    id: int
    text: str
    """What became readable with it: nothing for an end token, within a character of several tokens, or without a tokenizer."""
    ends: bool
    """Whether the model ended the text with it."""


class Context(Handle):
    """A context of a model: made by `Model.context`. Several contexts of a model share its weights.

    A failure while it computes poisons the context, not the model.
    """

    def __init__(self, loaded: LoadedModel, options: ContextOptions) -> None:
        options.check(loaded.options.split_mode)
        check_cache(loaded.info, options)
        check_pooling(loaded.info, options)
        self.options = options
        self.name = loaded.info.path.name
        self._devices = loaded.devices
        self._n_vocab = loaded.n_vocab
        self._adapters: tuple[Adapter, ...] = ()
        self.n_changes = 0
        """Calls that changed the cache, or what it would be."""
        self._native = NativeContext(loaded, options)
        ptr = loaded.ptr
        self._waits_for_encoder = bool(lib.llama_model_has_encoder(ptr) and lib.llama_model_has_decoder(ptr))
        self._n_seq_max, self._n_ctx_seq = options.n_seq_max, options.n_ctx // options.n_stream
        self._makes_logits = loaded.info.arch not in ENCODERS and not options.embeddings
        self._simulated = any(device.is_simulated for device in loaded.devices)
        self._own(NativeContext.free, self._native)

    @property
    def ptr(self) -> Any:
        """The ``struct llama_context *``."""
        self._check_open()
        return self._native.ptr

    @property
    def vocab(self) -> Vocabulary:
        """The model's tokens."""
        self._check_open()
        return Vocabulary(self._native.loaded)

    @property
    def n_ctx_seq(self) -> int:
        """Tokens that one sequence can have."""
        return self._n_ctx_seq

    @property
    def decoder_start(self) -> int | None:
        """The token with which an encoder-decoder model (T5) begins its answer, once `encode` has read a text; None for others."""
        self._check_open()
        model = self._native.loaded.ptr
        if not (lib.llama_model_has_encoder(model) and lib.llama_model_has_decoder(model)):
            return None
        start = int(lib.llama_model_decoder_start_token(model))
        return start if start >= 0 else self.vocab.bos or 0

    def _changing(self, *, poisons: bool = True) -> AbstractContextManager[None]:
        """As `_in_use`, for what changes the cache, or what it would be: a `Chat` sees by it that others did."""
        self.n_changes += 1
        return self._in_use(poisons=poisons)

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
            observer: called with (name, op, value as bytes) of every node of the meta graphs. It changes nothing
                on virtual CPUs; see `Graph.observed`. The meta device is locked meanwhile: it must not wait for another
                thread that uses it.
            from_empty: forget all sequences first.

        Returns:
            float32 of shape (tokens whose logits were wanted, n_vocab), in their order.

        Raises:
            IndexRangeError: a token is not in the vocabulary, or there is no such sequence.
            ArgumentError: they do not fit into the context, or positions leave a gap.
        """
        if observer is not None and not callable(observer):
            raise ArgumentError(f"observer={observer!r:.80}: expected a function of (name, op, value)")
        if observer is None and pos is None and not from_empty and logits in ("last", "all") and (token := single_token(tokens)) >= 0:
            with self._changing(poisons=False):
                if self._step(token, seq):
                    return self._logits_of_one()
        with span("decode"), self._changing(poisons=False):
            batch = _batch_of(tokens, seq, pos, logits)
            self._need_logits()
            self._refuse_simulated("no logits were computed")
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
                        out[row] = self._floats(lib.llama_get_logits_ith(self._native.ptr, int(i)), self._n_vocab, _NO_LOGITS)
                        row += 1
        return out

    def feed(self, tokens: Tokens | Batch, seq: int | Sequence[int] = 0) -> None:
        """Puts tokens into the cache as `decode` does, but leaves the logits in llama.cpp, for a sampler.

        Raises:
            Like `decode`.
        """
        self._feed(tokens, seq)

    def _compute(self, *, encode: bool = False) -> None:
        try:
            status, error = self._native.compute(encode=encode)
        except BaseException:
            with self._poisoning():
                raise
        if error is not None:
            if status in (1, -1):  # after those the context is as it was before
                raise error
            with self._poisoning():
                raise error

    # One token of one sequence is what every step of a generation decodes. Between two tokens the processor's caches are full
    # of weights, and what Python does there takes several times as long as it does in a test of its own: so it does little.

    def _step(self, token: int, seq: int | Sequence[int]) -> bool:
        """Decodes a token behind a sequence. False: that is not possible, or not simple; `_laid_out` and others say why."""
        if type(seq) is not int or not 0 <= seq < self._n_seq_max or not 0 <= token < self._n_vocab:
            return False
        if not self._makes_logits or self._waits_for_encoder or self._simulated:
            return False
        native = self._native
        pos = native.end(seq)
        if pos >= self._n_ctx_seq:
            return False
        native.set_one(token, pos, seq)
        with span("decode"):
            self._compute()
        return True

    def _logits_of_one(self) -> npt.NDArray[np.float32]:
        pointer = lib.llama_get_logits_ith(self._native.ptr, 0)
        if pointer == ffi.NULL:
            raise ModelError(f"{self.name}: llama.cpp gives no {_NO_LOGITS}")
        out = np.empty((1, self._n_vocab), np.float32)
        ffi.memmove(out, pointer, out.nbytes)
        return out

    def _floats(self, pointer: Any, n: int, what: str) -> npt.NDArray[np.float32]:
        if pointer == ffi.NULL:
            raise ModelError(f"{self.name}: llama.cpp gives no {what}")
        return np.frombuffer(ffi.buffer(pointer, n * 4), np.float32)

    def _need_logits(self) -> None:
        if self._makes_logits and not self._waits_for_encoder:
            return
        arch = self._native.loaded.info.arch
        if arch in ENCODERS:
            raise UnsupportedError(f"{self.name}: a model of the architecture {arch!r} makes embeddings, no logits: model.context(embeddings=True).embed(...)")
        if self.options.embeddings:
            raise UnsupportedError(f"{self.name}: this context was made for embeddings: use embed(), or another context for logits")
        if self._waits_for_encoder:
            raise ArgumentError(f"{self.name}: its decoder attends to what its encoder has read: call encode(tokens) first")

    def _refuse_simulated(self, what: str) -> None:
        for device in self._devices if self._simulated else ():
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
        return self._native.end(seq)

    def _check_tokens(self, ids: npt.NDArray[Any]) -> None:
        bad = np.flatnonzero((ids < 0) | (ids >= self._n_vocab))
        if bad.size:
            raise IndexRangeError(f"token {int(ids[bad[0]])} at position {int(bad[0])} is not in the vocabulary: 0 to {self._n_vocab - 1}")

    def _check_sequence(self, seq: int) -> None:
        if not isinstance(seq, (int, np.integer)) or not 0 <= seq < self.options.n_seq_max:
            raise IndexRangeError(f"sequence {seq!r}: this context has 0 to {self.options.n_seq_max - 1} (n_seq_max={self.options.n_seq_max})")

    # generating

    def generate(
        self,
        prompt: str | Tokens,
        *,
        max_tokens: int | None = None,
        seq: int = 0,
        sampler: Sampler | SamplerOptions | None = None,
        on_full: str = "stop",
        keep: int = 1,
        **changes: Any,
    ) -> Iterator[GeneratedToken]:
        """Continues a sequence, token by token.

        Args:
            prompt: text, or token ids, that come first, behind what the sequence has. A text gets the tokens that begin
                one (BOS) where the sequence is empty.
            max_tokens: None: until the model ends it or the context is full.
            sampler: None: llama.cpp's usual chain.
            on_full: ``stop``, or ``shift``: forget the older half behind the first ``keep`` tokens, and go on.
            keep: fewer than a sequence can have.
            changes: fields of `SamplerOptions` that are to differ, such as ``temperature=0`` or ``seed=1``.

        Returns:
            An iterator of `GeneratedToken`. The last one may be an end token; nothing comes behind it.

        Raises:
            ArgumentError: values that make no sense. Others: see `decode`.
        """
        if on_full not in ("stop", "shift"):
            raise ArgumentError(f"on_full={on_full!r}: 'stop' or 'shift'")
        if max_tokens is not None:
            whole("max_tokens", max_tokens, 0, MAX_TOKENS)
        whole("keep", keep, 0, MAX_TOKENS)
        if on_full == "shift" and keep >= self.n_ctx_seq:
            raise ArgumentError(f"keep={keep}: a shift must forget something; fewer than the {self.n_ctx_seq} tokens of the context can be kept")
        self._check_open()
        self._need_logits()
        self._refuse_simulated("nothing was generated")
        tokens = self.vocab.tokenize(prompt, special=self.n_past(seq) == 0) if isinstance(prompt, str) else prompt
        if isinstance(sampler, Sampler):
            if changes:
                raise ArgumentError(f"give {', '.join(changes)} to the Sampler when it is made, not to generate()")
            if sampler.path != self._native.loaded.path:
                raise ArgumentError(f"this Sampler chooses tokens of {sampler.path.name}, not of {self.name}: model.sampler() makes one")
            chain, mine = sampler, False
        else:
            chain, mine = Sampler(self._native.loaded, sampler_options(sampler, changes)), True
        try:
            self._feed(tokens, seq)
        except BaseException:
            if mine:
                chain.close()
            raise
        return self._generated(chain, mine, seq, max_tokens, on_full == "shift", keep)

    def _generated(
        self, chain: Sampler, mine: bool, seq: int, max_tokens: int | None, shift: bool, keep: int
    ) -> Iterator[GeneratedToken]:
        decoder, vocab, n = codecs.getincrementaldecoder("utf-8")("replace"), self.vocab, 0
        try:
            while max_tokens is None or n < max_tokens:
                with span("sample"), self._in_use():
                    token = int(lib.llama_sampler_sample(chain.ptr, self._native.ptr, -1))
                    ended = vocab.is_end(token)
                    text = "" if ended else decoder.decode(vocab.piece(token))
                n += 1
                yield GeneratedToken(token, text, ended)
                if ended or n == max_tokens:
                    return
                end = self.n_past(seq)
                if end >= self.n_ctx_seq:
                    if not shift:
                        return
                    self.shift(max((end - keep) // 2, 1), keep=keep, seq=seq)
                self._feed([token], seq)
        finally:
            if mine:
                chain.close()

    def _feed(self, tokens: Tokens | Batch, seq: int | Sequence[int]) -> None:
        """Decodes without looking at logits, which stay in llama.cpp for the sampler."""
        if (token := single_token(tokens)) >= 0:
            with self._changing(poisons=False):
                if self._step(token, seq):
                    return
        self._check_open()
        self._need_logits()
        self._refuse_simulated("nothing was computed")
        batch = _batch_of(tokens, seq)
        with span("decode"), self._changing(poisons=False):
            ids, at, seqs, wanted = self._laid_out(batch, False)
            for first in range(0, len(ids), self._native.n_batch):
                part = slice(first, first + self._native.n_batch)
                self._native.set_batch(ids[part], at[part], seqs[part], wanted[part])
                self._compute()

    # embeddings

    def embed(self, texts: str | Sequence[str | Tokens], *, normalize: bool = True) -> list[npt.NDArray[np.float32]]:
        """Embeddings of texts, each computed by itself; the sequences that the context had are forgotten.

        Args:
            texts: a list of texts, or of token ids of each text; one text alone is a list of one. A text may have
                ``n_batch`` tokens, and as many as a sequence can have.
            normalize: to length 1 (not ranks).

        Returns:
            For each text float32 of shape (n_embd_out,); with ``pooling="none"`` (its tokens, n_embd_out); with
            ``pooling="rank"`` (outputs of the classifier,).

        Raises:
            ArgumentError: the context was not made with ``embeddings=True``, or a text is empty or too long.
            UnsupportedError: a text for a model without a tokenizer.
        """
        self._check_open()
        if not self.options.embeddings:
            raise ArgumentError("embed() needs a context for embeddings: model.context(embeddings=True)")
        self._refuse_simulated("no embeddings were computed")
        limit = min(self.n_ctx_seq, self._native.n_batch)
        if not isinstance(texts, (str, Sequence, np.ndarray)):
            raise ArgumentError(f"embed(): expected a list of texts or of token ids, got {type(texts).__name__}")
        vocab = self.vocab
        listed = [vocab.tokenize(t) if isinstance(t, str) else t for t in ([texts] if isinstance(texts, str) else texts)]
        checked = [token_ids(t) for t in listed]
        for i, ids in enumerate(checked):
            self._check_tokens(ids)
            if len(ids) > limit:
                raise ArgumentError(f"text {i} has {len(ids)} tokens; {limit} are possible (n_ctx, n_batch and n_seq_max of the context)")
        out: list[npt.NDArray[np.float32]] = []
        with span("embed"), self._changing(poisons=False):
            for group in self._groups(checked):
                out += self._embedded(group)
        if normalize and self.pooling != "rank":
            for vectors in out:
                length = np.linalg.norm(vectors, axis=-1, keepdims=True)
                np.divide(vectors, length, out=vectors, where=length > 0)
        return out

    @property
    def pooling(self) -> str:
        """How embeddings of tokens become one: ``none``, ``mean``, ``cls``, ``last``, ``rank``."""
        found = int(lib.llama_pooling_type(self.ptr))
        return next(str(name) for name, value in POOLING.items() if value == found and name)

    def _groups(self, texts: list[npt.NDArray[Any]]) -> Iterator[list[npt.NDArray[Any]]]:
        group: list[npt.NDArray[Any]] = []
        loaded = self._native.loaded
        # the batches of recurrent models are always cut to sequences of equal length
        alone = lib.llama_model_is_recurrent(loaded.ptr) or lib.llama_model_is_hybrid(loaded.ptr)
        most = 1 if alone else self.options.n_seq_max
        for ids in texts:
            if group and (len(group) == most or sum(map(len, group)) + len(ids) > self._native.n_batch):
                yield group
                group = []
            group.append(ids)
        if group:
            yield group

    def _embedded(self, group: list[npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
        native, loaded = self._native, self._native.loaded
        if native.memory != ffi.NULL:
            lib.llama_memory_clear(native.memory, True)
        lengths = [len(ids) for ids in group]
        tokens = np.concatenate(group).astype(np.int32)
        pos = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        seqs = [(seq,) for seq, n in enumerate(lengths) for _ in range(n)]
        native.set_batch(tokens, pos, seqs, np.ones(len(tokens), np.int8))
        encoder_alone = lib.llama_model_has_encoder(loaded.ptr) and not lib.llama_model_has_decoder(loaded.ptr)
        self._compute(encode=bool(encoder_alone))
        width = int(lib.llama_model_n_embd_out(loaded.ptr))
        what = "embeddings; is it a model that makes some?"
        if self.pooling == "none":
            rows = [self._floats(lib.llama_get_embeddings_ith(native.ptr, i), width, what) for i in range(len(tokens))]
            ends = np.cumsum(lengths)
            return [np.stack(rows[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
        n = int(lib.llama_model_n_cls_out(loaded.ptr)) if self.pooling == "rank" else width
        return [self._floats(lib.llama_get_embeddings_seq(native.ptr, seq), n, what).copy() for seq in range(len(group))]

    def encode(self, tokens: Tokens) -> None:
        """Runs the encoder of an encoder-decoder model (T5); what is decoded afterwards attends to its result.

        The sequences that the context had are forgotten: they were about another text.

        Raises:
            UnsupportedError: the model has no encoder beside its decoder. ArgumentError: more tokens than a batch holds.
        """
        self._check_open()
        loaded = self._native.loaded
        if not (lib.llama_model_has_encoder(loaded.ptr) and lib.llama_model_has_decoder(loaded.ptr)):
            raise UnsupportedError(f"{self.name} is no encoder-decoder model: decode() or embed() is what it can do")
        ids = token_ids(tokens)
        self._check_tokens(ids)
        whole("encode(): number of tokens", len(ids), 1, self._native.n_batch)
        self._refuse_simulated("nothing was encoded")
        n = len(ids)
        with self._changing(poisons=False):
            lib.llama_memory_clear(self._native.memory, True)
            self._native.set_batch(ids.astype(np.int32), np.arange(n, dtype=np.int32), [(0,)] * n, np.ones(n, np.int8))
            self._compute(encode=True)
            self._waits_for_encoder = False

    # states

    def save(self, seq: int | None = None) -> bytes:
        """The state of the context, or of one sequence, as bytes. It moves between split modes and devices.

        Raises:
            IndexRangeError: there is no such sequence.
        """
        self._refuse_simulated("there is no state")
        with self._in_use(poisons=False):
            if seq is not None:
                self._check_sequence(seq)
            ptr = self._native.ptr
            with self._poisoning():
                size = int(lib.llama_state_get_size(ptr) if seq is None else lib.llama_state_seq_get_size(ptr, seq))
                out = bytearray(size)
                to = ffi.from_buffer("uint8_t *", out)
                with freeing():  # tensors are copied by destructors, out of which no error comes
                    done = int(lib.llama_state_get_data(ptr, to, size) if seq is None else lib.llama_state_seq_get_data(ptr, to, size, seq))
                self._native.loaded.check_servers()
                if not 0 < done <= size:
                    raise failure(f"{self.name}: llama.cpp cannot write its state of {size} bytes")
        return sealed(self._envelope(seq), bytes(out[:done]))

    def restore(self, state: bytes, seq: int | None = None) -> None:
        """What `save` gave, of this model in any split mode, with caches of the same formats.

        Args:
            seq: the sequence that a saved sequence becomes; None for a whole context.

        Raises:
            FileFormatError: damaged, or no state. ArgumentError: another model's. ModelError: llama.cpp refuses it, for
                example because it does not fit; the context is empty then.
        """
        self._refuse_simulated("no state was restored")
        with self._changing(poisons=False):
            if seq is not None:
                self._check_sequence(seq)
            raw = opened(self._envelope(seq), state)
            ptr, given = self._native.ptr, ffi.from_buffer("uint8_t *", raw)
            with self._poisoning():
                with freeing():
                    done = int(lib.llama_state_set_data(ptr, given, len(raw)) if seq is None else lib.llama_state_seq_set_data(ptr, given, len(raw), seq))
                self._native.loaded.check_servers()
                error = None if done == len(raw) else failure(f"{self.name}: llama.cpp does not take the state of {len(raw)} bytes")
                if error is not None:
                    lib.llama_memory_clear(self._native.memory, True)
            if error is not None:
                raise error

    def _envelope(self, seq: int | None) -> Envelope:
        return describe("context" if seq is None else "sequence", self._native.loaded.info, self._n_vocab, self.options)

    # adapters

    def set_adapters(self, adapters: Mapping[Adapter, float] | Sequence[Adapter] = ()) -> None:
        """The LoRA adapters that take part from now on, with their scales (1.0 unless given); none: the bare model.

        Raises:
            ArgumentError: an adapter of another model. ClosedError: one is closed.
        """
        if not isinstance(adapters, (Mapping, Sequence)):
            raise ArgumentError(f"set_adapters({adapters!r:.80}): expected a list of adapters, or a dict of adapters and scales; none: []")
        scaled = dict(adapters) if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
        for one, scale in scaled.items():
            if not isinstance(one, Adapter) or one.loaded is not self._native.loaded:
                raise ArgumentError(f"{one!r} is no adapter of {self.name}: model.adapter(path) loads one")
            if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not np.isfinite(scale):
                raise ArgumentError(f"the scale {scale!r} of {one!r}: expected a finite number")
        pointers = ffi.new("struct llama_adapter_lora *[]", [one.ptr for one in scaled])
        scales = ffi.new("float[]", [float(s) for s in scaled.values()])
        with self._changing():
            if lib.llama_set_adapters_lora(self._native.ptr, pointers, len(scaled), scales) != 0:
                raise failure(f"{self.name}: llama.cpp does not take these adapters")
            self._adapters = tuple(scaled)  # they live as long as they are used

    # memory

    def memory(self) -> tuple[MemoryUse, ...]:
        """Bytes on each device: of the model's weights, of caches, and of buffers to compute in.

        In tensor mode the devices of the meta device are told one by one, with all contexts of the model.
        """
        with self._in_use(poisons=False):
            return memory_of(self._native)

    # the cache

    def n_past(self, seq: int = 0) -> int:
        """Tokens that a sequence has: the position of the next one."""
        with self._in_use(poisons=False):
            self._check_sequence(seq)
            return self._end(seq)

    def clear(self) -> None:
        """Forgets all sequences."""
        with self._changing():
            lib.llama_memory_clear(self._native.memory, True)

    def seq_rm(self, seq: int | None = None, p0: int = 0, p1: int | None = None) -> None:
        """Takes the tokens at positions ``p0`` to ``p1 - 1`` out of a sequence.

        Args:
            seq: None: of every sequence.
            p1: None: to the end.

        Raises:
            UnsupportedError: a recurrent state cannot be cut within a sequence.
        """
        with self._changing(poisons=False):
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
        with self._changing(poisons=False):
            start, stop = self._range(p0, p1)
            self._check_sequence(source)
            self._check_sequence(to)
            whole_one = start == 0 and (p1 is None or p1 > self._end(source))
            if self.options.n_stream > 1 and not whole_one:
                raise UnsupportedError("seq_cp() of a part of a sequence needs one cache for all: make the context with kv_unified=True")
            with self._poisoning():
                lib.llama_memory_seq_cp(self._needed_memory(), source, to, 0 if whole_one else start, -1 if whole_one else stop)

    def seq_keep(self, seq: int) -> None:
        """Forgets all other sequences."""
        with self._changing(poisons=False):
            self._check_sequence(seq)
            with self._poisoning():
                memory = self._needed_memory()
                for other in range(self.options.n_seq_max):  # llama_memory_seq_keep looks at one part of the cache only
                    if other != seq:
                        lib.llama_memory_seq_rm(memory, other, -1, -1)

    def seq_add(self, seq: int, delta: int, p0: int = 0, p1: int | None = None) -> None:
        """Moves positions ``p0`` to ``p1 - 1`` of a sequence by ``delta``; the keys are turned accordingly at the next decode.

        Raises:
            UnsupportedError: the positions of this model cannot be shifted. ArgumentError: some would be below 0.
        """
        with self._changing(poisons=False):
            start, stop = self._range(p0, p1)
            self._check_sequence(seq)
            whole("delta", delta, -MAX_TOKENS, MAX_TOKENS)
            if start + delta < 0:
                raise ArgumentError(f"seq_add(delta={delta}): position {start} would come to {start + delta}; positions begin at 0")
            if (last := self._end(seq) - 1) >= start and last + delta > MAX_TOKENS:
                raise ArgumentError(f"seq_add(delta={delta}): position {last} would come to {last + delta}; {MAX_TOKENS} is the last one possible")
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


def _batch_of(tokens: Tokens | Batch, seq: int | Sequence[int], pos: int | None = None, logits: str = "last") -> Batch:
    return tokens if isinstance(tokens, Batch) else Batch().add(tokens, seq, pos=pos, logits=logits)
