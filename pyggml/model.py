"""GGUF models of llama.cpp: on one device, by layers, or split over a meta device."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arguments import whole
from ._ffi import ffi, lib, reason
from ._ffi.callbacks import Callback
from ._handle import Handle
from .device import MAX_META_DEVICES, Device, default_threads, parse_devices
from .dtype import DTYPES_BY_ID, DTypeLike, as_dtype
from .errors import ArgumentError, DTypeError, Error, IndexRangeError, ModelError, OutOfMemoryError, UnsupportedError
from .gguf_check import GGUFInfo, check_gguf
from .meta import MetaDevice, refuse_simulated, twins
from .plan import SplitPlan
from .split import Decision, Rule, decide, tensor_info, write_state

__all__ = ["Model", "ModelOptions", "plan_model"]

SPLIT_MODES = ("none", "layer", "tensor")
_FLASH = {"auto": -1, "on": 1, "off": 0}

_MAX_TOKENS = (1 << 31) - 1

Progress = Callable[[float], object]
Devices = MetaDevice | Device | Sequence[Device] | str


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is loaded and run; names and meanings are llama.cpp's."""

    split_mode: str = "none"
    """``none`` (the first device, or the CPU), ``layer`` (whole layers on each device), ``tensor`` (a meta device)."""
    tensor_split: tuple[float, ...] | None = None
    """Shares of the devices, in any unit; None: even."""
    n_ctx: int = 512
    """Tokens in the context."""
    n_batch: int = 512
    """Tokens in one call of the decoder."""
    type_k: str = "f16"
    """Format of the K cache."""
    type_v: str = "f16"
    """Format of the V cache."""
    flash_attn: str = "auto"
    """``on``, ``off``, ``auto``; tensor mode needs it."""
    threads: int | None = None
    """Threads of the CPU device; None: all cores."""
    attn_f32: bool = False
    """Keep F32 keys and values in F32 for flash attention; llama.cpp rounds them to F16, also those of an F32 cache."""

    def check(self, n_devices: int) -> None:
        """Raises ArgumentError for values that make no sense together, UnsupportedError for those nobody here can do."""
        if self.split_mode == "row":
            raise UnsupportedError(
                "split_mode='row' needs split buffers, which only the SYCL and Hexagon backends export; use 'tensor' or 'layer'"
            )
        if self.split_mode not in SPLIT_MODES:
            raise ArgumentError(f"split_mode={self.split_mode!r}: one of {', '.join(SPLIT_MODES)}")
        if self.flash_attn not in _FLASH:
            raise ArgumentError(f"flash_attn={self.flash_attn!r}: one of {', '.join(_FLASH)}")
        if self.n_ctx < 1 or self.n_batch < 1:
            raise ArgumentError(f"n_ctx={self.n_ctx}, n_batch={self.n_batch}: both at least 1")
        if self.threads is not None and not 1 <= self.threads <= 512:
            raise ArgumentError(f"threads={self.threads}: 1 to 512")
        for option, name in (("type_k", self.type_k), ("type_v", self.type_v)):
            dtype = as_dtype(name)
            if not dtype.has_quantizer or dtype.needs_imatrix:
                raise DTypeError(f"{option}={name!r}: a cache cannot be written in this format; f16, f32, bf16 and q8_0 can")
        if self.split_mode == "tensor":
            if n_devices < 1:
                raise ArgumentError("split_mode='tensor' needs at least one device that is not the CPU, such as 'vcpu:2'")
            if n_devices > MAX_META_DEVICES:
                raise ArgumentError(f"split_mode='tensor' with {n_devices} devices: at most {MAX_META_DEVICES}")
            if self.flash_attn == "off":
                raise UnsupportedError("split_mode='tensor' needs flash attention: flash_attn='on' or 'auto'")
        if self.tensor_split is not None:
            shares = self.tensor_split
            if self.split_mode == "none":
                raise ArgumentError("tensor_split is for split_mode='tensor' or 'layer'; split_mode is 'none', which takes the first device alone")
            if len(shares) != n_devices:
                raise ArgumentError(f"tensor_split has {len(shares)} shares, there are {n_devices} devices")
            if not all(np.isfinite(s) and s >= 0 for s in shares) or sum(shares) <= 0:
                raise ArgumentError(f"tensor_split={list(shares)}: shares are finite, not negative, and not all zero")


