"""Random weights that make sense: by the name and shape of a tensor.

Matrices have the scale of trained ones (1/sqrt of their inputs), norms are near 1 but not 1, so that a tensor in the wrong
place shows; states decay; what would make results depend on rounding (the choice of experts) has wide margins. Every
tensor has a stream of random numbers of its own, seeded by its name.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...dtype import DType, QuantizedArray, quantize
from ...errors import DTypeError, ShapeError
from .keys import Shape
from .probe import Ne
from .registry import Architecture

__all__ = ["weights"]

Array = npt.NDArray[np.float32]

_MARK = 1.0  # what the last of a token's experts gets in the residual stream, see `token_embd`
_WRITES = 0.03  # how much of what is added to the residual stream reaches the marks

_BLOCK = re.compile(r"^((?:enc\.|dec\.)?blk\.(\d+)\.|\w+\.(\d+)\.)")
_NORM = re.compile(r"(norm|_ln|\bln)\w*(\.\w+)?$")
# matrices whose product is added to the residual stream
_RESIDUAL = re.compile(
    r"(attn_out(put)?|attn_output_b|ffn_down(_exps|_shexp|_chexps)?|ssm_out|ffn_(routed|latent)_up|ple_value|shortconv\.out_proj"
    r"|time_mix_output|channel_mix_value|cross_attn_o|attn_o|proj)\.weight$"
)
_CONV = re.compile(r"conv(?!\.(in|out)_proj)")
# those behind products of several activations, whose large values would drown the marks of experts
_SPIKY = re.compile(r"(ssm_out|shortconv\.out_proj)\.weight$")
# small tensors that decide, or that kernels want in F32
_PLAIN = re.compile(
    r"norm|ffn_gate_inp|conv(?!\.(in|out)_proj|next\.\d+\.pw)|ssm_(a|d|dt|x)\b|lerp|time_mix_(w\d|first|decay)|sinks|rel_b|hc_|scale|lora|ape"
    r"|position_embd|token_types|\.bias$"
)
# those that a caller means who asks for a format
_LARGE = re.compile(r"^(token_embd|output)\.|^blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps)?)\.")

# (pattern of the stem, low, high): vectors and other plain numbers
_RANGES: tuple[tuple[re.Pattern[str], float, float], ...] = tuple(
    (re.compile(pattern), low, high)
    for pattern, low, high in (
        (r"ssm_a\b|ssm_a_log\b", -1.5, -0.05),  # the state decays
        (r"ssm_d\b", 0.5, 1.5),
        (r"ssm_dt\.bias|ssm_dt_b\b", -1.0, 1.0),
        (r"exp_probs_b", -0.01, 0.01),  # must not outweigh a margin of the router
        (r"attn_sinks", -1.0, 1.0),
        (r"time_mix_lerp|channel_mix_lerp", 0.2, 0.8),
        (r"time_mix_decay\.weight", -3.0, -1.0),
        (r"time_mix_w0", -3.0, -1.0),
        (r"time_mix_first", -0.5, 0.5),
        (r"time_mix_(a0|v0|k_k|k_a|r_k)", 0.2, 0.8),
        (r"rope_freqs|rope_factors", 1.0, 1.0),
        (r"scale", 0.75, 1.25),
    )
)


def weights(
    arch: Architecture, shape: Shape, tensors: Mapping[str, Ne], dtype: DType, seed: int
) -> dict[str, Array | QuantizedArray]:
    """Values for all tensors; numpy shapes.

    Raises:
        ShapeError: a matrix has rows that are no whole number of the format's blocks.
    """
    make = _Weights(arch, shape, dtype, seed)
    make.tied = "output.weight" not in tensors
    return {name: make.tensor(name, ne) for name, ne in tensors.items()}


class _Weights:
    def __init__(self, arch: Architecture, shape: Shape, dtype: DType, seed: int) -> None:
        self.arch, self.s, self.dtype, self.seed = arch, shape, dtype, seed
        self.tied = False

    def rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def tensor(self, name: str, ne: Ne) -> Array | QuantizedArray:
        block = _BLOCK.match(name)
        stem = name[block.end() :] if block else name
        layer = next((int(g) for g in block.groups()[1:] if g), 0) if block else 0
        if stem == "token_embd.weight":
            return self.put(name, self.token_embd(name, ne))
        if _NORM.search(stem):
            return self.norm(name, stem, ne)
        for pattern, low, high in _RANGES:
            if pattern.search(stem):
                return self.uniform(name, ne, low, high)
        if stem.startswith("ffn_gate_inp") and stem.endswith(".weight") and ne[-1] == self.s.n_expert and self.s.moe:
            return self.router(name, ne, layer)
        if len(ne) == 1 or stem.endswith("bias"):
            return self.uniform(name, ne, -0.1, 0.1)
        if _CONV.search(stem):
            return self.normal(name, ne, fan_in=ne[0])
        return self.put(name, self.matrix(name, stem, ne))

    def uniform(self, name: str, ne: Ne, low: float, high: float) -> Array:
        return self.rng(name).uniform(low, high, ne[::-1]).astype(np.float32)

    def normal(self, name: str, ne: Ne, *, fan_in: int, gain: float = 1.0) -> Array:
        values = self.rng(name).standard_normal(ne[::-1], dtype=np.float32)
        values *= np.float32(gain / math.sqrt(fan_in))
        return values

    def put(self, name: str, values: Array) -> Array | QuantizedArray:
        if self.dtype.name == "f32" or _PLAIN.search(name):
            return values
        if values.shape[-1] % self.dtype.block_size:
            if not _LARGE.search(name):
                return values  # llama-quantize takes another format, too
            wide = math.lcm(self.s.block, values.shape[-1])
            raise ShapeError(
                f"{name} has rows of {values.shape[-1]}, expected a multiple of {self.dtype.block_size}, the block of {self.dtype} "
                f"(such as {wide})"
            )
        try:
            return quantize(values, self.dtype)
        except DTypeError as error:
            raise type(error)(f"{name}: {error}") from error

    def norm(self, name: str, stem: str, ne: Ne) -> Array:
        if stem.endswith(".bias"):
            return self.uniform(name, ne, -0.1, 0.1)
        values = self.uniform(name, ne, 0.75, 1.25)
        n = self.s.n_expert
        if self.s.moe and ne[0] == self.s.n_embd:
            if self.arch.damped.search(stem):
                values[..., :n] *= np.float32(_WRITES)
            else:
                values[..., :n] = 1 + (values[..., :n] - 1) * np.float32(0.1)
        return values

    def matrix(self, name: str, stem: str, ne: Ne) -> Array:
        values = self.normal(name, ne, fan_in=ne[0], gain=0.3 if self.s.moe and _SPIKY.search(stem) else 1.0)
        if self.s.moe and _RESIDUAL.search(stem) and len(ne) > 1 and ne[1] == self.s.n_embd:
            values[..., : self.s.n_expert, :] *= np.float32(_WRITES)
        if self.s.moe and stem in ("position_embd.weight", "token_types.weight"):
            values[:, : self.s.n_expert] *= np.float32(_WRITES)
        return values

    def token_embd(self, name: str, ne: Ne) -> Array:
        s = self.s
        # logits of tied embeddings are sums over n_embd; marks of experts need the usual size of everything
        values = self.normal(name, ne, fan_in=ne[0] if self.tied and not s.moe and self.arch.kind != "encoder" else 1)
        if s.moe:
            # The first n_expert channels of the residual stream say which experts a token takes: routers read them,
            # attention and experts hardly write to them. 0.8 between the last expert taken and the best other one.
            order = self.rng("experts of tokens").permuted(np.tile(np.arange(s.n_expert), (len(values), 1)), axis=1)
            levels = np.concatenate([
                _MARK + 0.3 * np.arange(s.n_expert_used)[::-1],
                0.2 - 0.2 * np.arange(s.n_expert - s.n_expert_used),
            ])  # fmt: skip
            np.put_along_axis(values[:, : s.n_expert], order, np.float32(levels)[None, :], axis=1)
        return values

    def router(self, name: str, ne: Ne, layer: int) -> Array:
        values = self.normal(name, ne, fan_in=ne[0], gain=0.01)
        # each layer reads the marks in another order, so that a token takes different experts in each
        marks = (np.arange(self.s.n_expert) + layer) % self.s.n_expert
        values[np.arange(self.s.n_expert), marks] = 2.0
        return values
