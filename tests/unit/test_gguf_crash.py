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
# tensors that llama.cpp loads if they are there, and uses in any case: one architecture for each rule, or all
LESS = [name for name, arch in ZOO.items() if arch.runs] if WIDE else ["phi3", "qwen3next", "falcon-h1", "kimi-k3", "glm-dsa", "t5"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "bytes with vocabulary", *KINDS])
def test_the_process_survives(kind: str, tmp_path: Path) -> None:
    counts = survived(kind, tmp_path)
    assert sum(counts.values()) >= 200
    # cases of every stage: stopped by the check, by libllama, by nobody as they are harmless
    assert counts["checked"] >= 50
    assert counts["computed"] >= 20
    assert kind.startswith("bytes") or counts["refused"] >= 30


@pytest.mark.slow
@pytest.mark.parametrize("name", LESS)
def test_a_tensor_less(name: str, tmp_path: Path) -> None:
    counts = survived(f"less {name}", tmp_path)
    assert sum(counts.values()) >= 8
    assert WIDE or counts["checked"] >= 1


def survived(kind: str, folder: Path) -> dict[str, int]:
    """How many cases ended how, in a child that lived through all of them."""
    done = subprocess.run(
        [sys.executable, gguf_damage.__file__, kind, str(folder)],
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
    assert done.stdout.count("trying ") == sum(counts.values())
    return {"checked": 0, "refused": 0, "computed": 0, **counts}
