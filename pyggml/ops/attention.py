"""Soft max, masks, rotary positions, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..errors import ArgumentError
from ..tensor import Tensor
from ._build import build, call, check_numbers, check_sizes, enum_value, expect, opt, require
from .matrix import Precision, prec_set_acc

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = [
    "diag_mask_inf", "diag_mask_zero", "dsv4_hc_comb", "dsv4_hc_post", "dsv4_hc_pre", "dsv4_hc_pre_gated", "flash_attn_ext",
    "lightning_indexer", "rope", "rope_ext", "rope_multi", "rope_set_offset", "soft_max", "soft_max_ext", "timestep_embedding",
]  # fmt: skip


# --- soft max


def soft_max(a: Tensor, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``exp(x)`` divided by its sum along axis 0. ``a``: f32, contiguous, any shape, which the result has too."""
    require("soft_max", a=(a, "f32 contiguous [...]"))
    return build("soft_max", graph, inplace=inplace, a=a)


def soft_max_ext(
    a: Tensor, mask: Tensor | None = None, scale: float = 1.0, max_bias: float = 0.0,
    *, sinks: Tensor | None = None, inplace: bool = False, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """``soft_max(a * scale + mask * slope)``, where slope is 1, or ALiBi's slope of the head (axis 2) if ``max_bias > 0``.

    Args:
        a: f32 ``[N, T, H, S]``, contiguous.
        mask: f16 or f32 ``[N, T or more, H/, S/]``, contiguous, repeated over the heads.
        max_bias: ALiBi's; 0 turns it off.
        sinks: f32 ``[H]``: for each head one more logit that takes part in the sum only.

    Returns:
        ``a``'s shape, f32.

    Raises:
        ShapeError: mask or sinks do not fit.
        ArgumentError: ``max_bias > 0`` without a mask.
    """
    require(
        "soft_max_ext",
        a=(a, "f32 contiguous [N, _, H, S]"),
        mask=opt(mask, "f16|f32 contiguous [N, _, H/, S/]"),
        sinks=opt(sinks, "f32 contiguous [H]"),
    )
    if mask is not None:
        expect(
            mask.ne[1] >= a.ne[1],
            "soft_max_ext",
            f"mask.ne[1] = {mask.ne[1]} must be a.ne[1] = {a.ne[1]} or more",
            {"a": a, "mask": mask},
        )
    (max_bias,) = check_numbers("soft_max_ext", max_bias=max_bias)
    expect(max_bias <= 0 or mask is not None, "soft_max_ext", "max_bias needs a mask", {"a": a}, error=ArgumentError)
    result = build("soft_max_ext", graph, inplace=inplace, a=a, mask=mask, scale=scale, max_bias=max_bias)
    if sinks is not None:
        call("soft_max_ext", "ggml_soft_max_add_sinks", result, sinks=sinks)
    return result


def _diag_mask(op: str, a: Tensor, n_past: int, graph: Graph | None, inplace: bool) -> Tensor:
    require(op, a=(a, "f32 contiguous [...]"))
    check_sizes(op, {"a": a}, n_past=n_past)
    return build(op, graph, inplace=inplace, a=a, n_past=n_past)


def diag_mask_inf(a: Tensor, n_past: int = 0, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """``a`` with minus infinity where the index along axis 0 is above ``n_past`` plus that along axis 1 (a causal mask).

    ``a``: f32, contiguous, any shape, which the result has too.
    """
    return _diag_mask("diag_mask_inf", a, n_past, graph, inplace)


def diag_mask_zero(a: Tensor, n_past: int = 0, *, inplace: bool = False, graph: Graph | None = None) -> Tensor:
    """As `diag_mask_inf`, with zeros."""
    return _diag_mask("diag_mask_zero", a, n_past, graph, inplace)


# --- positions

RopeMode = Literal["normal", "neox"]
MultiRopeMode = Literal["mrope", "imrope", "vision"]


def _check_rope(op: str, a: Tensor, b: Tensor, c: Tensor | None, n_dims: int, positions: int) -> None:
    tensors = {"a": a, "b": b} | ({} if c is None else {"c": c})
    require(op, a=(a, "f32|f16 rows [...]"), b=(b, "i32 contiguous [_]"), c=opt(c, "f32 contiguous [_]"))
    expect(b.ne[0] == positions * a.ne[2], op,
           f"b.ne[0] = {b.ne[0]} must be {'' if positions == 1 else f'{positions} * '}a.ne[2] = {positions * a.ne[2]}", tensors)  # fmt: skip
    check_sizes(op, tensors, n_dims=n_dims)
    expect(
        0 < n_dims <= a.ne[0] and n_dims % 2 == 0,
        op,
        f"n_dims = {n_dims} must be even and at most a.ne[0] = {a.ne[0]}",
        tensors,
    )
    if c is not None:
        expect(c.ne[0] >= n_dims // 2, op, f"c.ne[0] = {c.ne[0]} must be n_dims / 2 = {n_dims // 2} or more", tensors)


def _rope_mode(op: str, mode: str | int, allowed: Sequence[str]) -> int:
    value = enum_value(op, "mode", mode, "rope")
    names = {enum_value(op, "mode", name, "rope"): name for name in allowed}
    other = "rope_multi" if "normal" in allowed else "rope_ext"
    expect(
        value in names,
        op,
        f"mode = {mode!r}: expected one of {', '.join(allowed)}; the others are for ops.{other}",
        error=ArgumentError,
    )
    return value


def rope(
    a: Tensor, b: Tensor, n_dims: int, mode: RopeMode = "normal", *, inplace: bool = False, graph: Graph | None = None
) -> Tensor:
    """Rotary position embedding of the first ``n_dims`` elements of each row, frequency base 10,000.

    Args:
        a: f32 or f16 ``[D, H, T, B]`` (head dimension, heads, tokens).
        b: i32 ``[T]``, the positions.
        n_dims: even, at most D.
        mode: ``"normal"`` rotates neighbours (0 and 1, 2 and 3, ...), ``"neox"`` an element and that half of n_dims behind.

    Returns:
        ``a``'s shape and format.
    """
    _check_rope("rope", a, b, None, n_dims, 1)
    return build(
        "rope", graph, inplace=inplace, a=a, b=b, n_dims=n_dims, mode=_rope_mode("rope", mode, ("normal", "neox"))
    )


def rope_ext(
    a: Tensor, b: Tensor, c: Tensor | None, n_dims: int, mode: RopeMode = "normal", n_ctx_orig: int = 0,
    freq_base: float = 10000.0, freq_scale: float = 1.0, ext_factor: float = 0.0, attn_factor: float = 1.0,
    beta_fast: float = 0.0, beta_slow: float = 0.0, *, inplace: bool = False, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """As `rope`, with all settings; pair i at position p turns by ``p * freq_base ** (-2 i / n_dims) * freq_scale / c[i]``.

    Args:
        c: f32 ``[n_dims / 2 or more]``, frequency factors, or None.
        n_ctx_orig, ext_factor, attn_factor, beta_fast, beta_slow: YaRN's; off unless given.
    """
    _check_rope("rope_ext", a, b, c, n_dims, 1)
    return build(
        "rope_ext", graph, inplace=inplace, a=a, b=b, c=c, n_dims=n_dims, mode=_rope_mode("rope_ext", mode, ("normal", "neox")),
        n_ctx_orig=n_ctx_orig, freq_base=freq_base, freq_scale=freq_scale, ext_factor=ext_factor,
        attn_factor=attn_factor, beta_fast=beta_fast, beta_slow=beta_slow,
    )  # fmt: skip


def rope_multi(
    a: Tensor, b: Tensor, c: Tensor | None, n_dims: int, sections: Sequence[int], mode: MultiRopeMode = "mrope",
    n_ctx_orig: int = 0, freq_base: float = 10000.0, freq_scale: float = 1.0, ext_factor: float = 0.0,
    attn_factor: float = 1.0, beta_fast: float = 0.0, beta_slow: float = 0.0,
    *, inplace: bool = False, graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """Rotary position embedding with up to four positions per token (time, height, width, extra).

    Args:
        a: f32 or f16 ``[D, H, T, B]``.
        b: i32 ``[4 T]``: the T first positions, then the T second ones, and so on.
        c: f32 ``[n_dims / 2 or more]``, frequency factors, or None.
        n_dims: even, at most D; D / 2 in mode ``"vision"``.
        sections: four numbers of pairs, one per position; together n_dims / 2. 0 leaves a position out.
        mode: ``"mrope"``, ``"imrope"`` (interleaved) or ``"vision"``.
    """
    _check_rope("rope_multi", a, b, c, n_dims, 4)
    value = _rope_mode("rope_multi", mode, ("mrope", "imrope", "vision"))
    expect(len(sections) == 4, "rope_multi", f"sections must be four numbers, got {len(sections)}", error=ArgumentError)
    numbers = check_sizes("rope_multi", {"a": a}, **{f"sections[{i}]": n for i, n in enumerate(sections)})
    expect(
        any(numbers[:3]), "rope_multi", "one of the first three sections must be above 0", {"a": a}, error=ArgumentError
    )
    total = sum(numbers)
    expect(total <= a.ne[0], "rope_multi", f"sections add up to {total}, a.ne[0] is {a.ne[0]}", {"a": a})
    if value == enum_value("rope_multi", "mode", "vision", "rope"):
        expect(
            n_dims == a.ne[0] // 2,
            "rope_multi",
            f"mode 'vision' needs n_dims = a.ne[0] / 2 = {a.ne[0] // 2}, got {n_dims}",
            {"a": a},
        )
    return build(
        "rope_multi", graph, inplace=inplace, a=a, b=b, c=c, n_dims=n_dims, sections=numbers, mode=value,
        n_ctx_orig=n_ctx_orig, freq_base=freq_base, freq_scale=freq_scale, ext_factor=ext_factor,
        attn_factor=attn_factor, beta_fast=beta_fast, beta_slow=beta_slow,
    )  # fmt: skip


def rope_set_offset(a: Tensor, n_offs: int, *, graph: Graph | None = None) -> Tensor:
    """Lets a rope node (not of mode vision) start at element ``n_offs`` of each row; returns the node.

    Raises:
        ShapeError: the turned elements would not lie inside the row.
    """
    require("rope_set_offset", a=(a, "[...]"))
    expect(
        a.op == "ROPE", "rope_set_offset", f"a must be the node of a rope, it is {a.op}", {"a": a}, error=ArgumentError
    )
    check_sizes("rope_set_offset", {"a": a}, n_offs=n_offs)
    n_dims = int(a.ptr.op_params[1])
    expect(
        n_offs + n_dims <= a.ne[0],
        "rope_set_offset",
        f"n_offs = {n_offs} and n_dims = {n_dims} must fit into a.ne[0] = {a.ne[0]}",
        {"a": a},
    )
    call("rope_set_offset", "ggml_rope_set_offset", a, n_offs=n_offs)
    return a


def timestep_embedding(timesteps: Tensor, dim: int, max_period: int = 10000, *, graph: Graph | None = None) -> Tensor:
    """Cosines, then sines, of each time step at ``dim / 2`` frequencies. ``timesteps``: f32 ``[N]``. Returns f32 ``[dim, N]``."""
    require("timestep_embedding", timesteps=(timesteps, "f32 contiguous [_]"))
    check_sizes("timestep_embedding", {"timesteps": timesteps}, at_least=1, dim=dim, max_period=max_period)
    return build("timestep_embedding", graph, timesteps=timesteps, dim=dim, max_period=max_period)


# --- attention


def flash_attn_ext(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None, max_bias: float = 0.0,
    logit_softcap: float = 0.0, *, sinks: Tensor | None = None, prec: Precision | None = None, n_kv_max: int = 0,
    graph: Graph | None = None,
) -> Tensor:  # fmt: skip
    """Attention in one operation: ``soft_max(scale * k @ q + mask)`` times ``v``.

    Args:
        q: f32 ``[D, T, H, S]`` (head dimension, tokens, heads, sequences).
        k: ``[D, N, H/, S]``: f32, f16, bf16 or quantized; each of its heads serves H / (H/) heads of ``q``.
        v: ``[E, N, H/, S]``, not transposed.
        mask: f16 ``[N, T or more, H/, S/]``, contiguous.
        scale: ``1 / sqrt(D)`` unless given.
        max_bias: ALiBi's; 0 turns it off, else a mask is needed.
        logit_softcap: ``c * tanh(x / c)`` of the logits; 0 turns it off.
        sinks: f32 ``[H]``: for each head one more logit that takes part in the sum only.
        prec: the least precision of the accumulator.
        n_kv_max: a bound for the number of finite mask entries of each row, for devices that skip the others; 0: none.

    Returns:
        f32 ``[E, H, T, S]``: heads and tokens are exchanged.
    """
    require(
        "flash_attn_ext", q=(q, "f32 rows [D, T, H, S]"), k=(k, "weight rows [D, N, H/, S]"), v=(v, "weight rows [_, N, H/, S]"),
        mask=opt(mask, "f16 contiguous [_, _, H/, S/]"), sinks=opt(sinks, "f32 contiguous [H]"),
    )  # fmt: skip
    if mask is not None:
        tensors = {"q": q, "k": k, "mask": mask}
        expect(
            mask.ne[0] >= k.ne[1],
            "flash_attn_ext",
            f"mask.ne[0] = {mask.ne[0]} must be k.ne[1] = {k.ne[1]} or more",
            tensors,
        )
        expect(
            mask.ne[1] >= q.ne[1],
            "flash_attn_ext",
            f"mask.ne[1] = {mask.ne[1]} must be q.ne[1] = {q.ne[1]} or more",
            tensors,
        )
    (max_bias,) = check_numbers("flash_attn_ext", max_bias=max_bias)
    expect(max_bias <= 0 or mask is not None, "flash_attn_ext", "max_bias needs a mask", {"q": q}, error=ArgumentError)
    check_sizes("flash_attn_ext", {"q": q}, n_kv_max=n_kv_max)
    result = build(
        "flash_attn_ext", graph, q=q, k=k, v=v, mask=mask, scale=1 / math.sqrt(max(q.ne[0], 1)) if scale is None else scale,
        max_bias=max_bias, logit_softcap=logit_softcap,
    )  # fmt: skip
    if sinks is not None:
        call("flash_attn_ext", "ggml_flash_attn_ext_add_sinks", result, sinks=sinks)
    if n_kv_max:
        call("flash_attn_ext", "ggml_flash_attn_ext_set_n_kv_max", result, n_kv_max=n_kv_max)
    return result if prec is None else prec_set_acc(result, prec)


def lightning_indexer(q: Tensor, k: Tensor, weights: Tensor, mask: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The scores by which DeepSeek's sparse attention chooses its keys: ``sum_h weights[h] * relu(k . q[h]) + mask``.

    Args:
        q: f32 ``[D, H, T, S]``.
        k: ``[D, 1, N, S]``, f32, f16 or quantized.
        weights: f32 ``[H, T, 1, S]``, scaled beforehand.
        mask: f16 ``[N, T, 1, S/]``.

    Returns:
        f32 ``[N, T, 1, S]``.
    """
    require(
        "lightning_indexer", q=(q, "f32 rows [D, H, T, S]"), k=(k, "weight rows [D, 1, N, S]"),
        weights=(weights, "f32 rows [H, T, 1, S]"), mask=(mask, "f16 rows [N, T, 1, S/]"),
    )  # fmt: skip
    return build("lightning_indexer", graph, q=q, k=k, weights=weights, mask=mask)


# --- hyper-connections of DeepSeek V4 (arXiv 2512.24880)


def dsv4_hc_comb(
    mixes: Tensor, scale: Tensor, base: Tensor, eps: float, n_iter: int, *, graph: Graph | None = None
) -> Tensor:
    """The matrices that mix the 4 residual streams, normalised ``n_iter`` times over each axis (Sinkhorn).

    Args:
        mixes: f32 ``[24, T]``, 24 = (2 + 4) * 4.
        scale: f32 ``[3 or more]``.
        base: f32 ``[24]``.

    Returns:
        f32 ``[4, 4, T]``: destination stream, source stream, token.
    """
    require(
        "dsv4_hc_comb",
        mixes=(mixes, "f32 rows [24, _]"),
        scale=(scale, "f32 contiguous [_]"),
        base=(base, "f32 contiguous [24]"),
    )
    expect(
        scale.ne[0] >= 3,
        "dsv4_hc_comb",
        f"scale.ne[0] = {scale.ne[0]} must be 3 or more",
        {"mixes": mixes, "scale": scale},
    )
    check_sizes("dsv4_hc_comb", {"mixes": mixes}, at_least=1, n_iter=n_iter)
    return build("dsv4_hc_comb", graph, mixes=mixes, scale=scale, base=base, eps=eps, n_iter=n_iter)


def dsv4_hc_pre(x: Tensor, weights: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The streams of each token, weighted and added. ``x``: f32 ``[N, hc, T]``, ``weights``: f32 ``[hc, T]``. Returns f32 ``[N, T]``."""
    require("dsv4_hc_pre", x=(x, "f32 rows [_, C, T]"), weights=(weights, "f32 rows [C, T]"))
    return build("dsv4_hc_pre", graph, x=x, weights=weights)


def dsv4_hc_pre_gated(x: Tensor, gate: Tensor, scale: float = 1.0, *, graph: Graph | None = None) -> Tensor:
    """``scale * sum over hc of x * sigmoid(gate)``. ``x`` and ``gate``: f32 ``[N, hc, T]``. Returns f32 ``[N, T]``."""
    require("dsv4_hc_pre_gated", x=(x, "f32 rows [N, C, T]"), gate=(gate, "f32 rows [N, C, T]"))
    return build("dsv4_hc_pre_gated", graph, x=x, gate=gate, scale=scale)


def dsv4_hc_post(
    x: Tensor, residual: Tensor, post: Tensor, comb: Tensor | None = None, *, graph: Graph | None = None
) -> Tensor:
    """``x * post`` for each stream, plus the residual streams mixed by ``comb`` (as they are without it).

    Args:
        x: f32 ``[N, T]``.
        residual: f32 ``[N, hc, T]``.
        post: f32 ``[hc, T]``.
        comb: f32 ``[hc, hc, T]``: destination stream, source stream, token; or None.

    Returns:
        f32 ``[N, hc, T]``.
    """
    require("dsv4_hc_post", x=(x, "f32 rows [N, T]"), residual=(residual, "f32 rows [N, C, T]"),
            post=(post, "f32 rows [C, T]"), comb=opt(comb, "f32 rows [C, C, T]"))  # fmt: skip
    return build("dsv4_hc_post", graph, x=x, residual=residual, post=post, comb=comb)
