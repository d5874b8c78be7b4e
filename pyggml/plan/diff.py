"""What differs between two plans: what a changed rule, another device or a newer llama.cpp changed.

A `PlanDiff` is a value like the plans it is made of, and knows nothing of them afterwards. Nodes are matched by name,
operation and order, so that nodes that came or went do not make all others differ; what merely moved up or down in the
lists (indices, numbers of subgraphs, names such as ``node_17``) is no difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, FileFormatError

if TYPE_CHECKING:
    from rich.console import Console


__all__ = ["ASPECTS", "DIFF_SCHEMA", "Change", "Difference", "MemoryDifference", "PlanDiff", "as_value"]

DIFF_SCHEMA = "pyggml.plan-diff/1"

ASPECTS = ("devices", "memory", "host", "strides", "flags", "asked", "rules", "views")
"""What `PlanDiff.without` leaves out: names of devices, bytes of memory, what the host does, strides of slices, flags of
tensors, shares that were asked for, who decided what, and operations that only give memory another shape."""

Value = str | int | float | bool | None | tuple["Value", ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One property, in both plans. Bytes and counts are numbers, splits their short notation, lists tuples."""

    what: str
    before: Value
    after: Value

    @property
    def differs(self) -> bool:
        """Whether there is a difference."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor or an all-reduce that is not what it was."""

    kind: str
    """``rule``; ``weight``, ``fixed`` (a cache), ``input``, ``unallocated``; ``node``, ``view``; ``all-reduce``; ``cut`` (the
    graph is cut behind a node without an all-reduce)."""
    name: str
    """Of an all-reduce: of the node after which it is. Of a rule: its pattern."""
    op: str
    """Of a rule: whose it is."""
    layer: int | None
    status: str
    """``changed``, ``added`` or ``removed``."""
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class MemoryDifference:
    """Bytes on one device, by purpose. Devices are matched by their places in the plans."""

    name: str
    """``SIM0``; where they have other names ``SIM0 -> CUDA0``."""
    total: Change
    """All of it. None: the plan has no such device."""
    kinds: tuple[Change, ...]
    """``weights``, ``mirrored`` (a part of the weights), ``fixed``, …: also those that are the same."""


