"""docs/how-to-read-a-plan.md: its code runs, and its pictures are what the code prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyggml as gg
from pyggml.testing import tiny_gguf

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "how-to-read-a-plan.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    tiny_gguf(tmp_path / "model.gguf", "llama", shares=((3, 1), (1, 1)))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(first, scope)
    printed = capsys.readouterr().out
    assert "weights" in printed and "because" in printed and "axis 1" in printed
    assert (tmp_path / "plan.html").stat().st_size > 50_000
    with gg.Model("model.gguf", "vcpu:2", split_mode="tensor", n_ctx=8192) as model:
        model.logits([1, 2, 3])
        exec(second, {"gg": gg, "model": model})
    assert "Measured: mean of 1 run<" in (tmp_path / "measured.html").read_text("utf-8")


def test_the_pictures_are_what_is_printed() -> None:
    shown = set(re.findall(r"\(pictures/(.*?)\)", PAGE))
    assert shown == {path.name for path in (DOCS / "pictures").iterdir()}
    assert sum(path.stat().st_size for path in (DOCS / "pictures").iterdir()) < 600_000
    done = subprocess.run([sys.executable, DOCS / "make_pictures.py", "--check"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
