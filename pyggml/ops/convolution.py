"""Convolutions, pooling, resizing, and the windows of image models.

Images are ``[W, H, C, N]`` (width, height, channels, batch). Strides ``s``, paddings ``p`` and dilations ``d`` are
numbered by ggml's axes: 0 is the width. An axis of size n becomes ``(n + 2 p - d (k - 1) - 1) // s + 1`` for a kernel of
size k, called ``OW``, ``OH``, ``OD``, ``OL`` below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .._ffi import lib
from ..dtype import DTypeLike, as_dtype
from ..errors import ArgumentError, DTypeError
from ..tensor import Tensor
from ._build import build, check_numbers, check_sizes, enum_value, expect, require

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = [
    "add_rel_pos", "col2im_1d", "conv_1d", "conv_1d_dw", "conv_1d_dw_ph", "conv_1d_ph", "conv_2d", "conv_2d_direct",
    "conv_2d_dw", "conv_2d_dw_direct", "conv_2d_s1_ph", "conv_2d_sk_p0", "conv_3d", "conv_3d_direct", "conv_transpose_1d",
    "conv_transpose_2d_p0", "get_rel_pos", "im2col", "im2col_3d", "interpolate", "pool_1d", "pool_2d", "upscale",
    "win_part", "win_unpart",
]  # fmt: skip

ScaleMode = Literal["nearest", "bilinear", "bicubic"]
PoolOp = Literal["max", "avg"]

_KERNEL = "float contiguous"


def _check_axes(op: str, a: Tensor, b: Tensor, s: tuple[Any, ...], p: tuple[Any, ...], d: tuple[Any, ...]) -> None:
    """Strides, paddings and dilations in range, and a result that is not empty."""
    tensors = {"a": a, "b": b}
    expect(0 not in a.ne and 0 not in b.ne, op, "a convolution of no elements: ggml divides by their number", tensors)
    for axis, (stride, padding, dilation) in enumerate(zip(s, p, d, strict=True)):
        check_sizes(op, tensors, at_least=1, **{f"s{axis}": stride, f"d{axis}": dilation})
        check_sizes(op, tensors, **{f"p{axis}": padding})
        k, n = a.ne[axis], b.ne[axis]
        expect(k > 0 and n + 2 * padding >= dilation * (k - 1) + 1, op,
               f"the kernel spans {dilation * (k - 1) + 1} along axis {axis}, b with its padding has {n + 2 * padding}", tensors)  # fmt: skip


def _check_planes(op: str, b: Tensor) -> None:
    """Axes 0 and 1 must be one piece of memory: ggml's IM2COL knows no stride between rows.

    Raises:
        ShapeError: they are not.
    """
    whole = b.ne[0] * b.dtype.type_size
    expect(b.ne[1] == 1 or b.nb[1] == whole, op,
           f"rows of b must follow each other without gaps, {whole} bytes apart, they are {b.nb[1]} apart. Did you mean b.cont()?", {"b": b})  # fmt: skip


def im2col(
    a: Tensor, b: Tensor, s0: int = 1, s1: int = 1, p0: int = 0, p1: int = 0, d0: int = 1, d1: int = 1, is_2D: bool = True,
    dst_type: DTypeLike = "f16", *, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """The patches of ``b`` that a kernel of ``a``'s size sees, as rows.

    Args:
        a: ``[KW, KH, IC, OC]``, or ``[K, IC, OC]`` with ``is_2D=False``; only its shape matters.
        b: f32 or f16 ``[IW, IH, IC, N]``, or ``[IW, IC, N]``.
        dst_type: f16 or f32.

    Returns:
        ``[IC * KH * KW, OW, OH, N]``, or ``[IC * K, OL, N]``.
    """
    if is_2D:
        require("im2col", a=(a, "[_, _, C, _]"), b=(b, "f32|f16 rows [_, _, C, _]"))
        _check_planes("im2col", b)
        _check_axes("im2col", a, b, (s0, s1), (p0, p1), (d0, d1))
    else:
        require("im2col", a=(a, "[_, C, _]"), b=(b, "f32|f16 rows [_, C, _]"))
        _check_axes("im2col", a, b, (s0,), (p0,), (d0,))
    expect(
        as_dtype(dst_type).name in ("f16", "f32"),
        "im2col",
        f"dst_type must be f16 or f32, got {dst_type}",
        error=DTypeError,
    )
    expect(
        b.dtype.name == "f32" or as_dtype(dst_type).name == "f16", "im2col",
        "dst_type f32 needs b in f32", {"b": b}, error=DTypeError,
    )  # fmt: skip
    return build("im2col", graph, a=a, b=b, s0=s0, s1=s1, p0=p0, p1=p1, d0=d0, d1=d1, is_2D=is_2D, dst_type=dst_type)


def im2col_3d(
    a: Tensor, b: Tensor, IC: int, s0: int = 1, s1: int = 1, s2: int = 1, p0: int = 0, p1: int = 0, p2: int = 0,
    d0: int = 1, d1: int = 1, d2: int = 1, dst_type: DTypeLike = "f16", *, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """As `im2col` in three dimensions.

    Args:
        a: ``[KW, KH, KD, IC * OC]``; only its shape matters.
        b: f32 ``[IW, IH, ID, IC * N]``.
        IC: the channels of ``b``.

    Returns:
        ``[IC * KD * KH * KW, OW, OH, OD * N]``.
    """
    _check_3d("im2col_3d", a, b, IC, "[...]", (s0, s1, s2), (p0, p1, p2), (d0, d1, d2))
    expect(
        as_dtype(dst_type).name in ("f16", "f32"),
        "im2col_3d",
        f"dst_type must be f16 or f32, got {dst_type}",
        error=DTypeError,
    )
    return build(
        "im2col_3d",
        graph,
        a=a,
        b=b,
        IC=IC,
        s0=s0,
        s1=s1,
        s2=s2,
        p0=p0,
        p1=p1,
        p2=p2,
        d0=d0,
        d1=d1,
        d2=d2,
        dst_type=dst_type,
    )


def col2im_1d(a: Tensor, s0: int, oc: int, p0: int = 0, *, graph: Graph | None = None) -> Tensor:
    """The reverse of `im2col` for a transposed convolution: adds up overlapping columns.

    ``a``: f32, f16 or bf16 ``[K * oc, T]``, contiguous. Returns ``[(T - 1) * s0 + K - 2 * p0, oc]``.
    """
    tensors = {"a": a}
    require("col2im_1d", a=(a, "float contiguous [_, _]"))
    check_sizes("col2im_1d", tensors, at_least=1, s0=s0, oc=oc)
    check_sizes("col2im_1d", tensors, p0=p0)
    expect(a.ne[0] % oc == 0, "col2im_1d", f"a.ne[0] = {a.ne[0]} must be a multiple of oc = {oc}", tensors)
    expect((a.ne[1] - 1) * s0 + a.ne[0] // oc > 2 * p0, "col2im_1d", f"p0 = {p0} leaves nothing of the signal", tensors)
    return build("col2im_1d", graph, a=a, s0=s0, oc=oc, p0=p0)


# --- one dimension


def conv_1d(a: Tensor, b: Tensor, s0: int = 1, p0: int = 0, d0: int = 1, *, graph: Graph | None = None) -> Tensor:
    """``a``: the kernel, f32, f16 or bf16 ``[K, IC, OC]``; ``b``: f32 ``[L, IC, N]``. Returns f32 ``[OL, OC, N]``.

    ggml rounds the patches to f16 (unless the kernel is bf16).
    """
    require("conv_1d", a=(a, _KERNEL + " [_, C, _]"), b=(b, "f32 rows [_, C, _]"))
    _check_axes("conv_1d", a, b, (s0,), (p0,), (d0,))
    return _batched(build("conv_1d", graph, a=a, b=b, s0=s0, p0=p0, d0=d0))


def conv_1d_ph(a: Tensor, b: Tensor, s: int = 1, d: int = 1, *, graph: Graph | None = None) -> Tensor:
    """`conv_1d` with a padding of half the kernel."""
    require("conv_1d_ph", a=(a, _KERNEL + " [_, C, _]"), b=(b, "f32 rows [_, C, _]"))
    _check_axes("conv_1d_ph", a, b, (s,), (a.ne[0] // 2,), (d,))
    return _batched(build("conv_1d_ph", graph, a=a, b=b, s=s, d=d))


def _batched(y: Tensor) -> Tensor:
    """The result of ggml's conv_1d in the right order: what it calls ``[OL, OC, N]`` is ``[OL, N, OC]`` in memory."""
    length, channels, n, _ = y.ne
    return y if n == 1 else y.reshape(length, n, channels).permute(0, 2, 1, 3).cont()


