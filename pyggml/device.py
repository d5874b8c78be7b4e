"""Devices: what ggml can compute on, real, remote, virtual or simulated."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ._arguments import text, whole
from ._ffi import ffi, lib, non_null
from .buffer import BufferType
from .errors import ArgumentError, ClosedError, DeviceError, DeviceLostError, DeviceNotFoundError

__all__ = [
    "Device",
    "DeviceMemory",
    "DeviceStats",
    "cpu",
    "devices",
    "get_device",
    "parse_devices",
    "rpc",
    "simulated",
    "twin",
    "virtual_cpus",
]

MAX_META_DEVICES = 16  # GGML_BACKEND_META_MAX_DEVICES, of an internal header
_MAX_VIRTUAL = 64
_MAX_SIMULATED = 1024  # at once
_MAX_BYTES = (1 << 63) - 1

_TYPES = {
    lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
    lib.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
    lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    lib.GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
    lib.GGML_BACKEND_DEVICE_TYPE_META: "meta",
}

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of a device, in bytes; 0 where the device does not say."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """What one device was asked to do since it was made or reset, counted by the device itself."""

    graph_computes: int
    nodes: int
    allreduces: int
    allreduce_bytes: int
    copies: int
    copy_bytes: int
    sets: int
    set_bytes: int
    gets: int
    get_bytes: int
    buffer_bytes: int
    buffer_bytes_peak: int
    busy_us: int


class Device:
    """One device of ggml. Devices live as long as the process; two objects for the same device are equal."""

    __slots__ = ("_ptr", "_released")

    def __init__(self, ptr: Any) -> None:
        self._ptr = ptr
        self._released = False

    @property
    def ptr(self) -> Any:
        """The ``ggml_backend_dev_t``."""
        if self._released:
            raise ClosedError("this simulated device was released")
        return self._ptr

    @property
    def name(self) -> str:
        """ggml's name, such as ``CUDA0``, ``Vulkan1``, ``VCPU0``."""
        return str(ffi.string(lib.ggml_backend_dev_name(self.ptr)).decode())

    @property
    def description(self) -> str:
        """What the backend says of it, such as the name of the model."""
        return str(ffi.string(lib.ggml_backend_dev_description(self.ptr)).decode())

    @property
    def type(self) -> str:
        """``cpu``, ``gpu``, ``igpu``, ``accel`` or ``meta``."""
        return _TYPES.get(lib.ggml_backend_dev_type(self.ptr), "?")

    @property
    def backend(self) -> str:
        """The name of the backend registry, such as ``CUDA``, ``VCPU``, ``SIM``."""
        reg = lib.ggml_backend_dev_backend_reg(self.ptr)
        return "Meta" if reg == ffi.NULL else str(ffi.string(lib.ggml_backend_reg_name(reg)).decode())

    @property
    def memory(self) -> DeviceMemory:
        """Free and total memory in bytes."""
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        lib.ggml_backend_dev_memory(self.ptr, free, total)
        return DeviceMemory(int(free[0]), int(total[0]))

    @property
    def buffer_type(self) -> BufferType:
        """Where it keeps tensors."""
        return BufferType(lib.ggml_backend_dev_buffer_type(self.ptr))

    @property
    def is_virtual(self) -> bool:
        """Whether it is a virtual CPU device."""
        return bool(lib.pgg_vcpu_is(self.ptr))

    @property
    def is_simulated(self) -> bool:
        """Whether it allocates and computes nothing."""
        return bool(lib.pgg_sim_is(self.ptr))

    @property
    def lost(self) -> str | None:
        """Why the device cannot be used any more, or None while it works. The server of a remote one is asked."""
        if self.backend == "RPC":
            try:
                _ = self.memory
            except DeviceLostError as error:
                return str(error)
        if not self.is_virtual:
            return None
        text = lib.pgg_vcpu_lost(self.ptr)
        return None if text == ffi.NULL else str(ffi.string(text).decode())

    def stats(self) -> DeviceStats:
        """The device's own counters.

        Raises:
            DeviceError: the device is neither virtual nor simulated; others count nothing.
        """
        out = ffi.new("struct pgg_device_stats *")
        if self.is_virtual:
            lib.pgg_vcpu_stats(self.ptr, out)
        elif self.is_simulated:
            lib.pgg_sim_stats(self.ptr, out)
        else:
            raise DeviceError(f"{self.name} does not count what it does; virtual CPU and simulated devices do")
        return DeviceStats(*(int(getattr(out, name)) for name in DeviceStats.__slots__))

    def reset_stats(self) -> None:
        """Sets the counters of a virtual or simulated device to zero (but for the bytes allocated now)."""
        if self.is_virtual:
            lib.pgg_vcpu_stats_reset(self.ptr)
        elif self.is_simulated:
            lib.pgg_sim_stats_reset(self.ptr)

    def release(self) -> None:
        """Gives a simulated device's slot back. Other devices cannot be released."""
        if not self._released and self.is_simulated:
            lib.pgg_sim_release(self.ptr)
            self._released = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self._ptr == other._ptr

    def __hash__(self) -> int:
        return hash(int(ffi.cast("uintptr_t", self._ptr)))

    def __repr__(self) -> str:
        return f"<Device {self.name}: {self.description}>" if not self._released else "<Device (released)>"


