"""`Graph.run` of 1,000 nodes of 64x64 F32 on the CPU, one thread, against a C++ program that does the same.

Inputs and outputs are included: every run writes two inputs of 16 KiB and reads an output of 16 KiB. The C++ program
(graph_run.cpp) is compiled here against the very libraries that Python uses; the two take turns. A chain of additions
(about two microseconds a node) shows what Python adds at its worst; one of matrix products, what is left of it beside real
work. Both sides work on one thread, so the processor time that they take is measured too: unlike the clock, it does not
count the time in which another program had the core. Where a graph happens to lie in memory alone makes some percent, so
both sides are made anew several times; and the same C++ code also runs, inside of Python, the very graph that
``Graph.run`` runs, in the same memory, which shows what is Python's share to a percent.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _bench import Row, alternate, duration, parser, ratio, show

import pyggml
from pyggml._ffi import _lib, ffi

LIBRARIES = Path(_lib.__file__).resolve().parent.parent / "lib"


def build(headers: Path, folder: Path) -> tuple[Path, Path]:
    """The C++ side as a program and as a library, linked to our libraries, whose symbols carry a prefix."""
    symbols = folder / "symbols.h"
    listed = "".join(
        subprocess.run(["nm", "-D", "--defined-only", str(path)], check=True, capture_output=True, text=True).stdout
        for path in LIBRARIES.glob("libpyggml-ggml*")
    )
    found = sorted(set(re.findall(r" T pyggml_(ggml_\w+)$", listed, re.MULTILINE)))
    symbols.write_text("".join(f"#pragma redefine_extname {name} pyggml_{name}\n" for name in found))
    made = folder / "graph_run", folder / "graph_run.so"
    for out, how in zip(made, ((), ("-shared", "-fPIC")), strict=True):
        command = [
            os.environ.get("CXX") or shutil.which("c++") or "g++", "-O3", "-std=c++17", *how, "-include", str(symbols),
            f"-I{headers}", str(Path(__file__).with_suffix(".cpp")), "-o", str(out), f"-Wl,-rpath,{LIBRARIES}",
            *(str(path) for path in sorted(LIBRARIES.glob("libpyggml-ggml*.so"))),
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return made


@contextmanager
def other_side(program: Path, op: str, nodes: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([str(program), op, str(nodes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


Times = tuple[float, float]  # by the clock, and of the processor


def ask(process: subprocess.Popen[str], runs: int) -> Times:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{runs}\n")
    process.stdin.flush()
    wall, cpu = process.stdout.readline().split()
    return float(wall) / runs, float(cpu) / runs


def values(op: str) -> tuple[Any, Any]:
    """The same inputs as in the C++ program."""
    i = np.arange(64 * 64)
    w = np.eye(64) if op == "mul_mat" else (i % 5) * 0.125
    return ((i % 7) * 0.25).astype(np.float32).reshape(64, 64), w.astype(np.float32).reshape(64, 64)


def turns(program: Path, library: Path, op: str, nodes: int, rounds: int, runs: int) -> list[list[Times]]:
    """Times of Graph.run, of the C++ program, and of C++ on the same graph."""
    x, w = values(op)
    with pyggml.Graph(pyggml.cpu(), size=nodes + 16, threads=1) as graph, other_side(program, op, nodes) as process:
        y, by = graph.input("x", (64, 64)), graph.input("w", (64, 64))
        for _ in range(nodes):
            y = by @ y if op == "mul_mat" else y + by
        graph.output("y", y)
        out = float(graph.run(x=x, w=w)["y"].flat[1])

        pointers = [graph._state.backend, graph._cgraph, *(t.ptr for t in (*graph.inputs.values(), *graph.outputs.values()))]
        addresses = [ctypes.c_void_p(int(ffi.cast("uintptr_t", p))) for p in pointers]
        second = ctypes.c_float()
        call = ctypes.CDLL(str(library)).runs
        call.restype = ctypes.c_bool

        def timed(work: Callable[[], object]) -> Times:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            return (time.perf_counter() - wall) / runs, (time.process_time() - cpu) / runs

        def ours() -> None:
            for _ in range(runs):
                graph.run(x=x, w=w)

        def same_graph() -> None:
            data = [ctypes.c_void_p(a.ctypes.data) for a in (x, w)]
            if not call(*addresses, *data, runs, ctypes.byref(second)):
                raise SystemExit("the graph failed in C++")

        ask(process, runs)
        found = alternate(rounds, lambda: timed(ours), lambda: ask(process, runs), lambda: timed(same_graph))
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        for other in (float(process.stdout.readline()), second.value):
            if abs(other - out) > 1e-3 * abs(out):
                raise SystemExit(f"{op}: the two sides do not compute the same: {out} and {other}")
    return found


def measure(program: Path, library: Path, op: str, options: argparse.Namespace, runs: int) -> list[Row]:
    pooled: list[list[Times]] = [[], [], []]
    for _ in range(options.instances):
        for all_turns, some in zip(pooled, turns(program, library, op, options.nodes, options.rounds, runs), strict=True):
            all_turns += some
    rows = []
    for other, against in ((1, "C++ program"), (2, "C++, same graph")):
        for k, clock in enumerate(("", ", processor time")):
            a, b = [times[k] for times in pooled[0]], [times[k] for times in pooled[other]]
            value, spread = ratio(a, b)
            what = f"Graph.run, {options.nodes} nodes ({op}) of 64x64 F32{clock}"
            rows.append(Row(what, duration(a), f"{against}: {duration(b)}", value, 1.03, spread=spread))
    return rows


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    args = parser(__doc__, rounds=15)
    args.add_argument("--instances", type=int, default=7, help="how often both sides are made anew (default: 7)")
    args.add_argument("--runs", type=int, default=30, help="runs in one turn (default: 30; of matrix products a tenth)")
    args.add_argument("--nodes", type=int, default=1000, help="nodes of the graph (default: 1000)")
    args.add_argument("--headers", type=Path, default=here / "vendor/llama.cpp/ggml/include", help="ggml's headers (default: of this checkout)")
    options = args.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        program, library = build(options.headers, Path(folder))
        sides = (("add", options.runs), ("mul_mat", max(1, options.runs // 10)))
        found = [measure(program, library, op, options, runs) for op, runs in sides]
        show([row for rows in found for row in rows], options.json)


if __name__ == "__main__":
    main()
