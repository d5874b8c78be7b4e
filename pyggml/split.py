"""Splits: how a tensor is spread over the devices of a meta device.

Axes are ggml's (axis 0 is contiguous; numpy's shape is the reverse of ``ne``). The short notation, the same in rules,
tables, errors and JSON:

========================  ============================================================================
``M``                     mirrored: whole on every device (DTensor's Replicate)
``P``                     partial: every device has a summand (DTensor's Partial)
``S1``                    split along axis 1, even shares (Megatron's column parallel, for a weight)
``S0 3:1``                split along axis 0, three quarters on the first device (row parallel)
``S1[256,64x2] 3:1``      axis 1 is made of segments (256, and twice 64); each is split by the shares
========================  ============================================================================
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ._arguments import whole
from ._ffi import ffi, lib
from .dtype import DType
from .errors import ArgumentError, SplitError

__all__ = ["Decision", "Rule", "Segment", "Split", "SplitState", "TensorInfo", "resolve", "rule"]

MAX_SEGMENTS = 16
_MAX_INDICES = 1 << 48  # of an axis
_MAX_REPEATS = (1 << 31) - 1
_MAX_LAYERS = 10_000
_SPEC = re.compile(r"S(?P<axis>[0-3])\s*(?:\[(?P<segments>[^\]]*)\])?\s*(?P<shares>{0}(?:\s*:\s*{0})*)?".replace("{0}", r"[\d.]+(?:e[+-]?\d+)?"), re.ASCII)
_SEGMENT = re.compile(r"\s*(\d{1,18})\s*(?:x\s*(\d{1,18})\s*)?", re.ASCII)


def _checked_axis(what: str, axis: Any) -> int | str:
    if isinstance(axis, str) and axis in ("M", "P"):
        return axis
    try:
        number = operator.index(axis)
    except TypeError:
        number = -1
    if not 0 <= number <= 3:
        raise ArgumentError(f"{what}(axis={axis!r:.80}): axes are 0 to 3, 'M' and 'P'")
    return number


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the split axis: indices of each device, and how often the pattern repeats."""

    ne: tuple[int, ...]
    nr: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.ne, (tuple, list)):
            raise ArgumentError(f"Segment(ne={self.ne!r:.80}): expected a tuple of indices, one number per device")
        object.__setattr__(self, "ne", tuple(whole(f"Segment: ne[{j}]", n, 0, _MAX_INDICES) for j, n in enumerate(self.ne)))
        object.__setattr__(self, "nr", whole("Segment: nr", self.nr, 1, _MAX_REPEATS))

    def __str__(self) -> str:
        return ":".join(map(str, self.ne)) + (f" x{self.nr}" if self.nr > 1 else "")


