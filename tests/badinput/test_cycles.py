"""Memory does not grow: things are created, run and closed a thousand times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cycles
import pytest

LIMIT = 5 << 20


@pytest.mark.slow
@pytest.mark.parametrize("what", cycles.KINDS)
def test_memory_stays(what: str) -> None:
    n = 1000
    done = subprocess.run(
        [sys.executable, str(Path(cycles.__file__)), what, str(n)],
        capture_output=True, text=True, check=False, timeout=250,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    growth, threads, files = map(int, done.stdout.split())
    assert growth < LIMIT, f"{n} cycles of {what} took {growth / n:.0f} bytes each"
    assert threads < 16
    assert files < 32
