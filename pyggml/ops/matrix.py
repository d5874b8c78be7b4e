"""Matrix products and what belongs to matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..errors import ArgumentError, UnsupportedError
from ..tensor import Tensor
from ._build import build, call, enum_value, expect, require

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = [
    "Precision", "diag", "mul_mat", "mul_mat_id", "mul_mat_set_hint", "out_prod", "prec_set_acc", "prec_set_src", "solve_tri", "tri",
]  # fmt: skip

Precision = Literal["f32", "bf16", "f16", "q8", "q4"]


def _check_summed(op: str, weights: Tensor, b: Tensor) -> None:
    """A product sums over something: ggml-vulkan divides by the number of elements."""
    expect(weights.ne[0] > 0, op, "there is nothing to sum over: axis 0 has no element", {"a": weights, "b": b})


def mul_mat(a: Tensor, b: Tensor, *, prec: Precision | None = None, graph: Graph | None = None) -> Tensor:
    """The matrix product in ggml's order, ``b @ a.T`` for numpy's eyes; also ``a @ b`` in Python.

    Each row of ``b`` is multiplied with each row of ``a``, so both run along axis 0, which is contiguous in both:
    ``y = w @ x`` with a weight ``w`` ``[n_in, n_out]`` and activations ``x`` ``[n_in, n_tokens]``.

    Args:
        a: ``[K, M, B, C]``, f32, f16, bf16 or quantized; usually the weight.
        b: ``[K, N, B*, C*]``, f32 (f16 or bf16 where the device takes it); ``a`` is repeated along axes 2 and 3.
        prec: the least precision of the accumulator, as with `prec_set_acc`.

    Returns:
        f32 ``[M, N, B*, C*]``.

    Raises:
        ShapeError: axis 0 differs, axes 2 and 3 cannot be repeated, or one of them is transposed.
    """

    def hint() -> str:
        if a.ne[0] == b.ne[0]:
            return ""
        if a.ne[0] == b.ne[1]:
            return "Did you mean ops.mul_mat(a, ops.cont(ops.transpose(b)))?"
        if a.ne[1] == b.ne[0]:
            return "Did you mean ops.mul_mat(ops.cont(ops.transpose(a)), b)?"
        return (
            "Did you mean ops.mul_mat(ops.cont(ops.transpose(a)), ops.cont(ops.transpose(b)))?"
            if a.ne[1] == b.ne[1]
            else ""
        )

    require("mul_mat", a=(a, "weight rows [K, _, B, C]"), b=(b, "float rows [K, _, B*, C*]"), hint=hint)
    _check_summed("mul_mat", a, b)
    result = build("mul_mat", graph, a=a, b=b)
    return result if prec is None else prec_set_acc(result, prec)


def mul_mat_id(
    experts: Tensor, b: Tensor, ids: Tensor, *, prec: Precision | None = None, graph: Graph | None = None
) -> Tensor:
    """For each token the products with the matrices of the experts chosen for it.

    Args:
        experts: ``[K, M, n_expert]``, f32, f16, bf16 or quantized (``as`` in ggml).
        b: f32 ``[K, U, T]``, or ``[K, 1, T]`` when the experts of a token see the same row (1 is repeated to U).
        ids: i32 ``[U, T]``, the numbers of the experts of each token.
        prec: the least precision of the accumulator, as with `prec_set_acc`.

    Returns:
        f32 ``[M, U, T]``.
    """
    require(
        "mul_mat_id", experts=(experts, "weight rows [K, _, _]"), b=(b, "f32 rows [K, U, T]"), ids=(ids, "i32 rows [U*, T]")
    )
    _check_summed("mul_mat_id", experts, b)
    result = build("mul_mat_id", graph, experts=experts, b=b, ids=ids)
    return result if prec is None else prec_set_acc(result, prec)


def prec_set_acc(a: Tensor, prec: Precision, *, graph: Graph | None = None) -> Tensor:
    """Sets the least precision of the accumulator of a `mul_mat`, `mul_mat_id` or `flash_attn_ext` node; returns the node."""
    call("prec_set_acc", "ggml_prec_set_acc", a, prec=enum_value("prec_set_acc", "prec", prec, "enum ggml_prec"))
    return a


def prec_set_src(a: Tensor, prec: Precision, idx: int = 1, *, graph: Graph | None = None) -> Tensor:
    """Sets the least precision to which source ``idx`` of a `mul_mat` or `mul_mat_id` node may be rounded; returns the node.

    Raises:
        ArgumentError: the node or the source has no such setting (ggml knows source 1 only).
    """
    require("prec_set_src", a=(a, "[...]"))
    value = enum_value("prec_set_src", "prec", prec, "enum ggml_prec")
    call("prec_set_src", "ggml_prec_set_src", a, prec=value, idx=idx)
    return a


def mul_mat_set_hint(a: Tensor, hint: Literal["none", "src0_is_hadamard"], *, graph: Graph | None = None) -> Tensor:
    """Tells the device something about the sources of a `mul_mat` node that may make it faster; returns the node.

    Args:
        hint: ``"src0_is_hadamard"``: source 0 is a Hadamard matrix divided by the root of its size, as which it is
            then not read: a square whose size is a power of two.

    Raises:
        ArgumentError: ``a`` is no `mul_mat` node. ShapeError: source 0 cannot be a Hadamard matrix.
    """
    require("mul_mat_set_hint", a=(a, "[...]"))
    expect(
        a.op == "MUL_MAT",
        "mul_mat_set_hint",
        f"a must be the node of a mul_mat, it is {a.op}",
        {"a": a},
        error=ArgumentError,
    )
    value = enum_value("mul_mat_set_hint", "hint", hint, "enum ggml_op_hint")
    if hint == "src0_is_hadamard":
        n, m = (int(a.ptr.src[0].ne[axis]) for axis in (0, 1))
        expect(n == m and n & (n - 1) == 0, "mul_mat_set_hint",
               f"source 0 is [{n}, {m}]; a Hadamard matrix is a square whose size is a power of two", {"a": a})  # fmt: skip
    call("mul_mat_set_hint", "ggml_mul_mat_set_hint", a, hint=value)
    return a


def out_prod(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The sum over axis 1 of outer products.

    Args:
        a: ``[M, K, B, C]``, f32, f16 or quantized.
        b: f32 ``[N, K, B*, C*]``.

    Returns:
        f32 ``[M, N, B*, C*]``.
    """
    require("out_prod", a=(a, "weight rows [_, K, B, C]"), b=(b, "f32 [_, K, B*, C*]"))
    return build("out_prod", graph, a=a, b=b)