@dataclass(frozen=True, slots=True, repr=False)
class PlanDiff:
    """What differs between two plans, ``before.diff(after)``. True where something does; ``print(diff)`` tells it."""

    devices: tuple[tuple[str, ...], tuple[str, ...]]
    """Names before and after."""
    totals: tuple[Change, ...]
    """``nodes``, ``subgraphs``, ``all-reduces``, ``all-reduce bytes``, …: also those that are the same."""
    memory: tuple[MemoryDifference, ...]
    """One a device."""
    items: tuple[Difference, ...]
    """Rules first, then weights, caches and inputs, nodes in their order, all-reduces."""
    host: tuple[Change, ...] = ()
    """What the host does besides."""
    other: tuple[str, ...] = ()
    """Names of fields of the plan that differ where nothing above does."""

    def __bool__(self) -> bool:
        return bool(
            self.items
            or self.other
            or self.devices[0] != self.devices[1]
            or any(c.differs for c in (*self.totals, *self.host))
            or any(c.differs for m in self.memory for c in m.kinds)
        )

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def total(self, what: str) -> Change:
        """One of `totals`, such as ``"all-reduces"``."""
        found = next((c for c in self.totals if c.what == what), None)
        if found is None:
            raise ArgumentError(f"total({what!r}): one of {', '.join(c.what for c in self.totals)}")
        return found

    def of(self, *kinds: str) -> tuple[Difference, ...]:
        """The items of some kinds: ``diff.of("weight", "fixed")``."""
        return tuple(d for d in self.items if d.kind in kinds)

    def without(self, *aspects: str) -> PlanDiff:
        """The same without some aspects: those in `ASPECTS`.

        Raises:
            ArgumentError: an aspect that there is not.
        """
        if strange := set(aspects) - set(ASPECTS):
            raise ArgumentError(f"{', '.join(sorted(map(repr, strange)))}: expected some of {', '.join(ASPECTS)}")
        out = self
        if "devices" in aspects:
            now = self.devices[1] if len(self.devices[0]) == len(self.devices[1]) else None
            out = out if now is None else replace(out, devices=(now, now))
        if "memory" in aspects:
            out = replace(out, memory=())
        if "host" in aspects:
            out = replace(out, host=())
        items = []
        for item in out.items:
            if (item.kind == "view" and "views" in aspects) or (item.kind == "rule" and "rules" in aspects):
                continue
            kept = tuple(c for c in item.changes if c.what not in aspects and not (c.what == "decided by" and "rules" in aspects))
            if kept or not item.changes:
                items.append(item if len(kept) == len(item.changes) else replace(item, changes=kept))
        totals = tuple(c for c in out.totals if not (c.what in aspects or ("views" in aspects and c.what in ("nodes", "views"))))
        return replace(out, items=tuple(items), totals=totals, other=tuple(o for o in out.other if o not in aspects))

    # JSON

    def to_dict(self) -> dict[str, Any]:
        """Words and numbers for JSON, schema ``pyggml.plan-diff/1`` (docs/plan-diff.md)."""
        return {
            "schema": DIFF_SCHEMA,
            "same": not self,
            "devices": {"before": list(self.devices[0]), "after": list(self.devices[1])},
            "totals": _changes_dict(self.totals),
            "memory": [{"name": m.name, "total": _changes_dict((m.total,))[0][1:], "kinds": _changes_dict(m.kinds)} for m in self.memory],
            "items": [
                {"kind": d.kind, "name": d.name, "op": d.op, "layer": d.layer, "status": d.status, "changes": _changes_dict(d.changes)}
                for d in self.items
            ],
            "host": _changes_dict(self.host),
            "other": list(self.other),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent, separators=(",", ":") if indent is None else None, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> PlanDiff:
        """From what `to_json` wrote.

        Raises:
            FileFormatError: it is not JSON, of another schema, or damaged.
        """
        try:
            d = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise FileFormatError(f"difference of plans: not JSON: {error}") from None
        found = d.get("schema") if isinstance(d, dict) else None
        if found != DIFF_SCHEMA:
            raise FileFormatError(f"difference of plans: found the schema {found!r}, expected {DIFF_SCHEMA!r}")
        try:
            return cls(
                (tuple(d["devices"]["before"]), tuple(d["devices"]["after"])),
                _changes_from(d["totals"]),
                tuple(MemoryDifference(m["name"], Change("total", *m["total"]), _changes_from(m["kinds"])) for m in d["memory"]),
                tuple(Difference(i["kind"], i["name"], i["op"], i["layer"], i["status"], _changes_from(i["changes"])) for i in d["items"]),
                _changes_from(d["host"]),
                tuple(d["other"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"difference of plans: it cannot be read: {error!r}") from None

    # showing

    def summary(self) -> str:
        """One line: how many tensors differ, all-reduces, memory."""
        from ..report.diff_text import headline

        return headline(self)

    def table(self, *, fold: bool = True, views: bool = False, limit: int | None = None) -> str:
        """All of it as text without colour.

        Args:
            fold: the same change in several layers is one line.
            views: operations that only give memory another shape, too.
            limit: lines about tensors, at most; what is left out is counted.
        """
        from ..report.diff_text import table

        return table(self, fold, views, limit)

    def render(self, console: Console | None = None, *, fold: bool = True, views: bool = False) -> None:
        """Prints it to a rich console (default: standard output). Arguments as for `table`."""
        from ..report.diff_rich import render

        render(self, console, fold, views)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(self.table())}</pre>"

    def __repr__(self) -> str:
        return f"<PlanDiff: {self.summary()}>"


def _plain(value: Value) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _changes_dict(changes: tuple[Change, ...]) -> list[Any]:
    return [[c.what, _plain(c.before), _plain(c.after)] for c in changes]


def as_value(value: Any) -> Value:
    """A value of any JSON: lists become tuples, objects text."""
    if isinstance(value, (list, tuple)):
        return tuple(as_value(v) for v in value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else json.dumps(value, default=str)


def _changes_from(changes: Sequence[Any]) -> tuple[Change, ...]:
    return tuple(Change(str(what), as_value(before), as_value(after)) for what, before, after in changes)
