"""llama.cpp's samplers: from logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .._arguments import text, whole
from .._ffi import ffi, lib
from .._handle import Handle
from ..errors import ArgumentError
from .loading import LoadedModel, failure

__all__ = ["GREEDY", "Sampler", "SamplerOptions"]

_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """llama.cpp's usual chain, with its names and defaults, in the order in which the samplers are applied."""

    seed: int | None = None
    """Of the choice; None: a random one."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of tokens; ``-inf`` forbids one."""
    grammar: str = ""
    """In GBNF; what it forbids is never chosen."""
    repeat_last_n: int = 64
    """Tokens that the penalties look at; 0: none."""
    repeat_penalty: float = 1.0
    """Divides positive logits of tokens that occurred; 1: off."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    """Against repeated sequences; 0: off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    top_n_sigma: float = -1.0
    """Keeps logits within so many standard deviations of the largest; negative: off."""
    top_k: int = 40
    """Keeps so many tokens; 0: all."""
    typical_p: float = 1.0
    top_p: float = 0.95
    min_p: float = 0.05
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    temperature: float = 0.8
    """0: always the likeliest token (greedy); what stands above but bias, grammar and penalties does nothing then."""
    mirostat: int = 0
    """1 or 2: Mirostat in that version instead of the samplers from ``top_n_sigma`` to ``xtc``."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1

    def check(self, n_vocab: int) -> None:
        """Raises ArgumentError for values that make no sense."""
        for name, low, high in (
            ("frequency_penalty", -1e6, 1e6), ("presence_penalty", -1e6, 1e6), ("dry_multiplier", 0, 1e6), ("dry_base", 1, 1e6),
            ("top_n_sigma", -math.inf, 1e6), ("typical_p", 0, 1), ("top_p", 0, 1), ("min_p", 0, 1), ("xtc_probability", 0, 1),
            ("xtc_threshold", 0, 1), ("temperature", 0, 1e6), ("mirostat_tau", 0, 1e6), ("mirostat_eta", 0, 1e6), ("repeat_penalty", 1e-6, 1e6),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ArgumentError(f"{name}={value!r}: expected a number, {low:g} to {high:g}")
        whole("top_k", self.top_k, 0, _MAX)
        whole("repeat_last_n", self.repeat_last_n, 0, _MAX)
        whole("dry_allowed_length", self.dry_allowed_length, 0, _MAX)
        whole("mirostat", self.mirostat, 0, 2)
        if self.seed is not None:
            whole("seed", self.seed, 0, (1 << 32) - 2)
        if not isinstance(self.logit_bias, Mapping):
            raise ArgumentError(f"logit_bias={self.logit_bias!r}: expected a dict of biases by token")
        for token, bias in self.logit_bias.items():
            whole("logit_bias: token", token, 0, n_vocab - 1)
            if not isinstance(bias, (int, float)) or math.isnan(bias):
                raise ArgumentError(f"logit_bias[{token}]={bias!r}: expected a number")
        if sum(bias == -math.inf for bias in self.logit_bias.values()) == n_vocab:
            raise ArgumentError(f"logit_bias forbids all {n_vocab} tokens: one at least must be possible")


GREEDY = SamplerOptions(temperature=0.0)


class Sampler(Handle):
    """A chain of llama.cpp's samplers for a model; it remembers what it chose (penalties, grammar, Mirostat)."""

    def __init__(self, loaded: LoadedModel, options: SamplerOptions) -> None:
        options.check(loaded.n_vocab)
        self.options = options
        self.path = loaded.path
        """Of the model whose tokens it chooses."""
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        try:
            for one in _chain(loaded, options):
                if one == ffi.NULL:
                    raise failure("llama.cpp cannot make the sampler" + (": the grammar is not valid GBNF" if options.grammar else ""))
                lib.llama_sampler_chain_add(chain, one)
        except BaseException:
            lib.llama_sampler_free(chain)
            raise
        self._chain = chain
        self._own(_free, chain, loaded.hold())

    @property
    def ptr(self) -> Any:
        """The ``struct llama_sampler *``."""
        self._check_open()
        return self._chain

    @property
    def names(self) -> tuple[str, ...]:
        """The samplers in the chain, in order, as llama.cpp calls them."""
        n = lib.llama_sampler_chain_n(self.ptr)
        return tuple(ffi.string(lib.llama_sampler_name(lib.llama_sampler_chain_get(self.ptr, i))).decode() for i in range(n))

    def reset(self) -> None:
        """Forgets what was chosen; the seed begins anew."""
        lib.llama_sampler_reset(self.ptr)


