"""Strategy: graphs that are valid by construction, with splits that may not be."""

from __future__ import annotations

from hypothesis import strategies as st

from pyggml.testing.graph_cases import OPS, GraphCase, Leaf, Step

# from simple to complex: a failure shrinks towards the front
SHARES = ((1, 1), (3, 1), (1, 0), (1, 1, 1), (1, 2, 1), (0, 1, 1), (5, 1, 1, 1), (1, 1, 1, 1))
DTYPES = ("f32", "f32", "f32", "q8_0", "f16", "q4_0")
VALUES = ("normal", "uniform", "outliers", "zeros")

_PARAMS = {
    "permute": st.tuples(st.integers(0, 4)),
    "reshape": st.tuples(st.integers(0, 3)),
    "part": st.tuples(st.integers(0, 2), st.integers(0, 1)),
    "concat": st.tuples(st.integers(0, 2)),
    "repeat": st.tuples(st.integers(0, 2)),
}
_ONE = tuple(n for n in OPS if n not in ("mul_mat", "mul_mat_id", "add", "mul", "swiglu_split", "concat", "get_rows", "set_rows"))
_POINTWISE = ("silu", "relu", "tanh", "neg", "abs", "sqr", "scale", "clamp", "cont", "dup", "permute", "part")
_TWO = ("add", "mul", "swiglu_split", "concat", "mul_mat")
# weights and what follows them come more often: a graph without a split tests little
KINDS = ("linear", "linear", "linear", "one", "one", "one", "two", "two", "bias", "experts", "rows", "rows_of_weight")


@st.composite
def graph_cases(draw: st.DrawFn, max_steps: int = 8) -> GraphCase:
    shares = draw(st.sampled_from(SHARES))
    ratio = ":".join(map(str, shares))
    width, tokens = draw(st.sampled_from((32, 64, 128))), draw(st.sampled_from((1, 2, 4, 6)))
    leafs = [Leaf((width, tokens, 1, 1), kind="input")]
    # steps are drawn with negative numbers for leafs, since their number is not known yet
    steps: list[tuple[str, list[int], tuple[int, ...]]] = []
    shapes = [leafs[0].ne]  # of -1 (the input) and of the steps
    at = [-1]
    along = [False]  # whether it is split along axis 0, as far as known here: what follows is then mostly what fits it

    def leaf(new: Leaf) -> int:
        leafs.append(new)
        return -len(leafs)

    def split(ne: tuple[int, ...], axes: tuple[int, ...], fits: int) -> str:
        """Mostly the axis that fits what is multiplied with it, so that the graph runs; else any."""
        axis = fits if draw(st.integers(0, 9)) < 9 else draw(st.sampled_from((-1, *axes)))
        if axis < 0:
            return "M"
        if axis == 1 and ne[1] % 2 == 0 and ne[1] >= 64 and draw(st.integers(0, 7)) == 7:
            return f"S1[{ne[1] // 2}x2] {ratio}"
        other = draw(st.integers(0, 31)) == 31  # now and then other shares than the rest
        return f"S{axis} {':'.join(map(str, shares[::-1])) if other else ratio}"

    def put(op: str, sources: list[int], params: tuple[int, ...], ne: tuple[int, int, int, int], axis0: bool = False) -> None:
        if min(ne) > 0 and ne[0] * ne[1] * ne[2] * ne[3] <= 1 << 15:
            at.append(len(steps))
            steps.append((op, sources, params))
            shapes.append(ne)
            along.append(axis0)

    for _ in range(draw(st.integers(1, max_steps))):
        kind = draw(st.sampled_from(KINDS))
        i = len(shapes) - 1 if draw(st.integers(0, 3)) < 3 else draw(st.integers(0, len(shapes) - 1))
        a, ne, split0 = at[i], shapes[i], along[i]
        if kind == "linear" and ne[0] % 32 == 0:
            out = draw(st.sampled_from((32, 64, 128, 256)))
            w = (ne[0], out, 1, 1)
            new = leaf(Leaf(w, split(w, (1, 0), 0 if split0 else draw(st.sampled_from((1, 1, 1, -1)))), draw(st.sampled_from(DTYPES))))
            put("mul_mat", [new, a], (), (out, *ne[1:]), leafs[-1].split.startswith("S1"))
        elif kind == "experts" and ne[0] % 32 == 0 and ne[3] == 1:
            n, used = 4, draw(st.sampled_from((1, 2)))
            if ne[1] not in (1, used):
                continue
            w = (ne[0], 64, n, 1)
            new = leaf(Leaf(w, split(w, (1, 0, 2), 0 if split0 else 1), draw(st.sampled_from(("f32", "q8_0")))))
            by_columns = leafs[-1].split.startswith("S1")
            ids = leaf(Leaf((used, ne[2], 1, 1), dtype="i32", kind="rows", limit=n))
            put("mul_mat_id", [new, a, ids], (), (64, used, ne[2], 1), by_columns)
        elif kind == "bias":
            w = (ne[0], 1, 1, 1)
            new = leaf(Leaf(w, split(w, (0,), 0 if split0 else -1)))
            put(draw(st.sampled_from(("mul", "add"))), [a, new], (), ne, split0)
        elif kind == "rows" and ne[2:] == (1, 1) and ne[1] > 1:
            n = draw(st.integers(1, ne[1]))
            if draw(st.booleans()):
                put("get_rows", [a, leaf(Leaf((n, 1, 1, 1), dtype="i32", kind="rows", limit=ne[1]))], (), (ne[0], n, 1, 1))
            else:
                b = leaf(Leaf((ne[0], n, 1, 1), kind="input"))
                put("set_rows", [a, b, leaf(Leaf((n, 1, 1, 1), dtype="i64", kind="rows", limit=ne[1]))], (), ne)
        elif kind == "rows_of_weight":
            w = (draw(st.sampled_from((32, 64))), 8, 1, 1)
            new = leaf(Leaf(w, split(w, (0, 1), draw(st.sampled_from((-1, 0))))))
            put("get_rows", [new, leaf(Leaf((4, 1, 1, 1), dtype="i32", kind="rows", limit=8))], (), (w[0], 4, 1, 1))
        elif kind == "one":
            op = draw(st.sampled_from(_POINTWISE if split0 and draw(st.booleans()) else _ONE))
            params = draw(_PARAMS.get(op, st.just(())))
            result = OPS[op].shape(ne, *params)
            if result is not None:
                put(op, [a], params, result, split0 and op in _POINTWISE)
        elif kind == "two":
            op = draw(st.sampled_from(_TWO))
            params = draw(_PARAMS.get(op, st.just(())))
            k = draw(st.sampled_from([k for k in range(len(shapes)) if along[k] == split0 or draw(st.integers(0, 7)) == 7]))
            result = OPS[op].shape(ne, shapes[k], *params)
            if result is not None and not (op == "mul_mat" and at[k] == a and a == -1):
                put(op, [a, at[k]], params, result, split0 and op != "mul_mat")
    if not steps:
        put("silu", [-1], (), shapes[0])
    n = len(leafs)
    numbered = tuple(Step(op, tuple(s + n if s >= 0 else -s - 1 for s in sources), params) for op, sources, params in steps)
    read = draw(st.sets(st.integers(0, len(steps) - 1), max_size=3))
    return GraphCase(
        shares, tuple(leafs), numbered, tuple(sorted({*read, len(steps) - 1})), draw(st.integers(0, 1 << 16)), draw(st.sampled_from(VALUES))
    )
