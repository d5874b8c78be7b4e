"""Shapes, views, copies, rows by index, padding."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..dtype import DType, DTypeLike, as_dtype
from ..errors import ArgumentError, DTypeError, ShapeError
from ..tensor import Tensor
from ._build import build, check_ne, check_sizes, expect, fail, require, strides_fit

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = [
    "cast", "concat", "cont", "cpy", "dup", "get_rows", "pad", "pad_circular", "pad_ext", "pad_ext_circular",
    "pad_reflect_1d", "permute", "repeat", "repeat_4d", "reshape", "roll", "set", "set_rows", "transpose", "view",
]  # fmt: skip


def _sizes(op: str, a: Tensor, ne: Sequence[Any]) -> tuple[int, ...]:
    """The sizes of a shape given as numbers, as one sequence, or as a tensor that has it."""
    if len(ne) == 1 and isinstance(ne[0], Tensor):
        return ne[0].ne
    if len(ne) == 1 and isinstance(ne[0], Sequence) and not isinstance(ne[0], str):
        ne = ne[0]
    return check_ne(op, ne, a.dtype, {"a": a})


def _named(ne: Sequence[int]) -> dict[str, Any]:
    return {f"ne{i}": n for i, n in enumerate(ne)}


def _same_number(op: str, a: Tensor, ne: tuple[int, ...]) -> None:
    have, want = math.prod(a.ne), math.prod(ne)
    expect(have == want, op, f"a has {have} elements, ne = {list(ne)} has {want}", {"a": a})


# --- views


def reshape(a: Tensor, *ne: int | Sequence[int] | Tensor, graph: Graph | None = None) -> Tensor:
    """``a`` with another shape, as a view: ``reshape(a, 64, 8)``, ``reshape(a, (64, 8))``, or the shape of a tensor.

    Args:
        a: contiguous, any format.
        ne: 1 to 4 sizes, axis 0 first, with as many elements.

    Raises:
        ShapeError: another number of elements, or ``a`` is not contiguous.
    """
    require("reshape", a=(a, "contiguous [...]"))
    sizes = _sizes("reshape", a, ne)
    _same_number("reshape", a, sizes)
    return build(f"reshape_{len(sizes)}d", graph, a=a, **_named(sizes))


def view(
    a: Tensor, *ne: int | Sequence[int], nb: Sequence[int] | None = None, offset: int = 0, graph: Graph | None = None
) -> Tensor:
    """A window of ``a``: ``view(a, 64, 4, offset=4 * a.nb[1])`` are 4 rows from the fifth on.

    Args:
        a: any format.
        ne: 1 to 4 sizes, axis 0 first.
        nb: strides in bytes of the axes 1, 2 and 3 (one less than there are sizes); ``a``'s own unless given.
        offset: bytes from ``a``'s start.

    Raises:
        ShapeError: the window does not lie inside ``a``.
    """
    tensors = {"a": a}
    require("view", a=(a, "rows [...]"))
    sizes = _sizes("view", a, ne)
    n = len(sizes)
    strides = tuple(a.nb[1:n]) if nb is None else tuple(nb)
    expect(
        len(strides) == n - 1,
        "view",
        f"{n} sizes need {n - 1} strides, got {len(strides)}",
        tensors,
        error=ArgumentError,
    )
    (offset, *strides_) = check_sizes("view", tensors, offset=offset, **{f"nb[{i}]": b for i, b in enumerate(strides)})
    strides_fit("view", a, sizes, strides_, offset, tensors)
    arguments = _named(sizes) | {f"nb{i + 1}": b for i, b in enumerate(strides_)}
    return build(f"view_{n}d", graph, a=a, **arguments, offset=offset)


def permute(a: Tensor, axis0: int, axis1: int, axis2: int, axis3: int, *, graph: Graph | None = None) -> Tensor:
    """``a`` with its axes moved, as a view: axis 0 becomes axis ``axis0``, and so on (numpy's transpose says the reverse).

    ``a``: any format (quantized: axis 0 stays). Returns ``r`` with ``r.ne[axis0] == a.ne[0]``, and so on.

    Raises:
        ArgumentError: the four are not 0, 1, 2 and 3 in some order.
    """
    require("permute", a=(a, "[...]"))
    axes = [axis0, axis1, axis2, axis3]
    expect(
        sorted(axes) == [0, 1, 2, 3],
        "permute",
        f"axes must be 0, 1, 2 and 3 in some order, got {axes}",
        {"a": a},
        error=ArgumentError,
    )
    return build("permute", graph, a=a, axis0=axis0, axis1=axis1, axis2=axis2, axis3=axis3)


def transpose(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``a`` with axes 0 and 1 exchanged, as a view. ``a``: ``[P, Q, R, S]``. Returns ``[Q, P, R, S]``; most operations need `cont` of it."""
    require("transpose", a=(a, "[...]"))
    return build("transpose", graph, a=a)


# --- copies


def dup(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """A copy of ``a``, any shape and format."""
    require("dup", a=(a, "[...]"))
    return build("dup", graph, inplace=inplace, a=a)


def _check_conversion(op: str, a: Tensor, to: DType) -> None:
    """Refuses what ends in the CPU's kernel at a function that is not there.

    Raises:
        DTypeError: there is no such conversion. ShapeError: blocks are made of rows (ggml-vulkan takes other elements).
    """
    if to.is_quantized:
        require(op, a=(a, "rows [...]"))
    from_half = a.dtype.name in ("f16", "bf16") and to.name == "i32"
    from_product = a.dtype.name in ("q8_1", "q8_K") and to != a.dtype
    expect(not from_half and not from_product, op, f"ggml does not convert {a.dtype} to {to}", {"a": a},
           error=DTypeError)  # fmt: skip


def cpy(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """Copies ``a`` into the memory of ``b``, converting the format. Returns a view of ``b``.

    ``a`` and ``b``: as many elements; any format that the device converts.
    """
    require("cpy", a=(a, "[...]"), b=(b, "[...]"))
    _check_conversion("cpy", a, b.dtype)
    have, want = math.prod(a.ne), math.prod(b.ne)
    expect(have == want, "cpy", f"a has {have} elements, b has {want}", {"a": a, "b": b})
    return build("cpy", graph, a=a, b=b)


def cast(a: Tensor, type: DTypeLike, *, graph: Graph | None = None) -> Tensor:
    """A copy of ``a`` in the format ``type`` (``"f16"``, ``"q8_0"``, ...). Returns ``a``'s shape, contiguous.

    Raises:
        ShapeError: axis 0 does not divide into blocks of ``type``.
        DTypeError: there is no such format.
    """
    require("cast", a=(a, "[...]"))
    dtype = as_dtype(type)
    _check_conversion("cast", a, dtype)
    check_ne("cast", a.ne, dtype, {"a": a})
    return build("cast", graph, a=a, type=dtype)


def cont(a: Tensor, *ne: int | Sequence[int], graph: Graph | None = None) -> Tensor:
    """A contiguous copy of ``a``, with the shape ``ne`` if it is given (as many elements)."""
    require("cont", a=(a, "[...]"))
    if not ne:
        return build("cont", graph, a=a)
    sizes = _sizes("cont", a, ne)
    _same_number("cont", a, sizes)
    return build(f"cont_{len(sizes)}d", graph, a=a, **_named(sizes))


def set(
    a: Tensor, b: Tensor, nb1: int | None = None, nb2: int | None = None, nb3: int | None = None, offset: int = 0,
    *, inplace: bool = False, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """``a``, with the window of it that starts at byte ``offset`` and has strides ``nb1`` to ``nb3`` overwritten by ``b``.

    Args:
        a: contiguous, f32, i32 or f16 where the device takes it.
        b: ``a``'s format, the shape of the window.
        nb1, nb2, nb3: strides in bytes of the window; ``a``'s own unless given.

    Raises:
        ShapeError: the window does not lie inside ``a``.
    """
    tensors = {"a": a, "b": b}
    require("set", a=(a, "contiguous [...]"), b=(b, "rows [...]"))
    require("set", a=(a, "[...]"), b=(b, f"{a.dtype} [...]"))
    given = [own if n is None else n for n, own in zip((nb1, nb2, nb3), a.nb[1:], strict=True)]
    nb = check_sizes("set", tensors, nb1=given[0], nb2=given[1], nb3=given[2], offset=offset)
    expect(max(nb) < 2**30, "set", "strides and offset must be below 1 GiB", tensors)
    strides_fit("set", a, b.ne, nb[:3], offset, tensors)
    return build("set", graph, inplace=inplace, a=a, b=b, nb1=nb[0], nb2=nb[1], nb3=nb[2], offset=offset)


def concat(a: Tensor, b: Tensor, dim: int, *, graph: Graph | None = None) -> Tensor:
    """``a`` followed by ``b`` along axis ``dim``; the other axes and the formats are equal.

    Raises:
        ShapeError: another axis differs.
        ArgumentError: ``dim`` is not 0 to 3.
    """
    require("concat", a=(a, "[...]"), b=(b, "[...]"))
    tensors = {"a": a, "b": b}
    expect(dim in (0, 1, 2, 3), "concat", f"dim must be 0 to 3, got {dim!r}", tensors, error=ArgumentError)
    require("concat", a=(a, "[...]"), b=(b, f"{a.dtype} [...]"))
    for axis in builtins.set(range(4)) - {dim}:
        expect(
            a.ne[axis] == b.ne[axis],
            "concat",
            f"a.ne[{axis}] = {a.ne[axis]} and b.ne[{axis}] = {b.ne[axis]} must be equal",
            tensors,
        )
    return build("concat", graph, a=a, b=b, dim=dim)


def repeat(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``a`` (f32, f16, bf16, i32 or i16), repeated to the shape of ``b``, whose axes are multiples. Returns ``a``'s format."""
    require("repeat", a=(a, "float|i32|i16 [P, Q, R, S]"), b=(b, "[P*, Q*, R*, S*]"))
    return build("repeat", graph, a=a, b=b)


def repeat_4d(a: Tensor, ne0: int, ne1: int = 1, ne2: int = 1, ne3: int = 1, *, graph: Graph | None = None) -> Tensor:
    """``a``, repeated to the shape ``[ne0, ne1, ne2, ne3]``, multiples of ``a``'s."""
    require("repeat_4d", a=(a, "float|i32|i16 [...]"))
    ne = check_ne("repeat_4d", (ne0, ne1, ne2, ne3), a.dtype, {"a": a})
    for axis, (want, have) in enumerate(zip(ne, a.ne, strict=True)):
        expect(want == have or (have > 0 and want % have == 0), "repeat_4d",
               f"ne{axis} = {want} must be a multiple of a.ne[{axis}] = {have}", {"a": a})  # fmt: skip
    return build("repeat_4d", graph, a=a, ne0=ne[0], ne1=ne[1], ne2=ne[2], ne3=ne[3])


# --- rows by index


def get_rows(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The rows of ``a`` whose numbers are in ``b``.

    Args:
        a: ``[N, R, B, C]``, f32, f16, bf16, quantized or i32.
        b: i32 ``[n, B, C]``, each 0 to R - 1.

    Returns:
        f32 ``[N, n, B, C]`` (i32 when ``a`` is).
    """
    require("get_rows", a=(a, "weight|i32 rows [_, _, B, C]"), b=(b, "i32 [_, B, C]"))
    return build("get_rows", graph, a=a, b=b)


def set_rows(a: Tensor, b: Tensor, c: Tensor, *, graph: Graph | None = None) -> Tensor:
    """Overwrites the rows of ``a`` whose numbers are in ``c`` by those of ``b``. Returns a view of ``a``.

    Args:
        a: ``[N, R, B, C]``, any format that the device converts to.
        b: f32 or f16 ``[N, n, B, C]``.
        c: i64 or i32 ``[n, B/, C/]`` (repeated), each 0 to R - 1, none twice.
    """
    require(
        "set_rows", a=(a, "weight rows [N, _, B, C]"), b=(b, "f32|f16 rows [N, M, B, C]"), c=(c, "i64|i32 [M, B/, C/]")
    )
    return build("set_rows", graph, a=a, b=b, c=c)


# --- padding


def pad(a: Tensor, p0: int, p1: int = 0, p2: int = 0, p3: int = 0, *, graph: Graph | None = None) -> Tensor:
    """``a`` with ``p0`` to ``p3`` zeros behind each axis. ``a``: f32. Returns ``[P + p0, Q + p1, R + p2, S + p3]``."""
    _check_pad("pad", a, (p0, p1, p2, p3))
    return build("pad", graph, a=a, p0=p0, p1=p1, p2=p2, p3=p3)


def pad_circular(a: Tensor, p0: int, p1: int = 0, p2: int = 0, p3: int = 0, *, graph: Graph | None = None) -> Tensor:
    """As `pad`, with values from the other end of the axis; at most as many as it has."""
    _check_pad("pad_circular", a, (p0, p1, p2, p3), circular=True)
    return build("pad_circular", graph, a=a, p0=p0, p1=p1, p2=p2, p3=p3)


def pad_ext(
    a: Tensor, lp0: int, rp0: int, lp1: int = 0, rp1: int = 0, lp2: int = 0, rp2: int = 0, lp3: int = 0, rp3: int = 0,
    *, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """``a`` with ``lp`` zeros before and ``rp`` behind each axis. ``a``: f32. Returns ``[P + lp0 + rp0, ...]``."""
    _check_pad("pad_ext", a, (rp0, rp1, rp2, rp3), (lp0, lp1, lp2, lp3))
    return build("pad_ext", graph, a=a, lp0=lp0, rp0=rp0, lp1=lp1, rp1=rp1, lp2=lp2, rp2=rp2, lp3=lp3, rp3=rp3)


def pad_ext_circular(
    a: Tensor, lp0: int, rp0: int, lp1: int = 0, rp1: int = 0, lp2: int = 0, rp2: int = 0, lp3: int = 0, rp3: int = 0,
    *, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """As `pad_ext`, with values from the other end of the axis; at most as many as it has."""
    _check_pad("pad_ext_circular", a, (rp0, rp1, rp2, rp3), (lp0, lp1, lp2, lp3), circular=True)
    return build("pad_ext_circular", graph, a=a, lp0=lp0, rp0=rp0, lp1=lp1, rp1=rp1, lp2=lp2, rp2=rp2, lp3=lp3, rp3=rp3)


def pad_reflect_1d(a: Tensor, p0: int, p1: int, *, graph: Graph | None = None) -> Tensor:
    """Axis 0 continued as in a mirror, ``p0`` elements before and ``p1`` behind: ``[a, b, c]`` to ``[b, a, b, c, b]``.

    ``a``: f32 ``[P, Q, R, S]``, P above ``p0`` and ``p1``. Returns ``[P + p0 + p1, Q, R, S]``.
    """
    require("pad_reflect_1d", a=(a, "f32 contiguous [...]"))
    check_sizes("pad_reflect_1d", {"a": a}, p0=p0, p1=p1)
    expect(
        max(p0, p1) < a.ne[0], "pad_reflect_1d", f"p0 = {p0} and p1 = {p1} must be below a.ne[0] = {a.ne[0]}", {"a": a}
    )
    return build("pad_reflect_1d", graph, a=a, p0=p0, p1=p1)


def _check_pad(
    op: str, a: Tensor, right: Sequence[int], left: Sequence[int] = (0, 0, 0, 0), circular: bool = False
) -> None:
    require(op, a=(a, "f32 rows [...]"))
    for axis in range(4):
        check_sizes(
            op, {"a": a}, **{f"padding before axis {axis}": left[axis], f"padding behind axis {axis}": right[axis]}
        )
        # ggml wraps around once: a longer padding would read outside of the tensor
        if circular and max(left[axis], right[axis]) > a.ne[axis]:
            fail(op, f"axis {axis} has {a.ne[axis]} elements, {max(left[axis], right[axis])} are asked for", {"a": a})


def roll(
    a: Tensor, shift0: int, shift1: int = 0, shift2: int = 0, shift3: int = 0, *, graph: Graph | None = None
) -> Tensor:
    """``a`` with its elements moved along each axis, those that leave it coming in at the other end. ``a``: f32. Returns its shape.

    Raises:
        ShapeError: a shift is as long as its axis, or longer.
    """
    require("roll", a=(a, "f32 rows [...]"))
    for axis, shift in enumerate((shift0, shift1, shift2, shift3)):
        expect(hasattr(shift, "__index__"), "roll", f"shift{axis} must be a whole number, got {shift!r}", error=ArgumentError)
        expect(
            abs(shift) < max(a.ne[axis], 1),
            "roll",
            f"shift{axis} = {shift} must be shorter than a.ne[{axis}] = {a.ne[axis]}",
            {"a": a},
            error=ShapeError,
        )
    return build("roll", graph, a=a, shift0=shift0, shift1=shift1, shift2=shift2, shift3=shift3)