def _free(chain: Any, loaded: LoadedModel) -> None:
    lib.llama_sampler_free(chain)
    loaded.release()


def _chain(loaded: LoadedModel, o: SamplerOptions) -> Any:
    vocab, n_vocab = loaded.vocab, loaded.n_vocab
    seed = lib.LLAMA_DEFAULT_SEED if o.seed is None else o.seed
    if o.logit_bias:
        biases = ffi.new("llama_logit_bias[]", [{"token": t, "bias": float(b)} for t, b in o.logit_bias.items()])
        yield lib.llama_sampler_init_logit_bias(n_vocab, len(biases), biases)
    if o.grammar:
        yield lib.llama_sampler_init_grammar(vocab, text("grammar", o.grammar), b"root")
    if o.repeat_last_n and (o.repeat_penalty != 1 or o.frequency_penalty or o.presence_penalty):
        yield lib.llama_sampler_init_penalties(n_vocab, o.repeat_last_n, o.repeat_penalty, o.frequency_penalty, o.presence_penalty)
    if o.dry_multiplier:
        breakers = [ffi.new("char[]", b) for b in (b"\n", b":", b'"', b"*")]
        yield lib.llama_sampler_init_dry(
            vocab, o.dry_multiplier, o.dry_base, o.dry_allowed_length, o.repeat_last_n, ffi.new("char *[]", breakers), len(breakers)
        )
    if o.temperature == 0:
        yield lib.llama_sampler_init_greedy()
        return
    if o.mirostat:
        yield lib.llama_sampler_init_temp(o.temperature)
        if o.mirostat == 1:
            yield lib.llama_sampler_init_mirostat(n_vocab, seed, o.mirostat_tau, o.mirostat_eta, 100)
        else:
            yield lib.llama_sampler_init_mirostat_v2(seed, o.mirostat_tau, o.mirostat_eta)
        return
    if o.top_n_sigma >= 0:
        yield lib.llama_sampler_init_top_n_sigma(o.top_n_sigma)
    if o.top_k:
        yield lib.llama_sampler_init_top_k(o.top_k)
    if o.typical_p < 1:
        yield lib.llama_sampler_init_typical(o.typical_p, 1)
    if o.top_p < 1:
        yield lib.llama_sampler_init_top_p(o.top_p, 1)
    if o.min_p > 0:
        yield lib.llama_sampler_init_min_p(o.min_p, 1)
    if o.xtc_probability > 0:
        yield lib.llama_sampler_init_xtc(o.xtc_probability, o.xtc_threshold, 1, seed)
    yield lib.llama_sampler_init_temp(o.temperature)
    yield lib.llama_sampler_init_dist(seed)


def sampler_options(given: SamplerOptions | None, changes: dict[str, Any]) -> SamplerOptions:
    """The options with some of them changed; None: llama.cpp's defaults.

    Raises:
        ArgumentError: there is no option of that name.
    """
    if given is not None and not isinstance(given, SamplerOptions):
        raise ArgumentError(f"sampler={given!r:.80}: expected a SamplerOptions, or a Sampler of this model")
    known = SamplerOptions.__slots__
    for name in changes:
        if name not in known:
            raise ArgumentError(f"samplers have no option {name!r}; there are {', '.join(known)}")
    return replace(given or SamplerOptions(), **changes)
