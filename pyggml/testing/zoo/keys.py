"""Metadata of the tiny models: what each key holds, as a function of the model's shape.

Which architecture reads which keys is data of the families; a value that differs from the one here is given there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..gguf_writer import Value

__all__ = ["COMMON", "GATES", "KEYS", "SSM_STATE", "Shape", "expand", "sections"]

SSM_STATE = 128  # of a head of linear attention: llama.cpp's granularity there
WINDOW = 8  # tokens: shorter than the prompts of the tests
GATES = {"softmax": 1, "sigmoid": 2, "softmax of the chosen": 3, "sqrt softplus": 4}


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that a tiny model is made of; names as in `TinyModel`."""

    arch: str
    moe: bool
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_expert: int
    n_expert_used: int
    unit: int
    """Equal steps in which all splits that were asked for are whole."""
    block: int
    """Elements in a block of the number format."""
    n_group: int = 0
    """K heads of linear attention."""

    @property
    def rank(self) -> int:
        """Of low-rank factors of attention (MLA), of block multiples."""
        return math.lcm(64, self.block)

    @property
    def wide(self) -> int:
        """Inner size of a state space layer, twice the embedding."""
        return 2 * self.n_embd

    def layers(self, pick: Callable[[int], Any], kind: type = np.int32) -> Value:
        return np.array([pick(i) for i in range(self.n_layer)], kind)


Make = Callable[[Shape], Value | None]

COMMON: Mapping[str, Make] = {
    "vocab_size": lambda s: s.n_vocab,
    "context_length": lambda s: 2048,
    "embedding_length": lambda s: s.n_embd,
    "block_count": lambda s: s.n_layer,
    "feed_forward_length": lambda s: s.n_ff,
    "attention.head_count": lambda s: s.n_head,
    "attention.head_count_kv": lambda s: s.n_head_kv,
    "attention.key_length": lambda s: None if s.n_embd == s.n_head * s.head_dim else s.head_dim,
    "attention.value_length": lambda s: None if s.n_embd == s.n_head * s.head_dim else s.head_dim,
    "expert_count": lambda s: s.n_expert if s.moe else None,
    "expert_used_count": lambda s: s.n_expert_used if s.moe else None,
}


