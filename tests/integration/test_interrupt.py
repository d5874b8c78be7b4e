"""Ctrl-C ends what runs, arrives as KeyboardInterrupt, and leaves the devices usable."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, threading, time
# a shell that starts jobs in the background lets them ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
import pyggml as gg

rng = np.random.default_rng(1)
where = gg.cpu() if sys.argv[1] == "cpu" else gg.MetaDevice("vcpu:2", [("w", "S1")])
w = gg.Weights(where, {"w": rng.standard_normal((1024, 1024)).astype("f4")})
X = rng.standard_normal((1024, 1024)).astype("f4")
with gg.Graph(where, threads=1) as g:
    x = g.input("x", (1024, 1024))
    total = (w["w"] @ x).sqr()
    for i in range(2000):  # minutes of work
        total = total + (w["w"] @ (x * (1.0 + i))).sqr()
    g.output("y", total)
    threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        g.run(x=X)
        print("finished")
    except KeyboardInterrupt:
        print("interrupted")
with gg.Graph(where) as g:
    x = g.input("x", (1024, 4))
    g.output("y", w["w"] @ x)
    print("right" if gg.nmse(g.run(x=X[:4])["y"], X[:4] @ w["w"].numpy().T) < 1e-10 else "wrong")
"""


@pytest.mark.parametrize("where", ["cpu", "vcpu"])
def test_ctrl_c_while_a_graph_runs(where: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, where], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["interrupted", "right"], done.stderr
    assert done.returncode == 0


LOST = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
import pyggml as gg
from pyggml import graph, weights

device = gg.virtual_cpus(1)[0]

class Interrupted:
    '''lib, where Ctrl-C comes while one function runs.'''
    def __init__(self, lib, name):
        self.__dict__.update(real=lib, name=name)
    def __getattr__(self, name):
        function = getattr(self.real, name)
        if name != self.name:
            return function
        def call(*arguments):
            self.__dict__["name"] = None
            result = function(*arguments)
            os.kill(os.getpid(), signal.SIGINT)
            return result
        return call

def make_and_run():
    with gg.Weights(device, {"w": np.ones((64, 64), "f4")}) as w, gg.Graph(device) as g:
        g.output("y", w["w"] @ g.input("x", (64, 1)))
        return g.run(x=np.ones((1, 64), "f4"))["y"]

module = {"weights": weights, "graph": graph}[sys.argv[1]]
real, module.lib = module.lib, Interrupted(module.lib, sys.argv[2])
try:
    make_and_run()
    print("nothing")
except KeyboardInterrupt:
    print("interrupted")
module.lib = real
print(device.stats().buffer_bytes, bool((make_and_run() == 64).all()), device.stats().buffer_bytes)
"""


@pytest.mark.parametrize(
    "module, function",
    [
        ("weights", "ggml_backend_alloc_ctx_tensors_from_buft"),
        ("weights", "ggml_backend_buffer_free"),
        ("graph", "ggml_gallocr_new"),
        ("graph", "ggml_backend_synchronize"),
        ("graph", "ggml_gallocr_free"),
    ],
)
def test_ctrl_c_loses_nothing_that_was_just_made(module: str, function: str) -> None:
    """Python raises it when the call returns, before the result is stored, or what is left is freed."""
    done = subprocess.run([sys.executable, "-c", LOST, module, function], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["interrupted", "0", "True", "0"], done.stdout + done.stderr


HELD = """
import os, signal, sys, threading
from pyggml._ffi.interrupts import Held, arrived
signal.signal(signal.SIGINT, signal.default_int_handler)
def press():
    os.kill(os.getpid(), signal.SIGINT)
made = None
try:
    with Held():
        with Held():
            press()
        made = "made"
    made = "too late"
except KeyboardInterrupt:
    print(made)
try:
    with Held():
        press()
        arrived()
        print("not reached")
except KeyboardInterrupt:
    print("at once")
try:
    with Held():
        pass
    print("once only")
    press()
except KeyboardInterrupt:
    print("as before")
signal.signal(signal.SIGINT, signal.SIG_IGN)
with Held():
    press()
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
signal.signal(signal.SIGINT, lambda *a: print("mine"))
with Held():
    press()
    print("waits")
thread = threading.Thread(target=Held().__enter__)
thread.start(), thread.join()
press()
"""


def test_held() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n") == ["made", "at once", "once only", "as before", "True", "waits", "mine", "mine", ""], done.stdout + done.stderr
