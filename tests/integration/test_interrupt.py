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
