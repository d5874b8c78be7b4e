"""Two tensors element by element, scalars, sums over axes, and normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..dtype import DTypeLike, as_dtype
from ..errors import ArgumentError, DTypeError
from ..tensor import Tensor
from ._build import BLOCKS, FLOATS, build, check_numbers, check_sizes, expect, require, strides_fit

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = [
    "acc", "add", "add_cast", "add_id", "arange", "argmax", "argsort", "argsort_top_k", "clamp", "count_equal",
    "cross_entropy_loss", "cumsum", "div", "fill", "group_norm", "l2_norm", "mean", "mul", "norm", "rms_norm", "scale",
    "scale_bias", "sub", "sum", "sum_rows", "top_k",
]  # fmt: skip

_ARANGE_MAX = 1 << 31


# --- two tensors


def _binary(op: str, a: Tensor, b: Tensor, graph: Graph | None, inplace: bool) -> Tensor:
    def hint() -> str:
        swapped = all(n and m % n == 0 for n, m in zip(a.ne, b.ne, strict=True))
        return (
            f"The first one must be the larger: did you mean ops.{op}(b, a)?"
            if swapped and op in ("add", "mul")
            else ""
        )

    require(
        op, b=(b, "float [P, Q, R, S]"), a=(a, ("float|block" if op == "add" else "float") + " [P*, Q*, R*, S*]"), hint=hint
    )
    same = "" if a.dtype.is_quantized else f"|{a.dtype}"
    require(op, a=(a, "[...]"), b=(b, f"f32{same} [...]"))
    return build(op, graph, inplace=inplace, a=a, b=b)


def add(a: Tensor, b: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``a + b``; also ``a + b`` in Python.

    Args:
        a: ``[P, Q, R, S]``, f32, f16, bf16 or quantized.
        b: f32 or ``a``'s format; each axis of ``a`` is a multiple of that of ``b``, which is repeated (a bias ``[P]``, say).

    Returns:
        ``a``'s shape and format.

    Raises:
        ShapeError: ``b`` cannot be repeated to ``a``'s shape.
        DTypeError: one of them holds integers, or ``b`` is neither f32 nor of ``a``'s format.
    """
    return _binary("add", a, b, graph, inplace)


