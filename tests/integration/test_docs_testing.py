"""What docs/testing.md and docs/plan-diff.md show is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyggml as gg

ROOT = Path(__file__).parents[2]


def blocks(page: str, kind: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [body for word, body in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL) if word == kind]


def pytest_in(folder: Path, *options: str) -> str:
    home = str(Path(gg.__file__).parents[1])
    paths = [home] if home in map(os.path.abspath, sys.path) else []
    paths += [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    plugin = ("-p", "no:pyggml", "-p", "pyggml.testing.pytest_plugin", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "-q", *plugin, *options]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, timeout=240).stdout


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_the_tests_shown_pass_and_fail_as_they_say(tmp_path: Path) -> None:
    source = blocks("testing.md", "python")[0]
    path = tmp_path / "test_split.py"
    path.write_text(source, encoding="utf-8")
    assert "4 passed" in pytest_in(tmp_path, "--pyggml-update")
    assert (tmp_path / "plans" / "llama.json").exists()
    assert "4 passed" in pytest_in(tmp_path)
    path.write_text(source.replace("tensor_split=(3, 1), n_ctx", "tensor_split=(1, 1), n_ctx"), encoding="utf-8")
    said = lines(pytest_in(tmp_path, "-k", "as_it_was").replace(f"{tmp_path}{os.sep}", ""))
    shown = [line for line in lines(blocks("testing.md", "text")[0]) if line != "…"]
    assert len(shown) > 15
    at = [said.index(line) for line in shown if line != "E"]
    assert at == sorted(at)


def test_the_difference_shown_is_the_one_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(blocks("plan-diff.md", "python")[0], scope)
    assert "Change(what='all-reduces', before=4, after=2)" in capsys.readouterr().out
    from pyggml.cli import main
    from pyggml.testing import tiny_gguf

    tiny_gguf("tiny.gguf", vocab="bytes", n_layer=2)
    for more in (["--json", "before.json"], ["--rule", "ffn=M", "--diff", "before.json"]):
        with pytest.raises(SystemExit):
            main(["plan", "tiny.gguf", "-dev", "vcpu:2", "-ts", "3,1", *more])
    said = lines(capsys.readouterr().out)
    shown = lines(blocks("plan-diff.md", "text")[0])
    assert said[-len(shown) :] == shown
