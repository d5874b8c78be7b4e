"""`Graph.run` of 1,000 nodes of 64x64 F32 on the CPU, one thread, against a C++ program that does the same.

Inputs and outputs are included: every run writes two inputs of 16 KiB and reads an output of 16 KiB. The C++ program
(graph_run.cpp) is compiled here against the very libraries that Python uses; the two take turns. A chain of additions
(about two microseconds a node) shows what Python adds at its worst; one of matrix products, what is left of it beside real
work. Both sides work on one thread, so the processor time that they take is measured too: unlike the clock, it does not
count the time in which another program had the core.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from _bench import Row, alternate, duration, parser, ratio, show

import pyggml
from pyggml._ffi import _lib

LIBRARIES = Path(_lib.__file__).resolve().parent.parent / "lib"


def build(headers: Path, folder: Path) -> Path:
    """The C++ program, linked to our libraries, whose symbols carry a prefix."""
    symbols = folder / "symbols.h"
    listed = "".join(
        subprocess.run(["nm", "-D", "--defined-only", str(path)], check=True, capture_output=True, text=True).stdout
        for path in LIBRARIES.glob("libpyggml-ggml*")
    )
    found = sorted(set(re.findall(r" T pyggml_(ggml_\w+)$", listed, re.MULTILINE)))
    symbols.write_text("".join(f"#pragma redefine_extname {name} pyggml_{name}\n" for name in found))
    program = folder / "graph_run"
    command = [
        os.environ.get("CXX") or shutil.which("c++") or "g++", "-O3", "-std=c++17", "-include", str(symbols), f"-I{headers}",
        str(Path(__file__).with_suffix(".cpp")), "-o", str(program), f"-Wl,-rpath,{LIBRARIES}",
        *(str(path) for path in sorted(LIBRARIES.glob("libpyggml-ggml*.so"))),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return program


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


def measure(program: Path, op: str, nodes: int, rounds: int, runs: int) -> list[Row]:
    x = ((np.arange(64 * 64, dtype=np.int32) % 7) * 0.25).astype(np.float32).reshape(64, 64)
    w = np.eye(64, dtype=np.float32) if op == "mul_mat" else ((np.arange(64 * 64) % 5) * 0.125).astype(np.float32).reshape(64, 64)
    with pyggml.Graph(pyggml.cpu(), threads=1) as graph, other_side(program, op, nodes) as process:
        y, by = graph.input("x", (64, 64)), graph.input("w", (64, 64))
        for _ in range(nodes):
            y = by @ y if op == "mul_mat" else y + by
        graph.output("y", y)
        out = graph.run(x=x, w=w)["y"]

        def ours() -> Times:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(runs):
                graph.run(x=x, w=w)
            return (time.perf_counter() - wall) / runs, (time.process_time() - cpu) / runs

        ask(process, runs)
        mine, theirs = alternate(rounds, ours, lambda: ask(process, runs))
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        same = float(process.stdout.readline())
        if abs(same - float(out.flat[1])) > 1e-3 * abs(same):
            raise SystemExit(f"{op}: the two sides do not compute the same: {out.flat[1]} and {same}")
    rows = []
    for k, clock in enumerate(("", ", processor time")):
        a, b = [times[k] for times in mine], [times[k] for times in theirs]
        value, spread = ratio(a, b)
        what = f"Graph.run, {nodes} nodes ({op}) of 64x64 F32{clock}"
        rows.append(Row(what, duration(a), f"C++: {duration(b)}", value, 1.03, spread=spread))
    return rows


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    args = parser(__doc__, rounds=61)
    args.add_argument("--runs", type=int, default=30, help="runs in one turn (default: 30; of matrix products a tenth)")
    args.add_argument("--nodes", type=int, default=1000, help="nodes of the graph (default: 1000)")
    args.add_argument("--headers", type=Path, default=here / "vendor/llama.cpp/ggml/include", help="ggml's headers (default: of this checkout)")
    options = args.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        program = build(options.headers, Path(folder))
        turns = (("add", options.runs), ("mul_mat", max(1, options.runs // 10)))
        found = [measure(program, op, options.nodes, options.rounds, runs) for op, runs in turns]
        show([row for rows in found for row in rows], options.json)


if __name__ == "__main__":
    main()