def conv_1d_dw(a: Tensor, b: Tensor, s0: int = 1, p0: int = 0, d0: int = 1, *, graph: Graph | None = None) -> Tensor:
    """Each channel on its own. ``a``: f32, f16 or bf16 ``[K, 1, C]``; ``b``: f32 ``[L, C]``. Returns f32 ``[OL, C, 1]``."""
    require("conv_1d_dw", a=(a, _KERNEL + " [_, 1, C]"), b=(b, "f32 contiguous [_, C]"))
    _check_axes("conv_1d_dw", a, b, (s0,), (p0,), (d0,))
    return build("conv_1d_dw", graph, a=a, b=b, s0=s0, p0=p0, d0=d0)


def conv_1d_dw_ph(a: Tensor, b: Tensor, s0: int = 1, d0: int = 1, *, graph: Graph | None = None) -> Tensor:
    """`conv_1d_dw` with a padding of half the kernel."""
    require("conv_1d_dw_ph", a=(a, _KERNEL + " [_, 1, C]"), b=(b, "f32 contiguous [_, C]"))
    _check_axes("conv_1d_dw_ph", a, b, (s0,), (a.ne[0] // 2,), (d0,))
    return build("conv_1d_dw_ph", graph, a=a, b=b, s0=s0, d0=d0)


def conv_transpose_1d(
    a: Tensor, b: Tensor, s0: int = 1, p0: int = 0, d0: int = 1, *, graph: Graph | None = None
) -> Tensor:
    """The transposed convolution. ``a``: f32 or f16 ``[K, OC, IC]``; ``b``: f32 ``[L, IC]``. Returns f32 ``[(L - 1) * s0 + K, OC]``.

    Raises:
        ArgumentError: ``p0`` is not 0 or ``d0`` is not 1: ggml has no others.
    """
    require("conv_transpose_1d", a=(a, "f32|f16 contiguous [_, _, C]"), b=(b, "f32 contiguous [_, C]"))
    check_sizes("conv_transpose_1d", {"a": a, "b": b}, at_least=1, s0=s0)
    expect(
        p0 == 0 and d0 == 1,
        "conv_transpose_1d",
        f"ggml has p0 = 0 and d0 = 1 only, got {p0} and {d0}",
        error=ArgumentError,
    )
    return build("conv_transpose_1d", graph, a=a, b=b, s0=s0, p0=p0, d0=d0)


# --- two dimensions


def conv_2d(
    a: Tensor,
    b: Tensor,
    s0: int = 1,
    s1: int = 1,
    p0: int = 0,
    p1: int = 0,
    d0: int = 1,
    d1: int = 1,
    *,
    graph: Graph | None = None,
) -> Tensor:
    """By `im2col` and `mul_mat`. ``a``: f32, f16 or bf16 ``[KW, KH, IC, OC]``; ``b``: f32 ``[W, H, IC, N]``. Returns f32 ``[OW, OH, OC, N]``.

    ggml rounds the patches to f16 (unless the kernel is bf16).
    """
    require("conv_2d", a=(a, _KERNEL + " [_, _, C, _]"), b=(b, "f32 rows [_, _, C, _]"))
    _check_planes("conv_2d", b)
    _check_axes("conv_2d", a, b, (s0, s1), (p0, p1), (d0, d1))
    return build("conv_2d", graph, a=a, b=b, s0=s0, s1=s1, p0=p0, p1=p1, d0=d0, d1=d1)


def conv_2d_direct(
    a: Tensor,
    b: Tensor,
    s0: int = 1,
    s1: int = 1,
    p0: int = 0,
    p1: int = 0,
    d0: int = 1,
    d1: int = 1,
    *,
    graph: Graph | None = None,
) -> Tensor:
    """As `conv_2d`, as one node. ``a``: f32 or f16 ``[KW, KH, IC, OC]``; ``b``: f32 ``[W, H, IC, N]``. Returns f32 ``[OW, OH, OC, N]``."""
    require("conv_2d_direct", a=(a, "f32|f16 contiguous [_, _, C, _]"), b=(b, "f32 rows [_, _, C, _]"))
    _check_axes("conv_2d_direct", a, b, (s0, s1), (p0, p1), (d0, d1))
    return build("conv_2d_direct", graph, a=a, b=b, s0=s0, s1=s1, p0=p0, p1=p1, d0=d0, d1=d1)


def conv_2d_dw(
    a: Tensor,
    b: Tensor,
    s0: int = 1,
    s1: int = 1,
    p0: int = 0,
    p1: int = 0,
    d0: int = 1,
    d1: int = 1,
    *,
    graph: Graph | None = None,
) -> Tensor:
    """Each channel on its own, by `im2col`. ``a``: f16 or bf16 ``[KW, KH, 1, C]``; ``b``: f32 ``[W, H, C, N]``. Returns f32 ``[OW, OH, C, N]``."""
    require("conv_2d_dw", a=(a, "f16|bf16 contiguous [_, _, 1, C]"), b=(b, "f32 contiguous [_, _, C, _]"))
    _check_axes("conv_2d_dw", a, b, (s0, s1), (p0, p1), (d0, d1))
    return build("conv_2d_dw", graph, a=a, b=b, s0=s0, s1=s1, p0=p0, p1=p1, d0=d0, d1=d1)


def conv_2d_dw_direct(
    a: Tensor,
    b: Tensor,
    s0: int = 1,
    s1: int = 1,
    p0: int = 0,
    p1: int = 0,
    d0: int = 1,
    d1: int = 1,
    *,
    graph: Graph | None = None,
) -> Tensor:
    """As `conv_2d_dw`, as one node. ``a``: f32 or f16 ``[KW, KH, 1, C]``; ``b``: f32 ``[W, H, C, N]``. Returns ``[OW, OH, C, N]``."""
    require("conv_2d_dw_direct", a=(a, "f32|f16 contiguous [_, _, 1, C]"), b=(b, "f32 contiguous [_, _, C, _]"))
    _check_axes("conv_2d_dw_direct", a, b, (s0, s1), (p0, p1), (d0, d1))
    return build("conv_2d_dw_direct", graph, a=a, b=b, s0=s0, s1=s1, p0=p0, p1=p1, d0=d0, d1=d1)


def conv_2d_sk_p0(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """`conv_2d` with strides as large as the kernel, without padding: patches that do not overlap."""
    require("conv_2d_sk_p0", a=(a, _KERNEL + " [_, _, C, _]"), b=(b, "f32 rows [_, _, C, _]"))
    _check_planes("conv_2d_sk_p0", b)
    _check_axes("conv_2d_sk_p0", a, b, (a.ne[0], a.ne[1]), (0, 0), (1, 1))
    return build("conv_2d_sk_p0", graph, a=a, b=b)


def conv_2d_s1_ph(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """`conv_2d` with strides of 1 and a padding of half the kernel: the size stays (for an odd kernel)."""
    require("conv_2d_s1_ph", a=(a, _KERNEL + " [_, _, C, _]"), b=(b, "f32 rows [_, _, C, _]"))
    _check_planes("conv_2d_s1_ph", b)
    _check_axes("conv_2d_s1_ph", a, b, (1, 1), (a.ne[0] // 2, a.ne[1] // 2), (1, 1))
    return build("conv_2d_s1_ph", graph, a=a, b=b)


def conv_transpose_2d_p0(a: Tensor, b: Tensor, stride: int = 1, *, graph: Graph | None = None) -> Tensor:
    """The transposed convolution without padding. ``a``: f32 or f16 ``[KW, KH, OC, IC]``; ``b``: f32 ``[W, H, IC, N]``.

    Returns f32 ``[(W - 1) * stride + KW, (H - 1) * stride + KH, OC, N]``.
    """
    require("conv_transpose_2d_p0", a=(a, "f32|f16 contiguous [_, _, _, C]"), b=(b, "f32 contiguous [_, _, C, _]"))
    check_sizes("conv_transpose_2d_p0", {"a": a, "b": b}, at_least=1, stride=stride)
    return build("conv_transpose_2d_p0", graph, a=a, b=b, stride=stride)


# --- three dimensions


def _check_3d(
    op: str, a: Tensor, b: Tensor, IC: int, kernel: str, s: tuple[Any, ...], p: tuple[Any, ...], d: tuple[Any, ...]
) -> None:
    tensors = {"a": a, "b": b}
    require(op, a=(a, kernel), b=(b, "f32 rows [...]"))
    check_sizes(op, tensors, at_least=1, channels=IC)
    for name, tensor in tensors.items():
        expect(
            tensor.ne[3] % IC == 0,
            op,
            f"{name}.ne[3] = {tensor.ne[3]} must be a multiple of the {IC} channels",
            tensors,
        )
    _check_axes(op, a, b, s, p, d)


def conv_3d(
    a: Tensor, b: Tensor, IC: int, s0: int = 1, s1: int = 1, s2: int = 1, p0: int = 0, p1: int = 0, p2: int = 0,
    d0: int = 1, d1: int = 1, d2: int = 1, *, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """By `im2col_3d` and `mul_mat`.

    Args:
        a: f32, f16 or bf16 ``[KW, KH, KD, IC * OC]``.
        b: f32 ``[W, H, D, IC * N]``.
        IC: the channels of ``b``.

    Returns:
        f32 ``[OW, OH, OD, OC * N]``.
    """
    _check_3d("conv_3d", a, b, IC, _KERNEL + " [...]", (s0, s1, s2), (p0, p1, p2), (d0, d1, d2))
    return build("conv_3d", graph, a=a, b=b, IC=IC, s0=s0, s1=s1, s2=s2, p0=p0, p1=p1, p2=p2, d0=d0, d1=d1, d2=d2)


def conv_3d_direct(
    a: Tensor, b: Tensor, s0: int, s1: int, s2: int, p0: int, p1: int, p2: int, d0: int, d1: int, d2: int,
    n_channels: int, n_batch: int, n_channels_out: int, *, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """As `conv_3d`, as one node. ``a``: f32 or f16 ``[KW, KH, KD, n_channels * n_channels_out]``;
    ``b``: f32 ``[W, H, D, n_channels * n_batch]``. Returns f32 ``[OW, OH, OD, n_channels_out * n_batch]``."""
    op, tensors = "conv_3d_direct", {"a": a, "b": b}
    _check_3d(op, a, b, n_channels, "f32|f16 contiguous [...]", (s0, s1, s2), (p0, p1, p2), (d0, d1, d2))
    check_sizes(op, tensors, at_least=1, n_batch=n_batch, n_channels_out=n_channels_out)
    for name, n, what in (("a", n_channels_out, "n_channels_out"), ("b", n_batch, "n_batch")):
        expect(tensors[name].ne[3] == n_channels * n, op,
               f"{name}.ne[3] = {tensors[name].ne[3]} must be n_channels * {what} = {n_channels * n}", tensors)  # fmt: skip
    return build(
        op, graph, a=a, b=b, s0=s0, s1=s1, s2=s2, p0=p0, p1=p1, p2=p2, d0=d0, d1=d1, d2=d2,
        n_channels=n_channels, n_batch=n_batch, n_channels_out=n_channels_out,
    )  # fmt: skip


# --- pooling, resizing


def _check_pool(op: str, a: Tensor, axis: int, k: int, s: int, p: float) -> None:
    check_sizes(op, {"a": a}, at_least=1, **{f"k{axis}": k, f"s{axis}": s})
    check_numbers(op, at_least=0, **{f"p{axis}": p})
    expect(
        a.ne[axis] + 2 * p >= k,
        op,
        f"k{axis} = {k} is more than a.ne[{axis}] = {a.ne[axis]} with its padding",
        {"a": a},
    )


def pool_1d(
    a: Tensor, op: PoolOp, k0: int, s0: int | None = None, p0: int = 0, *, graph: Graph | None = None
) -> Tensor:
    """The largest element or the mean of ``k0`` neighbours, each ``s0`` (``k0`` unless given).

    ``a``: f32 or f16 ``[L, Q, R, S]``, contiguous. Returns f32 ``[(L + 2 * p0 - k0) // s0 + 1, Q, R, S]``.
    """
    s0 = k0 if s0 is None else s0
    require("pool_1d", a=(a, "f32|f16 contiguous [...]"))
    check_sizes("pool_1d", {"a": a}, p0=p0)
    _check_pool("pool_1d", a, 0, k0, s0, p0)
    return build("pool_1d", graph, a=a, op=op, k0=k0, s0=s0, p0=p0)


def pool_2d(
    a: Tensor, op: PoolOp, k0: int, k1: int, s0: int | None = None, s1: int | None = None, p0: float = 0, p1: float = 0,
    *, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """The largest element or the mean of patches of ``k0`` by ``k1``, each ``s0`` and ``s1`` (the patch unless given).

    ``a``: f32 or f16 ``[W, H, C, N]``, contiguous. Returns f32 ``[(W + 2 * p0 - k0) // s0 + 1, ..., C, N]``. Means count the padding.
    """
    s0, s1 = k0 if s0 is None else s0, k1 if s1 is None else s1
    require("pool_2d", a=(a, "f32|f16 contiguous [...]"))
    _check_pool("pool_2d", a, 0, k0, s0, p0)
    _check_pool("pool_2d", a, 1, k1, s1, p1)
    return build("pool_2d", graph, a=a, op=op, k0=k0, k1=k1, s0=s0, s1=s1, p0=p0, p1=p1)


def upscale(a: Tensor, scale_factor: int, mode: ScaleMode = "nearest", *, graph: Graph | None = None) -> Tensor:
    """``a`` with axes 0 and 1 ``scale_factor`` (2 or more) times as long. ``a``: f32 ``[W, H, C, N]``."""
    require("upscale", a=(a, "f32 [...]"))
    check_sizes("upscale", {"a": a}, at_least=2, scale_factor=scale_factor)
    return build("upscale", graph, a=a, scale_factor=scale_factor, mode=mode)


def interpolate(
    a: Tensor, ne0: int, ne1: int, ne2: int | None = None, ne3: int | None = None, mode: ScaleMode = "nearest",
    *, align_corners: bool = False, antialias: bool = False, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """``a`` resized to ``[ne0, ne1, ne2, ne3]`` (axes 2 and 3 as they are unless given). ``a``: f32 ``[W, H, C, N]``.

    Args:
        mode: bilinear and bicubic work along axes 0 and 1.
        align_corners: the corners of both images coincide, not their edges.
        antialias: with mode ``"bilinear"`` only.

    Raises:
        ArgumentError: ``antialias`` with another mode.
    """
    tensors = {"a": a}
    require("interpolate", a=(a, "f32 [...]"))
    ne = check_sizes(
        "interpolate",
        tensors,
        at_least=1,
        ne0=ne0,
        ne1=ne1,
        ne2=a.ne[2] if ne2 is None else ne2,
        ne3=a.ne[3] if ne3 is None else ne3,
    )
    expect(min(a.ne) > 0, "interpolate", "a must not be empty", tensors)
    expect(
        not antialias or mode == "bilinear",
        "interpolate",
        f"antialias needs mode 'bilinear', got {mode!r}",
        error=ArgumentError,
    )
    value = enum_value("interpolate", "mode", mode, "enum ggml_scale_mode")
    value |= lib.GGML_SCALE_FLAG_ALIGN_CORNERS * align_corners | lib.GGML_SCALE_FLAG_ANTIALIAS * antialias
    return build("interpolate", graph, a=a, ne0=ne[0], ne1=ne[1], ne2=ne[2], ne3=ne[3], mode=value)


# --- windows and relative positions (SAM)


def win_part(a: Tensor, w: int, *, graph: Graph | None = None) -> Tensor:
    """``a`` cut into windows of ``w`` by ``w``, zeros behind the edges. ``a``: f32 ``[C, W, H]``. Returns f32 ``[C, w, w, windows]``."""
    require("win_part", a=(a, "f32 contiguous [_, _, _]"))
    check_sizes("win_part", {"a": a}, at_least=1, w=w)
    return build("win_part", graph, a=a, w=w)


def win_unpart(a: Tensor, w0: int, h0: int, w: int, *, graph: Graph | None = None) -> Tensor:
    """The reverse of `win_part`. ``a``: f32 ``[C, w, w, windows]``. Returns f32 ``[C, w0, h0]``.

    Raises:
        ShapeError: ``a`` is not that many windows of that size.
    """
    tensors = {"a": a}
    require("win_unpart", a=(a, "f32 contiguous [...]"))
    check_sizes("win_unpart", tensors, at_least=1, w0=w0, h0=h0, w=w)
    want = (a.ne[0], w, w, -(-w0 // w) * -(-h0 // w))
    expect(a.ne == want, "win_unpart", f"w0 = {w0}, h0 = {h0} and w = {w} need a of {list(want)}", tensors)
    return build("win_unpart", graph, a=a, w0=w0, h0=h0, w=w)


def get_rel_pos(a: Tensor, qh: int, kh: int, *, graph: Graph | None = None) -> Tensor:
    """Embeddings of all pairs' relative positions. ``a``: f16 ``[C, 2 * qh - 1]``, ``kh == qh``. Returns f16 ``[C, kh, qh]``."""
    tensors = {"a": a}
    require("get_rel_pos", a=(a, "f16 contiguous [_, _]"))
    check_sizes("get_rel_pos", tensors, at_least=1, qh=qh, kh=kh)
    expect(qh == kh, "get_rel_pos", f"qh = {qh} and kh = {kh} must be equal", tensors)
    expect(a.ne[1] == 2 * qh - 1, "get_rel_pos", f"a.ne[1] = {a.ne[1]} must be 2 * qh - 1 = {2 * qh - 1}", tensors)
    return build("get_rel_pos", graph, a=a, qh=qh, kh=kh)


def add_rel_pos(a: Tensor, pw: Tensor, ph: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Attention logits plus relative positions along both axes of an image.

    Args:
        a: f32 ``[n * n, h * w, B]``.
        pw, ph: f32 ``[n, h, w, B]``.

    Returns:
        ``a``'s shape, f32.
    """
    tensors = {"a": a, "pw": pw, "ph": ph}
    require(
        "add_rel_pos",
        a=(a, "f32 contiguous [_, _, B]"),
        pw=(pw, "f32 contiguous [N, P, Q, B]"),
        ph=(ph, "f32 contiguous [N, P, Q, B]"),
    )
    expect(
        pw.ne[0] ** 2 == a.ne[0], "add_rel_pos", f"a.ne[0] = {a.ne[0]} must be pw.ne[0]^2 = {pw.ne[0] ** 2}", tensors
    )
    expect(
        pw.ne[1] * pw.ne[2] == a.ne[1],
        "add_rel_pos",
        f"a.ne[1] = {a.ne[1]} must be pw.ne[1] * pw.ne[2] = {pw.ne[1] * pw.ne[2]}",
        tensors,
    )
    return build("add_rel_pos", graph, inplace=inplace, a=a, pw=pw, ph=ph)
