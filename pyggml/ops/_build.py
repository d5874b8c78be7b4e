"""How an operation becomes a node: arguments converted by the C signature, one place that calls ggml, one that fails.

Three helpers serve every operation:

- :func:`require` checks tensors against short descriptions of what they must look like,
- :func:`expect` checks anything else,
- :func:`build` converts the arguments as ``ggml_<op>`` declares them, calls it, and wraps the node.

A description such as ``"f32|f16 contiguous [K, N, B*, 1]"`` reads: these formats, this memory layout, these axes in
ggml's order. A letter is the same number wherever it stands in the call (``K``), with ``*`` a multiple of it (ggml
then repeats the smaller one), with ``/`` a divisor; ``_`` is any number, ``...`` any further axes; axes that are not
named have one element.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from .._ffi import ffi, lib
from ..dtype import DTYPES, DType, as_dtype
from ..errors import ArgumentError, DTypeError, Error, GGMLAbort, OutOfMemoryError, ShapeError
from ..tensor import Tensor
from ._left_out import SPELLED

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = [
    "build",
    "check_ne",
    "check_numbers",
    "check_sizes",
    "enum_names",
    "expect",
    "fail",
    "graph_of",
    "opt",
    "require",
    "strides_fit",
]

FLOATS = ("f32", "f16", "bf16")
# what a matrix product takes as weights; q8_1 and q8_K only exist inside of one
WEIGHTS = FLOATS + tuple(d.name for d in DTYPES.values() if d.is_quantized and d.name not in ("q8_1", "q8_K"))
# blocks that the CPU makes inside of a graph; for the others it calls a function that is not there, or one without its tables
BLOCKS = tuple(name for name in WEIGHTS if name not in FLOATS and not name.startswith(("iq1", "iq2", "iq3")))
_GROUPS = {"float": FLOATS, "weight": WEIGHTS, "block": BLOCKS}
_MAX_SIZE = 2**48  # elements along an axis: beyond it sizes in bytes could overflow in ggml's own arithmetic


# --- where nodes go


def graph_of(*tensors: Any, graph: Graph | None = None) -> Graph:
    """The graph in which a node over these tensors is made.

    That is ``graph``, else the graph of the first tensor that belongs to one, else the innermost ``with Graph(...)``.

    Raises:
        ArgumentError: there is none.
    """
    if graph is not None:
        return graph
    for tensor in tensors:
        if isinstance(tensor, Tensor) and getattr(tensor.owner, "is_graph", False):
            return tensor.owner  # type: ignore[no-any-return]
    from ..graph import Graph

    current = Graph.current()
    if current is None:
        raise ArgumentError(
            "no graph to put the node in: none of the sources belongs to one. "
            "Pass graph=..., or work inside `with pyggml.Graph(device) as g:`"
        )
    return current


# --- what errors look like


def describe(tensors: Mapping[str, Any]) -> str:
    """Tensors as errors show them: ``a = 'w' f32 [64, 256]``."""
    parts = []
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            label = f"{tensor.name!r} " if tensor.name else ""
            parts.append(f"{name} = {label}{tensor.dtype} {list(trimmed(tensor.ne))}")
    return "; ".join(parts)


def trimmed(ne: Sequence[int]) -> Sequence[int]:
    """Without the last axes of one element, but at least two axes."""
    n = len(ne)
    while n > 2 and ne[n - 1] == 1:
        n -= 1
    return ne[:n]


def fail(
    op: str, text: str, tensors: Mapping[str, Any], *, hint: str = "", error: type[Error] = ShapeError
) -> NoReturn:
    """Raises ``error``, with the operation, the tensors and a hint."""
    shown = describe(tensors)
    raise error(f"{op}: {text}" + (f" ({shown})" if shown else "") + (f". {hint}" if hint else ""))


def expect(
    condition: bool,
    op: str,
    text: str,
    tensors: Mapping[str, Any] | None = None,
    *,
    hint: str = "",
    error: type[Error] = ShapeError,
) -> None:
    """Fails unless the condition holds; ``text`` says what must hold."""
    if not condition:
        fail(op, text, tensors or {}, hint=hint, error=error)


# --- tensors

_SPEC = re.compile(
    r"(?:(?P<types>[A-Za-z0-9_|]+)\s+)??(?:(?P<layout>contiguous|contiguous_1|rows)\s+)?\[(?P<axes>[^\]]*)\]"
)

_LAYOUTS: dict[str, tuple[str, str]] = {
    "contiguous": ("ggml_is_contiguous", "must be contiguous"),
    "contiguous_1": ("ggml_is_contiguous_1", "must have rows that are contiguous and evenly spaced"),
    "rows": ("ggml_is_contiguous_rows", "must have contiguous rows (axis 0 is not, as after transpose)"),
}


@cache
def _parse(spec: str) -> tuple[tuple[str, ...], str | None, tuple[str, ...], bool]:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"no description of a tensor: {spec!r}")
    types = match["types"] or ""
    names = tuple(dict.fromkeys(name for group in types.split("|") if group for name in _GROUPS.get(group, (group,))))
    axes = tuple(a.strip() for a in match["axes"].split(",") if a.strip())
    is_open = axes[-1:] == ("...",)
    return names, match["layout"], axes[:-1] if is_open else axes, is_open


def opt(tensor: Tensor | None, spec: str) -> tuple[Tensor | None, str] | None:
    """For `require`: the description of a tensor that may be missing."""
    return None if tensor is None else (tensor, spec)


def require(op: str, *, hint: str | Callable[[], str] = "", **tensors: tuple[Any, str] | None) -> dict[str, int]:
    """Checks each tensor against its description, in order; see the module. Returns the numbers of the letters.

    Raises:
        ArgumentError: an argument is no tensor.
        DTypeError: a format that the operation does not take.
        ShapeError: shapes that do not fit, or a memory layout that the operation cannot read.
    """
    given = {name: pair[0] for name, pair in tensors.items() if pair is not None}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{op}: {name} must be a tensor of a graph or of weights, got {type(tensor).__name__}")
    sizes: dict[str, int] = {}
    where: dict[str, str] = {}
    for name, pair in tensors.items():
        if pair is None:
            continue
        tensor, spec = pair
        types, layout, axes, is_open = _parse(spec)
        if types and tensor.dtype.name not in types:
            wanted = "a floating-point or quantized format" if types == WEIGHTS else " or ".join(types)
            fail(op, f"{name} must be {wanted}, it is {tensor.dtype}", given, error=DTypeError,
                 hint=f"Did you mean {name}.cast({types[0]!r})?" if _castable(tensor.dtype, types[0]) else "")  # fmt: skip
        ne = tensor.ne
        for axis in range(4):
            want = axes[axis] if axis < len(axes) else "_" if is_open else "1"
            problem = _axis_problem(want, ne[axis], f"{name}.ne[{axis}]", sizes, where)
            if problem:
                fail(op, problem, given, hint=hint() if callable(hint) else hint)
        if layout is not None:
            function, text = _LAYOUTS[layout]
            if not getattr(lib, function)(tensor.ptr):
                fail(
                    op,
                    f"{name} {text}; its strides are {list(tensor.nb)} bytes",
                    given,
                    hint=f"Did you mean {name}.cont()?",
                )
    return sizes


def _castable(dtype: DType, to: str) -> bool:
    return (to in FLOATS and (dtype.is_quantized or dtype.name in FLOATS)) or (to == "i32" and dtype.name == "f32")


def _axis_problem(want: str, n: int, at: str, sizes: dict[str, int], where: dict[str, str]) -> str | None:
    if want == "_":
        return None
    if want.isdigit():
        return None if n == int(want) else f"{at} must be {want}, it is {n}"
    letter, relation = (want[:-1], want[-1]) if want[-1] in "*/" else (want, "")
    if letter not in sizes:
        sizes[letter], where[letter] = n, at
        return None
    known, known_at = sizes[letter], where[letter]
    if not relation:
        return None if n == known else f"{known_at} = {known} and {at} = {n} must be equal"
    big, small = (n, known) if relation == "*" else (known, n)
    if small == 0 and not (relation == "*" and letter in "PQRS"):  # ggml divides by it; of what is broadcast, it looks for 0 first
        return f"{known_at if relation == '*' else at} must not be 0"
    if small == big or (small > 0 and big % small == 0 and (big > 0)):
        return None
    first, second = (at, known_at) if relation == "*" else (known_at, at)
    return f"{first} = {big} must be a multiple of {second} = {small}"


def check_ne(op: str, ne: Sequence[Any], dtype: DType, tensors: Mapping[str, Any]) -> tuple[int, ...]:
    """A shape that is asked for: 1 to 4 sizes, none negative, whole blocks along axis 0."""
    if not 1 <= len(ne) <= 4:
        fail(op, f"shapes have 1 to 4 axes, got {len(ne)}", tensors)
    sizes = check_sizes(op, tensors, **{f"ne[{i}]": n for i, n in enumerate(ne)})
    if sizes[0] % dtype.block_size:
        fail(op, f"ne[0] = {sizes[0]} must be a multiple of {dtype.block_size}, the block of {dtype}", tensors)
    return sizes


def check_sizes(
    op: str, tensors: Mapping[str, Any] | None = None, at_least: int = 0, **numbers: Any
) -> tuple[int, ...]:
    """Whole numbers in a range that ggml can count in."""
    found = []
    for name, value in numbers.items():
        n = _integer(op, name, value)
        if not at_least <= n <= _MAX_SIZE:
            fail(op, f"{name} must be {at_least} or more, it is {n}" if n < at_least else f"{name} = {n} is too large",
                 tensors or {}, error=ArgumentError)  # fmt: skip
        found.append(n)
    return tuple(found)


def strides_fit(
    op: str, tensor: Tensor, ne: Sequence[int], nb: Sequence[int], offset: int, tensors: Mapping[str, Any]
) -> None:
    """Whether a window of rows ``ne`` with strides ``nb`` (of axes 1 to 3) lies inside a tensor, on whole elements; ggml does not look.

    Raises:
        ShapeError: it does not.
    """
    if 0 in ne:
        return
    step = tensor.dtype.type_size
    steps = {"offset": offset} | {f"nb{i + 1}": b for i, (n, b) in enumerate(zip(ne[1:], nb, strict=True)) if n > 1}
    for what, value in steps.items():
        if value % step:
            fail(op, f"{what} = {value} must be a multiple of {step}, the bytes of a block of {tensor.dtype}", tensors)
    end = offset + tensor.dtype.row_bytes(ne[0]) + sum((n - 1) * b for n, b in zip(ne[1:], nb, strict=True))
    if end > tensor.nbytes:
        fail(op, f"the window needs bytes {offset} to {end}, {next(iter(tensors))} has {tensor.nbytes}", tensors)


# --- scalars


def _integer(op: str, name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ArgumentError(f"{op}: {name} must be a whole number, got {value!r}") from None


def _int_converter(bits: int, signed: bool) -> Callable[[str, str, Any], int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def convert(op: str, name: str, value: Any) -> int:
        n = _integer(op, name, value)
        if not low <= n <= high:
            raise ArgumentError(f"{op}: {name} = {n} does not fit: {low} to {high} do")
        return n

    return convert


def _float(op: str, name: str, value: Any) -> float:
    try:
        x = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{op}: {name} must be a number, got {value!r}") from None
    if math.isnan(x):
        raise ArgumentError(f"{op}: {name} must be a number, got nan")
    return x


def check_numbers(op: str, at_least: float = -math.inf, **numbers: Any) -> tuple[float, ...]:
    """Numbers, none of them NaN."""
    found = []
    for name, value in numbers.items():
        x = _float(op, name, value)
        if x < at_least:
            raise ArgumentError(f"{op}: {name} must be {at_least:g} or more, it is {x:g}")
        found.append(x)
    return tuple(found)


def _bool(op: str, name: str, value: Any) -> bool:
    if value is not True and value is not False:
        raise ArgumentError(f"{op}: {name} must be True or False, got {value!r}")
    return bool(value)


_ENUM_PREFIXES = {
    "enum ggml_unary_op": "GGML_UNARY_OP_",
    "enum ggml_glu_op": "GGML_GLU_OP_",
    "enum ggml_op_pool": "GGML_OP_POOL_",
    "enum ggml_scale_mode": "GGML_SCALE_MODE_",
    "enum ggml_sort_order": "GGML_SORT_ORDER_",
    "enum ggml_tri_type": "GGML_TRI_TYPE_",
    "enum ggml_prec": "GGML_PREC_",
    "enum ggml_op_hint": "GGML_HINT_",
    "rope": "GGML_ROPE_TYPE_",
}


@cache
def enum_names(enum: str) -> dict[str, int]:
    """Names (ggml's, without the prefix, in lower case) and values of an enum."""
    prefix = _ENUM_PREFIXES[enum]
    if enum == "rope":  # macros in C
        members = {n: int(getattr(lib, n)) for n in dir(lib) if n.startswith(prefix)}
    else:
        members = {name: value for value, name in ffi.typeof(enum).elements.items() if not name.endswith("_COUNT")}
    return {k.removeprefix(prefix).lower(): v for k, v in sorted(members.items(), key=operator.itemgetter(1))}


def enum_value(op: str, name: str, value: Any, enum: str) -> int:
    """The value for a name of an enum, or for one of its values."""
    names = enum_names(enum)
    if isinstance(value, str):
        if value.lower() in names:
            return names[value.lower()]
    elif value in names.values() and not isinstance(value, bool):
        return int(value)
    raise ArgumentError(f"{op}: {name} = {value!r} is unknown: expected one of {', '.join(names)}")


# --- the call

# the tensors that C takes a NULL for
_OPTIONAL = {
    ("soft_max_ext", "mask"), ("flash_attn_ext", "mask"), ("rope_ext", "c"), ("rope_multi", "c"), ("dsv4_hc_post", "comb"),
}  # fmt: skip

_INTEGERS = {
    "int": (32, True), "int32_t": (32, True), "int64_t": (64, True), "uint32_t": (32, False), "size_t": (64, False),
}  # fmt: skip


def _converter(ctype: Any) -> Callable[[str, str, Any], Any]:
    name = ctype.cname
    if name in _INTEGERS:
        return _int_converter(*_INTEGERS[name])
    if name == "float":
        return _float
    if name == "_Bool":
        return _bool
    if name == "enum ggml_type":
        return lambda op, arg, value: as_dtype(value).type_id
    if name in _ENUM_PREFIXES:
        return lambda op, arg, value: enum_value(op, arg, value, name)
    if name == "int *":
        return lambda op, arg, value: ffi.new("int[]", list(value))
    raise TypeError(f"no conversion for {name}")


@cache
def _signature(op: str) -> tuple[Any, tuple[Callable[[str, str, Any], Any] | None, ...]]:
    """The C function, and a converter for each argument behind the context; None for a tensor."""
    function = getattr(lib, "ggml_" + op)
    _, *arguments = ffi.typeof(function).args
    return function, tuple(None if t.cname == "struct ggml_tensor *" else _converter(t) for t in arguments)


def build(op: str, graph: Graph | None, /, *, inplace: bool = False, **arguments: Any) -> Tensor:
    """Makes the node ``ggml_<op>(ctx, *arguments)``; with ``inplace``, that of ``ggml_<op>_inplace``.

    Raises:
        ArgumentError, DTypeError, ShapeError: ggml refuses the arguments.
    """
    function, converters = _signature(op + "_inplace" if inplace else op)
    owner = graph_of(*arguments.values(), graph=graph)
    with owner._building():
        return _node(op, owner, function, converters, arguments)


def _node(op: str, owner: Graph, function: Any, converters: Sequence[Any], arguments: Mapping[str, Any]) -> Tensor:
    values: list[Any] = [owner._ctx]
    for converter, (name, value) in zip(converters, arguments.items(), strict=True):
        if converter is not None:
            values.append(converter(op, name, value))
        elif isinstance(value, Tensor):
            values.append(owner._adopt(value))
        elif value is None and (op, name) in _OPTIONAL:
            values.append(ffi.NULL)
        else:
            raise ArgumentError(f"{op}: {name} must be a tensor of a graph or of weights, got {type(value).__name__}")
    try:
        ptr = function(*values)
    except GGMLAbort as abort:
        _refused(SPELLED.get("ggml_" + op, op), arguments, abort)
    if ptr.name[0] == b" ":  # " (permuted)": of something without a name. The graph will call it node_7, as it calls that one
        lib.ggml_set_name(ptr, b"")
    return owner._node(ptr)


def call(op: str, function: str, tensor: Tensor, **arguments: Any) -> None:
    """Calls a C function that changes a node that was just made (its precision, its sinks)."""
    owner = tensor.owner
    try:
        with owner._building():
            values = [owner._adopt(v) if isinstance(v, Tensor) else v for v in arguments.values()]
            done = getattr(lib, function)(tensor.ptr, *values)
    except GGMLAbort as abort:
        _refused(op, {"a": tensor, **arguments}, abort)
    if done is False:
        fail(op, f"ggml refuses this for {tensor.op}", {"a": tensor}, error=ArgumentError)


def _refused(op: str, arguments: Mapping[str, Any], abort: GGMLAbort) -> NoReturn:
    """The error for an assertion that failed while a node was made. The context stays usable."""
    text = str(abort).splitlines()[0]
    condition = re.search(r"GGML_ASSERT\((?P<c>.*)\) failed", text)
    reason = condition["c"] if condition else text
    if "obj_new" in reason:
        raise OutOfMemoryError(f"{op}: the graph is full, no more nodes fit in") from abort
    error: type[Error] = ArgumentError
    if "view_offs" in reason:
        reason, error = "no more bytes than there are behind the window's start, overlapping or not", ShapeError
    elif "->type" in reason:
        error = DTypeError
    elif re.search(
        r"->n[eb]\b|contiguous|can_|same_shape|nelements|is_(matrix|vector|scalar|3d|padded|transposed)|nbytes", reason
    ):
        error = ShapeError
    numbers = ", ".join(f"{k} = {v!r}" for k, v in arguments.items() if not isinstance(v, Tensor))
    try:
        fail(op, f"ggml needs {reason}" + (f"; got {numbers}" if numbers else ""), arguments, error=error)
    except Error as refused:
        raise refused from abort
