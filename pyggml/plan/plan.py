"""The plan of a run: what ggml inferred from a compute graph for the devices of a meta device.

A plan is a value. It is made from what native code saw while ggml itself split, cut and (on simulated devices) ran the
graph, see docs/plan-capture.md: nothing in here infers anything. Shapes (``ne``) and axes are in ggml's order, axis 0
contiguous; splits are written in the short notation of `pyggml.split`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ArgumentError, Error
from ..split import Decision, Rule, SplitState
from .values import AllReduce, PlanLeaf, PlannedMemory, PlanNode, PlanRule, Subgraph, WeightBytes

if TYPE_CHECKING:
    from rich.console import Console

    from ..report.view import View
    from ..tracing import Trace
    from .check import CheckReport
    from .diff import PlanDiff
    from .explain import Explanation

__all__ = ["SCHEMA", "Detail", "PlanKeyError", "SplitPlan"]

SCHEMA = "pyggml.plan/2"
OLD_SCHEMA = "pyggml.plan/1"
"""Read, too: without rules and causes, and without the steps of communicators."""

_LAYER = r"(?<=blk\.)\d+|(?<=_l)\d+$|(?<=-)\d+$"
# caches that llama.cpp renames while it builds graphs, and how they are called when they are placed
_RENAMED = {"conv_states_all-#": "cache_r_l", "mamba_conv1d_state-#": "cache_r_l", "ssm_states_all-#": "cache_s_l", "mamba_ssm_states-#": "cache_s_l"}

Detail = Literal["layers", "nodes", "all"]


class PlanKeyError(Error, KeyError):
    """The plan has no node or leaf of that name."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """What runs where. Equal and hashed by content; ``plan["name"]`` and ``plan[7]`` look nodes and leafs up."""

    devices: tuple[str, ...]
    nodes: tuple[PlanNode, ...]
    leafs: tuple[PlanLeaf, ...]
    subgraphs: tuple[Subgraph, ...]
    allreduces: tuple[AllReduce, ...]
    memory: tuple[PlannedMemory, ...]
    host: Mapping[str, Any] | None = field(default=None, hash=False)
    """What runs on the host besides, as far as known; numbers and words by name."""
    rules: tuple[PlanRule, ...] = ()
    """The rules that the plan was made with, in the order in which they were asked."""
    _names: dict[str, PlanNode | PlanLeaf] = field(default_factory=dict, init=False, repr=False, compare=False)

    # making

    @classmethod
    def from_captures(
        cls,
        captures: Mapping[str, Any] | str | bytes,
        *,
        host: Mapping[str, Any] | None = None,
        asked: Mapping[str, Sequence[float]] | None = None,
        rules: Sequence[Rule] = (),
        n_yours: int | None = None,
        decisions: Mapping[str, Decision] | None = None,
        otherwise: str = "default",
        communicator: str = "",
    ) -> SplitPlan:
        """From what ``pgg_meta_capture_take`` returns for one run: its JSON text, or that text parsed.

        Args:
            captures: ``{"graphs": [...]}``. Several graphs are put behind each other, in the order in which they ran.
            host: what the host does besides, kept as it is.
            asked: shares that were asked for, by the name of a weight.
            rules: the rules, in the order in which they were asked.
            n_yours: how many of them, from the first, are the user's; the rest are the architecture's. None: all.
            decisions: what rules decided, by the name of a tensor. None: not known, and no leaf says what decided it.
            otherwise: what decides where no rule does: ``default`` (mirrored) or ``policy`` (llama.cpp's).
            communicator: the backend whose communicator sums, such as ``VCPU``, if that is known.

        Raises:
            FileFormatError: it is not such a capture; the message says where.
        """
        from .json import Provenance, from_captures

        known = Provenance(rules, len(rules) if n_yours is None else n_yours, decisions, otherwise)
        return from_captures(captures, host, asked, known, communicator)

    @classmethod
    def from_json(cls, text: str | bytes) -> SplitPlan:
        """From what `to_json` wrote.

        Raises:
            FileFormatError: it is not JSON, of another schema, or damaged; the message says where.
        """
        from .json import from_json

        return from_json(text)

    def to_json(self, *, indent: int | None = None) -> str:
        """The plan as JSON, schema ``pyggml.plan/2`` (docs/plan-capture.md)."""
        from .json import to_json

        return to_json(self, indent)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of what `to_json` writes; the file is ``pyggml/plan/schema/plan-2.json``."""
        from importlib.resources import files

        found: dict[str, Any] = json.loads((files("pyggml.plan") / "schema" / "plan-2.json").read_text(encoding="utf-8"))
        return found

    # looking up

    def __getitem__(self, key: str | int) -> PlanNode | PlanLeaf:
        """A node by its index, or the first node (else the first leaf) of a name.

        Raises:
            PlanKeyError: there is none of that name or index; similar names are told.
            ArgumentError: it is neither.
        """
        if isinstance(key, int):
            if not -len(self.nodes) <= key < len(self.nodes):
                raise PlanKeyError(f"the plan has no node {key}: it has {len(self.nodes)}, counted from 0")
            return self.nodes[key]
        if not isinstance(key, str):
            raise ArgumentError(f"plan[{key!r:.80}]: expected a name or the index of a node, got {type(key).__name__}")
        if not self._names:
            for node in self.nodes:
                self._names.setdefault(node.name, node)
            for leaf in self.leafs:
                self._names.setdefault(leaf.name, leaf)
            for x in self.nodes:
                self._names.setdefault(x.label, x)
            for leaf in self.leafs:
                self._names.setdefault(leaf.label, leaf)
        try:
            return self._names[key]
        except KeyError:
            import difflib

            close = difflib.get_close_matches(key, self._names, 3, 0.4)
            hint = f"; similar: {', '.join(close)}" if close else ""
            raise PlanKeyError(
                f"the plan has no node or leaf named {key!r} among {len(self.nodes)} nodes and {len(self.leafs)} leafs{hint}"
            ) from None

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except (LookupError, ArgumentError):
            return False
        return True

    def __iter__(self) -> Iterator[PlanNode]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def sources(self, node: PlanNode) -> tuple[PlanNode | PlanLeaf, ...]:
        """What a node is computed from."""
        n = len(self.nodes)
        return tuple(self.nodes[i] if i < n else self.leafs[i - n] for i in node.sources)

    def explain(self, what: str | int | PlanNode | PlanLeaf) -> Explanation:
        """Why a tensor is split as it is: the chain of causes back to the rules or defaults that decided (docs/plan-explain.md).

        Args:
            what: a node or leaf, its name, or the index of a node.

        Raises:
            PlanKeyError: the plan has none of that name or index.
        """
        from .explain import Explainer

        x = self.tensor(what)
        return Explainer(self).explain(x.index + (len(self.nodes) if isinstance(x, PlanLeaf) else 0))

    def tensor(self, what: str | int | PlanNode | PlanLeaf) -> PlanNode | PlanLeaf:
        """A node or leaf by itself, its name, or the index of a node.

        Raises:
            PlanKeyError: the plan has none of that name or index, or not this one.
            ArgumentError: it is none of these.
        """
        if not isinstance(what, (PlanNode, PlanLeaf)):
            return self[what]
        own = self.nodes if isinstance(what, PlanNode) else self.leafs
        if what.index >= len(own) or own[what.index] != what:
            raise PlanKeyError(f"{what.label or what.name!r} is of another plan: give its name, or ask that plan")
        return what

    def provenance(self, leaf: PlanLeaf) -> str:
        """What decided the split of a weight, a cache or an input, in words; empty where that is not known."""
        cause = leaf.cause
        if cause is None:
            return ""
        if cause.rule is not None:
            one = self.rules[cause.rule]
            return f"{one.title} ('{one.pattern}': {cause.asked or one.split})"
        return {
            "policy": "llama.cpp's own policy",
            "default": "no rule matched: mirrored",
            "input": "an input of the graph, which is whole on every device",
            "computed": "computed before this graph",
            "host": "on no device of the meta device",
        }.get(cause.kind, cause.kind)

    @property
    def allreduce_bytes(self) -> int:
        """Payload of all all-reduces of the run."""
        return sum(r.bytes for r in self.allreduces)

    def achieved_shares(self, name: str) -> tuple[float, ...]:
        """Fractions of the split axis that the devices have of a node or leaf; empty where it is not split."""
        split = self[name].split
        counts = split.counts if split is not None else ()
        return tuple(c / sum(counts) for c in counts) if sum(counts) else ()

    def weight_bytes(self) -> tuple[WeightBytes, ...]:
        """Bytes of the weights that the graph reads, for each device: really split, and mirrored."""
        n = len(self.devices)
        split, mirrored = [0] * n, [0] * n
        for leaf in self.leafs:
            if leaf.kind == "weight" and leaf.split is not None:
                to = split if isinstance(leaf.split.axis, int) else mirrored
                for j, s in enumerate(leaf.slices):
                    to[j] += s.bytes
        return tuple(WeightBytes(d, s, m) for d, s, m in zip(self.devices, split, mirrored, strict=True))

    def share_of_weights(self) -> tuple[float, ...]:
        """Fractions of the bytes of split weights that the devices have; zeros where no weight is split."""
        held = [w.split for w in self.weight_bytes()]
        return tuple(h / sum(held) if sum(held) else 0.0 for h in held)

    def split_rules(self) -> tuple[Rule, ...]:
        """The split of every weight and cache as rules with explicit split states, alike layers in one.

        They bring about the same plan again: llama.cpp's policy as data, to be changed, saved and given back.
        """
        import re

        groups: dict[tuple[str, SplitState], list[str]] = {}
        for leaf in self.leafs:
            if leaf.kind in ("weight", "fixed") and leaf.split is not None and leaf.name and leaf.op == "NONE":
                kind = re.sub(_LAYER, "#", leaf.name)
                groups.setdefault((kind, leaf.split), []).append(leaf.name)
        out = []
        for (kind, state), names in groups.items():
            numbers = [m[0] for n in names if (m := re.search(_LAYER, n))]
            text = re.escape(kind)
            placed = _RENAMED.get(kind)
            if placed is not None:
                text = f"({re.escape(placed)}|{text.removesuffix(re.escape('#'))})" + re.escape("#")
            out.append(Rule("^" + text.replace(r"\#", f"({'|'.join(numbers)})") + "$", state))
        return tuple(out)

    def missed_shares(self, tolerance: float = 0.005) -> tuple[PlanLeaf, ...]:
        """The split leafs whose shares are not those that were asked for: granularity took some away.

        Args:
            tolerance: difference of a device's fraction that counts.
        """

        def missed(leaf: PlanLeaf) -> bool:
            counts = leaf.split.counts if leaf.split is not None else ()
            if leaf.asked is None or len(counts) != len(leaf.asked) or not sum(counts):
                return False
            return any(abs(c / sum(counts) - a) > tolerance for c, a in zip(counts, leaf.asked, strict=True))

        return tuple(leaf for leaf in self.leafs if missed(leaf))

    def with_host(self, host: Mapping[str, Any] | None) -> SplitPlan:
        """The same plan with another note of what the host does."""
        return replace(self, host=host)

    def with_capacities(self, capacities: Sequence[int]) -> SplitPlan:
        """The same plan with the bytes that each device has (0: not known)."""
        return replace(self, memory=tuple(replace(m, capacity=c) for m, c in zip(self.memory, capacities, strict=True)))

    def diff(self, other: SplitPlan) -> PlanDiff:
        """What differs in `other`, this plan being the one before: splits, all-reduces, bytes, memory.

        ``print(plan.diff(other))`` tells it, the same change in several layers once; it is false where the plans are equal.
        """
        from .differing import plan_diff

        return plan_diff(self, other)

    def __eq__(self, other: object) -> bool:
        # not the dataclass's: pytest would look into that one's fields, line by line, when plans differ
        if not isinstance(other, SplitPlan):
            return NotImplemented
        return self is other or all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self) if f.compare)

    def __repr__(self) -> str:
        return f"<SplitPlan: {', '.join(self.devices)}, {len(self.nodes)} nodes, {len(self.allreduces)} all-reduces>"

    def check(self, memory: Mapping[str, int] | Sequence[int] | None = None) -> CheckReport:
        """What can be said against a plan that exists: memory that devices have not, shares that could not be had.

        A split that is illegal has no plan: `Graph.check` and `check_model` say all that is wrong with it.

        Args:
            memory: bytes that the devices have, in order or by name (0: no limit); None: not looked at.

        Raises:
            ArgumentError: memory of another number of devices, of devices that the plan has not, or that is no number of bytes.
        """
        from .check import check_plan

        return check_plan(self, memory)

    # showing

    def summary(self) -> str:
        """Devices, counts, all-reduces, memory and weights in a few lines."""
        from ..report.plan_text import summary

        return summary(self)

    def table(self, detail: Detail = "nodes", *, fold: bool = True) -> str:
        """The nodes as text without colour.

        Args:
            detail: ``layers``: a line for each layer; ``nodes``: every operation; ``all``: views, weights and inputs too.
            fold: identical layers are shown once.
        """
        from ..report.plan_text import table

        return table(self, detail, fold)

    def render(self, console: Console | None = None, *, fold: bool = True, detail: Detail = "nodes") -> None:
        """Prints table and summary to a rich console (default: standard output). Arguments as for `table`."""
        from ..report.plan_rich import render

        render(self, console, detail, fold)

    def tree(self, detail: Detail = "nodes", *, fold: bool = True) -> View:
        """Layers, their subgraphs, nodes and all-reduces as a tree; printed plain, with ``.print()`` in colours.

        Arguments as for `table`.
        """
        from ..report.plan_draw import tree

        return tree(self, detail, fold)

    def picture(self, name: str | int | PlanNode | PlanLeaf) -> View:
        """What each device has of a tensor, drawn: the split axis in the devices' colours and numbers.

        Args:
            name: of a node or leaf, the index of a node, or one itself; as for `explain`.

        Raises:
            PlanKeyError: there is none of that name or index; similar names are told.
        """
        from ..report.plan_draw import picture

        return picture(self, name)

    def memory_bars(self, width: int = 50) -> View:
        """The memory of each device as bars of the same scale: weights, mirrored weights, caches, compute, reduction.

        Args:
            width: characters of the longest bar, 1 to 10,000.

        Raises:
            ArgumentError: another width.
        """
        from ..report.plan_draw import memory_bars

        return memory_bars(self, width)

    def to_html(self, path: str | os.PathLike[str] | None = None, *, title: str | None = None, trace: Trace | None = None) -> str:
        """The plan as a page: one file that needs no network, light and dark, with search, graph, slices and explanations.

        Args:
            path: where to write it, as UTF-8; None: nowhere.
            title: its heading; None: the devices are named.
            trace: measured times of a run of the same plan, shown on it.

        Returns: the page.

        Raises:
            ArgumentError: the trace is none, or has no run of this plan, or not its devices.
        """
        from ..report.plan_html import to_html
        from ..report.view import write_text

        page = to_html(self, title, trace)
        if path is not None:
            write_text(page, path)
        return page

    def _repr_html_(self) -> str:
        from ..report.plan_notebook import to_notebook

        return to_notebook(self)

    def to_dot(self, detail: Detail = "nodes", *, fold: bool = True) -> str:
        """The graph as text for Graphviz: layers in boxes, all-reduces between nodes. Arguments as for `table`."""
        from ..report.plan_graph import to_dot

        return to_dot(self, detail, fold)

    def to_mermaid(self, detail: Detail = "layers", *, fold: bool = True) -> str:
        """The graph as text for Mermaid, as Markdown pages show it. Arguments as for `table`."""
        from ..report.plan_graph import to_mermaid

        return to_mermaid(self, detail, fold)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Every node and leaf as a line of CSV, in the order of ``plan.nodes`` and ``plan.leafs``.

        ``sources`` are numbers of lines, as in `PlanNode.sources`. Written to ``path``, too, where one is given.
        """
        from ..report.plan_csv import to_csv
        from ..report.view import write_text

        text = to_csv(self)
        if path is not None:
            write_text(text, path)
        return text

    def __str__(self) -> str:
        return self.table() + "\n" + self.summary()
