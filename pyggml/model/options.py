"""How models are loaded and run, and the checks that need no model."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arguments import whole
from .._ffi import lib
from ..device import MAX_META_DEVICES, Device, parse_devices
from ..dtype import as_dtype
from ..errors import ArgumentError, DTypeError, SplitError, UnsupportedError
from ..gguf_info import GGUFArray, GGUFInfo
from ..meta import MetaDevice
from ..split import Rule, Split, TensorInfo, decide, resolve
from .arch_rules import arch_rules, loops, with_flash_attn

__all__ = ["FLASH", "ContextOptions", "Devices", "ModelOptions", "Progress", "cache_type", "check_arch", "check_cache", "check_pooling", "check_rules", "devices_of", "legal_shares", "misfits", "shares_of"]

SPLIT_MODES = ("none", "layer", "tensor")
FLASH = {"auto": -1, "on": 1, "off": 0}
POOLING = {None: -1, "none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}

MAX_TOKENS = (1 << 31) - 1
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, of an internal header
MAX_THREADS = 512

# Their graphs end in embeddings: llama.cpp hands out logits that nobody wrote. (A test holds this against all architectures.)
ENCODERS = frozenset({
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed", "modern-bert", "neo-bert", "nomic-bert",
    "nomic-bert-moe", "t5encoder", "wavtokenizer-dec",
})  # fmt: skip

Progress = Callable[[float], object]
Devices = MetaDevice | Device | Sequence[Device] | str


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How a context is made; names and meanings are llama.cpp's."""

    n_ctx: int = 512
    """Tokens in the context, over all sequences."""
    n_batch: int = 512
    """Tokens in one call of the decoder."""
    type_k: str = "f16"
    """Format of the K cache."""
    type_v: str = "f16"
    """Format of the V cache."""
    flash_attn: str = "auto"
    """``on``, ``off``, ``auto``; tensor mode needs it."""
    threads: int | None = None
    """Threads of the CPU device; None: all cores."""
    attn_f32: bool = False
    """Keep F32 keys and values in F32 for flash attention; llama.cpp rounds them to F16, also those of an F32 cache."""
    n_seq_max: int = 1
    """Sequences, 1 to 256. They share the cache, each has a part of it (``kv_unified=False``)."""
    kv_unified: bool = False
    """One cache that the sequences fill as they need, instead of equal parts. A context for embeddings always has one."""
    embeddings: bool = False
    """For `Context.embed`."""
    pooling: str | None = None
    """``none``, ``mean``, ``cls``, ``last``, ``rank``; None: what the model says."""

    @property
    def n_stream(self) -> int:
        """How many parts the cache has."""
        return 1 if self.kv_unified or self.embeddings else self.n_seq_max

    def check(self, split_mode: str) -> None:
        """Raises ArgumentError for values that make no sense, UnsupportedError for those that a split mode cannot do."""
        whole("n_ctx", self.n_ctx, 1, MAX_TOKENS)
        whole("n_batch", self.n_batch, 1, MAX_TOKENS)
        whole("n_seq_max", self.n_seq_max, 1, MAX_SEQUENCES)
        if self.threads is not None:
            whole("threads", self.threads, 1, MAX_THREADS)
        if not isinstance(self.flash_attn, str) or self.flash_attn not in FLASH:
            raise ArgumentError(f"flash_attn={self.flash_attn!r}: one of {', '.join(FLASH)}")
        if not isinstance(self.pooling, str | None) or self.pooling not in POOLING:
            raise ArgumentError(f"pooling={self.pooling!r}: None or one of {', '.join(filter(None, POOLING))}")
        for option, name in (("type_k", self.type_k), ("type_v", self.type_v)):
            dtype = as_dtype(name)
            if not dtype.has_quantizer or dtype.needs_imatrix:
                raise DTypeError(f"{option}={name!r}: a cache cannot be written in this format; f16, f32, bf16 and q8_0 can")
        if split_mode == "tensor" and self.flash_attn == "off":
            raise UnsupportedError("split_mode='tensor' needs flash attention: flash_attn='on' or 'auto'")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is loaded and run; names and meanings are llama.cpp's."""

    split_mode: str = "none"
    """``none`` (the first device, or the CPU), ``layer`` (whole layers on each device), ``tensor`` (a meta device)."""
    tensor_split: tuple[float, ...] | None = None
    """Shares of the devices, in any unit; None: even."""
    n_ctx: int = 512
    """Tokens in the context."""
    n_batch: int = 512
    """Tokens in one call of the decoder."""
    type_k: str = "f16"
    """Format of the K cache."""
    type_v: str = "f16"
    """Format of the V cache."""
    flash_attn: str = "auto"
    """``on``, ``off``, ``auto``; tensor mode needs it."""
    threads: int | None = None
    """Threads of the CPU device; None: all cores."""
    attn_f32: bool = False
    """Keep F32 keys and values in F32 for flash attention; llama.cpp rounds them to F16, also those of an F32 cache."""

    @property
    def context(self) -> ContextOptions:
        """Those of them that are about a context."""
        return ContextOptions(self.n_ctx, self.n_batch, self.type_k, self.type_v, self.flash_attn, self.threads, self.attn_f32)

    def check(self, n_devices: int) -> None:
        """Raises ArgumentError for values that make no sense together, UnsupportedError for those nobody here can do."""
        if self.split_mode == "row":
            raise UnsupportedError(
                "split_mode='row' needs split buffers, which only the SYCL and Hexagon backends export; use 'tensor' or 'layer'"
            )
        if self.split_mode not in SPLIT_MODES:
            raise ArgumentError(f"split_mode={self.split_mode!r}: one of {', '.join(SPLIT_MODES)}")
        self.context.check(self.split_mode)
        if self.split_mode == "tensor":
            if n_devices < 1:
                raise ArgumentError("split_mode='tensor' needs at least one device that is not the CPU, such as 'vcpu:2'")
            if n_devices > MAX_META_DEVICES:
                raise ArgumentError(f"split_mode='tensor' with {n_devices} devices: at most {MAX_META_DEVICES}")
        if self.tensor_split is not None:
            shares = self.tensor_split
            if self.split_mode == "none":
                raise ArgumentError("tensor_split is for split_mode='tensor' or 'layer'; split_mode is 'none', which takes the first device alone")
            if len(shares) != n_devices:
                raise ArgumentError(f"tensor_split has {len(shares)} shares, there are {n_devices} devices")
            total = sum(shares)
            if not all(np.isfinite(s) and s >= 0 for s in shares) or not 0 < total < float("inf"):
                raise ArgumentError(f"tensor_split={list(shares)}: shares are finite, not negative, and not all zero")
            if any(0 < s < 1e-6 * total for s in shares):
                raise ArgumentError(f"tensor_split={list(shares)}: a share below a millionth is none in llama.cpp's numbers: give 0")


