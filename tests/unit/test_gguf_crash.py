"""What `check_gguf` lets through does not crash llama.cpp: loaded and run in a child that must survive all of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gguf_damage
import pytest

from pyggml.testing import ZOO

WIDE = bool(os.environ.get("PYGGML_TEST_WIDE"))  # every architecture: twenty minutes
KINDS = [*gguf_damage.KINDS, *(name for name, arch in ZOO.items() if WIDE and arch.runs and arch.kind == "decoder" and name not in gguf_damage.KINDS)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "bytes with vocabulary", *KINDS])
def test_the_process_survives(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, gguf_damage.__file__, kind, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # the package that is tested here
    )
    assert done.returncode == 0, done.stdout[-600:] + done.stderr[-600:]
    last = done.stdout.rstrip().splitlines()[-1]
    counts = {what: int(n) for what, n in re.findall(r"(\w+)=(\d+)", last)}
    assert last.startswith("done")
    assert done.stdout.count("trying ") == sum(counts.values()) >= 200
    # cases of every stage: stopped by the check, by libllama, by nobody as they are harmless
    assert counts["checked"] >= 50
    assert counts["computed"] >= 20
    assert kind.startswith("bytes") or counts["refused"] >= 30
