"""Operations over views that are not one piece of memory: the same result as over a copy that is, or a refusal. Never another result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import pyggml as gg
from pyggml import ops

Make = Callable[..., gg.Tensor]
Sources = tuple[tuple[str, tuple[int, ...]], ...]
PERMUTED = {"axes 0 and 1": (1, 0, 2, 3), "axes 1 and 2": (0, 2, 1, 3), "axes 2 and 3": (0, 1, 3, 2), "axes 0, 1 and 2": (2, 0, 1, 3)}
FORMS = ("between rows", "between planes", *PERMUTED)
F32 = "f32"
X4 = ((F32, (8, 4, 2, 2)),)

OPS: dict[str, tuple[Sources, Make]] = {
    "argsort": (X4, ops.argsort),
    "argsort_top_k": (X4, lambda a: ops.argsort_top_k(a, 3)),
    "top_k": (X4, lambda a: ops.top_k(a, 3)),
    "clamp": (X4, lambda a: ops.clamp(a, -0.5, 0.5)),
    "leaky_relu": (X4, lambda a: ops.leaky_relu(a, 0.1)),
    "silu": (X4, ops.silu),
    "sum": (X4, ops.sum),
    "sum_rows": (X4, ops.sum_rows),
    "mean": (X4, ops.mean),
    "cumsum": (X4, ops.cumsum),
    "norm": (X4, ops.norm),
    "l2_norm": (X4, ops.l2_norm),
    "group_norm": (((F32, (4, 4, 6, 2)),), lambda a: ops.group_norm(a, 3)),
    "swiglu": (X4, ops.swiglu),
    "swiglu_split": ((*X4, *X4), ops.swiglu_split),
    "scale": (X4, lambda a: ops.scale(a, 2.0)),
    "cast to q8_0": (((F32, (32, 4, 2, 2)),), lambda a: ops.cast(a, "q8_0")),
    "cast to bf16": (X4, lambda a: ops.cast(a, "bf16")),
    "add": ((*X4, (F32, (8, 1, 2, 1))), ops.add),
    "mul_mat": (((F32, (16, 6, 2, 2)), (F32, (16, 5, 4, 2))), ops.mul_mat),
    "mul_mat of f16": ((("f16", (16, 6, 2, 2)), (F32, (16, 5, 4, 2))), ops.mul_mat),
    "mul_mat_id": (((F32, (16, 6, 4)), (F32, (16, 2, 5)), ("i32", (2, 5))), ops.mul_mat_id),
    "add_id": (((F32, (8, 2, 5)), (F32, (8, 4)), ("i32", (2, 5))), ops.add_id),
    "get_rows": (((F32, (16, 6, 3, 2)), ("i32", (5, 3, 2))), ops.get_rows),
    "soft_max_ext": ((*X4, (F32, (8, 4))), lambda a, m: ops.soft_max_ext(a, m, 1.0, 0.0)),
    "rope": (((F32, (16, 4, 6, 2)), ("i32", (6,))), lambda a, b: ops.rope(a, b, 16, "neox")),
    "flash_attn_ext": (((F32, (16, 5, 4, 2)), ("f16", (16, 32, 2, 2)), ("f16", (16, 32, 2, 2))), lambda q, k, v: ops.flash_attn_ext(q, k, v, None, 0.25)),
    "im2col": ((("f16", (3, 3, 2, 4)), (F32, (8, 8, 2, 2))), ops.im2col),
    "conv_1d": ((("f16", (3, 2, 4)), (F32, (8, 2, 2))), ops.conv_1d),
    "conv_2d": ((("f16", (3, 3, 2, 4)), (F32, (8, 8, 2, 2))), ops.conv_2d),
    "conv_2d_direct": (((F32, (3, 3, 2, 4)), (F32, (8, 8, 2, 2))), ops.conv_2d_direct),
    "conv_2d_sk_p0": ((("f16", (2, 2, 2, 4)), (F32, (8, 8, 2, 2))), ops.conv_2d_sk_p0),
    "conv_2d_s1_ph": ((("f16", (3, 3, 2, 4)), (F32, (8, 8, 2, 2))), ops.conv_2d_s1_ph),
    "conv_3d": ((("f16", (3, 3, 3, 4)), (F32, (6, 6, 6, 2))), lambda a, b: ops.conv_3d(a, b, 2)),
    "ssm_conv": (((F32, (9, 6, 2)), (F32, (4, 6))), ops.ssm_conv),
    "concat": ((*X4, *X4), lambda a, b: ops.concat(a, b, 1)),
    "repeat": (((F32, (8, 4, 2, 1)), (F32, (16, 4, 4, 2))), ops.repeat),
    "out_prod": (((F32, (6, 5, 2, 2)), (F32, (4, 5, 2, 2))), ops.out_prod),
    "upscale": (X4, lambda a: ops.upscale(a, 2, "bilinear")),
    "pad": (X4, lambda a: ops.pad(a, 1, 2)),
}  # fmt: skip


def _values(number: int, dtype: str, ne: tuple[int, ...]) -> np.ndarray:  # type: ignore[type-arg]
    if dtype == "i32":
        return (np.arange(int(np.prod(ne))) % 2).astype(np.int32).reshape(tuple(reversed(ne)))
    return np.random.default_rng(number).standard_normal(tuple(reversed(ne))).astype(np.float16 if dtype == "f16" else np.float32)


def _source(graph: gg.Graph, name: str, dtype: str, value: np.ndarray, form: str | None) -> tuple[gg.Tensor, np.ndarray]:  # type: ignore[type-arg]
    """A tensor with that value in the form, and what its input is to be given; what lies between would be seen in a result."""
    full = value.reshape((1,) * (4 - value.ndim) + value.shape)
    ne = tuple(reversed(full.shape))
    if form is None:
        return graph.input(name, ne, dtype), full
    if form in PERMUTED:
        axes = PERMUTED[form]  # ggml's; result.ne[axes[i]] == source.ne[i]
        given = np.ascontiguousarray(np.transpose(full.T, axes).T)
        return ops.permute(graph.input(name, tuple(reversed(given.shape)), dtype), *axes), given
    rows, columns = (2, 0) if form == "between planes" else (0, 2)
    given = np.full((*full.shape[:2], full.shape[2] + 2 * rows, full.shape[3] + 2 * columns), 0 if dtype == "i32" else 7777, value.dtype)
    given[:, :, rows : rows + full.shape[2], columns : columns + full.shape[3]] = full
    whole = graph.input(name, tuple(reversed(given.shape)), dtype)
    step = given.strides
    return ops.view(whole, ne, nb=(step[2], step[1], step[0]), offset=rows * step[2] + columns * step[3]), given


def _run(device: gg.Device | gg.MetaDevice, op: str, which: int, form: str | None) -> np.ndarray:  # type: ignore[type-arg]
    sources, make = OPS[op]
    with gg.Graph(device, size=64, threads=2) as graph:
        made = [_source(graph, f"in{i}", dtype, _values(i, dtype, ne), form if i == which else None) for i, (dtype, ne) in enumerate(sources)]
        graph.output("y", make(*(tensor for tensor, _ in made)))
        given = {f"in{i}": value for i, (_, value) in enumerate(made)}
        return graph.run({name: given[name] for name in graph.inputs})["y"]


@pytest.mark.parametrize("op", OPS)
def test_strided_sources_do_not_change_results(op: str) -> None:
    """ggml's kernels for ARGSORT, TOP_K, CLAMP, LEAKY_RELU, IM2COL and SSM_CONV took other elements than the view's."""
    taken = 0
    for device in (gg.cpu(), gg.MetaDevice("vcpu:2")):
        for which in range(len(OPS[op][0])):
            want = _run(device, op, which, None)
            for form in FORMS:
                try:
                    got = _run(device, op, which, form)
                except gg.ShapeError as error:
                    assert "cont()" in str(error)
                except (gg.GGMLAbort, gg.SplitError) as error:  # a kernel that looks itself; the node is named
                    assert "'y'" in str(error) or "node 'node_" in str(error)
                else:
                    assert gg.nmse(got.astype(np.float64), want.astype(np.float64)) <= 1e-12, f"in{which} {form}"
                    taken += 1
    assert taken or op in ("scale", "sum")
