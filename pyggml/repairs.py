"""Repairs of violations, as rules: proposed from the splits at hand, and tried by checking again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ._units import ranges
from .errors import Error
from .plan.check import CheckReport, Repair, Violation, ViolationSource, alike
from .plan.values import parse_state
from .split import MIRRORED, Rule, Segment, Split, SplitState

__all__ = ["with_tried_repairs"]

MOST_TRIALS = 24
MOST_ROUNDS = 4
_OTHERWISE = frozenset({"RESHAPE", "VIEW"})  # a head must not be cut: a granularity helps, and the shares stay
_NUMBER = r"(?<=blk\.)\d+|(?<=_l)\d+$"

Check = Callable[[tuple[Rule, ...]], CheckReport]
"""Checks the same thing with rules in front of the others."""


def with_tried_repairs(report: CheckReport, check: Check) -> CheckReport:
    """The report with repairs in front that were tried: with their rules the violation is gone, and none has come.

    Alike violations are repaired together. What is proposed: another split of the weight or cache that the node reads, so that
    it fits the other source; else what decided the splits that clash is mirrored, and what then clashes with that, too.
    """
    groups: dict[object, list[Violation]] = {}
    for v in report.violations:
        groups.setdefault(alike(v), []).append(v)
    search = _Search(report, check)
    found: dict[int, tuple[Repair, ...]] = {}
    for group in groups.values():
        repairs = tuple(search.repairs(group))
        for v in group:
            found[id(v)] = repairs
    return replace(report, violations=tuple(_with(v, found[id(v)]) for v in report.violations))


def _with(v: Violation, repairs: tuple[Repair, ...]) -> Violation:
    # words that nobody tried stay where nothing better is known, and where they are about more than the sources' splits
    words = v.repairs if v.op in _OTHERWISE or "FLASH_ATTN_EXT" in "".join(r.text for r in v.repairs) else ()
    return replace(v, repairs=(*repairs, *words)) if repairs else v


class _Search:
    def __init__(self, report: CheckReport, check: Check) -> None:
        self.check, self.trials = check, MOST_TRIALS
        self.before = {v.key for v in report.violations}

    def judged(self, rules: tuple[Rule, ...]) -> CheckReport | None:
        if self.trials <= 0:
            return None
        self.trials -= 1
        try:
            return self.check(rules)
        except Error:
            return None

    def repairs(self, group: Sequence[Violation]) -> Iterator[Repair]:
        if group[0].kind not in ("split", "rule", "device"):
            return
        keys = {v.key for v in group}
        known: dict[tuple[Rule, ...], CheckReport | None] = {}
        for rules in _fitting(group):
            after = known[rules] = known[rules] if rules in known else self.judged(rules)
            if after is not None and self.is_better(after, keys):
                yield Repair("; ".join(f"{_named([r])} as {r.split}" for r in rules), rules, tried=True)
                break
        mirrored = dict.fromkeys(_clashing(group))
        for _ in range(MOST_ROUNDS):
            rules = _rules(tuple(mirrored), MIRRORED)
            after = known[rules] if rules in known else self.judged(rules) if rules else None
            if after is None:
                return
            if self.is_better(after, keys):
                if rules in known:
                    return  # said already
                yield Repair(f"mirror {_named(rules)}", rules, tried=True)
                return
            size = len(mirrored)
            for v in after.violations:
                if v.key in keys or v.key not in self.before:
                    mirrored |= dict.fromkeys(_clashing([v]))
            if len(mirrored) == size:
                return

    def is_better(self, after: CheckReport, keys: set[tuple[str, str, str]]) -> bool:
        """Whether these violations are gone and no other came, not even one that they hid."""
        left = {v.key for v in after.violations}
        return not left & keys and left <= self.before and not {node for _, node, _ in keys} & set(after.unjudged)


def _fitting(group: Sequence[Violation]) -> Iterator[tuple[Rule, ...]]:
    """Other splits for what a node reads directly, a weight or a cache, or for one of two weights behind its sources."""
    v = group[0]
    for i, source in enumerate(v.sources):
        others = [s for k, s in enumerate(v.sources) if k != i and s.split not in ("-", "?")]
        if _is_fixed(source):
            for split in _candidates(v, i, source, others):
                yield _rules(tuple(dict.fromkeys(w.sources[i].name for w in group)), split)
    # what made one source, with the shares of the other: gate and up, K and its cache
    for i, source in enumerate(v.sources):
        for other in v.sources:
            splits = _same_shares(source, other)
            if splits is not None:
                yield tuple(r for o, split in splits for r in _rules(_at_place(group, i, o), split))


def _same_shares(source: ViolationSource, other: ViolationSource) -> list[tuple[int, SplitState]] | None:
    """For each weight behind a source, by number, its split with the shares of another source; None where they do not come out."""
    theirs = _state(other.split)
    if other is source or theirs is None or not sum(theirs.counts):
        return None
    out = []
    for o, origin in enumerate(source.origins):
        state = _state(origin.split or "-")
        if state is None:
            return None
        if state.axis == "M":  # as whoever is split is split
            found = {x.split for x in other.origins}
            state = _state(found.pop() or "-") if len(found) == 1 else None
            if state is None or not isinstance(state.axis, int):
                return None
            out.append((o, state))
            continue
        whole = sum(state.counts)
        counts = [whole * n // sum(theirs.counts) for n in theirs.counts]
        if len(state.segments) != 1 or state.segments[0].nr != 1 or sum(counts) != whole:
            return None
        out.append((o, SplitState(state.axis, (Segment(tuple(counts)),))))
    return out if any(str(split) != source.origins[o].split for o, split in out) else None


def _at_place(group: Sequence[Violation], i: int, o: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(v.sources[i].origins[o].tensor for v in group if o < len(v.sources[i].origins)))


def _candidates(v: Violation, i: int, source: ViolationSource, others: Sequence[ViolationSource]) -> Iterator[SplitState | Split]:
    if not others:
        return
    other = others[0].split
    mine = _state(source.split)
    theirs = _state(other)
    if v.op in ("MUL_MAT", "MUL_MAT_ID") and i == 0:
        if theirs is not None and theirs.axis == 0:
            yield theirs
        elif theirs is not None and isinstance(theirs.axis, int):
            yield MIRRORED
        elif mine is not None and mine.axis == 0 and sum(mine.counts) > 0:
            yield Split(1, tuple(float(n) for n in mine.counts))
    elif theirs is not None and isinstance(theirs.axis, int) and len(source.ne) > theirs.axis and source.ne[theirs.axis] == _at(others[0].ne, theirs.axis):
        yield theirs
    if mine is not None and isinstance(mine.axis, int):
        yield MIRRORED


def _at(ne: tuple[int, ...], axis: int) -> int:
    return ne[axis] if axis < len(ne) else 1


def _state(text: str) -> SplitState | None:
    return None if text in ("-", "?") else parse_state(text)


def _is_fixed(source: ViolationSource) -> bool:
    return [o.tensor for o in source.origins] == [source.name]


def _clashing(group: Sequence[Violation]) -> list[str]:
    """The weights and caches behind the split sources; behind all, where none is split."""
    names = []
    for v in group:
        split = [s for s in v.sources if s.split.startswith("S")]
        names += [o.tensor for s in split or v.sources for o in s.origins]
        if v.kind == "rule":
            names.append(v.node)
    return list(dict.fromkeys(names))


def _rules(names: Sequence[str], split: SplitState | Split) -> tuple[Rule, ...]:
    """Rules for these names, alike layers in one."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        number = re.search(_NUMBER, name)
        kinds.setdefault(re.sub(_NUMBER, "#", name) if number else name, []).append(number[0] if number else "")
    out = []
    for kind, numbers in kinds.items():
        pattern = re.escape(kind)
        if numbers[0]:
            pattern = pattern.replace(r"\#", numbers[0] if len(numbers) == 1 else f"({'|'.join(dict.fromkeys(numbers))})")
        out.append(Rule(f"^{pattern}$", split))
    return tuple(out)


def _named(rules: Sequence[Rule]) -> str:
    """The tensors of rules in words: ``blk.N.ffn_gate.weight, blk.N.ffn_up.weight (layers 0-31)``."""
    of_layers: dict[str, list[str]] = {}
    for r in rules:
        name = r.pattern.strip("^$").replace("\\", "")
        numbers = re.search(r"\(([\d|]+)\)", name)
        layers = ranges(map(int, numbers[1].split("|"))) if numbers else ""
        of_layers.setdefault(layers, []).append(name.replace(numbers[0], "N") if numbers else name)
    return ", ".join(", ".join(names) + (f" (layers {layers})" if layers else "") for layers, names in of_layers.items())
