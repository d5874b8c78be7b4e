"""State spaces, linear attention, convolutions and RWKV, alone or with attention in turns."""

from __future__ import annotations

from ..gguf_writer import Value
from .keys import SSM_STATE, Shape, sections
from .registry import Architecture, Given
from .registry import architecture as _

LINEAR: dict[str, Given] = {
    "ssm.state_size": SSM_STATE,
    "ssm.group_count": lambda s: s.n_group,
    "ssm.time_step_rank": lambda s: 2 * s.n_group,
    "ssm.inner_size": lambda s: 2 * s.n_group * SSM_STATE,
    # half of a head is rotated
    "rope.dimension_count": lambda s: s.head_dim // 2,
    "rope.dimension_sections": lambda s: sections(s.head_dim // 4),
}


def _only_odd(s: Shape) -> Value:
    return s.layers(lambda i: s.n_head_kv if i % 2 else 0)


# attention in every other layer: the others have no KV heads
TURNS: dict[str, Given] = {"attention.head_count_kv": _only_odd}

HYBRID: tuple[Architecture, ...] = (
    _("qwen3next", "mamba2 rms eff shff full_attention_interval", moe="only", values=LINEAR, n_layer=4, least=2),
    _("qwen35", "mamba2 rms mrope full_attention_interval", values=LINEAR, n_layer=4, least=2),
    _("qwen35moe", "mamba2 rms eff shff mrope full_attention_interval", moe="only", values=LINEAR, n_layer=2, least=2),
    _("plamo2", "mamba2 rms", n_layer=3, values={**TURNS, "ssm.group_count": 0}, least=2),
    _("mamba", "mamba rms"),
    _("mamba2", "mamba2 rms"),
    _("jamba", "mamba rms", moe="both", square=True, n_layer=3, values=TURNS, least=2),
    _("falcon-h1", "mamba2 rms"),
    _(
        "nemotron_h",
        "mamba2 weigh rms ln eff shff shared moe_latent_size",
        n_layer=3,
        values={**TURNS, "feed_forward_length": lambda s: s.layers(lambda i: s.n_ff if i % 3 == 2 else 0)},
        least=3,
    ),
    _(
        "nemotron_h_moe",
        "mamba2 weigh rms ln eff shff shared moe_latent_size",
        moe="only",
        n_layer=3,
        values={**TURNS, "feed_forward_length": lambda s: s.layers(lambda i: s.n_ff if i % 3 == 2 else 0)},
        least=3,
    ),
    _(
        "rwkv6",
        "rms ln wkv.head_size time_mix_extra_dim time_decay_extra_dim rescale_every_n_layers token_shift_count",
        square=True,
        values={"attention.head_count": 0, "attention.head_count_kv": 0},
        sizes={"head_dim": 64}, gqa=1),
    _(
        "rwkv6qwen2",
        "rms ln wkv.head_size time_mix_extra_dim time_decay_extra_dim rescale_every_n_layers token_shift_count",
        square=True,
        values={"token_shift_count": 1},
        drop="time_mix_first",
        sizes={"head_dim": 64},
    ),
    _(
        "rwkv7",
        "rms ln wkv.head_size attention.decay_lora_rank attention.iclr_lora_rank attention.value_residual_mix_lora_rank "
        "attention.gate_lora_rank token_shift_count",
        square=True,
        values={"attention.head_count": 0, "attention.head_count_kv": 0},
        sizes={"head_dim": 64}, gqa=1),
    _(
        "arwkv7",
        "rms ln wkv.head_size attention.decay_lora_rank attention.iclr_lora_rank attention.value_residual_mix_lora_rank "
        "attention.gate_lora_rank token_shift_count",
        square=True,
        values={"token_shift_count": 1},
        sizes={"head_dim": 64},
    ),
    _("granitehybrid", "mamba2 scales rms shff", moe="both", n_layer=3, values=TURNS, least=2),
    _("lfm2", "window rms shortconv.l_cache", square=True, n_layer=3, values=TURNS, least=2),
    _(
        "lfm2moe",
        "rms eff lead gate shortconv.l_cache",
        moe="only",
        square=True,
        n_layer=3,
        values=TURNS,
        drop=r"^output\.",
        least=2,
    ),
    _("minimax-01", "rms residual_scale full_attention_interval", moe="only", least=2),
)
