"""What the README shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyggml as gg
from pyggml.testing import tiny_gguf

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [text for word, text in BLOCKS if word == kind]


def without_noise(text: str) -> list[str]:
    """Rounding differs from one CPU to the next."""
    return [re.sub(r"\d\.\d+e-\d+", "N", line).rstrip() for line in text.strip().splitlines()]


def test_the_script_is_the_example_and_prints_what_is_shown() -> None:
    example = ROOT / "examples" / "split_and_look.py"
    assert blocks("python")[0].strip() in example.read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, str(example)], check=True, capture_output=True, text=True, timeout=120)
    assert without_noise(done.stdout) == without_noise(blocks("text")[0])


def test_the_error_is_the_one_that_is_raised() -> None:
    meta = gg.MetaDevice(gg.virtual_cpus(2), [gg.rule("ffn_up", "S1 3:1"), gg.rule("ffn_down", "S0")])
    values = {"ffn_up": np.ones((256, 64), np.float32), "ffn_down": np.ones((64, 256), np.float32)}
    with gg.Weights(meta, values) as weights, gg.Graph(meta) as graph:
        graph.output("y", weights["ffn_down"] @ (weights["ffn_up"] @ graph.input("x", (64, 8))).silu())
        with pytest.raises(gg.SplitError) as caught:
            graph.plan()
    assert f"SplitError: {caught.value}".split() == blocks("text")[1].split()


def test_the_models_part_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_gguf(tmp_path / "model.gguf", shares=((3, 1), (1, 1)))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"gg": gg}
    exec(blocks("python")[1], scope)
    assert scope["logits"].shape[0] == 4  # type: ignore[attr-defined]
    assert scope["context"].n_past(1) == 3  # type: ignore[attr-defined]
    for name in ("context", "mine", "model"):
        scope[name].close()  # type: ignore[attr-defined]
