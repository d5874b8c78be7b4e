"""The command line as a whole: help is quick and complete, errors are messages, the documentation's commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import pyggml as gg
from pyggml.cli import cli, main
from pyggml.testing import tiny_gguf

ROOT = Path(__file__).parents[2]
COMMANDS = [
    line.strip()
    for name in ("README.md", "docs/cli.md")
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    if re.match(r"    pyggml \w", line)
]


def test_help_loads_no_native_code() -> None:
    script = "import sys; from pyggml.cli import main\ntry:\n    main(['--help'])\nfinally:\n    print(sorted({'numpy', 'rich', 'pyggml._ffi', 'pyggml.model'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]"


def test_commands_are_in_the_documentation() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(cli.commands) == set(re.findall(r"`(?:pyggml )?(\w+)`", text.split("Options carry")[0]))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_shown_can_be_read(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").touch()
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(command)
    found = cli.commands[name]
    with found.make_context(name, list(arguments)) as context:
        assert context.params.keys() == {p.name for p in found.params if p.expose_value}


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and "Usage: pyggml" in capsys.readouterr().out
    for parameter in cli.commands[name].params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_errors_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["plan", "nowhere.gguf"], ["bench", "nowhere.gguf"], ["compare", "nowhere.gguf"], ["run", "nowhere.gguf", "-p", "x"], ["demo", "--arch", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert re.match(r"pyggml: \w+Error: ", capsys.readouterr().err)


# --- llama.cpp's command lines


def pyggml(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyggml", *arguments]
    encoding = environment.get("PYTHONIOENCODING")
    return subprocess.run(command, capture_output=True, text=True, encoding=encoding, timeout=120, env={**os.environ, **environment})


def test_words_of_llama_cpps_command_lines(tmp_path: Path) -> None:
    model = str(tiny_gguf(tmp_path / "m.gguf", shares=((3, 1),)).path)
    common = ["-dev", "vcpu:2", "-sm", "tensor", "-ts", "3,1", "-c", "256"]
    plain = pyggml("plan", model, *common, "--json", "-")
    for words in (["-m", model, "-ngl", "99", "-fa", "1"], [f"--model={model}", "-ngl", "all", "-fa", "on"], [model, "--gpu-layers=999", "-fa", "enabled"]):
        assert pyggml("plan", *words, *common, "--json", "-").stdout == plain.stdout
    for words, said in ((["-ngl", "3"], "all layers"), (["-fa", "perhaps"], "on, off or auto"), (["-fa", "0"], "flash attention")):
        refused = pyggml("plan", model, *common, *words)
        assert refused.returncode == 2 and said in refused.stderr


def test_rules_out_of_a_plan_and_back(tmp_path: Path) -> None:
    model = str(tiny_gguf(tmp_path / "m.gguf", shares=((3, 1),)).path)
    rules = tmp_path / "rules.json"
    first = pyggml("plan", model, "-dev", "vcpu:2", "-ts", "3,1", "--save-rules", str(rules), "--detail", "layers")
    assert first.returncode == 0 and rules.exists()
    again = pyggml("plan", model, "-dev", "vcpu:2", "--rule", f"@{rules}", "--detail", "layers")
    assert again.stdout == first.stdout
    layer = pyggml("plan", model, "-dev", "vcpu:2", "--rule", "1:ffn_=M", "--json", "-")
    plan = gg.SplitPlan.from_json(layer.stdout)
    assert len(plan.allreduces) == 3 and plan.achieved_shares("blk.0.ffn_down.weight") and not plan.achieved_shares("blk.1.ffn_down.weight")
    missing = pyggml("plan", model, "--rule", "@nothing.json")
    assert missing.returncode == 2 and "nothing.json" in missing.stderr


@pytest.mark.parametrize("shares", ["inf,1", "nan,1", "1e18,1", "0,0", "-1,2", "1.5,1"])
def test_shares_that_the_demo_cannot_make(shares: str) -> None:
    refused = pyggml("demo", f"-ts={shares}")
    assert refused.returncode == 2 and "whole numbers" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_outputs_of_few_characters(tmp_path: Path, encoding: str) -> None:
    """Tables and trees have lines that ASCII has not."""
    model = str(tiny_gguf(tmp_path / "m.gguf", shares=((1, 1),)).path)
    for words in (["plan", model], ["plan", model, "--tree"], ["trace", model, "-dev", "vcpu:2", "-n", "2"]):
        done = pyggml(*words, PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and "Traceback" not in done.stderr
        assert "all-reduce" in done.stdout
