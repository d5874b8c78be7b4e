"""What happens to the process: Ctrl-C, fork, and the end of the interpreter with everything still open."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyggml.testing import tiny_gguf

PREPARE = """
import os, signal, sys, threading, time
# a shell that starts jobs in the background lets them ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
import pyggml as gg
path, where = sys.argv[1], sys.argv[2]
mode = {"cpu": "none", "vcpu:2": "tensor"}[where]
def model(**more):
    return gg.Model(path, None if where == "cpu" else where, split_mode=mode, n_ctx=2048, n_batch=2048, threads=1, **more)
def device(rules=()):
    return gg.cpu() if where == "cpu" else gg.MetaDevice(where, rules)
def graph(n=256):
    w = gg.Weights(d := device([("up", "S1"), ("down", "S0")]), {"up": np.eye(n, dtype="f4"), "down": np.eye(n, dtype="f4")})
    g = gg.Graph(d, size=600, threads=1)
    y = g.input("x", (n, n))
    for _ in range(100):
        y = w["down"] @ (w["up"] @ y)
    g.output("y", y)
    return g, w, np.ones((n, n), "f4")
"""

LOOPS = {
    "model runs": "m = model()\nsay()\nwhile True: m.logits(np.arange(2000) % 60)",
    "model loads": "say()\nwhile True: model().close()",
    "graph runs": "g, w, x = graph()\ng.run(x=x)\nsay()\nwhile True: g.run(x=x)",
    "graphs are made": "say()\nwhile True:\n    g, w, x = graph(16)\n    g.run(x=x)\n    g.close()\n    w.close()",
    "weights are uploaded": "a = {str(i): np.ones((256, 1024), 'f4') for i in range(64)}\nd = device()\nsay()\nwhile True: gg.Weights(d, a).close()",
    "plans are made": "g, w, x = graph()\nsay()\nwhile True: g.plan()",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # large enough that a decode of 2,000 tokens takes seconds
    folder = tmp_path_factory.mktemp("models")
    return tiny_gguf(folder / "model.gguf", shares=[(1, 1)], n_layer=8, n_embd=256, n_ff=1024, n_vocab=64, head_dim=32).path


def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", f"import sys; sys.path[:] = {sys.path!r}\n" + PREPARE + code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _end(child: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
    try:
        return child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)
        try:
            _, where = child.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            _, where = child.communicate()
        pytest.fail(f"it did not end within {timeout} s: {where[-3000:]}")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cpu", "vcpu:2"])
@pytest.mark.parametrize("what", LOOPS)
def test_ctrl_c(path: Path, what: str, where: str) -> None:
    if what == "plans are made" and where == "cpu":
        pytest.skip("a plan runs on simulated devices wherever the graph is")
    body = "".join(f"    {line}\n" for line in LOOPS[what].splitlines())
    code = f"say = lambda: print('ready', flush=True)\ntry:\n{body}except KeyboardInterrupt:\n    print('interrupted', flush=True)\n"
    # the devices are as good as before
    code += "g, w, x = graph(16)\nprint(bool((g.run(x=x)['y'] == 1).all()), flush=True)\n"
    child = _start(code, path, where)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n", child.communicate()[1]
    time.sleep(0.35)
    child.send_signal(signal.SIGINT)
    sent = time.monotonic()
    said = child.stdout.readline()
    took = time.monotonic() - sent
    rest, errors = _end(child, 20)
    assert said == "interrupted\n", errors
    assert took < 2, f"KeyboardInterrupt came after {took:.2f} s"
    assert rest.split() == ["True"], errors
    assert child.returncode == 0, errors


@pytest.mark.parametrize("where", ["cpu", "vcpu:2"])
def test_ctrl_c_that_nobody_catches(path: Path, where: str) -> None:
    child = _start("m = model()\nprint('ready', flush=True)\nwhile True: m.logits(np.arange(500) % 60)", path, where)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, errors = _end(child, 10)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert child.returncode == -signal.SIGINT


FORK = """
import warnings
warnings.simplefilter("ignore")
g, w, x = graph(16)
g.run(x=x)
m = model()
m.logits([1, 2, 3])
# threads of native code are busy while the process forks
stop = []
def busy():
    h, v, y = graph(64)
    while not stop:
        h.run(x=y)
