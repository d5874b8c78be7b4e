"""The layers of a plan, and which of them are the same.

Layers are known by the names that llama.cpp gives: ``blk.7.attn_q.weight``, ``ffn_out-7``, ``Kcur-7 (view)``,
``cache_k_l7``. Two layers are the same when their nodes agree, one by one, after the layer's number is taken out of
the names: operations, types, shapes, splits, what each device has, and the all-reduces.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ..plan import AllReduce, PlanLeaf, PlanNode, SplitPlan

__all__ = ["Stretch", "layer_of", "leafs_first_read", "stretches"]

_LAYER = re.compile(r"(?<![^\W_])(blk\.)(\d+)(?=\.)|(-)(\d+)(?=$| )|(_l)(\d+)(?=$|[ ._])")
# names that ggml gives where the builder gave none; what follows in brackets says how a view was made
_AUTO = re.compile(r"(?:(?:node|leaf)_\d+)?((?: \([a-z ]+\))*)")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring nodes ``start`` to ``stop - 1`` of one layer, or of none; with the other layers that are like it."""

    layer: int | None
    start: int
    stop: int
    layers: tuple[int, ...]
    """All layers that it stands for, itself included."""


@lru_cache(maxsize=65536)
def layer_of(name: str) -> tuple[int | None, str]:
    """The layer's number in a name, and the name without it."""
    match = _LAYER.search(name)
    if match is None:
        auto = _AUTO.fullmatch(name)
        return None, name if auto is None else "#" + auto[1]
    mark, number = next((match[k], match[k + 1]) for k in (1, 3, 5) if match[k])
    return int(number), name[: match.start()] + mark + "#" + name[match.end() :]


def _is_auto(name: str) -> bool:
    return _AUTO.fullmatch(name) is not None


def _layers(plan: SplitPlan) -> list[int | None]:
    found: list[int | None] = [layer_of(x.name)[0] for x in plan.nodes]
    leaf_layers = [layer_of(x.name)[0] for x in plan.leafs]
    n = len(plan.nodes)
    # a node without a name of its own belongs where its sources belong
    for i, x in enumerate(plan.nodes):
        if found[i] is None and _is_auto(x.name):
            sources = [found[s] if s < n else leaf_layers[s - n] for s in x.sources]
            found[i] = max((s for s in sources if s is not None), default=None)
    # any other belongs to the layer that surrounds it
    i = 0
    while i < n:
        k = i
        while k < n and found[k] is None:
            k += 1
        if 0 < i < k < n and found[i - 1] == found[k]:
            found[i:k] = [found[k]] * (k - i)
        i = k + 1
    return found


def leafs_first_read(plan: SplitPlan) -> dict[int, list[PlanLeaf]]:
    """The leafs by the index of the node that reads them first."""
    out: dict[int, list[PlanLeaf]] = {}
    n, seen = len(plan.nodes), set()
    for x in plan.nodes:
        for s in x.sources:
            if s >= n and s not in seen:
                seen.add(s)
                out.setdefault(x.index, []).append(plan.leafs[s - n])
    return out


def _signature(x: PlanNode | PlanLeaf) -> Hashable:
    return layer_of(x.name)[1], x.op, x.type, x.ne, x.split, x.slices


def _reduce_signature(r: AllReduce | None) -> Hashable:
    if r is None:
        return None
    return r.bytes, r.computes, r.algorithm, r.over, tuple(layer_of(name)[1] for name in r.delayed_from)


def stretches(plan: SplitPlan, *, fold: bool = True, leafs: bool = False) -> list[Stretch]:
    """The plan cut at the borders of layers, each kind of layer once, in the order of first appearance.

    Args:
        fold: layers that are the same are kept once; else all are returned.
        leafs: layers with different weights, caches or inputs are not the same either.
    """
    layers = _layers(plan)
    cuts = [i for i in range(len(layers)) if i == 0 or layers[i] != layers[i - 1]] + [len(layers)]
    pieces = [Stretch(layers[a], a, b, (k,) if (k := layers[a]) is not None else ()) for a, b in pairwise(cuts)]
    if not fold:
        return pieces
    reduces = {r.after: r for r in plan.allreduces}
    read = leafs_first_read(plan) if leafs else {}
    by_layer: dict[int, list[Stretch]] = {}
    for p in pieces:
        if p.layer is not None:
            by_layer.setdefault(p.layer, []).append(p)

    # all pieces of a layer must agree: a layer is shown whole or not at all
    kinds: dict[Hashable, list[int]] = {}
    for layer, parts in by_layer.items():
        key = tuple(
            tuple(
                (_signature(x), _reduce_signature(reduces.get(x.index)), tuple(map(_signature, read.get(x.index, ()))))
                for x in plan.nodes[p.start : p.stop]
            )
            for p in parts
        )
        kinds.setdefault(key, []).append(layer)
    shown = {alike[0]: tuple(sorted(alike)) for alike in kinds.values()}
    return [
        p if p.layer is None else Stretch(p.layer, p.start, p.stop, shown[p.layer])
        for p in pieces
        if p.layer is None or p.layer in shown
    ]
