"""All operations of ggml that a forward graph needs, by ggml's names without ``ggml_``.

An operation makes a node in a graph and returns its tensor; nothing is computed until the graph runs. Its first
argument being a tensor, it is a method of `Tensor` too: ``ops.silu(x)`` is ``x.silu()``. Python's operators are

========== ====================================================================================
``a @ b``  `mul_mat` ``(a, b)``: both along axis 0, the weight first
``a + b``  `add`, or `scale_bias` with a number; ``-``, ``*`` and ``/`` likewise; ``-a`` is `neg`
========== ====================================================================================

Shapes are ggml's ``ne`` throughout, axis 0 first and contiguous (numpy's shape is the reverse); ``[K, N, B, C]`` names
their sizes, axes that are not named have one element; ``H/`` is a size that divides ``H``: the tensor is repeated along that
axis. Unless it says otherwise an operation raises

- `ShapeError` when shapes or memory layouts do not fit, `DTypeError` when a format does not, `ArgumentError` for any
  other argument: each names the operation, the tensors, and what would fit;
- `ClosedError` when a tensor's graph or weights are closed.

Whether a device can compute a node with these formats is seen when the graph is placed on it.
"""

from __future__ import annotations

from . import arithmetic, attention, convolution, elementwise, gated, layout, matrix, methods, recurrent
from ._build import graph_of
from ._left_out import LEFT_OUT, SPELLED
from .arithmetic import *  # noqa: F403
from .attention import *  # noqa: F403
from .convolution import *  # noqa: F403
from .elementwise import *  # noqa: F403
from .gated import *  # noqa: F403
from .layout import *  # noqa: F403
from .matrix import *  # noqa: F403
from .recurrent import *  # noqa: F403

__all__ = [
    "LEFT_OUT", "SPELLED", "graph_of",
    *arithmetic.__all__, *attention.__all__, *convolution.__all__, *elementwise.__all__,
    *gated.__all__, *layout.__all__, *matrix.__all__, *recurrent.__all__,
]  # fmt: skip

methods.attach()
