"""``pyggml trace``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pyggml as gg
from pyggml.cli import main
from pyggml.testing import TinyModel, tiny_gguf

Make = Callable[..., TinyModel]


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["trace", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert ended.value.code == status, err
    return out, err


def test_tables_and_files(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("perfetto")
    files = {name: tmp_path / name for name in ("perfetto", "chrome", "json", "html")}
    given = [x for name, path in files.items() for x in (f"--{name}", path)]
    out, err = run(capsys, tiny("llama").path, "--n-tokens", 9, "-n", 3, "--subgraphs", 2, *given)
    plan = gg.plan_model(tiny("llama").path, "vcpu:2", n_tokens=1)
    assert f"4 runs, {4 * len(plan.allreduces)} all-reduces" in out
    for word in ("VCPU0", "VCPU1", "computing", "waiting for other devices", "host thread", "wait for VCPU0", "slowest of"):
        assert word in out
    assert len(err.splitlines()) == 4 and all(path.stat().st_size > 1000 for path in files.values())
    trace = gg.Trace.from_json(files["json"].read_text())
    assert [r.label for r in trace.runs] == ["llama_decode(9)", *["llama_decode(1)"] * 3]
    assert "VCPU0" in files["html"].read_text()
    assert files["perfetto"].read_bytes()[:1] == b"\x0a", "packets of a protobuf"
    assert json.loads(files["chrome"].read_text())["displayTimeUnit"] == "ns"


def test_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_gguf(tmp_path / "m.gguf", vocab="bytes", n_layer=2).path
    out, _ = run(capsys, model, "-p", "the cat", "-n", 0, "--json", "-", "-dev", "vcpu:3", "-sm", "layer")
    trace = gg.Trace.from_json(out)
    with gg.Model(model) as opened:
        assert [r.label for r in trace.runs] == [f"llama_decode({len(opened.tokenize('the cat'))})"]
    assert any(e.kind == "copy" for e in trace.events), "layers are on several devices"
    cold, _ = run(capsys, model, "-p", "the cat", "-n", 0, "--cold", "--json", "-")
    assert len(gg.Trace.from_json(cold).runs) == 1


def test_what_cannot_be(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = run(capsys, tmp_path / "no.gguf", status=2)
    assert "no.gguf" in err
    _, err = run(capsys, tiny("llama").path, "-dev", "sim:2", status=2)
    assert "simulated" in err
    for name in ("perfetto", "chrome", "json", "html"):  # before anything runs
        _, err = run(capsys, tmp_path / "no.gguf", f"--{name}", tmp_path / "no" / "file", status=2)
        assert "there is no folder" in err
    _, err = run(capsys, tmp_path / "no.gguf", "-sm", "layer", "--html", tmp_path / "page.html", status=2)
    assert "shows times on a plan" in err and not (tmp_path / "page.html").exists()
    for name in [n for n in sys.modules if n.partition(".")[0] == "perfetto"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "perfetto", None)
    out, err = run(capsys, tiny("llama").path, "--perfetto", tmp_path / "x", status=2)
    assert "pip install 'pyggml[trace]'" in err and out == "", "it is said before the model runs"
