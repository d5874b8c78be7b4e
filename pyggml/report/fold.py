"""The layers of a plan, and which of them are the same.

Two layers are the same when their nodes agree, one by one, after the layer's number is taken out of the names:
operations, types, shapes, splits, what each device has, and the all-reduces.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise

from ..plan import AllReduce, PlanLeaf, PlanNode, SplitPlan
from ..plan.layers import layer_of, layers_of

__all__ = ["Stretch", "layer_of", "leafs_first_read", "stretches"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring nodes ``start`` to ``stop - 1`` of one layer, or of none; with the other layers that are like it."""

    layer: int | None
    start: int
    stop: int
    layers: tuple[int, ...]
    """All layers that it stands for, itself included."""


def leafs_first_read(plan: SplitPlan) -> dict[int | None, list[PlanLeaf]]:
    """The leafs by the index of the node that reads them first; under None those that belong to no layer.

    The inputs that all layers read would else belong to the first one, and set it apart.
    """
    out: dict[int | None, list[PlanLeaf]] = {}
    n, seen = len(plan.nodes), set()
    for x in plan.nodes:
        for s in x.sources:
            if s >= n and s not in seen:
                seen.add(s)
                leaf = plan.leafs[s - n]
                out.setdefault(None if layer_of(leaf.name)[0] is None else x.index, []).append(leaf)
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
    layers = layers_of(plan)
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