def cache_type(option: str, given: Any) -> str:
    """The name of a cache's format.

    Raises:
        DTypeError: there is none of that name.
    """
    try:
        return as_dtype(given).name
    except DTypeError as error:
        raise DTypeError(f"{option}: {error}") from None


def check_cache(info: GGUFInfo, options: ContextOptions) -> None:
    """Raises DTypeError for a cache format that the model's heads do not come out even in, with what would do."""
    heads, width = info.metadata.get(f"{info.arch}.attention.head_count"), info.metadata.get(f"{info.arch}.embedding_length")
    for option, name, key in (("type_k", options.type_k, "key_length"), ("type_v", options.type_v, "value_length")):
        length = info.metadata.get(f"{info.arch}.attention.{key}")
        if length is None and isinstance(heads, int) and isinstance(width, int) and heads > 0:
            length = width // heads
        block = as_dtype(name).block_size
        if isinstance(length, int) and length > 0 and length % block:
            raise DTypeError(
                f"{option}={name!r}: blocks of {block} do not divide the {length} elements of a head of {info.path.name}; "
                f"f32, f16 and bf16 do{', q8_0 too' if length % 32 == 0 else ''}"
            )
    if as_dtype(options.type_v).block_size > 1 and not with_flash_attn(info.arch):
        raise UnsupportedError(f"type_v={options.type_v!r} needs flash attention, which llama.cpp turns off for the architecture {info.arch!r}: type_v='f16', 'bf16' or 'f32'")
    if as_dtype(options.type_v).block_size > 1 and options.flash_attn == "off":
        raise UnsupportedError(f"type_v={options.type_v!r} needs flash attention: flash_attn='on' or 'auto', or type_v='f16'")