def sub(a: Tensor, b: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``a - b``; shapes as for `add`, formats f32, f16 and bf16."""
    return _binary("sub", a, b, graph, inplace)


def mul(a: Tensor, b: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``a * b`` element by element; shapes as for `add`, formats f32, f16 and bf16. Matrix products: `mul_mat`."""
    return _binary("mul", a, b, graph, inplace)


def div(a: Tensor, b: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``a / b``; shapes as for `add`, formats f32, f16 and bf16."""
    return _binary("div", a, b, graph, inplace)


def add_cast(a: Tensor, b: Tensor, type: DTypeLike, *, graph: Graph | None = None) -> Tensor:
    """``a + b`` in the format ``type``.

    Args:
        a: ``[P, Q, R, S]``, quantized, f16 or bf16.
        b: f32 ``[P, Q', R', S']``: axis 0 equal, the others repeated as for `add`.

    Raises:
        ShapeError: ``b`` does not fit.
        DTypeError: ``a`` is f32 or holds integers, or a graph cannot make the format ``type``.
    """
    to = as_dtype(type)
    types = "" if getattr(getattr(a, "dtype", None), "is_quantized", False) else "f16|bf16 "
    require("add_cast", b=(b, "f32 [P, Q, R, S]"), a=(a, types + "[P, Q*, R*, S*]"))
    expect(to.name in (*FLOATS, *BLOCKS), "add_cast", f"type must be one of {', '.join((*FLOATS, *BLOCKS))}, it is {to}", {"a": a, "b": b}, error=DTypeError)
    return build("add_cast", graph, a=a, b=b, type=to)


def add_id(a: Tensor, b: Tensor, ids: Tensor, *, graph: Graph | None = None) -> Tensor:
    """Adds row ``ids[u, t]`` of ``b`` to ``a[:, u, t]``: the biases of the experts that were chosen.

    Args:
        a: f32 ``[N, U, T]``.
        b: f32 ``[N, n_expert]``.
        ids: i32 ``[U, T]``, row numbers of ``b``.

    Returns:
        ``a``'s shape, f32.
    """
    require("add_id", a=(a, "f32 rows [N, U, T, _]"), b=(b, "f32 rows [N, _]"), ids=(ids, "i32 rows [U, T]"))
    return build("add_id", graph, a=a, b=b, ids=ids)


def acc(
    a: Tensor,
    b: Tensor,
    nb1: int,
    nb2: int,
    nb3: int,
    offset: int,
    *,
    inplace: bool = False,
    graph: Graph | None = None,
) -> Tensor:
    """``a``, with ``b`` added to the window of it that starts at byte ``offset`` and has strides ``nb1`` to ``nb3``.

    Args:
        a: f32, contiguous.
        b: f32, the shape of the window.

    Raises:
        ShapeError: the window does not lie inside ``a``.
    """
    tensors = {"a": a, "b": b}
    require("acc", a=(a, "f32 contiguous [...]"), b=(b, "f32 rows [...]"))
    check_sizes("acc", tensors, nb1=nb1, nb2=nb2, nb3=nb3, offset=offset)
    strides_fit("acc", a, b.ne, (nb1, nb2, nb3), offset, tensors)
    return build("acc", graph, inplace=inplace, a=a, b=b, nb1=nb1, nb2=nb2, nb3=nb3, offset=offset)


def count_equal(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The number of equal elements of ``a`` and ``b``, i32 ``[P, Q]`` both. Returns i64 ``[1]``."""
    # with more axes ggml's CPU kernel computes its indices wrongly and reads outside of the tensors
    require("count_equal", a=(a, "i32 [P, Q]"), b=(b, "i32 [P, Q]"))
    return build("count_equal", graph, a=a, b=b)


def cross_entropy_loss(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The mean over rows of ``-sum(b * log(soft_max(a)))``. ``a`` (logits) and ``b`` (labels): f32, one shape. Returns f32 ``[1]``."""
    require("cross_entropy_loss", a=(a, "f32 contiguous [P, Q, R, S]"), b=(b, "f32 contiguous [P, Q, R, S]"))
    return build("cross_entropy_loss", graph, a=a, b=b)


# --- scalars


def scale(a: Tensor, s: float, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``s * a``; also ``a * s`` in Python. ``a``: f32, rows evenly spaced in memory, any shape, which the result has too."""
    require("scale", a=(a, "f32 contiguous_1 [...]"))
    return build("scale", graph, inplace=inplace, a=a, s=s)


def scale_bias(a: Tensor, s: float, b: float, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``s * a + b``; also ``a + b`` in Python. ``a``: f32, rows evenly spaced in memory, any shape, which the result has too."""
    require("scale_bias", a=(a, "f32 contiguous_1 [...]"))
    return build("scale_bias", graph, inplace=inplace, a=a, s=s, b=b)


def clamp(a: Tensor, min: float, max: float, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each element limited to ``min`` to ``max``. ``a``: f32 or f16, any shape, which the result has too.

    Raises:
        ArgumentError: ``min`` is larger than ``max``.
    """
    require("clamp", a=(a, "f32|f16 contiguous_1 [...]"))  # as argsort
    min, max = check_numbers("clamp", min=min, max=max)
    expect(min <= max, "clamp", f"min = {min} must not be larger than max = {max}", {"a": a}, error=ArgumentError)
    return build("clamp", graph, inplace=inplace, a=a, min=min, max=max)


def fill(a: Tensor, c: float, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """A tensor of ``a``'s shape and format (f32 or f16) with ``c`` everywhere."""
    require("fill", a=(a, "f32|f16 contiguous [...]"))
    return build("fill", graph, inplace=inplace, a=a, c=c)


def arange(start: float, stop: float, step: float = 1.0, *, graph: Graph | None = None) -> Tensor:
    """``start``, ``start + step``, ... up to ``stop``, which is left out: f32 ``[ceil((stop - start) / step)]``.

    Raises:
        ArgumentError: ``stop`` is not above ``start``, or ``step`` is not positive.
    """
    start, stop, step = check_numbers("arange", start=start, stop=stop, step=step)
    expect(stop > start, "arange", f"stop = {stop} must be larger than start = {start}", error=ArgumentError)
    expect(step > 0, "arange", f"step must be positive, got {step}", error=ArgumentError)
    expect((stop - start) / step <= _ARANGE_MAX, "arange", "more than 2^31 elements", error=ArgumentError)
    return build("arange", graph, start=start, stop=stop, step=step)


# --- over axes


def sum(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The sum of all elements. ``a``: f32, f16 or bf16. Returns ``[1]`` in ``a``'s format."""
    require("sum", a=(a, "float contiguous [...]"))  # ggml-vulkan sums what lies between rows, too
    return build("sum", graph, a=a)


def sum_rows(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The sum along axis 0. ``a``: f32 ``[P, Q, R, S]``. Returns f32 ``[1, Q, R, S]``."""
    require("sum_rows", a=(a, "f32 rows [...]"))
    return build("sum_rows", graph, a=a)


def mean(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The mean along axis 0. ``a``: f32 ``[P, Q, R, S]``. Returns f32 ``[1, Q, R, S]``."""
    require("mean", a=(a, "f32 rows [...]"))
    return build("mean", graph, a=a)


def cumsum(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """Running sums along axis 0. ``a``: f32 of any shape, which the result has too."""
    require("cumsum", a=(a, "f32 rows [...]"))
    return build("cumsum", graph, a=a)


def argmax(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The index of the largest element of each row. ``a``: f32 ``[P, Q]``. Returns i32 ``[Q]``."""
    require("argmax", a=(a, "f32 rows [_, _]"))
    return build("argmax", graph, a=a)


def argsort(a: Tensor, order: Literal["asc", "desc"] = "asc", *, graph: Graph | None = None) -> Tensor:
    """The indices that sort each row. ``a``: f32 ``[P, Q, R, S]``. Returns i32 of that shape."""
    require("argsort", a=(a, "f32 contiguous_1 [...]"))  # ggml's CPU kernel steps from row to row over all axes
    return build("argsort", graph, a=a, order=order)


def _top_k(op: str, a: Tensor, k: int, graph: Graph | None) -> Tensor:
    require(op, a=(a, "f32 contiguous_1 [...]"))  # as argsort
    (k,) = check_sizes(op, {"a": a}, at_least=1, k=k)
    expect(k <= a.ne[0], op, f"k = {k} must not be larger than a.ne[0] = {a.ne[0]}", {"a": a})
    return build(op, graph, a=a, k=k)


def argsort_top_k(a: Tensor, k: int, *, graph: Graph | None = None) -> Tensor:
    """The indices of the ``k`` largest elements of each row, largest first: a view of an `argsort`.

    ``a``: f32 ``[P, Q, R, S]``. Returns i32 ``[k, Q, R, S]``, not contiguous.
    """
    return _top_k("argsort_top_k", a, k, graph)


def top_k(a: Tensor, k: int, *, graph: Graph | None = None) -> Tensor:
    """The indices of the ``k`` largest elements of each row, in no particular order.

    ``a``: f32 ``[P, Q, R, S]``. Returns i32 ``[k, Q, R, S]``.
    """
    return _top_k("top_k", a, k, graph)


# --- normalisation


def _norm(op: str, a: Tensor, eps: float, graph: Graph | None, inplace: bool) -> Tensor:
    require(op, a=(a, "f32 rows [...]"))
    check_numbers(op, at_least=0, eps=eps)
    return build(op, graph, inplace=inplace, a=a, eps=eps)


def norm(a: Tensor, eps: float = 1e-5, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each row minus its mean, divided by ``sqrt(variance + eps)``. ``a``: f32 of any shape, which the result has too."""
    return _norm("norm", a, eps, graph, inplace)


def rms_norm(a: Tensor, eps: float = 1e-5, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each row divided by ``sqrt(mean(x^2) + eps)``. ``a``: f32 of any shape, which the result has too."""
    return _norm("rms_norm", a, eps, graph, inplace)


def l2_norm(a: Tensor, eps: float = 1e-5, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each row divided by its length, or by ``eps`` if that is larger. ``a``: f32 of any shape, which the result has too."""
    return _norm("l2_norm", a, eps, graph, inplace)


def group_norm(
    a: Tensor, n_groups: int, eps: float = 1e-5, *, inplace: bool = False, graph: Graph | None = None
) -> Tensor:
    """As `norm`, over groups of channels. ``a``: f32 ``[W, H, C, N]``, C in ``n_groups`` groups. Returns that shape.

    Raises:
        ShapeError: ``C`` does not divide into ``n_groups``.
    """
    require("group_norm", a=(a, "f32 rows [...]"))
    (n_groups,) = check_sizes("group_norm", {"a": a}, at_least=1, n_groups=n_groups)
    expect(
        a.ne[2] % n_groups == 0,
        "group_norm",
        f"a.ne[2] = {a.ne[2]} must be a multiple of n_groups = {n_groups}",
        {"a": a},
    )
    check_numbers("group_norm", at_least=0, eps=eps)
    return build("group_norm", graph, inplace=inplace, a=a, n_groups=n_groups, eps=eps)
