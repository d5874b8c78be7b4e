"""Judges cases that come as lines of JSON: a case that ends or hangs this process ends no test run."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pyggml as gg
from pyggml.testing.graph_cases import GraphCase, judge


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever else is printed is not an answer
    for line in sys.stdin:
        try:
            answer = {"outcome": asdict(judge(GraphCase.from_json(line)))}
        except gg.Error as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
