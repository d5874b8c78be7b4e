"""Rules for architectures that llama.cpp refuses to split, or splits in a way that cannot work.

llama.cpp names the architectures that its tensor mode takes. Of the others many compute the right thing with the rules
here: each entry was found and is kept right by running it (tests/integration/test_arch_rules.py; the table is in
docs/architectures.md). They decide about every tensor, since llama.cpp's own policy may stumble over such a model; entries
that are ``beside`` stand in front of it, and so do those for layers with one KV head, whatever the architecture: llama.cpp
puts all of their attention on one device, here every device has heads of its own, and the one that they share.

Attention is split in one of four ways: by heads, that of gated delta nets, too; where heads share one KV head, by query heads;
as MLA, where every head reads one latent cache, so that the heads are split and the cache is whole (Megatron's way with
DeepSeek's models); or not at all, where something needs all heads at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..gguf_info import GGUFArray, GGUFInfo, GGUFTensor
from ..split import Rule, TensorInfo, rule

__all__ = ["ARCH_RULES", "ArchRules", "arch_rules", "loops", "with_flash_attn"]


@dataclass(frozen=True, slots=True)
class ArchRules:
    """How an architecture is split."""

    attention: str = "whole"
    """``heads``, ``mla``, ``linear`` (its layers of linear attention only), ``cross`` (what looks at the encoder only), ``whole``."""
    ffn: bool = True
    """Whether the FFN, dense and experts, is split along its columns."""
    ffn_from: int = 0
    """That of the layers before this one is whole."""
    output: bool = True
    """Whether the output matrix is split by rows of the vocabulary."""
    extra: tuple[tuple[str, str], ...] = ()
    """Further rules, in front of all others."""
    why: str = ""
    """What cannot be split, and why."""
    fused_qkv: bool = False
    """Its ``attn_qkv`` is Q, K and V behind each other, by heads."""
    tiled: bool = False
    """Its layers of linear attention go over all K heads several times, one V head for each."""
    loops: bool = False
    """It goes through its layers several times, with a cache of its own each time."""
    flash_attn: bool = True
    """Whether llama.cpp lets it have flash attention."""
    beside: bool = False
    """In front of llama.cpp's own rules, which it has for this architecture; only `extra` and `attention` count then."""


_SCAN = "ggml takes the scans of its recurrent layers (SSM_SCAN) whole only"
_WKV = "ggml takes its recurrence (RWKV_WKV6, RWKV_WKV7, GATED_LINEAR_ATTN) whole only"
_NORM = "a norm over all heads at once needs them on one device"
_ALIBI = "ALiBi's slopes are taken from a head's number on its device"