def sections(pairs: int) -> Value:
    """Pairs of a head that turn with time, height and width."""
    return np.array([pairs - pairs // 4 * 2, pairs // 4, pairs // 4, 0], np.int32)


KEYS: Mapping[str, Make] = {
    "attention.layer_norm_rms_epsilon": lambda s: 1e-5,
    "attention.layer_norm_epsilon": lambda s: 1e-5,
    "attention.group_norm_epsilon": lambda s: 1e-5,
    "attention.group_norm_groups": lambda s: 8,
    "attention.causal": lambda s: True,
    "attention.clamp_kqv": lambda s: 8.0,
    "attention.max_alibi_bias": lambda s: 8.0,
    "attention.relative_buckets_count": lambda s: 8,
    "attention.scale": lambda s: s.head_dim**-0.5,
    "attention.output_scale": lambda s: s.head_dim**-0.5,
    "attention.value_scale": lambda s: 0.75,
    "attention.shared_kv_layers": lambda s: 0,
    "attention.sliding_window": lambda s: WINDOW,
    "attention.sliding_window_pattern": lambda s: s.layers(lambda i: i % 2 == 0),
    "attention.key_length_swa": lambda s: s.head_dim,
    "attention.value_length_swa": lambda s: s.head_dim,
    "attention.recurrent_layers": lambda s: s.layers(lambda i: i % 2 == 0),
    "attn_logit_softcapping": lambda s: 50.0,
    "final_logit_softcapping": lambda s: 30.0,
    "router_logit_softcapping": lambda s: 30.0,
    "rope.dimension_count": lambda s: s.head_dim,
    "rope.dimension_count_swa": lambda s: s.head_dim,
    "rope.dimension_sections": lambda s: sections(s.head_dim // 2),
    "rope.freq_base": lambda s: 10000.0,
    "rope.freq_base_swa": lambda s: 5000.0,
    "logit_scale": lambda s: 1.25,
    "residual_scale": lambda s: 0.75,
    "embedding_scale": lambda s: 1.5,
    "use_parallel_residual": lambda s: True,
    "full_attention_interval": lambda s: 2,
    # experts
    "leading_dense_block_count": lambda s: 1,
    "interleave_moe_layer_step": lambda s: 1,
    "moe_every_n_layers": lambda s: 2,
    "expert_feed_forward_length": lambda s: s.n_ff,
    "expert_shared_feed_forward_length": lambda s: math.lcm(128, s.block),
    "expert_chunk_feed_forward_length": lambda s: math.lcm(128, s.block),
    "expert_shared_count": lambda s: 1,
    "expert_weights_scale": lambda s: 1.5,
    "expert_weights_norm": lambda s: True,
    "expert_gating_func": lambda s: GATES["sigmoid"],
    "expert_group_scale": lambda s: 0.75,
    "experts_per_group": lambda s: 2,
    "expert_latent_length": lambda s: math.lcm(128, s.block),
    "moe_latent_size": lambda s: math.lcm(128, s.block),
    "swiglu_clamp_exp": lambda s: s.layers(lambda i: 7.0, np.float32),
    "swiglu_clamp_shexp": lambda s: s.layers(lambda i: 7.0, np.float32),
    # state spaces: of Mamba; linear attention gives its own
    "ssm.conv_kernel": lambda s: 4,
    "ssm.state_size": lambda s: 16,
    "ssm.inner_size": lambda s: s.wide,
    "ssm.time_step_rank": lambda s: s.wide // 32,
    "ssm.group_count": lambda s: 2,
    "shortconv.l_cache": lambda s: 3,
    "kda.head_dim": lambda s: s.head_dim,
    "kda.safe_gate": lambda s: True,
    "kda.gate_lower_bound": lambda s: -5.0,
    # RWKV
    "wkv.head_size": lambda s: s.head_dim,
    "time_mix_extra_dim": lambda s: s.rank // 2,
    "time_decay_extra_dim": lambda s: s.rank,
    "rescale_every_n_layers": lambda s: 6,
    "token_shift_count": lambda s: 2,
    "attention.decay_lora_rank": lambda s: s.rank,
    "attention.iclr_lora_rank": lambda s: s.rank,
    "attention.value_residual_mix_lora_rank": lambda s: s.rank,
    "attention.gate_lora_rank": lambda s: s.rank,
    # latent attention: the heads share one compressed key and value
    "attention.q_lora_rank": lambda s: s.rank,
    "attention.kv_lora_rank": lambda s: s.rank,
    "attention.kv_lora_rank_swa": lambda s: s.rank,
    "attention.key_length_mla": lambda s: s.head_dim,
    "attention.value_length_mla": lambda s: s.head_dim,
    "attention.key_length_mla_swa": lambda s: s.head_dim,
    "attention.value_length_mla_swa": lambda s: s.head_dim,
    "attention.indexer.head_count": lambda s: 4,
    "attention.indexer.key_length": lambda s: math.lcm(64, s.block),
    "attention.indexer.top_k": lambda s: 4096,  # all: which tokens are left out must not depend on rounding
    "attention.indexer.types": lambda s: s.layers(lambda i: i % 2 == 0),
    "attention.indexer.block_size": lambda s: 4,
    "attention.indexer.local_blocks": lambda s: 1,
    "attention.indexer.kpool": lambda s: 4,
    "attention.indexer.kpool_select_tail": lambda s: True,
    "attention.output_group_count": lambda s: s.n_head // 2,  # groups of heads: llama.cpp splits between them
    "attention.output_lora_rank": lambda s: math.lcm(32, s.block),
    "attention.compress_ratios": lambda s: s.layers(lambda i: (0, 0, 4, 128)[i % 4]),
    "attention.compress_rope_freq_base": lambda s: 20000.0,
    "hyper_connection.count": lambda s: 4,
    "hyper_connection.sinkhorn_iterations": lambda s: 2,
    "hyper_connection.epsilon": lambda s: 1e-6,
    "hyper_connection.magnitude": lambda s: 2.0,
    "hyper_connection.low_rank": lambda s: math.lcm(8, s.block),
    "hash_layer_count": lambda s: 0,
    # single ones
    "xielu.alpha_n": lambda s: 0.8,
    "xielu.alpha_p": lambda s: 0.8,
    "xielu.beta": lambda s: 0.5,
    "xielu.eps": lambda s: 1e-6,
    "hrm.layers_per_stack": lambda s: 1,
    "hrm.h_cycles": lambda s: 2,
    "hrm.l_cycles": lambda s: 2,
    "attn_res.block_size": lambda s: 2,
    "activation.situ_beta": lambda s: 4.0,
    "activation.situ_linear_beta": lambda s: 25.0,
    "embedding_length_per_layer_input": lambda s: math.lcm(32, s.block),
    "decoder_start_token_id": lambda s: 0,
    "decoder_block_count": lambda s: s.n_layer,
    "ple.layers": lambda s: np.array([0], np.uint32),
    "ple.ngram_size": lambda s: 3,
    "ple.heads_per_ngram": lambda s: 2,
    "ple.conv_kernel": lambda s: 4,
    "ple.eos_token_id": lambda s: 0,
    "ple.layer_multipliers": lambda s: np.array([1, 3, 5], np.uint64),
    "ple.head_offsets": lambda s: np.arange(4, dtype=np.uint64) * np.uint64(s.n_vocab),
    "ple.head_vocab_sizes": lambda s: np.full(4, s.n_vocab, np.uint64),
    "features_length": lambda s: s.n_embd,
    "posnet.embedding_length": lambda s: s.n_embd,
    "posnet.block_count": lambda s: s.n_layer,
    "convnext.embedding_length": lambda s: s.n_embd,
    "convnext.block_count": lambda s: s.n_layer,
    "target_layers": lambda s: np.array([0, 1, 2], np.int32),
    "target_hidden_size": lambda s: s.n_embd,
    "embedding_length_out": lambda s: 2 * s.n_embd,
    "nextn_predict_layers": lambda s: s.n_layer - 1,
    "num_loops": lambda s: 2,
    "n_deepstack_layers": lambda s: 0,
    "adapters.count": lambda s: 2,
    "adapters.lora_rank": lambda s: math.lcm(8, s.block),
    "adapters.token_ids_activate": lambda s: np.array([s.n_vocab - 2, s.n_vocab - 1], np.int32),
    "adapters.token_ids_substitute": lambda s: np.array([0, 1], np.int32),
}

# words that stand for several keys in the families' tables
GROUPS: Mapping[str, str] = {
    "rms": "attention.layer_norm_rms_epsilon",
    "ln": "attention.layer_norm_epsilon",
    "rope": "rope.dimension_count",
    "mrope": "rope.dimension_sections",
    "swa": "attention.sliding_window attention.sliding_window_pattern rope.freq_base_swa",
    "window": "attention.sliding_window attention.sliding_window_pattern",
    "eff": "expert_feed_forward_length",
    "shff": "expert_shared_feed_forward_length",
    "shared": "expert_shared_count",
    "lead": "leading_dense_block_count",
    "gate": "expert_gating_func",
    "weigh": "expert_weights_scale expert_weights_norm",
    "scales": "logit_scale residual_scale embedding_scale attention.scale",
    "mamba": "ssm.conv_kernel ssm.inner_size ssm.state_size ssm.time_step_rank",
    "mamba2": "ssm.conv_kernel ssm.inner_size ssm.state_size ssm.time_step_rank ssm.group_count",
    "mla": "attention.kv_lora_rank attention.key_length_mla attention.value_length_mla",
    "q_lora": "attention.q_lora_rank",
    "kda": "kda.head_dim ssm.conv_kernel kda.gate_lower_bound",
    "indexer": "attention.indexer.head_count attention.indexer.key_length attention.indexer.top_k",
    "hyper": "hyper_connection.count hyper_connection.epsilon",
    "sinkhorn": "hyper_connection.sinkhorn_iterations",
    "recurrent": "attention.recurrent_layers",
}


def expand(words: str) -> tuple[str, ...]:
    """The keys that the words of a table stand for."""
    keys: dict[str, None] = {}
    for word in words.split():
        for key in GROUPS.get(word, word).split():
            if key not in KEYS:
                raise KeyError(f"no metadata key {key!r} in the zoo")
            keys[key] = None
    return tuple(keys)
