"""Architectures that cannot run alone, or not at all, and why.

The metadata is complete as far as llama.cpp looks at it before it gives the reason: the tests ask it.
"""

from __future__ import annotations

from .registry import Architecture
from .registry import architecture as _

_DRAFT = "a draft model: it computes on hidden states of the model that it drafts for, and needs that model's context"

ALONE: tuple[Architecture, ...] = (
    _("gptj", "ln", reason="llama.cpp has its name and no implementation"),
    _("clip", "", reason="it encodes images; llama.cpp loads it only beside a language model (libmtmd)"),
    _("eagle3", "rms target_layers target_hidden_size", kind="draft", reason=_DRAFT),
    _("dflash", "rms target_layers", kind="draft", drop=r"^token_embd", reason=_DRAFT),
    _(
        "gemma4-assistant",
        "swa rms attention.shared_kv_layers attention.key_length_swa attention.value_length_swa embedding_length_out "
        "nextn_predict_layers",
        kind="draft",
        keep=r"rope_freqs|layer_output_scale",
        reason=_DRAFT,
    ),
    _(
        "plm",
        "rms attention.kv_lora_rank",
        gqa=1,
        values={
            "attention.key_length": lambda s: s.head_dim + 16,
            "attention.value_length": lambda s: s.head_dim,
            "rope.dimension_count": 16,
        },
        reason="llama.cpp hands its values to the cache in a shape that the cache refuses (plm.cpp): no file of it runs",
    ),
)