ARCH_RULES: dict[str, ArchRules] = {
    # dense and mixtures whose attention is normalised over all heads
    "olmo2": ArchRules(why=_NORM),
    "olmoe": ArchRules(why=_NORM),
    "minimax-m2": ArchRules(why=_NORM),
    "mpt": ArchRules(why=_ALIBI),
    "bitnet": ArchRules(ffn=False, why="norms behind attention and within the FFN need whole rows"),
    "gemma3n": ArchRules("heads", ffn_from=10, why="the sparse FFN of its first ten layers needs mean and deviation of whole rows"),
    "qwen3tts": ArchRules("heads"),
    # hybrids
    "plamo2": ArchRules("heads", why=_SCAN, fused_qkv=True),
    "jamba": ArchRules("heads", why=_SCAN),
    "falcon-h1": ArchRules("heads", why=_SCAN),
    "granitehybrid": ArchRules("heads", why=_SCAN),
    "nemotron_h": ArchRules("heads", why=_SCAN),
    "nemotron_h_moe": ArchRules("heads", why=_SCAN),
    "minimax-01": ArchRules("heads", why="the decays of its linear attention are inputs, whole for all heads"),
    "mamba": ArchRules(why=_SCAN),
    "mamba2": ArchRules(why=_SCAN),
    # multi-head latent attention
    "deepseek2": ArchRules("mla"),
    "deepseek32": ArchRules("mla", why="the indexer sees all heads"),
    "glm-dsa": ArchRules("mla", why="the indexer sees all heads"),
    "dots3note": ArchRules("mla", why="the indexer sees all heads"),
    "hy_v4": ArchRules("mla", why="the indexer sees all heads"),
    "mistral4": ArchRules("mla"),
    "kimi-linear": ArchRules("mla"),
    "bailingmoe3": ArchRules("mla"),
    "minicpm3": ArchRules(why="the rotated part of K is one for all heads, and joined with every head's own"),
    "kimi-k3": ArchRules("mla"),
    "glm5-next": ArchRules("mla", why="the indexer sees all heads"),
    "qwen4exp": ArchRules("heads", tiled=True),
    "minimax-m3": ArchRules(why=_NORM),
    **{
        name: ArchRules("cross", why="its biases keep flash attention off, and ggml splits no SOFT_MAX with a mask")
        for name in ("t5", "t5encoder")
    },
    "rwkv6": ArchRules(why=_WKV),
    "rwkv7": ArchRules(why=_WKV),
    "rwkv6qwen2": ArchRules(why=_WKV),
    "arwkv7": ArchRules(why=_WKV),
    "grok": ArchRules(why="llama.cpp turns flash attention off for it, and ggml splits no SOFT_MAX with a mask", flash_attn=False),
    "hrm_text": ArchRules("heads", loops=True),
    "wavtokenizer-dec": ArchRules(why="only the layers behind its convolutions have columns"),
    # llama.cpp takes these, and its own rules do not work
    **{name: ArchRules(extra=(("attn_|cache_", "M"),), why=_ALIBI, beside=True) for name in ("bloom", "jais", "refact", "jina-bert-v2")},
    "chameleon": ArchRules("heads", extra=(("^output", "M"),), why="image tokens are masked in whole rows of logits", beside=True),
    # llama.cpp's rules work only where heads come out even: it rounds one norm for every head otherwise than the heads ...
    "stablelm": ArchRules("heads", beside=True),
    "talkie": ArchRules("heads", beside=True),
    # ... and V heads otherwise than the K heads that they belong to
    "qwen3next": ArchRules("linear", beside=True),
    "nanbeige": ArchRules("heads", loops=True),
    "graniteswitch": ArchRules("heads", fused_qkv=True, why="its router's cache belongs to no head"),
}


def with_flash_attn(arch: str | None) -> bool:
    """Whether llama.cpp computes the architecture with flash attention where it is asked to."""
    known = ARCH_RULES.get(str(arch))
    return known is None or known.flash_attn


def loops(arch: str | None) -> bool:
    """Whether the architecture goes through its layers several times, with caches of its own each time."""
    known = ARCH_RULES.get(str(arch))
    return known is not None and known.loops


def arch_rules(info: GGUFInfo) -> tuple[Rule, ...]:
    """The rules for a model's architecture; none where llama.cpp's own do."""
    known = ARCH_RULES.get(str(info.arch)) or ArchRules("", beside=True)  # for layers with one KV head
    return tuple(_Builder(info, known).rules())


