"""The rows of a difference between plans, before they are text or a table: the same change in several layers is one."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from .._units import binary, counted, ranges
from ..plan.diff import Change, Difference, PlanDiff, Value
from ..plan.layers import layer_of

__all__ = ["HEADS", "DiffRow", "Section", "headline", "hidden_views", "sections", "totals"]

HEADS = ("", "op", "layers N", "what", "before", "after")

_SECTIONS = (
    ("rules", ("rule",)),
    ("weights, caches and inputs", ("weight", "fixed", "input", "unallocated")),
    ("nodes", ("node", "view")),
    ("all-reduces", ("all-reduce",)),
    ("cuts without an all-reduce", ("cut",)),
)
# what follows from another change of the same tensor, and would only repeat it
_FOLLOWS = ("asked", "synced", "per device", "bytes per device", "computed", "strides", "runs", "bytes", "slices")
_LEADS = ("split", "ne", "type")
_NAMES = ("sources", "after", "partial", "origins", "delayed from")


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One line; cells under `HEADS`. Name, op and layers are empty in the second and further lines of a tensor."""

    cells: tuple[str, ...]
    status: str
    """``changed``, ``added``, ``removed``."""


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under a title."""

    title: str
    rows: tuple[DiffRow, ...]


def sections(diff: PlanDiff, fold: bool, views: bool) -> list[Section]:
    """Everything about tensors and all-reduces."""
    out = []
    for title, kinds in _SECTIONS:
        groups: dict[Hashable, list[Difference]] = {}
        for n, item in enumerate(diff.of(*kinds)):
            if item.kind == "view" and not views:
                continue
            bare = layer_of(item.name)[1]
            shown = tuple(_cells(diff, c) for c in _leading(item))
            key: Hashable = (item.kind, bare, item.op, item.status, shown) if fold else n
            groups.setdefault(key, []).append(item)
        rows = tuple(row for alike in groups.values() for row in _rows(diff, alike))
        if rows:
            out.append(Section(title, rows))
    return out


def hidden_views(diff: PlanDiff) -> int:
    """How many items are views."""
    return len(diff.of("view"))


def _leading(item: Difference) -> tuple[Change, ...]:
    """The changes that others of the same tensor follow from."""
    whats = {c.what: c for c in item.changes}
    if "split" in whats and (cause := whats.get("decided by")) is not None and cause.after is not None:
        split = whats["split"]
        told = Change("split", split.before, f"{split.after}  by {cause.after}")
        item = replace(item, changes=tuple(told if c is split else c for c in item.changes if c is not cause))
    if item.kind not in ("all-reduce", "cut") and not whats.keys().isdisjoint(_LEADS):
        return tuple(c for c in item.changes if c.what not in _FOLLOWS)
    if item.kind == "all-reduce" and not whats.keys().isdisjoint(("bytes", "computes", "algorithm", "communicator")):
        return tuple(c for c in item.changes if c.what not in ("steps", "type", "ne"))
    follows = [c for c in item.changes if c.what in _FOLLOWS]
    if item.kind in ("all-reduce", "cut") or not follows:
        return item.changes
    return (*(c for c in item.changes if c.what not in _FOLLOWS), follows[0])


def _rows(diff: PlanDiff, alike: list[Difference]) -> list[DiffRow]:
    one = alike[0]
    layers = sorted({d.layer for d in alike if d.layer is not None})
    name = one.name if len(alike) == 1 else _numberless(one.name)
    if len(alike) > max(len(layers), 1):
        name += f" ({len(alike)} of them)"
    kind = _WORDS[one.kind] if one.op in ("NONE", "") and one.kind in _WORDS else one.op
    first = f"after {name}" if one.kind in ("all-reduce", "cut") else name, kind, ranges(layers)
    out = []
    for n, change in enumerate(_leading(one)):
        what, before, after = _cells(diff, change)
        if one.status != "changed":
            what = one.status
        out.append(DiffRow((*(first if n == 0 else ("", "", "")), what, before, after), one.status))
    return out


def _numberless(name: str) -> str:
    return layer_of(name)[1].replace("node_#", "node_*").replace("leaf_#", "leaf_*").replace("#", "N")


def _cells(diff: PlanDiff, change: Change) -> tuple[str, str, str]:
    what = "at" if change.what == "after" else change.what
    return what, _text(diff, change.what, change.before, 0), _text(diff, change.what, change.after, 1)


def _text(diff: PlanDiff, what: str, value: Value, side: int) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return binary(value) if "bytes" in what else str(value)
    if isinstance(value, tuple):
        if what == "computes":
            idle = [name for name, does in zip(diff.devices[side], value) if not does]  # noqa: B905
            return f"nothing from {', '.join(idle)}" if idle else "a summand of each"
        if what in _NAMES:
            names = ", ".join(_numberless(str(v)) for v in value)
            return names or ("at once" if what == "delayed from" else "none")
        words = [_text(diff, what, v, side) for v in value]
        if not words:
            return "none"
        if "bytes" in what or what in ("per device", "computed", "strides", "slices"):
            return f"{words[0]} each" if len(set(words)) == 1 else " | ".join(words)
        return ":".join(words)
    return f"{value:g}" if isinstance(value, float) else str(value)


#
# totals
#


def totals(diff: PlanDiff) -> list[tuple[str, str, str, str]]:
    """Label, before, after and difference, of what differs: devices, counts, memory, the host."""
    out = []
    if diff.devices[0] != diff.devices[1]:
        out.append(("devices", ",".join(diff.devices[0]), ",".join(diff.devices[1]), ""))
    out += [_total(c.what, c) for c in diff.totals if c.differs]
    for m in diff.memory:
        changed = [c for c in m.kinds if c.differs]
        if changed:
            out.append(_total(f"{m.name} memory", m.total, "bytes"))
            out += [_total(f"  {_KINDS.get(c.what, c.what)}", c, "bytes") for c in changed]
    out += [_total(f"host {c.what}", c) for c in diff.host]
    return out


_KINDS = {"mirrored": "mirrored weights", "fixed": "caches"}


def _total(label: str, change: Change, what: str | None = None) -> tuple[str, str, str, str]:
    unit = what or change.what
    return label, _number(unit, change.before), _number(unit, change.after), _signed(unit, change)


def _number(what: str, value: Value) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return binary(value) if "bytes" in what else str(value)
    return "none" if value is None else str(value)


def _signed(what: str, change: Change) -> str:
    a, b = change.before, change.after
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)) or isinstance(a, bool):
        return ""
    if a == b:
        return "same"
    by = b - a
    text = binary(int(abs(by))) if "bytes" in what else f"{abs(by):g}"
    return f"{'-' if by < 0 else '+'}{text}"


_WORDS = {"rule": "rule", "weight": "weight", "fixed": "cache", "input": "input", "unallocated": "on no device", "node": "node", "view": "view"}


def headline(diff: PlanDiff) -> str:
    """See `PlanDiff.summary`."""
    if not diff:
        return "no difference"
    parts = []
    for status in ("changed", "added", "removed"):
        counts = ((word, sum(d.kind == kind and d.status == status for d in diff.items)) for kind, word in _WORDS.items())
        if words := [counted(n, word, word if word.startswith("on ") else None) for word, n in counts if n]:
            parts.append(f"{', '.join(words)} {status}")
    names = [c.what for c in diff.totals]
    if "all-reduces" in names:
        number, size = diff.total("all-reduces"), diff.total("all-reduce bytes")
        moved = len(diff.of("all-reduce"))
        if number.differs or size.differs:
            parts.append(f"all-reduces {number.before} -> {number.after}, {_number('bytes', size.before)} -> {_number('bytes', size.after)} a run")
        elif moved:
            parts.append(f"{counted(moved, 'all-reduce')} changed")
    sums = [(m.name, m.total) for m in diff.memory]
    changed = [f"{name} {_signed('bytes', total)}" if total.before is not None and total.after is not None else name for name, total in sums if total.differs]
    if changed:
        parts.append("memory " + ", ".join(changed[:4]) + (", …" if len(changed) > 4 else ""))
    elif any(c.differs for m in diff.memory for c in m.kinds):
        parts.append("memory by purpose")
    if diff.devices[0] != diff.devices[1]:
        parts.append("other devices")
    parts += [f"host {c.what}" for c in diff.host if not parts]
    if diff.other:
        parts.append(f"other {', '.join(diff.other)}")
    return "; ".join(parts) or "counts of subgraphs"
