"""Runs the cases of one kind in this process, which must survive all of them.

``bad_worker.py KIND SHARD OF FIRST FOLDER``: the cases of which the number modulo OF is SHARD, from number FIRST on.
Each case is on disk before it runs (``FOLDER/KIND.SHARD.jsonl``), so that one that ends or stops the process is known.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from bad_case import Unexpected, outcome_of
from bad_kinds import ALL

import pyggml as gg


class Healthy:
    """Computations whose results are known; they must stay right, whatever happened before."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.a = rng.integers(-3, 4, (32, 64)).astype(np.float32)
        self.b = rng.integers(-3, 4, (48, 32)).astype(np.float32)
        self.x = rng.integers(-3, 4, (5, 64)).astype(np.float32)
        self.expected = np.maximum(self.x @ self.a.T, 0) @ self.b.T  # whole numbers: exact in any order of sums
        self.keep = [self.graph(gg.cpu()), self.graph(self.meta())]

    @staticmethod
    def meta() -> gg.MetaDevice:
        return gg.MetaDevice("vcpu:2", [("up", "S1 3:1"), ("down", "S0 3:1")])

    def graph(self, device: gg.Device | gg.MetaDevice) -> tuple[gg.Graph, gg.Weights]:
        weights = gg.Weights(device, {"up": self.a, "down": self.b})
        graph = gg.Graph(device, size=32, threads=1)
        graph.output("y", weights["down"] @ gg.ops.relu(weights["up"] @ graph.input("x", (64, 5))))
        return graph, weights

    def check(self, fresh: bool) -> None:
        for graph, _ in self.keep:
            self._run(graph)
        if fresh:
            with self.meta() as meta:
                graph, weights = self.graph(meta)
                self._run(graph)
                graph.close()
                weights.close()

    def _run(self, graph: gg.Graph) -> None:
        try:
            got = graph.run(x=self.x)["y"]
        except gg.Error as error:
            raise Unexpected(f"a correct run afterwards failed on {graph.device.name}: {type(error).__name__}: {error}") from error
        if not np.array_equal(got, self.expected):
            raise Unexpected(f"a correct run afterwards is wrong on {graph.device.name}")


def main(kind: str, shard: int, of: int, first: int, folder: Path) -> None:
    faulthandler.enable()
    warnings.simplefilter("error", ResourceWarning)
    healthy = Healthy()
    healthy.check(fresh=True)
    with (folder / f"{kind}.{shard}.jsonl").open("a") as log:

        def write(**line: object) -> None:
            log.write(json.dumps(line) + "\n")
            log.flush()

        own = folder / f"{kind}.{shard}"
        own.mkdir(exist_ok=True)
        for number, case in enumerate(ALL[kind](own)):
            if number < first or number % of != shard:
                continue
            write(number=number, what=case.what)
            start = time.perf_counter()
            try:
                outcome = outcome_of(case)
                if outcome.reached_native or number % 10 == 0:
                    healthy.check(fresh=number % 20 == 0)
            except Unexpected as wrong:
                write(number=number, failed=str(wrong))
                continue
            write(number=number, stage=outcome.stage, error=outcome.error, message=outcome.message, seconds=round(time.perf_counter() - start, 4))
        healthy.check(fresh=True)
        write(done=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
