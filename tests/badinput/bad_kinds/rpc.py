"""RPC servers that are killed while they compute, and what is done with their devices afterwards."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_case import Case, Unexpected

import pyggml as gg
from pyggml.testing import tiny_gguf

from .devices import unused_port

LOST = (gg.DeviceLostError,)
_SERVE = """
import sys
from pyggml import ffi, lib
cpu = ffi.new("ggml_backend_dev_t[]", [lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)])
lib.ggml_backend_rpc_start_server(sys.argv[1].encode(), ffi.NULL, 1, 1, cpu)
"""


class Server:
    """An RPC server on a port of its own, started again after each kill."""

    def __init__(self) -> None:
        self.address = f"127.0.0.1:{unused_port()}"
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Starts it; `ready` waits for it."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen([sys.executable, "-c", _SERVE, self.address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ready(self) -> Server:
        self.begin()
        assert self.process is not None
        for _ in range(1000):
            with socket.socket() as s:
                host, port = self.address.split(":")
                if s.connect_ex((host, int(port))) == 0:
                    return self
            if self.process.poll() is not None:
                raise Unexpected(f"the server at {self.address} ended by itself")
            time.sleep(0.02)
        raise Unexpected(f"the server at {self.address} does not listen")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _until_it_dies(run: Callable[[], object], victim: Server, delay: float) -> None:
    """Runs until the server is gone; the error of the run in which it went, or of the next one, comes out."""
    timer = threading.Timer(delay, victim.kill)
    timer.start()
    end = time.monotonic() + 20
    try:
        while time.monotonic() < end:
            run()
    finally:
        timer.join()
    raise Unexpected("no run failed within 20 s although the server was killed")


def _graph(device: Any, n: int, layers: int) -> tuple[gg.Graph, gg.Weights]:
    weights = gg.Weights(device, {"a": np.eye(n, dtype=np.float32), "b": np.eye(n, dtype=np.float32)})
    graph = gg.Graph(device, size=64, threads=1)
    y = graph.input("x", (n, n))
    for _ in range(layers):
        y = weights["b"] @ (weights["a"] @ y)
    graph.output("y", y)
    return graph, weights


def _use(device: Any, n: int, layers: int, victim: Server, delay: float) -> None:
    graph, weights = _graph(device, n, layers)
    x = np.arange(n * n, dtype=np.float32).reshape(n, n) % 7

    def run() -> None:
        if not np.array_equal(graph.run(x=x)["y"], x):
            raise Unexpected("a run beside a dying server is wrong")

    try:
        run()
        _until_it_dies(run, victim, delay)
    except gg.Error:
        try:
            graph.run(x=x)
        except (gg.PoisonedError, gg.DeviceLostError):
            pass
        else:
            raise Unexpected("the graph on the lost device still runs") from None
        raise
    finally:
        graph.close()
        weights.close()


def _afterwards(victim: Server) -> Iterator[tuple[str, Callable[[], object]]]:
    """Nobody answers any more."""
    device = gg.rpc(victim.ready().address)[0]
    victim.kill()
    yield "a graph", lambda: gg.Graph(device, size=8)
    yield "weights", lambda: gg.Weights(device, {"w": np.ones(4, np.float32)})
    yield "the server's devices", lambda: gg.rpc(victim.address)
    yield "a meta device's weights", lambda: gg.Weights(gg.MetaDevice([*gg.virtual_cpus(1), device], [("w", "S0")]), {"w": np.ones(4, np.float32)})
    yield "the memory", lambda: device.memory


def cases(folder: Path) -> Iterator[Case]:
    rng = random.Random(4)
    servers = [Server() for _ in range(4)]
    try:
        yield from _cases(folder, rng, servers)
    finally:
        for server in servers:
            if server.process is not None and server.process.poll() is None:
                server.kill()


def _cases(folder: Path, rng: random.Random, servers: list[Server]) -> Iterator[Case]:
    path = tiny_gguf(folder / "tiny.gguf", shares=[(1, 1)], n_layer=2).path
    for server in servers:
        server.begin()
    for number in range(104):
        first, second = servers[number % 4], servers[(number + 1) % 4]
        delay = rng.choice((0.0, 0.001, 0.004, 0.01, 0.02)) * (0.5 + rng.random())
        n, layers = rng.choice(((16, 1), (64, 8), (256, 8), (512, 4)))
        what = f"kill {number} after {delay * 1000:.1f} ms: "

        def alone(first: Server = first, n: int = n, layers: int = layers, delay: float = delay) -> None:
            _use(gg.rpc(first.ready().address)[0], n, layers, first, delay)

        def together(first: Server = first, second: Server = second, n: int = n, layers: int = layers, delay: float = delay) -> None:
            devices = [*gg.rpc(first.ready().address), *gg.rpc(second.ready().address)]
            with gg.MetaDevice(devices, [("a", "S1"), ("b", "S0")]) as meta:
                _use(meta, n, layers, first, delay)

        def beside(first: Server = first, n: int = n, layers: int = layers, delay: float = delay) -> None:
            with gg.MetaDevice([*gg.virtual_cpus(1), *gg.rpc(first.ready().address)], [("a", "S1"), ("b", "S0")]) as meta:
                _use(meta, n, layers, first, delay)

        def model(first: Server = first, second: Server = second, delay: float = delay, number: int = number) -> None:
            mode = ("tensor", "layer")[number // 5 % 2]
            with gg.Model(path, f"rpc:{first.ready().address},rpc:{second.ready().address}", split_mode=mode, n_ctx=64, threads=1) as m:
                right = m.logits([1, 2, 3])

                def run() -> None:
                    if not np.array_equal(m.logits([1, 2, 3]), right):
                        raise Unexpected("logits beside a dying server are wrong")

                _until_it_dies(run, first, delay)

        label, act = (("a graph", alone), ("a graph over two servers", together), ("a graph", alone), ("a graph over vcpu and a server", beside), ("a model", model))[number % 5]
        names = (first.address,)
        yield Case(f"{what}{label}, n={n}", act, names, LOST)
        if number % 8 == 0:
            for name, use in _afterwards(first):
                yield Case(f"after kill {number}: {name}", use, (first.address,), LOST)
        first.begin()
