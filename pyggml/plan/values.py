"""The parts of a plan: nodes, leafs, subgraphs, all-reduces, memory. Values without behaviour of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ..split import Segment, SplitState

__all__ = [
    "VIEW_OPS",
    "AllReduce",
    "Cause",
    "PlanLeaf",
    "PlanNode",
    "PlanRule",
    "PlannedMemory",
    "ReduceStep",
    "Runs",
    "Shape",
    "Slice",
    "Subgraph",
    "WeightBytes",
    "butterfly_steps",
    "parse_state",
    "shared_memory_steps",
]

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
    although ggml's split says mirrored. Where the graph ends before that all-reduce, whoever reads it adds the summands up."""
    runs: Runs | None = None
    """For each device the stretches (start, length) of global indices along the split axis, in the order of its
    slice. None: the slices put behind each other give the whole, or nothing is split."""
    label: str = ""
    """The name to read: ggml names a view of something unnamed just `` (reshaped)``, here it is ``Qcur-0 (reshaped)``."""

    @property
    def computed(self) -> bool:
        """Whether any device has something to compute for it: a view has not, nor what nothing needs."""
        return not self.is_view and any(s.compute for s in self.slices)

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
class PlanRule:
    """A rule that the plan was made with."""

    index: int
    """Its place in ``plan.rules``. The first rule that is found in a name decides."""
    origin: str
    """``yours``, or ``architecture``: one that pyggml knows for the model's architecture (docs/architectures.md)."""
    number: int
    """Its place among the rules of the same origin, from 1."""
    pattern: str
    split: str
    """In short notation; ``a function`` for one that is a function of a tensor."""
    granularity: int = 1
    units: int | None = None

    @property
    def title(self) -> str:
        """``your rule 2``, ``architecture rule 5``."""
        return f"{'your' if self.origin == 'yours' else self.origin} rule {self.number}"

    def __str__(self) -> str:
        more = (f", {self.units} units" if self.units is not None else "") + (f", in steps of {self.granularity}" if self.granularity != 1 else "")
        return f"{self.title} ('{self.pattern}': {self.split}{more})"


@dataclass(frozen=True, slots=True)
class Cause:
    """What decided the split of a weight, a cache or an input. `SplitPlan.provenance` says it in words."""

    kind: str
    """``rule``; ``policy`` (no rule matched: llama.cpp's own policy); ``default`` (no rule matched: mirrored); ``input``
    (placed with the graph: always whole); ``computed`` (the result of a graph before this one); ``host`` (on no device)."""
    rule: int | None = None
    """The index of the rule in ``plan.rules``."""
    asked: str | None = None
    """The split that the rule asked for, in short notation, such as ``S1 3:1``; what was achieved is the leaf's split.
    A share that cannot be had is an error; what is rounded away is the difference of the two."""


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
    cause: Cause | None = None
    """What decided the split; None: the plan was made without that knowledge."""
    label: str = ""
    """The name to read."""


@dataclass(frozen=True, slots=True)
class Subgraph:
    """Nodes ``start`` to ``stop - 1``: every device runs its part of them without waiting for the others."""

    start: int
    stop: int
    graph: int = 0
    """Which graph of the run it belongs to: llama.cpp's scheduler may compute several."""


@dataclass(frozen=True, slots=True)
class ReduceStep:
    """One thing that one device does for an all-reduce."""

    round: int
    """Steps of the same round happen at the same time; a round waits for the one before."""
    kind: str
    """``zero``: the target, which has no summand, fills its tensor with zero; ``add``: bytes of the source come to the
    target, which adds them to its own; ``copy``: they replace its own."""
    source: int | None
    """Which device, by its place in ``plan.devices``; None for ``zero``."""
    target: int
    bytes: int
    """That move from source to target; of ``zero``, that are filled."""


def butterfly_steps(n_devices: int, size: int, computes: Sequence[bool]) -> tuple[ReduceStep, ...]:
    """What ggml does where the devices have no communicator: copies between pairs of devices, and additions.

    Devices beyond the largest power of two give their summand to another first, and get the sum last.

    Args:
        n_devices: how many there are.
        size: bytes of the tensor, which every device has whole.
        computes: whether a device has a summand.
    """
    if n_devices < 2:
        return ()
    steps = [ReduceStep(0, "zero", None, j, size) for j in range(n_devices) if not computes[j]]
    n, at = 1, 1 if steps else 0
    while 2 * n <= n_devices:
        n *= 2
    rest = range(n, n_devices)
    steps += [ReduceStep(at, "add", j, j - n, size) for j in rest]
    at += bool(rest)
    offset = n // 2
    while offset:
        steps += [ReduceStep(at, "add", j, j ^ offset, size) for j in range(n)]
        at, offset = at + 1, offset // 2
    steps += [ReduceStep(at, "copy", j - n, j, size) for j in rest]
    return tuple(steps)


