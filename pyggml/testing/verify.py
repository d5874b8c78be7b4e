"""Does a split of a whole model compute what one device computes? And how much of it is really split?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..comparison import nmse
from ..errors import Error
from ..model import Model
from .tiny import tiny_gguf
from .zoo import ZOO

__all__ = ["SplitVerdict", "outputs_of", "verify_arch"]

_F32 = {"n_ctx": 64, "n_batch": 64, "type_k": "f32", "type_v": "f32", "attn_f32": True, "threads": 1}


@dataclass(frozen=True, slots=True)
class SplitVerdict:
    """What came of a split of a tiny model."""

    arch: str
    moe: bool
    shares: tuple[float, ...]
    error: str = ""
    """Why it was refused; the rest says nothing then."""
    nmse: float = float("nan")
    """Against one device, the largest over prompts of several lengths."""
    allreduces: int = 0
    """Of a prompt."""
    n_layer: int = 0
    weights_split: float = 0.0
    """Fraction of the bytes of the weights it reads that are really split; the rest is whole on every device."""
    caches_split: float = 0.0
    """The same of caches and recurrent states; NaN where there are none."""
    missed: tuple[str, ...] = ()
    """Tensors whose shares are not those asked for."""

    @property
    def is_split(self) -> bool:
        """Whether devices share work: something is summed."""
        return not self.error and self.allreduces > 0


def outputs_of(model: Model, kind: str, tokens: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """What a model of any kind makes of tokens: a row for each, logits of decoders, embeddings of encoders."""
    if kind == "encoder":
        with model.context(embeddings=True, pooling="none") as context:
            (out,) = context.embed([tokens], normalize=False)
    elif kind == "both":
        context = model.default_context
        context.encode(tokens)
        out = context.decode(tokens, logits="all", from_empty=True)
    else:
        out = model.logits(tokens)
    out[np.abs(out) > 1e30] = 0  # chameleon gives tokens of images the lowest number there is
    return np.asarray(out, np.float32)


def verify_arch(
    arch: str,
    folder: str | Path,
    *,
    moe: bool | None = None,
    shares: Sequence[int] = (1, 1),
    prompts: Sequence[int] = (1, 17),
    made_for: Sequence[int] | None = None,
    sizes: Mapping[str, int] | None = None,
    **options: Any,
) -> SplitVerdict:
    """Splits a tiny model of an architecture over virtual CPU devices, and compares it with one.

    Args:
        folder: where the model is written; the caller removes it.
        moe: see `tiny_gguf`.
        shares: of the devices; the model is made so that they come out exactly.
        prompts: numbers of tokens.
        made_for: the shares that the model is made for instead, so that others are rounded, some of them to nothing.
        sizes: numbers of `tiny_gguf` that are to differ, such as ``{"n_ff": 328, "n_vocab": 389}``: odd ones are rounded, too.
        options: further arguments of `Model`, such as ``rules``.

    Returns:
        A `SplitVerdict`; refusals are in it, as text.

    Raises:
        ShapeError: there is no such model of these sizes.
    """
    known = ZOO[arch]
    file = tiny_gguf(
        Path(folder) / f"{arch}-{'-'.join(map(str, shares))}{'-moe' if moe else ''}.gguf", arch, moe=moe, shares=(tuple(made_for or shares),), **(sizes or {})  # type: ignore[arg-type]
    )
    tokens = [np.random.default_rng([1, n]).integers(0, file.n_vocab, n) for n in prompts]
    with Model(file, "vcpu:1", **_F32) as one:  # type: ignore[arg-type]
        wanted = [outputs_of(one, known.kind, t) for t in tokens]
    about = arch, file.n_expert > 0, tuple(float(s) for s in shares)
    try:
        with Model(file, f"vcpu:{len(shares)}", split_mode="tensor", tensor_split=about[2], **_F32, **options) as split:  # type: ignore[arg-type]
            found = 0.0
            for t, w in zip(tokens, wanted, strict=True):
                split.devices[0].reset_stats()
                found = max(found, nmse(outputs_of(split, known.kind, t), w))
            n_sums = split.devices[0].stats().allreduces
            held = _weights(split)
            plan = split.plan(prompts[-1])
    except Error as error:
        return SplitVerdict(*about, error=str(error))
    fixed = [leaf for leaf in plan.leafs if leaf.kind == "fixed" and leaf.split is not None]
    in_parts = sum(leaf.bytes for leaf in fixed if leaf.split is not None and isinstance(leaf.split.axis, int))
    caches = sum(leaf.bytes for leaf in fixed)
    return SplitVerdict(
        *about,
        nmse=found,
        allreduces=n_sums,
        n_layer=file.n_layer,
        weights_split=held,
        caches_split=in_parts / caches if caches else float("nan"),
        missed=tuple(leaf.name for leaf in plan.missed_shares()),
    )


def _weights(model: Model) -> float:
    """The fraction of the bytes of a model's weights on its devices that is split."""
    states = model.weight_splits()
    split = sum(t.nbytes for t in model.info.tensors if (s := states.get(t.name)) is not None and isinstance(s.axis, int))
    held = sum(t.nbytes for t in model.info.tensors if t.name in states)
    return split / held if held else 0.0
