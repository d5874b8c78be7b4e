"""The handle that people use for a model."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import file_path, text
from .._ffi import ffi, lib
from .._handle import Handle
from ..device import Device
from ..dtype import DTYPES_BY_ID, DTypeLike
from ..errors import ArgumentError, BusyError, Error, OutOfMemoryError, SplitError, UnsupportedError
from ..gguf_check import check_gguf
from ..gguf_info import GGUFInfo
from ..meta import MetaDevice, as_rule
from ..plan import SplitPlan
from ..plan.check import CheckReport
from ..split import Decision, Rule, SplitState, read_state
from ..tensor import read_tensor
from .adapters import Adapter
from .batch import Tokens
from .chat import Chat, Message, apply_chat_template, builtin_templates
from .checking import check_model
from .context import Context, GeneratedToken
from .loading import LoadedModel, probe_load
from .native_context import Observer
from .options import (
    ContextOptions,
    Devices,
    ModelOptions,
    Progress,
    cache_type,
    check_arch,
    check_cache,
    check_rules,
    devices_of,
    shares_of,
)
from .planning import plan_model
from .sampling import Sampler, SamplerOptions, sampler_options
from .vocabulary import Vocabulary

__all__ = ["Model"]


class Model(Handle):
    """A GGUF model, loaded by llama.cpp, with a context for one sequence; `context` makes others.

    Args:
        path: the GGUF file (of a split one, the first part).
        device: a `MetaDevice` (its rules stand in front of llama.cpp's own), devices, or words such as ``"vcpu:2"``;
            None: the CPU.
        split_mode, tensor_split, n_ctx, n_batch, type_k, type_v, flash_attn, threads, attn_f32: see
            `ModelOptions`. ``split_mode`` is ``tensor`` on a `MetaDevice` and over several devices, else ``none``, unless it is
            given; ``none`` takes the first device.
        rules: made by `rule`, or pairs (pattern, split); they stand in front of those of a `MetaDevice`. The first
            one that is found in the name of a weight or cache decides; llama.cpp's own rules decide the rest.
        probe: load it in a child process first, so that a file that crashes llama.cpp is an exception here.
        progress: called with the fraction loaded, 0 to 1.

    Raises:
        ModelNotFoundError, FileFormatError: there is no such file, or it is corrupt (llama.cpp never sees it then).
        ModelError: llama.cpp refused it; its reasons are in the message.
        ArgumentError: rules that match nothing, or outside of tensor mode.
        SplitError: rules are illegal: all violations at once, each with the tensor, the reason and legal shares, before a
            weight is read. OutOfMemoryError: a device has not enough memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: Devices | None = None,
        *,
        split_mode: str | None = None,
        tensor_split: Sequence[float] | None = None,
        rules: Iterable[Rule | tuple[str, str]] = (),
        n_ctx: int = 512,
        n_batch: int = 512,
        type_k: DTypeLike = "f16",
        type_v: DTypeLike = "f16",
        flash_attn: str = "auto",
        threads: int | None = None,
        attn_f32: bool = False,
        probe: bool = False,
        progress: Progress | None = None,
    ) -> None:
        devices, own = devices_of(device)
        if split_mode is None:
            split_mode = "tensor" if isinstance(device, MetaDevice) or len(devices) > 1 else "none"
        options = ModelOptions(
            split_mode,
            shares_of(tensor_split),
            n_ctx,
            n_batch,
            cache_type("type_k", type_k),
            cache_type("type_v", type_v),
            flash_attn,
            threads,
            bool(attn_f32),
        )
        self._open(path, devices, options, (*rules, *own), probe, progress)

    @classmethod
    def with_options(
        cls,
        path: str | os.PathLike[str],
        device: Devices | None,
        options: ModelOptions,
        *,
        rules: Iterable[Rule | tuple[str, str]] = (),
        probe: bool = False,
        progress: Progress | None = None,
    ) -> Model:
        """The same from a `ModelOptions`."""
        self = cls.__new__(cls)
        devices, own = devices_of(device)
        self._open(path, devices, options, (*rules, *own), probe, progress)
        return self

    def _open(
        self,
        path: str | os.PathLike[str],
        devices: list[Device],
        options: ModelOptions,
        rules: Iterable[Rule | tuple[str, str]],
        probe: bool,
        progress: Progress | None,
    ) -> None:
        if progress is not None and not callable(progress):
            raise ArgumentError(f"progress={progress!r}: expected a function of the fraction loaded")
        self.path = file_path("a model", path)
        given = tuple(as_rule(r) for r in rules)
        options.check(len(devices))
        if options.split_mode == "none":
            devices = devices[:1]
        self.info: GGUFInfo = check_gguf(path)
        try:
            check_rules(self.info, options, given, len(devices))
            every = check_arch(self.info, options, given)
            check_cache(self.info, options.context)
        except SplitError:
            check_model(path, devices, rules=given, options=options).raise_if_illegal()
            raise
        if given:  # all that is wrong with them at once, before a weight is read
            check_model(path, devices, rules=given, options=options).raise_if_illegal()
        self.devices, self.rules, self.options = devices, given, options
        if probe:
            probe_load(self.path, options)
        try:
            self._loaded = LoadedModel(self.path, self.info, devices, every, options, progress)
            self._own(LoadedModel.release, self._loaded)
            try:
                self._first = Context(self._loaded, options.context)
            except BaseException:
                super().close()
                raise
        except OutOfMemoryError as error:
            told = self._does_not_fit()
            if told is None:
                raise
            raise told from error  # which has llama.cpp's own words

    def _does_not_fit(self) -> OutOfMemoryError | None:
        """What every device needs and has, where that is the reason; None: it would fit, so others have the memory."""
        if self.options.split_mode == "tensor":
            try:
                plan_model(self.path, self.devices, rules=self.rules, options=self.options)
            except OutOfMemoryError as told:
                return told
            except Error:  # what was wrong was said; this is only to say it better
                pass
        return None

    def close(self) -> None:
        """Frees the model. Contexts that `context` made keep working, and keep its weights; they are closed by themselves.

        Raises:
            BusyError: it is running just now.
        """
        if not self.closed and hasattr(self, "_first"):
            try:
                self._first.close()
            except BusyError:
                raise BusyError("this Model cannot be closed while it runs: wait for the run to return") from None
        super().close()

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        self._check_open()
        return self._loaded.n_vocab

    @property
    def description(self) -> str:
        """What llama.cpp calls it, such as ``llama 7B Q4_0``."""
        self._check_open()
        out = ffi.new("char[]", 256)
        lib.llama_model_desc(self._loaded.ptr, out, len(out))
        return str(ffi.string(out).decode("utf-8", "replace"))

    def weight(self, name: str) -> npt.NDArray[Any]:
        """The value of a weight as the devices hold it, put together, in numpy's order; quantized ones as float32.

        Raises:
            ArgumentError: the model has none of that name; similar ones are named.
        """
        self._check_open()
        text("the name of a weight", name)
        found = self._loaded.tensor(name)
        if found is None:
            close = difflib.get_close_matches(name, [t.name for t in self.info.tensors], 3, 0.4)
            raise ArgumentError(f"{self.path.name} has no weight {name!r}" + (f"; similar: {', '.join(close)}" if close else ""))
        with self._reading():
            return read_tensor(found, DTYPES_BY_ID[found.type])

    @property
    def decisions(self) -> dict[str, Decision]:
        """Tensors that rules of yours (not llama.cpp's) decided: what was asked for and achieved."""
        return dict(self._loaded.decisions)

    @property
    def meta_device_ptr(self) -> Any:
        """The ``ggml_backend_dev_t`` of llama.cpp's meta device, or None outside of tensor mode."""
        self._check_open()
        return self._loaded.meta

    @property
    def default_context(self) -> Context:
        """The context that `logits` uses. It is closed with the model."""
        self._check_open()
        return self._first

    def weight_splits(self) -> dict[str, SplitState]:
        """How the weights are split, by their names in the file; those that stay on the host are not in it.

        Raises:
            UnsupportedError: the model is not split: ``split_mode`` is not ``tensor``.
        """
        self._check_open()
        if self._loaded.meta is None:
            raise UnsupportedError(f"{self.path.name} was loaded with split_mode={self.options.split_mode!r}: nothing is split")
        found, state = {}, ffi.new("struct ggml_backend_meta_split_state *")
        for t in self.info.tensors:
            tensor = self._loaded.tensor(t.name)
            if tensor is not None and lib.pgg_meta_split_state(tensor, True, state):
                split = read_state(state, len(self.devices))
                if split is not None:
                    found[t.name] = split
        return found

    def context(self, options: ContextOptions | None = None, **changes: Any) -> Context:
        """Another context over the same weights: a cache of its own, for one or several sequences.

        Args:
            options: None: as the model was loaded.
            changes: fields of `ContextOptions` that are to differ, such as ``n_seq_max=4`` or ``embeddings=True``.

        Raises:
            ArgumentError: there is no such option, or its value makes no sense. OutOfMemoryError, ModelError: see `Model`.
        """
        self._check_open()
        return Context(self._loaded, changed(options or self.options.context, changes))

    def split_rules(self) -> tuple[Rule, ...]:
        """The split of every weight and cache, as llama.cpp's policy and the rules given decided, as rules: to be read,
        changed, saved (`save_rules`) and given back (``rules=``). What has no part in decoding a token is not among them.

        Raises:
            UnsupportedError: ``split_mode`` is not ``tensor``: nothing is split.
        """
        self._check_open()
        if self._loaded.meta is None:
            raise UnsupportedError(f"{self.path.name} was loaded with split_mode={self.options.split_mode!r}: nothing is split")
        return self.plan().split_rules()

    def logits(self, tokens: Tokens, *, observer: Observer | None = None) -> npt.NDArray[np.float32]:
        """The logits behind every token of one sequence, computed from an empty context.

        Args:
            tokens: token ids.
            observer: called with (name, op, value as bytes) of every node of the meta graphs; it does not change them.

        Returns:
            float32 of shape (number of tokens, n_vocab).

        Raises:
            IndexRangeError: a token is not in the vocabulary. ArgumentError: none, or more than the context holds.
        """
        self._check_open()
        return self._first.decode(tokens, logits="all", observer=observer, from_empty=True)

    @property
    def vocab(self) -> Vocabulary:
        """The model's tokens."""
        self._check_open()
        return Vocabulary(self._loaded)

    def tokenize(self, text: str, *, special: bool = True, parse_special: bool = False) -> list[int]:
        """The tokens of a text, see `Vocabulary.tokenize`."""
        return self.vocab.tokenize(text, special=special, parse_special=parse_special)

    def detokenize(self, tokens: Tokens, *, special: bool = False) -> str:
        """The text of tokens, see `Vocabulary.detokenize`."""
        return self.vocab.detokenize(tokens, special=special)

    def sampler(self, options: SamplerOptions | None = None, **changes: Any) -> Sampler:
        """A chain of llama.cpp's samplers that several generations share.

        Args:
            options: None: llama.cpp's usual chain.
            changes: fields of `SamplerOptions` that are to differ, such as ``top_k=1``.

        Raises:
            ArgumentError: there is no such option, or its value makes no sense. ModelError: the grammar is not valid.
        """
        self._check_open()
        return Sampler(self._loaded, sampler_options(options, changes))

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template, in Jinja; None where its file has none."""
        return self.vocab.chat_template

    def apply_chat_template(self, messages: Sequence[Message], *, template: str | None = None, add_assistant: bool = True) -> str:
        """A conversation as one text, as the model was trained to read it. Tokenize it with ``parse_special=True``.

        Args:
            messages: in order, each ``{"role": "user", "content": "..."}``; roles are ``system``, ``user``, ``assistant``.
            template: None: the model's own; else one that llama.cpp knows by name, such as ``chatml``.
            add_assistant: begin the assistant's answer at the end.

        Raises:
            UnsupportedError: the model has no template, or one that llama.cpp does not know (it runs no Jinja).
            ArgumentError: messages of another form.
        """
        self._check_open()
        return apply_chat_template(self._template(template), messages, add_assistant=add_assistant)

    def _template(self, given: str | None) -> str:
        found = self.chat_template if given is None else given
        if found is None:
            raise UnsupportedError(f"{self.path.name} has no chat template: give template=, the name of one that llama.cpp knows ({', '.join(builtin_templates())})")
        return found

    def chat(self, *, system: str | None = None, template: str | None = None) -> Chat:
        """A conversation in the default context, from empty: ``for token in chat.say("Hello"): ...``.

        Args:
            system: what the assistant is told before.
            template: see `apply_chat_template`.

        Raises:
            UnsupportedError: no template, or no tokenizer.
        """
        chat = Chat(self.default_context, self._template(template), system=system)
        self.vocab.tokenize("")
        self.default_context.clear()
        return chat

    def generate(self, prompt: str | Tokens, *, max_tokens: int | None = None, **changes: Any) -> Iterator[GeneratedToken]:
        """Continues a text in the default context, from empty. See `Context.generate`.

        Args:
            prompt: text, or token ids.
            changes: further arguments of `Context.generate`: ``sampler``, ``temperature``, ``seed``, ``on_full``, …
        """
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else prompt
        self.default_context.clear()
        return self.default_context.generate(tokens, max_tokens=max_tokens, **changes)

    def adapter(self, path: str | os.PathLike[str]) -> Adapter:
        """Loads a LoRA adapter (GGUF) for this model.

        Raises:
            ModelNotFoundError, FileFormatError: no such file, or no LoRA adapter for this architecture.
            ModelError: llama.cpp refuses it, for example because its tensors do not fit the model's.
        """
        self._check_open()
        return Adapter(self._loaded, path)

    def plan(self, n_tokens: int = 1, n_past: int = 0, *, all_logits: bool = False) -> SplitPlan:
        """What a decode of ``n_tokens`` behind ``n_past`` would do; nothing is allocated or computed. See `plan_model`."""
        self._check_open()
        return plan_model(
            self.path, self.devices, n_tokens=n_tokens, n_past=n_past, all_logits=all_logits, rules=self.rules, options=self.options
        )

    def check(self, n_tokens: int | None = None, n_past: int = 0, *, repairs: bool = True) -> CheckReport:
        """Everything that would be refused, at once, in a decode of ``n_tokens`` behind ``n_past``. See `check_model`.

        A model whose weights or caches cannot be split as asked does not load: `check_model` says what is wrong with those.
        """
        self._check_open()
        return check_model(self.path, self.devices, n_tokens=n_tokens, n_past=n_past, rules=self.rules, options=self.options, repairs=repairs)

    def __repr__(self) -> str:
        if self.closed:
            return "<Model (closed)>"
        where = ",".join(d.name for d in self.devices) or "CPU"
        return f"<Model {self.path.name} on {where}, split_mode={self.options.split_mode}>"


def changed(options: ContextOptions, changes: dict[str, Any]) -> ContextOptions:
    """The options with some of them changed.

    Raises:
        ArgumentError: there is no option of that name.
    """
    from dataclasses import fields, replace

    if not isinstance(options, ContextOptions):
        raise ArgumentError(f"context({options!r:.80}): expected ContextOptions, or some of its fields by name, such as n_ctx=1024")
    known = [f.name for f in fields(options)]
    for name in changes:
        if name not in known:
            raise ArgumentError(f"a context has no option {name!r}; it has {', '.join(known)}")
    for name in ("type_k", "type_v"):
        if name in changes:
            changes[name] = cache_type(name, changes[name])
    return replace(options, **changes)
