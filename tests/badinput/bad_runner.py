"""Runs all cases in worker processes and counts them by kind and by the stage that caught them.

``python tests/badinput/bad_runner.py [--json FILE] [KIND...]`` prints the table; exit status 1 if a case failed.
A worker that dies or says nothing for a while is a failure of the case that it was at; the next one goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CASE_TIMEOUT = 40.0  # seconds without a line; RPC gives up on a silent server sooner
PARALLEL = 2


@dataclass
class Kind:
    """What came of the cases of one kind."""

    name: str
    stages: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    harmless: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, str] = (0.0, "")

    @property
    def cases(self) -> int:
        """Refused as they must be; harmless ones do not count."""
        return sum(self.stages.values())


@dataclass
class Report:
    kinds: dict[str, Kind]

    @property
    def cases(self) -> int:
        return sum(k.cases for k in self.kinds.values())

    def table(self) -> str:
        stages = sorted({s for k in self.kinds.values() for s in k.stages}, key=lambda s: -sum(k.stages[s] for k in self.kinds.values()))
        rows = [["kind", "cases", *stages, "harmless", "failed", "s"]]
        for k in self.kinds.values():
            rows.append([k.name, str(k.cases), *(str(k.stages[s] or "") for s in stages), str(k.harmless or ""), str(len(k.failures)), f"{k.seconds:.0f}"])
        rows.append(["all", str(self.cases), *(str(sum(k.stages[s] for k in self.kinds.values())) for s in stages),
                     str(sum(k.harmless for k in self.kinds.values())), str(sum(len(k.failures) for k in self.kinds.values())), ""])  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in rows)

    def json(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "kinds": {
                k.name: {
                    "cases": k.cases, "stages": dict(k.stages), "errors": dict(k.errors), "harmless": k.harmless,
                    "failures": k.failures, "seconds": round(k.seconds, 1), "slowest": k.slowest,
                }
                for k in self.kinds.values()
            },
        }  # fmt: skip


def run(names: Sequence[str], folder: Path, shards: dict[str, int]) -> Report:
    report = Report({name: Kind(name) for name in names})
    jobs = [(name, i, shards.get(name, 1)) for name in names for i in range(shards.get(name, 1))]
    with ThreadPoolExecutor(PARALLEL) as pool:
        for name, lines in pool.map(lambda job: (job[0], _work(*job, folder)), jobs):
            _count(report.kinds[name], lines)
    return report


def _count(kind: Kind, lines: list[dict[str, Any]]) -> None:
    what = {}
    for line in lines:
        if "what" in line:
            what[line["number"]] = line["what"]
        elif "failed" in line:
            kind.failures.append(f"{line.get('number', '')} {what.get(line.get('number'), '')}: {line['failed']}")
        elif line.get("error"):
            kind.stages[line["stage"]] += 1
            kind.errors[line["error"]] += 1
            kind.slowest = max(kind.slowest, (line["seconds"], line["what"] if "what" in line else what[line["number"]]))
        elif "stage" in line:
            kind.harmless += 1
        elif "took" in line:
            kind.seconds += line["took"]


def _work(kind: str, shard: int, of: int, folder: Path) -> list[dict[str, Any]]:
    """Workers until all cases have run; at most 20, because a kind that kills each of them is broken anyway."""
    log = folder / f"{kind}.{shard}.jsonl"
    log.touch()
    first, extra, start = 0, [], time.monotonic()
    paths = [str(HERE), str(HERE.parent / "unit"), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for _ in range(20):
        output = folder / f"{kind}.{shard}.out"
        with output.open("w") as out:
            worker = subprocess.Popen(
                [sys.executable, str(HERE / "bad_worker.py"), kind, str(shard), str(of), str(first), str(folder)],
                stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip
            hung = _watch(worker, log)
        lines = _read(log)
        if not hung and worker.returncode == 0 and lines and lines[-1].get("done"):
            break
        at = max((line["number"] for line in lines if "number" in line), default=first - 1)
        how = "hung" if hung else f"died ({_death(worker.returncode)})"
        said = output.read_text(errors="replace")[-1500:]
        where = "" if lines and "what" in lines[-1] else " behind this case"
        extra.append({"number": at, "failed": f"the process {how}{where}: {said}"})
        first = at + 1
    else:
        extra.append({"failed": "too many workers died: the remaining cases did not run"})
    return [*_read(log), *extra, {"took": time.monotonic() - start}]


def _watch(worker: subprocess.Popen[Any], log: Path) -> bool:
    """Waits for the end; kills a worker that says nothing. Whether it did."""
    size, since = -1, time.monotonic()
    while worker.poll() is None:
        time.sleep(0.05)
        if (now := log.stat().st_size) != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > CASE_TIMEOUT:
            worker.send_signal(signal.SIGABRT)  # faulthandler says where it was
            try:
                worker.wait(5)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            return True
    return False


def _death(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def main() -> int:
    sys.path[:0] = [str(HERE), str(HERE.parent / "unit")]
    from bad_kinds import KINDS, SHARDS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], help="default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for the logs of the workers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = run(arguments.kinds or list(KINDS), folder, SHARDS)
    for kind in report.kinds.values():
        for failure in kind.failures:
            print(f"FAILED {kind.name}: {failure}")
    print(report.table())
    if arguments.json:
        arguments.json.write_text(json.dumps(report.json(), indent=1))
    return 1 if any(k.failures for k in report.kinds.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