thread = threading.Thread(target=busy)
thread.start()
time.sleep(0.05)
acts = [
    lambda: g.run(x=x), lambda: g.plan(), lambda: w["up"].numpy(), lambda: m.logits([1]), lambda: gg.devices(), lambda: gg.cpu(),
    lambda: gg.Graph(gg.cpu()), lambda: gg.MetaDevice("vcpu:2"), lambda: model(), lambda: gg.quantize(np.ones((1, 32), "f4"), "q8_0"),
    lambda: gg.virtual_cpus(3), lambda: gg.simulated("X"), lambda: gg.rpc("127.0.0.1:1"), lambda: m.close(), lambda: g.close(), lambda: w.close(),
]
for i in range(5):
    pid = os.fork()
    if pid == 0:
        said = []
        for act in acts:
            try:
                act()
                said.append("nothing")
            except gg.ForkError as error:
                said.append("ForkError" if "fork" in str(error).lower() else str(error))
            except BaseException as error:
                said.append(repr(error))
        print(i, *[s for s in said if s != "ForkError"], sep=",", flush=True)
        if i % 2:
            os._exit(0)
        sys.exit(0)
    end = time.monotonic() + 15
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, 9)
            print("the child hangs", flush=True)
            break
        time.sleep(0.01)
stop.append(1)
thread.join()
assert (g.run(x=x)["y"] == 1).all()
m.logits([1])
print("parent works")
"""


@pytest.mark.parametrize("where", ["cpu", "vcpu:2"])
def test_fork(path: Path, where: str) -> None:
    child = _start(FORK, path, where)
    said, errors = _end(child, 100)
    lines = said.split("\n")
    assert lines[-2] == "parent works", said + errors
    # closing and what needs no native code may pass in silence; nothing else
    for i in range(5):
        number, *others = lines[i].split(",", 1)
        assert number == str(i), said + errors
        assert set(",".join(others).split(",")) <= {"nothing", ""}, said
        assert ",".join(others).split(",").count("nothing") <= 3, said
    assert (child.returncode, errors) == (0, "")  # children that end say nothing: what their handles own is the parent's


EXITS = {
    "open handles": "g, w, x = graph()\ng.run(x=x)\nm = model()\nm.logits([1, 2])\nkeep = [g, w, m]",
    "handles in a cycle": "g, w, x = graph()\ng.run(x=x)\nm = model()\nclass C: pass\nc = C(); c.c = c; c.all = [g, w, m]\ndel g, w, m",
    "handles in a module": "import types\ng, w, x = graph()\nsys.modules['hold'] = h = types.ModuleType('hold')\nh.g, h.w, h.m = g, w, model()",
    "tensors of handles that are gone": "g, w, x = graph()\nt = w['up'].slices() + [w['up']]\ndel g, w",
    "a thread that runs": "def go():\n    g, w, x = graph()\n    while True: g.run(x=x)\nthreading.Thread(target=go, daemon=True).start()\ntime.sleep(0.3)",
    "a thread that runs a model": "def go():\n    m = model()\n    while True: m.logits(np.arange(200) % 60)\nthreading.Thread(target=go, daemon=True).start()\ntime.sleep(0.5)",
    "two threads that run": "def go():\n    g, w, x = graph()\n    while True: g.run(x=x)\nfor _ in range(2): threading.Thread(target=go, daemon=True).start()\ntime.sleep(0.3)",
    "a thread that loads": "def go():\n    while True: model().close()\nthreading.Thread(target=go, daemon=True).start()\ntime.sleep(0.3)",
    "an exception": "g, w, x = graph()\ng.run(x=x)\nsys.exit(0)",
    "a graph that failed": "g, w, x = graph(16)\ntry: g.run(y=x)\nexcept gg.Error: pass\ng2 = gg.Graph(device([('w', 'S0')]), size=16)\n",
    "loggers": "import logging\nlogging.basicConfig(level=logging.DEBUG, stream=open(os.devnull, 'w'))\nm = model()\nm.logits([1])",
}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cpu", "vcpu:2"])
@pytest.mark.parametrize("what", EXITS)
def test_the_interpreter_ends(path: Path, what: str, where: str) -> None:
    child = _start(EXITS[what] + "\nprint('end', flush=True)" if what != "an exception" else "print('end', flush=True)\n" + EXITS[what], path, where)
    said, errors = _end(child, 20)
    assert said == "end\n", errors
    assert child.returncode == 0, errors
    # a daemon thread that is late may find its handles closed
    assert errors == "" or ("thread" in what and "ClosedError" in errors and "Fatal" not in errors), errors
