"""Operations: all of ggml.h is there, what does not fit is refused with a telling error, tensors have them as methods."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyggml as gg
from pyggml import ops
from pyggml._ffi import ffi, lib
from pyggml.ops import _build

OPERATIONS = {n: getattr(ops, n) for n in ops.__all__ if inspect.isfunction(getattr(ops, n)) and n != "graph_of"}
SETTERS = {"prec_set_acc", "prec_set_src", "mul_mat_set_hint", "rope_set_offset"}


@pytest.fixture(scope="module")
def device() -> gg.Device:
    return gg.cpu()


@pytest.fixture
def g(device: gg.Device) -> Iterator[gg.Graph]:
    with gg.Graph(device, threads=1) as graph:
        yield graph


# --- completeness


def returns_tensor(name: str) -> bool:
    if not name.startswith("ggml_"):
        return False
    try:
        kind = ffi.typeof(getattr(lib, name))
    except (AttributeError, TypeError):
        return False
    return kind.kind == "function" and kind.result.cname == "struct ggml_tensor *"


def test_every_function_that_returns_a_tensor_is_an_operation_or_accounted_for() -> None:
    missing, inplace = [], []
    functions = {n for n in dir(lib) if returns_tensor(n)}
    assert len(functions) > 200
    for name in sorted(functions):
        short = name.removeprefix("ggml_")
        if short in OPERATIONS or name in ops.SPELLED or name in ops.LEFT_OUT:
            continue
        stem = short.removesuffix("_inplace")
        if stem != short and stem in OPERATIONS:
            if "inplace" not in inspect.signature(OPERATIONS[stem]).parameters:
                inplace.append(name)
            continue
        missing.append(name)
    assert not missing and not inplace


def test_the_tables_name_what_exists() -> None:
    functions = {n for n in dir(lib) if returns_tensor(n)}
    assert set(ops.SPELLED) <= functions
    assert set(ops.LEFT_OUT) - {"ggml_format_name"} <= functions  # variadic: not in lib
    assert set(ops.SPELLED.values()) <= set(OPERATIONS)
    assert not set(ops.LEFT_OUT) & {"ggml_" + n for n in OPERATIONS}
    assert all(len(reason) > 10 for reason in ops.LEFT_OUT.values())


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operation_says_what_it_does(name: str) -> None:
    function = OPERATIONS[name]
    signature = inspect.signature(function)
    assert function.__doc__ and len(function.__doc__) > 20
    assert "graph" in signature.parameters and signature.parameters["graph"].kind is inspect.Parameter.KEYWORD_ONLY
    assert signature.return_annotation == "Tensor"
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - SETTERS - {"view", "reshape", "cont"}))
def test_arguments_are_in_the_order_of_c(name: str) -> None:
    """Tensors and numbers stand where ggml has them, so that C code carries over."""
    kinds = [
        "Tensor" if t.cname == "struct ggml_tensor *" else "other"
        for t in ffi.typeof(getattr(lib, "ggml_" + name)).args[1:]
    ]
    mine = [
        p
        for p in inspect.signature(OPERATIONS[name]).parameters.values()
        if p.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    found = ["Tensor" if str(p.annotation).startswith("Tensor") else "other" for p in mine]
    flags = {"interpolate": 0, "leaky_relu": 1}  # C's inplace is a keyword
    assert found == kinds[: len(kinds) - flags.get(name, 0)]


def test_methods_are_the_operations_on_a_tensor_first() -> None:
    for name, function in OPERATIONS.items():
        first = next(iter(inspect.signature(function).parameters.values()))
        if first.annotation == "Tensor":
            assert getattr(gg.Tensor, name) is function
        else:
            assert not hasattr(gg.Tensor, name)


# --- operators


def test_operators(g: gg.Graph) -> None:
    w, x, b = g.input("w", (16, 4)), g.input("x", (16, 3)), g.input("b", (4,))
    made: dict[str, Callable[[], gg.Tensor]] = {
        "matmul": lambda: w @ x,
        "add": lambda: w @ x + b,
        "sub": lambda: w @ x - b,
        "mul": lambda: (w @ x) * b,
        "div": lambda: (w @ x) / b,
        "neg": lambda: -x,
        "add_number": lambda: x + 2,
        "radd_number": lambda: 2.0 + x,
        "sub_number": lambda: x - 0.5,
        "rsub_number": lambda: 0.5 - x,
        "mul_number": lambda: x * np.float32(3),
        "rmul_number": lambda: np.float64(3) * x,
        "div_number": lambda: x / 4,
        "rdiv_number": lambda: 4 / x,
    }
    for name, make in made.items():
        g.output(name, make())
    rng = np.random.default_rng(1)
    values = {"w": rng.normal(size=(4, 16)), "x": rng.normal(size=(3, 16)), "b": rng.normal(size=4)}
    out = g.run({k: v.astype(np.float32) for k, v in values.items()})
    W, X, B = (values[k].astype(np.float32).astype(np.float64) for k in "wxb")
    Y = X @ W.T
    want = [Y, Y + B, Y - B, Y * B, Y / B, -X, X + 2, 2 + X, X - 0.5, 0.5 - X, X * 3, 3 * X, X / 4, 4 / X]
    for name, value in zip(made, want, strict=True):
        np.testing.assert_allclose(out[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("wrong", ["text", None, np.ones(3, np.float32), [1, 2]])
def test_operators_refuse_what_is_no_tensor_and_no_number(g: gg.Graph, wrong: Any) -> None:
    x = g.input("x", (3,))
    for attempt in (lambda: x + wrong, lambda: wrong * x, lambda: x @ wrong, lambda: wrong @ x, lambda: x / wrong):
        with pytest.raises(TypeError) as caught:
            attempt()
        if isinstance(wrong, np.ndarray):  # numpy's own words do not say what to do
            assert isinstance(caught.value, gg.Error) and "graph.input(name, ne)" in str(caught.value)


# --- where a node goes


def test_weights_alone_need_a_graph(device: gg.Device) -> None:
    with gg.Weights(device, {"a": np.ones((2, 4), np.float32)}) as w:
        with pytest.raises(gg.ArgumentError, match="no graph to put the node in"):
            w["a"].neg()
        with gg.Graph(device) as g:
            assert w["a"].neg().owner is g
            with gg.Graph(device) as inner:
                assert w["a"].neg().owner is inner
                assert w["a"].neg(graph=g).owner is g
                assert (w["a"] + g.input("x", (4, 2))).owner is g
        with pytest.raises(gg.ArgumentError, match="no graph"):
            ops.arange(0, 4)


def test_tensors_of_two_graphs_do_not_mix(device: gg.Device) -> None:
    with gg.Graph(device) as one, gg.Graph(device) as two, pytest.raises(gg.ArgumentError, match="another graph"):
        one.input("x", (4,)) + two.input("y", (4,))
    with pytest.raises(gg.ClosedError):
        one.input("z", (4,))


# --- what does not fit


def t(g: gg.Graph, *ne: int, dtype: str = "f32") -> gg.Tensor:
    return g.input(f"t{len(g.inputs)}", ne, dtype)


S, D, A = gg.ShapeError, gg.DTypeError, gg.ArgumentError
TABLE: list[tuple[str, type[Exception], str, Callable[[gg.Graph], Any]]] = [
    ("mul_mat", S, r"a.ne\[0\] = 64 and b.ne\[0\] = 32 must be equal", lambda g: t(g, 64, 256) @ t(g, 32, 8)),
    ("mul_mat", S, r"ops.mul_mat\(a, ops.cont\(ops.transpose\(b\)\)\)", lambda g: t(g, 64, 256) @ t(g, 32, 64)),
    ("mul_mat", S, r"ops.mul_mat\(ops.cont\(ops.transpose\(a\)\), b\)", lambda g: t(g, 64, 32) @ t(g, 32, 8)),
    ("mul_mat", S, r"b.ne\[2\] = 3 must be a multiple of a.ne\[2\] = 2", lambda g: t(g, 8, 4, 2) @ t(g, 8, 5, 3)),
    ("mul_mat", S, r"b must have contiguous rows.*b.cont\(\)", lambda g: t(g, 8, 4) @ t(g, 5, 8).transpose()),
    ("mul_mat_id", D, "ids must be i32", lambda g: t(g, 8, 4, 2).mul_mat_id(t(g, 8, 1, 5), t(g, 2, 5))),
    ("mul_mat_id", S, r"ids.ne\[1\] = 4", lambda g: t(g, 8, 4, 2).mul_mat_id(t(g, 8, 1, 5), t(g, 2, 4, dtype="i32"))),
    ("add", S, r"did you mean ops.add\(b, a\)", lambda g: t(g, 8) + t(g, 8, 3)),
    ("add", S, r"a.ne\[0\] = 8 must be a multiple of b.ne\[0\] = 3", lambda g: t(g, 8) + t(g, 3)),
    ("mul", D, "b must be f32 or f16 or bf16, it is i32", lambda g: t(g, 8) * t(g, 8, dtype="i32")),
    ("sub", D, "a must be f32", lambda g: t(g, 32, dtype="q8_0") - t(g, 32)),
    ("mul_mat", D, "a must be a floating-point or quantized format, it is i32", lambda g: t(g, 8, 4, dtype="i32") @ t(g, 8, 5)),
    ("add", D, "b must be f32, it is f16", lambda g: t(g, 8) + t(g, 8, dtype="f16")),
    ("im2col", D, "dst_type f32 needs b in f32", lambda g: t(g, 2, 2, 3, 4).im2col(t(g, 8, 8, 3, dtype="f16"), dst_type="f32")),
    ("repeat_4d", D, "a must be f32", lambda g: t(g, 8, dtype="i64").repeat_4d(16)),
    ("mul_mat_set_hint", S, "power of two", lambda g: (t(g, 64, 32) @ t(g, 64, 5)).mul_mat_set_hint("src0_is_hadamard")),
    ("mul_mat_set_hint", A, "must be the node of a mul_mat", lambda g: t(g, 64).mul_mat_set_hint("none")),
    ("silu", D, r"a must be f32 or f16 or bf16, it is q4_0.*cast\('f32'\)", lambda g: t(g, 32, dtype="q4_0").silu()),
    ("silu", S, "contiguous rows", lambda g: t(g, 4, 8).transpose().silu()),
    ("swiglu", S, "must be even", lambda g: t(g, 7).swiglu()),
    ("swiglu_split", S, r"a.ne\[0\] = 8 and b.ne\[0\] = 4", lambda g: t(g, 8).swiglu_split(t(g, 4))),
    ("swiglu_split", D, "b must be f16, it is f32", lambda g: t(g, 8, dtype="f16").swiglu_split(t(g, 8))),
    ("glu", A, "op = 'foo' is unknown: expected one of reglu", lambda g: t(g, 8).glu("foo")),
    ("rms_norm", A, "eps must be 0 or more", lambda g: t(g, 8).rms_norm(-1)),
    ("rms_norm", A, "eps must be a number, got nan", lambda g: t(g, 8).rms_norm(math.nan)),
    ("norm", D, "a must be f32, it is f16", lambda g: t(g, 8, dtype="f16").norm()),
    ("group_norm", S, "multiple of n_groups = 2", lambda g: t(g, 4, 4, 3).group_norm(2)),
    ("group_norm", A, "n_groups must be 1 or more", lambda g: t(g, 4, 4, 4).group_norm(0)),
    ("soft_max_ext", S, r"mask.ne\[0\] = 4", lambda g: t(g, 8, 3).soft_max_ext(t(g, 4, 3))),
    ("soft_max_ext", S, r"mask.ne\[1\] = 2 must be a.ne\[1\] = 3 or more", lambda g: t(g, 8, 3).soft_max_ext(t(g, 8, 2))),
    ("soft_max_ext", A, "max_bias needs a mask", lambda g: t(g, 8).soft_max_ext(max_bias=8)),
    ("soft_max_ext", S, r"sinks.ne\[0\] = 3", lambda g: t(g, 8, 3, 2).soft_max_ext(sinks=t(g, 3))),
    ("rope", S, r"b.ne\[0\] = 4 must be a.ne\[2\] = 5", lambda g: t(g, 8, 3, 5).rope(t(g, 4, dtype="i32"), 8)),
    ("rope", D, r"b must be i32.*b.cast\('i32'\)", lambda g: t(g, 8, 3, 5).rope(t(g, 5), 8)),
    ("rope", S, "n_dims = 10 must be even and at most", lambda g: t(g, 8, 3, 5).rope(t(g, 5, dtype="i32"), 10)),
    ("rope", S, "n_dims = 3 must be even", lambda g: t(g, 8, 3, 5).rope(t(g, 5, dtype="i32"), 3)),
    ("rope", A, "expected one of normal, neox; the others are for ops.rope_multi", lambda g: t(g, 8, 3, 5).rope(t(g, 5, dtype="i32"), 8, "mrope")),
    ("rope_ext", S, r"c.ne\[0\] = 3 must be", lambda g: t(g, 8, 3, 5).rope_ext(t(g, 5, dtype="i32"), t(g, 3), 8)),
    ("rope_multi", S, r"4 \* a.ne\[2\] = 20", lambda g: t(g, 8, 3, 5).rope_multi(t(g, 5, dtype="i32"), None, 8, [2, 1, 1, 0])),
    ("rope_multi", A, "sections must be four numbers", lambda g: t(g, 8, 3, 5).rope_multi(t(g, 20, dtype="i32"), None, 8, [4])),
    ("rope_set_offset", A, "must be the node of a rope", lambda g: t(g, 8).rope_set_offset(1)),
    ("flash_attn_ext", S, r"k.ne\[0\] = 16", lambda g: t(g, 8, 2, 4).flash_attn_ext(t(g, 16, 3, 4), t(g, 8, 3, 4))),
    ("flash_attn_ext", S, r"q.ne\[2\] = 4 must be a multiple of k.ne\[2\] = 3", lambda g: t(g, 8, 2, 4).flash_attn_ext(t(g, 8, 3, 3), t(g, 8, 3, 3))),
    ("flash_attn_ext", D, "mask must be f16", lambda g: t(g, 8, 2, 4).flash_attn_ext(t(g, 8, 3, 4), t(g, 8, 3, 4), t(g, 3, 2))),
    ("flash_attn_ext", S, r"mask.ne\[1\] = 1 must be", lambda g: t(g, 8, 2, 4).flash_attn_ext(t(g, 8, 3, 4), t(g, 8, 3, 4), t(g, 3, 1, dtype="f16"))),
    ("get_rows", D, "b must be i32", lambda g: t(g, 8, 3).get_rows(t(g, 2))),
    ("get_rows", S, r"a.ne\[2\] = 2 and b.ne\[1\] = 1", lambda g: t(g, 8, 3, 2).get_rows(t(g, 2, dtype="i32"))),
    ("set_rows", S, r"c.ne\[0\] = 3", lambda g: t(g, 8, 6).set_rows(t(g, 8, 2), t(g, 3, dtype="i64"))),
    ("set_rows", D, "c must be i64 or i32", lambda g: t(g, 8, 6).set_rows(t(g, 8, 2), t(g, 2))),
    ("reshape", S, r"a has 24 elements, ne = \[5, 5\] has 25", lambda g: t(g, 8, 3).reshape(5, 5)),
    ("reshape", S, "must be contiguous", lambda g: t(g, 8, 3).transpose().reshape(24)),
    ("reshape", A, r"ne\[1\] must be 0 or more", lambda g: t(g, 8, 3).reshape(8, -3)),
    ("reshape", A, r"ne\[0\] must be a whole number", lambda g: t(g, 8, 3).reshape(2.5, 2)),
    ("reshape", S, "1 to 4 axes", lambda g: t(g, 8).reshape(2, 2, 2, 1, 1)),
    ("reshape", S, "multiple of 32, the block of q8_0", lambda g: t(g, 64, dtype="q8_0").reshape(16, 4)),
    ("view", S, "the window needs bytes 64 to 160, a has 96", lambda g: t(g, 8, 3).view(8, 3, offset=64)),
    ("view", S, "the window needs", lambda g: t(g, 8, 3).view(2, 3, nb=[48])),
    ("view", S, "must be a multiple of 4", lambda g: t(g, 8, 3).view(2, offset=2)),
    ("view", A, "2 sizes need 1 strides, got 2", lambda g: t(g, 8, 3).view(2, 2, nb=[4, 4])),
    ("permute", A, "0, 1, 2 and 3 in some order", lambda g: t(g, 8, 3).permute(0, 1, 1, 3)),
    ("cast", S, "multiple of 32", lambda g: t(g, 8).cast("q8_0")),
    ("cpy", S, "a has 8 elements, b has 9", lambda g: t(g, 8).cpy(t(g, 9))),
    ("concat", S, r"a.ne\[1\] = 3 and b.ne\[1\] = 2", lambda g: t(g, 8, 3).concat(t(g, 8, 2), 0)),
    ("concat", A, "dim must be 0 to 3", lambda g: t(g, 8).concat(t(g, 8), 4)),
    ("concat", D, "b must be f32", lambda g: t(g, 8).concat(t(g, 8, dtype="f16"), 0)),
    ("repeat", S, r"b.ne\[0\] = 9 must be a multiple of a.ne\[0\] = 8", lambda g: t(g, 8).repeat(t(g, 9))),
    ("repeat_4d", S, r"ne0 = 9 must be a multiple", lambda g: t(g, 8).repeat_4d(9)),
    ("set", S, "the window needs", lambda g: t(g, 8, 3).set(t(g, 8, 2), offset=64)),
    ("acc", S, "the window needs", lambda g: t(g, 8, 3).acc(t(g, 8, 2), 32, 96, 96, 36)),
    ("pad", A, "padding behind axis 0 must be 0 or more", lambda g: t(g, 8).pad(-1)),
    ("pad_circular", S, "axis 0 has 8 elements, 9 are asked for", lambda g: t(g, 8).pad_circular(9)),
    ("pad_reflect_1d", S, "must be below", lambda g: t(g, 8).pad_reflect_1d(8, 0)),
    ("roll", S, "shift0 = 8 must be shorter", lambda g: t(g, 8).roll(8)),
    ("clamp", A, "must not be larger than max", lambda g: t(g, 8).clamp(1, 0)),
    ("scale", A, "s must be a number, got 'x'", lambda g: t(g, 8).scale("x")),
    ("top_k", S, "k = 9 must not be larger", lambda g: t(g, 8).top_k(9)),
    ("argsort", A, "order = 'up' is unknown: expected one of asc, desc", lambda g: t(g, 8).argsort("up")),
    ("argmax", S, r"a.ne\[2\] must be 1", lambda g: t(g, 8, 3, 2).argmax()),
    ("arange", A, "step must be positive", lambda g: ops.arange(0, 4, 0, graph=g)),
    ("tri", S, r"a.ne\[0\] = 4 and a.ne\[1\] = 3", lambda g: t(g, 4, 3).tri("lower")),
    ("diag", S, r"a.ne\[1\] must be 1", lambda g: t(g, 4, 3).diag()),
    ("solve_tri", gg.UnsupportedError, "lower=True", lambda g: t(g, 4, 4).solve_tri(t(g, 2, 4), lower=False)),
    ("diag_mask_inf", A, "n_past must be 0 or more", lambda g: t(g, 4, 4).diag_mask_inf(-1)),
    ("conv_2d", S, r"a.ne\[2\] = 3 and b.ne\[2\] = 2", lambda g: t(g, 3, 3, 3, 4).conv_2d(t(g, 8, 8, 2))),
    ("conv_2d", S, "the kernel spans 3 along axis 1, b with its padding has 2", lambda g: t(g, 3, 3, 3, 4).conv_2d(t(g, 8, 2, 3))),
    ("conv_2d", A, "s0 must be 1 or more", lambda g: t(g, 3, 3, 3, 4).conv_2d(t(g, 8, 8, 3), s0=0)),
    ("conv_3d", S, "multiple of the 3 channels", lambda g: t(g, 2, 2, 2, 4).conv_3d(t(g, 4, 4, 4, 3), 3)),
    ("conv_3d", A, "channels must be 1 or more", lambda g: t(g, 2, 2, 2, 4).conv_3d(t(g, 4, 4, 4, 3), 0)),
    ("conv_transpose_1d", A, "p0 = 0", lambda g: t(g, 3, 4, 5).conv_transpose_1d(t(g, 6, 5), 1, 1)),
    ("pool_2d", A, "s1 must be 1 or more", lambda g: t(g, 8, 8).pool_2d("max", 2, 2, 2, 0)),
    ("pool_1d", S, "k0 = 9 is more than", lambda g: t(g, 8).pool_1d("max", 9)),
    ("upscale", A, "scale_factor must be 2 or more", lambda g: t(g, 8).upscale(1)),
    ("interpolate", A, "antialias needs mode", lambda g: t(g, 8).interpolate(4, 1, antialias=True)),
    ("win_part", A, "w must be 1 or more", lambda g: t(g, 8, 4, 4).win_part(0)),
    ("win_unpart", S, r"need a of \[8, 2, 2, 4\]", lambda g: t(g, 8, 2, 2, 3).win_unpart(4, 4, 2)),
    ("ssm_conv", S, r"sx.ne\[1\] = 6 and c.ne\[1\] = 5", lambda g: t(g, 8, 6, 2).ssm_conv(t(g, 4, 5))),
    ("ssm_conv", S, "or more", lambda g: t(g, 2, 6, 2).ssm_conv(t(g, 4, 6))),
    ("rwkv_wkv7", S, "must be a multiple of 64", lambda g: ops.rwkv_wkv7(*[t(g, 8, 2, 6)] * 6, t(g, 128, 1))),
    ("rwkv_wkv6", S, "5 tokens must be a multiple of the 2 sequences", lambda g: ops.rwkv_wkv6(*[t(g, 8, 2, 5)] * 3, t(g, 8, 2), t(g, 8, 2, 5), t(g, 128, 2))),
    ("gated_delta_net", S, r"state.ne\[2\] = 3", lambda g: ops.gated_delta_net(*[t(g, 8, 2, 5)] * 3, *[t(g, 1, 2, 5)] * 2, t(g, 8, 8, 3))),
    ("prec_set_acc", A, "ggml refuses this for NEG", lambda g: t(g, 8).neg().prec_set_acc("f32")),
    ("prec_set_acc", A, "prec = 'f64' is unknown", lambda g: (t(g, 8) @ t(g, 8)).prec_set_acc("f64")),
    ("timestep_embedding", A, "dim must be 1 or more", lambda g: t(g, 8).timestep_embedding(0)),
    ("add", A, "b must be a tensor of a graph or of weights, got int", lambda g: ops.add(t(g, 8), 3)),
    ("mul_mat", A, "a must be a tensor of a graph or of weights, got NoneType", lambda g: ops.mul_mat(None, t(g, 8))),
]  # fmt: skip


@pytest.mark.parametrize("op, error, match, make", TABLE, ids=[f"{op} {i}" for i, (op, *_) in enumerate(TABLE)])
def test_what_does_not_fit_is_refused(
    g: gg.Graph, op: str, error: type[Exception], match: str, make: Callable[[gg.Graph], Any]
) -> None:
    with pytest.raises(error, match=match) as caught:
        make(g)
    assert isinstance(caught.value, gg.Error)
    assert str(caught.value).startswith(op + ": ")
    g.output("y", t(g, 4).neg())  # the graph is as good as before
    values = {
        name: np.zeros(tuple(reversed(x.ne)), x.dtype.numpy or np.float32)
        for name, x in g.inputs.items()
        if not x.dtype.is_quantized
    }
    if len(values) == len(g.inputs):
        values[list(values)[-1]] = np.arange(4, dtype=np.float32)
        np.testing.assert_array_equal(g.run(values)["y"], [0, -1, -2, -3])


def test_an_error_names_the_tensors(g: gg.Graph) -> None:
    w, x = g.input("ffn_up", (64, 256), "f16"), g.input("tokens", (32, 8))
    with pytest.raises(gg.ShapeError) as caught:
        w @ x
    assert "a = 'ffn_up' f16 [64, 256]" in str(caught.value)
    assert "b = 'tokens' f32 [32, 8]" in str(caught.value)


@pytest.mark.parametrize(
    "op, error, arguments",
    [
        ("mul_mat", gg.ShapeError, lambda g: {"a": t(g, 8, 3), "b": t(g, 4, 3)}),
        ("cumsum", gg.DTypeError, lambda g: {"a": t(g, 8, dtype="f16")}),
        ("reshape_2d", gg.ShapeError, lambda g: {"a": t(g, 8), "ne0": 3, "ne1": 3}),
        ("upscale", gg.ArgumentError, lambda g: {"a": t(g, 8), "scale_factor": 1, "mode": "nearest"}),
    ],
)
def test_what_ggml_asserts_becomes_an_error_too(
    g: gg.Graph, op: str, error: type[Exception], arguments: Callable[[gg.Graph], Any]
) -> None:
    """For whatever the checks beforehand leave to ggml: the assertion is named, the graph stays usable."""
    with pytest.raises(error, match=rf"^{op.removesuffix('_2d')}: ggml needs .*") as caught:
        _build.build(op, g, **arguments(g))
    assert isinstance(caught.value.__cause__, gg.GGMLAbort)
    assert t(g, 4).neg().op == "NEG"


def test_numbers_that_do_not_fit(g: gg.Graph) -> None:
    x = t(g, 8)
    for make in (
        lambda: x.pad(2**31),
        lambda: x.reshape(2**62, 4),
        lambda: x.diag_mask_inf(2**40),
        lambda: x.rope_set_offset(2**33),
    ):
        with pytest.raises(gg.ArgumentError):
            make()


# --- properties: shapes that the rules allow build what they promise; others raise, never anything else

SIZES = st.integers(1, 6)
_CPU = gg.cpu()
DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=150, database=None)


@DETERMINISTIC
@given(
    a=st.tuples(SIZES, SIZES, SIZES, SIZES),
    b=st.tuples(SIZES, SIZES, SIZES, SIZES),
    op=st.sampled_from(["add", "mul", "mul_mat", "repeat", "concat", "out_prod"]),
)
def test_two_tensors_fit_or_are_refused(a: tuple[int, ...], b: tuple[int, ...], op: str) -> None:
    def multiple(m: int, n: int) -> bool:
        return m % n == 0

    rules: dict[str, tuple[bool, tuple[int, ...]]] = {
        "add": (all(map(multiple, a, b)), a),
        "mul": (all(map(multiple, a, b)), a),
        "repeat": (all(map(multiple, b, a)), b),
        "concat": (a[1:] == b[1:], (a[0] + b[0], *a[1:])),
        "mul_mat": (a[0] == b[0] and all(map(multiple, b[2:], a[2:])), (a[1], *b[1:])),
        "out_prod": (a[1] == b[1] and all(map(multiple, b[2:], a[2:])), (a[0], b[0], *b[2:])),
    }
    fits, ne = rules[op]
    with gg.Graph(_CPU) as g:
        x, y = g.input("x", a), g.input("y", b)
        arguments = (x, y, 0) if op == "concat" else (x, y)
        if fits:
            assert getattr(ops, op)(*arguments).ne == ne
        else:
            with pytest.raises(gg.ShapeError, match=rf"^{op}: "):
                getattr(ops, op)(*arguments)


@DETERMINISTIC
@given(
    ne=st.tuples(SIZES, SIZES, SIZES), window=st.tuples(SIZES, SIZES, SIZES), start=st.tuples(*[st.integers(0, 5)] * 3),
    order=st.permutations(range(3)),
)  # fmt: skip
def test_views_show_what_numpy_shows_or_are_refused(
    ne: tuple[int, ...], window: tuple[int, ...], start: tuple[int, ...], order: list[int]
) -> None:
    values = np.arange(math.prod(ne), dtype=np.float32).reshape(ne[::-1])
    with gg.Graph(_CPU) as g:
        x = g.input("x", ne)
        offset = sum(s * n for s, n in zip(start, x.nb, strict=False))
        elements = offset // 4 + sum((n - 1) * b // 4 for n, b in zip(window, x.nb, strict=False)) + 1
        if elements > values.size:
            with pytest.raises(gg.ShapeError, match="the window needs"):
                x.view(*window, offset=offset)
            return
        if offset + 4 * math.prod(window) > x.nbytes:  # ggml refuses views that overlap themselves so much
            with pytest.raises(gg.ShapeError, match=r"^view: ggml needs no more bytes"):
                x.view(*window, offset=offset)
            return
        g.output("y", x.view(*window, offset=offset).permute(*order, 3).cont())
        strides = tuple(reversed(x.nb[:3]))
        want = np.lib.stride_tricks.as_strided(values.ravel()[offset // 4 :], window[::-1], strides)
        inverse = np.argsort(order)  # ggml says where an axis goes, numpy where it comes from
        want = want.transpose([2 - inverse[2 - i] for i in range(3)])
        np.testing.assert_array_equal(g.run(x=values)["y"].reshape(want.shape), want)


@DETERMINISTIC
@given(
    op=st.sampled_from(
        [
            "conv_1d",
            "conv_2d",
            "pool_1d",
            "pool_2d",
            "pad_circular",
            "roll",
            "top_k",
            "win_part",
            "group_norm",
            "repeat_4d",
        ]
    ),
    ne=st.tuples(SIZES, SIZES, SIZES),
    numbers=st.lists(st.integers(-2, 7), min_size=6, max_size=6),
)
def test_any_numbers_give_a_node_or_an_error_of_ours(op: str, ne: tuple[int, ...], numbers: list[int]) -> None:
    n = numbers
    with gg.Graph(_CPU, threads=1) as g:
        x, kernel = g.input("x", ne), g.input("k", (2, 2, ne[2], 3))
        builds: dict[str, Callable[[], gg.Tensor]] = {
            "conv_1d": lambda: ops.conv_1d(g.input("k1", (3, ne[1], 2)), x, *n[:3]),
            "conv_2d": lambda: ops.conv_2d(kernel, x, *n),
            "pool_1d": lambda: x.pool_1d("avg", *n[:3]),
            "pool_2d": lambda: x.pool_2d("max", *n),
            "pad_circular": lambda: x.pad_circular(*n[:4]),
            "roll": lambda: x.roll(*n[:4]),
            "top_k": lambda: x.top_k(n[0]),
            "win_part": lambda: x.win_part(n[0]),
            "group_norm": lambda: x.group_norm(n[0]),
            "repeat_4d": lambda: x.repeat_4d(*n[:4]),
        }
        try:
            node = builds[op]()
        except (gg.ShapeError, gg.ArgumentError) as error:
            assert re.match(rf"{op}: ", str(error))
            return
        if 0 in node.ne:
            return
        g.output("y", node)
        inputs = {name: np.ones(tuple(reversed(i.ne)), np.float32) for name, i in g.inputs.items()}
        out = g.run(inputs)["y"]
        assert out.size == math.prod(node.ne) and np.isfinite(out).all()
