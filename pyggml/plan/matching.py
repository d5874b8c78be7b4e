"""Which node of one plan is which of another: by name, operation and order."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from .layers import is_auto, layer_of
from .values import PlanLeaf, PlanNode

__all__ = ["COPY", "in_order", "matched"]

# larger gaps between nodes that agree are matched by the count of occurrences
_EXACT = 1 << 20

COPY = re.compile(r"Meta\(.*\)#(.+)#\d+")
"""llama.cpp's scheduler names its copies of inputs after the device."""


def matched(
    before: Sequence[PlanNode | PlanLeaf], after: Sequence[PlanNode | PlanLeaf], op: Callable[[PlanNode | PlanLeaf], str]
) -> list[tuple[int | None, int | None, bool]]:
    """Pairs of indices in the order of both; whether they are out of order; None: it has come, or is gone."""
    a = [(layer_of(COPY.sub(r"\1", x.name)), op(x)) for x in before]
    b = [(layer_of(COPY.sub(r"\1", x.name)), op(x)) for x in after]
    # what has no name of its own is known by its shape first
    partner = in_order([_with_shape(key, x) for key, x in zip(a, before, strict=True)], [_with_shape(key, x) for key, x in zip(b, after, strict=True)])
    pairs = [*sorted(partner.items()), (len(a), len(b))]
    i = k = 0
    for x, y in pairs:
        partner.update((i + p, k + q) for p, q in in_order(a[i:x], b[k:y]).items())
        i, k = x + 1, y + 1
    moved = set()
    for strict in (True, False):
        # what has a name of its own, and is elsewhere now; then: is another operation now
        rest_a, rest_b = set(range(len(a))) - set(partner), set(range(len(b))) - set(partner.values())
        where = _unique((b[k] if strict else b[k][0], k) for k in sorted(rest_b) if not is_auto(after[k].name))
        for own, i in _unique((a[i] if strict else a[i][0], i) for i in sorted(rest_a) if not is_auto(before[i].name)).items():
            if own in where:
                partner[i] = where[own]
                moved.add(i)
    out: list[tuple[int | None, int | None, bool]] = []
    gone, last = [i for i in range(len(a)) if i not in partner], 0
    back = {k: i for i, k in partner.items()}
    out_of_order = moved - _rising(partner)
    for k in range(len(b)):
        found = back.get(k)
        if found is None:
            out.append((None, k, False))
            continue
        while last < len(gone) and gone[last] < found and found not in out_of_order:
            out.append((gone[last], None, False))
            last += 1
        out.append((found, k, found in out_of_order))
    out += [(i, None, False) for i in gone[last:]]
    return out


def _with_shape(key: Hashable, x: PlanNode | PlanLeaf) -> Hashable:
    return (key, x.type, x.ne) if is_auto(x.name) else key


def _rising(partner: Mapping[int, int]) -> set[int]:
    """The largest part of the pairs that is in the order of both sides."""
    order = sorted(partner)
    return {order[p] for p in _longest_rise([partner[i] for i in order])}


def _unique(items: Any) -> dict[Any, int]:
    found = list(items)
    count = Counter(key for key, _ in found)
    return {key: at for key, at in found if count[key] == 1}


def in_order(a: Sequence[Hashable], b: Sequence[Hashable]) -> dict[int, int]:
    """Which of `b` each of `a` is, in order: by what occurs once in both, then between those."""
    out: dict[int, int] = {}
    todo = [(0, len(a), 0, len(b))]
    while todo:
        i, i_stop, k, k_stop = todo.pop()
        while i < i_stop and k < k_stop and a[i] == b[k]:
            out[i] = k
            i, k = i + 1, k + 1
        while i < i_stop and k < k_stop and a[i_stop - 1] == b[k_stop - 1]:
            i_stop, k_stop = i_stop - 1, k_stop - 1
            out[i_stop] = k_stop
        if i == i_stop or k == k_stop:
            continue
        in_a, in_b = _unique((a[x], x) for x in range(i, i_stop)), _unique((b[x], x) for x in range(k, k_stop))
        both = [(at, in_b[key]) for key, at in in_a.items() if key in in_b]
        fixed = [both[p] for p in _longest_rise([y for _, y in both])]
        if fixed:
            for x, y in (*fixed, (i_stop, k_stop)):
                todo.append((i, x, k, y))
                if x < i_stop:
                    out[x] = y
                i, k = x + 1, y + 1
        elif (i_stop - i) * (k_stop - k) <= _EXACT:
            for block in SequenceMatcher(None, a[i:i_stop], b[k:k_stop], autojunk=False).get_matching_blocks():
                out.update((i + block.a + n, k + block.b + n) for n in range(block.size))
        else:
            out.update(_by_occurrence(a, range(i, i_stop), b, range(k, k_stop)))
    return out


def _by_occurrence(a: Sequence[Hashable], of_a: Collection[int], b: Sequence[Hashable], of_b: Collection[int]) -> Iterator[tuple[int, int]]:
    """The first with the first of the same name, and so on, as far as the order allows."""
    where: dict[Hashable, list[int]] = {}
    for y in of_b:
        where.setdefault(b[y], []).append(y)
    used: Counter[Hashable] = Counter()
    pairs = []
    for x in of_a:
        places = where.get(a[x], ())
        if used[a[x]] < len(places):
            pairs.append((x, places[used[a[x]]]))
            used[a[x]] += 1
    for p in _longest_rise([y for _, y in pairs]):
        yield pairs[p]


def _longest_rise(values: Sequence[int]) -> list[int]:
    """Places of the longest rising subsequence of different numbers."""
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for p, value in enumerate(values):
        at = bisect_left(tails, value)
        before.append(ends[at - 1] if at else -1)
        if at == len(tails):
            tails.append(value)
            ends.append(p)
        else:
            tails[at], ends[at] = value, p
    out = []
    p = ends[-1] if ends else -1
    while p >= 0:
        out.append(p)
        p = before[p]
    return out[::-1]
