"""State space models, linear attention, and other recurrences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..tensor import Tensor
from ._build import build, check_sizes, expect, require

if TYPE_CHECKING:
    from ..graph import Graph

__all__ = ["gated_delta_net", "gated_linear_attn", "rwkv_wkv6", "rwkv_wkv7", "ssm_conv", "ssm_scan"]


def ssm_conv(sx: Tensor, c: Tensor, *, graph: Graph | None = None) -> Tensor:
    """The short convolution of Mamba, each channel on its own.

    Args:
        sx: f32 ``[K - 1 + T, N, S]``: the K - 1 inputs before the first token, then those of T tokens, per channel.
        c: f32 ``[K, N]``.

    Returns:
        f32 ``[N, T, S]``.

    Raises:
        ShapeError: ``sx`` has fewer than K - 1 columns, or other channels than ``c``.
    """
    require("ssm_conv", sx=(sx, "f32 rows [_, N, _]"), c=(c, "f32 contiguous [_, N]"))
    expect(
        sx.ne[0] >= c.ne[0] - 1,
        "ssm_conv",
        f"sx.ne[0] = {sx.ne[0]} must be c.ne[0] - 1 = {c.ne[0] - 1} or more",
        {"sx": sx, "c": c},
    )
    return build("ssm_conv", graph, sx=sx, c=c)


def ssm_scan(
    s: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    ids: Tensor,
    K: int = 1,
    *,
    graph: Graph | None = None,
) -> Tensor:
    """The selective scan of Mamba (``A`` ``[N, H]``) and Mamba-2 (``A`` ``[1, H]``).

    Args:
        s: f32 ``[N, D, H, R]``, the states (N: state size, D: head dimension, R: stored sequences).
        x: f32 ``[D, H, T, S]``.
        dt: f32 ``[H, T, S]``.
        A: f32 ``[1, H]`` or ``[N, H]``.
        B, C: f32 ``[N, G, T, S]``, G groups of heads.
        ids: i32 ``[S]``: which state a sequence starts from.
        K: states to return, the latest first; 1 for Mamba.

    Returns:
        f32 ``[D * H * T * S + K * N * D * H * S]``: the outputs, then the new states.
    """
    tensors = {"s": s, "x": x, "A": A, "B": B}
    sizes = require(
        "ssm_scan", s=(s, "f32 contiguous [N, D, H, _]"), x=(x, "f32 rows [D, H, T, S]"), dt=(dt, "f32 contiguous [H, T, S]"),
        A=(A, "f32 contiguous [_, H]"), B=(B, "f32 rows [N, G, T, S]"), C=(C, "f32 rows [N, G, T, S]"), ids=(ids, "i32 contiguous [S]"),
    )  # fmt: skip
    (K,) = check_sizes("ssm_scan", tensors, at_least=1, K=K)
    expect(A.ne[0] in (1, sizes["N"]), "ssm_scan", f"A.ne[0] = {A.ne[0]} must be 1 or s.ne[0] = {sizes['N']}", tensors)
    expect(sizes["G"] > 0 and sizes["H"] % sizes["G"] == 0, "ssm_scan",
           f"x.ne[1] = {sizes['H']} heads must be a multiple of B.ne[1] = {sizes['G']} groups", tensors)  # fmt: skip
    expect(A.ne[0] == 1 or K == 1, "ssm_scan", f"K = {K} needs A.ne[0] = 1", tensors)
    return build("ssm_scan", graph, s=s, x=x, dt=dt, A=A, B=B, C=C, ids=ids, K=K)


def _check_state(op: str, state: Tensor, sizes: dict[str, int]) -> None:
    size, n_seqs = sizes["S"] * sizes["S"] * sizes["H"], state.ne[1]
    elements = state.ne[0] * n_seqs * state.ne[2] * state.ne[3]
    tensors = {"state": state}
    expect(
        n_seqs > 0 and elements == size * n_seqs, op, f"state must be [S * S * H, n_seqs] = [{size}, n_seqs]", tensors
    )
    expect(
        sizes["T"] % n_seqs == 0,
        op,
        f"{sizes['T']} tokens must be a multiple of the {n_seqs} sequences of state",
        tensors,
    )


def rwkv_wkv6(
    k: Tensor, v: Tensor, r: Tensor, tf: Tensor, td: Tensor, state: Tensor, *, graph: Graph | None = None
) -> Tensor:
    """The recurrence of RWKV-6.

    Args:
        k, v, r, td: f32 ``[S, H, T]``, contiguous (key, value, receptance, decay; S: head size, T: tokens of all sequences).
        tf: f32 ``[S, H]``, the bonus of the current token.
        state: f32 ``[S * S * H, n_seqs]``.

    Returns:
        f32 ``[S * H, T + S * n_seqs]``: the outputs, then the new states.
    """
    cube = "f32 contiguous [S, H, T]"
    sizes = require(
        "rwkv_wkv6",
        k=(k, cube),
        v=(v, cube),
        r=(r, cube),
        tf=(tf, "f32 contiguous [S, H]"),
        td=(td, cube),
        state=(state, "f32 contiguous [...]"),
    )
    _check_state("rwkv_wkv6", state, sizes)
    return build("rwkv_wkv6", graph, k=k, v=v, r=r, tf=tf, td=td, state=state)


def rwkv_wkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, *, graph: Graph | None = None
) -> Tensor:
    """The recurrence of RWKV-7: ``state = state * w + v k^T + (state a) b^T``, output ``state r``.

    Args:
        r, w, k, v, a, b: f32 ``[S, H, T]``, contiguous (S: head size, a multiple of 64, T: tokens of all sequences).
        state: f32 ``[S * S * H, n_seqs]``.

    Returns:
        f32 ``[S * H, T + S * n_seqs]``: the outputs, then the new states.
    """
    cube = "f32 contiguous [S, H, T]"
    sizes = require(
        "rwkv_wkv7",
        r=(r, cube),
        w=(w, cube),
        k=(k, cube),
        v=(v, cube),
        a=(a, cube),
        b=(b, cube),
        state=(state, "f32 contiguous [...]"),
    )
    # ggml's CPU kernel works in whole vectors of up to 64 elements and writes beyond other head sizes
    expect(
        sizes["S"] % 64 == 0, "rwkv_wkv7", f"r.ne[0] = {sizes['S']}, the head size, must be a multiple of 64", {"r": r}
    )
    _check_state("rwkv_wkv7", state, sizes)
    return build("rwkv_wkv7", graph, r=r, w=w, k=k, v=v, a=a, b=b, state=state)


def gated_linear_attn(
    k: Tensor, v: Tensor, q: Tensor, g: Tensor, state: Tensor, scale: float = 1.0, *, graph: Graph | None = None
) -> Tensor:
    """Gated linear attention: ``state = state * g + k v^T``, output ``scale * q state``.

    Args:
        k, v, q, g: f32 ``[S, H, T]``, contiguous (S: head size, T: tokens of all sequences).
        state: f32 ``[S * S * H, n_seqs]``.

    Returns:
        f32 ``[S * H, T + S * n_seqs]``: the outputs, then the new states.
    """
    cube = "f32 contiguous [S, H, T]"
    sizes = require(
        "gated_linear_attn", k=(k, cube), v=(v, cube), q=(q, cube), g=(g, cube), state=(state, "f32 contiguous [...]")
    )
    _check_state("gated_linear_attn", state, sizes)
    return build("gated_linear_attn", graph, k=k, v=v, q=q, g=g, state=state, scale=scale)


def gated_delta_net(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, K: int = 1, *, graph: Graph | None = None
) -> Tensor:
    """The gated delta rule: ``state = exp(g) * state``, then ``state += beta * (v - state k) k^T``, output ``state q / sqrt(D)``.

    Args:
        q, k: f32 ``[D, G, T, S]``; head h of ``v`` uses head h mod G.
        v: f32 ``[D, H, T, S]``, H a multiple of G.
        g: f32 ``[1, H, T, S]``, or ``[D, H, T, S]`` (a gate for each element).
        beta: f32 ``[1, H, T, S]``.
        state: f32 ``[D, D, H, S]``.
        K: states to return, the latest first; those of which there are fewer tokens are not written.

    Returns:
        f32 ``[D * H, T * S + K * D * S]``: the outputs, then the states.
    """
    tensors = {"g": g, "v": v}
    sizes = require(
        "gated_delta_net", q=(q, "f32 rows [D, G, T, S]"), k=(k, "f32 rows [D, G, T, S]"), v=(v, "f32 rows [D, G*, T, S]"),
        g=(g, "f32 contiguous [_, _, T, S]"), beta=(beta, "f32 contiguous [1, _, T, S]"), state=(state, "f32 contiguous [D, D, _, S]"),
    )  # fmt: skip
    for name, tensor, axis in (("g", g, 1), ("beta", beta, 1), ("state", state, 2)):
        expect(tensor.ne[axis] == v.ne[1], "gated_delta_net", f"{name}.ne[{axis}] = {tensor.ne[axis]} and v.ne[1] = {v.ne[1]} must be equal",
               {name: tensor, "v": v})  # fmt: skip
    expect(
        g.ne[0] in (1, sizes["D"]),
        "gated_delta_net",
        f"g.ne[0] = {g.ne[0]} must be 1 or v.ne[0] = {sizes['D']}",
        tensors,
    )
    (K,) = check_sizes("gated_delta_net", tensors, at_least=1, K=K)
    return build("gated_delta_net", graph, q=q, k=k, v=v, g=g, beta=beta, state=state, K=K)
