"""A plan as CSV: one line for each node and leaf, everything as it is."""

from __future__ import annotations

import csv
import io

from ..plan import PlanNode, SplitPlan
from .content import Content

__all__ = ["to_csv"]


def to_csv(plan: SplitPlan) -> str:
    """See `SplitPlan.to_csv`."""
    content = Content(plan)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = ["number", "kind", "name", "layer", "op", "type", "ne0", "ne1", "ne2", "ne3", "bytes", "split", "synced", "pending", "subgraph"]
    for d in plan.devices:
        heads += [f"{d} ne", f"{d} bytes", f"{d} computes"]
    writer.writerow([*heads, "all-reduce bytes", "sources"])
    for item, layer in zip(content.items, content.layers, strict=True):
        x = item.tensor
        node = x if isinstance(x, PlanNode) else None
        reduce = content.reduces.get(item.number)
        line: list[object] = [item.number, item.what, x.name, "" if layer is None else layer, x.op, x.type, *x.ne, x.bytes, "" if x.split is None else x.split]
        line += ["", "", ""] if node is None else ["" if node.synced is None else node.synced, int(node.pending), node.subgraph]
        for j in range(len(plan.devices)):
            line += ["x".join(map(str, x.slices[j].ne)), x.slices[j].bytes, int(x.slices[j].compute)] if x.slices else ["", "", ""]
        line += [reduce.of.bytes if reduce else "", "" if node is None else " ".join(map(str, node.sources))]
        writer.writerow(line)
    return out.getvalue()
