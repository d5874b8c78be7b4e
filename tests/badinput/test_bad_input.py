"""Thousands of cases of bad input: each is an exception with a telling message; the process lives, and computes rightly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # gguf_damage

import bad_runner
from bad_kinds import KINDS, SHARDS


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> bad_runner.Report:
    folder = tmp_path_factory.mktemp("bad_input")
    result = bad_runner.run(list(KINDS), folder, SHARDS)
    (folder / "report.json").write_text(json.dumps(result.json(), indent=1))
    print(f"\n{result.table()}\n{folder / 'report.json'}")
    return result


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_kind(report: bad_runner.Report, kind: str) -> None:
    found = report.kinds[kind]
    assert not found.failures, "\n\n".join(found.failures[:20])
    assert found.cases >= 100
    assert found.slowest[0] < 30, found.slowest  # a server that never answers is given up on after 20 s


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all(report: bad_runner.Report, record_property: Any) -> None:
    record_property("bad input", json.dumps(report.json()["kinds"]))
    assert report.cases >= 2000
    assert report.kinds["killed RPC servers"].stages["device"] >= 100
    # every stage that exists catches something, or it is not needed
    stages = {stage for kind in report.kinds.values() for stage in kind.stages}
    assert stages >= {"python check", "file check", "native check", "ggml guard", "ggml or llama.cpp log", "child probe", "device"}
    # those in front are not bypassed: what a kernel or a device must catch is the exception
    assert report.kinds["closed handles"].stages.keys() == {"python check"}
    assert report.kinds["truncated files"].stages.keys() == {"file check"}


def test_a_case_that_ends_the_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: death, hang, silence and a wrong message are failures with the case's description."""
    monkeypatch.setattr(bad_runner, "CASE_TIMEOUT", 3.0)
    report = bad_runner.run(["of the harness"], tmp_path, {})
    kind = report.kinds["of the harness"]
    told = "\n".join(kind.failures)
    assert kind.cases == 2 and kind.harmless == 1
    assert len(kind.failures) == 6, told
    for words in ("dies: the process died (signal SIGSEGV)", "exits: the process died (exit status 3)", "hangs: the process hung", "accepts: nothing was raised",
                  "says nothing: ArgumentError does not name 'the name'", "a wrong class: raised KeyError"):  # fmt: skip
        assert words in told, told
