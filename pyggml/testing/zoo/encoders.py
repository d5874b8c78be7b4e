"""Encoders, and models with an encoder."""

from __future__ import annotations

from .registry import Architecture, Given
from .registry import architecture as _

BERT: dict[str, Given] = {"attention.causal": False, "tokenizer.ggml.token_type_count": 2}

ENCODERS: tuple[Architecture, ...] = (
    _("bert", "ln", keep=r"bias$", kind="encoder", square=True, values=BERT, gqa=1),
    _("modern-bert", "swa ln", square=True, kind="encoder", values=BERT, gqa=1, least=2),
    _("nomic-bert", "ln", keep=r"bias$", kind="encoder", square=True, values=BERT, gqa=1, fused="qkv"),
    _(
        "nomic-bert-moe",
        "ln moe_every_n_layers",
        kind="encoder",
        square=True,
        moe="only",
        values=BERT,
        gqa=1,
        fused="qkv",
    ),
    _("neo-bert", "rms", square=True, kind="encoder", values=BERT, gqa=1),
    _(
        "jina-bert-v2",
        "ln",
        kind="encoder",
        square=True,
        values=BERT,
        keep=r"bias$",
        gqa=1,
        drop="attn_q_norm attn_k_norm attn_norm_2",
    ),
    _("jina-bert-v3", "ln", keep=r"bias$", kind="encoder", square=True, values=BERT, gqa=1, fused="qkv"),
    _("eurobert", "rms", square=True, kind="encoder", values=BERT),
    _("gemma-embedding", "swa rms", kind="encoder", least=2),
    _("t5", "rms attention.relative_buckets_count decoder_start_token_id decoder_block_count", kind="both", gqa=1),
    _("t5encoder", "rms attention.relative_buckets_count", kind="encoder", gqa=1),
    _("llama-embed", "rms", moe="both", kind="encoder", values={"attention.causal": False}),
)
