"""The benchmarks run; how fast anything is, no test asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyggml.testing import tiny_gguf

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def run(*arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}  # the pyggml that is tested here
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, timeout=250, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_says_what_it_measures(name: str) -> None:
    assert "usage:" in run(str(FOLDER / f"{name}.py"), "--help")


@pytest.mark.parametrize(
    "arguments",
    [
        ("bindings_call", "--rounds", "1", "--calls", "100"),
        ("import_time", "--rounds", "1"),
        ("transfer", "--rounds", "1", "--mib", "1"),
        ("graph_run", "--rounds", "1", "--instances", "1", "--runs", "1", "--nodes", "50"),
        ("model_speed", "--rounds", "1", "--dtypes", "q8_0", "--prompt", "8", "--tokens", "2"),
        ("plan_speed", "--rounds", "1", "--preset", "mixtral-8x7b"),
        ("plan_value", "--rounds", "1", "--layers", "3", "--devices", "sim:2"),
        ("trace_cost", "--rounds", "1", "--models", "tiny", "--tokens", "2"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_each_measures_a_little(arguments: tuple[str, ...]) -> None:
    rows = json.loads(run(str(FOLDER / f"{arguments[0]}.py"), *arguments[1:], "--json"))
    assert rows and all(row["value"] > 0 for row in rows)


def test_python_beside_llama_bench(tmp_path: Path) -> None:
    program = FOLDER.parent / "build" / "bench" / "bin" / "llama-bench"
    if not program.is_file():
        pytest.skip("no llama-bench: python benchmarks/llama_bench.py --build")
    tiny = tiny_gguf(tmp_path / "tiny.gguf", shares=((1, 1),))
    options = ("--rounds", "1", "--model", str(tiny.path), "--tokens", "3", "--repetitions", "1", "--threads", "1", "--json")
    rows = json.loads(run(str(FOLDER / "llama_bench.py"), *options))
    assert [row["what"].split(",")[0] for row in rows] == ["decode", "generate"] * 2
    assert all(row["value"] > 0 for row in rows)


def test_pythons_side_of_llama_bench(tmp_path: Path) -> None:
    tiny = tiny_gguf(tmp_path / "tiny.gguf", shares=((1, 1),))
    case = {"path": str(tiny.path), "devices": "vcpu:2", "mode": "tensor", "threads": 1, "tokens": 3, "repetitions": 2}
    taken = json.loads(run(str(FOLDER / "llama_bench.py"), "--worker", json.dumps(case)))
    assert {name: len(speeds) for name, speeds in taken.items()} == {"decode": 2, "generate": 2}
    assert all(speed > 0 for speeds in taken.values() for speed in speeds)


def test_without_llama_bench_it_is_left_out(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "llama_bench.py"), "--program", str(tmp_path / "none")], check=False, capture_output=True, text=True, env=env, timeout=60
    )
    assert done.returncode == 77  # run.py goes on to the next one
    assert "--build makes it" in done.stderr and not done.stdout


def test_all_in_one_table() -> None:
    text = run(str(FOLDER / "run.py"), "bindings_call")
    assert "| a call (ggml_nelements), times as fast |" in text
