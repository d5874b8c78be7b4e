"""Small models with random weights that llama.cpp loads, and that really split.

llama.cpp's tensor split mode rounds each device's share down: to 128 columns of the FFN, to whole groups of
attention heads, to whole blocks of a quantized format. On most tiny models one device then gets everything, and a test
of such a split tests nothing. The shapes here are chosen the other way round: from the splits that a test is going
to ask for (`shares`) to the smallest model in which every device gets exactly what was asked.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..dtype import DType, DTypeLike, QuantizedArray, as_dtype, quantize
from ..errors import ShapeError, UnsupportedError
from .gguf_writer import Value, write_gguf

__all__ = ["ARCHITECTURES", "DEFAULT_SHARES", "TinyModel", "tiny_gguf"]

ARCHITECTURES = ("llama", "qwen3", "qwen35", "refact", "bloom")

DEFAULT_SHARES: tuple[tuple[int, ...], ...] = ((1, 1), (1, 1, 1), (3, 1))
"""Two and three equal devices, and three quarters on the first of two."""

# llama.cpp rounds FFN columns and heads of linear attention to this many (src/llama-model.cpp)
_COLUMNS = 128
_STATE_SIZE = 128  # of a head of linear attention
_CONV_KERNEL = 4
_EXPERT_MARK = 1.0  # what the second of a token's two experts gets in the residual stream, see _token_embd


@dataclass(frozen=True)
class TinyModel(os.PathLike[str]):
    """What `tiny_gguf` wrote. Usable wherever a path is."""

    path: Path
    arch: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_expert: int
    """0: a dense model."""
    n_expert_used: int
    n_group: int
    """K heads of linear attention (qwen35; 0 otherwise); there are twice as many V heads."""
    dtype: DType
    n_bytes: int

    def __fspath__(self) -> str:
        return str(self.path)


def tiny_gguf(
    path: str | os.PathLike[str],
    arch: str = "llama",
    *,
    moe: bool = False,
    n_layer: int | None = None,
    n_head: int | None = None,
    n_head_kv: int | None = None,
    head_dim: int | None = None,
    n_embd: int | None = None,
    n_ff: int | None = None,
    n_expert: int = 8,
    n_expert_used: int = 2,
    n_vocab: int | None = None,
    dtype: DTypeLike = "f32",
    seed: int = 0,
    shares: Sequence[Sequence[int]] = DEFAULT_SHARES,
) -> TinyModel:
    """Writes a small GGUF model with random weights and returns its shape.

    ``arch`` is one of `ARCHITECTURES`: ``"llama"`` (dense, or with ``moe=True`` a mixture of ``n_expert``
    experts), ``"qwen3"``, ``"qwen35"`` (layers of linear attention and of full attention in turns),
    ``"refact"`` and ``"bloom"`` (ALiBi; bloom has LayerNorm, biases and a fused QKV matrix too).

    ``shares`` lists the splits that must come out exactly, as integer shares of the devices: ``((1, 1), (3, 1))``
    means that llama.cpp can give each of two devices half of all heads, FFN columns and vocabulary rows, and also
    three quarters to the first. Fewer or simpler splits make a smaller model. Numbers given explicitly (``n_head``,
    ``n_ff``, …) win, and then exact shares are the caller's business.

    Matrices are in ``dtype`` (any format with a quantizer); norms, biases and routers are F32, as in real files.
    The same arguments give the same bytes. Weights have the scale of a trained model (``1/sqrt(fan-in)``), norms are near
    1 but not 1, so that a tensor in the wrong place shows. The experts that a token takes are written into its embedding
    with a wide margin: rounding does not change the choice.

    There is no vocabulary text, only ``n_vocab`` token ids: use ids, not strings.
    """
    if arch not in ARCHITECTURES:
        raise UnsupportedError(f"no tiny model of architecture {arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    if moe and arch != "llama":
        raise UnsupportedError(f"no tiny mixture of experts of architecture {arch!r}: expected 'llama'")
    to = as_dtype(dtype)
    unit, n_devices = _unit(shares)

    if head_dim is None:
        head_dim = 128 if to.block_size > 128 else 32
    gqa = 1 if arch == "bloom" else 2
    if n_head_kv is None:
        n_head_kv = unit * _heads_per_step(gqa * head_dim, to.block_size, n_devices)
        if n_head is not None and n_head % n_head_kv:
            n_head_kv = n_head
    if n_head is None:
        n_head = gqa * n_head_kv if n_head_kv > 1 else 2 * unit
    if n_ff is None:
        n_ff = unit * math.lcm(_COLUMNS, to.block_size)
    if n_embd is None:
        wide = 64 if moe or arch == "qwen35" else 128
        n_embd = n_head * head_dim if arch == "bloom" else math.lcm(wide, to.block_size)
    if n_vocab is None:
        n_vocab = unit * max(1, math.ceil(384 / unit))
    if n_layer is None:
        n_layer = 4 if arch == "qwen35" else 2
    n_group = unit * math.lcm(_COLUMNS, to.block_size, _STATE_SIZE) // _STATE_SIZE if arch == "qwen35" else 0

    numbers = {
        "n_layer": n_layer, "n_head": n_head, "n_head_kv": n_head_kv, "head_dim": head_dim, "n_embd": n_embd,
        "n_ff": n_ff, "n_vocab": n_vocab,
    }  # fmt: skip
    for name, number in numbers.items():
        if number < 1:
            raise ShapeError(f"{name}={number}: expected at least 1")
    if n_head % n_head_kv:
        raise ShapeError(f"n_head={n_head} is not a multiple of n_head_kv={n_head_kv}")
    if arch == "bloom" and (n_embd != n_head * head_dim or n_head != n_head_kv):
        raise ShapeError(
            f"bloom with n_embd={n_embd}, n_head={n_head}, n_head_kv={n_head_kv}, head_dim={head_dim}: "
            "expected n_embd = n_head * head_dim and n_head_kv = n_head"
        )
    if head_dim % 2:
        raise ShapeError(f"head_dim={head_dim}: expected an even number (rotary embeddings work on pairs)")
    if arch == "qwen35" and head_dim % 8:
        raise ShapeError(f"head_dim={head_dim}: expected a multiple of 8 for qwen35")
    if moe and not (1 <= n_expert_used < n_expert <= n_embd):
        raise ShapeError(
            f"n_expert={n_expert}, n_expert_used={n_expert_used}: expected 1 <= n_expert_used < n_expert <= n_embd ({n_embd})"
        )

    model = TinyModel(
        Path(path), arch, **numbers, n_expert=n_expert if moe else 0, n_expert_used=n_expert_used if moe else 0,
        n_group=n_group, dtype=to, n_bytes=0,
    )  # fmt: skip
    written = write_gguf(path, _metadata(model), _Weights(model, seed).tensors())
    return replace(model, path=written, n_bytes=written.stat().st_size)


def _unit(shares: Sequence[Sequence[int]]) -> tuple[int, tuple[int, ...]]:
    """The number of equal steps in which all splits are whole, and the numbers of devices."""
    unit, counts = 1, set()
    for split in shares:
        if len(split) < 1 or any(int(s) != s or s < 0 for s in split) or sum(split) == 0:
            raise ShapeError(f"shares {tuple(split)}: expected whole numbers, at least one above 0")
        whole = [int(s) for s in split]
        unit = math.lcm(unit, sum(whole) // math.gcd(*whole))
        counts.add(len(whole))
    return unit, tuple(sorted(counts)) or (1,)


def _heads_per_step(group_columns: int, block_size: int, n_devices: Sequence[int]) -> int:
    """KV heads that llama.cpp moves from one device to the next at once, for all numbers of devices.

    ``group_columns``: columns of the query heads that share a KV head. A step is whole groups, and whole blocks;
    blocks count as up to 128 columns as long as each device still gets some.
    """
    step = 1
    for n in n_devices:
        block = block_size
        while block < _COLUMNS and block * n < group_columns:
            block *= 2
        step = math.lcm(step, math.lcm(group_columns, block) // group_columns)
    return step


def _metadata(m: TinyModel) -> dict[str, Value]:
    keys: dict[str, Value] = {
        "vocab_size": m.n_vocab,
        "context_length": 2048,
        "embedding_length": m.n_embd,
        "block_count": m.n_layer,
        "feed_forward_length": m.n_ff,
        "attention.head_count": m.n_head,
        "attention.head_count_kv": m.n_head_kv,
    }
    if m.arch == "bloom":
        keys["attention.layer_norm_epsilon"] = 1e-5
    else:
        keys["attention.layer_norm_rms_epsilon"] = 1e-5
        keys["attention.key_length"] = m.head_dim
        keys["attention.value_length"] = m.head_dim
    if m.arch in ("llama", "qwen3"):
        keys["rope.dimension_count"] = m.head_dim
    if m.n_expert:
        keys["expert_count"] = m.n_expert
        keys["expert_used_count"] = m.n_expert_used
    if m.arch == "qwen35":
        pairs = m.head_dim // 4  # half of a head is rotated
        keys["rope.dimension_count"] = 2 * pairs
        keys["rope.dimension_sections"] = np.array([pairs - pairs // 4 * 2, pairs // 4, pairs // 4, 0], np.int32)
        keys["full_attention_interval"] = 2
        keys["ssm.conv_kernel"] = _CONV_KERNEL
        keys["ssm.state_size"] = _STATE_SIZE
        keys["ssm.group_count"] = m.n_group
        keys["ssm.time_step_rank"] = 2 * m.n_group
        keys["ssm.inner_size"] = 2 * m.n_group * _STATE_SIZE
    return {
        "general.architecture": m.arch,
        "general.name": f"pyggml tiny {m.arch}{' moe' if m.n_expert else ''}",
        **{f"{m.arch}.{key}": value for key, value in keys.items()},
        "tokenizer.ggml.model": "none",
    }


class _Weights:
    """The tensors of a model. Every tensor has a stream of random numbers of its own, seeded by its name."""

    def __init__(self, model: TinyModel, seed: int) -> None:
        self.m = model
        self.seed = seed
        self.out: dict[str, npt.NDArray[np.float32] | QuantizedArray] = {}

    def rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def normal(self, name: str, *shape: int, scale: float) -> npt.NDArray[np.float32]:
        values = self.rng(name).standard_normal(shape, dtype=np.float32)
        values *= np.float32(scale)
        return values

    def uniform(self, name: str, n: int, low: float, high: float) -> None:
        self.out[name] = self.rng(name).uniform(low, high, n).astype(np.float32)

    def put(self, name: str, values: npt.NDArray[np.float32]) -> None:
        self.out[name] = values if self.m.dtype.name == "f32" else quantize(values, self.m.dtype)

    def matrix(self, name: str, n_out: int, n_in: int, *, gain: float = 1.0) -> None:
        """ggml's ne = (n_in, n_out)."""
        self.put(name, self.normal(name, n_out, n_in, scale=gain / math.sqrt(n_in)))

    def norm(self, name: str, n: int, *, bias: bool = False) -> None:
        self.uniform(f"{name}.weight", n, 0.75, 1.25)
        if bias:
            self.uniform(f"{name}.bias", n, -0.1, 0.1)

    def tensors(self) -> dict[str, npt.NDArray[np.float32] | QuantizedArray]:
        m = self.m
        biased = m.arch == "bloom"
        self.token_embd()
        if biased:
            self.norm("token_embd_norm", m.n_embd, bias=True)
        self.norm("output_norm", m.n_embd, bias=biased)
        self.matrix("output.weight", m.n_vocab, m.n_embd)
        for layer in range(m.n_layer):
            blk = f"blk.{layer}"
            self.norm(f"{blk}.attn_norm", m.n_embd, bias=biased)
            if m.arch == "qwen35" and (layer + 1) % 2:
                self.linear_attention(blk)
            elif biased:
                self.fused_attention(blk)
            else:
                self.attention(blk)
            self.norm(f"{blk}.post_attention_norm" if m.arch == "qwen35" else f"{blk}.ffn_norm", m.n_embd, bias=biased)
            if m.n_expert:
                self.experts(blk, layer)
            else:
                self.ffn(blk, biased)
        return self.out

    def token_embd(self) -> None:
        m, name = self.m, "token_embd.weight"
        values = self.normal(name, m.n_vocab, m.n_embd, scale=1.0)
        if m.n_expert:
            # The first n_expert channels of the residual stream say which experts a token takes: routers read them,
            # attention and experts hardly write to them. 0.8 between the last expert taken and the best other one.
            rng = self.rng("experts of tokens")
            order = rng.permuted(np.tile(np.arange(m.n_expert), (m.n_vocab, 1)), axis=1)
            levels = np.concatenate([
                _EXPERT_MARK + 0.3 * np.arange(m.n_expert_used)[::-1],
                0.2 - 0.2 * np.arange(m.n_expert - m.n_expert_used),
            ])  # fmt: skip
            np.put_along_axis(values[:, : m.n_expert], order, np.float32(levels)[None, :], axis=1)
        self.put(name, values)

    def attention(self, blk: str) -> None:
        m = self.m
        n_q, n_kv = m.n_head * m.head_dim, m.n_head_kv * m.head_dim
        # qwen35: every query head is followed by its gate
        self.matrix(f"{blk}.attn_q.weight", 2 * n_q if m.arch == "qwen35" else n_q, m.n_embd)
        self.matrix(f"{blk}.attn_k.weight", n_kv, m.n_embd)
        self.matrix(f"{blk}.attn_v.weight", n_kv, m.n_embd)
        if m.arch in ("qwen3", "qwen35"):
            self.norm(f"{blk}.attn_q_norm", m.head_dim)
            self.norm(f"{blk}.attn_k_norm", m.head_dim)
        self.residual(f"{blk}.attn_output.weight", n_q)

    def fused_attention(self, blk: str) -> None:
        m = self.m
        n_qkv = (m.n_head + 2 * m.n_head_kv) * m.head_dim
        self.matrix(f"{blk}.attn_qkv.weight", n_qkv, m.n_embd)
        self.uniform(f"{blk}.attn_qkv.bias", n_qkv, -0.1, 0.1)
        self.residual(f"{blk}.attn_output.weight", m.n_embd)
        self.uniform(f"{blk}.attn_output.bias", m.n_embd, -0.1, 0.1)

    def linear_attention(self, blk: str) -> None:
        m = self.m
        n_k, n_v, heads = m.n_group * _STATE_SIZE, 2 * m.n_group * _STATE_SIZE, 2 * m.n_group
        self.matrix(f"{blk}.attn_qkv.weight", 2 * n_k + n_v, m.n_embd)
        self.matrix(f"{blk}.attn_gate.weight", n_v, m.n_embd)
        conv = f"{blk}.ssm_conv1d.weight"
        self.out[conv] = self.normal(conv, 2 * n_k + n_v, _CONV_KERNEL, scale=_CONV_KERNEL**-0.5)
        self.uniform(f"{blk}.ssm_dt.bias", heads, -1.0, 1.0)
        self.uniform(f"{blk}.ssm_a", heads, -1.5, -0.05)  # the state decays: exp(a * softplus(...))
        self.matrix(f"{blk}.ssm_beta.weight", heads, m.n_embd)
        self.matrix(f"{blk}.ssm_alpha.weight", heads, m.n_embd)
        self.norm(f"{blk}.ssm_norm", _STATE_SIZE)
        self.residual(f"{blk}.ssm_out.weight", n_v)

    def residual(self, name: str, n_in: int) -> None:
        """A matrix whose product is added to the residual stream."""
        values = self.normal(name, self.m.n_embd, n_in, scale=n_in**-0.5)
        if self.m.n_expert:
            values[: self.m.n_expert] *= np.float32(0.03)
        self.put(name, values)

    def ffn(self, blk: str, biased: bool) -> None:
        m = self.m
        if not biased:
            self.matrix(f"{blk}.ffn_gate.weight", m.n_ff, m.n_embd)
        self.matrix(f"{blk}.ffn_up.weight", m.n_ff, m.n_embd)
        self.residual(f"{blk}.ffn_down.weight", m.n_ff)
        if biased:
            self.uniform(f"{blk}.ffn_up.bias", m.n_ff, -0.1, 0.1)
            self.uniform(f"{blk}.ffn_down.bias", m.n_embd, -0.1, 0.1)

    def experts(self, blk: str, layer: int) -> None:
        m = self.m
        router = self.normal(f"{blk}.ffn_gate_inp.weight", m.n_expert, m.n_embd, scale=0.01 * m.n_embd**-0.5)
        # each layer reads the marks in another order, so that a token takes different experts in each
        marks = (np.arange(m.n_expert) + layer) % m.n_expert
        router[np.arange(m.n_expert), marks] = 2.0
        self.out[f"{blk}.ffn_gate_inp.weight"] = router
        norm = self.out[f"{blk}.ffn_norm.weight"]
        assert isinstance(norm, np.ndarray)
        norm[: m.n_expert] = 1 + (norm[: m.n_expert] - 1) * np.float32(0.1)
        for part in ("gate", "up"):
            name = f"{blk}.ffn_{part}_exps.weight"
            self.put(name, self.normal(name, m.n_expert, m.n_ff, m.n_embd, scale=m.n_embd**-0.5))
        name = f"{blk}.ffn_down_exps.weight"
        down = self.normal(name, m.n_expert, m.n_embd, m.n_ff, scale=m.n_ff**-0.5)
        down[:, : m.n_expert] *= np.float32(0.03)
        self.put(name, down)
