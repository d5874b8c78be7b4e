"""llama.cpp's model: what it made of a file, and the meta device that it made for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .._ffi import ffi, lib, reason
from .._ffi.callbacks import Callback
from .._ffi.interrupts import Held
from ..device import MAX_META_DEVICES, Device
from ..dtype import DTYPES_BY_ID
from ..errors import ClosedError, DeviceLostError, Error, ModelError, OutOfMemoryError, SplitError
from ..gguf_info import GGUFInfo
from ..split import MIRRORED, Decision, Rule, SplitState, decide_or_refuse, read_state, tensor_info, write_state
from .options import ModelOptions, Progress

__all__ = ["LoadedModel", "failure", "freeing", "probe_load", "whole_file"]


class LoadedModel:
    """A ``llama_model`` and its meta device. Freed when the last of its holders, a Model and contexts, lets go of it."""

    def __init__(
        self, path: Path, info: GGUFInfo, devices: Sequence[Device], rules: Sequence[Rule], options: ModelOptions, progress: Progress | None
    ) -> None:
        self.path, self.info, self.devices, self.options = path, info, tuple(devices), options
        self._ptr: Any = ffi.NULL
        self.meta: Any = None
        """The ``ggml_backend_dev_t`` of the meta device; None outside of tensor mode."""
        self.decisions: dict[str, Decision] = {}
        self._callbacks: list[Callback] = []
        self._rules, self._follows = tuple(rules), False
        self._holders, self._lock = 1, threading.Lock()
        try:
            self._load(rules, progress)
        except BaseException:
            self.release()
            raise

    def _load(self, rules: Sequence[Rule], progress: Progress | None) -> None:
        devices, options = self.devices, self.options
        params = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
        listed = ffi.new("ggml_backend_dev_t[]", [*(d.ptr for d in devices), ffi.NULL])
        params.devices = listed
        params.n_gpu_layers = 999 if devices else 0
        params.split_mode = getattr(lib, f"LLAMA_SPLIT_MODE_{options.split_mode.upper()}")
        params.main_gpu = 0
        params.use_extra_bufts = False  # repacked weights round differently; a comparison must compare like with like
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
        shares = ffi.new("float[]", max(lib.llama_max_devices(), MAX_META_DEVICES))
        total = sum(options.tensor_split or (1.0,))
        for j, share in enumerate(options.tensor_split or ()):
            shares[j] = share if 1e-3 <= total <= 1e6 else share / total  # floats
        if options.tensor_split is not None:
            params.tensor_split = shares
        # also without a user's function: between two calls Python sees Ctrl-C
        on_progress = self._keep(Callback("progress", _progress_of(progress)))
        params.progress_callback, params.progress_callback_user_data = on_progress.function, on_progress.user_data
        if options.split_mode == "tensor":
            if rules:
                policy = self._keep(Callback("split_policy", _policy_of(tuple(rules), len(devices), options.tensor_split, self.decisions)))
                lib.pgg_meta_next_policy(policy.function, policy.user_data)
            else:
                lib.pgg_meta_next_policy(ffi.NULL, ffi.NULL)
        lib.pgg_llama_allow_any_arch(bool(rules))  # every placement is proven before it runs, whatever the architecture
        try:
            with Held():
                self._ptr = lib.llama_model_load_from_file(os.fsencode(self.path), params[0])
            if self._ptr == ffi.NULL:
                raise failure(f"llama.cpp cannot load {self.path}")
        finally:
            lib.pgg_llama_allow_any_arch(False)
            if options.split_mode == "tensor":
                # also of a model that failed: llama.cpp never gives a device back
                made = lib.pgg_meta_last_device()
                self.meta = None if made == ffi.NULL else made
                lib.pgg_meta_next_policy(ffi.NULL, ffi.NULL)

    def follow_adapters(self) -> None:
        """From now on the weights of adapters are split as the weights that they belong to; llama.cpp mirrors them."""
        if self.meta is None or self._follows:
            return
        policy = self._keep(Callback("split_policy", _policy_with_adapters(weakref.ref(self))))
        lib.pgg_meta_device_set_policy(self.meta, policy.function, policy.user_data)
        self._follows = True

    def tensor(self, name: str) -> Any:
        """The ``const struct ggml_tensor *`` of a weight; None where llama.cpp has none of that name."""
        found = lib.pgg_llama_tensor(self.ptr, name.encode())
        return None if found == ffi.NULL else found

    def check_servers(self) -> None:
        """Reads a few bytes from every RPC server, where what llama.cpp did last cannot say that one is gone: its destructors.

        Raises:
            DeviceLostError: one is gone.
        """
        few = ffi.new("uint8_t[4]")
        for j, device in enumerate(self.devices):
            if device.backend != "RPC":
                continue
            for t in self.info.tensors:
                part = self.tensor(t.name)
                if part is None or part.buffer == ffi.NULL:
                    continue
                if self.meta is not None:
                    part = lib.pgg_meta_slice(part, j)  # NULL: it is on the host
                elif lib.ggml_backend_buft_get_device(lib.ggml_backend_buffer_get_type(part.buffer)) != device.ptr:
                    continue
                if part != ffi.NULL and lib.ggml_nbytes(part) >= len(few):
                    lib.ggml_backend_tensor_get(part, few, 0, len(few))
                    break

    def _keep(self, callback: Callback) -> Callback:
        self._callbacks.append(callback)
        return callback

    @property
    def ptr(self) -> Any:
        """The ``struct llama_model *``.

        Raises:
            ClosedError: nobody holds it any more.
        """
        if self._ptr == ffi.NULL:
            raise ClosedError(f"the model {self.info.path.name} is closed, and its contexts too")
        return self._ptr

    @property
    def vocab(self) -> Any:
        """The ``const struct llama_vocab *``."""
        return lib.llama_model_get_vocab(self.ptr)

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return int(lib.llama_vocab_n_tokens(self.vocab))

    def hold(self) -> LoadedModel:
        """One holder more."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """One holder less. The last one frees the model; its meta device can then be used again."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        if self._ptr != ffi.NULL:
            with freeing():
                lib.llama_model_free(self._ptr)
            self._ptr = ffi.NULL
        if self.meta is not None:
            lib.pgg_meta_device_release(self.meta)
            self.meta = None
        for callback in self._callbacks:
            callback.close()