class _Builder:
    def __init__(self, info: GGUFInfo, known: ArchRules) -> None:
        self.info, self.known = info, known
        self.tensors = {t.name: t for t in info.tensors}
        self.n_layer = self.number("block_count")
        self.caches: Rule | None = None

    def rules(self) -> Iterator[Rule]:
        """All rules, the most special ones first."""
        for pattern, split in self.known.extra:
            yield rule(pattern, split)
        of_layer = {"heads": self.heads, "mla": self.latent, "linear": self.linear, "cross": self.cross}.get(self.known.attention)
        if not self.known.beside:
            yield rule("indexer", "M")
        for i in range(self.n_layer):
            if of_layer is not None:
                yield from of_layer(i)
            if f"blk.{i}.ssm_conv1d_q.weight" in self.tensors:
                yield from self.delta(i)
            if self.known.tiled:
                yield from self.linear(i)
            if self.known.beside and self.known.attention != "whole":
                yield from self.one_kv_head(i)
        if self.known.beside:
            return
        if self.caches is not None and self.known.loops:
            yield self.caches
        if self.known.ffn:
            if self.known.ffn_from:
                yield rule(r"\.ffn_", "M", layers=range(self.known.ffn_from))
            yield from self.ffn()
        if self.known.output:
            yield rule(r"^output\.(weight|scale)$", "S1")
            yield rule(r"^output\.bias$", "S0")
        yield rule("", "M")

    # values of the file

    def number(self, key: str, layer: int | None = None, default: int = 0) -> int:
        value = self.info.metadata.get(f"{self.info.arch}.{key}", default)
        if isinstance(value, GGUFArray):
            numbers = np.asarray(value.load())
            return int(numbers[layer]) if layer is not None and layer < len(numbers) else default
        return int(value) if isinstance(value, (int, float)) else default

    def block(self, pattern: str) -> int:
        """Elements that quantized formats keep together, over the tensors of a name."""
        return math.lcm(1, *(t.dtype.block_size for name, t in self.tensors.items() if re.search(pattern, name)))

    # what is split

    def ffn(self) -> Iterator[Rule]:
        """Columns of the FFN: outputs of up and gate, inputs of down, of dense layers, experts and shared experts."""
        kinds = r"(_exps|_shexp|_chexps)?"
        ffn = r"(^|\.)ffn"
        unit = math.lcm(self.block(rf"{ffn}_down{kinds}\.weight$"), 32)
        lengths = [t.ne[0] for name, t in self.tensors.items() if re.search(rf"{ffn}_down{kinds}\.weight$", name)]
        while unit > 1 and any(n % unit for n in lengths):
            unit //= 2  # odd sizes
        fused = tuple(n for n, t in self.tensors.items() if n.endswith("ffn_up.weight") and self.is_fused(n, rows(t)))
        if fused:
            yield Rule("^(" + "|".join(map(re.escape, fused)) + ")$", _halves, unit)
        yield rule(rf"{ffn}_(up|gate){kinds}\.weight$", "S1", granularity=unit)
        yield rule(rf"{ffn}_(up|gate){kinds}\.bias$", "S0", granularity=unit)
        yield Rule(rf"{ffn}_gate_up{kinds}\.weight$", _halves, unit)
        yield rule(rf"{ffn}_down{kinds}\.weight$", "S0", granularity=unit)
        yield rule(rf"{ffn}_(up|gate)\.lora_b$", "S1", granularity=unit)
        yield rule(rf"{ffn}_down\.lora_a$", "S0", granularity=unit)
        block = self.block(r"channel_mix_value\.weight$")  # RWKV's
        yield rule(r"channel_mix_key\.weight$", "S1", granularity=block)
        yield rule(r"channel_mix_value\.weight$", "S0", granularity=block)
        block = self.block(r"^convnext\.\d+\.pw2\.weight$")
        yield rule(r"^convnext\.\d+\.pw1\.weight$", "S1", granularity=block)
        yield rule(r"^convnext\.\d+\.pw1\.bias$", "S0", granularity=block)
        yield rule(r"^convnext\.\d+\.pw2\.weight$", "S0", granularity=block)

    def is_fused(self, up: str, length: int) -> bool:
        """Whether the matrix "up" holds the gate, too."""
        down = self.tensors.get(up.replace("ffn_up", "ffn_down"))
        return down is not None and length == 2 * down.ne[0]

    def heads(self, i: int) -> Iterator[Rule]:
        """Whole groups of query heads with their KV head, and their cache."""
        o, name = self.tensors.get(f"blk.{i}.attn_output.weight"), rf"^blk\.{i}\.attn"
        n_head = self.number("attention.head_count", i)
        n_kv = self.number("attention.head_count_kv", i, n_head)
        fused = self.tensors.get(f"blk.{i}.attn_qkv.weight")
        if o is None or n_kv < 2 or n_head % n_kv or (fused is not None and not self.known.fused_qkv):
            return
        of = {"units": n_kv, "granularity": self.heads_at_once(o.ne[0] // n_kv, o.dtype.block_size)}
        if fused is not None:
            length = rows(fused) // (n_head + 2 * n_kv)
            parts = f"[{n_head * length},{n_kv * length}x2]"
            yield rule(rf"{name}_qkv\.weight$", f"S1{parts}", **of)
            yield rule(rf"{name}_qkv\.bias$", f"S0{parts}", **of)
        yield rule(rf"{name}_([qkv]|gate)\.weight$", "S1", **of)
        yield rule(rf"{name}_([qkv]|gate)\.bias$", "S0", **of)
        if any(len(t.ne) > 1 and t.ne[1] > 1 for n, t in self.tensors.items() if re.search(rf"{name}_[qk]_norm\.weight$", n)):
            yield rule(rf"{name}_[qk]_norm\.(weight|bias)$", "S1", **of)  # one for every head
        yield rule(rf"{name}_sinks", "S0", **of)
        yield rule(rf"{name}_output\.weight$", "S0", **of)
        yield rule(rf"{name}_[qkv]\.lora_b$", "S1", **of)  # graniteswitch has adapters in its file
        yield rule(rf"{name}_output\.lora_a$", "S0", **of)
        yield rule(rf"^cache_[kv]_l{i}$", "S0", **of)
        self.caches = rule(r"^cache_[kv]_l\d+$", "S0", **of)

    def cross(self, i: int) -> Iterator[Rule]:
        """Heads of a decoder's attention to what its encoder has read."""
        o, n_head = self.tensors.get(f"dec.blk.{i}.cross_attn_o.weight"), self.number("attention.head_count", i)
        if o is None or n_head < 2 or o.ne[0] % n_head:
            return
        of = {"units": n_head, "granularity": self.heads_at_once(o.ne[0] // n_head, o.dtype.block_size)}
        yield rule(rf"^dec\.blk\.{i}\.cross_attn_[qkv]\.weight$", "S1", **of)
        yield rule(rf"^dec\.blk\.{i}\.cross_attn_o\.weight$", "S0", **of)

    def one_kv_head(self, i: int) -> Iterator[Rule]:
        """Query heads are split, the KV head that they share is whole; where one matrix holds all three, all is whole."""
        o, q, name = self.tensors.get(f"blk.{i}.attn_output.weight"), self.tensors.get(f"blk.{i}.attn_q.weight"), rf"^blk\.{i}\.attn"
        n_head = self.number("attention.head_count", i)
        if o is None or self.number("attention.head_count_kv", i, n_head) != 1:
            return
        if n_head > 1 and q is not None and rows(q) % n_head == 0 and o.ne[0] % n_head == 0:
            of = {"units": n_head, "granularity": self.heads_at_once(o.ne[0] // n_head, o.dtype.block_size)}
            yield rule(rf"{name}_q\.weight$", "S1", **of)
            yield rule(rf"{name}_q\.bias$", "S0", **of)
            norm = self.tensors.get(f"blk.{i}.attn_q_norm.weight")
            if norm is not None and len(norm.ne) > 1 and norm.ne[1] == n_head:
                yield rule(rf"{name}_q_norm\.(weight|bias)$", "S1", **of)
            gate = self.tensors.get(f"blk.{i}.attn_gate.weight")
            if gate is not None and rows(gate) % n_head == 0:
                yield rule(rf"{name}_gate\.weight$", "S1", **of)
            yield rule(rf"{name}_sinks", "S0", **of)
            yield rule(rf"{name}_output\.weight$", "S0", **of)
        yield rule(rf"{name}_", "M")
        yield rule(rf"^cache_[kv]_l{i}$", "M")

    def linear(self, i: int) -> Iterator[Rule]:
        """Gated delta nets: whole K heads, with what belongs to them. Their V heads stand beside them, or one of each in rounds."""
        out, conv = self.tensors.get(f"blk.{i}.ssm_out.weight"), self.tensors.get(f"blk.{i}.ssm_conv1d.weight")
        n, width, inner = self.number("ssm.group_count"), self.number("ssm.state_size"), self.number("ssm.inner_size")
        if out is None or conv is None or n < 1 or inner % n or rows(conv) != 2 * n * width + inner:
            return
        if n == 1:  # it cannot be on one device alone: ggml takes its only axis for another one then
            yield rule(rf"^blk\.{i}\.(attn_qkv|attn_gate|ssm_)", "M")
            yield rule(rf"^cache_[rs]_l{i}$", "M")
            return
        name, kept, rounds, heads = rf"^blk\.{i}\.", conv.ne[0] - 1, 1, self.number("ssm.time_step_rank")
        if heads < 1 or heads % n or inner % heads:
            return
        if self.known.tiled:
            rounds = heads // n
        of = {"units": n, "granularity": self.heads_at_once(inner // rounds // n, out.dtype.block_size)}

        def over(length: int, *before: str) -> str:
            return f"[{','.join([*before, f'{length // rounds}x{rounds}'])}]"

        yield rule(rf"{name}(attn_qkv|ssm_conv1d)\.weight$", "S1" + over(inner, f"{n * width}x2"), **of)
        yield rule(rf"{name}attn_gate\.weight$", "S1" + over(inner), **of)
        yield rule(rf"{name}ssm_ba\.weight$", "S1", **of)
        yield rule(rf"{name}(ssm_beta|ssm_alpha)\.weight$", "S1" + over(heads), **of)
        yield rule(rf"{name}ssm_out\.weight$", "S0" + over(inner), **of)
        yield rule(rf"{name}(ssm_dt\.bias|ssm_a)$", "S0" + over(heads), **of)
        yield rule(rf"^cache_r_l{i}$", "S0" + over(inner * kept, f"{n * width * kept}x2"), **of)
        yield rule(rf"^cache_s_l{i}$", "S0" + over(inner * inner // heads), **of)

    def delta(self, i: int) -> Iterator[Rule]:
        """Kimi's delta attention: a head of Q, K and V each, with its convolutions, gates and states."""
        out, conv, a = (self.tensors.get(f"blk.{i}.{n}") for n in ("attn_output.weight", "ssm_conv1d_q.weight", "ssm_a"))
        n_head = self.number("attention.head_count", i)
        if out is None or conv is None or a is None or n_head < 2 or out.ne[0] % n_head or conv.ne[-1] != out.ne[0]:
            return
        name, inner, kept = rf"^blk\.{i}\.", out.ne[0], conv.ne[0] - 1
        of = {"units": n_head, "granularity": self.heads_at_once(inner // n_head, out.dtype.block_size)}
        # of a gate in two matrices the first is of low rank, and whole
        gates = [next((p for p in parts if f"blk.{i}.ssm_{p}.weight" in self.tensors), "") for parts in (("f_b", "f_a"), ("g", "g_b", "g_a"))]
        yield rule(rf"{name}attn_[qkv]\.weight$", "S1", **of)
        yield rule(rf"{name}attn_qkv\.weight$", f"S1[{inner}x3]", **of)
        yield rule(rf"{name}ssm_conv1d_[qkv]\.weight$", "S2", **of)
        yield rule(rf"{name}ssm_({'|'.join(gates)}|beta)\.weight$", "S1", **of)
        yield rule(rf"{name}ssm_dt\.bias$", "S0", **of)
        yield rule(rf"{name}ssm_a$", "S1" if len(a.ne) > 1 else "S0", **of)
        yield rule(rf"{name}attn_output\.weight$", "S0", **of)
        # llama.cpp renames the cache of convolutions when it builds graphs
        yield rule(rf"^(cache_r_l|conv_states_all-){i}$", f"S0[{inner * kept}x3]", **of)
        yield rule(rf"^cache_s_l{i}$", "S0", **of)

    def latent(self, i: int) -> Iterator[Rule]:
        """All heads read one latent cache: heads are split, the cache and what makes it are whole."""
        o = self.tensors.get(f"blk.{i}.attn_output.weight")
        n_head = self.number("attention.head_count", i)
        if o is None or f"blk.{i}.attn_kv_a_mqa.weight" not in self.tensors or f"blk.{i}.attn_k_b.weight" not in self.tensors or n_head < 2:
            return
        of = {"units": n_head, "granularity": self.heads_at_once(o.ne[0] // n_head, o.dtype.block_size)}
        yield rule(rf"^blk\.{i}\.attn_q(_b)?\.weight$", "S1", **of)
        yield rule(rf"^blk\.{i}\.attn_[kv]_b\.weight$", "S2", **of)
        yield rule(rf"^blk\.{i}\.attn_gate\.weight$", "S1", **of)
        yield rule(rf"^blk\.{i}\.attn_sinks", "S0", **of)
        yield rule(rf"^blk\.{i}\.attn_output\.weight$", "S0", **of)

    def heads_at_once(self, width: int, block: int) -> int:
        """How many heads fill whole blocks of a quantized output projection."""
        width = max(width, 1)  # a damaged file's; llama.cpp refuses it by name
        return math.lcm(width, block) // width


def rows(tensor: GGUFTensor) -> int:
    """Rows of a matrix; 1 of a vector, which a damaged file may have in its place."""
    return tensor.ne[1] if len(tensor.ne) > 1 else 1


def _halves(tensor: TensorInfo) -> str:
    return f"S1[{tensor.ne[1] // 2}x2]"