def check_pooling(info: GGUFInfo, options: ContextOptions) -> None:
    """Raises UnsupportedError for ranks without a classifier: llama.cpp would hand out the first numbers of an embedding."""
    if not options.embeddings or (options.pooling or info.metadata.get(f"{info.arch}.pooling_type")) not in ("rank", POOLING["rank"]):
        return
    others = ", ".join(repr(p) for p in POOLING if p not in (None, "rank"))
    shapes = {t.name: t.ne for t in info.tensors}
    last = next((name for name in ("cls.output.weight", "cls.weight") if name in shapes), None)
    if last is None:
        raise UnsupportedError(f"pooling='rank' needs a classifier, and {info.path.name} has none (no cls.output.weight); pooling is one of {others} here")
    labels = info.metadata.get(f"{info.arch}.classifier.output_labels")
    expected = len(labels) if isinstance(labels, GGUFArray) else 1
    if shapes[last][1] != expected:
        raise UnsupportedError(
            f"pooling='rank': the classifier of {info.path.name} ends in {last} with {shapes[last][1]} outputs, and llama.cpp reads {expected} "
            f"(classifier.output_labels); pooling is one of {others} here"
        )


def shares_of(given: Any) -> tuple[float, ...] | None:
    """``tensor_split`` as a user gave it.

    Raises:
        ArgumentError: it is no list of numbers.
    """
    try:
        return tuple(float(s) for s in given) if given is not None else None
    except (TypeError, ValueError):
        raise ArgumentError(f"tensor_split={given!r}: expected numbers, such as [3, 1]") from None


def devices_of(device: Devices | None) -> tuple[list[Device], tuple[Rule, ...]]:
    """The devices that are not the CPU, in order, and the rules of a meta device.

    Raises:
        ArgumentError: a device is named twice, or the CPU is beside others.
    """
    if device is None or device == "cpu":
        return [], ()
    given = list(device.devices) if isinstance(device, MetaDevice) else parse_devices(device)
    found = [d for d in given if d.type != "cpu"]
    if found and len(found) < len(given):
        cpu = next(d.name for d in given if d.type == "cpu")
        raise ArgumentError(f"{', '.join(d.name for d in given)}: llama.cpp cannot split a model over {cpu}; a virtual CPU device can take its place: vcpu:1")
    if isinstance(device, MetaDevice):
        return found, device.rules
    if twice := [d.name for i, d in enumerate(found) if d in found[:i]]:
        raise ArgumentError(f"the device {twice[0]} is named twice in {', '.join(d.name for d in found)}: name each device once")
    return found, ()