@contextlib.contextmanager
def freeing() -> Iterator[None]:
    """llama.cpp's destructors wait for the devices, also for one that is gone: that is no error here."""
    lib.pgg_freeing(True)
    try:
        yield
    finally:
        lib.pgg_freeing(False)


def _progress_of(progress: Progress | None) -> Callable[[float], bool]:
    def call(fraction: float) -> bool:
        if progress is not None:
            progress(float(fraction))
        return True

    return call


def _policy_of(rules: tuple[Rule, ...], n_devices: int, shares: tuple[float, ...] | None, decisions: dict[str, Decision]) -> Any:
    def policy(tensor: Any, state: Any) -> bool:
        info = tensor_info(tensor, DTYPES_BY_ID[tensor.type])
        decision = decide_or_refuse(rules, info, n_devices, shares)
        if decision is None:
            return False  # llama.cpp's own rule
        decisions[info.name] = decision
        write_state(decision.state, state, n_devices)
        return True

    return policy


def _policy_with_adapters(model: weakref.ref[LoadedModel]) -> Any:
    def policy(tensor: Any, state: Any) -> bool:
        loaded = model()
        if loaded is None:
            return False
        n = len(loaded.devices)
        name = ffi.string(tensor.name).decode("utf-8", "replace")
        base, _, factor = name.rpartition(".lora_")
        weight = loaded.tensor(base) if base and factor in ("a", "b") else None
        if weight is None:
            return bool(_policy_of(loaded._rules, n, loaded.options.tensor_split, loaded.decisions)(tensor, state))
        found = ffi.new("struct ggml_backend_meta_split_state *")
        split = read_state(found, n) if lib.pgg_meta_split_state(weight, True, found) else None
        write_state(adapter_split(split, factor), state, n)
        return True

    return policy


def adapter_split(weight: SplitState | None, factor: str) -> SplitState:
    """The split of a factor of ``W + B A``, for that of the weight W: A has its inputs (axis 0), B its outputs (axis 1).

    Experts (axis 2) are those of both. What is split along W's inputs makes A x a partial sum.
    """
    if weight is None or not isinstance(weight.axis, int):
        return MIRRORED
    if weight.axis == 2 or weight.axis == {"a": 0, "b": 1}[factor]:
        return weight
    return MIRRORED


def failure(what: str) -> Error:
    """The exception for a NULL or a status of llama.cpp, with the reason that it logged."""
    lines = [line for line in reason() if line.strip()]
    text = what + "".join(f"\n  log: {line}" for line in lines)
    split = next((line for line in lines if "illegal split at node" in line), None)
    if split is not None:
        found = SplitError.from_message(split[split.index("illegal split at node") :])
        return SplitError(f"{what}: {found}", node=found.node, op=found.op, sources=found.sources, repair=found.repair)
    joined = " ".join(lines).lower()
    if "connection was lost" in joined or "cannot connect:" in joined:  # an RPC server
        return DeviceLostError(text)
    if "alloc" in joined and ("failed" in joined or "cannot" in joined or "unable" in joined):
        return OutOfMemoryError(text)
    return ModelError(text)


@contextlib.contextmanager
def whole_file(info: GGUFInfo) -> Iterator[Path]:
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


def probe_load(path: Path, options: ModelOptions) -> None:
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
