"""The parts of a plan: nodes, leafs, subgraphs, all-reduces, memory. Values without behaviour of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..split import Segment, SplitState

__all__ = ["VIEW_OPS", "AllReduce", "PlanLeaf", "PlanNode", "PlannedMemory", "Runs", "Shape", "Slice", "Subgraph", "WeightBytes", "parse_state"]

# enum ggml_tensor_flag
_INPUT, _OUTPUT, _COMPUTE = 1, 2, 16

# ops that only give existing memory another shape
VIEW_OPS = frozenset({"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"})

Shape = tuple[int, int, int, int]
Runs = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """What one device has of a tensor."""

    ne: Shape
    nb: Shape
    """Strides in bytes."""
    bytes: int
    compute: bool
    """Whether the device computes it; a device without a share does not."""

    @property
    def empty(self) -> bool:
        """Whether the device has nothing of the tensor."""
        return 0 in self.ne


@dataclass(frozen=True, slots=True)
class PlanNode:
    """One operation of the graph."""

    index: int
    name: str
    op: str
    """As ggml calls it, such as ``MUL_MAT`` or ``SILU``."""
    type: str
    ne: Shape
    bytes: int
    """Of the whole tensor."""
    flags: int
    split: SplitState | None
    """As it is computed; None where there is none: the tensor is empty or not on the meta device."""
    synced: SplitState | None
    """As the nodes behind it see it: a partial sum counts as summed."""
    slices: tuple[Slice, ...]
    """One a device; empty where `split` is None."""
    sources: tuple[int, ...]
    """Numbers below ``len(plan.nodes)`` are nodes, the rest leafs: see `SplitPlan.sources`."""
    subgraph: int
    pending: bool = False
    """It is computed from a partial sum whose all-reduce was delayed: until then every device has a summand of it,
    although ggml's split says mirrored."""
    runs: Runs | None = None
    """For each device the stretches (start, length) of global indices along the split axis, in the order of its
    slice. None: the slices put behind each other give the whole, or nothing is split."""

    @property
    def is_input(self) -> bool:
        """Whether the graph's builder marked it as an input."""
        return bool(self.flags & _INPUT)

    @property
    def is_output(self) -> bool:
        """Whether the graph's builder marked it as an output."""
        return bool(self.flags & _OUTPUT)

    @property
    def is_view(self) -> bool:
        """Whether it computes nothing: another shape of memory that exists."""
        return self.op in VIEW_OPS

    @property
    def zero_share(self) -> tuple[int, ...]:
        """The devices that have nothing of it, or nothing to compute for it."""
        computed = bool(self.flags & _COMPUTE) and not self.is_view
        return tuple(j for j, s in enumerate(self.slices) if s.empty or (computed and not s.compute))


@dataclass(frozen=True, slots=True)
class PlanLeaf:
    """A tensor that the graph reads but does not compute."""

    index: int
    name: str
    op: str
    """``NONE``, or what computed it before this graph."""
    type: str
    ne: Shape
    bytes: int
    flags: int
    kind: str
    """``weight``; ``fixed`` (placed once, such as a KV cache); ``input`` (placed with the graph); ``unallocated``."""
    split: SplitState | None
    slices: tuple[Slice, ...]
    runs: Runs | None = None
    asked: tuple[float, ...] | None = None
    """Shares of the devices that were asked for, as fractions; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Subgraph:
    """Nodes ``start`` to ``stop - 1``: every device runs its part of them without waiting for the others."""

    start: int
    stop: int
    graph: int = 0
    """Which graph of the run it belongs to: llama.cpp's scheduler may compute several."""


@dataclass(frozen=True, slots=True)
class AllReduce:
    """A sum over all devices, after the last node of a subgraph."""

    after: int
    after_name: str
    partial: tuple[int, ...]
    """All nodes of the subgraph that ggml calls partial."""
    origins: tuple[int, ...]
    """Those of them at which the sums arise: they have no partial source."""
    delayed_from: tuple[str, ...]
    """The names of `origins` where the all-reduce comes later than it could; several: they were merged into one."""
    bytes: int
    """Payload: bytes of the tensor that is summed."""
    computes: tuple[bool, ...]
    """Which devices contribute; the others count as zero."""
    algorithm: str
    """``communicator`` (the devices' own all-reduce) or ``butterfly`` (ggml's copies and additions)."""
    subgraph: int

    @property
    def delayed(self) -> bool:
        """Whether something was computed between the partial sums and the all-reduce."""
        return bool(self.delayed_from)

    @property
    def over(self) -> int:
        """Nodes from the first partial sum to the one that is reduced."""
        return self.after - min(self.origins) if self.origins else 0


@dataclass(frozen=True, slots=True)
class PlannedMemory:
    """Bytes on one device."""

    name: str
    weights: int
    fixed: int
    """Placed once and no weights: KV caches, recurrent states."""
    compute: int
    """Buffers of graphs: inputs and everything that is computed."""
    reduction: int
    """Where the butterfly puts the other devices' summands."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.fixed + self.compute + self.reduction


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of the weights that a graph reads, on one device."""

    name: str
    split: int
    """Its slices of weights that are split."""
    mirrored: int
    """Weights that every device has whole."""


@lru_cache(maxsize=4096)
def parse_state(text: str) -> SplitState | None:
    """A split state from its short notation, such as ``S1 [64:64 x2, 32:32]``; None from ``-``."""
    if text == "-":
        return None
    if text in ("M", "P"):
        return SplitState(text)
    head, _, rest = text.partition(" ")
    if len(head) != 2 or head[0] != "S" or head[1] not in "0123" or not rest:
        raise ValueError(f"{text!r} is no split state: M, P, 'S1 48:16' and 'S1 [64:64 x2, 32:32]' are")
    segments = []
    for part in rest.strip("[]").split(", "):
        ne, _, nr = part.partition(" x")
        segments.append(Segment(tuple(map(int, ne.split(":"))), int(nr) if nr else 1))
    return SplitState(int(head[1]), tuple(segments))
