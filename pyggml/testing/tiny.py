"""Small models with random weights that llama.cpp loads, and that really split.

llama.cpp's tensor split mode rounds each device's share down: to 128 columns of the FFN, to whole groups of
attention heads, to whole blocks of a quantized format. On most tiny models one device then gets everything, and a test
of such a split tests nothing. The shapes here are chosen the other way round: from the splits that a test is going
to ask for (`shares`) to the smallest model in which every device gets exactly what was asked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..dtype import DType, DTypeLike, as_dtype
from ..errors import ArgumentError, ShapeError, UnsupportedError
from .gguf_writer import write_gguf
from .vocabulary import byte_vocabulary
from .zoo import ZOO, Architecture
from .zoo.keys import SSM_STATE, Shape
from .zoo.probe import Ne, tensors_of
from .zoo.weights import weights

__all__ = ["ARCHITECTURES", "DEFAULT_SHARES", "TinyModel", "tiny_gguf"]

ARCHITECTURES = tuple(name for name, arch in ZOO.items() if arch.runs)
"""What `tiny_gguf` makes models of. (`ZOO` has those too that cannot run alone, and why.)"""

DEFAULT_SHARES: tuple[tuple[int, ...], ...] = ((1, 1), (1, 1, 1), (3, 1))
"""Two and three equal devices, and three quarters on the first of two."""

# llama.cpp rounds FFN columns and heads of linear attention to this many (src/llama-model.cpp)
_COLUMNS = 128


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
    """K heads of linear attention (qwen35 and its kin; 0 otherwise); there are twice as many V heads."""
    dtype: DType
    n_bytes: int

    def __fspath__(self) -> str:
        return str(self.path)


def tiny_gguf(
    path: str | os.PathLike[str],
    arch: str = "llama",
    *,
    moe: bool | None = None,
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
    fused_experts: bool = False,
    vocab: str = "none",
) -> TinyModel:
    """Writes a small GGUF model with random weights and returns its shape.

    ``arch`` is one of `ARCHITECTURES`, such as ``"llama"``, ``"qwen35"`` (layers of linear attention and of full attention
    in turns), ``"bloom"`` (ALiBi, LayerNorm, biases and a fused QKV matrix), ``"gpt-oss"``. With ``moe=True`` it is a
    mixture of ``n_expert`` experts, with ``moe=False`` it has none; None: whatever the architecture has, rather none.

    ``shares`` lists the splits that must come out exactly, as integer shares of the devices: ``((1, 1), (3, 1))``
    means that llama.cpp can give each of two devices half of all heads, FFN columns and vocabulary rows, and also
    three quarters to the first. Fewer or simpler splits make a smaller model. Numbers given explicitly (``n_head``,
    ``n_ff``, …) win, and then exact shares are the caller's business.

    Matrices are in ``dtype`` (any format with a quantizer); norms, biases and routers are F32, as in real files.
    The same arguments give the same bytes. Weights have the scale of a trained model (``1/sqrt(fan-in)``), norms are near
    1 but not 1, so that a tensor in the wrong place shows. The experts that a token takes are written into its embedding
    with a wide margin: rounding does not change the choice.

    ``fused_experts``: gate and up projection of the experts in one matrix, for architectures where llama.cpp takes that
    too (most files have two).

    vocab: ``none``: there is no text, only ``n_vocab`` token ids; ``bytes``: a SentencePiece vocabulary in which every byte
    is a token, so that any text can be tokenized.

    Raises:
        ArgumentError: there is no such vocabulary. UnsupportedError: there is no such model, or it cannot run alone; `ZOO` says why.
        ShapeError: the numbers do not go together. ModelError: llama.cpp refuses them.
    """
    known = _architecture(arch, moe)
    to = as_dtype(dtype)
    given = {
        "n_layer": n_layer, "n_head": n_head, "n_head_kv": n_head_kv, "head_dim": head_dim, "n_embd": n_embd,
        "n_ff": n_ff, "n_vocab": n_vocab,
    }  # fmt: skip
    with_experts = moe if moe is not None else known.moe == "only"
    shape = _shape(known, with_experts, to, shares, given, (n_expert, n_expert_used))
    metadata = {**known.metadata(shape)}
    metadata["general.name"] = f"pyggml tiny {arch}{' moe' if with_experts and known.moe == 'both' else ''}"
    if vocab not in ("none", "bytes"):
        raise ArgumentError(f"vocab={vocab!r}: 'none' or 'bytes'")
    if vocab == "bytes":
        metadata.update(byte_vocabulary(shape.n_vocab))
    asked = known.known(shape)
    tensors = {name: ne for name, ne in {**asked, **tensors_of(metadata, asked.items())}.items() if known.has(name)}
    tensors = _as_in_files(tensors, known.fused == "qkv", fused_experts or known.fused == "experts")
    written = write_gguf(path, metadata, weights(known, shape, tensors, to, seed))
    return TinyModel(
        written, arch, shape.n_layer, shape.n_embd, shape.n_head, shape.n_head_kv, shape.head_dim, shape.n_ff, shape.n_vocab,
        shape.n_expert, shape.n_expert_used, shape.n_group, to, written.stat().st_size,
    )  # fmt: skip


def _as_in_files(tensors: Mapping[str, Ne], fused_qkv: bool, fused_experts: bool) -> dict[str, Ne]:
    """Asked without a file, llama.cpp names separate Q, K and V, but one matrix for gate and up of the experts."""
    out: dict[str, Ne] = {}
    for name, ne in tensors.items():
        if "ffn_gate_up_exps" in name and not fused_experts:
            for part in ("gate", "up"):
                out[name.replace("gate_up", part)] = (ne[0], ne[1] // 2, *ne[2:])
        elif fused_qkv and ".attn_q." in name:
            others = (tensors[name.replace(".attn_q.", f".attn_{part}.")][-1] for part in ("k", "v"))
            out[name.replace(".attn_q.", ".attn_qkv.")] = (*ne[:-1], ne[-1] + sum(others))
        elif not fused_qkv or (".attn_k." not in name and ".attn_v." not in name):
            out[name] = ne
    return out


def _architecture(name: str, moe: bool | None) -> Architecture:
    arch = ZOO.get(name)
    if arch is None:
        raise UnsupportedError(f"no tiny model of architecture {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    if arch.reason:
        raise UnsupportedError(f"no tiny model of architecture {name!r}: {arch.reason}")
    if moe is not None and moe not in arch.variants:
        have = "only mixtures of experts" if arch.moe == "only" else "no mixture of experts"
        others = ", ".join(a.name for a in ZOO.values() if a.runs and moe in a.variants)
        raise UnsupportedError(f"architecture {name!r} has {have} (moe={moe}); expected one of {others}")
    return arch


def _shape(
    arch: Architecture, moe: bool, to: DType, shares: Sequence[Sequence[int]], given: dict[str, int | None], experts: tuple[int, int]
) -> Shape:
    """The smallest model in which all shares come out; numbers given win, then those of the architecture."""
    unit, n_devices = _unit(shares)
    linear = "full_attention_interval" in arch.keys and "ssm.state_size" in arch.keys
    fixed = {**arch.sizes, **{key: value for key, value in given.items() if value is not None}}
    for name, number in fixed.items():
        if number < 1:
            raise ShapeError(f"{name}={number}: expected at least 1")
    size = fixed.get

    head_dim = size("head_dim")
    if head_dim is None:
        small = (8 if moe else 16) if arch.square else 32
        head_dim = 128 if to.block_size > 128 else max(small, to.block_size)
    n_head, n_head_kv = size("n_head"), size("n_head_kv")
    if n_head_kv is None:
        n_head_kv = unit * _heads_per_step(arch.gqa * head_dim, to.block_size, n_devices)
        if n_head is not None and n_head % n_head_kv:
            n_head_kv = n_head
    if n_head is None:
        n_head = arch.gqa * n_head_kv if n_head_kv > 1 or arch.gqa == 1 else 2 * unit
    n_embd = size("n_embd")
    if n_embd is None:
        n_embd = n_head * head_dim if arch.square else math.lcm(64 if moe or linear else 128, to.block_size)
    n_expert, n_used = experts if moe else (0, 0)
    shape = Shape(
        arch.name, moe, size("n_layer") or arch.n_layer, n_embd, n_head, n_head_kv, head_dim,
        size("n_ff") or unit * math.lcm(_COLUMNS, to.block_size),
        size("n_vocab") or unit * max(1, math.ceil(384 / unit)),
        n_expert, n_used, unit, to.block_size,
        unit * math.lcm(_COLUMNS, to.block_size, SSM_STATE) // SSM_STATE if linear else 0,
    )  # fmt: skip

    if shape.n_layer < arch.least:
        raise ShapeError(f"n_layer={shape.n_layer}: expected at least {arch.least} for {arch.name}, whose layers differ")
    if n_head % n_head_kv:
        raise ShapeError(f"n_head={n_head} is not a multiple of n_head_kv={n_head_kv}")
    if arch.square and n_embd != n_head * head_dim:
        raise ShapeError(
            f"{arch.name} with n_embd={n_embd}, n_head={n_head}, head_dim={head_dim}: expected n_embd = n_head * head_dim"
        )
    if arch.gqa == 1 and n_head != n_head_kv:
        raise ShapeError(f"{arch.name} with n_head={n_head}, n_head_kv={n_head_kv}: expected as many, it has a KV head for each head")
    if head_dim % 2:
        raise ShapeError(f"head_dim={head_dim}: expected an even number (rotary embeddings work on pairs)")
    if linear and head_dim % 8:
        raise ShapeError(f"head_dim={head_dim}: expected a multiple of 8 for {arch.name}")
    if moe and not (1 <= n_used < n_expert <= n_embd):
        raise ShapeError(f"n_expert={n_expert}, n_expert_used={n_used}: expected 1 <= n_expert_used < n_expert <= n_embd ({n_embd})")
    return shape


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
