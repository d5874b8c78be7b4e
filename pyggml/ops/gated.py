"""Gated linear units: an activation of one half times the other half.

Those with one source take ``a`` ``[2n, ...]``: the first half of each row is activated, the second half is the gate
that it is multiplied with; ``swapped`` exchanges them. Those named ``_split`` take the halves as two tensors.
All: f32 or f16, rows contiguous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..tensor import Tensor
from ._build import build, expect, require

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = [
    "geglu", "geglu_erf", "geglu_erf_split", "geglu_erf_swapped", "geglu_quick", "geglu_quick_split",
    "geglu_quick_swapped", "geglu_split", "geglu_swapped", "glu", "glu_split", "reglu", "reglu_split", "reglu_swapped",
    "swiglu", "swiglu_clamp", "swiglu_oai", "swiglu_split", "swiglu_swapped",
]  # fmt: skip


def _check_one(op: str, a: Tensor) -> None:
    require(op, a=(a, "f32|f16 contiguous_1 [...]"))
    expect(a.ne[0] % 2 == 0, op, f"a.ne[0] = {a.ne[0]} must be even, as its halves are multiplied", {"a": a})


def _one(op: str, a: Tensor, graph: Graph | None) -> Tensor:
    _check_one(op, a)
    return build(op, graph, a=a)


def _check_two(op: str, a: Tensor, b: Tensor) -> None:
    require(op, a=(a, "f32|f16 contiguous_1 [P, Q, R, S]"))
    require(op, a=(a, "[P, Q, R, S]"), b=(b, f"{a.dtype} contiguous_1 [P, Q, R, S]"))


def _two(op: str, a: Tensor, b: Tensor, graph: Graph | None) -> Tensor:
    _check_two(op, a, b)
    return build(op, graph, a=a, b=b)


def glu(a: Tensor, op: str, swapped: bool = False, *, graph: Graph | None = None) -> Tensor:
    """The unit named ``op`` (``"swiglu"``, ``"geglu"``, ...) of ``a`` ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``.

    Raises:
        ShapeError: axis 0 is odd, or the rows are not contiguous.
        DTypeError: ``a`` is not f32 or f16.
    """
    _check_one("glu", a)
    return build("glu", graph, a=a, op=op, swapped=swapped)


def glu_split(a: Tensor, b: Tensor, op: str, *, graph: Graph | None = None) -> Tensor:
    """The unit named ``op`` of ``a`` (activated) and ``b`` (the gate), one shape and format. Returns that shape.

    Raises:
        ShapeError: the shapes differ, or the rows are not contiguous.
        DTypeError: ``a`` is not f32 or f16, or ``b`` has another format.
    """
    _check_two("glu_split", a, b)
    return build("glu_split", graph, a=a, b=b, op=op)


def reglu(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``relu(first half) * second half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("reglu", a, graph)


def reglu_swapped(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``relu(second half) * first half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("reglu_swapped", a, graph)


def reglu_split(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``relu(a) * b``, one shape and format. Returns that shape."""
    return _two("reglu_split", a, b, graph)


def geglu(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu(first half) * second half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("geglu", a, graph)


def geglu_swapped(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu(second half) * first half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("geglu_swapped", a, graph)


def geglu_split(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu(a) * b``, one shape and format. Returns that shape."""
    return _two("geglu_split", a, b, graph)


def swiglu(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``silu(first half) * second half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("swiglu", a, graph)


def swiglu_swapped(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``silu(second half) * first half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("swiglu_swapped", a, graph)


def swiglu_split(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``silu(a) * b``, one shape and format. Returns that shape."""
    return _two("swiglu_split", a, b, graph)


def geglu_erf(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu_erf(first half) * second half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("geglu_erf", a, graph)


def geglu_erf_swapped(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu_erf(second half) * first half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("geglu_erf_swapped", a, graph)


def geglu_erf_split(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu_erf(a) * b``, one shape and format. Returns that shape."""
    return _two("geglu_erf_split", a, b, graph)


def geglu_quick(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu_quick(first half) * second half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("geglu_quick", a, graph)


def geglu_quick_swapped(a: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu_quick(second half) * first half`` of each row. ``a``: ``[2n, Q, R, S]``. Returns ``[n, Q, R, S]``."""
    return _one("geglu_quick_swapped", a, graph)


def geglu_quick_split(a: Tensor, b: Tensor, *, graph: Graph | None = None) -> Tensor:
    """``gelu_quick(a) * b``, one shape and format. Returns that shape."""
    return _two("geglu_quick_split", a, b, graph)


def swiglu_oai(a: Tensor, b: Tensor, alpha: float = 1.702, limit: float = 7.0, *, graph: Graph | None = None) -> Tensor:
    """gpt-oss's unit: with ``x = min(a, limit)``, ``g = clamp(b, -limit, limit)``: ``x * sigmoid(alpha * x) * (g + 1)``.

    ``a`` and ``b``: f32, one shape, which the result has too.
    """
    require("swiglu_oai", a=(a, "f32 contiguous_1 [P, Q, R, S]"), b=(b, "f32 contiguous_1 [P, Q, R, S]"))
    return build("swiglu_oai", graph, a=a, b=b, alpha=alpha, limit=limit)


def swiglu_clamp(a: Tensor, b: Tensor, limit: float, *, graph: Graph | None = None) -> Tensor:
    """``silu(min(a, limit)) * clamp(b, -limit, limit)``. ``a`` and ``b``: one shape and format. Returns that shape."""
    _check_two("swiglu_clamp", a, b)
    return build("swiglu_clamp", graph, a=a, b=b, limit=limit)
