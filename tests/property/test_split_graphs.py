"""Any small graph, split any way, is refused with the name of a node, or right: never wrong, never a crash."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from split_graphs import graph_cases

from pyggml.testing.graph_cases import OPS, GraphCase, Leaf, Outcome, Step, judge

HERE = Path(__file__).parent
CORPUS = sorted((HERE / "corpus").glob("*.json"))
TIMEOUT = 30.0

# NMSE. In F32 only the order of sums differs. Weights of other formats round activations too, and a sum in another order
# may end on the next step: one of int8 is 1/127 of a block's largest value.
TOLERANCE = {"f32": 1e-9, "f16": 1e-5, "q8_0": 2e-3, "q4_0": 2e-3}


class Worker:
    """A process that judges; a new one where it died."""

    def __init__(self, script: str = "case_worker.py") -> None:
        self.script = script
        self.process: subprocess.Popen[str] | None = None

    def judge(self, case: GraphCase, log: Path) -> Outcome:
        return Outcome(**self.ask(case.to_json(), log))

    def ask(self, line: str, log: Path) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-P" if sys.version_info >= (3, 11) else "-u", os.fspath(HERE / self.script)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip
            self.answers: queue.Queue[str] = queue.Queue()
            threading.Thread(target=self._read, args=(self.process, self.answers), daemon=True).start()
        assert self.process.stdin is not None
        log.write_text(line)  # before it runs: what kills even this process is known
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        try:
            said = self.answers.get(timeout=TIMEOUT)
        except queue.Empty:
            self.close()
            raise AssertionError(f"hangs: {line}") from None
        if not said:
            status = self.process.wait()
            self.process = None
            raise AssertionError(f"ended the process, status {status}: {line}")
        answer: dict[str, Any] = json.loads(said)
        assert "outcome" in answer, f"{answer['error']}\n{line}"
        return dict(answer["outcome"])

    @staticmethod
    def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(line)
        answers.put("")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()
            self.process = None


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


SEEN: Counter[str] = Counter()


def check(case: GraphCase, outcome: Outcome) -> None:
    assert not outcome.wrong, f"{outcome.wrong}\n{case.to_json()}"
    if outcome.beyond:
        return
    if outcome.refused:
        assert "legal repair: " in outcome.refused, f"no repair is named: {outcome.refused}\n{case.to_json()}"
        return
    tolerance = max(TOLERANCE[leaf.dtype] for leaf in case.leafs if leaf.kind != "rows")
    # a step that is badly conditioned (a norm of almost nothing) costs one device as much
    tolerance = max(tolerance, 100 * outcome.nmse_base if tolerance < 1e-6 else 0)
    assert outcome.nmse_base <= 1e-2, f"one device and numpy compute something else: {outcome}\n{case.to_json()}"
    assert outcome.nmse_one <= tolerance, f"{outcome}\n{case.to_json()}"
    assert outcome.nmse_exact <= max(tolerance, 4 * outcome.nmse_base), f"{outcome}\n{case.to_json()}"


@given(case=graph_cases())
def test_refused_or_right(worker: Worker, tmp_path_factory: pytest.TempPathFactory, case: GraphCase) -> None:
    outcome = worker.judge(case, tmp_path_factory.getbasetemp() / "last-case.json")
    what = "refused" if outcome.refused else "beyond F16" if outcome.beyond else f"ran with {min(outcome.allreduces, 3)} sums"
    event(what)
    SEEN[what] += 1
    for step in case.steps:
        SEEN["op " + step.op] += 1
    if any(leaf.split != "M" for leaf in case.leafs):
        SEEN["split"] += 1
        SEEN["split and " + ("refused" if outcome.refused else "ran")] += 1
    check(case, outcome)


def test_what_was_generated() -> None:
    """After the search: all operations came up, splits ran, sums were made, and some were refused."""
    if not SEEN:
        pytest.skip("the search did not run")
    assert {op for op in OPS if not SEEN["op " + op]} == set()
    assert SEEN["split and ran"] > 80 and SEEN["refused"] > 20, SEEN
    assert sum(n for what, n in SEEN.items() if what.startswith("ran with") and "0" not in what) > 40, SEEN


@pytest.mark.parametrize("file", CORPUS, ids=lambda p: p.stem)
def test_corpus(worker: Worker, file: Path, tmp_path: Path) -> None:
    """What has failed once."""
    case = GraphCase.from_json(file.read_text())
    check(case, worker.judge(case, tmp_path / "case.json"))


# --- the judge is judged


def linear_chain(shares: tuple[int, ...] = (3, 1), down: str = "S0 3:1") -> GraphCase:
    leafs = (Leaf((64, 4, 1, 1), kind="input"), Leaf((64, 128, 1, 1), "S1 3:1"), Leaf((128, 64, 1, 1), down))
    steps = (Step("mul_mat", (1, 0)), Step("silu", (3,)), Step("mul_mat", (2, 4)))
    return GraphCase(shares, leafs, steps, (2,))


def test_a_case_survives_json() -> None:
    case = linear_chain()
    assert GraphCase.from_json(case.to_json()) == case


def test_the_judge_accepts_what_is_right() -> None:
    outcome = judge(linear_chain())
    assert not outcome.refused and not outcome.wrong and outcome.allreduces == 1
    check(linear_chain(), outcome)


def test_the_judge_sees_a_refusal() -> None:
    assert "down" not in judge(linear_chain(down="M")).refused
    assert "'out2'" in judge(linear_chain(down="M")).refused


def test_the_judge_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that forgets a device's summand is what a missing all-reduce looks like."""
    from pyggml.testing import graph_cases as kit

    case = linear_chain()
    right = kit.OPS["mul_mat"]

    def forgetful(a: Any, b: Any) -> Any:
        return right.numpy(a[..., :96], b[..., :96])  # type: ignore[misc]

    monkeypatch.setitem(kit.OPS, "mul_mat", kit.Op(right.build, right.shape, forgetful))  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        check(case, judge(case))
