"""Which layer of a model a tensor belongs to.

Layers are known by the names that llama.cpp gives: ``blk.7.attn_q.weight``, ``ffn_out-7``, ``Kcur-7 (view)``,
``cache_k_l7``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import SplitPlan

__all__ = ["is_auto", "layer_of", "layers_of"]

_LAYER = re.compile(r"(?<![^\W_])(blk\.)(\d+)(?=\.)|(-)(\d+)(?=$|\)| \()|(_l)(\d+)(?=$|[ ._)])")
# names that ggml gives where the builder gave none; what follows in brackets says how a view was made
_AUTO = re.compile(r"(?:(?:node|leaf)_\d+)?(?: \([a-z ]+\))*")
_NUMBERED = re.compile(r"(?<![^\W_])(node|leaf)_\d+")


@lru_cache(maxsize=65536)
def layer_of(name: str) -> tuple[int | None, str]:
    """The layer's number in a name, and the name without it: ``(7, "ffn_out-#")``. Numbers of ggml's own are out, too."""
    layer: int | None = None

    def taken_out(match: re.Match[str]) -> str:
        nonlocal layer
        mark, number = next((match[k], int(match[k + 1])) for k in (1, 3, 5) if match[k])
        layer = number if layer is None else layer
        # "new_state-3 (copy of l_out-2)": the other number counts from the first
        return f"{mark}#{number - layer or ''}"

    bare = _LAYER.sub(taken_out, name)
    return layer, _NUMBERED.sub(r"\1_#", bare)


def is_auto(name: str) -> bool:
    """Whether ggml gave the name, or there is none."""
    return _AUTO.fullmatch(name) is not None


def layers_of(plan: SplitPlan) -> list[int | None]:
    """The layer of every node; None: of none."""
    found: list[int | None] = [layer_of(x.name)[0] for x in plan.nodes]
    leaf_layers = [layer_of(x.name)[0] for x in plan.leafs]
    n = len(plan.nodes)
    _surround(found)
    # a node without a name of its own belongs where its sources belong
    for i, x in enumerate(plan.nodes):
        if found[i] is None and is_auto(x.name):
            sources = [found[s] if s < n else leaf_layers[s - n] for s in x.sources]
            found[i] = max((s for s in sources if s is not None), default=None)
    _surround(found)
    return found


def _surround(found: list[int | None]) -> None:
    """A node of no layer, between nodes of one, belongs to it."""
    i = 0
    while i < len(found):
        k = i
        while k < len(found) and found[k] is None:
            k += 1
        if 0 < i < k < len(found) and found[i - 1] == found[k]:
            found[i:k] = [found[k]] * (k - i)
        i = k + 1
