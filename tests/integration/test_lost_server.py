"""An RPC server that is killed while a model computes on it: an exception, and every other model of the process goes on."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from split_cases import F32, tokens_of

import pyggml as gg
from pyggml._ffi import lib
from pyggml.testing import TinyModel

pytestmark = pytest.mark.skipif(not hasattr(lib, "ggml_backend_rpc_start_server"), reason="this build has no RPC")

Make = Callable[..., TinyModel]
SERVE = """
import sys
from pyggml import ffi, lib
cpu = ffi.new("ggml_backend_dev_t[]", [lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)])
lib.ggml_backend_rpc_start_server(sys.argv[1].encode(), ffi.NULL, 1, 1, cpu)
"""


class Server:
    """An RPC server of one CPU device."""

    def __init__(self) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, self.address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1000):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"the server does not listen: exit status {self.process.returncode}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    both: list[Server] = []
    try:
        both += (Server() for _ in range(2))
        yield both
    finally:
        for server in both:
            server.kill()


class Working:
    """A model that computes all the time in a thread of its own, and says so; what it computes is looked at."""

    def __init__(self, model: gg.Model, tokens: Any) -> None:
        self.model, self.tokens, self.want = model, tokens, model.logits(tokens)
        self.rounds, self.wrong, self.stop = 0, [], threading.Event()
        self.thread = threading.Thread(target=self._go)

    def _go(self) -> None:
        try:
            while not self.stop.is_set():
                if not np.array_equal(self.model.logits(self.tokens), self.want):
                    self.wrong.append("other logits")
                self.rounds += 1
        except BaseException as error:
            self.wrong.append(repr(error))

    def __enter__(self) -> Working:
        self.thread.start()
        return self

    def more(self, n: int) -> None:
        """Waits until it has computed n times more."""
        until, end = self.rounds + n, time.monotonic() + 30
        while self.rounds < until and not self.wrong:
            assert time.monotonic() < end, "the other model stands still"
            time.sleep(0.002)
        assert not self.wrong

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


@pytest.mark.parametrize("mode", ["tensor", "layer", "none", "tensor beside vcpu"])
def test_another_model_goes_on(tiny: Make, servers: list[Server], mode: str) -> None:
    model = tiny("llama")
    tokens = tokens_of(model, 17)
    first, second = servers
    where = {"none": f"rpc:{first.address}", "tensor beside vcpu": f"rpc:{first.address},vcpu:1"}.get(mode, f"rpc:{first.address},rpc:{second.address}")
    with gg.Model(tiny("llama-moe"), "vcpu:2", split_mode="tensor", **F32) as other, Working(other, tokens_of(tiny("llama-moe"), 9)) as working:
        with gg.Model(model, where, split_mode=mode.split()[0], **{**F32, "n_ctx": 4096}) as lost, gg.Model(model, "vcpu:1", **F32) as one:
            want = one.logits(tokens)
            assert gg.nmse(lost.logits(tokens), want) <= 1e-9
            working.more(2)
            # killed in the middle of a generation, by the clock of the generation itself
            seen = 0
            timer = None
            with pytest.raises(gg.DeviceLostError, match=first.address):
                for token in lost.generate(tokens, temperature=0, logit_bias={}):
                    seen += 1
                    if seen == 3:
                        timer = threading.Timer(0.003, first.kill)
                        timer.start()
                    assert 0 <= token.id < model.n_vocab
            assert timer is not None and seen >= 3
            timer.join()
            working.more(3)
            # what is lost says so again, at once, and can be closed; the rest of the process works
            began = time.monotonic()
            with pytest.raises((gg.DeviceLostError, gg.PoisonedError)):
                lost.logits(tokens)
            assert time.monotonic() - began < 5
            assert np.array_equal(one.logits(tokens), want)
        with gg.Model(model, "vcpu:2", split_mode="tensor", **F32) as again:
            assert gg.nmse(again.logits(tokens), want) <= 1e-9
        if mode != "none":  # the server that lives can be used again
            with gg.Model(model, f"rpc:{second.address}", **F32) as alone:
                assert gg.nmse(alone.logits(tokens), want) <= 1e-9
        with pytest.raises(gg.DeviceError, match=first.address):
            gg.rpc(first.address)
        working.more(2)


@pytest.mark.parametrize("which", [0, 1])
def test_a_graph_on_it_is_closed_as_ever(servers: list[Server], which: int) -> None:
    gone, x = servers[which], np.ones((4, 64), np.float32)
    devices = [d for server in servers for d in gg.rpc(server.address)]
    assert [d.lost for d in devices] == [None, None]
    with gg.MetaDevice(devices, [("w", "S1")]) as meta, gg.Weights(meta, {"w": np.eye(64, dtype=np.float32)}) as weights:
        graph = gg.Graph(meta)
        graph.output("y", weights["w"] @ graph.input("x", (64, 4)))
        assert np.array_equal(graph.run(x=x)["y"], x)
        gone.kill()
        with pytest.raises(gg.DeviceLostError, match=gone.address):
            graph.run(x=x)
        graph.close()  # waits for what is queued, which fails: that was told
        assert graph.closed
    assert devices[1 - which].lost is None
    assert gone.address in (devices[which].lost or "")


@pytest.mark.parametrize("what", ["save", "save of a sequence", "restore", "restore of a sequence", "context", "load"])
@pytest.mark.parametrize("mode", ["tensor", "layer", "none"])
def test_killed_before_its_state_is_wanted(tiny: Make, servers: list[Server], mode: str, what: str) -> None:
    """llama.cpp copies the tensors of states in destructors, out of which an exception would end the process."""
    model, tokens = tiny("llama"), tokens_of(tiny("llama"), 5)
    first, second = servers
    where = f"rpc:{first.address}" if mode == "none" else f"rpc:{first.address},rpc:{second.address}"
    with gg.Model(model, "vcpu:2", split_mode="tensor", **F32) as other, gg.Model(model, where, split_mode=mode, **F32) as lost, lost.context() as context:
        want = other.logits(tokens)
        context.decode(tokens)
        whole, sequence = context.save(), context.save(0)
        context.restore(whole)
        context.restore(sequence, 0)
        (second if mode == "layer" else first).kill()
        calls: dict[str, Callable[[], object]] = {
            "save": context.save, "save of a sequence": lambda: context.save(0), "restore": lambda: context.restore(whole),
            "restore of a sequence": lambda: context.restore(sequence, 0), "context": lost.context,
            "load": lambda: gg.Model(model, where, split_mode=mode, **F32),
        }  # fmt: skip
        with pytest.raises(gg.DeviceLostError):
            calls[what]()
        if what in ("save", "restore"):
            with pytest.raises(gg.PoisonedError):
                context.decode([1])
        assert np.array_equal(other.logits(tokens), want)


def test_killed_within_a_long_prompt(tiny: Make, servers: list[Server]) -> None:
    """Within one call of llama_decode, most of whose work is still to come."""
    model = tiny("llama")
    first, second = servers
    tokens = np.random.default_rng(0).integers(0, model.n_vocab, 4000)
    with gg.Model(model, f"rpc:{first.address},rpc:{second.address}", split_mode="tensor", **{**F32, "n_ctx": 4096, "n_batch": 4096}) as lost:
        timer = threading.Timer(0.05, first.kill)
        timer.start()
        began = time.monotonic()
        with pytest.raises(gg.DeviceLostError, match=first.address):
            for _ in range(50):
                lost.logits(tokens[:500])
                lost.default_context.clear()
        timer.join()
        assert time.monotonic() - began < 30
