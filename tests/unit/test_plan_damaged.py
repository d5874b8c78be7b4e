"""Stored plans that somebody edited: refused by name, or a plan that everything works with."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from test_plan import two_layers

import pyggml as gg
from pyggml.plan import SplitPlan

PLAN = SplitPlan.from_captures(two_layers(2).captured(), host={"compute_nodes": 3})
STORED = json.loads(PLAN.to_json())


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Everywhere where a value stands."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*at, key))
    yield at


PLACES = [at for at in places(STORED) if at]


def damaged(rng: random.Random) -> tuple[str, dict[str, Any]]:
    stored = json.loads(json.dumps(STORED))
    *way, last = rng.choice(PLACES)
    inner = stored
    for key in way:
        inner = inner[key]
    if rng.random() < 0.2 and isinstance(inner, dict):
        del inner[last]
        return f"{way} without {last}", stored
    inner[last] = rng.choice([None, -1, 10**6, "x", [], {}, 1.5, True, [1, 2], float("nan")])
    return f"{[*way, last]}: {inner[last]!r}", stored


@pytest.mark.parametrize("seed", range(4))
def test_refused_or_usable(seed: int) -> None:
    rng = random.Random(seed)
    refused = 0
    for _ in range(60):
        what, stored = damaged(rng)
        try:
            plan = SplitPlan.from_json(json.dumps(stored))
        except gg.FileFormatError as error:
            assert "plan" in str(error)
            refused += 1
            continue
        try:
            diff = PLAN.diff(plan)
            assert bool(diff) == (plan != PLAN)
            assert str(diff) and plan.diff(PLAN).to_json() and diff.summary()
            assert plan.summary() and plan.table("all") and plan.table("layers", fold=False)
            assert SplitPlan.from_json(plan.to_json()) == plan
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
    assert refused > 12, "little of it was damage"


def first(kind: str, **change: Any) -> dict[str, Any]:
    """The first node or leaf changed."""
    one, *others = STORED[kind]
    return {kind: [{**one, **change}, *others]}


@pytest.mark.parametrize("change, said", [
    ({"memory": []}, "memory: found 0 devices, expected 2"),
    ({"subgraphs": [[0, 999, 0]]}, r"nodes 0 to 999"),
    ({"host": 3}, "host: found 3"),
    ({"host": {"buffer_bytes": float("nan")}}, "host: buffer_bytes is nan"),
    (first("nodes", split="S0 1:1:1"), r"nodes\[0\]: found the split S0 1:1:1, expected one over 2 devices"),
    (first("nodes", split="M", slices=[]), r"nodes\[0\]: found 0 slices, expected 2"),
    (first("nodes", split="M", runs=[[[0, 1]]]), r"nodes\[0\]: found runs of 1 device, expected 2"),
    (first("leafs", asked=[float("nan"), 1]), r"leafs\[0\]: found the shares \[nan, 1\], expected fractions"),
    (
        {**first("leafs", cause={"kind": "rule", "rule": 0.5}), "rules": [{"origin": "yours", "number": 1, "pattern": "w", "split": "M"}]},
        r"leafs\[0\]: found 0.5, expected a whole number below 1",
    ),
])  # fmt: skip
def test_what_is_said(change: dict[str, Any], said: str) -> None:
    with pytest.raises(gg.FileFormatError, match=said):
        SplitPlan.from_json(json.dumps({**STORED, **change}))