def solve_tri(
    a: Tensor, b: Tensor, left: bool = True, lower: bool = True, uni: bool = False, *, graph: Graph | None = None
) -> Tensor:
    """Solves ``A X = B`` for a lower triangular ``A`` without zeros on its diagonal.

    Args:
        a: f32 ``[n, n, B, C]``.
        b: f32 ``[m, n, B, C]``.
        left, lower, uni: ggml implements these values only.

    Returns:
        f32 ``[m, n, B, C]``.

    Raises:
        UnsupportedError: other values of ``left``, ``lower`` or ``uni``.
    """
    require("solve_tri", a=(a, "f32 contiguous [N, N, B, C]"), b=(b, "f32 contiguous [_, N, B, C]"))
    expect(left is True and lower is True and uni is False, "solve_tri",
           f"ggml has left=True, lower=True, uni=False only, got {left}, {lower}, {uni}", error=UnsupportedError)  # fmt: skip
    return build("solve_tri", graph, a=a, b=b, left=left, lower=lower, uni=uni)


def tri(
    a: Tensor, type: Literal["lower", "lower_diag", "upper", "upper_diag"], *, graph: Graph | None = None
) -> Tensor:
    """A triangle of ``a``, with or without its diagonal, zeros elsewhere. ``a``: f32 ``[N, N, B, C]``. Returns that shape."""
    require("tri", a=(a, "f32 contiguous [N, N, _, _]"))
    return build("tri", graph, a=a, type=type)


def diag(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """Matrices with the rows of ``a`` on their diagonals. ``a``: f32 ``[N, 1, B, C]``. Returns f32 ``[N, N, B, C]``."""
    require("diag", a=(a, "f32 rows [_, 1, _, _]"))
    return build("diag", graph, a=a)