def devices(backend: str | None = None) -> list[Device]:
    """The devices that ggml found, in its order.

    Args:
        backend: only those of this backend (``"CUDA"``, ``"Vulkan"``, ``"CPU"``, …), in any case of letters.

    Raises:
        DeviceNotFoundError: there is none of that backend; the message lists what there is.
    """
    found = [Device(lib.ggml_backend_dev_get(i)) for i in range(lib.ggml_backend_dev_count())]
    if backend is None:
        return found
    if not isinstance(backend, str):
        raise ArgumentError(f"devices({backend!r:.80}): the name of a backend is a str, such as 'CUDA'")
    chosen = [d for d in found if d.backend.lower() == backend.lower()]
    if not chosen:
        have = ", ".join(f"{d.name} ({d.backend})" for d in found) or "none"
        raise DeviceNotFoundError(
            f"no device of the backend {backend!r}; found: {have}. Virtual devices come from virtual_cpus(n)"
        )
    return chosen


def cpu() -> Device:
    """The CPU device, all cores."""
    return Device(non_null(lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU), "this build has no CPU device"))


def virtual_cpus(n: int, threads: int = 1, memory: int | None = None, first: int = 0) -> list[Device]:
    """``n`` virtual CPU devices: each computes on threads of its own, at the same time as the others.

    Args:
        n: how many, 1 to 64.
        threads: threads of each device.
        memory: bytes that each may allocate from now on; None or 0: what the host has.
        first: the number of the first one; the same number is always the same device.
    """
    n = whole("virtual_cpus(): n", n, -_MAX_BYTES, _MAX_BYTES)
    first = whole("virtual_cpus(): first", first, -_MAX_BYTES, _MAX_BYTES)
    if n < 1 or first < 0 or first + n > _MAX_VIRTUAL:
        raise ArgumentError(f"virtual_cpus({n}, first={first}): devices 0 to {_MAX_VIRTUAL - 1} are possible")
    threads = whole("virtual_cpus(): threads", threads, 1, 512)
    if memory is not None:
        whole("virtual_cpus(): memory", memory, 0, _MAX_BYTES)
    found = []
    for i in range(first, first + n):
        ptr = non_null(lib.pgg_vcpu_device(i, threads, memory if memory is not None else cpu().memory.total), f"virtual CPU device {i} cannot be made", DeviceError)
        lib.pgg_vcpu_set_threads(ptr, threads)
        found.append(Device(ptr))
    return found


