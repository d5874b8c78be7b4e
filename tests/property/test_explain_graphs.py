"""`plan.explain` of any small graph is right by counterfactual: see docs/plan-explain.md and tests/integration/test_explain.py.

A model's rules mostly go together, so that a single one can hardly be changed. In graphs of all kinds it often can.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from split_graphs import graph_cases

import pyggml as gg
from pyggml.plan.explain import Explainer
from pyggml.testing.graph_cases import OPS, GraphCase

SEEN: Counter[str] = Counter()
SPLITS = ("M", "S0", "S1", "S0 1:3", "S1 1:3", "S2")


def planned(case: GraphCase) -> gg.SplitPlan | None:
    """The plan; None where the splits are illegal."""
    devices = gg.simulated("SIM", n=len(case.shares))
    weights = {i: leaf for i, leaf in enumerate(case.leafs) if leaf.kind == "weight"}
    with contextlib.ExitStack() as stack:
        for d in devices:
            stack.callback(d.release)
        meta = stack.enter_context(gg.MetaDevice(devices, [(f"^w{i}$", leaf.split) for i, leaf in weights.items()]))
        try:
            made = {f"w{i}": np.zeros(leaf.ne[::-1], np.float32) for i, leaf in weights.items()}
            held = stack.enter_context(gg.Weights(meta, made)) if made else {}
            graph = stack.enter_context(gg.Graph(meta))
            tensors: list[gg.Tensor] = [
                held[f"w{i}"] if i in weights else graph.input(f"in{i}", leaf.ne, leaf.dtype if leaf.kind == "rows" else "f32")
                for i, leaf in enumerate(case.leafs)
            ]
            for step in case.steps:
                tensors.append(OPS[step.op].build(*(tensors[s] for s in step.sources), *step.params))
            for k in case.outputs:
                graph.output(f"out{k}", tensors[len(case.leafs) + k])
            return graph.plan()
        except gg.SplitError:
            return None


def look(x: gg.plan.PlanNode) -> tuple[str, str, bool, object]:
    return str(x.split), str(x.synced), x.pending, x.runs


def two() -> st.SearchStrategy[list[tuple[int, str, int, str]]]:
    """Two weights, by a number that is taken modulo theirs, and what to change them to."""
    return st.lists(st.tuples(st.integers(0, 9), st.sampled_from(SPLITS), st.integers(0, 9), st.sampled_from(SPLITS)), max_size=4)


@settings(max_examples=settings.default.max_examples // 4)  # each is planned a dozen times
@given(case=graph_cases(max_steps=6), pairs=two())
def test_explanations_are_right_by_counterfactual(case: GraphCase, pairs: list[tuple[int, str, int, str]]) -> None:
    plan = planned(case)
    assume(plan is not None)
    assert plan is not None
    at = [i for i, leaf in enumerate(case.leafs) if leaf.kind == "weight"]
    explainer = Explainer(plan)
    named = [{at[r.index] for r in explainer.rules_of(i)} for i in range(len(plan))]
    sums = [explainer.explain(i).sums for i in range(len(plan))]
    before = {x.name: str(x.split) for x in plan.leafs}
    changes = [{i: other} for i in at for other in SPLITS if other != case.leafs[i].split]
    changes += [{at[a % len(at)]: x, at[b % len(at)]: y} for a, x, b, y in pairs if at and a % len(at) != b % len(at)]
    for change in changes:
        leafs = tuple(replace(leaf, split=change.get(i, leaf.split)) for i, leaf in enumerate(case.leafs))
        other = planned(replace(case, leafs=leafs))
        if other is None:
            SEEN["illegal"] += 1
            continue
        SEEN["legal"] += 1
        assert [(x.name, x.op, x.ne) for x in other] == [(x.name, x.op, x.ne) for x in plan]
        after = {x.name: str(x.split) for x in other.leafs}
        really = {i for i in change if before.get(f"w{i}") != after.get(f"w{i}")}
        for i, (x, y) in enumerate(zip(plan, other, strict=True)):
            what = f"{change}: {x.name} ({x.op}, node {i}): {look(x)} -> {look(y)}, names w{sorted(named[i])}\n{explainer.explain(i)}\n{case.to_json()}"
            if not named[i] & really:
                if len(change) > 1 and not all(str(other.nodes[s].synced) == "M" for s in sums[i]):
                    SEEN["rests on another sum"] += 1
                    continue
                assert look(x) == look(y), what
                SEEN["kept"] += bool(really)
            elif len(change) == 1:
                assert look(x) != look(y), what
                SEEN["changed"] += 1


def test_what_was_seen() -> None:
    """After the search: there was something to be right about."""
    if not SEEN:
        pytest.skip("the search did not run")
    print(dict(SEEN))
    assert SEEN["legal"] > 100 and SEEN["illegal"] > 100 and SEEN["kept"] > 100 and SEEN["changed"] > 100, SEEN
