"""Comparisons of models: does a split model say what the unsplit one says, and if not, which node is the first to differ?"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arguments import whole
from .comparison import ComparisonError, NodeDifference, TracedTensor, _difference, ancestry, check_tolerance
from .dtype import QuantizedArray, as_dtype, dequantize
from .errors import ArgumentError, UnsupportedError
from .model import Model
from .model.batch import Tokens, token_ids
from .plan import PlanNode, SplitPlan

__all__ = ["TOLERANCES", "ModelComparison", "NodeComparison", "TracedTensor", "compare_models", "compare_nodes", "default_tolerance"]

# NMSE of logits by the coarsest format that takes part. With F32 everywhere only the order of sums changes. Else inputs of
# matrix products are rounded, too: a last bit that differs becomes a quantum. Measured with random weights, 2 to 24 layers
# (docs/cli.md): at most 5e-13, 1.3e-6, 3e-5 and 6.3e-4; wrong splits are off by 0.01 and more.
TOLERANCES = {"f32": 1e-9, "f16": 1e-5, "bf16": 2e-4, "quantized": 5e-3}

_PIECE = 1 << 20  # logits that are looked at in float64 at once

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """The outcome of `compare_models`: a model's logits beside those of a reference."""

    model: str
    """The configuration that was compared: devices and split mode."""
    reference: str
    tolerance: float
    """The largest NMSE at which they agree."""
    n_tokens: int
    n_chunks: int
    """Pieces of the text that were computed each from an empty context."""
    nmse: float
    """sum((model - reference)^2) / sum(reference^2) over all logits; infinity where one is not a number."""
    max_abs: float
    """Largest difference of two logits."""
    kl_mean: float
    """KL divergence of the next token's distributions, in nats, the reference being the true one; mean over positions."""
    kl_max: float
    kl_max_at: int
    """The token behind which it is largest, counted over all chunks."""
    same_top: float
    """Fraction of positions at which both have the same likeliest token."""
    n_scored: int
    """Tokens that were predicted: all but the first of each chunk."""
    perplexity: float
    """Of the text, the true tokens given (teacher-forced); NaN where nothing was predicted."""
    reference_perplexity: float

    @property
    def ok(self) -> bool:
        """Whether they agree."""
        return self.nmse <= self.tolerance

    def check(self) -> ModelComparison:
        """Raises ComparisonError unless ``ok``."""
        if not self.ok:
            raise ComparisonError(str(self))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Numbers and words for JSON; what is no finite number is None."""
        return {"ok": self.ok, **_plain(asdict(self))}

    def __str__(self) -> str:
        chunks = f" in {self.n_chunks} chunks" if self.n_chunks > 1 else ""
        return "\n".join((
            f"{self.model} against {self.reference}, {self.n_tokens} tokens{chunks}",
            f"  NMSE                {self.nmse:.3g} (tolerance {self.tolerance:g})",
            f"  largest difference  {self.max_abs:.3g}",
            f"  KL divergence       mean {self.kl_mean:.3g}, largest {self.kl_max:.3g} nats (behind token {self.kl_max_at})",
            f"  same top token      {100 * self.same_top:.4g} %",
            f"  perplexity          {self.perplexity:.6g}, reference {self.reference_perplexity:.6g} ({self.n_scored} tokens predicted)",
            "agree" if self.ok else "DO NOT AGREE",
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeComparison:
    """The outcome of `compare_nodes`."""

    model: str
    reference: str
    tolerance: float
    n_tokens: int
    n_nodes: int
    """Nodes of the graph."""
    n_compared: int
    """Those whose value was seen in both runs."""
    first: TracedTensor | None
    """The first node in order of computation whose NMSE is above the tolerance, with its ancestry."""
    largest: NodeDifference
    """The node that differs most."""

    @property
    def ok(self) -> bool:
        """Whether every node is within the tolerance."""
        return self.first is None

    def to_dict(self) -> dict[str, Any]:
        """Numbers and words for JSON; what is no finite number is None."""
        return {"ok": self.ok, **_plain(asdict(self))}

    def __str__(self) -> str:
        head = f"{self.n_compared} of {self.n_nodes} nodes compared over {self.n_tokens} tokens, tolerance {self.tolerance:g} (NMSE)"
        if self.first is None:
            one = self.largest
            return f"{head}\n  no node differs by more; most: {one.name} ({one.op}), NMSE {one.nmse:.3g}"
        return "\n".join((head, "first diverging node, and what it is computed from:", *ancestry(self.first, "  ")))


def compare_models(
    model: Model,
    reference: Model,
    prompt: str | Tokens,
    *,
    tolerance: float | None = None,
    progress: Callable[[float], object] | None = None,
) -> ModelComparison:
    """Runs a text through two models and compares the logits behind every token.

    A text longer than the context of one of them is cut into chunks; each is computed from an empty context (and begins
    with the token that begins a text, where the model wants that). Of encoder-decoder models (T5) both parts read it. Both models compute in turns: what is kept of the
    logits does not grow with the text. Their default contexts are empty afterwards.

    Args:
        model: as loaded in the configuration in question.
        reference: the same model in another configuration, usually on one device.
        prompt: a text (for models with a tokenizer), or token ids.
        tolerance: the largest NMSE of the logits; None: what the formats of weights, caches and attention allow, see
            `default_tolerance`.
        progress: called with the fraction that is done.

    Raises:
        ArgumentError: other vocabularies, or no tokens. UnsupportedError: a text for a model without a tokenizer.
        IndexRangeError: a token is not in the vocabulary.
    """
    limit = _check_pair(model, reference, tolerance)
    chunks = _chunks(model, prompt, limit)
    total = sum(map(len, chunks))
    sums, done = _Sums(), 0
    contexts = model.default_context, reference.default_context
    try:
        for chunk in chunks:
            for context in contexts:
                context.clear()
                if context.decoder_start is not None:
                    context.encode(chunk[: context.options.n_batch])
            step = min(c.options.n_batch for c in contexts)
            for first in range(0, len(chunk), step):
                part = chunk[first : first + step]
                x, r = (context.decode(part, logits="all") for context in contexts)
                sums.add(x, r, chunk[first + 1 : first + 1 + len(part)])
                done += len(part)
                if progress is not None:
                    progress(done / total)
    finally:
        for context in contexts:
            if context._poison is None and not context.closed:
                context.clear()
    if tolerance is None:
        tolerance = default_tolerance(model, reference)
    mine, theirs = _names(model, reference)
    return ModelComparison(
        mine, theirs, tolerance, total, len(chunks), sums.nmse, sums.max_abs, sums.kl / total, sums.kl_max,
        sums.kl_max_at, sums.same / total, sums.n_scored, sums.perplexity(0), sums.perplexity(1),
    )  # fmt: skip


def configuration(model: Model) -> str:
    """Where a model is, for people: ``VCPU0,VCPU1 (tensor, 3:1)``."""
    options = model.options
    devices = model.devices[:1] if options.split_mode == "none" else model.devices
    shares = "" if options.tensor_split is None else ", " + ":".join(f"{s:g}" for s in options.tensor_split)
    return f"{','.join(d.name for d in devices) or 'CPU'} ({options.split_mode}{shares})"


def _names(model: Model, reference: Model) -> tuple[str, str]:
    """The configurations, with the files where they are not the same."""
    a, b = configuration(model), configuration(reference)
    return (a, b) if model.path.absolute() == reference.path.absolute() else (f"{model.path.name} on {a}", f"{reference.path.name} on {b}")


def _check_pair(model: Model, reference: Model, tolerance: float | None) -> int:
    """The tokens that both contexts can hold, after all checks that need no tokens."""
    for name, one in (("model", model), ("reference", reference)):
        if not isinstance(one, Model):
            raise ArgumentError(f"{name}: expected a Model, got {type(one).__name__}; graphs are compared by compare()")
        one._check_open()
    if tolerance is not None:
        check_tolerance(tolerance)
    if model is reference:
        raise ArgumentError("model and reference are the same Model: load it twice, in two configurations")
    if model.n_vocab != reference.n_vocab:
        raise ArgumentError(f"{model.path.name} has {model.n_vocab} tokens, {reference.path.name} {reference.n_vocab}: their logits cannot be compared")
    return min(m.default_context.n_ctx_seq for m in (model, reference))


def _chunks(model: Model, prompt: str | Tokens, limit: int) -> list[npt.NDArray[np.int64]]:
    ids = token_ids(model.tokenize(prompt) if isinstance(prompt, str) else prompt).astype(np.int64)
    model.default_context._check_tokens(ids)
    # each piece of a text begins as the text does
    begins = isinstance(prompt, str) and model.vocab.bos is not None and ids[0] == model.vocab.bos and limit > 1
    head = ids[:1] if begins else ids[:0]
    rest, step = ids[len(head) :], limit - len(head)
    pieces = [rest[i : i + step] for i in range(0, len(rest), step)] or [rest]
    return [np.concatenate([head, piece]) for piece in pieces]


def default_tolerance(*models: Model) -> float:
    """The largest NMSE at which models agree: `TOLERANCES` of the coarsest format of their weights, caches and attention."""
    found = {"f32"}
    for model in models:
        o = model.options
        found |= {o.type_k, o.type_v, *(t.dtype.name for t in model.info.tensors)}
        if not o.attn_f32:
            found.add("f16")  # as which flash attention takes keys and values
    return max(TOLERANCES.get(name, TOLERANCES["quantized"] if as_dtype(name).block_size > 1 else 0.0) for name in found)


class _Sums:
    """What is kept of the logits seen so far; everything in float64."""

    def __init__(self) -> None:
        self.error = self.power = self.max_abs = self.kl = self.kl_max = 0.0
        self.broken = False
        self.n = self.same = self.n_scored = self.kl_max_at = 0
        self.log_likelihood = [0.0, 0.0]

    def add(self, mine: Floats, theirs: Floats, targets: npt.NDArray[np.int64]) -> None:
        """Logits of shape (positions, n_vocab), and the tokens that come behind them; there may be one less."""
        step = max(1, _PIECE // mine.shape[1])
        for first in range(0, len(mine), step):
            part = slice(first, first + step)
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                self._add(mine[part].astype(np.float64), theirs[part].astype(np.float64), targets[part])

    def _add(self, x: Doubles, r: Doubles, targets: npt.NDArray[np.int64]) -> None:
        # minus infinity, in the same places, is a token that a model forbids; everything else has to be a number
        fine = np.isfinite(r)
        if not np.array_equal(fine, np.isfinite(x)) or not (np.all(r[~fine] == -np.inf) and np.all(x[~fine] == -np.inf)):
            self.broken = True
        delta = np.where(fine & np.isfinite(x), x - r, 0.0)
        self.error += float(np.sum(delta**2))
        self.power += float(np.sum(r[fine] ** 2))
        self.max_abs = max(self.max_abs, float(np.abs(delta).max()))
        self.same += int(np.count_nonzero(x.argmax(-1) == r.argmax(-1)))
        log_x, log_r = _log_softmax(x), _log_softmax(r)
        p = np.exp(log_r)
        kl = np.sum(np.where(p > 0, p * (log_r - log_x), 0.0), axis=-1)
        kl = np.where(np.isnan(kl), np.inf, np.maximum(kl, 0.0))  # rounding alone makes it less than 0
        self.kl += float(kl.sum())
        if (worst := int(kl.argmax())) >= 0 and kl[worst] > self.kl_max:
            self.kl_max, self.kl_max_at = float(kl[worst]), self.n + worst
        for k, logs in enumerate((log_x, log_r)):
            self.log_likelihood[k] += float(np.sum(logs[np.arange(len(targets)), targets]))
        self.n_scored += len(targets)
        self.n += len(x)

    @property
    def nmse(self) -> float:
        if self.broken:
            return math.inf
        return self.error / self.power if self.power > 0 else (0.0 if self.error == 0 else math.inf)

    def perplexity(self, which: int) -> float:
        if not self.n_scored:
            return math.nan
        with np.errstate(over="ignore"):
            return float(np.exp(-self.log_likelihood[which] / self.n_scored))


def _log_softmax(x: Doubles) -> Doubles:
    shifted = x - x.max(-1, keepdims=True)
    out: Doubles = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return out


# nodes


def compare_nodes(model: Model, reference: Model, tokens: Tokens, *, tolerance: float | None = None, levels: int = 3) -> NodeComparison:
    """Computes tokens in two models and compares every node of the graph, the slices of the devices put together.

    Both are loaded with ``split_mode="tensor"``, the reference usually over one device: only meta devices show their
    nodes. All values of the reference's nodes are kept, so a few dozen tokens are enough for large models.

    Args:
        tokens: token ids; at most ``n_batch``, so that they are one graph.
        tolerance: the largest NMSE of a node; None: as for `compare_models`.
        levels: how far the ancestry of the first diverging node is told.

    Raises:
        UnsupportedError: one of them is not on a meta device. ArgumentError: other graphs, no tokens, or too many.
    """
    limit = min(_check_pair(model, reference, tolerance), model.options.n_batch, reference.options.n_batch)
    for one in (model, reference):
        if one.meta_device_ptr is None:
            raise UnsupportedError(
                f"nodes are observed on meta devices, {configuration(one)} has none: load it with split_mode='tensor' (one device is enough)"
            )
    whole("levels", levels, 0, 100)
    ids = token_ids(tokens)
    if len(ids) > limit:
        raise ArgumentError(f"nodes of {len(ids)} tokens: at most {limit} fit into one graph here (n_ctx, n_batch); give fewer")
    if tolerance is None:
        tolerance = default_tolerance(model, reference)
    plan, other = (m.plan(len(ids), all_logits=True) for m in (model, reference))
    if [(x.name, x.op, x.ne) for x in plan.nodes] != [(x.name, x.op, x.ne) for x in other.nodes]:
        raise ArgumentError(f"{configuration(model)} and {configuration(reference)} compute different graphs: their nodes cannot be compared")
    kept: dict[int, bytes] = {}
    found: dict[int, NodeDifference] = {}
    at = _Places(plan)

    def keep(name: str, op: str, value: bytes) -> None:
        index = at.find(name, op, len(value))
        if index is not None:
            kept[index] = value

    def hold_against(name: str, op: str, value: bytes) -> None:
        index = at.find(name, op, len(value))
        if index is not None and index in kept:
            node = plan.nodes[index]
            found[index] = _difference(node.name, node.op, _numbers(node, value), _numbers(node, kept.pop(index)))

    reference.logits(ids, observer=keep)
    at = _Places(plan)
    model.logits(ids, observer=hold_against)
    if not found:
        raise UnsupportedError(f"no node of {configuration(model)} was seen in both runs: nothing was compared")
    diverging = min((i for i, d in found.items() if not d.nmse <= tolerance), default=None)
    first = None if diverging is None else _traced(model, reference, plan, found, plan.nodes[diverging], levels)
    largest = max(found.values(), key=lambda d: d.nmse)
    mine, theirs = _names(model, reference)
    return NodeComparison(mine, theirs, tolerance, len(ids), len(plan.nodes), len(found), first, largest)


class _Places:
    """Finds observed nodes in a plan. They come in its order; names occur twice, and not every node is seen."""

    def __init__(self, plan: SplitPlan) -> None:
        self.nodes, self.next = plan.nodes, 0

    def find(self, name: str, op: str, size: int) -> int | None:
        for i in range(self.next, len(self.nodes)):
            node = self.nodes[i]
            if node.name == name and node.op == op and node.bytes == size:
                self.next = i + 1
                return i
        return None


def _numbers(node: PlanNode, value: bytes) -> npt.NDArray[Any]:
    dtype = as_dtype(node.type)
    if dtype.numpy is not None:
        return np.frombuffer(value, dtype.numpy)
    return dequantize(QuantizedArray(dtype, node.ne[::-1], np.frombuffer(value, np.uint8)))


def _traced(
    model: Model, reference: Model, plan: SplitPlan, found: dict[int, NodeDifference], node: PlanNode, levels: int
) -> TracedTensor:
    sources = []
    for source in plan.sources(node) if levels > 0 else ():
        if isinstance(source, PlanNode):
            # views are on the way, not a level of their own
            sources.append(_traced(model, reference, plan, found, source, levels if node.is_view else levels - 1))
            continue
        difference = None
        if source.kind == "weight":
            with contextlib.suppress(ArgumentError):  # one that llama.cpp made up, or of an adapter
                difference = _difference(source.name, source.kind, model.weight(source.name), reference.weight(source.name))
        split = "" if source.split is None else str(source.split)
        sources.append(TracedTensor(source.name, source.kind, source.type, _dims(source.ne), split, difference, ()))
    split = "" if node.split is None else "(P)" if node.pending else str(node.split)
    return TracedTensor(node.name, node.op, node.type, _dims(node.ne), split, found.get(node.index), tuple(sources))


def _dims(ne: tuple[int, ...]) -> tuple[int, ...]:
    return ne[: max((k + 1 for k, n in enumerate(ne) if n != 1), default=1)]


def _plain(value: Any) -> Any:
    """JSON has neither infinity nor NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_json(models: ModelComparison, nodes: NodeComparison | None = None) -> str:
    """Both as JSON, schema ``pyggml.comparison/1``."""
    out: dict[str, Any] = {"schema": "pyggml.comparison/1", **models.to_dict()}
    if nodes is not None:
        out["nodes"] = nodes.to_dict()
    return json.dumps(out, indent=1, ensure_ascii=False)
