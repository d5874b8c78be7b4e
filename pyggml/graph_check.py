"""The check of a graph: ggml's own inference on simulated twins of the devices, going on behind every refusal."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ._ffi import ffi, lib
from .device import Device
from .errors import OutOfMemoryError, SplitError
from .meta import MetaDevice, Target, as_rule, check_target, target_devices, twins
from .plan.check import (
    CheckReport,
    Origin,
    Repair,
    Violation,
    idle_rules,
    memory_violations,
    shares_missed,
    violation_of,
    violations_from,
)
from .repairs import with_tried_repairs
from .split import Decision, Rule

if TYPE_CHECKING:
    from .graph import Graph

__all__ = ["check_graph", "collecting", "origins_of", "too_large", "twins_of", "unlimited"]


def check_graph(
    graph: Graph, device: Target | None = None, *, rules: Iterable[Rule | tuple[str, str]] | None = None, repairs: bool = True
) -> CheckReport:
    """See `Graph.check`."""
    target = graph.device if device is None else check_target("check", device)
    given = target.rules if isinstance(target, MetaDevice) else ()
    if rules is not None:
        given = tuple(as_rule(r) for r in rules)
    devices = target_devices(target)
    names = ", ".join(d.name for d in devices)
    with twins_of(devices) as stand_ins:

        def once(front: tuple[Rule, ...]) -> CheckReport:
            return _check(f"graph over {names}", graph, devices, stand_ins, (*front, *given), len(front))

        report = once(())
        return with_tried_repairs(report, once) if repairs and not report.ok else report


def _check(about: str, graph: Graph, devices: Sequence[Device], stand_ins: Sequence[Device], rules: tuple[Rule, ...], n_front: int) -> CheckReport:
    try:
        return _once(about, graph, stand_ins, rules, n_front)
    except OutOfMemoryError as error:
        said = str(error)
    with unlimited():
        for one in stand_ins:
            one.reset_stats()
        report = _once(about, graph, stand_ins, rules, n_front)
    return too_large(report, devices, stand_ins, said)


def _once(about: str, graph: Graph, stand_ins: Sequence[Device], rules: tuple[Rule, ...], n_front: int) -> CheckReport:
    meta = MetaDevice(stand_ins, rules)
    outputs: list[Violation] = []
    beyond: list[Violation] = []
    try:
        with collecting(meta.ptr) as found:
            try:
                with graph.replica(meta, values=False) as copy:
                    try:
                        copy._allocate()
                        copy._compute()
                        outputs = list(_unreadable(copy))
                    finally:
                        for weights in copy._weights.values():
                            weights.close()
            except SplitError as error:
                beyond.append(violation_of(error))
        violations, unjudged = violations_from(found, origins_of(meta.decisions, rules, n_front))
        notices = (*shares_missed(meta.decisions), *idle_rules(meta.decisions, rules[n_front:], n_front))
        return CheckReport(about, (*violations, *beyond, *outputs), unjudged, notices)
    finally:
        meta.close()


def _unreadable(copy: Graph) -> Iterator[Violation]:
    """Outputs that `Graph.run` cannot read: what is split and no single piece of memory."""
    for name, tensor in copy.outputs.items():
        if lib.ggml_is_contiguous(tensor.ptr):
            continue
        split = tensor.split(synced=False)
        if split is not None and split.axis != "M":
            yield Violation(
                "output", name, tensor.op, str(tensor.dtype), tensor.ne, f"it is split ({split}) and not contiguous, so that it cannot be read",
                repairs=(Repair(f"graph.output({name!r}, ops.cont(...))"),),
            )  # fmt: skip
        elif tensor.dtype.numpy is None:
            yield Violation(
                "output", name, tensor.op, str(tensor.dtype), tensor.ne, "a strided view in a quantized format cannot be read",
                repairs=(Repair(f"graph.output({name!r}, ops.cont(...))"),),
            )  # fmt: skip


# what checks of graphs and models share


@contextlib.contextmanager
def twins_of(devices: Sequence[Device]) -> Iterator[list[Device]]:
    """Simulated twins, released afterwards."""
    stand_ins = twins(devices)
    try:
        yield stand_ins
    finally:
        for one in stand_ins:
            if one not in devices:
                one.release()


@contextlib.contextmanager
def collecting(meta: Any) -> Iterator[dict[str, Any]]:
    """What is refused meanwhile on a meta device (NULL: the next one of llama.cpp), filled in at the end."""
    found: dict[str, Any] = {}
    lib.pgg_meta_check_begin(meta)
    try:
        yield found
    finally:
        text = lib.pgg_meta_check_take()
        found.update(json.loads(ffi.string(text)))
        lib.pgg_free(text)


def too_large(report: CheckReport, devices: Sequence[Device], stand_ins: Sequence[Device], said: str) -> CheckReport:
    """The report of a check with unlimited memory, with the devices that have too little."""
    needs = [d.stats().buffer_bytes_peak for d in stand_ins]
    found = memory_violations([d.name for d in devices], [d.memory.total for d in devices], needs, said)
    return replace(report, violations=(*report.violations, *found))


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """Simulated devices give memory that they have not: to see how much would be needed."""
    lib.pgg_sim_unlimited(True)
    try:
        yield
    finally:
        lib.pgg_sim_unlimited(False)


def origins_of(decisions: Mapping[str, Decision], rules: Sequence[Rule], n_front: int, n_given: int | None = None) -> dict[str, Origin]:
    """For every tensor that was asked about: its split and its rule, counted as the user gave them.

    Args:
        n_front: rules of ours in front of the user's.
        n_given: the user's; those behind are the architecture's.
    """
    end = len(rules) if n_given is None else n_front + n_given

    def named(decision: Decision) -> str:
        if decision.rule is None:
            return "no rule: mirrored"
        text = str(rules[decision.rule])
        if decision.rule < n_front:
            return f"the repair {text}"
        return f"your rule {decision.rule - n_front + 1}, {text}" if decision.rule < end else f"the architecture's rule {text}"

    return {name: Origin(name, str(d.state), named(d)) for name, d in decisions.items()}