def shared_memory_steps(n_devices: int, n_elements: int, size: int, computes: Sequence[bool]) -> tuple[ReduceStep, ...]:
    """What virtual CPUs do: each sums a stretch of the tensor over all devices, and writes it to all of them.

    Args:
        n_devices: how many there are.
        n_elements: elements of the tensor. Stretches begin at multiples of 32.
        size: its bytes.
        computes: whether a device has a summand.
    """
    width = size // max(n_elements, 1)
    begin = [0, *(min(n_elements, (n_elements * j // n_devices + 31) // 32 * 32) for j in range(1, n_devices)), n_elements]
    moved = [(begin[j + 1] - begin[j]) * width for j in range(n_devices)]
    pairs = [(j, k) for j in range(n_devices) for k in range(n_devices) if j != k and moved[j]]
    adds = [ReduceStep(0, "add", k, j, moved[j]) for j, k in pairs if computes[k]]
    return (*adds, *(ReduceStep(1, "copy", j, k, moved[j]) for j, k in pairs))


_WHY = {
    "mul": "a sum times a factor that every device has is the sum of the products",
    "add_id": "a bias of which every device has a summand is added on the way",
    "experts": "the sum of the experts' results needs one all-reduce, not one for each expert",
    "merged": "two partial results are added, and their sum needs one all-reduce, not two",
}


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
    type: str = "f32"
    ne: Shape = (1, 1, 1, 1)
    """Shape of the tensor that is summed."""
    reasons: tuple[str, ...] = ()
    """Why it was delayed: ``mul``, ``add_id``, ``experts``, ``merged``; see `why`."""
    communicator: str = ""
    """The backend whose communicator it is, such as ``VCPU`` or ``CUDA``; nothing: not known, or the butterfly."""
    steps: tuple[ReduceStep, ...] | None = None
    """What the devices do for it; None: the algorithm is the communicator's own and not known."""

    @property
    def delayed(self) -> bool:
        """Whether something was computed between the partial sums and the all-reduce."""
        return bool(self.delayed_from)

    @property
    def merged(self) -> bool:
        """Whether it completes several sums at once."""
        return len(self.origins) > 1

    @property
    def over(self) -> int:
        """Nodes from the first partial sum to the one that is reduced."""
        return self.after - min(self.origins) if self.origins else 0

    @property
    def why(self) -> str:
        """Why it was delayed or merged, in words; empty where it was not."""
        return "; ".join(_WHY.get(r, r) for r in self.reasons)

    @property
    def how(self) -> str:
        """The algorithm in words."""
        if self.algorithm == "butterfly":
            return "butterfly: ggml's copies between pairs of devices, and additions"
        if self.communicator == "VCPU":
            return "shared memory: each virtual CPU sums a stretch for all"
        return f"the communicator of {self.communicator or 'the devices'}: its steps are not known"

    @property
    def sent(self) -> tuple[int, ...] | None:
        """Bytes that leave each device; None: not known."""
        return None if self.steps is None else self._moved(s.source for s in self.steps)

    @property
    def received(self) -> tuple[int, ...] | None:
        """Bytes that come to each device; None: not known."""
        return None if self.steps is None else self._moved(None if s.source is None else s.target for s in self.steps)

    def _moved(self, at: Iterable[int | None]) -> tuple[int, ...]:
        out = [0] * len(self.computes)
        for j, step in zip(at, self.steps or (), strict=True):
            if j is not None:
                out[j] += step.bytes
        return tuple(out)


@dataclass(frozen=True, slots=True)
class PlannedMemory:
    """Bytes on one device."""

    name: str
    weights: int
    """All weights, with padding."""
    fixed: int
    """Placed once and no weights: KV caches, recurrent states."""
    compute: int
    """Buffers of graphs: inputs and everything that is computed."""
    reduction: int
    """Where the butterfly puts the other devices' summands."""
    mirrored: int = 0
    """Of `weights`, those that the graph reads and that every device has whole."""
    capacity: int = field(default=0, compare=False)
    """What the device has; 0: no limit, or not known (virtual CPUs share the memory of the host). Not compared: the plan is
    the same on a larger device."""

    @property
    def free(self) -> int:
        """What is left; negative where it does not fit, 0 where the capacity is not known."""
        return self.capacity - self.total if self.capacity else 0

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
