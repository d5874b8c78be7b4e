"""Latent attention (MLA), indexers of sparse attention, hyper-connections."""

from __future__ import annotations

from ..gguf_writer import Value
from .hybrid import LINEAR
from .keys import GATES, Shape
from .registry import Architecture, Given
from .registry import architecture as _

_ROPE = 16  # dimensions of a head that are rotated, beside those that are not

# all heads share one compressed key and value, of which the cache holds the compressed form
MLA: dict[str, Given] = {
    "attention.head_count_kv": 1,
    "attention.key_length": lambda s: s.rank + _ROPE,
    "attention.value_length": lambda s: s.rank,
    "attention.key_length_mla": lambda s: s.head_dim + _ROPE,
    "attention.value_length_mla": lambda s: s.head_dim,
    "rope.dimension_count": _ROPE,
}


def _only_odd(s: Shape) -> Value:
    return s.layers(lambda i: i % 2)


MLA_TURNS: dict[str, Given] = {**MLA, "attention.head_count_kv": _only_odd}

# latent attention whose cache holds whole keys and values
SPLIT_KEYS: dict[str, Given] = {
    "attention.key_length": lambda s: s.head_dim + _ROPE,
    "attention.value_length": lambda s: s.head_dim,
    "rope.dimension_count": _ROPE,
}

LATENT: tuple[Architecture, ...] = (
    _(
        "qwen4exp",
        "mamba2 indexer rms eff shff mrope hyper_connection.count hyper_connection.low_rank attention.compress_ratios "
        "ple.layers ple.ngram_size ple.heads_per_ngram ple.conv_kernel ple.eos_token_id "
        "embedding_length_per_layer_input ple.layer_multipliers ple.head_offsets ple.head_vocab_sizes "
        "full_attention_interval",
        moe="only",
        n_layer=4,
        values={
            **LINEAR,
            "embedding_length_per_layer_input": lambda s: s.n_embd // 4,
            "attention.indexer.key_length": lambda s: s.head_dim,
            "attention.compress_ratios": lambda s: s.layers(lambda i: 4),
        },
        least=2,
    ),
    _("minicpm3", "rms q_lora attention.kv_lora_rank", gqa=1, values=SPLIT_KEYS),
    _("deepseek2", "mla weigh rms eff shared lead gate q_lora", values=MLA, moe="only"),
    _("deepseek32", "mla indexer weigh rms eff shared lead gate q_lora", values=MLA, moe="only"),
    _(
        "deepseek4",
        "window indexer hyper weigh rms eff shared gate q_lora sinkhorn swiglu_clamp_exp swiglu_clamp_shexp "
        "attention.output_group_count attention.output_lora_rank attention.compress_rope_freq_base hash_layer_count "
        "attention.compress_ratios",
        moe="only",
        n_layer=4,
        values={
            "attention.head_count_kv": 1,
            "rope.dimension_count": lambda s: s.head_dim // 2,
            "expert_gating_func": GATES["sqrt softplus"],
        },
        least=3,
    ),
    _(
        "glm-dsa",
        "mla indexer weigh rms eff shared lead gate q_lora attention.indexer.types",
        values=MLA,
        moe="only",
    ),
    _(
        "bailingmoe3",
        "mla kda weigh rms eff shff shared lead gate q_lora kda.safe_gate swiglu_clamp_exp swiglu_clamp_shexp",
        values=MLA_TURNS,
        n_layer=3,
        moe="only",
        least=2,
    ),
    _(
        "dots3note",
        "swa mla indexer weigh rms eff shared lead gate q_lora attention.kv_lora_rank_swa attention.key_length_mla_swa "
        "attention.value_length_mla_swa attention.indexer.types",
        values={
            **MLA,
            "attention.key_length_mla_swa": lambda s: s.head_dim + _ROPE,
            "attention.indexer.types": lambda s: s.layers(lambda i: i % 2),
        },
        moe="only",
        least=2,
    ),
    _(
        "hy_v4",
        "mla indexer hyper weigh rms eff shared lead gate q_lora swiglu_clamp_exp hyper_connection.magnitude "
        "attention.indexer.types",
        values=MLA,
        moe="only",
    ),
    _(
        "minimax-m3",
        "indexer weigh rms eff shared lead gate attention.indexer.block_size attention.indexer.local_blocks",
        moe="only",
        values={
            "attention.indexer.head_count": lambda s: s.n_head_kv,
            "rope.dimension_count": lambda s: s.head_dim // 2,
        },
        least=2,
    ),
    _("mistral4", "mla weigh rms eff shared lead gate q_lora", values=MLA, moe="only"),
    _(
        "kimi-linear",
        "mla rms eff shared lead gate ssm.conv_kernel kda.head_dim expert_weights_scale",
        values=MLA_TURNS,
        n_layer=3,
        moe="only",
        least=2,
    ),
    _(
        "kimi-k3",
        "mla kda weigh rms eff shared lead gate q_lora expert_latent_length attn_res.block_size activation.situ_beta "
        "activation.situ_linear_beta",
        values=MLA_TURNS,
        n_layer=3,
        moe="only",
        least=2,
    ),
    _(
        "glm5-next",
        "mla kda indexer hyper weigh rms ln eff shared lead gate q_lora sinkhorn swiglu_clamp_exp swiglu_clamp_shexp "
        "attention.indexer.kpool attention.indexer.kpool_select_tail attention.indexer.types",
        values={
            **MLA_TURNS,
            "attention.key_length": lambda s: s.rank,
            "attention.key_length_mla": lambda s: s.head_dim,
            "rope.dimension_count": 0,
            "attention.indexer.types": lambda s: s.layers(lambda i: 1),
        },
        n_layer=3,
        moe="only",
        least=2,
    ),
)
