"""What a check finds: every violation at once, with its causes and with repairs, as values."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .._units import binary, counted
from ..errors import ArgumentError, OutOfMemoryError, SplitError
from ..split import Decision, Rule

if TYPE_CHECKING:
    from .plan import SplitPlan
    from .values import PlanNode

__all__ = ["CheckReport", "Origin", "Repair", "Violation", "ViolationSource", "alike", "folded_name"]

_MOST_SOURCES = 4


@dataclass(frozen=True, slots=True)
class Origin:
    """A weight or cache that decided a split, and the rule that decided it."""

    tensor: str
    split: str
    """In the short notation; empty where it is not known (llama.cpp's own rules)."""
    rule: str
    """The rule's number and text, such as ``rule 2 'ffn_down': S0 3:1``; ``no rule`` where it is mirrored for want of one."""

    def __str__(self) -> str:
        return f"{self.tensor}{' ' + self.split if self.split else ''} ({self.rule})"


@dataclass(frozen=True, slots=True)
class ViolationSource:
    """What a node is computed from, as the nodes see it."""

    name: str
    type: str
    ne: tuple[int, ...]
    split: str
    """In the short notation; ``-``: not on the meta device."""
    origins: tuple[Origin, ...] = ()

    def __str__(self) -> str:
        return f"'{self.name}' {self.type} {list(self.ne)} {self.split}"


@dataclass(frozen=True, slots=True)
class Repair:
    """A change that makes a node legal."""

    text: str
    rules: tuple[Rule, ...] = ()
    """Rules to put in front of the others; empty: the text says what to change."""
    tried: bool = False
    """The check was made again with these rules: the violation was gone, and none had come."""

    def __str__(self) -> str:
        return f"{self.text}{' (tried)' if self.tried else ''}"


@dataclass(frozen=True, slots=True)
class Violation:
    """A node, rule, device or option that would be refused, or computed wrongly."""

    kind: str
    """``rule`` (a tensor cannot be split as its rule says), ``split`` (splits that do not go together at a node), ``device``
    (a device does not support its slice), ``output`` (it cannot be read), ``memory``, ``option``, ``model`` (llama.cpp refuses)."""
    node: str
    """The node; the tensor of a rule; the device of a memory that is too small; the option."""
    op: str
    type: str
    ne: tuple[int, ...]
    reason: str
    sources: tuple[ViolationSource, ...] = ()
    repairs: tuple[Repair, ...] = ()
    rule: str = ""
    """The rule behind it, where it is one: see `Origin`."""
    detail: str = ""
    """ggml's own words, where there are others."""
    alike: tuple[str, ...] = ()
    """Nodes of other layers that are refused for the same reason, in `CheckReport.folded`."""

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The weights and caches that decided the splits of its sources, with their rules."""
        return tuple(dict.fromkeys(o for s in self.sources for o in s.origins))

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is about: two checks speak of the same violation when these are equal."""
        return self.kind, self.node, self.op

    def __str__(self) -> str:
        about = f" ({self.op}, {self.type} {list(self.ne)})" if self.op and self.op != "NONE" else f" ({self.type} {list(self.ne)})" if self.type else ""
        more = f" and {len(self.alike)} alike" if self.alike else ""
        lines = [f"{self.kind}: '{self.node}'{more}{about}: {self.reason}"]
        if self.rule:
            lines.append(f"    by {self.rule}")
        for i, s in enumerate(self.sources[:_MOST_SOURCES]):
            because = "; ".join(map(str, s.origins[:3])) + ("; …" if len(s.origins) > 3 else "")
            lines.append(f"    src{i} {s}" + (f"  <- {because}" if because else ""))
        lines += [f"    legal repair: {r}" for r in self.repairs]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The outcome of a check. `ok` is the verdict: it would be placed, run and read, and say what one device says."""

    about: str
    """What was checked."""
    violations: tuple[Violation, ...] = ()
    unjudged: tuple[str, ...] = ()
    """Nodes that are refused only behind something that was refused: with that repaired they may be legal."""
    notices: tuple[str, ...] = ()
    """What is legal, but perhaps not what was meant: shares that could not be had, devices without a share."""

    @property
    def ok(self) -> bool:
        """Whether there is no violation."""
        return not self.violations

    def __len__(self) -> int:
        return len(self.violations)

    def __iter__(self) -> Iterator[Violation]:
        return iter(self.violations)

    def __bool__(self) -> bool:
        return self.ok

    def folded(self) -> tuple[Violation, ...]:
        """The violations with those of alike layers in one."""
        groups: dict[object, list[Violation]] = {}
        for v in self.violations:
            groups.setdefault(alike(v), []).append(v)
        return tuple(replace(vs[0], alike=tuple(v.node for v in vs[1:])) for vs in groups.values())

    def raise_if_illegal(self) -> CheckReport:
        """Itself, where it is legal.

        Raises:
            SplitError: it is not; all violations are in the message, and in `SplitError.violations`.
            OutOfMemoryError: all that is wrong is that devices have too little memory.
        """
        if self.ok:
            return self
        if all(v.kind == "memory" for v in self.violations):
            raise OutOfMemoryError(str(self))
        first = next(v for v in self.violations if v.kind != "memory")
        error = SplitError(
            str(self),
            node=first.node,
            op=first.op,
            sources=tuple((s.name, s.split) for s in first.sources),
            repair=first.repairs[0].text if first.repairs else None,
        )
        error.violations = self.violations
        raise error

    def to_dict(self) -> dict[str, Any]:
        """For JSON, schema ``pyggml.check/1``."""
        plain = [asdict(replace(v, repairs=())) | {"repairs": [_plain_repair(r) for r in v.repairs]} for v in self.violations]
        return {
            "schema": "pyggml.check/1",
            "about": self.about,
            "ok": self.ok,
            "violations": plain,
            "unjudged": list(self.unjudged),
            "notices": list(self.notices),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def __str__(self) -> str:
        if self.ok:
            return "\n".join((f"{self.about}: legal", *(f"  notice: {n}" for n in self.notices)))
        n = len(self.violations)
        lines = [f"{self.about}: {n} violation{'s' if n > 1 else ''}"]
        lines += [f"  {v}".replace("\n", "\n  ") for v in self.folded()]
        if self.unjudged:
            lines.append(f"  {len(self.unjudged)} {'node' if len(self.unjudged) == 1 else 'nodes'} behind refused, too, perhaps only for that: {', '.join(self.unjudged[:3])}{', …' if len(self.unjudged) > 3 else ''}")
        return "\n".join((*lines, *(f"  notice: {n}" for n in self.notices)))


def _plain_repair(repair: Repair) -> dict[str, Any]:
    return {"text": repair.text, "tried": repair.tried, "rules": [[r.pattern, str(r.split)] for r in repair.rules]}


def folded_name(name: str) -> str:
    """A name without its numbers: alike layers have the same."""
    return re.sub(r"\d+", "#", name)


def alike(v: Violation) -> object:
    """Equal for violations of alike layers."""

    def origins(s: ViolationSource) -> tuple[object, ...]:
        # what is whole comes from here and there, in every layer from more
        return tuple((folded_name(o.tensor), o.split, o.rule) for o in s.origins) if s.split.startswith("S") or [o.tensor for o in s.origins] == [s.name] else ()

    return (
        v.kind, folded_name(v.node) if v.kind != "memory" else v.node, v.op, v.type, v.ne, folded_name(v.reason), v.rule,
        tuple((folded_name(s.name), s.split, s.ne, origins(s)) for s in v.sources),
    )  # fmt: skip


def violations_from(found: Mapping[str, Any], origins: Mapping[str, Origin]) -> tuple[tuple[Violation, ...], tuple[str, ...]]:
    """From what ``pgg_meta_check_take`` returned: violations, and names of what was not judged.

    Args:
        origins: by the name of a weight or cache; those without one are llama.cpp's business.
    """

    def origin(name: str) -> Origin:
        return origins.get(name) or Origin(name, "", "llama.cpp's own rules")

    out = []
    for v in found["violations"]:
        sources = tuple(
            ViolationSource(s["name"], s["type"], _ne(s["ne"]), s["split"], tuple(origin(name) for name in s["roots"])) for s in v["sources"]
        )
        rule = origin(v["node"]).rule if v["kind"] == "rule" else ""
        repairs = (Repair(v["repair"]),) if v["repair"] else ()
        out.append(Violation(v["kind"], v["node"], v["op"], v["type"], _ne(v["ne"]), v["reason"], sources, repairs, rule, v["detail"]))
    # the same node may be in several graphs of a run: with other numbers of tokens
    first = {(v.key, tuple(s.name for s in v.sources)): v for v in reversed(out)}
    return tuple(v for v in out if first[v.key, tuple(s.name for s in v.sources)] is v), tuple(found["unjudged"])


def violation_of(error: SplitError) -> Violation:
    """A refusal that could not be collected."""
    sources = tuple(ViolationSource(name, "", (), split) for name, split in error.sources)
    repairs = (Repair(error.repair),) if error.repair else ()
    return Violation("split", error.node or "", error.op or "", "", (), str(error).partition("; legal repair: ")[0], sources, repairs)


def memory_violations(names: Sequence[str], has: Sequence[int], needs: Sequence[int], otherwise: str) -> tuple[Violation, ...]:
    """One for each device that has less than it needs; where none has, one that says what the device said."""
    text = "other shares, fewer tokens or a smaller context, or more devices"
    out = tuple(
        Violation("memory", name, "", "", (), f"{binary(need)} are needed, there are {binary(have)}: {need - have:,} bytes too few", repairs=(Repair(text),))
        for name, have, need in zip(names, has, needs, strict=True)
        if have and need > have
    )
    return out or (Violation("memory", ", ".join(names), "", "", (), otherwise, repairs=(Repair(text),)),)


def _ne(ne: Sequence[int]) -> tuple[int, ...]:
    n = len(ne)
    while n > 1 and ne[n - 1] == 1:
        n -= 1
    return tuple(int(x) for x in ne[:n])


def check_plan(plan: SplitPlan, memory: Mapping[str, int] | Sequence[int] | None) -> CheckReport:
    """See `SplitPlan.check`."""
    has = None if memory is None else _memory_of(plan, memory)
    found: list[Violation] = []
    for node in _read_unsummed(plan):
        sources = tuple(ViolationSource(s.name, s.type, _ne(s.ne), str(s.split or "-")) for s in plan.sources(node))
        repair = Repair("a node behind it in its graph, so that it is summed")
        reason = "it is a sum that its graph ends before, and a later graph reads what one device has of it"
        found.append(Violation("split", node.name, node.op, node.type, _ne(node.ne), reason, sources, (repair,)))
    if has is not None:
        needs = [m.total for m in plan.memory]
        if any(n > h > 0 for n, h in zip(needs, has, strict=True)):
            found += memory_violations([m.name for m in plan.memory], has, needs, "")
    notices = [f"{leaf.name}: shares {_ratio(leaf.asked or ())} were asked for, it has {_ratio(plan.achieved_shares(leaf.name))}" for leaf in plan.missed_shares()]
    held = plan.weight_bytes()
    if any(w.split for w in held):
        notices += [f"{w.name} has no part of any split weight" for w in held if not w.split]
    return CheckReport(f"plan over {', '.join(plan.devices)}", tuple(found), (), _folded_notices(notices))


def _memory_of(plan: SplitPlan, memory: Any) -> list[int]:
    """Bytes that each device has; 0: no limit."""
    if not isinstance(memory, Mapping):
        if not isinstance(memory, Sequence) or isinstance(memory, (str, bytes)):
            raise ArgumentError(f"memory={memory!r:.80}: expected bytes by device, or a list in the order of {', '.join(plan.devices)}")
        if len(memory) != len(plan.devices):
            raise ArgumentError(f"memory of {counted(len(memory), 'device')}, the plan has {len(plan.devices)}: {', '.join(plan.devices)}")
        memory = dict(zip(plan.devices, memory, strict=True))
    if strange := [d for d in memory if d not in plan.devices]:
        raise ArgumentError(f"memory of {', '.join(map(str, strange))}: the plan's devices are {', '.join(plan.devices)}")
    for d, n in memory.items():
        if not isinstance(n, (int, float)) or not 0 <= n < math.inf:
            raise ArgumentError(f"memory of {d}: {n!r:.80}: expected a number of bytes, 0 for no limit")
    return [int(memory.get(d, 0)) for d in plan.devices]


def _read_unsummed(plan: SplitPlan) -> list[PlanNode]:
    """Summands that no all-reduce completes, because their graph ends, and that a later graph reads."""
    if len(plan.devices) < 2:
        return []
    summed = {r.subgraph for r in plan.allreduces}
    read = {s for x in plan.nodes for s in x.sources if s < len(plan.nodes) and plan.nodes[s].subgraph != x.subgraph}
    return [
        x
        for x in plan.nodes
        if x.index in read and x.subgraph not in summed and (x.pending or (x.split is not None and x.split.axis == "P"))
    ]


def shares_missed(decisions: Mapping[str, Decision], tolerance: float = 0.005) -> tuple[str, ...]:
    """Rules whose shares could not be had: whole blocks and heads took some away."""
    out = []
    for name, d in decisions.items():
        if d.asked == str(d.state):
            continue  # indices were asked for
        asked, got = d.asked_shares, d.achieved_shares
        if len(asked) == len(got) and any(abs(a - g) > tolerance for a, g in zip(asked, got, strict=True)):
            out.append(f"{name}: shares {_ratio(asked)} were asked for, it has {_ratio(got)}")
    return _folded_notices(out)


def idle_rules(decisions: Mapping[str, Decision], rules: Sequence[Rule], first: int = 0) -> tuple[str, ...]:
    """Rules that decide about nothing that is on the devices: a wrong letter in a name, or another rule stands in front.

    Args:
        decisions: for every weight and cache that was asked about.
        rules: the user's.
        first: what `Decision.rule` is for the first of them.
    """
    deciders = {name: d.rule - first for name, d in decisions.items() if d.rule is not None}
    used = set(deciders.values())
    out = []
    for i, one in enumerate(rules):
        if i in used:
            continue
        taken = [name for name in decisions if re.search(one.pattern, name)]
        if taken:
            front = sorted({deciders[name] for name in taken if 0 <= deciders.get(name, -1) < i})
            what = f"{taken[0]}{', …' if len(taken) > 1 else ''}"
            why = f"about {what} decides {' and '.join(f'your rule {r + 1}' for r in front)}, in front of it" if front else f"it leaves {what} to others"
        else:
            close = difflib.get_close_matches(one.pattern, decisions, 3, 0.5)
            why = "nothing of that name is on the devices" + (f"; similar: {', '.join(close)}" if close else "")
        out.append(f"your rule {i + 1}, {one}, decides nothing: {why}")
    return tuple(out)


def _ratio(shares: Sequence[float]) -> str:
    return ":".join(f"{s:.3g}" for s in shares)


def _folded_notices(notices: Sequence[str]) -> tuple[str, ...]:
    groups: dict[tuple[str, str], list[str]] = {}
    for text in notices:
        name, colon, rest = text.partition(":")
        groups.setdefault((folded_name(name) if colon else text, rest), []).append(text)
    return tuple(f"{texts[0]}{f' (and {len(texts) - 1} alike)' if len(texts) > 1 else ''}" for texts in groups.values())
