"""A plan as a page: one file that needs no network, and the shorter form for notebooks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Hashable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .._about import __version__
from .._units import binary, counted, percent
from ..plan import PlanNode, SplitPlan
from ..plan.explain import Explainer
from .content import MEMORY, Content, Measured, MemoryOf, Piece, dims, layers_words, split_counts
from .plan_text import host_words, missed_words

if TYPE_CHECKING:
    from jinja2 import Environment

    from ..tracing import Trace

__all__ = ["environment", "to_html"]

_FOLDER = Path(__file__).parent / "templates"
# with more lines than that, equal layers put together, a page begins with a line for each layer
_LARGE = 600
T = TypeVar("T", bound=Hashable)


class _Pool:
    """Things by number, each kept once: a large model repeats few of them."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, thing: Hashable) -> int:
        return self._numbers.setdefault(thing, len(self._numbers))

    def all(self) -> list[Any]:
        return list(self._numbers)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Jinja's, with our templates."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)


def _script_json(data: object) -> str:
    """JSON that cannot end the script element it stands in, nor begin another one or a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def to_html(plan: SplitPlan, title: str | None = None, trace: Trace | None = None) -> str:
    """See `SplitPlan.to_html`."""
    from markupsafe import Markup

    content = Content(plan, trace)
    script = (_FOLDER / "plan.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    templates = environment()
    largest = max((m.total for m in content.memory), default=0)
    page = templates.get_template("plan.html.j2").render(
        title=title or default_title(plan),
        version=__version__,
        headline=content.headline,
        memory=[_memory(m, j, largest) for j, m in enumerate(content.memory)],
        memory_words=MEMORY,
        missed=missed_words(plan),
        host=host_words(plan),
        # none of these three has a word of the plan that is not escaped: CSS and script are ours, the data is JSON
        css=Markup(templates.get_template("plan.css").render()),
        measured=_totals(content),
        n_runs=content.n_runs,
        data=Markup(_script_json(_data(content))),
        script=Markup(script),
        script_hash=Markup(f"'sha256-{digest}'"),
    )
    return page


def default_title(plan: SplitPlan) -> str:
    """Of a plan that was given none."""
    return f"Split plan over {', '.join(plan.devices) if len(plan.devices) <= 4 else f'{len(plan.devices)} devices'}"


def _memory(m: MemoryOf, device: int, largest: int) -> dict[str, Any]:
    words = dict(MEMORY)
    parts = [
        {"key": key, "size": binary(n), "width": f"{100 * n / largest:.3f}", "text": f"{key} {binary(n)}: {words[key]}"}
        for (key, _), n in zip(MEMORY, m.parts, strict=True)
        if n
    ]
    return {
        "device": device % 16,
        "name": m.name,
        "total": binary(m.total),
        "room": m.room,
        "share": percent(m.share) if m.share else "",
        "parts": parts,
        "words": f"{m.name}: {binary(m.total)}{' ' if m.room else ''}{m.room}; " + ", ".join(f"{p['key']} {p['size']}" for p in parts),
    }


def _data(content: Content) -> dict[str, Any]:
    plan = content.plan
    strings, held, bands, slices = _Pool(), _Pool(), _Pool(), _Pool()
    strings("")
    items = content.items

    def words(of: Callable[[Any], str]) -> list[int]:
        return [strings(of(x)) for x in items]

    nodes = [x.tensor for x in items if isinstance(x.tensor, PlanNode)]
    n = len(nodes)
    # names last: what there are few of has small numbers
    columns: dict[str, Any] = {
        "what": words(lambda x: x.what),
        "op": words(lambda x: x.op),
        "type": words(lambda x: x.tensor.type),
        "ne": words(lambda x: x.ne),
        "split": words(lambda x: x.split),
        "look": [x.look for x in items],
        "axis": [int(a) if (s := x.tensor.split) is not None and isinstance(a := s.axis, int) else -1 for x in items],
        "per": words(lambda x: x.per_device),
        "marks": words(lambda x: ", ".join(x.marks)),
        "held": [held(tuple(map(strings, x.held))) for x in items],
        "bytes": [x.tensor.bytes for x in items],
        "layer": [-1 if k is None else k for k in content.layers],
        "bands": [bands(content.bands(x)) for x in items],
        "slices": [slices(tuple((strings(dims(s.ne)), s.bytes, int(s.compute)) for s in x.tensor.slices)) for x in items],
        "meaning": words(content.meaning),
        "note": words(content.asked),
        "name": words(lambda x: x.name),
        "sub": [x.subgraph for x in nodes],
        "src": [x.sources for x in nodes],
    }
    groups = _Pool()
    groups(())
    pieces = []
    for p in content.pieces:
        title, words_of_it = content.piece_title(() if p.layer is None else (p.layer,), p.start, p.stop), _piece_words(content, p)
        pieces.append([-1 if p.layer is None else p.layer, p.start, p.stop, groups(p.alike), groups(p.alike_with_leafs), strings(title), strings(words_of_it)])
    folded = sum(p.stop - p.start for p in content.pieces if p.layer is None or p.layer == p.alike[0])
    reduces = {
        after: {
            "bytes": r.of.bytes,
            "origins": r.of.origins,
            "computes": list(map(int, r.of.computes)),
            "text": strings(r.text),
            "facts": [[strings(k), strings(v)] for k, v in r.facts],
        }
        for after, r in content.reduces.items()
    }
    return {
        "n": n,
        "devices": plan.devices,
        "detail": "layers" if folded > _LARGE and len(pieces) > 1 else "nodes",
        "cols": columns,
        "pieces": pieces,
        "groups": groups.all(),
        "titles": [layers_words(layers) for layers in groups.all()],
        "reduces": reduces,
        "first": [x.number for x in content.first_read.get(None, ())],
        "reads": {at: [x.number for x in leafs] for at, leafs in content.first_read.items() if at is not None},
        "subs": [[s.start, s.stop, s.graph] for s in plan.subgraphs],
        "why": _why(content, strings),
        "times": None if content.measured is None else [None if m is None else _times(m) for m in content.measured],
        "held": held.all(),
        "bands": bands.all(),
        "slices": slices.all(),
        "strings": strings.all(),
    }


def _times(m: Measured) -> list[list[float | None]]:
    """Compute, wait and reduce of each device, in microseconds."""
    return [[None if t is None else round(t, 2) for t in of] for of in (m.compute, m.wait, m.reduce)]


def _totals(content: Content) -> list[dict[str, Any]]:
    """Of all subgraphs, for each device."""
    if content.measured is None:
        return []
    rows = []
    for j, name in enumerate(content.plan.devices):
        parts = [(m.compute[j] or 0, m.wait[j] or 0, m.reduce[j] or 0) for m in content.measured if m is not None]
        rows.append((name, [sum(of) for of in zip(*parts, strict=True)]))
    most = max((sum(sums) for _, sums in rows), default=0) or 1
    return [
        {
            "device": j % 16,
            "name": name,
            "parts": [
                {"key": key, "width": f"{100 * t / most:.2f}", "text": microseconds(t)}
                for key, t in zip(("compute", "wait", "reduce"), sums, strict=True)
            ],
        }
        for j, (name, sums) in enumerate(rows)
    ]


def microseconds(t: float) -> str:
    """``1.25 ms``."""
    return f"{t / 1e6:.2f} s" if t >= 1e6 else f"{t / 1000:.2f} ms" if t >= 1000 else f"{t:.1f} µs"


def _piece_words(content: Content, p: Piece) -> str:
    inside = content.reduces_in(p.start, p.stop)
    payload = sum(r.of.bytes for r in inside)
    sums = f" · {counted(len(inside), 'all-reduce')}, {binary(payload)}" if inside else ""
    return f"{counted(p.stop - p.start, 'node')} · {split_counts(content.plan.nodes[p.start : p.stop])}{sums}"


# What is said of equal layers is kept once: the number of the layer is left out, and so are the numbers in names that
# ggml gave (those count from the tensor's own). templates/plan.js puts them back in.
_LAYER, _NODE = "\x01", "\x02"


def _why(content: Content, strings: Callable[[str], int]) -> dict[str, Any]:
    """The chains of causes, link by link: the page puts them together as `str(Explanation)` does."""
    explainer = Explainer(content.plan)
    head, text, summed, causes, ends, passes, rules = [], [], [], [], [], [], []
    for item in content.items:
        number, layer = item.number, content.layers[item.number]
        step = explainer.step(number)
        of = (*step.causes, *step.partners)
        head.append(strings(_bare(explainer.headline(number), layer, number)))
        text.append(strings(_bare(step.text, layer, number)))
        summed.append(0 if item.is_leaf or (item.look != "P" and number not in content.reduces) else strings(_bare(explainer.step(number, True).text, layer, number)))
        causes.append(of)
        ends.append([k for k, s in enumerate(of) if explainer.ends_at(s, number)])
        passes.append(int(step.passes))
        rules.append(strings("; ".join(map(str, explainer.rules_of(number)))))
    return {"head": head, "text": text, "summed": summed, "causes": causes, "ends": ends, "passes": passes, "rules": rules}


def _bare(text: str, layer: int | None, number: int) -> str:
    if _LAYER in text or _NODE in text:
        return text
    if layer is not None:
        digits = str(layer)
        text = _NUMBER.sub(lambda m: _LAYER if m[0] == digits else m[0], text)
    return _AUTO.sub(lambda m: f"{_NODE}{int(m[1]) - number}{_NODE}", text)


_NUMBER = re.compile(r"(?:(?<=blk\.)|(?<=[-l]))\d+")
_AUTO = re.compile(r"(?<=`)node_(\d+)(?!\d)")
