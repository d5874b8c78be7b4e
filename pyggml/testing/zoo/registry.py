"""What is known about an architecture beyond what llama.cpp says itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..gguf_writer import Value
from .keys import COMMON, KEYS, Shape, expand
from .probe import Ne

__all__ = ["Architecture", "architecture"]

Given = Value | None | Callable[[Shape], Value | None]

# of these, llama.cpp knows more than files have: factors of formats that are not made here, outputs of classifiers,
# biases that belong to few architectures
_RARE = re.compile(
    r"\.(input_scale|scale|scales)$|^cls\b|^dense_|^rope_|\.rope_|attn_rot_embd"
    r"|(^output|attn_(q|k|v|qkv|output)|ffn_(up|gate|down|gate_inp|up_exps|gate_exps|down_exps))\.bias$"
)


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp, and how a tiny model of it is made."""

    name: str
    keys: tuple[str, ...]
    """Metadata that it reads beyond what all have."""
    moe: str
    """``""`` (dense only), ``"both"``, ``"only"`` (mixtures of experts only)."""
    kind: str
    """``decoder``, ``encoder`` (all tokens see each other, no cache), ``both`` (encoder and decoder), ``diffusion``
    (a decoder whose tokens all see each other), ``draft`` (works on the states of another model)."""
    square: bool
    """The heads are as wide as the embedding, together."""
    gqa: int
    """Query heads per KV head, as tiny models have it."""
    n_layer: int
    least: int
    """Layers in which every kind of layer occurs that llama.cpp relies on."""
    values: Mapping[str, Given] = field(repr=False)
    """Values that differ from those in `keys.KEYS`."""
    keep: re.Pattern[str] = field(repr=False)
    """Rare optional tensors that files of it do have."""
    drop: re.Pattern[str] = field(repr=False)
    """Optional tensors that exclude others."""
    damped: re.Pattern[str] = field(repr=False)
    """Norms behind which the residual stream is added to."""
    known: Callable[[Shape], Mapping[str, Ne]] = field(repr=False)
    """Tensors of the file that llama.cpp looks at before it makes its own."""
    sizes: Mapping[str, int] = field(repr=False)
    """Numbers that it does not let free: ``n_vocab``, ``head_dim``, ``n_embd``…"""
    fused: str
    """What its files hold in one matrix although llama.cpp takes several, too: ``qkv``, ``experts`` (gate and up)."""
    reason: str
    """Why it cannot run alone; empty: it runs."""

    @property
    def runs(self) -> bool:
        """Loads and computes on one CPU device."""
        return not self.reason

    @property
    def variants(self) -> tuple[bool, ...]:
        """Values of ``moe`` that there are."""
        return {"": (False,), "both": (False, True), "only": (True,)}[self.moe]

    def metadata(self, shape: Shape) -> dict[str, Value]:
        """All keys of a model of this shape."""
        out: dict[str, Value] = {"general.architecture": self.name, "tokenizer.ggml.model": "none"}
        for key in dict.fromkeys((*COMMON, *self.keys, *self.values)):
            if key in self.values:
                given = self.values[key]
                value = given(shape) if callable(given) else given
            else:
                value = (COMMON.get(key) or KEYS[key])(shape)
            if value is not None:
                out[key if key.startswith(("tokenizer.", "xielu.")) else f"{self.name}.{key}"] = value
        return out

    def has(self, tensor: str) -> bool:
        """Whether a model has this one of the tensors that llama.cpp would take."""
        if self.drop.search(tensor):
            return False
        return not _RARE.search(tensor) or self.keep.search(tensor) is not None


_NEVER = re.compile(r"(?!)")


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{word})" for word in words.split())) if words else _NEVER


def _nothing(shape: Shape) -> Mapping[str, Ne]:
    return {}


def architecture(
    name: str,
    keys: str,
    *,
    moe: str = "",
    kind: str = "decoder",
    square: bool = False,
    gqa: int = 2,
    n_layer: int = 2,
    least: int = 1,
    values: Mapping[str, Given] | None = None,
    keep: str = "",
    drop: str = "",
    damped: str = "",
    known: Callable[[Shape], Mapping[str, Ne]] = _nothing,
    sizes: Mapping[str, int] | None = None,
    fused: str = "",
    reason: str = "",
) -> Architecture:
    """An entry of the families' tables; patterns are words, each a regular expression."""
    return Architecture(
        name, expand(keys), moe, kind, square, gqa, n_layer, least, values or {}, _pattern(keep), _pattern(drop),
        _pattern(damped), known, sizes or {}, fused, reason,
    )  # fmt: skip