@dataclass(frozen=True, slots=True)
class SplitState:
    """ggml's split state: what every device has of a tensor."""

    axis: int | str
    """0 to 3 in ggml's order, ``"M"`` (mirrored), ``"P"`` (partial)."""
    segments: tuple[Segment, ...] = ()
    """Along the axis, in order; empty for ``M`` and ``P``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _checked_axis("SplitState", self.axis))
        if not isinstance(self.segments, (tuple, list)) or not all(isinstance(s, Segment) for s in self.segments):
            raise ArgumentError(f"SplitState(segments={self.segments!r:.80}): expected a tuple of Segment(ne, nr)")
        object.__setattr__(self, "segments", tuple(self.segments))
        if self.axis in ("M", "P") and self.segments:
            raise ArgumentError(f"SplitState(axis={self.axis!r}) with {len(self.segments)} segments: only what is split along an axis has some")
        if isinstance(self.axis, int) and not 1 <= len(self.segments) <= MAX_SEGMENTS:
            raise ArgumentError(f"SplitState(axis={self.axis}) with {len(self.segments)} segments: 1 to {MAX_SEGMENTS} are possible")
        if len({len(s.ne) for s in self.segments}) > 1:
            raise ArgumentError("SplitState: all segments need as many entries as there are devices")

    @property
    def counts(self) -> tuple[int, ...]:
        """Indices of the axis on each device, over all segments."""
        if not self.segments:
            return ()
        return tuple(sum(s.ne[j] * s.nr for s in self.segments) for j in range(len(self.segments[0].ne)))

    def __str__(self) -> str:
        if not isinstance(self.axis, int):
            return self.axis
        text = ", ".join(map(str, self.segments))
        plain = len(self.segments) == 1 and self.segments[0].nr == 1
        return f"S{self.axis} {text}" if plain else f"S{self.axis} [{text}]"


MIRRORED = SplitState("M")


def _checked_shares(shares: Any) -> tuple[float, ...]:
    try:
        if isinstance(shares, (str, bytes)):
            raise TypeError("a text is no tuple")
        found = tuple(float(s) for s in shares)
        if not found:
            raise ValueError("there is none")
        return found
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"Split(shares={shares!r:.80}): expected a tuple of numbers, one per device: {error}") from None


def _checked_segments(segments: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(segments, (tuple, list)) or not segments or not all(isinstance(s, (tuple, list)) and len(s) == 2 for s in segments):
        raise ArgumentError(f"Split(segments={segments!r:.80}): expected a tuple of pairs (length, repeats)")
    return tuple(
        (whole(f"Split: length of segment {k}", n, 0, _MAX_INDICES), whole(f"Split: repeats of segment {k}", r, 0, _MAX_REPEATS))
        for k, (n, r) in enumerate(segments)
    )


@dataclass(frozen=True, slots=True)
class Split:
    """A split that is asked for: axis, shares, and the segments of the axis. See the module for the notation."""

    axis: int | str
    shares: tuple[float, ...] | None = None
    segments: tuple[tuple[int, int], ...] | None = None
    """Length and repeats of each stretch; None: the axis is one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _checked_axis("Split", self.axis))
        if self.shares is not None:
            object.__setattr__(self, "shares", _checked_shares(self.shares))
        if self.segments is not None:
            object.__setattr__(self, "segments", _checked_segments(self.segments))
        if not isinstance(self.axis, int) and (self.shares or self.segments):
            raise ArgumentError(f"Split(axis={self.axis!r}) with shares or segments: only what is split along an axis has some")

    @classmethod
    def parse(cls, text: str) -> Split:
        """From the short notation.

        Raises:
            ArgumentError: the text is not in that notation.
        """
        if not isinstance(text, str):
            raise ArgumentError(f"{text!r:.80} is no split: a str such as 'S1 3:1' is")
        word = text.strip()
        if word.upper() in ("M", "P"):
            return cls(word.upper())
        match = _SPEC.fullmatch(word)
        if match is None:
            raise ArgumentError(f"{text!r} is no split: M, P, S1, 'S1 3:1' or 'S1[256,64x2] 3:1' are")
        try:
            shares = tuple(float(s) for s in match["shares"].split(":")) if match["shares"] else None
        except ValueError:
            raise ArgumentError(f"{text!r}: shares are numbers, such as 3:1") from None
        segments = None
        if match["segments"] is not None:
            parts = [_SEGMENT.fullmatch(p) for p in match["segments"].split(",")]
            if not all(parts):
                raise ArgumentError(f"{text!r}: segments are lengths with repeats, such as [256,64x2]")
            segments = tuple((int(p[1]), int(p[2] or 1)) for p in parts if p)
        return cls(int(match["axis"]), shares, segments)

    def __str__(self) -> str:
        if not isinstance(self.axis, int):
            return self.axis
        text = f"S{self.axis}"
        if self.segments:
            text += "[" + ",".join(f"{n}x{r}" if r > 1 else str(n) for n, r in self.segments) + "]"
        return text + (" " + ":".join(f"{s:g}" for s in self.shares) if self.shares else "")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a rule that is a function is asked about."""

    name: str
    ne: tuple[int, int, int, int]
    dtype: str
    block_size: int


RuleFunction = Callable[[TensorInfo], str | Split | SplitState | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """Which tensors (a regular expression, found anywhere in the name), and how they are split."""

    pattern: str
    split: Split | SplitState | RuleFunction
    granularity: int = 1
    """Shares are multiples of this many indices (a head's dimensions, say), besides the type's block on axis 0."""
    units: int | None = None
    """The axis consists of so many equal units (heads) that are not cut; `granularity` counts units then."""

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise ArgumentError(f"rule({self.pattern!r:.80}): the pattern is a regular expression, as a str")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ArgumentError(f"rule({self.pattern!r}): not a regular expression: {error}") from None
        if not (isinstance(self.split, (Split, SplitState)) or callable(self.split)):
            raise ArgumentError(f"rule({self.pattern!r}): expected a split such as 'S1 3:1', a SplitState or a function, got {self.split!r:.40}")
        for what, value in (("granularity", self.granularity), ("units", self.units)):
            if value is None and what == "units":
                continue
            number = whole(f"rule({self.pattern!r}): {what}", value, -_MAX_INDICES, _MAX_INDICES)
            if number < 1:
                raise ArgumentError(f"rule({self.pattern!r}, {what}={number}): at least 1")
            object.__setattr__(self, what, number)

    def __str__(self) -> str:
        return f"{self.pattern!r}: {self.split if not callable(self.split) else 'a function'}"


def rule(
    pattern: str,
    split: str | Split | SplitState | RuleFunction,
    *,
    granularity: int = 1,
    units: int | None = None,
    layers: str | int | Iterable[int] | None = None,
) -> Rule:
    """A rule for a `MetaDevice`. The first rule whose pattern is found in a tensor's name decides.

    Args:
        pattern: regular expression, searched in the name.
        split: short notation, a `Split`, an explicit `SplitState`, or a function of a `TensorInfo` that returns one
            of them (None: leave it to the next rule).
        granularity: shares are multiples of it.
        units: the axis consists of so many equal units, such as heads, that are not cut; ``granularity`` counts units then.
        layers: only in these layers of a model (``blk.N.``, caches ``_lN``): numbers, a range, or words such as ``"0-15,31"``.
            It becomes a part of the pattern.

    Raises:
        ArgumentError: the pattern or the notation is not valid.
    """
    made = Rule(pattern, Split.parse(split) if isinstance(split, str) else split, granularity, units)
    if layers is None:
        return made
    numbers = "|".join(map(str, _layer_numbers(pattern, layers)))
    return replace(made, pattern=rf"^(?=.*(blk\.|_l)({numbers})(\.|$)).*({pattern})")


def _layer_numbers(pattern: str, given: Any) -> list[int]:
    wrong = ArgumentError(f"rule({pattern!r}, layers={given!r:.80}): expected numbers of layers: 3, range(0, 16), [0, 5], or '0-15,31'")
    if isinstance(given, str):
        parts = [re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", word.strip()) for word in given.split(",")]
        if not all(parts):
            raise wrong
        given = [n for p in parts if p for n in range(int(p[1]), int(p[2] or p[1]) + 1)]
    if isinstance(given, (bytes, bool)):
        raise wrong
    try:
        numbers = sorted({operator.index(n) for n in (given if isinstance(given, Iterable) else (given,))})
    except TypeError:
        raise wrong from None
    if not numbers or numbers[0] < 0 or len(numbers) > _MAX_LAYERS:
        raise wrong
    return numbers


@dataclass(frozen=True, slots=True)
class Decision:
    """What was asked for a tensor and what was achieved."""

    tensor: TensorInfo
    rule: int | None
    """Index of the rule that decided; None: no rule matched, mirrored."""
    asked: str
    state: SplitState

    @property
    def asked_shares(self) -> tuple[float, ...]:
        """Fractions asked for; empty where nothing is split."""
        if not self.state.segments:
            return ()
        n = len(self.state.segments[0].ne)
        match = _SPEC.fullmatch(self.asked)
        if match is not None and ":" in (match["segments"] or ""):
            match = None  # a split state, with the indices of every device
        if match is None or match["shares"] is None:
            return tuple(1 / n for _ in range(n)) if match else self.achieved_shares
        shares = [float(s) for s in match["shares"].split(":")]
        return tuple(s / sum(shares) for s in shares)

    @property
    def achieved_shares(self) -> tuple[float, ...]:
        """Fractions of the axis that the devices really have."""
        counts = self.state.counts
        return tuple(c / sum(counts) for c in counts) if sum(counts) else ()


def _apportion(n: int, shares: Sequence[float], unit: int) -> tuple[int, ...]:
    """n indices in whole units by largest remainder, so that the sum is exact and no device is off by a unit."""
    units = n // unit
    total = sum(shares)
    ideal = [units * s / total for s in shares]
    counts = [math.floor(x + 1e-9) for x in ideal]
    order = sorted(range(len(shares)), key=lambda j: (counts[j] - ideal[j], j))
    for j in order[: units - sum(counts)]:
        counts[j] += 1
    return tuple(c * unit for c in counts)


def resolve(split: Split | SplitState, tensor: TensorInfo, n_devices: int, granularity: int = 1, units: int | None = None) -> SplitState:
    """The split state for a tensor: shares become whole indices, in multiples of the block and the granularity.

    With ``units`` the axis, or each of its segments, consists of so many equal units, and ``granularity`` counts those.

    Raises:
        SplitError: the axis, the segments or the number of shares do not fit the tensor; legal ones are named.
    """

    def refuse(why: str, repair: str) -> SplitError:
        ne = list(tensor.ne)
        error = SplitError(
            f"tensor {tensor.name!r} ({tensor.dtype}, ne {ne}) cannot be split as {split}: {why}; legal repair: {repair}",
            node=tensor.name,
            op="NONE",
            repair=repair,
        )
        error.reason = f"it cannot be split as {split}: {why}"
        return error

    if isinstance(split.axis, int) and tensor.ne[split.axis] == 1 and n_devices > 1:
        # ggml would give an empty slice strides as if it had a row
        other = next((f"S{axis}, or M" for axis in range(4) if tensor.ne[axis] > 1), "M")
        raise refuse(f"axis {split.axis} has one element, which cannot be spread over {n_devices} devices", other)
    if split.axis == "P" and tensor.dtype != "f32":
        # ggml puts a summand on every device by arithmetic on floats
        raise refuse(f"only f32 can be given to the devices as summands, not {tensor.dtype}", "M, or S0 or S1")
    if isinstance(split, SplitState):
        if split.segments and len(split.segments[0].ne) != n_devices:
            raise refuse(f"it has shares for {len(split.segments[0].ne)} devices, there are {n_devices}", f"{n_devices} entries a segment")
        if isinstance(split.axis, int) and sum(split.counts) != tensor.ne[split.axis]:
            raise refuse(f"its shares add up to {sum(split.counts)}", f"shares that add up to {tensor.ne[split.axis]}")
        if split.axis == 0 and any(c % tensor.block_size for s in split.segments for c in s.ne):
            raise refuse(f"shares must be multiples of {tensor.block_size}, the block of {tensor.dtype}", "whole blocks")
        return split
    if not isinstance(split.axis, int):
        return SplitState(split.axis)
    shares = split.shares or (1.0,) * n_devices
    if len(shares) != n_devices:
        raise refuse(f"{len(shares)} shares for {n_devices} devices", "as many shares as devices, such as " + ":".join(["1"] * n_devices))
    if not all(math.isfinite(s) and s >= 0 for s in shares) or not 0 < sum(shares) < math.inf:
        raise refuse("shares must be finite, not negative, and not all zero", "shares such as 3:1")
    length = tensor.ne[split.axis]
    segments = split.segments or ((length, 1),)
    if len(segments) > MAX_SEGMENTS:
        raise refuse(f"it has {len(segments)} segments, 1 to {MAX_SEGMENTS} are possible", "fewer segments, with repeats such as [64x2]")
    if sum(n * r for n, r in segments) != length or any(n < 1 or r < 1 for n, r in segments):
        raise refuse(
            f"its segments add up to {sum(n * r for n, r in segments)}, axis {split.axis} has {length}", f"segments that add up to {length}"
        )
    out = []
    for n, r in segments:
        if units is not None and n % units:
            raise refuse(f"{n} indices do not consist of {units} equal units", f"units={math.gcd(n, units)}, or another axis")
        unit = math.lcm(granularity * (n // units if units else 1), tensor.block_size if split.axis == 0 else 1)
        if n % unit:
            raise refuse(f"a segment of {n} is no multiple of {unit} (block {tensor.block_size}, granularity {granularity})", "another axis, or M")
        out.append(Segment(_apportion(n, shares, unit), r))
    return SplitState(split.axis, tuple(out))


def decide(rules: Iterable[Rule], tensor: TensorInfo, n_devices: int, shares: tuple[float, ...] | None = None) -> Decision | None:
    """The decision of the first rule that matches, or None.

    Args:
        shares: for splits that have none of their own; None: even.
    """
    for i, one in enumerate(rules):
        if re.search(one.pattern, tensor.name) is None:
            continue
        split = one.split(tensor) if callable(one.split) else one.split
        if split is None:
            continue
        if isinstance(split, str):
            try:
                split = Split.parse(split)
            except ArgumentError as error:
                raise ArgumentError(f"the rule {one.pattern!r} gave {split!r:.40} for {tensor.name!r}: {error}") from None
        elif not isinstance(split, (Split, SplitState)):
            raise ArgumentError(f"the rule {one.pattern!r} gave {split!r:.40} for {tensor.name!r}: expected a split such as 'S1', or None")
        if isinstance(split, Split) and isinstance(split.axis, int) and split.shares is None and shares is not None:
            split = replace(split, shares=shares)
        try:
            return Decision(tensor, i, str(split), resolve(split, tensor, n_devices, one.granularity, one.units))
        except SplitError as error:
            error.rule = i
            raise
    return None


def decide_or_refuse(rules: Iterable[Rule], tensor: TensorInfo, n_devices: int, shares: tuple[float, ...] | None = None) -> Decision | None:
    """`decide` for a policy: while native code collects what is wrong, a rule that does not fit is noted, and M is obeyed.

    Raises:
        SplitError: it does not fit, and nobody collects.
    """
    try:
        return decide(rules, tensor, n_devices, shares)
    except SplitError as error:
        if error.rule is None or not lib.pgg_meta_check_refuse((error.reason or str(error)).encode(), (error.repair or "").encode()):
            raise
        return Decision(tensor, error.rule, "", MIRRORED)


def tensor_info(tensor: Any, dtype: DType) -> TensorInfo:
    """What a rule may know of a ``struct ggml_tensor *``."""
    name = ffi.string(tensor.name).decode("utf-8", "replace")
    return TensorInfo(name, tuple(int(n) for n in tensor.ne), dtype.name, dtype.block_size)  # type: ignore[arg-type]


def write_state(state: SplitState, out: Any, n_devices: int) -> None:
    """Fills a ``struct ggml_backend_meta_split_state``."""
    axes = {"M": lib.GGML_BACKEND_SPLIT_AXIS_MIRRORED, "P": lib.GGML_BACKEND_SPLIT_AXIS_PARTIAL}
    out.axis = state.axis if isinstance(state.axis, int) else axes[state.axis]
    out.n_segments = max(len(state.segments), 1)
    out.nr[0] = 1
    for k, segment in enumerate(state.segments):
        out.nr[k] = segment.nr
        for j, ne in enumerate(segment.ne):
            out.ne[k * n_devices + j] = ne


def read_state(state: Any, n_devices: int) -> SplitState | None:
    """The value of a ``struct ggml_backend_meta_split_state``; None where there is none (an empty tensor)."""
    axis = int(state.axis)
    if axis == lib.GGML_BACKEND_SPLIT_AXIS_MIRRORED:
        return MIRRORED
    if axis == lib.GGML_BACKEND_SPLIT_AXIS_PARTIAL:
        return SplitState("P")
    if not 0 <= axis <= 3:
        return None
    segments = (Segment(tuple(int(state.ne[k * n_devices + j]) for j in range(n_devices)), int(state.nr[k])) for k in range(state.n_segments))
    return SplitState(axis, tuple(segments))
