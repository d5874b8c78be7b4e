"""Every operation computes what numpy computes in float64, on small shapes.

Arrays are in numpy's order, so a tensor ``[K, N]`` is an array (N, K).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from ops_reference import (
    angles,
    attention,
    away,
    conv,
    conv_dw,
    conv_t,
    gelu,
    gelu_erf,
    gelu_quick,
    hardsigmoid,
    rotate,
    sigmoid,
    silu,
    soft_max,
)

import pyggml as gg
from pyggml import ops

F32, F16 = np.float32, np.float16


def normal(*shape: int, dtype: Any = F32, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * scale).astype(dtype)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    return np.abs(normal(*shape, seed=seed)) + F32(0.1)


def ids(*shape: int, below: int, dtype: Any = np.int32) -> np.ndarray:
    return np.random.default_rng([7, below, *shape]).integers(0, below, shape).astype(dtype)


@dataclass(frozen=True)
class Case:
    op: str
    build: Callable[..., gg.Tensor]
    reference: Callable[..., Any]
    arrays: tuple[np.ndarray, ...] = field(default_factory=tuple)
    nmse: float = 1e-10
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op} {self.note}".strip()


CASES: list[Case] = []


def case(
    op: str,
    /,
    *arrays: np.ndarray,
    ref: Callable[..., Any],
    nmse: float = 1e-10,
    note: str = "",
    build: Any = None,
    **kw: Any,
) -> None:
    CASES.append(Case(op, build or (lambda *t: getattr(ops, op)(*t, **kw)), ref, arrays, nmse, note))


def compute(build: Callable[..., gg.Tensor], arrays: tuple[np.ndarray, ...], threads: int = 1) -> np.ndarray:
    with gg.Graph(gg.cpu(), threads=threads) as g:
        names = [f"in{i}" for i in range(len(arrays))]
        tensors = [g.input(n, tuple(reversed(a.shape)), a.dtype) for n, a in zip(names, arrays, strict=True)]
        g.output("out", build(*tensors))
        return g.run(dict(zip(names, arrays, strict=True)))["out"]


def error(got: np.ndarray, want: np.ndarray) -> float:
    got, want = got.astype(np.float64), want.astype(np.float64)
    infinite = ~np.isfinite(want)
    assert np.array_equal(got[infinite], want[infinite])
    got, want = got[~infinite], want[~infinite]
    return float(((got - want) ** 2).sum() / max((want**2).sum(), 1e-30))


# --- elementwise

X = normal(3, 5, 8, scale=2.0)


UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs": np.abs, "ceil": np.ceil, "cos": np.cos, "elu": lambda x: np.where(x > 0, x, np.expm1(x)), "exp": np.exp,
    "expm1": np.expm1, "floor": np.floor, "gelu": gelu, "gelu_erf": gelu_erf, "gelu_quick": gelu_quick,
    "hardsigmoid": hardsigmoid, "hardswish": lambda x: x * hardsigmoid(x), "neg": np.negative,
    "relu": lambda x: np.maximum(x, 0), "round": away, "sgn": np.sign, "sigmoid": sigmoid, "silu": silu, "sin": np.sin,
    "softplus": lambda x: np.log1p(np.exp(x)), "sqr": np.square, "step": lambda x: (x > 0).astype(x.dtype),
    "tanh": np.tanh, "trunc": np.trunc,
}  # fmt: skip
# ggml takes gelu and gelu_quick of F32 from a table with F16 entries
for _name, _ref in UNARY.items():
    case(_name, X, ref=_ref, nmse=1e-6 if _name in ("gelu", "gelu_quick") else 1e-10)
case("log", positive(4, 6), ref=np.log)
case("sqrt", positive(4, 6), ref=np.sqrt)
case("leaky_relu", X, ref=lambda x: np.where(x > 0, x, 0.2 * x), negative_slope=0.2)
case("unary", X, ref=silu, op="silu")
case("unary", X.astype(F16), ref=np.abs, op="abs", note="f16")


def _xielu(
    x: np.ndarray, alpha_n: float = 0.3, alpha_p: float = 0.7, beta: float = 0.5, eps: float = -1e-6
) -> np.ndarray:
    def softplus(v: float) -> float:
        return math.log1p(math.exp(v))

    low = (np.expm1(np.minimum(x, eps)) - x) * (beta + softplus(alpha_n)) + beta * x
    return np.where(x > 0, softplus(alpha_p) * x * x + beta * x, low)


case("xielu", X, ref=_xielu, alpha_n=0.3, alpha_p=0.7, beta=0.5, eps=-1e-6)

# --- gated

GATES = {
    "reglu": lambda x: np.maximum(x, 0),
    "geglu": gelu,
    "swiglu": silu,
    "geglu_erf": gelu_erf,
    "geglu_quick": gelu_quick,
}
for _name, _act in GATES.items():
    _nmse = 1e-6 if _name in ("geglu", "geglu_quick") else 1e-10
    case(_name, X, ref=lambda x, f=_act: f(x[..., :4]) * x[..., 4:], nmse=_nmse)
    case(_name + "_swapped", X, ref=lambda x, f=_act: f(x[..., 4:]) * x[..., :4], nmse=_nmse)
    case(_name + "_split", X, normal(3, 5, 8, seed=1), ref=lambda x, y, f=_act: f(x) * y, nmse=_nmse)
case("glu", X, ref=lambda x: silu(x[..., :4]) * x[..., 4:], op="swiglu")
case("glu", X, ref=lambda x: silu(x[..., 4:]) * x[..., :4], op="swiglu", swapped=True, note="swapped")
case("glu_split", X, normal(3, 5, 8, seed=1), ref=lambda x, y: np.maximum(x, 0) * y, op="reglu")


def _oai(a: np.ndarray, b: np.ndarray, alpha: float = 1.702, limit: float = 1.5) -> np.ndarray:
    x = np.minimum(a, limit)
    return x * sigmoid(alpha * x) * (np.clip(b, -limit, limit) + 1)


case("swiglu_oai", X, normal(3, 5, 8, seed=1, scale=2), ref=_oai, limit=1.5)
case("swiglu_clamp", X, normal(3, 5, 8, seed=1, scale=2), limit=1.5,
     ref=lambda a, b: silu(np.minimum(a, 1.5)) * np.clip(b, -1.5, 1.5))  # fmt: skip

# --- arithmetic

for _name, _ref in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}.items():
    case(_name, X, positive(3, 5, 8, seed=1), ref=_ref)
    case(_name, X, positive(1, 1, 8, seed=1), ref=_ref, note="a row for all")
    case(_name, X, positive(3, 1, 1, seed=1), ref=_ref, note="a column for all")
    case(_name, X, positive(5, 4, seed=1), ref=lambda a, b, f=_ref: f(a, np.tile(b, (1, 2))), note="tiled")
case("add_cast", X.astype(F16), normal(5, 8), ref=np.add, type="f32")
case("add_id", normal(4, 2, 8), normal(3, 8), ids(4, 2, below=3), ref=lambda a, b, i: a + b[i])
case("scale", X, ref=lambda x: 0.3 * x, s=0.3)
case("scale_bias", X, ref=lambda x: 0.3 * x - 2, s=0.3, b=-2)
case("clamp", X, ref=lambda x: np.clip(x, -1, 0.5), min=-1, max=0.5)
case("fill", X, ref=lambda x: np.full(x.shape, 0.75), c=0.75)
case("arange", ref=lambda: np.arange(1, 9, 1.5), build=lambda: ops.arange(1, 9, 1.5))
case("sum", X, ref=lambda x: x.sum(keepdims=True).reshape(1))
case("sum_rows", X, ref=lambda x: x.sum(-1, keepdims=True))
case("mean", X, ref=lambda x: x.mean(-1, keepdims=True))
case("cumsum", X, ref=lambda x: x.cumsum(-1))
case("argmax", X[0], ref=lambda x: x.argmax(-1))
case("argsort", X, ref=lambda x: x.argsort(-1))
case("argsort", X, ref=lambda x: (-x).argsort(-1), order="desc", note="descending")
case(
    "argsort_top_k", X, ref=lambda x: (-x).argsort(-1)[..., :3], k=3, build=lambda x: ops.cont(ops.argsort_top_k(x, 3))
)
case("top_k", X, ref=lambda x: np.sort((-x).argsort(-1)[..., :1]), k=1)
case("count_equal", ids(4, 5, below=2), ids(4, 5, below=3), ref=lambda a, b: np.array([(a == b).sum()]))
case("cross_entropy_loss", X, np.abs(normal(3, 5, 8, seed=2)),
     ref=lambda a, b: np.array([-(b * (a - np.log(np.exp(a).sum(-1, keepdims=True)))).sum() / 15]))  # fmt: skip


def _norm(x: np.ndarray, eps: float = 1e-5, axis: Any = -1) -> np.ndarray:
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)


case("norm", X, ref=_norm)
case("rms_norm", X, ref=lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 0.01), eps=0.01)
case("l2_norm", X, ref=lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True)), eps=1e-6)
case("group_norm", normal(2, 6, 3, 4), n_groups=2,
     ref=lambda x: _norm(x.reshape(2, 2, -1)).reshape(x.shape))  # fmt: skip

# --- matrices

case("mul_mat", normal(7, 16), normal(5, 16, seed=1), ref=lambda a, b: b @ a.T)
case("mul_mat", normal(7, 16), normal(5, 16, seed=1), ref=lambda a, b: b @ a.T, prec="f32", note="with prec")
case("mul_mat", normal(1, 2, 7, 16), normal(3, 4, 5, 16, seed=1), note="repeated",
     ref=lambda a, b: b @ np.repeat(np.repeat(a, 3, 0), 2, 1).swapaxes(-1, -2))  # fmt: skip
case("mul_mat", normal(7, 16, dtype=F16), normal(5, 16, seed=1), ref=lambda a, b: b @ a.T, nmse=1e-6, note="f16")
case(
    "mul_mat_id",
    normal(4, 6, 16),
    normal(5, 2, 16, seed=1),
    ids(5, 2, below=4),
    ref=lambda w, b, i: np.einsum("tumk,tuk->tum", w[i], b),
)
case("mul_mat_id", normal(4, 6, 16), normal(5, 1, 16, seed=1), ids(5, 2, below=4), note="one row for all experts",
     ref=lambda w, b, i: np.einsum("tumk,tk->tum", w[i], b[:, 0]))  # fmt: skip
case(
    "prec_set_acc",
    normal(7, 16),
    normal(5, 16, seed=1),
    ref=lambda a, b: b @ a.T,
    build=lambda a, b: (a @ b).prec_set_acc("f32"),
)
case(
    "prec_set_src",
    normal(7, 16),
    normal(5, 16, seed=1),
    ref=lambda a, b: b @ a.T,
    build=lambda a, b: (a @ b).prec_set_src("f32"),
)


def _hadamard(n: int) -> np.ndarray:
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return (h / math.sqrt(n)).astype(F32)


case("mul_mat_set_hint", _hadamard(64), normal(5, 64, seed=1), ref=lambda a, b: b @ a.T,
     build=lambda a, b: (a @ b).mul_mat_set_hint("src0_is_hadamard"))  # fmt: skip
case("out_prod", normal(3, 4), normal(3, 5, seed=1), ref=lambda a, b: b.T @ a)
case(
    "solve_tri",
    np.tril(normal(6, 6)) + 3 * np.eye(6, dtype=F32),
    normal(6, 2, seed=1),
    ref=lambda a, b: np.linalg.solve(a, b),
)
case("tri", X[:, :5, :5].copy(), ref=np.tril, type="lower_diag")
case("tri", X[:, :5, :5].copy(), ref=lambda x: np.triu(x, 1), type="upper", note="upper")
case("diag", normal(3, 1, 4), ref=lambda x: np.stack([np.diag(r[0]) for r in x]))

# --- layout

case("reshape", X, ref=lambda x: x.reshape(6, 20), build=lambda x: ops.reshape(x, 20, 6))
case("reshape", X, ref=lambda x: x.reshape(6, 20), build=lambda x: x.reshape((20, 6)), note="as one argument")
case("reshape", X, normal(6, 20), ref=lambda x, y: x.reshape(y.shape), note="as a tensor")
case("view", X[0], ref=lambda x: x[2:4, 1:7], build=lambda x: ops.view(x, 6, 2, offset=2 * x.nb[1] + 4).cont())
case(
    "view",
    X[0],
    ref=lambda x: x[::2, :4],
    build=lambda x: ops.view(x, 4, 3, nb=[2 * x.nb[1]]).cont(),
    note="with strides",
)
case("permute", X, ref=lambda x: x.transpose(1, 2, 0), build=lambda x: ops.permute(x, 1, 2, 0, 3).cont())
case("transpose", X, ref=lambda x: x.swapaxes(-1, -2), build=lambda x: ops.transpose(x).cont())
case("dup", X, ref=lambda x: x)
case("cont", X, ref=lambda x: x.swapaxes(-1, -2).reshape(4, 30), build=lambda x: x.transpose().cont(30, 4))
case("cpy", X, np.zeros((3, 5, 8), F16), ref=lambda x, y: x.astype(F16))
case("cast", X, ref=lambda x: x.astype(F16), type="f16")
case(
    "cast",
    normal(2, 64),
    ref=lambda x: gg.dequantize(gg.quantize(x.astype(F32), "q8_0")),
    type="q8_0",
    nmse=1e-7,
    note="quantized",
)
case("concat", X, normal(3, 2, 8), ref=lambda a, b: np.concatenate([a, b], 1), dim=1)
case("repeat", normal(1, 5, 4), X, ref=lambda a, b: np.tile(a, (3, 1, 2)))
case("repeat_4d", normal(5, 4), ref=lambda a: np.tile(a, (3, 2, 2)), ne0=8, ne1=10, ne2=3)
case("get_rows", normal(6, 8), ids(4, below=6), ref=lambda a, i: a[i])
case(
    "get_rows",
    normal(3, 6, 8),
    ids(3, 4, below=6),
    ref=lambda a, i: np.stack([a[j][i[j]] for j in range(3)]),
    note="batched",
)


def _set_rows(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    a = a.copy()
    a[c] = b
    return a


case("set_rows", normal(6, 8), normal(2, 8, seed=1), np.array([4, 1]), ref=_set_rows)
case("pad", X, ref=lambda x: np.pad(x, ((0, 0), (0, 1), (0, 2))), p0=2, p1=1)
case("pad_ext", X, ref=lambda x: np.pad(x, ((0, 0), (3, 1), (1, 2))), lp0=1, rp0=2, lp1=3, rp1=1)
case("pad_circular", X, ref=lambda x: np.pad(x, ((0, 0), (0, 5), (0, 2)), "wrap"), p0=2, p1=5)
case("pad_ext_circular", X, ref=lambda x: np.pad(x, ((0, 0), (5, 0), (3, 2)), "wrap"), lp0=3, rp0=2, lp1=5, rp1=0)
case("pad_reflect_1d", X, ref=lambda x: np.pad(x, ((0, 0), (0, 0), (2, 3)), "reflect"), p0=2, p1=3)
case("roll", X, ref=lambda x: np.roll(x, (3, -2), (2, 1)), shift0=3, shift1=-2)


def _window(a: np.ndarray, b: np.ndarray, add: bool) -> np.ndarray:
    a = a.copy()
    a[1:3, 2:6] = b + (a[1:3, 2:6] if add else 0)
    return a


case("set", X[0], normal(2, 4), ref=lambda a, b: _window(a, b, False), offset=8 * 4 + 2 * 4)
case("acc", X[0], normal(2, 4), ref=lambda a, b: _window(a, b, True), nb1=32, nb2=160, nb3=160, offset=8 * 4 + 2 * 4)

# --- attention


MASK = np.triu(np.full((5, 8), -np.inf, F32), 4)
case("soft_max", X, ref=soft_max)
case("soft_max_ext", X, MASK, ref=lambda x, m: soft_max(0.5 * x + m), scale=0.5)
case("soft_max_ext", X, MASK, normal(3), ref=lambda x, m, s: soft_max(0.5 * x + m, s[:, None, None]), note="with sinks",
     build=lambda x, m, s: ops.soft_max_ext(x, m, 0.5, sinks=s))  # fmt: skip
case("soft_max_ext", normal(4, 5, 8), normal(5, 8, dtype=F16), note="ALiBi",
     ref=lambda x, m: soft_max(x + m * (2.0 ** -(8 / 4 * np.arange(1, 5)))[:, None, None]), max_bias=8.0)  # fmt: skip
case("diag_mask_inf", X, ref=lambda x: np.where(np.arange(8) > np.arange(5)[:, None] + 2, -np.inf, x), n_past=2)
case("diag_mask_zero", X, ref=lambda x: np.where(np.arange(8) > np.arange(5)[:, None] + 2, 0, x), n_past=2)


Q = normal(2, 5, 3, 8)
POS = np.array([0, 1, 2, 7, 30], np.int32)
case("rope", Q, POS, ref=lambda x, p: rotate(x, angles(p, 8), False), n_dims=8)
case("rope", Q, POS, ref=lambda x, p: rotate(x, angles(p, 6), True), n_dims=6, mode="neox", note="neox")
case("rope_ext", Q, POS, positive(4), ref=lambda x, p, c: rotate(x, angles(p, 8, 500.0) * 0.5 / c, True),
     n_dims=8, mode="neox", freq_base=500.0, freq_scale=0.5)  # fmt: skip
case(
    "rope_ext",
    Q,
    POS,
    ref=lambda x, p: rotate(x, angles(p, 8), False),
    build=lambda x, p: ops.rope_ext(x, p, None, 8),
    note="no factors",
)
case(
    "rope_set_offset",
    Q,
    POS,
    ref=lambda x, p: rotate(x, angles(p, 4), False, 2),
    build=lambda x, p: x.rope(p, 4).rope_set_offset(2),
)
case("rope_multi", Q, ids(20, below=30), build=lambda x, p: ops.rope_multi(x, p, None, 8, [2, 1, 1, 0]),
     ref=lambda x, p: rotate(x, p.reshape(4, 5).T[:, [0, 0, 1, 2]] * 10000.0 ** (-np.arange(4) / 4), True))  # fmt: skip
case("timestep_embedding", np.array([0, 3, 50], F32), dim=6, max_period=100,
     ref=lambda t: np.concatenate([f(t[:, None] * 100.0 ** (-np.arange(3) / 3)) for f in (np.cos, np.sin)], -1))  # fmt: skip


ATT = (normal(2, 4, 5, 32), normal(2, 2, 7, 32, seed=1), normal(2, 2, 7, 16, seed=2))
MASK16 = np.triu(np.full((5, 7), -np.inf, F16), 3)
case("flash_attn_ext", *ATT, ref=attention, nmse=5e-6)
case(
    "flash_attn_ext",
    *ATT,
    MASK16,
    ref=lambda q, k, v, m: attention(q, k, v, m, scale=0.3),
    scale=0.3,
    nmse=5e-6,
    note="with a mask",
)
case("flash_attn_ext", *ATT, MASK16, normal(4), nmse=5e-6, note="with sinks", ref=lambda q, k, v, m, s: attention(q, k, v, m, s),
     build=lambda q, k, v, m, s: ops.flash_attn_ext(q, k, v, m, sinks=s, prec="f32"))  # fmt: skip
case(
    "flash_attn_ext", *ATT, ref=lambda q, k, v: attention(q, k, v, cap=0.5), logit_softcap=0.5, nmse=5e-6, note="capped"
)
case("lightning_indexer", normal(1, 4, 3, 32), normal(1, 6, 1, 32), normal(1, 1, 4, 3), normal(1, 1, 4, 6, dtype=F16), nmse=1e-6,
     ref=lambda q, k, w, m: (np.einsum("th,thn->tn", w[0, 0], np.maximum(np.einsum("thd,nd->thn", q[0], k[0, :, 0]), 0)) + m[0, 0])[None, None])  # fmt: skip


def _hc_comb(mixes: np.ndarray, scale: np.ndarray, base: np.ndarray, eps: float = 1e-3, n_iter: int = 3) -> np.ndarray:
    m = soft_max((mixes[:, 8:] * scale[2] + base[8:]).reshape(-1, 4, 4)) + eps  # token, source, destination
    for i in range(n_iter):
        if i:
            m = m / (m.sum(2, keepdims=True) + eps)
        m = m / (m.sum(1, keepdims=True) + eps)
    return m


case("dsv4_hc_comb", normal(5, 24), normal(3), normal(24), ref=_hc_comb, eps=1e-3, n_iter=3)
HC = normal(5, 4, 8)
case("dsv4_hc_pre", HC, normal(5, 4), ref=lambda x, w: np.einsum("tcn,tc->tn", x, w))
case("dsv4_hc_pre_gated", HC, normal(5, 4, 8, seed=1), ref=lambda x, g: 0.5 * (x * sigmoid(g)).sum(1), scale=0.5)
case("dsv4_hc_post", normal(5, 8), HC, normal(5, 4), normal(5, 4, 4),
     ref=lambda x, r, p, c: x[:, None] * p[..., None] + np.einsum("tsn,tsd->tdn", r, c))  # fmt: skip
case(
    "dsv4_hc_post", normal(5, 8), HC, normal(5, 4), ref=lambda x, r, p: x[:, None] * p[..., None] + r, note="no mixing"
)

# --- recurrences

case(
    "ssm_conv",
    normal(2, 6, 8),
    normal(6, 4, seed=1),
    ref=lambda x, c: np.stack([(x[..., t : t + 4] * c).sum(-1) for t in range(5)], 1),
)


def _ssm_scan(
    s: np.ndarray, x: np.ndarray, dt: np.ndarray, A: np.ndarray, B: np.ndarray, C: np.ndarray, i: np.ndarray
) -> np.ndarray:
    s, times = s[i].copy(), x.shape[2] // B.shape[2]
    y = np.zeros(x.shape)
    for t in range(x.shape[1]):
        d = np.log1p(np.exp(dt[:, t]))  # S, H
        b, c = np.repeat(B[:, t], times, 1), np.repeat(C[:, t], times, 1)  # S, H, N
        s = s * np.exp(d[..., None] * A)[:, :, None] + (x[:, t] * d[..., None])[..., None] * b[:, :, None]
        y[:, t] = (s * c[:, :, None]).sum(-1)
    return np.concatenate([y.ravel(), s.ravel()])


SSM = (normal(3, 4, 2, 16), normal(2, 5, 4, 2), normal(2, 5, 4))
SSM_BC = (normal(2, 5, 2, 16, seed=1), normal(2, 5, 2, 16, seed=2), np.array([2, 0], np.int32))
case("ssm_scan", *SSM, -positive(4, 1), *SSM_BC, ref=_ssm_scan)
case("ssm_scan", *SSM, -positive(4, 16), *SSM_BC, ref=_ssm_scan, note="Mamba-1")


def _recurrence(step: Callable[..., tuple[np.ndarray, np.ndarray]], state: np.ndarray, *rows: np.ndarray) -> np.ndarray:
    """rows (T, H, S), state (n_seqs, H * S * S); step(state, *rows of a token) gives output and state."""
    tokens, heads, size = rows[0].shape
    out, states = np.zeros((tokens, heads, size)), state.reshape(-1, heads, size, size).copy()
    each = tokens // len(states)
    for t in range(tokens):
        out[t], states[t // each] = step(states[t // each], *(r[t] for r in rows))
    return np.concatenate([out.reshape(tokens, -1), states.reshape(-1, heads * size)])


CUBES = [normal(6, 2, 8, seed=i, scale=0.5) for i in range(6)]
STATE = normal(2, 2 * 8 * 8, scale=0.5)


def _wkv6(k: Any, v: Any, r: Any, tf: Any, td: Any, state: Any) -> np.ndarray:
    def step(s: Any, k: Any, v: Any, r: Any, td: Any) -> Any:
        kv = k[..., None] * v[:, None]
        return ((kv * tf[..., None] + s) * r[..., None]).sum(1), s * td[..., None] + kv

    return _recurrence(step, state, k, v, r, td)


def _wkv7(r: Any, w: Any, k: Any, v: Any, a: Any, b: Any, state: Any) -> np.ndarray:
    def step(s: Any, r: Any, w: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        s = s * w[:, None] + v[..., None] * k[:, None] + (s * a[:, None]).sum(-1, keepdims=True) * b[:, None]
        return (s * r[:, None]).sum(-1), s

    return _recurrence(step, state, r, w, k, v, a, b)


def _gla(k: Any, v: Any, q: Any, g: Any, state: Any) -> np.ndarray:
    def step(s: Any, k: Any, v: Any, q: Any, g: Any) -> Any:
        s = s * g[..., None] + k[..., None] * v[:, None]
        return 0.7 * (s * q[..., None]).sum(1), s

    return _recurrence(step, state, k, v, q, g)


case("rwkv_wkv6", *CUBES[:3], normal(2, 8), CUBES[3], STATE, ref=_wkv6)
case(
    "rwkv_wkv7", *[normal(6, 2, 64, seed=i, scale=0.2) for i in range(6)], normal(2, 2 * 64 * 64, scale=0.2), ref=_wkv7
)
case("gated_linear_attn", *CUBES[:4], STATE, ref=_gla, scale=0.7)


def _delta_net(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any) -> np.ndarray:
    """q, k (S, T, G, D); v (S, T, H, D); state (S, H, D, D)."""
    _, tokens, heads, size = v.shape
    of = np.arange(heads) % q.shape[2]
    out, s = np.zeros(v.shape), state.copy()
    for t in range(tokens):
        s = s * np.exp(g[:, t])[:, :, None]
        delta = (v[:, t] - (s * k[:, t, of][:, :, None]).sum(-1)) * beta[:, t]
        s = s + delta[..., None] * k[:, t, of][:, :, None]
        out[:, t] = (s * q[:, t, of][:, :, None]).sum(-1) / math.sqrt(size)
    return np.concatenate([out.reshape(-1, heads * size), s.reshape(-1, heads * size)])


GDN = (normal(2, 5, 2, 8), normal(2, 5, 2, 8, seed=1, scale=0.3), normal(2, 5, 4, 8, seed=2))
BETA = (sigmoid(normal(2, 5, 4, 1, seed=4)), normal(2, 4, 8, 8, seed=5))
case("gated_delta_net", *GDN, -positive(2, 5, 4, 1), *BETA, ref=_delta_net)
case("gated_delta_net", *GDN, -positive(2, 5, 4, 8), *BETA, ref=_delta_net, note="a gate for each element")

# --- convolutions: sums over all kernel positions of the shifted input


IMAGE, KERNEL = normal(2, 3, 9, 11), normal(4, 3, 3, 3, seed=1)
SIGNAL, KERNEL1 = normal(2, 3, 12), normal(4, 3, 5, seed=1)
VOLUME, KERNEL3 = normal(2 * 3, 5, 6, 7), normal(4 * 3, 2, 3, 3, seed=1)
ROUNDED = 1e-6  # ggml rounds the patches to F16


def _patches(b: np.ndarray) -> np.ndarray:
    return np.stack(
        [np.stack([b[:, :, y : y + 3, x : x + 3].reshape(2, -1) for x in range(9)], 1) for y in range(7)], 1
    )


case("im2col", KERNEL, IMAGE, ref=lambda a, b: _patches(b), dst_type="f32")
case(
    "im2col",
    KERNEL1,
    SIGNAL,
    ref=lambda a, b: np.stack([b[:, :, x : x + 5].reshape(2, -1) for x in range(8)], 1),
    is_2D=False,
    dst_type="f32",
    note="1d",
)
case("conv_1d", KERNEL1, SIGNAL, ref=lambda a, b: conv(b, a, 2, 1, 2), s0=2, p0=1, d0=2, nmse=ROUNDED)
case("conv_1d_ph", KERNEL1, SIGNAL, ref=lambda a, b: conv(b, a, 1, 2), nmse=ROUNDED)
case("conv_1d_dw", normal(3, 1, 5), normal(3, 12), ref=lambda a, b: conv_dw(b[None], a, p=1), p0=1, nmse=ROUNDED)
case("conv_1d_dw_ph", normal(3, 1, 5), normal(3, 12), ref=lambda a, b: conv_dw(b[None], a, p=2), nmse=ROUNDED)
case("conv_transpose_1d", normal(3, 4, 5), normal(3, 6), ref=lambda a, b: conv_t(b[None], a, 2), s0=2)
case("col2im_1d", normal(6, 4 * 5), s0=2, oc=4, p0=1,
     ref=lambda a: conv_t(a.T.reshape(1, 20, 6), np.einsum("ok,pq->okpq", np.eye(4), np.eye(5)).transpose(0, 2, 1, 3).reshape(20, 4, 5), 2)[0, :, 1:-1])  # fmt: skip
case("conv_2d", KERNEL, IMAGE, ref=lambda a, b: conv(b, a, 2, 1, 2), s0=2, s1=2, p0=1, p1=1, d0=2, d1=2, nmse=ROUNDED)
case("conv_2d", KERNEL.astype(F16), IMAGE, ref=lambda a, b: conv(b, a), nmse=ROUNDED, note="f16")
case("conv_2d_direct", KERNEL, IMAGE, ref=lambda a, b: conv(b, a, 2, 1, 2), s0=2, s1=2, p0=1, p1=1, d0=2, d1=2)
case("conv_2d_dw", normal(3, 1, 3, 3, dtype=F16), IMAGE, ref=lambda a, b: conv_dw(b, a, p=1), p0=1, p1=1, nmse=ROUNDED)
case("conv_2d_dw_direct", normal(3, 1, 3, 3), IMAGE, ref=lambda a, b: conv_dw(b, a, p=1), p0=1, p1=1)
case("conv_2d_sk_p0", KERNEL, IMAGE, ref=lambda a, b: conv(b, a, 3), nmse=ROUNDED)
case("conv_2d_s1_ph", KERNEL, IMAGE, ref=lambda a, b: conv(b, a, 1, 1), nmse=ROUNDED)
case(
    "conv_transpose_2d_p0",
    normal(3, 4, 3, 2).astype(F16),
    IMAGE,
    ref=lambda a, b: conv_t(b, a, 2),
    stride=2,
    nmse=ROUNDED,
)


def _conv_3d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return conv(b.reshape(2, 3, 5, 6, 7), a.reshape(4, 3, 2, 3, 3)).reshape(8, 4, 4, 5)


def _patches_3d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    b = b.reshape(2, 3, 5, 6, 7)
    at = [
        [[b[:, :, z : z + 2, y : y + 3, x : x + 3].reshape(2, -1) for x in range(5)] for y in range(4)]
        for z in range(4)
    ]
    return np.array(at).transpose(3, 0, 1, 2, 4).reshape(8, 4, 5, -1)


case("im2col_3d", KERNEL3, VOLUME, ref=_patches_3d, IC=3, dst_type="f32")
case("conv_3d", KERNEL3, VOLUME, ref=_conv_3d, IC=3, nmse=ROUNDED)
case(
    "conv_3d_direct",
    KERNEL3,
    VOLUME,
    ref=_conv_3d,
    s0=1,
    s1=1,
    s2=1,
    p0=0,
    p1=0,
    p2=0,
    d0=1,
    d1=1,
    d2=1,
    n_channels=3,
    n_batch=2,
    n_channels_out=4,
)
case("pool_1d", SIGNAL, ref=lambda x: x.reshape(2, 3, 4, 3).max(-1), op="max", k0=3)
case("pool_1d", SIGNAL, ref=lambda x: x.reshape(2, 3, 4, 3).mean(-1), op="avg", k0=3, note="mean")
case(
    "pool_2d", IMAGE[:, :, :8, :9].copy(), ref=lambda x: x.reshape(2, 3, 4, 2, 3, 3).mean((3, 5)), op="avg", k0=3, k1=2
)
case(
    "pool_2d",
    IMAGE[:, :, :8, :9].copy(),
    ref=lambda x: x.reshape(2, 3, 4, 2, 3, 3).max((3, 5)),
    op="max",
    k0=3,
    k1=2,
    note="max",
)
case("upscale", IMAGE, ref=lambda x: x.repeat(2, -1).repeat(2, -2), scale_factor=2)
case("interpolate", normal(1, 1, 3, 5), ref=lambda x: np.stack([np.interp(np.arange(9) / 2, np.arange(5), r) for r in x[0, 0]])[None, None],
     ne0=9, ne1=3, mode="bilinear", align_corners=True)  # fmt: skip
case("interpolate", IMAGE, ref=lambda x: x[:, :, ::3, :], ne0=11, ne1=3, note="nearest")


def _windows(x: np.ndarray) -> np.ndarray:
    """x (5, 6, C), windows of 4."""
    x = np.pad(x, ((0, 3), (0, 2), (0, 0)))
    return x.reshape(2, 4, 2, 4, -1).swapaxes(1, 2).reshape(4, 4, 4, -1)


case("win_part", normal(5, 6, 8), ref=_windows, w=4)
case(
    "win_unpart",
    _windows(normal(5, 6, 8)),
    ref=lambda x: x.reshape(2, 2, 4, 4, 8).swapaxes(1, 2).reshape(8, 8, 8)[:5, :6],
    w0=6,
    h0=5,
    w=4,
)
case("get_rel_pos", normal(7, 8, dtype=F16), ref=lambda a: a[np.arange(4)[:, None] - np.arange(4) + 3], qh=4, kh=4)
case("add_rel_pos", normal(2, 6, 16), normal(2, 3, 2, 4, seed=1), normal(2, 3, 2, 4, seed=2),
     ref=lambda a, w, h: a + (h.reshape(2, 6, 4)[..., None] + w.reshape(2, 6, 4)[..., None, :]).reshape(2, 6, 16))  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value(case: Case) -> None:
    want = np.asarray(case.reference(*(a.astype(np.float64) if a.dtype.kind == "f" else a for a in case.arrays)))
    got = compute(case.build, case.arrays, threads=2)
    assert got.size == want.size
    assert tuple(n for n in got.shape if n != 1) == tuple(n for n in want.shape if n != 1)
    assert error(got.reshape(want.shape), want) <= case.nmse


def test_every_operation_has_a_case() -> None:
    known = {name for name in ops.__all__ if callable(getattr(ops, name)) and name[0].islower()} - {"graph_of"}
    assert known == {c.op for c in CASES}


INPLACE = [
    ("silu", silu), ("neg", np.negative), ("sqr", np.square), ("relu", lambda x: np.maximum(x, 0)), ("soft_max", soft_max), ("norm", _norm),
]  # fmt: skip


@pytest.mark.parametrize("op, reference", INPLACE, ids=[op for op, _ in INPLACE])
def test_in_place_writes_into_its_source(op: str, reference: Callable[..., np.ndarray]) -> None:
    with gg.Graph(gg.cpu()) as g:
        copy = g.input("x", (8, 5, 3)).dup()
        result = getattr(ops, op)(copy, inplace=True)
        assert result.ptr.view_src == copy.ptr
        g.output("y", result)
        assert error(g.run(x=X)["y"], reference(X.astype(np.float64))) <= 1e-10