def _shares(given: Any) -> tuple[float, ...] | None:
    try:
        return tuple(float(s) for s in given) if given is not None else None
    except (TypeError, ValueError):
        raise ArgumentError(f"tensor_split={given!r}: expected numbers, such as [3, 1]") from None


class Model(Handle):
    """A GGUF model, loaded by llama.cpp, with one context.

    Args:
        path: the GGUF file (of a split one, the first part).
        device: a `MetaDevice` (its rules stand in front of llama.cpp's own), devices, or words such as ``"vcpu:2"``;
            None: the CPU.
        split_mode, tensor_split, n_ctx, n_batch, type_k, type_v, flash_attn, threads, attn_f32: see
            `ModelOptions`.
        probe: load it in a child process first, so that a file that crashes llama.cpp is an exception here.
        progress: called with the fraction loaded, 0 to 1.

    Raises:
        ModelNotFoundError, FileFormatError: there is no such file, or it is corrupt (llama.cpp never sees it then).
        ModelError: llama.cpp refused it; its reasons are in the message.
        SplitError: a rule is illegal. OutOfMemoryError: a device has not enough memory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: Devices | None = None,
        *,
        split_mode: str | None = None,
        tensor_split: Sequence[float] | None = None,
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
        options = ModelOptions(
            ("tensor" if isinstance(device, MetaDevice) else "none") if split_mode is None else split_mode,
            _shares(tensor_split),
            whole("n_ctx", n_ctx, 1, _MAX_TOKENS),
            whole("n_batch", n_batch, 1, _MAX_TOKENS),
            as_dtype(type_k).name,
            as_dtype(type_v).name,
            flash_attn,
            threads,
            bool(attn_f32),
        )
        self._open(path, device, options, (), probe, progress)

    @classmethod
    def with_options(
        cls,
        path: str | os.PathLike[str],
        device: Devices | None,
        options: ModelOptions,
        *,
        rules: Sequence[Rule] = (),
        probe: bool = False,
        progress: Progress | None = None,
    ) -> Model:
        """The same from a `ModelOptions`. ``rules`` stand in front of those of a `MetaDevice` and of llama.cpp's own."""
        self = cls.__new__(cls)
        self._open(path, device, options, rules, probe, progress)
        return self

    def _open(
        self,
        path: str | os.PathLike[str],
        device: Devices | None,
        options: ModelOptions,
        rules: Sequence[Rule],
        probe: bool,
        progress: Progress | None,
    ) -> None:
        devices, own = _devices_of(device)
        rules = (*rules, *own)
        options.check(len(devices))
        self.path = Path(path)
        self.info: GGUFInfo = check_gguf(path)
        _check_arch(self.info, options)
        self.devices, self.rules, self.options = devices, tuple(rules), options
        if probe:
            _probe(self.path, devices, options)
        self._loaded = _Loaded(self.path, devices, rules, options, progress)
        self._own(_Loaded.free, self._loaded)

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        self._check_open()
        return int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._loaded.model)))

    @property
    def decisions(self) -> dict[str, Decision]:
        """Tensors that rules of yours (not llama.cpp's) decided: what was asked for and achieved."""
        return dict(self._loaded.decisions)

    @property
    def meta_device_ptr(self) -> Any:
        """The ``ggml_backend_dev_t`` of llama.cpp's meta device, or None outside of tensor mode."""
        self._check_open()
        return self._loaded.meta

    def logits(self, tokens: Sequence[int] | npt.NDArray[Any], *, observer: Callable[[str, str, bytes], object] | None = None) -> npt.NDArray[np.float32]:
        """The logits behind every token of one sequence, computed from an empty context.

        Args:
            tokens: token ids.
            observer: called with (name, op, value as bytes) of every node of the meta graphs; it does not change them.

        Returns:
            float32 of shape (number of tokens, n_vocab).

        Raises:
            IndexRangeError: a token is not in the vocabulary. ArgumentError: none, or more than the context holds.
        """
        ids = self._check_tokens(tokens)
        for device in self.devices:
            refuse_simulated(device, f"{self.path.name}: no logits were computed")
        with self._in_use():
            loaded = self._loaded
            watch = loaded.observe(observer) if observer is not None else contextlib.nullcontext()
            with watch:
                lib.llama_memory_clear(lib.llama_get_memory(loaded.ctx), True)
                out = np.empty((len(ids), self.n_vocab), np.float32)
                for first in range(0, len(ids), self.options.n_batch):
                    part = ids[first : first + self.options.n_batch]
                    loaded.decode(part, first, all_logits=True)
                    for i in range(len(part)):
                        row = lib.llama_get_logits_ith(loaded.ctx, i)
                        if row == ffi.NULL:
                            raise ModelError(f"{self.path.name}: llama.cpp gives no logits; is it a model for embeddings?")
                        out[first + i] = np.frombuffer(ffi.buffer(row, out.shape[1] * 4), np.float32)
        return out

    def _check_tokens(self, tokens: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise ArgumentError(f"tokens must be a list of at least one token id, got {ids.dtype} of shape {ids.shape}")
        bad = np.flatnonzero((ids < 0) | (ids >= self.n_vocab))
        if bad.size:
            raise IndexRangeError(f"token {int(ids[bad[0]])} at position {int(bad[0])} is not in the vocabulary: 0 to {self.n_vocab - 1}")
        if ids.size > self.options.n_ctx:
            raise ArgumentError(f"{ids.size} tokens do not fit into a context of {self.options.n_ctx}: load the model with a larger n_ctx")
        return ids.astype(np.int32)

    def plan(self, n_tokens: int = 1, n_past: int = 0, *, all_logits: bool = False) -> SplitPlan:
        """What a decode of ``n_tokens`` behind ``n_past`` would do; nothing is allocated or computed. See `plan_model`."""
        self._check_open()
        return plan_model(
            self.path, self.devices, n_tokens=n_tokens, n_past=n_past, all_logits=all_logits, rules=self.rules, options=self.options
        )

    def __repr__(self) -> str:
        if self.closed:
            return "<Model (closed)>"
        where = ",".join(d.name for d in self.devices) or "CPU"
        return f"<Model {self.path.name} on {where}, split_mode={self.options.split_mode}>"


def plan_model(
    path: str | os.PathLike[str],
    device: Devices,
    *,
    n_tokens: int = 1,
    n_past: int = 0,
    all_logits: bool = False,
    rules: Sequence[Rule] = (),
    options: ModelOptions | None = None,
) -> SplitPlan:
    """The split plan of a GGUF model, from its header alone.

    llama.cpp itself loads the file on simulated twins of the devices and decodes: no weight is read, no memory of a
    device or buffer of the host is taken, nothing is computed. A file that was cut behind its header is enough.

    Args:
        n_tokens: tokens of the decode that is planned (1: generation; more: a prompt).
        n_past: tokens that are in the cache before it.
        all_logits: logits behind every token, as `Model.logits` wants them; else behind the last one, as generation does.

    Raises:
        ArgumentError: more tokens than the context holds. UnsupportedError: layer mode, which has no meta device.
        OutOfMemoryError: it would not fit a device; the message names it.
    """
    devices, own = _devices_of(device)
    options = options or ModelOptions("tensor")
    if options.split_mode != "none":
        options.check(len(devices))
    if options.split_mode == "layer":
        raise UnsupportedError("a plan shows what a meta device infers; split_mode='layer' has none: plan with 'tensor'")
    if options.split_mode == "none":
        devices = devices[:1]
        if not devices:
            raise UnsupportedError("a plan on the CPU alone has no split to show: give a device, such as 'vcpu:1'")
    options = replace(options, split_mode="tensor")
    options.check(len(devices))
    if n_tokens < 1 or n_past < 0 or n_past + n_tokens > options.n_ctx:
        raise ArgumentError(f"n_past={n_past} and n_tokens={n_tokens} do not fit into a context of {options.n_ctx} tokens")
    options = replace(options, n_batch=max(options.n_batch, n_tokens))
    stand_ins = twins(devices)
    with contextlib.ExitStack() as stack:
        for one in stand_ins:
            if one not in devices:
                stack.callback(one.release)
        info = check_gguf(path, whole=False)
        _check_arch(info, options)
        full = stack.enter_context(_whole(info))
        lib.pgg_plan_mode_begin()
        stack.callback(lib.pgg_plan_mode_end)
        loaded = _Loaded(full, stand_ins, (*rules, *own), options, None)
        stack.callback(loaded.free)
        loaded.fill(n_past)
        lib.pgg_meta_capture_begin(loaded.meta)
        try:
            loaded.decode(np.zeros(n_tokens, np.int32), n_past, all_logits=all_logits)
        finally:
            text = lib.pgg_meta_capture_take(loaded.meta)
        captured = ffi.string(text)
        lib.pgg_free(text)
        host = {"compute_nodes": _host_nodes(), "buffer_bytes": int(lib.pgg_plan_host_bytes())}
        asked = _asked_shares(info, options, len(stand_ins), loaded.decisions)
    return SplitPlan.from_captures(captured, host=host, asked=asked)


def _host_nodes() -> int:
    stats = ffi.new("struct pgg_device_stats *")
    lib.pgg_host_stats(stats)
    return int(stats.nodes)


def _asked_shares(info: GGUFInfo, options: ModelOptions, n_devices: int, decisions: dict[str, Decision]) -> dict[str, tuple[float, ...]]:
    """The shares that were asked for, by tensor: those of a rule, else ``tensor_split`` for whatever llama.cpp splits."""
    shares = options.tensor_split or (1.0,) * n_devices
    even = tuple(s / sum(shares) for s in shares)
    asked = {t.name: even for t in info.tensors}
    asked.update({name: d.asked_shares for name, d in decisions.items() if d.asked_shares})
    return asked


def _devices_of(device: Devices | None) -> tuple[list[Device], tuple[Rule, ...]]:
    if device is None or device == "cpu":
        return [], ()
    if isinstance(device, MetaDevice):
        return list(device.devices), device.rules
    found = parse_devices(device)
    return [d for d in found if d.type != "cpu"], ()


def _check_arch(info: GGUFInfo, options: ModelOptions) -> None:
    arch = str(info.arch)
    if options.split_mode == "tensor" and not lib.pgg_llama_arch_supports_tensor_split(arch.encode()):
        raise UnsupportedError(f"{info.path}: llama.cpp has no tensor split for the architecture {arch!r}; use split_mode='layer' or 'none'")


@contextlib.contextmanager
def _whole(info: GGUFInfo) -> Iterator[Path]:
    """The file, or where it (or a part of it) ends before its tensors do, a sparse copy of its header in full length."""
    begin: dict[Path, int] = {}
    end: dict[Path, int] = {}
    for t in info.tensors:
        begin[t.path] = min(begin.get(t.path, t.offset), t.offset)
        end[t.path] = max(end.get(t.path, 0), t.offset + t.nbytes)
    short = {path for path in end if path.stat().st_size < end[path]}
    if not short:
        yield info.path
        return
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        for path in info.paths:
            copy = Path(folder) / path.name
            if path not in short:
                copy.symlink_to(path.resolve())
                continue
            with path.open("rb") as read, copy.open("wb") as write:
                write.write(read.read(begin[path]))
                write.truncate(end[path])
        yield Path(folder) / info.path.name


class _Loaded:
    """What llama.cpp made of a file; freed without the Model."""

    def __init__(
        self, path: Path, devices: Sequence[Device], rules: Sequence[Rule], options: ModelOptions, progress: Progress | None
    ) -> None:
        self.model: Any = ffi.NULL
        self.ctx: Any = ffi.NULL
        self.meta: Any = None
        self.decisions: dict[str, Decision] = {}
        self._n_batch = options.n_batch
        self._attn_f32 = options.attn_f32
        self._callbacks: list[Callback] = []
        try:
            self._load(path, devices, rules, options, progress)
            self._start(path, options)
        except BaseException:
            self.free()
            raise

    def _load(
        self, path: Path, devices: Sequence[Device], rules: Sequence[Rule], options: ModelOptions, progress: Progress | None
    ) -> None:
        params = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
        listed = ffi.new("ggml_backend_dev_t[]", [*(d.ptr for d in devices), ffi.NULL])
        params.devices = listed
        params.n_gpu_layers = 999 if devices else 0
        params.split_mode = getattr(lib, f"LLAMA_SPLIT_MODE_{options.split_mode.upper()}")
        params.main_gpu = 0
        params.use_extra_bufts = False  # repacked weights round differently; a comparison must compare like with like
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
        shares = ffi.new("float[]", max(lib.llama_max_devices(), MAX_META_DEVICES))
        for j, share in enumerate(options.tensor_split or ()):
            shares[j] = share
        if options.tensor_split is not None:
            params.tensor_split = shares
        # also without a user's function: between two calls Python sees Ctrl-C
        on_progress = self._keep(Callback("progress", _progress_of(progress)))
        params.progress_callback, params.progress_callback_user_data = on_progress.function, on_progress.user_data
        if options.split_mode == "tensor":
            if rules:
                policy = self._keep(Callback("split_policy", _policy_of(tuple(rules), len(devices), self.decisions)))
                lib.pgg_meta_next_policy(policy.function, policy.user_data)
            else:
                lib.pgg_meta_next_policy(ffi.NULL, ffi.NULL)
        try:
            self.model = lib.llama_model_load_from_file(os.fsencode(path), params[0])
            if self.model == ffi.NULL:
                raise _failure(f"llama.cpp cannot load {path}")
        finally:
            if options.split_mode == "tensor":
                # also of a model that failed: llama.cpp never gives a device back
                made = lib.pgg_meta_last_device()
                self.meta = None if made == ffi.NULL else made
                lib.pgg_meta_next_policy(ffi.NULL, ffi.NULL)

    def _start(self, path: Path, options: ModelOptions) -> None:
        params = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
        params.n_ctx = options.n_ctx
        params.n_batch = params.n_ubatch = min(options.n_batch, options.n_ctx)
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = options.threads or default_threads()
        params.flash_attn_type = _FLASH[options.flash_attn]
        params.type_k, params.type_v = as_dtype(options.type_k).type_id, as_dtype(options.type_v).type_id
        params.no_perf = True
        params.abort_callback = lib.pgg_interrupt_abort
        with self._building():
            self.ctx = lib.llama_init_from_model(self.model, params[0])
            if self.ctx == ffi.NULL:  # inside: the next call has other reasons
                raise _failure(f"llama.cpp cannot make a context for {path}")

    def _keep(self, callback: Callback) -> Callback:
        self._callbacks.append(callback)
        return callback

    def decode(self, tokens: npt.NDArray[np.int32], n_past: int, *, all_logits: bool) -> None:
        """Decodes one batch behind n_past tokens."""
        n = len(tokens)
        batch = ffi.new("struct llama_batch *", lib.llama_batch_init(n, 0, 1))
        try:
            batch.n_tokens = n
            ffi.memmove(batch.token, np.ascontiguousarray(tokens, np.int32), 4 * n)
            ffi.memmove(batch.pos, np.arange(n_past, n_past + n, dtype=np.int32), 4 * n)
            ffi.memmove(batch.n_seq_id, np.ones(n, np.int32), 4 * n)
            for i in range(n):
                batch.seq_id[i][0] = 0
            wanted = np.full(n, all_logits, np.int8)
            wanted[-1] = 1
            ffi.memmove(batch.logits, wanted, n)
            with self._building():
                status = lib.llama_decode(self.ctx, batch[0])
                if status != 0:
                    what = {1: "no room in the cache", 2: "interrupted", -1: "an invalid batch"}.get(status, f"status {status}")
                    raise _failure(f"llama_decode of {n} tokens behind {n_past} failed: {what}")
            lib.llama_synchronize(self.ctx)
        finally:
            lib.llama_batch_free(batch[0])

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        # the choice belongs to the thread while llama.cpp builds graphs on it
        lib.pgg_llama_keep_f32(self._attn_f32)
        try:
            yield
        finally:
            lib.pgg_llama_keep_f32(False)

    def fill(self, n_past: int) -> None:
        """Puts that many tokens into the cache."""
        for first in range(0, n_past, self._n_batch):
            n = min(self._n_batch, n_past - first)
            self.decode(np.zeros(n, np.int32), first, all_logits=False)

    @contextlib.contextmanager
    def observe(self, observer: Callable[[str, str, bytes], object]) -> Iterator[None]:
        """Calls the observer for every node that the meta backend computes."""
        if self.meta is None:
            raise UnsupportedError("nodes are observed on meta devices: load the model with split_mode='tensor'")

        def seen(node: Any, data: Any) -> None:
            observer(ffi.string(node.name).decode(), ffi.string(lib.ggml_op_desc(node)).decode(), bytes(data))

        with Callback("node_observer", seen) as callback:
            lib.pgg_meta_observe(self.meta, callback.function, callback.user_data)
            try:
                yield
            finally:
                lib.pgg_meta_observe(self.meta, ffi.NULL, ffi.NULL)

    def free(self) -> None:
        """Frees context and model; the meta device can then be used again."""
        lib.pgg_freeing(True)  # llama.cpp's destructors wait for the devices, also for one that is gone
        try:
            if self.ctx != ffi.NULL:
                lib.llama_free(self.ctx)
                self.ctx = ffi.NULL
            if self.model != ffi.NULL:
                lib.llama_model_free(self.model)
                self.model = ffi.NULL
        finally:
            lib.pgg_freeing(False)
        if self.meta is not None:
            lib.pgg_meta_device_release(self.meta)
            self.meta = None
        for callback in self._callbacks:
            callback.close()


def _progress_of(progress: Progress | None) -> Callable[[float], bool]:
    def call(fraction: float) -> bool:
        if progress is not None:
            progress(float(fraction))
        return True

    return call


def _policy_of(rules: tuple[Rule, ...], n_devices: int, decisions: dict[str, Decision]) -> Any:
    def policy(tensor: Any, state: Any) -> bool:
        info = tensor_info(tensor, DTYPES_BY_ID[tensor.type])
        decision = decide(rules, info, n_devices)
        if decision is None:
            return False  # llama.cpp's own rule
        decisions[info.name] = decision
        write_state(decision.state, state, n_devices)
        return True

    return policy


def _failure(what: str) -> Error:
    """The exception for a NULL or a status of llama.cpp, with the reason that it logged."""
    lines = [line for line in reason() if line.strip()]
    text = what + "".join(f"\n  log: {line}" for line in lines)
    joined = " ".join(lines).lower()
    if "alloc" in joined and ("failed" in joined or "cannot" in joined or "unable" in joined):
        return OutOfMemoryError(text)
    return ModelError(text)


_PROBE = """
import sys
sys.path[:] = sys.argv[3:]
try:
    import pyggml
    pyggml.Model(sys.argv[1], n_ctx=int(sys.argv[2]), n_batch=32).close()
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(1)
"""
_PROBE_SECONDS = 600


def _probe(path: Path, devices: Sequence[Device], options: ModelOptions) -> None:
    """Loads the model on the CPU of a child process, which may die of it."""
    command = [sys.executable, "-c", _PROBE, os.fspath(path), str(min(options.n_ctx, 64)), *sys.path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path}: a trial load in a child process did not end within {_PROBE_SECONDS} s") from None
    if done.returncode != 0:
        said = done.stdout.strip() or (done.stderr.strip().splitlines() or ["no message"])[-1]
        how = f"died of signal {-done.returncode}" if done.returncode < 0 else "failed"
        raise ModelError(f"{path}: a trial load in a child process {how}: {said}")
