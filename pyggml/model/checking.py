"""The check of a model: llama.cpp loads the header of its file on simulated devices and decodes, going on behind every refusal."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .._arguments import whole
from .._ffi import ffi, lib
from ..device import Device
from ..errors import ArgumentError, DTypeError, Error, OutOfMemoryError, SplitError, UnsupportedError
from ..gguf_check import check_gguf
from ..gguf_info import GGUFInfo
from ..graph_check import collecting, origins_of, too_large, twins_of, unlimited
from ..meta import as_rule
from ..plan.check import CheckReport, Repair, Violation, idle_rules, shares_missed, violation_of, violations_from
from ..repairs import with_tried_repairs
from ..split import Rule
from .loading import LoadedModel, whole_file
from .native_context import NativeContext
from .options import (
    MAX_TOKENS,
    Devices,
    ModelOptions,
    check_arch,
    check_cache,
    check_rules,
    devices_of,
    legal_shares,
    misfits,
)

__all__ = ["check_model"]

_USUAL = ModelOptions("tensor")
_OTHERWISE = Repair("split_mode='layer', or 'none'")
_KINDS: dict[type[Error], str] = {DTypeError: "option", UnsupportedError: "option", ArgumentError: "rule"}


def check_model(
    path: str | os.PathLike[str],
    device: Devices,
    *,
    rules: Iterable[Rule | tuple[str, str]] = (),
    options: ModelOptions | None = None,
    n_tokens: int | None = None,
    n_past: int = 0,
    repairs: bool = True,
) -> CheckReport:
    """Everything that keeps a model from running split as asked, at once, from its header alone; nothing is allocated.

    What is refused is noted and taken for whole on every device, and the rest is judged as if that were so. The report is
    legal exactly when the model can be loaded and run, and gives the logits that one device gives.

    Args:
        path: the GGUF file (of a split one, the first part), or its header.
        device: a `MetaDevice` (its rules stand in front of llama.cpp's own), devices, or words such as ``"sim:2@24GiB"``.
        rules: stand in front of those of a `MetaDevice`.
        options: how the model would be loaded; None: ``split_mode="tensor"``, the rest as in `ModelOptions`.
        n_tokens: tokens of the decode that is checked; None: a whole batch, and one token behind it.
        n_past: tokens that are in the cache before it.
        repairs: look for rules that would be legal, and try them.

    Raises:
        ModelNotFoundError, FileFormatError: no such file, or it is corrupt.
        ArgumentError: options that make no sense. (Rules that match nothing are violations.)
        UnsupportedError: layer mode, which splits no tensor.
    """
    devices, own = devices_of(device)
    options = options or ModelOptions("tensor")
    if options.split_mode != "tensor":
        raise UnsupportedError(f"split_mode={options.split_mode!r} splits no tensor: there is nothing to check; split_mode='tensor' does")
    refused: list[Violation] = []
    for name, value in (("type_k", options.type_k), ("type_v", options.type_v), ("flash_attn", options.flash_attn)):
        try:
            replace(_USUAL, **{name: value}).check(len(devices))  # type: ignore[arg-type]
        except (DTypeError, UnsupportedError) as error:
            refused.append(_refused(error, options, path))
            options = replace(options, **{name: getattr(_USUAL, name)})  # to go on with
    options.check(len(devices))
    steps = _steps(options, n_tokens, n_past)
    info = check_gguf(path, whole=False)
    yours = (*(as_rule(r) for r in rules), *own)
    with contextlib.suppress(SplitError):  # those are found one by one
        try:
            check_rules(info, options, yours, len(devices))
        except ArgumentError as error:
            refused.append(_refused(error, options, path))
    try:
        check_cache(info, options.context)
    except (DTypeError, UnsupportedError) as error:
        refused.append(_refused(error, options, path))
        options = replace(options, type_k=_USUAL.type_k, type_v=_USUAL.type_v)
    about = f"{info.path.name} over {', '.join(d.name for d in devices)}"
    try:
        every = check_arch(info, options, yours)
    except UnsupportedError as error:
        return CheckReport(about, (*refused, _refused(error, options, path, "model")))

    with twins_of(devices) as stand_ins:
        job = _Job(about, info, tuple(devices), stand_ins, every, len(yours), options, steps)

        def once(front: tuple[Rule, ...]) -> CheckReport:
            report = job.check(front)
            return replace(report, violations=(*refused, *report.violations))

        report = once(())
        if repairs and not report.ok:
            report = with_tried_repairs(report, once)
        return replace(report, violations=tuple(_with_legal_shares(v, info, yours, len(devices)) for v in report.violations))


def _with_legal_shares(v: Violation, info: GGUFInfo, rules: Sequence[Rule], n_devices: int) -> Violation:
    """What a rule that does not fit could ask for instead, behind the repairs that were tried: heads, blocks, divisors."""
    decided = next((r for r in rules if re.search(r.pattern, v.node)), None) if v.kind == "rule" and v.ne else None
    axis = None if decided is None or callable(decided.split) else decided.split.axis
    if decided is None or not isinstance(axis, int) or axis >= len(v.ne) or v.ne[axis] < 2:
        return v
    return replace(v, repairs=(*v.repairs, Repair(legal_shares(info, v.node, v.ne[axis], axis, v.type, decided, n_devices))))


def _refused(error: Error, options: ModelOptions, path: object, kind: str = "") -> Violation:
    text = str(error).partition(f"{path}: ")[2] or str(error)
    names = [n for n in ("type_k", "type_v", "flash_attn") if n in text]
    why, _, repair = text.rpartition("; ")
    shown = ", ".join(f"{n}={getattr(options, n)!r}" for n in names) if names else "split_mode='tensor'"
    kind = kind or next(k for e, k in _KINDS.items() if isinstance(error, e))
    if kind == "rule":  # it matches nothing
        return Violation(kind, "rules", "", "", (), text, repairs=(Repair("leave them out, or name tensors that the model has"),))
    if not why:
        why, _, repair = text.partition(": flash_attn=")
        repair = "flash_attn=" + repair if repair else "options that go together"
    return Violation(kind, shown, "", "", (), why, repairs=(Repair(repair),))


def _steps(options: ModelOptions, n_tokens: int | None, n_past: int) -> tuple[tuple[int, int], ...]:
    """Pairs of tokens and what is in the cache before them."""
    if n_tokens is None:
        n = min(options.n_batch, options.n_ctx)
        return ((n, 0), (1, n)) if n < options.n_ctx else ((max(n - 1, 1), 0), (1, n - 1)) if n > 1 else ((1, 0),)
    if whole("n_tokens", n_tokens, -MAX_TOKENS, 1 << 62) < 1 or whole("n_past", n_past, -MAX_TOKENS, 1 << 62) < 0 or n_past + n_tokens > options.n_ctx:
        raise ArgumentError(f"n_past={n_past} and n_tokens={n_tokens} do not fit into a context of {options.n_ctx} tokens")
    return ((n_past, 0), (n_tokens, n_past)) if n_past else ((n_tokens, 0),)


@dataclass(frozen=True)
class _Job:
    about: str
    info: GGUFInfo
    devices: tuple[Device, ...]
    stand_ins: Sequence[Device]
    rules: tuple[Rule, ...]
    n_yours: int
    options: ModelOptions
    steps: tuple[tuple[int, int], ...]

    def check(self, front: tuple[Rule, ...]) -> CheckReport:
        try:
            return self._once(front)
        except OutOfMemoryError as error:
            said = str(error)
        with unlimited():
            for one in self.stand_ins:
                one.reset_stats()
            report = self._once(front)
        return too_large(report, self.devices, self.stand_ins, said)

    def _once(self, front: tuple[Rule, ...]) -> CheckReport:
        rules = (*front, *self.rules)
        wrong = misfits(self.info, self.options, rules, len(self.devices))
        beyond: list[Violation] = []
        loaded: list[LoadedModel] = []
        with collecting(ffi.NULL) as found:
            try:
                self._run(rules, loaded)
            except SplitError as error:
                beyond.append(violation_of(error))
            except OutOfMemoryError:
                raise
            except Error as error:
                beyond.append(Violation("model", self.info.path.name, "", "", (), str(error), repairs=(_OTHERWISE,)))
        decisions = loaded[0].decisions if loaded else {}
        violations, unjudged = violations_from(found, origins_of(decisions, rules, len(front), self.n_yours))
        named = {v.node for v in violations if v.kind == "rule"}
        missed = [violation_of(e) for e in wrong if e.node not in named]
        # what llama.cpp says behind a refusal is said already
        every = (*violations, *(replace(v, kind="rule") for v in missed), *([] if violations or missed else beyond))
        notices = (*shares_missed(decisions), *idle_rules(decisions, self.rules[: self.n_yours], len(front))) if loaded else ()
        return CheckReport(self.about, every, unjudged, notices)

    def _run(self, rules: tuple[Rule, ...], out: list[LoadedModel]) -> None:
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(whole_file(self.info))
            lib.pgg_plan_mode_begin()
            stack.callback(lib.pgg_plan_mode_end)
            loaded = LoadedModel(full, self.info, self.stand_ins, rules, self.options, None)
            stack.callback(loaded.release)
            out.append(loaded)
            context = NativeContext(loaded, self.options.context)
            stack.callback(context.free)
            if lib.llama_model_has_encoder(loaded.ptr) and lib.llama_model_has_decoder(loaded.ptr):
                n = self.steps[0][0]
                _batch(context, n)
                _, error = context.compute(encode=True)
                if error is not None:
                    raise error
            for n_tokens, n_past in self.steps:
                context.decode(np.zeros(n_tokens, np.int32), n_past, all_logits=True)


def _batch(context: NativeContext, n: int) -> None:
    context.set_batch(np.zeros(n, np.int32), np.arange(n, dtype=np.int32), [(0,)] * n, np.ones(n, np.int8))
