"""Prove that a model split over unlike backends computes what one CPU computes.

    python examples/unlike_backends.py                           # what this machine has
    python examples/unlike_backends.py model.gguf --devices CUDA0,Vulkan1

Devices of several kinds can be one meta device: a GPU and the CPU, Vulkan beside CUDA, a machine across the network (RPC).
They have no all-reduce in common, so ggml's "butterfly" sums for them: copies between pairs of devices, and additions.
Each kind also has kernels of its own, which round differently. So there are two questions, and it helps to keep them apart:

    how far is one backend from the CPU?       its kernels; splitting has no part in it
    how far is the split model from the CPU?   kernels and splitting; not much further than the worst of the kernels alone

Without --devices this takes a virtual CPU, and beside it the first of these that there is: another backend's device, such as
Vulkan's; an RPC server, which it starts on this machine; a virtual CPU with two threads. It says which.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyggml as gg
from pyggml.model_comparison import default_tolerance
from pyggml.testing import tiny_gguf

# llama.cpp's rpc-server in one line: it offers this machine's CPU
SERVER = """
import sys, pyggml as gg
gg.lib.ggml_backend_rpc_start_server(sys.argv[1].encode(), gg.ffi.NULL, 1, 1, gg.ffi.new("ggml_backend_dev_t[]", [gg.cpu().ptr]))
"""


@contextlib.contextmanager
def rpc_server() -> Iterator[gg.Device]:
    """A server in a process of its own, and its device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with subprocess.Popen([sys.executable, "-c", SERVER, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield connect(address, server)
        finally:
            server.kill()


def connect(address: str, server: subprocess.Popen[bytes]) -> gg.Device:
    end = time.monotonic() + 30
    while True:
        try:
            return gg.rpc(address)[0]
        except gg.DeviceError:  # it has not started yet
            if time.monotonic() > end or server.poll() is not None:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def unlike_devices() -> Iterator[list[gg.Device]]:
    """A virtual CPU and, if possible, a device of another backend."""
    first = gg.virtual_cpus(1)[0]
    others = [d for d in gg.devices() if d.type in ("gpu", "igpu") and not d.is_virtual]
    if others:
        yield [first, others[0]]
    elif gg.build_info().options["RPC"]:
        with rpc_server() as other:
            yield [first, other]
    else:
        yield [first, *gg.virtual_cpus(1, threads=2, first=1)]


def verify(path: Path, devices: list[gg.Device]) -> None:
    print("devices: " + ", ".join(f"{d.name} ({d.backend}: {d.description})" for d in devices))
    if len({d.backend for d in devices}) == 1:
        print("all of one backend: nothing else was found here")
    tokens = list(range(1, 33))
    with gg.Model(path) as cpu:
        worst = 0.0
        for device in devices:
            with gg.Model(path, device, split_mode="tensor") as alone:  # tensor mode over one device: nothing is split
                found = gg.compare_models(alone, cpu, tokens, tolerance=1e-2).check()  # kernels may round as they like, within limits
                print(f"{device.name} alone: NMSE {found.nmse:.2g}")
                worst = max(worst, found.nmse)
        with gg.Model(path, devices, split_mode="tensor") as split:
            # what pyggml allows for these formats on one backend; or three times what the kernels alone make of it
            tolerance = max(default_tolerance(split, cpu), 3 * worst)
            reductions = split.plan().allreduces
            print(f"split: {len(reductions)} all-reduces for each token, by {reductions[0].how}")
            print(gg.compare_models(split, cpu, tokens, tolerance=tolerance).check())
            if worst == 0:
                print("the kernels are the same, so every node can be held against one device's:")
                with gg.Model(path, devices[:1], split_mode="tensor") as one:
                    print(gg.compare_nodes(split, one, tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, help="the model (default: a tiny one)")
    parser.add_argument("--devices", help="such as CUDA0,Vulkan1 or vcpu:1,rpc:10.0.0.2:50052 (default: what there is)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = args.gguf or tiny_gguf(Path(folder) / "tiny.gguf", shares=((1, 1),)).path
        devices = gg.parse_devices(args.devices) if args.devices else stack.enter_context(unlike_devices())
        verify(path, devices)


if __name__ == "__main__":
    main()
