"""Functions of each element."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..tensor import Tensor
from ._build import build, require

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = [
    "abs", "ceil", "cos", "elu", "exp", "expm1", "floor", "gelu", "gelu_erf", "gelu_quick", "hardsigmoid", "hardswish",
    "leaky_relu", "log", "neg", "relu", "round", "sgn", "sigmoid", "silu", "sin", "softplus", "sqr", "sqrt", "step",
    "tanh", "trunc", "unary", "xielu",
]  # fmt: skip


def _unary(op: str, a: Tensor, graph: Graph | None, inplace: bool = False) -> Tensor:
    require(op, a=(a, "float rows [...]"))
    return build(op, graph, inplace=inplace, a=a)


def unary(a: Tensor, op: str, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The function named ``op`` (``"silu"``, ``"neg"``, ...: those of this module) of each element.

    Args:
        a: any shape; f32, f16 or bf16, rows contiguous.
        op: a name of ``enum ggml_unary_op`` without parameters, in lower case.
        inplace: write into ``a`` and return a view of it. So in all operations that have it; the graph's allocator
            reuses memory by itself, so this is for overwriting what somebody else reads afterwards.
        graph: where the node is made, when no source belongs to a graph. So in all operations.

    Returns:
        ``a``'s shape and format.

    Raises:
        DTypeError: ``a`` has another format.
        ShapeError: ``a``'s rows are not contiguous.
    """
    require("unary", a=(a, "float rows [...]"))
    return build("unary", graph, inplace=inplace, a=a, op=op)


def abs(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The absolute value of each element. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("abs", a, graph, inplace)


def ceil(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each element rounded up. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("ceil", a, graph, inplace)


def cos(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The cosine of each element (radians). ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("cos", a, graph, inplace)


def elu(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``x`` where it is positive, else ``exp(x) - 1``. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("elu", a, graph, inplace)


def exp(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """e to the power of each element. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("exp", a, graph, inplace)


def expm1(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``exp(x) - 1`` of each element. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("expm1", a, graph, inplace)


def floor(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each element rounded down. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("floor", a, graph, inplace)


def gelu(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The Gaussian error linear unit, by its tanh approximation. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("gelu", a, graph, inplace)


def gelu_erf(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The Gaussian error linear unit, by the error function where the device has one. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("gelu_erf", a, graph, inplace)


def gelu_quick(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``x * sigmoid(1.702 x)``. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("gelu_quick", a, graph, inplace)


def log(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The natural logarithm of each element. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("log", a, graph, inplace)


def neg(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each element negated. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("neg", a, graph, inplace)


def relu(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``max(x, 0)``. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("relu", a, graph, inplace)


def round(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each element rounded to the nearest whole number, halves away from zero. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("round", a, graph, inplace)


def sgn(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The sign of each element: -1, 0 or 1. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("sgn", a, graph, inplace)


def sigmoid(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``1 / (1 + exp(-x))``. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("sigmoid", a, graph, inplace)


def silu(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``x * sigmoid(x)``, also called swish. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("silu", a, graph, inplace)


def sin(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The sine of each element (radians). ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("sin", a, graph, inplace)


def softplus(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``log(1 + exp(x))``. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("softplus", a, graph, inplace)


def sqr(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The square of each element. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("sqr", a, graph, inplace)


def sqrt(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The square root of each element. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("sqrt", a, graph, inplace)


def step(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """1 where an element is positive, else 0. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("step", a, graph, inplace)


def tanh(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """The hyperbolic tangent of each element. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("tanh", a, graph, inplace)


def trunc(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """Each element without its fraction. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("trunc", a, graph, inplace)


def hardsigmoid(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``min(max((x + 3) / 6, 0), 1)``. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("hardsigmoid", a, graph)


def hardswish(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``x * hardsigmoid(x)``. ``a``: f32, f16 or bf16 of any shape, which the result has too."""
    return _unary("hardswish", a, graph)


def leaky_relu(a: Tensor, negative_slope: float = 0.01, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``x`` where it is positive, else ``negative_slope * x``. ``a``: f32 or f16 of any shape, which the result has too."""
    require("leaky_relu", a=(a, "f32|f16 contiguous_1 [...]"))  # ggml's CPU kernel steps from row to row over all axes
    return build("leaky_relu", graph, a=a, negative_slope=negative_slope, in_place=inplace)


def xielu(a: Tensor, alpha_n: float, alpha_p: float, beta: float, eps: float, *, graph: Graph | None = None) -> Tensor:
    """The xIELU activation (arXiv 2411.13010). ``a``: f32, f16 or bf16 of any shape, which the result has too.

    With ``s(x) = log(1 + exp(x))``: ``s(alpha_p) * x^2 + beta * x`` where x is positive, else
    ``(expm1(min(x, eps)) - x) * (beta + s(alpha_n)) + beta * x``. The slopes are given before ``s``.
    """
    require("xielu", a=(a, "float rows [...]"))
    return build("xielu", graph, a=a, alpha_n=alpha_n, alpha_p=alpha_p, beta=beta, eps=eps)
