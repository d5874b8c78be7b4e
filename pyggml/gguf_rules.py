"""What llama.cpp assumes of a model's metadata without checking it, or checks with an assertion.

Only what would end the process, or fail far from its cause, is here: everything else libllama refuses itself, with
a reason. Each rule says which line of thought in llama.cpp it stands for.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from .errors import FileFormatError
from .gguf_info import GGUFArray, GGUFInfo

__all__ = ["check_model"]

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
# metadata that llama.cpp divides by
_DIVISORS = (
    "full_attention_interval", "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank",
    "ssm.group_count", "attention.group_norm_groups", "wkv.head_size", "attention.output_group_count",
)  # fmt: skip
# steps of which a graph is made for each layer: a wrong number is a graph that never ends
_STEPS = ("hyper_connection.sinkhorn_iterations",)
_MAX_STEPS = 1000
# architectures whose layers have a sliding window, with a cache that is not made where the window is 0
_WINDOWED = ("afmoe",)
# operands of kernels that only know F32 and abort on a worker thread otherwise
_F32_NAMES = re.compile(r"(_norm\.(weight|bias)|\.ssm_(conv1d(_[qkv])?\.weight|a|d|dt\.bias))$")
# lookup tables; every other tensor is multiplied
_INTEGER_NAMES = re.compile(r"(tid2eid|d2t|t2d)(\.weight)?$")


def check_model(info: GGUFInfo) -> None:
    """Raises `FileFormatError` for metadata that libllama would crash on."""
    _Rules(info).check()


# (architectures, tensors of a layer of which one is there, tensors that take the place of others, tensors that are used then)
_SIBLINGS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (("phi3", "pockettts"), ("attn_output.weight",), ("attn_qkv.weight",), ("attn_q.weight", "attn_k.weight", "attn_v.weight")),
    (("qwen3next",), ("ssm_conv1d.weight",), (), ("attn_gate.weight",)),
    (("falcon-h1", "granitehybrid", "nemotron_h", "nemotron_h_moe"), ("ssm_conv1d.weight",), (), ("ssm_conv1d.bias",)),
    (("kimi-k3",), ("ffn_gate_shexp.weight",), (), ("ffn_up_shexp.weight", "ffn_down_shexp.weight")),
    (
        ("glm-dsa",),
        tuple(f"indexer.{name}.weight" for name in ("proj", "attn_k", "attn_q_b")),
        (),
        tuple(f"indexer.{name}.weight" for name in ("proj", "attn_k", "attn_q_b")),
    ),
)


class _Rules:
    def __init__(self, info: GGUFInfo) -> None:
        self.info = info
        self.path = info.paths[0]
        self.arch = ""

    def fail(self, what: str, found: object, expected: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {what}: found {found}, expected {expected}")

    def check(self) -> None:
        arch = self.info.metadata.get("general.architecture")
        if not isinstance(arch, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", arch):
            found = "nothing" if arch is None else repr(arch)[:80]
            raise self.fail("general.architecture", found, "the name of a model architecture, such as 'llama'")
        self.arch = arch
        self.formats()
        self.vocabulary()
        if arch == "clip":
            return  # a projector: libllama says so
        n_layer = self.layers()
        self.experts(n_layer)
        self.heads(n_layer)
        self.numbers()
        self.linear_attention()
        self.rwkv()
        self.indexers(n_layer)
        self.siblings(n_layer)

    # values

    def number(self, key: str, default: int | None = None) -> int | None:
        """A uint32 of the architecture; llama.cpp takes no other integer type."""
        key = f"{self.arch}.{key}"
        value = self.info.metadata.get(key)
        if value is None:
            return default
        if self.info.types[key] != "uint32" or not isinstance(value, int):
            raise self.fail(key, f"{value!r} ({self.info.types[key]})", "a uint32")
        return value

    def per_layer(self, key: str, n_layer: int) -> list[int] | None:
        """A uint32, or an array with one for each layer."""
        value = self.info.metadata.get(f"{self.arch}.{key}")
        if not isinstance(value, GGUFArray):
            single = self.number(key)
            return None if single is None else [single] * n_layer
        if value.length != n_layer or value.type not in ("uint32", "int32", "bool"):
            raise self.fail(f"{self.arch}.{key}", f"{value.length} x {value.type}", f"{n_layer} x uint32, one per layer")
        numbers = [int(n) for n in self.values(value)]
        if min(numbers) < 0:
            raise self.fail(f"{self.arch}.{key}", min(numbers), "no negative number")
        return numbers

    @staticmethod
    def values(array: GGUFArray) -> Any:
        return np.asarray(array.load())

    # rules

    def layers(self) -> int:
        n_layer = self.number("block_count")
        if n_layer is None or not 1 <= n_layer <= _MAX_LAYERS:
            raise self.fail(f"{self.arch}.block_count", n_layer, f"1 to {_MAX_LAYERS}")
        extra = self.number("nextn_predict_layers", 0) or 0
        # a draft model can consist of such layers alone
        if extra > n_layer or (extra == n_layer and self.arch != "gemma4-assistant"):
            raise self.fail(f"{self.arch}.nextn_predict_layers", extra, f"less than block_count, {n_layer}")
        for key in ("embedding_length", "context_length"):
            value = self.number(key)
            if value is None or not 1 <= value < 1 << 31:
                raise self.fail(f"{self.arch}.{key}", value, "at least 1")
        return n_layer

    def experts(self, n_layer: int) -> None:
        # GGML_ASSERTs of llama_model_base::load_hparams
        n = self.number("expert_count", 0) or 0
        used = max(self.per_layer("expert_used_count", n_layer) or [0])
        groups = self.number("expert_group_count", 0) or 0
        groups_used = self.number("expert_group_used_count", 0) or 0
        if n <= 1 and self.arch.startswith("hunyuan"):
            return
        key = f"{self.arch}.expert"
        if n > _MAX_EXPERTS:
            raise self.fail(f"{key}_count", n, f"at most {_MAX_EXPERTS}")
        if used > n or (n > 0 and used == 0):
            raise self.fail(f"{key}_used_count", used, f"1 to expert_count, {n}" if n else "0, as expert_count is 0")
        if groups and (groups >= n or (groups > 1 and (n % groups or not 0 < groups_used < groups))):
            raise self.fail(
                f"{key}_group_count", f"{groups} of which {groups_used} are used", f"a divisor of expert_count, {n}, and fewer used"
            )

    def heads(self, n_layer: int) -> None:
        heads = self.per_layer("attention.head_count", n_layer)
        attention = next((t.name for t in self.info.tensors if re.search(r"\.attn_(q|qkv|output)\.weight$", t.name)), None)
        if heads is None or max(heads) == 0:
            if attention is not None:  # optional for llama.cpp, which divides by it then
                raise self.fail(f"{self.arch}.attention.head_count", "nothing" if heads is None else 0, f"at least 1, as there is {attention!r}")
            return
        kv_heads = self.per_layer("attention.head_count_kv", n_layer) or heads
        if max(kv_heads) == 0 and attention is not None:
            raise self.fail(f"{self.arch}.attention.head_count_kv", 0, f"at least 1, as there is {attention!r}")
        for i, (n, n_kv) in enumerate(zip(heads, kv_heads, strict=True)):
            if n and n_kv and n % n_kv:
                raise self.fail(
                    f"{self.arch}.attention.head_count of layer {i}", n, f"a multiple of attention.head_count_kv, {n_kv}"
                )
        if heads[0] == 0:
            return
        n_embd = self.number("embedding_length") or 0
        head_dim = self.number("attention.key_length", n_embd // heads[0])
        value_dim = self.number("attention.value_length", n_embd // heads[0])
        if not head_dim or not value_dim:
            raise self.fail(
                f"{self.arch}.attention.head_count", heads[0], f"heads of at least one of the {n_embd} elements of embedding_length"
            )
        # rotary embeddings check these on worker threads, where nobody catches it
        for suffix in ("", "_swa"):
            dim = self.number(f"attention.key_length{suffix}", head_dim) or head_dim
            n_rot = self.number(f"rope.dimension_count{suffix}")
            if n_rot is not None and (n_rot > dim or n_rot % 2):
                raise self.fail(f"{self.arch}.rope.dimension_count{suffix}", n_rot, f"an even number up to {dim}, the head size")
        self.rope_sections(head_dim)

    def rope_sections(self, head_dim: int) -> None:
        key = f"{self.arch}.rope.dimension_sections"
        sections = self.info.metadata.get(key)
        if sections is None:
            return
        if not isinstance(sections, GGUFArray) or sections.type not in ("int32", "uint32") or not 1 <= len(sections) <= 4:
            raise self.fail(key, sections, "an array of up to 4 x int32")
        values = [int(n) for n in self.values(sections)]
        if min(values) < 0 or not 0 < sum(values) <= head_dim:
            raise self.fail(key, values, f"numbers from 0 with a sum from 1 to {head_dim}")
        if self.number("rope.dimension_count") == 0:
            raise self.fail(f"{self.arch}.rope.dimension_count", 0, "at least 2, as there are rope.dimension_sections")

    def numbers(self) -> None:
        for key in _DIVISORS:
            if self.arch == "plamo2" and key == "ssm.group_count":
                continue  # has to be 0 there
            if self.number(key, 1) == 0:
                raise self.fail(f"{self.arch}.{key}", 0, "at least 1")
        for key in _STEPS:
            if (n := self.number(key, 0) or 0) > _MAX_STEPS:
                raise self.fail(f"{self.arch}.{key}", n, f"at most {_MAX_STEPS}")
        if self.arch in _WINDOWED and not self.number("attention.sliding_window", 0):
            raise self.fail(f"{self.arch}.attention.sliding_window", self.number("attention.sliding_window"), "at least 1")
        for name in ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon"):
            key = f"{self.arch}.attention.{name}"
            value = self.info.metadata.get(key)
            if value is None:
                continue
            if self.info.types[key] != "float32" or not isinstance(value, float) or not 0 <= value < math.inf:
                raise self.fail(key, f"{value!r} ({self.info.types[key]})", "a float32, not negative")
        key = f"{self.arch}.rope.scaling.type"
        scaling = self.info.metadata.get(key)
        if scaling is not None and scaling not in _ROPE_SCALINGS:
            raise self.fail(key, repr(scaling)[:80], f"one of {', '.join(_ROPE_SCALINGS)}")

    def linear_attention(self) -> None:
        if self.arch not in ("qwen3next", "qwen35", "qwen35moe", "qwen4exp"):
            return
        v_heads, k_heads = self.number("ssm.time_step_rank", 1) or 1, self.number("ssm.group_count", 1) or 1
        inner, state = self.number("ssm.inner_size", 0) or 0, self.number("ssm.state_size", 0) or 0
        if v_heads % k_heads:
            raise self.fail(f"{self.arch}.ssm.time_step_rank", v_heads, f"a multiple of ssm.group_count, {k_heads}")
        if inner != v_heads * state:
            raise self.fail(f"{self.arch}.ssm.inner_size", inner, f"ssm.time_step_rank x ssm.state_size, {v_heads * state}")
        if self.arch == "qwen3next":
            return
        # optional when they are loaded, used without a question when the graph is built
        names = {t.name for t in self.info.tensors}
        for name in names:
            if name.endswith(".ssm_conv1d.weight"):
                for part in ("attn_qkv.weight", "attn_gate.weight"):
                    wanted = name.replace("ssm_conv1d.weight", part)
                    if wanted not in names:
                        raise self.fail(f"tensor {wanted!r}", "none", f"one: its layer has {name!r}")

    def rwkv(self) -> None:
        if self.arch in ("rwkv7", "arwkv7"):
            # the CPU kernel reads and writes whole vectors, beyond the head if need be
            size = self.number("wkv.head_size", 0) or 0
            if size == 0 or size % 64:
                raise self.fail(f"{self.arch}.wkv.head_size", size, "a multiple of 64")
        if self.arch == "rwkv6qwen2":
            # its presence makes llama.cpp take the layer for one of RWKV6, and use tensors that are not there
            for t in self.info.tensors:
                if t.name.endswith("time_mix_first.weight"):
                    raise self.fail(f"tensor {t.name!r}", "one", f"none in {self.arch}")

    def indexers(self, n_layer: int) -> None:
        ratios = self.info.metadata.get(f"{self.arch}.attention.compress_ratios")
        if self.arch == "deepseek4" and isinstance(ratios, GGUFArray) and 4 not in self.values(ratios)[:n_layer]:
            # the cache of its indexers would be empty, and llama.cpp divides by its size
            raise self.fail(f"{self.arch}.attention.compress_ratios", list(self.values(ratios)[:8]), "4 in at least one layer")
        key = "attention.indexer.types"
        own = self.per_layer(key, n_layer)
        if own is None:
            return
        if not any(own):  # llama.cpp divides by the size of a cache that is empty then
            raise self.fail(f"{self.arch}.{key}", "0 in all layers", "1 in at least one")
        windows = self.per_layer("attention.sliding_window_pattern", n_layer)
        if self.arch != "dots3note" or windows is None:
            return
        # a layer without a window and without an indexer of its own uses one that is not there
        for i, (has, window) in enumerate(zip(own, windows, strict=True)):
            if bool(has) == bool(window):
                raise self.fail(f"{self.arch}.{key} of layer {i}", has, "1 in layers without a sliding window, 0 in the others")

    def siblings(self, n_layer: int) -> None:
        """Tensors that llama.cpp loads if they are there, and uses in any case."""
        names = {t.name for t in self.info.tensors}
        for archs, present, absent, needed in _SIBLINGS:
            if self.arch not in archs:
                continue
            for i in range(n_layer):
                has = [f"blk.{i}.{name}" for name in present if f"blk.{i}.{name}" in names]
                if not has or any(f"blk.{i}.{name}" in names for name in absent):
                    continue
                for name in needed:
                    if f"blk.{i}.{name}" not in names:
                        raise self.fail(f"tensor 'blk.{i}.{name}'", "none", f"one, as there is {has[0]!r}")
        for side in ("enc", "dec"):  # T5 has one table for all layers, in the first
            if self.arch in ("t5", "t5encoder") and f"{side}.blk.0.attn_q.weight" in names and f"{side}.blk.0.attn_rel_b.weight" not in names:
                raise self.fail(f"tensor '{side}.blk.0.attn_rel_b.weight'", "none", f"one, as there is '{side}.blk.0.attn_q.weight'")

    def formats(self) -> None:
        # The CPU backend accepts any format of a weight and finds out in the kernel. Integers, F64 and the formats that only
        # exist inside matrix products end in an abort or a null function pointer there.
        for t in self.info.tensors:
            if _INTEGER_NAMES.search(t.name):
                continue
            if not t.dtype.has_quantizer:
                raise self.fail(f"format of tensor {t.name!r}", t.dtype, "a format for weights, such as f32, f16 or q8_0")
            if t.dtype.name != "f32" and (len(t.ne) == 1 or _F32_NAMES.search(t.name)):
                raise self.fail(f"format of tensor {t.name!r} of shape {list(t.ne)}", t.dtype, "f32")

    def vocabulary(self) -> None:
        metadata, types = self.info.metadata, self.info.types
        for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
            if key in metadata and types[key] != "string":
                raise self.fail(key, f"{metadata[key]!r} ({types[key]})"[:80], "a string")
        tokens = metadata.get("tokenizer.ggml.tokens")
        if tokens is None:
            return
        if not isinstance(tokens, GGUFArray) or tokens.type != "string" or len(tokens) == 0:
            raise self.fail("tokenizer.ggml.tokens", tokens, "an array of strings, not empty")
        for key, kinds in (("token_type", ("int32",)), ("scores", ("float32", "int32"))):
            array = metadata.get(f"tokenizer.ggml.{key}")
            if array is None:
                continue
            if not isinstance(array, GGUFArray) or array.type not in kinds or len(array) < len(tokens):
                raise self.fail(f"tokenizer.ggml.{key}", array, f"at least {len(tokens)} x {' or '.join(kinds)}")
