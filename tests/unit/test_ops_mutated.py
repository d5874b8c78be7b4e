"""Sources with wrong sizes and formats give a node that runs, or an exception: never a dead process.

The cases of test_ops_values with their arrays changed at random, in a worker that writes down each case before it
tries it, so that a crash is a failing example like any other.
"""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

PER_CASE = 20
FORMATS = ["f4", "f2", "i4", "i8"]


def mutated(array: np.ndarray, rng: random.Random) -> np.ndarray:
    shape, dtype = list(array.shape), array.dtype
    axis = rng.randrange(len(shape))
    kind = rng.choice(["size", "size", "swap", "format", "axis"])
    if kind == "size":
        n = shape[axis]
        shape[axis] = rng.choice([1, 2, 3, 2 * n, n + 1, max(1, n - 1), max(1, n // 2)])
    elif kind == "swap":
        other = rng.randrange(len(shape))
        shape[axis], shape[other] = shape[other], shape[axis]
    elif kind == "format":
        dtype = np.dtype(rng.choice(FORMATS))
    elif len(shape) < 4:
        shape.insert(0, rng.choice([1, 2, 3]))
    if dtype.kind != "f" and array.dtype.kind == "f":
        return np.zeros(shape, dtype)
    return np.resize(array, shape).astype(dtype)


def work(report: Path) -> None:
    import test_ops_values as values

    import pyggml as gg

    counts: collections.Counter[str] = collections.Counter()
    for number, case in enumerate(values.CASES):
        rng = random.Random(number)
        for _ in range(PER_CASE if case.arrays else 0):
            arrays = list(case.arrays)
            for _ in range(rng.choice([1, 1, 2])):
                i = rng.randrange(len(arrays))
                arrays[i] = mutated(arrays[i], rng)
            report.write_text(f"{case}: {[(a.shape[::-1], a.dtype.name) for a in arrays]}")
            try:
                values.compute(case.build, tuple(arrays))
                counts["ran"] += 1
            except gg.Error as error:
                counts[type(error).__name__] += 1
    report.write_text(json.dumps(counts))


def test_wrong_sources_are_refused_or_run(tmp_path: Path) -> None:
    report = tmp_path / "case"
    here = Path(__file__).resolve()
    # glibc then notices a heap that was written beyond its blocks
    env = os.environ | {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the same pyggml as here
    done = subprocess.run(
        [sys.executable, str(here), str(report)], env=env, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.returncode} at {report.read_text()}\n{done.stderr[-2000:]}"
    counts = json.loads(report.read_text())
    assert sum(counts.values()) > 3000
    assert min(counts["ran"], counts["ShapeError"], counts["DTypeError"]) > 300
    # what only the kernel refuses (conversions that a device lacks)
    assert counts.get("GGMLAbort", 0) < 0.01 * sum(counts.values())


if __name__ == "__main__":
    work(Path(sys.argv[1]))
