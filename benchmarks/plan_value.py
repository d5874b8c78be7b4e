"""A plan of 10,000 nodes as a value: made from what native code says, written, read, compared, asked.

The plan is that of a mixture of experts with many small layers over 4 simulated devices. What Python's json needs for
nothing but parsing the same text is measured beside it: it is the floor of reading.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import Row, alternate, duration, parser, ratio, seconds, show


def captured(n_layer: int, devices: str) -> tuple[bytes, dict[str, Any]]:
    """What a plan of a model is made of."""
    import pyggml as gg
    from pyggml.plan import SplitPlan
    from pyggml.testing import tiny_gguf

    found: list[tuple[bytes, dict[str, Any]]] = []
    make = SplitPlan.from_captures

    def keep(captures: Any, **others: Any) -> SplitPlan:
        found.append((bytes(captures), others))
        return make(captures, **others)

    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        tiny_gguf(Path(folder) / "many.gguf", "llama", moe=True, n_layer=n_layer, n_embd=64, n_ff=64, n_head=4, n_head_kv=4, n_vocab=64)
        SplitPlan.from_captures = keep  # type: ignore[method-assign,assignment]
        try:
            gg.plan_model(Path(folder) / "many.gguf", devices)
        finally:
            SplitPlan.from_captures = make  # type: ignore[method-assign]
    return found[0]


def measure(rounds: int, n_layer: int, devices: str) -> list[Row]:
    from pyggml.plan import SplitPlan
    from pyggml.plan.explain import Explainer

    text, others = captured(n_layer, devices)

    def make() -> SplitPlan:
        return SplitPlan.from_captures(text, **others)

    plan, other = make(), make()
    saved = plan.to_json()
    again = SplitPlan.from_json(saved)
    if not (again == plan == other and hash(again) == hash(plan) and again.to_json() == saved):
        raise SystemExit("the plan is not what it was written as")
    last, parsed = plan.nodes[-1].name, json.loads(saved)

    def explain_all() -> None:
        explainer = Explainer(plan)
        for i in range(len(plan)):
            explainer.explain(i)

    def parse(text: str | bytes) -> None:
        gc.disable()  # as reading a plan does: all of it lives
        json.loads(text)
        gc.enable()

    floor = "json.loads of the same text"
    tasks: list[tuple[str, Callable[[], object], str, Callable[[], object]]] = [
        ("from_captures", make, floor, lambda: parse(text)),
        ("from_json", lambda: SplitPlan.from_json(saved), floor, lambda: parse(saved)),
        ("to_json", plan.to_json, "json.dumps of the same", lambda: json.dumps(parsed)),
        ("hash, first", lambda: hash(SplitPlan(*_fields(plan))), "", lambda: None),
        ("== of equal ones", lambda: plan == other, "", lambda: None),
        ("first look-up by name", lambda: SplitPlan(*_fields(plan))[last], "", lambda: None),
        ("look-up by name", lambda: plan[last], "", lambda: None),
        ("explain one node", lambda: plan.explain(last), "", lambda: None),
        ("explain all nodes", explain_all, "", lambda: None),
    ]
    rows = []
    for what, ours, beside, theirs in tasks:
        mine, floors = alternate(rounds, lambda ours=ours: seconds(ours), lambda theirs=theirs: seconds(theirs))  # type: ignore[misc]
        name = f"plan of {len(plan):,} nodes, {len(plan.devices)} devices: {what}"
        if beside:
            value, spread = ratio(mine, floors)
            rows.append(Row(name, duration(mine), f"{beside}: {duration(floors)}", value, spread=spread))
        else:
            value = 1e3 * sorted(mine)[len(mine) // 2]
            rows.append(Row(name, duration(mine), "-", value, unit="ms"))
    return rows


def _fields(plan: Any) -> list[Any]:
    """Everything that a new plan with the same content is made of: what the old one remembers is not in it."""
    return [plan.devices, plan.nodes, plan.leafs, plan.subgraphs, plan.allreduces, plan.memory, plan.host, plan.rules]


def main() -> None:
    args = parser(__doc__, rounds=5)
    args.add_argument("--layers", type=int, default=213, help="layers of the model (default: 213, which make 10,000 nodes)")
    args.add_argument("--devices", default="sim:4", help="over which devices (default: sim:4)")
    options = args.parse_args()
    show(measure(options.rounds, options.layers, options.devices), options.json)


if __name__ == "__main__":
    main()
