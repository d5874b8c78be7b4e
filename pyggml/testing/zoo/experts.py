"""Decoders whose layers hold a mixture of experts, always or in a variant."""

from __future__ import annotations

from .keys import GATES
from .registry import Architecture
from .registry import architecture as _

EXPERTS: tuple[Architecture, ...] = (
    _("llama", "rms", moe="both"),
    _(
        "llama4",
        "swa rms eff interleave_moe_layer_step",
        moe="only",
        n_layer=4,
        values={"interleave_moe_layer_step": 2},
        least=2,
    ),
    _(
        "grok",
        "rms eff logit_scale embedding_scale attention.output_scale attn_logit_softcapping router_logit_softcapping "
        "final_logit_softcapping",
        moe="only",
        square=True,
    ),
    _("refact", "rms"),
    _("qwen2moe", "rms eff shff", moe="only", square=True, keep=r"attn_(q|k|v|qkv)\.bias"),
    _("qwen3moe", "rms eff", moe="only"),
    _("qwen3vlmoe", "rms eff mrope n_deepstack_layers", moe="only"),
    _("phimoe", "rms", moe="only", square=True, keep=r"bias$"),
    _("minicpm", "rms embedding_scale residual_scale logit_scale", moe="both"),
    _(
        "gemma4",
        "swa rms eff attention.shared_kv_layers embedding_length_per_layer_input attention.key_length_swa "
        "attention.value_length_swa final_logit_softcapping",
        moe="both",
        keep=r"ffn_gate_inp\.scale rope_freqs",
        damped="post_attention_norm post_ffw_norm",
        fused="experts",
        least=2,
    ),
    _("maple", "swa rms eff swiglu_clamp_exp", moe="only"),
    _("cohere2moe", "swa weigh rms ln eff shff shared lead gate logit_scale", moe="only"),
    _("dbrx", "ln attention.clamp_kqv", moe="only", square=True),
    _("olmoe", "rms", moe="only", square=True, gqa=1),
    # its dense network is as wide as the embedding: n_embd has to be a multiple of 128 for each step of the shares
    _("arctic", "rms", moe="only", square=True, sizes={"head_dim": 64}, n_layer=1),
    _("deepseek", "rms eff shared lead expert_weights_scale", moe="only", square=True),
    _(
        "deepseek2-ocr",
        "weigh rms eff shared lead gate",
        moe="only",
        square=True,
        values={"expert_gating_func": GATES["softmax"]},
        gqa=1,
    ),
    _("glm4moe", "weigh rms eff shared lead gate mrope", moe="only", keep=r"attn_(q|k|v|qkv)\.bias"),
    _("exaone-moe", "swa weigh rms eff shff shared lead gate", moe="only"),
    _("granite", "scales rms"),
    _("granitemoe", "scales rms shff", moe="only"),
    _("granite_swa", "window scales rms shff", moe="both"),
    _("bailingmoe", "weigh rms eff shared lead", moe="only"),
    _("bailingmoe2", "weigh rms eff shff shared lead gate", moe="only", square=True),
    _("dots1", "weigh rms eff shared lead gate", moe="only", gqa=1),
    _("afmoe", "swa weigh rms eff shared lead gate", moe="only"),
    _("laguna", "swa weigh rms eff shff shared lead gate rope.dimension_count_swa", moe="only"),
    _("ernie4_5-moe", "rms eff shff lead mrope interleave_moe_layer_step", moe="only"),
    _("hunyuan-moe", "rms eff shff", moe="only"),
    _("hy_v3", "weigh rms eff shff gate", moe="both"),
    _("gpt-oss", "swa rms eff", moe="only", keep=r"bias$"),
    _("smallthinker", "swa rms eff gate", moe="only", least=2),
    _("llada-moe", "rms eff", moe="only", square=True, kind="diffusion"),
    _("grovemoe", "rms eff expert_chunk_feed_forward_length expert_group_scale experts_per_group", moe="only"),
    _("minimax-m2", "rms eff gate", moe="only"),
    _("rnd1", "rms eff", moe="only", kind="diffusion"),
    _("mistral3", "rms", moe="both"),
    _("mimo2", "swa rms eff attention.value_scale", moe="both"),
    _("step35", "swa weigh rms eff shff gate swiglu_clamp_exp swiglu_clamp_shexp", moe="both"),
    _("mellum", "swa rms eff", moe="only"),
)
