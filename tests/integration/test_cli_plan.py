"""`pyggml plan`: questions about a plan, what differs from another, what would be refused, files."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import pyggml as gg
from pyggml.cli import cli
from pyggml.plan.diff import ASPECTS
from pyggml.testing import TinyModel, tiny_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return tiny_gguf(tmp_path_factory.mktemp("plan") / "m.gguf", n_layer=3, shares=((3, 1),))


def plan(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["plan", *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments)])
    if result.exception is not None and not isinstance(result.exception, (SystemExit, OSError, gg.Error)):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def before(model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("before") / "before.json"
    assert plan(model, "-ts", "3,1", "--json", path, "--detail", "layers").exit_code == 0
    return path


def test_diff_says_what_a_rule_changes(model: TinyModel, before: Path) -> None:
    same = plan(model, "-ts", "3,1", "--diff", before)
    assert same.exit_code == 0 and "no difference" in same.stdout
    other = plan(model, "-ts", "3,1", "--rule", "ffn=M", "--diff", before)
    assert other.exit_code == 1
    lines = [line.split() for line in other.stdout.splitlines()]
    assert ["all-reduces", "6", "3", "-3"] in lines
    assert ["ffn_out-N", "MUL_MAT", "0-2", "split", "P", "M"] in lines
    assert any(line[:4] == ["after", "ffn_out-N", "0-2", "removed"] for line in lines)
    assert any(line[:2] == ["VCPU0", "memory"] for line in lines)
    # the other way round: what was before is what the file says
    back = plan(model, "-ts", "3,1", "--rule", "ffn=M", "--json", "-").stdout
    assert json.loads(back)["schema"].startswith("pyggml.plan/")


def test_aspects_are_left_out(model: TinyModel, before: Path, tmp_path: Path) -> None:
    d = json.loads(before.read_text())
    d["devices"] = ["A", "B"]
    for name, m in zip("AB", d["memory"]):
        m["name"], m["compute"] = name, 1
    other = tmp_path / "other.json"
    other.write_text(json.dumps(d))
    assert plan(model, "-ts", "3,1", "--diff", other).exit_code == 1
    assert plan(model, "-ts", "3,1", "--diff", other, "--ignore", "memory").exit_code == 1
    assert plan(model, "-ts", "3,1", "--diff", other, "--ignore", "memory", "--ignore", "devices").exit_code == 0
    assert plan(model, "--ignore", "memory").exit_code == 2
    (option,) = [p for p in cli.commands["plan"].params if p.name == "ignored"]
    assert tuple(option.type.choices) == ASPECTS


def test_check_lists_everything_that_is_wrong(model: TinyModel) -> None:
    rules = ["--rule", "ffn_up=S0", "--rule", "attn_q.weight=S0"]
    refused = plan(model, *rules, "--check")
    assert refused.exit_code == 1
    assert "Qcur-0" in refused.stdout and "ffn_up-0" in refused.stdout and "legal repair" in refused.stdout
    unchecked = plan(model, *rules)  # rules of one's own: all is said without being asked
    assert unchecked.exit_code != 0 and "--check" not in unchecked.stderr
    assert "Qcur-0" in str(unchecked.exception) and "ffn_up-0" in str(unchecked.exception) and "legal repair" in str(unchecked.exception)
    legal = plan(model, "--check")
    assert legal.exit_code == 0 and "legal" in legal.stdout and "all-reduce" not in legal.stdout
    both = plan(model, *rules, "--check", "--explain", "ffn_out-1")
    assert both.exit_code == 1 and "has no plan" in both.stderr
    quiet = plan(model, "--check", "--json", "-")
    assert json.loads(quiet.stdout)["devices"] == ["VCPU0", "VCPU1"] and "legal" in quiet.stderr


def test_explain_and_picture(model: TinyModel, before: Path) -> None:
    said = plan(model, "-ts", "3,1", "--rule", "ffn_(up|gate)=S1 3:1", "--rule", "ffn_down=S0 3:1", "--explain", "ffn_out-1", "--explain", "norm-0")
    assert said.exit_code == 0
    assert "`ffn_out-1` is partial" in said.stdout and "your rule 2" in said.stdout and "`norm-0`" in said.stdout
    assert "ffn_out-0" not in said.stdout and "memory" not in said.stdout, "what was asked for, and nothing else"
    found = gg.SplitPlan.from_json(before.read_bytes())
    assert str(found.explain(7)) in plan(before, "--explain", 7).stdout
    drawn = plan(before, "--picture", "blk.0.ffn_up.weight")
    assert drawn.exit_code == 0 and str(found.picture("blk.0.ffn_up.weight")).splitlines()[0] in drawn.stdout
    wrong = plan(before, "--explain", "ffn_outt-1")
    assert wrong.exit_code != 0 and "ffn_out-1" in str(wrong.exception)


def test_a_stored_plan_is_shown_without_its_model(model: TinyModel, before: Path) -> None:
    assert plan(before).stdout == plan(model, "-ts", "3,1").stdout
    assert plan(before, "--diff", before).exit_code == 0
    for option in (["--check"], ["--rule", "ffn=M"], ["-ts", "1,1"], ["-n", 4], ["-dev", "vcpu:2"]):
        refused = plan(before, *option)
        assert refused.exit_code == 2 and " needs the model" in refused.stderr, option
    assert plan(before, "--no-fold", "--detail", "all").exit_code == 0
    tree = plan(before, "--tree", "--detail", "layers")
    assert tree.exit_code == 0 and "layers 0, 1 (2 x)" in tree.stdout


def test_files(before: Path, tmp_path: Path) -> None:
    found = gg.SplitPlan.from_json(before.read_bytes())
    files = {name: tmp_path / f"plan.{name}" for name in ("html", "json", "csv", "dot", "mermaid")}
    shown = plan(before, *(word for name, path in files.items() for word in (f"--{name}", path)))
    assert shown.exit_code == 0 and "all-reduce" in shown.stdout
    assert all(f"{name} written to {path}" in shown.stderr for name, path in files.items())
    assert gg.SplitPlan.from_json(files["json"].read_bytes()) == found
    rows = list(csv.reader(io.StringIO(files["csv"].read_text(encoding="utf-8"))))
    assert len(rows) == 1 + len(found.nodes) + len(found.leafs)
    assert files["html"].read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert files["dot"].read_text(encoding="utf-8").startswith("digraph") and "flowchart" in files["mermaid"].read_text(encoding="utf-8")
    for name in files:
        alone = plan(before, f"--{name}", "-")
        assert alone.exit_code == 0 and alone.stdout.rstrip("\r\n") == files[name].read_bytes().decode().rstrip("\r\n").replace("\r\n", "\n" if name != "csv" else "\r\n"), name
    assert plan(before, "--json", "-", "--tree").exit_code == 2
    assert plan(before, "--json", "-", "--csv", "-").exit_code == 2


def test_what_is_no_plan(tmp_path: Path, model: TinyModel) -> None:
    (tmp_path / "x.json").write_text('{"schema": "pyggml.plan/9"}')
    for arguments in ([tmp_path / "x.json"], [model, "--diff", tmp_path / "x.json"], [model, "--diff", tmp_path / "none.json"]):
        refused = plan(*arguments)
        assert refused.exit_code != 0 and ("x.json" in str(refused.exception) or "none.json" in (str(refused.exception) + refused.stderr))


def test_names_that_are_no_text_are_written_escaped(before: Path, tmp_path: Path) -> None:
    d = json.loads(before.read_text())
    d["nodes"][0]["name"] = "no\udcfftext"
    strange = tmp_path / "strange.json"
    strange.write_text(json.dumps(d))
    for option in ("html", "json", "csv", "dot", "mermaid"):
        done = plan(strange, f"--{option}", tmp_path / option, "--detail", "all", "--picture", 1)
        assert done.exit_code == 0, done.exception
        assert "no\\udcfftext" in (tmp_path / option).read_text("utf-8")
