"""Whether a plan that was read from a file is one: values of the right kinds, and numbers that lead somewhere.

JSON that somebody edited can say anything; whoever works with a plan afterwards relies on what is checked here, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._units import counted
from .values import AllReduce, PlanLeaf, PlanNode, Slice

if TYPE_CHECKING:
    from .plan import SplitPlan

__all__ = ["check_values"]


def check_values(plan: SplitPlan) -> None:
    """Looks at every value.

    Raises:
        ValueError: where, what was found, and what was expected.
    """
    n = len(plan.nodes)
    for i, s in enumerate(plan.subgraphs):
        if not 0 <= s.start <= s.stop <= n:
            raise ValueError(f"subgraphs[{i}]: found nodes {s.start} to {s.stop}, expected some of the {n} there are")
    seen: set[int] = set()  # slices are shared: most are looked at once
    for kind, items in (("nodes", plan.nodes), ("leafs", plan.leafs)):
        for x in items:
            _tensor(f"{kind}[{x.index}]", x, plan, seen)
    for i, r in enumerate(plan.allreduces):
        _allreduce(f"allreduces[{i}]", r, n, len(plan.devices))
    if len(plan.memory) != len(plan.devices):
        raise ValueError(f"memory: found {len(plan.memory)} devices, expected {len(plan.devices)}")
    for i, m in enumerate(plan.memory):
        _words(f"memory[{i}]", m.name)
        _counts(f"memory[{i}]", (m.weights, m.fixed, m.compute, m.reduction, m.mirrored, m.capacity))
    for rule in plan.rules:
        where = f"rules[{rule.index}]"
        _words(where, rule.origin, rule.pattern, rule.split)
        _counts(where, (rule.number, rule.granularity, *(() if rule.units is None else (rule.units,))))
    if plan.host is not None and not isinstance(plan.host, Mapping):
        raise ValueError(f"host: found {plan.host!r:.40}, expected an object or null")
    for key, value in (plan.host or {}).items():
        if type(value) is float and not math.isfinite(value):
            raise ValueError(f"host: {key} is {value}, which is no number")


def _tensor(where: str, x: PlanNode | PlanLeaf, plan: SplitPlan, seen: set[int]) -> None:
    _words(where, x.name, x.op, x.type)
    _counts(where, (x.bytes, x.flags, *x.ne))
    if isinstance(x, PlanNode):
        _counts(where, x.sources)
        _counts(where, (x.subgraph,), len(plan.subgraphs))
    else:
        _words(where, x.kind)
        if x.asked is not None and not all(type(a) in (int, float) and 0 <= a <= 1 for a in x.asked):
            raise ValueError(f"{where}: found the shares {list(x.asked)!r:.40}, expected fractions")
        if x.cause is not None:
            _words(where, x.cause.kind, *(() if x.cause.asked is None else (x.cause.asked,)))
            _counts(where, () if x.cause.rule is None else (x.cause.rule,), len(plan.rules))
    _devices(where, x, len(plan.devices))
    if id(x.slices) not in seen:
        seen.add(id(x.slices))
        for one in x.slices:
            _slice(where, one)


def _devices(where: str, x: PlanNode | PlanLeaf, n_devices: int) -> None:
    """Whatever has a part for each device has as many as there are."""
    if x.split is None:
        return
    if len(x.slices) != n_devices:
        raise ValueError(f"{where}: found {len(x.slices)} slices, expected {n_devices}")
    for state in (x.split, x.synced if isinstance(x, PlanNode) else None):
        if state is not None and state.segments and len(state.segments[0].ne) != n_devices:
            raise ValueError(f"{where}: found the split {state}, expected one over {counted(n_devices, 'device')}")
    if x.runs is not None and len(x.runs) != n_devices:
        raise ValueError(f"{where}: found runs of {counted(len(x.runs), 'device')}, expected {n_devices}")


def _slice(where: str, s: Slice) -> None:
    _counts(where, (s.bytes, *s.ne, *s.nb))


def _allreduce(where: str, r: AllReduce, n_nodes: int, n_devices: int) -> None:
    _words(where, r.algorithm, r.type, r.communicator, *r.reasons)
    _counts(where, (*r.partial, *r.origins), n_nodes)
    _counts(where, (r.bytes, *r.ne))
    if len(r.computes) != n_devices:
        raise ValueError(f"{where}: found {len(r.computes)} devices that compute or not, expected {n_devices}")
    for s in r.steps or ():
        _words(where, s.kind)
        _counts(where, (s.round, s.bytes))
        _counts(where, (s.target, *(() if s.source is None else (s.source,))), n_devices)


def _words(where: str, *values: Any) -> None:
    for value in values:
        if type(value) is not str:
            raise ValueError(f"{where}: found {value!r:.40}, expected a text")


def _counts(where: str, values: Iterable[Any], below: int | None = None) -> None:
    for value in values:
        if type(value) is not int or value < 0 or (below is not None and value >= below):
            raise ValueError(f"{where}: found {value!r:.40}, expected a whole number{'' if below is None else f' below {below}'}, 0 or more")
