"""Operations as methods and operators of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError
from ..tensor import Tensor
from . import arithmetic, attention, convolution, elementwise, gated, layout, matrix, recurrent

__all__ = ["TensorMethods", "attach"]


class TensorMethods:
    """What `Tensor` gets from this package: every operation whose first argument is a tensor."""

    __slots__ = ()
    __array_ufunc__ = None  # so that numpy leaves ``array * tensor`` to us, who refuse it

    def __matmul__(self: Any, other: Tensor) -> Tensor:
        return matrix.mul_mat(self, other) if isinstance(other, Tensor) else _no_operand(other)

    def __rmatmul__(self: Any, other: Any) -> Any:
        return _no_operand(other)

    def __add__(self: Any, other: Tensor | float) -> Tensor:
        if isinstance(other, Tensor):
            return arithmetic.add(self, other)
        return arithmetic.scale_bias(self, 1.0, _number(other)) if _is_number(other) else _no_operand(other)

    def __radd__(self: Any, other: float) -> Tensor:
        return arithmetic.scale_bias(self, 1.0, _number(other)) if _is_number(other) else _no_operand(other)

    def __sub__(self: Any, other: Tensor | float) -> Tensor:
        if isinstance(other, Tensor):
            return arithmetic.sub(self, other)
        return arithmetic.scale_bias(self, 1.0, -_number(other)) if _is_number(other) else _no_operand(other)

    def __rsub__(self: Any, other: float) -> Tensor:
        return arithmetic.scale_bias(self, -1.0, _number(other)) if _is_number(other) else _no_operand(other)

    def __mul__(self: Any, other: Tensor | float) -> Tensor:
        if isinstance(other, Tensor):
            return arithmetic.mul(self, other)
        return arithmetic.scale(self, _number(other)) if _is_number(other) else _no_operand(other)

    def __rmul__(self: Any, other: float) -> Tensor:
        return arithmetic.scale(self, _number(other)) if _is_number(other) else _no_operand(other)

    def __truediv__(self: Any, other: Tensor | float) -> Tensor:
        if isinstance(other, Tensor):
            return arithmetic.div(self, other)
        return arithmetic.scale(self, _reciprocal(other)) if _is_number(other) else _no_operand(other)

    def __rtruediv__(self: Any, other: float) -> Tensor:
        return arithmetic.div(arithmetic.fill(self, _number(other)), self) if _is_number(other) else _no_operand(other)

    def __neg__(self: Any) -> Tensor:
        return elementwise.neg(self)

    abs = elementwise.abs
    ceil = elementwise.ceil
    cos = elementwise.cos
    elu = elementwise.elu
    exp = elementwise.exp
    expm1 = elementwise.expm1
    floor = elementwise.floor
    gelu = elementwise.gelu
    gelu_erf = elementwise.gelu_erf
    gelu_quick = elementwise.gelu_quick
    hardsigmoid = elementwise.hardsigmoid
    hardswish = elementwise.hardswish
    leaky_relu = elementwise.leaky_relu
    log = elementwise.log
    neg = elementwise.neg
    relu = elementwise.relu
    round = elementwise.round
    sgn = elementwise.sgn
    sigmoid = elementwise.sigmoid
    silu = elementwise.silu
    sin = elementwise.sin
    softplus = elementwise.softplus
    sqr = elementwise.sqr
    sqrt = elementwise.sqrt
    step = elementwise.step
    tanh = elementwise.tanh
    trunc = elementwise.trunc
    unary = elementwise.unary
    xielu = elementwise.xielu

    acc = arithmetic.acc
    add = arithmetic.add
    add_cast = arithmetic.add_cast
    add_id = arithmetic.add_id
    argmax = arithmetic.argmax
    argsort = arithmetic.argsort
    argsort_top_k = arithmetic.argsort_top_k
    clamp = arithmetic.clamp
    count_equal = arithmetic.count_equal
    cross_entropy_loss = arithmetic.cross_entropy_loss
    cumsum = arithmetic.cumsum
    div = arithmetic.div
    fill = arithmetic.fill
    group_norm = arithmetic.group_norm
    l2_norm = arithmetic.l2_norm
    mean = arithmetic.mean
    mul = arithmetic.mul
    norm = arithmetic.norm
    rms_norm = arithmetic.rms_norm
    scale = arithmetic.scale
    scale_bias = arithmetic.scale_bias
    sub = arithmetic.sub
    sum = arithmetic.sum
    sum_rows = arithmetic.sum_rows
    top_k = arithmetic.top_k

    geglu = gated.geglu
    geglu_erf = gated.geglu_erf
    geglu_erf_split = gated.geglu_erf_split
    geglu_erf_swapped = gated.geglu_erf_swapped
    geglu_quick = gated.geglu_quick
    geglu_quick_split = gated.geglu_quick_split
    geglu_quick_swapped = gated.geglu_quick_swapped
    geglu_split = gated.geglu_split
    geglu_swapped = gated.geglu_swapped
    glu = gated.glu
    glu_split = gated.glu_split
    reglu = gated.reglu
    reglu_split = gated.reglu_split
    reglu_swapped = gated.reglu_swapped
    swiglu = gated.swiglu
    swiglu_clamp = gated.swiglu_clamp
    swiglu_oai = gated.swiglu_oai
    swiglu_split = gated.swiglu_split
    swiglu_swapped = gated.swiglu_swapped

    diag = matrix.diag
    mul_mat = matrix.mul_mat
    mul_mat_id = matrix.mul_mat_id
    mul_mat_set_hint = matrix.mul_mat_set_hint
    out_prod = matrix.out_prod
    prec_set_acc = matrix.prec_set_acc
    prec_set_src = matrix.prec_set_src
    solve_tri = matrix.solve_tri
    tri = matrix.tri

    cast = layout.cast
    concat = layout.concat
    cont = layout.cont
    cpy = layout.cpy
    dup = layout.dup
    get_rows = layout.get_rows
    pad = layout.pad
    pad_circular = layout.pad_circular
    pad_ext = layout.pad_ext
    pad_ext_circular = layout.pad_ext_circular
    pad_reflect_1d = layout.pad_reflect_1d
    permute = layout.permute
    repeat = layout.repeat
    repeat_4d = layout.repeat_4d
    reshape = layout.reshape
    roll = layout.roll
    set = layout.set
    set_rows = layout.set_rows
    transpose = layout.transpose
    view = layout.view

    diag_mask_inf = attention.diag_mask_inf
    diag_mask_zero = attention.diag_mask_zero
    dsv4_hc_comb = attention.dsv4_hc_comb
    dsv4_hc_post = attention.dsv4_hc_post
    dsv4_hc_pre = attention.dsv4_hc_pre
    dsv4_hc_pre_gated = attention.dsv4_hc_pre_gated
    flash_attn_ext = attention.flash_attn_ext
    lightning_indexer = attention.lightning_indexer
    rope = attention.rope
    rope_ext = attention.rope_ext
    rope_multi = attention.rope_multi
    rope_set_offset = attention.rope_set_offset
    soft_max = attention.soft_max
    soft_max_ext = attention.soft_max_ext
    timestep_embedding = attention.timestep_embedding

    gated_delta_net = recurrent.gated_delta_net
    gated_linear_attn = recurrent.gated_linear_attn
    rwkv_wkv6 = recurrent.rwkv_wkv6
    rwkv_wkv7 = recurrent.rwkv_wkv7
    ssm_conv = recurrent.ssm_conv
    ssm_scan = recurrent.ssm_scan

    add_rel_pos = convolution.add_rel_pos
    col2im_1d = convolution.col2im_1d
    conv_1d = convolution.conv_1d
    conv_1d_dw = convolution.conv_1d_dw
    conv_1d_dw_ph = convolution.conv_1d_dw_ph
    conv_1d_ph = convolution.conv_1d_ph
    conv_2d = convolution.conv_2d
    conv_2d_direct = convolution.conv_2d_direct
    conv_2d_dw = convolution.conv_2d_dw
    conv_2d_dw_direct = convolution.conv_2d_dw_direct
    conv_2d_s1_ph = convolution.conv_2d_s1_ph
    conv_2d_sk_p0 = convolution.conv_2d_sk_p0
    conv_3d = convolution.conv_3d
    conv_3d_direct = convolution.conv_3d_direct
    conv_transpose_1d = convolution.conv_transpose_1d
    conv_transpose_2d_p0 = convolution.conv_transpose_2d_p0
    get_rel_pos = convolution.get_rel_pos
    im2col = convolution.im2col
    im2col_3d = convolution.im2col_3d
    interpolate = convolution.interpolate
    pool_1d = convolution.pool_1d
    pool_2d = convolution.pool_2d
    upscale = convolution.upscale
    win_part = convolution.win_part
    win_unpart = convolution.win_unpart


def _no_operand(other: object) -> Any:
    """What an operator answers to what is neither tensor nor number. numpy's own words would not say what to do."""
    if isinstance(other, np.ndarray):
        raise DTypeError(
            f"an array of shape {other.shape} is no tensor of a graph: graph.input(name, ne) takes it when the graph runs, "
            "Weights(device, {name: array})[name] is a tensor of its values"
        )
    return NotImplemented


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (hasattr(value, "__float__") and getattr(value, "shape", None) == ())


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError("the number beside the tensor is beyond every float") from None


def _reciprocal(value: Any) -> float:
    if value == 0:
        raise ArgumentError("a tensor divided by the number 0: infinities are asked for with ops.fill or an input")
    return 1.0 / _number(value)


def attach() -> None:
    """Gives the methods to `Tensor`."""
    for name, value in vars(TensorMethods).items():
        if callable(value) or name == "__array_ufunc__":
            setattr(Tensor, name, value)