def _simulated(
    name: str,
    description: str,
    memory: int,
    bandwidth: float,
    flops: float,
    twin_of: Device | None,
    comm: bool,
) -> Device:
    params = ffi.new("struct pgg_sim_params *")
    keep = ffi.new("char[]", text("simulated(): the name", name)), ffi.new("char[]", description.encode())
    params.name, params.description = keep
    params.memory = memory
    params.bandwidth, params.flops = bandwidth, flops
    params.twin = ffi.NULL if twin_of is None else twin_of.ptr
    params.comm = comm
    return Device(non_null(lib.pgg_sim_device(params), f"the simulated device {name!r} cannot be made", DeviceError))


def simulated(
    name: str = "SIM",
    *,
    n: int = 1,
    memory: int = 0,
    bandwidth: float = 0.0,
    flops: float = 0.0,
    comm: bool = True,
) -> list[Device]:
    """Devices made from a description: they allocate and compute nothing, and record what they are asked.

    Args:
        name: their name; with ``n`` > 1 a number is appended (``SIM0``; behind a digit ``rtx3090-0``).
        n: how many.
        memory: bytes each has; allocation beyond it fails as on a real device. 0: unlimited.
        bandwidth: of the memory, bytes/s; 0: unknown. It and ``flops`` are kept with the device; nothing is estimated from
            them yet.
        flops: FLOP/s; 0: unknown.
        comm: whether they have an all-reduce of their own (as CUDA with NCCL has), else ggml's butterfly.
    """
    whole("simulated(): n", n, 1, _MAX_SIMULATED)
    whole("simulated(): memory", memory, 0, _MAX_BYTES)
    for what, value in (("bandwidth", bandwidth), ("flops", flops)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
            raise ArgumentError(f"simulated(): {what}={value!r:.40}: expected a finite number, 0 or more")
    if not isinstance(comm, bool):
        raise ArgumentError(f"simulated(): comm={comm!r:.40}: expected True or False")
    about = f"simulated, {memory / _GIB:.1f} GiB" if memory else "simulated"
    return [_simulated(_numbered(name, i) if n > 1 else name, about, memory, bandwidth, flops, None, comm) for i in range(n)]


def _numbered(name: str, i: int) -> str:
    return f"{name}{'-' if name[-1:].isdigit() else ''}{i}"


def twin(real: Device, *, comm: bool = False) -> Device:
    """A simulated device with the name, memory, alignment and op support of a real one."""
    if not isinstance(real, Device):
        raise ArgumentError(f"twin() takes a Device, got {type(real).__name__}")
    memory = real.memory
    return _simulated(real.name, f"simulated twin of {real.description}", memory.total, 0.0, 0.0, real, comm)


def rpc(address: str) -> list[Device]:
    """The devices of an RPC server (``rpc-server`` of llama.cpp) at ``host:port``.

    Raises:
        DeviceError: this build has no RPC, or nobody answers at the address.
    """
    if not hasattr(lib, "ggml_backend_rpc_add_server"):
        raise DeviceError("this build has no RPC backend: build with -C cmake.define.PYGGML_RPC=ON")
    if not isinstance(address, str) or not re.fullmatch(r"[^\s:]+:\d{1,5}", address) or int(address.rpartition(":")[2]) > 65535:
        raise ArgumentError(f"rpc({address!r}): an address is host:port, such as 127.0.0.1:50052")
    reg = non_null(lib.ggml_backend_rpc_add_server(address.encode()), f"the RPC server at {address} does not answer", DeviceError)
    found = [Device(lib.ggml_backend_reg_dev_get(reg, i)) for i in range(lib.ggml_backend_reg_dev_count(reg))]
    for one in found:
        _ = one.memory  # ggml remembers servers: only a question to it shows whether it is still there
    return found


def get_device(name: str) -> Device:
    """One device by ggml's name (``CUDA0``, ``Vulkan1``, ``CPU``, ``VCPU0``: made on demand), in any case of letters. `parse_devices` knows words for
    several.

    Raises:
        DeviceNotFoundError: there is none of that name; the message lists those there are.
    """
    if not isinstance(name, str):
        raise ArgumentError(f"get_device({name!r:.80}): a device's name is a str, such as 'CUDA0'")
    if match := re.fullmatch(r"vcpu(\d{1,18})", name, re.IGNORECASE | re.ASCII):
        return virtual_cpus(1, first=int(match[1]))[0]
    for found in devices():
        if found.name.lower() == name.lower():
            return found
    have = ", ".join(d.name for d in devices())
    kind = name.lower().partition(":")[0]
    words = {"vcpu": "vcpu:2 are two virtual ones, VCPU0 is the first", "sim": "sim:2@24GiB are two simulated ones", "rpc": "rpc:HOST:PORT is a server"}
    hint = words.get(kind) or "; ".join(words.values())
    raise DeviceNotFoundError(f"no device named {name!r}; found: {have}; {hint}" + (f": parse_devices({name!r})" if kind in words else ""))


_SIMULATED = re.compile(
    r"sim:(?:(?P<n>\d{1,18})|(?P<name>[a-z][\w. -]*))(?:@(?P<memory>\d{1,18}(?:\.\d+)?)(?P<unit>[KMGT])?(?:i?B)?)?", re.IGNORECASE | re.ASCII
)
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": _GIB, "T": 1 << 40}


def parse_devices(spec: str | Sequence[Device] | Device) -> list[Device]:
    """Devices from a command line's words.

    ``vcpu:2`` two virtual CPU devices (``vcpu:2x4``: of four threads each), ``sim:2@24GiB`` two simulated ones of that
    memory (without it: unlimited), ``sim:rtx3090@24GiB`` one of that name, ``rpc:host:port`` a server's, ``CUDA`` all of a
    backend, ``CUDA0,Vulkan0`` by name, separated by commas. Virtual and simulated ones are numbered through.
    """
    if isinstance(spec, Device):
        return [spec]
    if not isinstance(spec, str):
        if not isinstance(spec, (list, tuple)) or not all(isinstance(d, Device) for d in spec):
            raise ArgumentError(f"{spec!r:.80} names no devices: expected a str such as 'vcpu:2', a Device, or a list of them")
        return list(spec)
    found: list[Device] = []
    n_virtual = 0
    words = [w.strip() for w in spec.split(",") if w.strip()]
    simulations = [_SIMULATED.fullmatch(word) for word in words]
    # unlike ones together have names to be told apart by, too
    of_name: Counter[str] = Counter()
    for word, m in zip(words, simulations, strict=True):
        if m:
            of_name[m["name"] or "SIM"] += whole(f"{word!r}: simulated devices", int(m["n"] or 1), 1, _MAX_SIMULATED)
    begun: Counter[str] = Counter()
    for word, match in zip(words, simulations, strict=True):
        if match:
            name, unit = match["name"] or "SIM", _UNITS[(match["unit"] or "G").upper()]
            for _ in range(int(match["n"] or 1)):
                one = _numbered(name, begun[name]) if of_name[name] > 1 else name
                found += simulated(one, memory=int(float(match["memory"] or 0) * unit))
                begun[name] += 1
            continue
        if match := re.fullmatch(r"vcpu:(\d{1,18})(?:x(\d{1,18}))?", word, re.IGNORECASE | re.ASCII):
            n = int(match[1])
            found += virtual_cpus(n, threads=int(match[2] or 1), first=n_virtual)
            n_virtual += n
        elif word.lower().startswith("rpc:"):
            found += rpc(word[4:])
        elif word.lower() in {d.backend.lower() for d in devices()} - {d.name.lower() for d in devices()}:
            found += devices(word)
        else:
            found.append(get_device(word))
    if not found:
        raise DeviceNotFoundError(f"{spec!r} names no device; examples: vcpu:2, CUDA0,CUDA1, rpc:127.0.0.1:50052")
    return found


def default_threads() -> int:
    """Threads that a CPU device uses unless told otherwise: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