def check_arch(info: GGUFInfo, options: ModelOptions, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """All rules for a model: those given, then those that its architecture needs (`pyggml.model.arch_rules`).

    Raises:
        UnsupportedError: llama.cpp refuses to split the architecture, there are no rules for it here, and none were given.
    """
    if options.split_mode != "tensor":
        return tuple(rules)
    own = arch_rules(info)
    arch = str(info.arch)
    if not (own or rules or lib.pgg_llama_arch_supports_tensor_split(arch.encode())):
        raise UnsupportedError(
            f"{info.path}: llama.cpp has no tensor split for the architecture {arch!r}, and no rules for it are known here; rules of your own "
            "may make it possible; use split_mode='layer' or 'none'"
        )
    return (*rules, *own)


# llama.cpp names its caches so, some only within graphs; the file does not say which of them the architecture has
_CACHES = (
    *(f"cache_{kind}_l" for kind in ("k", "v", "r", "s", "idx_k", "ple_r")),
    *(f"dsv4_{kind}_state_{what}_l" for kind in ("csa", "lid", "hca") for what in ("kv", "score")),
    "conv_states_all-", "ssm_states_all-", "mamba_conv1d_state-", "mamba_ssm_states-",
)  # fmt: skip
_MOST_LOOPS = 4  # through the layers, of the architectures that go through them several times


def check_rules(info: GGUFInfo, options: ModelOptions, rules: Sequence[Rule], n_devices: int) -> None:
    """Rules that would have no effect are mistakes: outside of tensor mode, and those that match nothing in the file.

    Raises:
        ArgumentError: there are such rules; all of them are named, with names that are similar.
        SplitError: tensors of the file cannot be split as their rules say; all of them are named, each with the reason
            and what would be legal. (What only the graph shows is said by the plan.)
    """
    if not rules:
        return
    if options.split_mode != "tensor":
        raise ArgumentError(f"{len(rules)} rules were given, but split_mode={options.split_mode!r} splits no tensor: use split_mode='tensor'")
    layers = int(info.metadata.get(f"{info.arch}.block_count", 0))  # type: ignore[arg-type]
    if loops(info.arch):
        layers *= _MOST_LOOPS
    names = [t.name for t in info.tensors] + [f"{cache}{i}" for cache in _CACHES for i in range(layers + 1)]
    idle = [r for r in rules if not any(re.search(r.pattern, name) for name in names)]
    if idle:
        said = []
        for r in idle:
            close = difflib.get_close_matches(r.pattern, {re.sub(r"\d+", "0", name) for name in names}, 3, 0.3)
            said.append(f"{r.pattern!r}" + (f" (similar: {', '.join(close)})" if close else ""))
        raise ArgumentError(f"{info.path}: no tensor and no cache of the model has a name that these rules match: {'; '.join(said)}")
    _check_fit(info, options, rules, n_devices)


def _check_fit(info: GGUFInfo, options: ModelOptions, rules: Sequence[Rule], n_devices: int) -> None:
    wrong = misfits(info, options, rules, n_devices)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        lines = "".join(f"\n  {error}" for error in wrong)
        first = wrong[0]
        raise SplitError(f"{len(wrong)} tensors of {info.path} cannot be split as the rules say:{lines}", node=first.node, op=first.op, repair=first.repair)


def misfits(info: GGUFInfo, options: ModelOptions, rules: Sequence[Rule], n_devices: int) -> list[SplitError]:
    """What is wrong with rules for tensors of the file, one error for each tensor."""
    wrong: list[SplitError] = []
    for t in info.tensors:
        a, b, c, d = (*t.ne, 1, 1, 1, 1)[:4]
        try:
            decide(rules, TensorInfo(t.name, (a, b, c, d), t.dtype.name, t.dtype.block_size), n_devices, options.tensor_split)
        except SplitError as error:
            wrong.append(error)
    return wrong


def legal_shares(info: GGUFInfo, name: str, length: int, axis: int, dtype: str, asked: Rule, n_devices: int) -> str:
    """In which steps a tensor can be split along an axis, in words: heads, blocks of its format, divisors."""
    block = as_dtype(dtype).block_size if axis == 0 else 1
    heads = info.metadata.get(f"{info.arch}.attention.head_count_kv", info.metadata.get(f"{info.arch}.attention.head_count"))
    by_heads = re.search((r"attn_output\.weight|attn_[qkv]\.bias|^cache_[kv]_l", r"attn_(q|k|v|gate)\.weight")[axis], name) if axis < 2 else None
    n_heads = heads if by_heads and isinstance(heads, int) and heads > 1 and length % heads == 0 else 1
    step = math.lcm(block, length // n_heads) if n_heads > 1 else block
    why = [f"blocks of {block}, {dtype}"] * (block > 1) + [f"{n_heads} KV heads of {length // n_heads}"] * (n_heads > 1)
    told = f" ({'; '.join(why)})" if why else ""
    if length % step or length // step < n_devices:
        return f"S{axis} of {length} in steps of {step}{told} cannot be shared by {n_devices} devices: another axis, or M"
    even = resolve(Split(axis), TensorInfo(name, (length,) * 4, dtype, block), n_devices, step)
    said = f"S{axis} in steps of {step}{told}, such as S{axis} {even.segments[0]}"
    for option, value in (("granularity", asked.granularity), ("units", asked.units)):
        if value is not None and length % value:
            fits = n_heads if option == "units" and n_heads > 1 else max(k for k in range(1, min(value, length) + 1) if length % k == 0)
            said += f"; {option} divides {length}, such as {option}={fits}"
    return said
