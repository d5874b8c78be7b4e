"""Decode through Python (`Context.decode`, logits as numpy), against llama-bench on the same file, devices and libraries.

    python benchmarks/llama_bench.py --build     # once: compiles llama-bench into build/bench, five minutes on two cores
    python benchmarks/llama_bench.py             # a llama of 153M parameters: one CPU device, and tensor mode over two
    python benchmarks/llama_bench.py --model model.gguf --devices CUDA0,CUDA1

llama-bench is loaded with the shared libraries of the pyggml that is measured, so that both sides run the same kernels:
what differs is Python. Each turn of either side is a process of its own (two processes never lie in memory alike): it
loads the model, decodes a token to warm up, and then several times as many tokens as asked for, one by one from an empty
context; random tokens, no repacked weights, flash attention, F16 caches. llama-bench never looks at the logits; `decode`
copies them out.

"generate" is `Context.generate` with greedy sampling, which llama-bench has not: only stated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from _bench import LEFT_OUT, Row, alternate, parser, ratio, show

import pyggml
from pyggml._ffi import _lib
from pyggml.testing.tiny import tiny_gguf

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
LIBRARIES = Path(_lib.__file__).resolve().parent.parent / "lib"
SHAPE = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_head_kv": 4, "head_dim": 64, "n_ff": 3072, "n_vocab": 32000}


@dataclass(frozen=True)
class Case:
    """What one turn measures."""

    path: str
    devices: str | None
    """Words for `pyggml.parse_devices`; None: the CPU alone."""
    mode: str
    threads: int
    """Of the CPU device."""
    tokens: int
    repetitions: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.mode}, {self.devices or f'CPU, {self.threads} threads'}"


def python_turn(case: Case) -> dict[str, list[float]]:
    """Tokens per second of each repetition; runs in a process of its own."""
    with pyggml.Model(
        case.path, case.devices, split_mode=case.mode, n_ctx=case.tokens, threads=case.threads, flash_attn="on"
    ) as model:
        context = model.default_context
        tokens = np.random.default_rng(0).integers(0, model.n_vocab, (case.tokens, 1)).tolist()

        def decode() -> None:
            for token in tokens:
                context.decode(token)

        def generate() -> None:
            n = sum(1 for _ in context.generate(tokens[0], max_tokens=case.tokens, temperature=0, logit_bias=never_ends))
            if n != case.tokens:
                raise SystemExit(f"the model ended its text after {n} of {case.tokens} tokens")

        never_ends = {} if model.vocab.eos is None else {model.vocab.eos: float("-inf")}
        sides: dict[str, Callable[[], None]] = {"decode": decode, "generate": generate}
        taken: dict[str, list[float]] = {name: [] for name in sides}
        context.decode(tokens[0])
        for _ in range(case.repetitions):
            for name, work in sides.items():
                context.clear()
                start = time.perf_counter()
                work()
                taken[name].append(case.tokens / (time.perf_counter() - start))
        return taken


class LlamaBench:
    """The program, run with the libraries that pyggml uses."""

    def __init__(self, program: Path) -> None:
        self.program = program
        libraries = os.pathsep.join(filter(None, (str(LIBRARIES), os.environ.get("LD_LIBRARY_PATH"))))
        self.env = {**os.environ, "LD_LIBRARY_PATH": libraries, "GGML_NO_BACKTRACE": "1"}
        self._check()

    def _check(self) -> None:
        """Stops unless both sides run the same code."""
        listed = subprocess.run(["ldd", str(self.program)], env=self.env, capture_output=True, text=True, check=True).stdout
        loaded = dict(re.findall(r"(libpyggml-\S+) => (\S+)", listed))
        if "libpyggml-llama.so" not in loaded:
            raise SystemExit(f"{self.program} does not use pyggml's libraries: make it with --build")
        for name, path in loaded.items():
            if not (LIBRARIES / name).exists() or not os.path.samefile(path, LIBRARIES / name):
                raise SystemExit(f"{self.program} would load {path}, pyggml has {LIBRARIES / name}: they would not run the same kernels")

    def turn(self, case: Case) -> list[float]:
        """Tokens per second of each repetition."""
        env = dict(self.env)
        devices = pyggml.parse_devices(case.devices) if case.devices else []
        if any(d.is_virtual for d in devices):
            # words of parse_devices number virtual CPUs from 0, with one thread each unless they say more
            of_each = re.findall(r"vcpu:(\d+)(?:x(\d+))?", case.devices or "", re.IGNORECASE)
            env["PYGGML_VCPU"] = str(sum(int(n) for n, _ in of_each))
            env["PYGGML_VCPU_THREADS"] = ",".join(threads or "1" for n, threads in of_each for _ in range(int(n)))
        command = [
            self.program, "-m", case.path, "-p", "0", "-n", str(case.tokens), "-r", str(case.repetitions), "-t", str(case.threads),
            "-dev", "/".join(d.name for d in devices) or "none", "-ngl", "99" if devices else "0", "-sm", case.mode,
            "-fa", "1", "--repack", "0", "-o", "json",
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"llama-bench failed with status {done.returncode}: {done.stderr.strip()[-500:]}")
        (found,) = json.loads(done.stdout)
        if found["build_commit"] != pyggml.build_info().upstream_commit:
            raise SystemExit(f"{self.program} was built of llama.cpp {found['build_commit']}: make it anew with --build")
        return [float(speed) for speed in found["samples_ts"]]


def build(folder: Path) -> None:
    """Compiles llama-bench; ccache is used when it is there. Neither the package nor other build directories are touched."""
    subprocess.run([sys.executable, str(ROOT / "buildtools" / "vendor.py")], check=True)
    options = ["-DPYGGML_BUILD_TOOLS=ON", "-DPYGGML_BINDINGS=OFF"]
    if shutil.which("ninja"):
        options += ["-G", "Ninja"]
    if shutil.which("ccache"):
        options += ["-DCMAKE_C_COMPILER_LAUNCHER=ccache", "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(folder), *options], check=True)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
    subprocess.run(["cmake", "--build", str(folder), "--target", "llama-bench", "--parallel", jobs], check=True)


def measure(bench: LlamaBench, case: Case, what: str, rounds: int) -> list[Row]:
    def ours() -> dict[str, float]:
        command = [sys.executable, str(Path(__file__)), "--worker", json.dumps(asdict(case))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the worker failed with status {done.returncode}")
        return {name: statistics.median(taken) for name, taken in json.loads(done.stdout).items()}

    def theirs() -> dict[str, float]:
        return {"decode": statistics.median(bench.turn(case))}

    mine, other = alternate(rounds, ours, theirs)
    against = [turn["decode"] for turn in other]
    rows = []
    for name, target in (("decode", 0.97), ("generate", None)):
        taken = [turn[name] for turn in mine]
        value, spread = ratio(taken, against)
        rows.append(
            Row(f"{name}, {what}, {case.name}", f"{statistics.median(taken):.1f} tokens/s",
                f"llama-bench: {statistics.median(against):.1f} tokens/s", value, target, at_most=False, spread=spread)
        )  # fmt: skip
    return rows


def main() -> None:
    args = parser(__doc__, rounds=9)
    args.add_argument("--build", action="store_true", help="compile llama-bench and stop")
    args.add_argument("--program", type=Path, default=BUILD / "bin" / "llama-bench", help="llama-bench (default: the one that --build makes)")
    args.add_argument("--model", type=Path, help="a GGUF file (default: random weights in the formats of --dtypes)")
    args.add_argument("--dtypes", nargs="+", default=["f16", "q8_0"], help="formats of random weights (default: f16 q8_0)")
    args.add_argument("--devices", default="vcpu:2", help="for tensor mode (default: vcpu:2)")
    args.add_argument("--modes", nargs="+", default=["none", "tensor"], choices=("none", "tensor"), help="(default: both)")
    args.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU device alone (default: all cores)")
    args.add_argument("--tokens", type=int, default=64, help="tokens that are decoded (default: 64)")
    args.add_argument("--repetitions", type=int, default=3, help="in each turn (default: 3)")
    args.add_argument("--worker", help=argparse.SUPPRESS)
    options = args.parse_args()
    if options.worker:
        print(json.dumps(python_turn(Case(**json.loads(options.worker)))))
        return
    if options.build:
        build(BUILD)
        return
    if not options.program.is_file():
        print(f"there is no {options.program}: python {Path(__file__).name} --build makes it", file=sys.stderr)
        raise SystemExit(LEFT_OUT)
    bench = LlamaBench(options.program)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        for dtype in ["-"] if options.model else options.dtypes:
            path = options.model or tiny_gguf(Path(folder) / f"{dtype}.gguf", dtype=dtype, shares=((1, 1),), **SHAPE).path
            what = options.model.name if options.model else f"153M {dtype}"
            # in tensor mode the CPU device looks up embeddings only; more threads of it would be in the way of virtual CPUs
            for mode in options.modes:
                devices, threads = (None, options.threads) if mode == "none" else (options.devices, 1)
                case = Case(str(path), devices, mode, threads, options.tokens, options.repetitions)
                rows += measure(bench, case, what, options.rounds)
    show(rows, options.json)


if __name__ == "__main__":
    main()
