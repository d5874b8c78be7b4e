"""The plan of a model: llama.cpp loads the header of its file on simulated devices, and decodes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from .._arguments import whole
from .._ffi import ffi, lib
from .._units import binary
from ..device import Device
from ..errors import ArgumentError, OutOfMemoryError, SplitError, UnsupportedError
from ..gguf_check import check_gguf
from ..gguf_info import GGUFInfo
from ..meta import as_rule, capacities_of, communicator_of, twins
from ..plan import SplitPlan
from ..split import Decision, Rule
from .checking import check_model
from .loading import LoadedModel, whole_file
from .native_context import NativeContext
from .options import MAX_TOKENS, Devices, ModelOptions, check_arch, check_cache, check_rules, devices_of

__all__ = ["plan_model"]


def plan_model(
    path: str | os.PathLike[str],
    device: Devices,
    *,
    n_tokens: int = 1,
    n_past: int = 0,
    all_logits: bool = False,
    rules: Iterable[Rule | tuple[str, str]] = (),
    options: ModelOptions | None = None,
) -> SplitPlan:
    """The split plan of a GGUF model, from its header alone.

    llama.cpp itself loads the file on simulated twins of the devices and decodes: no weight is read, no memory of a
    device or buffer of the host is taken, nothing is computed. A file that was cut behind its header is enough. Of encoder-decoder
    models (T5) it is the decoder's plan, after the encoder has read as many tokens (at most ``n_batch``).

    Args:
        path: the GGUF file (of a split one, the first part), or its header.
        device: a `MetaDevice` (its rules stand in front of llama.cpp's own), devices, or words such as ``"sim:2@24GiB"``.
        n_tokens: tokens of the decode that is planned (1: generation; more: a prompt). More than ``n_batch`` are decoded in
            parts, as `Context.decode` does it: the plan has their graphs behind each other.
        n_past: tokens that are in the cache before it.
        all_logits: logits behind every token, as `Model.logits` wants them; else behind the last one, as generation does.
        rules: stand in front of those of a `MetaDevice`.
        options: how the model would be loaded; None: ``split_mode="tensor"``, the rest as in `ModelOptions`.

    Raises:
        ArgumentError: more tokens than the context holds, or a rule that matches nothing.
        SplitError: rules are illegal: all violations at once, or llama.cpp's own are, for this model.
        UnsupportedError: layer mode, which has no meta device.
        OutOfMemoryError: it would not fit. The message has what every device needs and has; its ``plan`` is the plan.
    """
    devices, own = devices_of(device)
    options = options or ModelOptions("tensor")
    if options.split_mode != "none":
        options.check(len(devices))
    if options.split_mode == "layer":
        raise UnsupportedError("a plan shows what a meta device infers; split_mode='layer' has none: plan with 'tensor'")
    if options.split_mode == "none":
        devices = devices[:1]
        if not devices:
            raise UnsupportedError("a plan on the CPU alone has no split to show: give a device, such as 'vcpu:1'")
    options = replace(options, split_mode="tensor")
    options.check(len(devices))
    if whole("n_tokens", n_tokens, -MAX_TOKENS, 1 << 62) < 1 or whole("n_past", n_past, -MAX_TOKENS, 1 << 62) < 0 or n_past + n_tokens > options.n_ctx:
        raise ArgumentError(f"n_past={n_past} and n_tokens={n_tokens} do not fit into a context of {options.n_ctx} tokens")
    info = check_gguf(path, whole=False)
    yours = (*(as_rule(r) for r in rules), *own)

    def planned() -> SplitPlan:
        return _plan(info, devices, every, len(yours), options, n_tokens, n_past, all_logits)

    try:
        check_rules(info, options, yours, len(devices))
        every = check_arch(info, options, yours)
        check_cache(info, options.context)
        return planned()
    except SplitError:
        if yours:  # all that is wrong with them, not only what came first
            check_model(path, devices, rules=yours, options=options, n_tokens=n_tokens, n_past=n_past).raise_if_illegal()
        raise
    except OutOfMemoryError as error:
        with _unlimited():
            plan = planned()
        raise _does_not_fit(info, devices, plan, error) from None


def _plan(
    info: GGUFInfo,
    devices: Sequence[Device],
    rules: Sequence[Rule],
    n_yours: int,
    options: ModelOptions,
    n_tokens: int,
    n_past: int,
    all_logits: bool,
) -> SplitPlan:
    stand_ins = twins(devices)
    with contextlib.ExitStack() as stack:
        for one in stand_ins:
            if one not in devices:
                stack.callback(one.release)
        full = stack.enter_context(whole_file(info))
        lib.pgg_plan_mode_begin()
        stack.callback(lib.pgg_plan_mode_end)
        loaded = LoadedModel(full, info, stand_ins, rules, options, None)
        stack.callback(loaded.release)
        context = NativeContext(loaded, options.context)
        stack.callback(context.free)
        if lib.llama_model_has_encoder(loaded.ptr) and lib.llama_model_has_decoder(loaded.ptr):
            _encode(context, min(n_past + n_tokens, context.n_batch))
        context.fill(n_past)
        lib.pgg_meta_capture_begin(loaded.meta)
        try:
            context.decode(np.zeros(n_tokens, np.int32), n_past, all_logits=all_logits)
        finally:
            text = lib.pgg_meta_capture_take(loaded.meta)
        captured = ffi.string(text)
        lib.pgg_free(text)
        host = {"compute_nodes": _host_nodes(), "buffer_bytes": int(lib.pgg_plan_host_bytes())}
        asked = _asked_shares(info, options, len(stand_ins), loaded.decisions)
    return SplitPlan.from_captures(
        captured,
        host=host,
        asked=asked,
        rules=rules,
        n_yours=n_yours,
        decisions=loaded.decisions,
        otherwise="policy",
        communicator=communicator_of(devices),
    ).with_capacities(capacities_of(devices))


def _encode(context: NativeContext, n: int) -> None:
    """What the decoder of an encoder-decoder model attends to."""
    context.set_batch(np.zeros(n, np.int32), np.arange(n, dtype=np.int32), [(0,)] * n, np.ones(n, np.int8))
    _, error = context.compute(encode=True)
    if error is not None:
        raise error


@contextlib.contextmanager
def _unlimited() -> Iterator[None]:
    lib.pgg_sim_unlimited(True)
    try:
        yield
    finally:
        lib.pgg_sim_unlimited(False)


def _does_not_fit(info: GGUFInfo, devices: Sequence[Device], plan: SplitPlan, error: OutOfMemoryError) -> OutOfMemoryError:
    lines = []
    for device, need in zip(devices, plan.memory, strict=True):
        # 0: the device does not say, or has no limit
        has = device.memory.total
        verdict = f"has {binary(has)}: {f'{binary(need.total - has)} too little' if need.total > has else 'enough'}" if has else "no limit known"
        lines.append(f"\n  {device.name} needs {binary(need.total)} (weights {binary(need.weights)}, caches {binary(need.fixed)}, compute {binary(need.compute + need.reduction)}), {verdict}")
    out = OutOfMemoryError(f"{info.path} does not fit as it is split:" + "".join(lines) + "\n  repair: other shares (tensor_split), a smaller n_ctx or n_batch, or more devices")
    out.plan, out.log = plan, error.log
    return out


def _host_nodes() -> int:
    stats = ffi.new("struct pgg_device_stats *")
    lib.pgg_host_stats(stats)
    return int(stats.nodes)


def _asked_shares(info: GGUFInfo, options: ModelOptions, n_devices: int, decisions: dict[str, Decision]) -> dict[str, tuple[float, ...]]:
    """The shares that were asked for, by tensor: those of a rule, else ``tensor_split`` for whatever llama.cpp splits."""
    shares = options.tensor_split or (1.0,) * n_devices
    even = tuple(s / sum(shares) for s in shares)
    asked = {t.name: even for t in info.tensors}
    asked.update({name: d.asked_shares for name, d in decisions.items() if d.asked_shares})
    return asked
