"""Devices that are not there: names, numbers, backends that were not built, servers that nobody runs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from bad_case import Case

import pyggml as gg
from pyggml.model import plan_model
from pyggml.testing import tiny_gguf

SMALL = {"shares": [(1, 1)], "n_layer": 2, "n_embd": 64, "n_ff": 128, "n_vocab": 64, "head_dim": 16}
ABSENT = (gg.DeviceNotFoundError, gg.DeviceError, gg.ArgumentError)


def unused_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def cases(folder: Path) -> Iterator[Case]:
    path = tiny_gguf(folder / "tiny.gguf", **SMALL).path  # type: ignore[arg-type]
    doors: dict[str, Callable[[str], object]] = {
        "get_device": gg.get_device,
        "parse_devices": gg.parse_devices,
        "MetaDevice": gg.MetaDevice,
        "Model": lambda name: gg.Model(path, name),
        "Model by layers": lambda name: gg.Model(path, name, split_mode="layer"),
        "Model split": lambda name: gg.Model(path, name, split_mode="tensor"),
        "plan_model": lambda name: plan_model(path, name),
    }
    names = (
        "CUDA7", "CUDA99", "Vulkan12", "ROCm0", "Metal", "gpu", "cuda:0", "TPU0", "CPU0", "CPU1", "vcpu", "vcpu:x", "vcpu:-1", "vcpu:99",
        "vcpu:65", "sim:2@lots", "sim:", "é", "a b", "0", "VCPU64",
    )  # fmt: skip
    for name in names:
        for door, call in doors.items():
            if door == "parse_devices" and name == "0":
                continue
            yield Case(f"{door}({name!r})", lambda c=call, n=name: c(n), (name.removeprefix("vcpu:").removeprefix("VCPU"),), ABSENT)
    for name in ("", ",", " , ,", "CPU,CUDA99", "vcpu:2,nothing", "vcpu:0", "sim:0", "sim:99999999999", "vcpu:2x0", "vcpu:2x9999"):
        word = [w for w in name.replace(" ", "").split(",") if w and w != "CPU" and not w.startswith("vcpu:2,")]
        yield Case(f"parse_devices({name!r})", lambda n=name: gg.parse_devices(n), (word[-1].split(":")[-1].split("x")[-1] if word else "vcpu:2",), ABSENT)
    for backend in ("CUDA", "Vulkan", "ROCm", "Metal", "SYCL", "nothing", "", "CPU0", "VCPU9"):
        yield Case(f"devices({backend!r})", lambda b=backend: gg.devices(b), (repr(backend), "CPU"), (gg.DeviceNotFoundError,))
    for n, first in ((0, 0), (-1, 0), (65, 0), (1, 64), (1, -1), (64, 1), (2**40, 0), (2, 63)):
        yield Case(f"virtual_cpus({n}, first={first})", lambda n=n, f=first: gg.virtual_cpus(n, first=f), (str(n), str(first)), ABSENT)
    for threads in (0, -1, 513, 2**40):
        yield Case(f"virtual_cpus(threads={threads})", lambda t=threads: gg.virtual_cpus(1, threads=t), (str(threads),), ABSENT)
    two = gg.virtual_cpus(2)
    for devices, word in (([], "0 devices"), ([two[0], two[0]], "VCPU0"), (gg.virtual_cpus(17), "17"), ([*two, two[1]], "VCPU1")):
        yield Case(f"MetaDevice of {word}", lambda d=devices: gg.MetaDevice(d), (word,), ABSENT)
    yield Case("MetaDevice with a device twice", lambda: gg.MetaDevice("VCPU0,VCPU0"), ("VCPU0",), ABSENT)

    addresses = [f"127.0.0.1:{unused_port()}" for _ in range(8)] + ["127.0.0.1:0", "127.0.0.1:1", "localhost:1", "no-such-host.invalid:50052", "127.0.0.1:65535"]
    for address in addresses:
        yield Case(f"rpc({address!r})", lambda a=address: gg.rpc(a), (address,), ABSENT)
        yield Case(f"parse_devices('rpc:{address}')", lambda a=address: gg.parse_devices(f"vcpu:1,rpc:{a}"), (address,), ABSENT)
    for address in ("", ":", "host", "host:", ":50052", "a:b", "1:2:3", "host:99999999", "a b:1", "127.0.0.1:-1", "http://host:1", "127.0.0.1:70000"):
        yield Case(f"rpc({address!r})", lambda a=address: gg.rpc(a), (repr(address),), (gg.ArgumentError,))
        if address:
            yield Case(f"Model on rpc:{address!r}", lambda a=address: gg.Model(path, f"rpc:{a}"), (address,), ABSENT)
    # somebody listens, but does not speak the protocol
    quiet = socket.create_server(("127.0.0.1", 0))
    yield Case("rpc to a port that never answers", lambda: gg.rpc(f"127.0.0.1:{quiet.getsockname()[1]}"), (str(quiet.getsockname()[1]),), ABSENT)
