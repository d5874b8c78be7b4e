"""The plan of every architecture against what the devices count in a run; no code of the plan counts.

A sample of the 158 variants, or with PYGGML_TEST_WIDE=1 all of them: over two and three virtual CPUs, even and uneven, prompts and
single tokens behind caches that are filled differently far. Then the same over simulated devices without a communicator,
whose copies are counted: what moves in ggml's butterfly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from split_cases import F32
from test_plan_equals_run import check_n_computed
from trace_checks import check_trace

import pyggml as gg
from pyggml import ffi, lib
from pyggml.testing import ZOO, TinyModel, tiny_gguf

WIDE = bool(os.environ.get("PYGGML_TEST_WIDE"))
ALL = [(name, moe) for name, arch in ZOO.items() if arch.runs for moe in arch.variants]
SAMPLE = [("llama", False), ("llama", True), ("qwen35", False), ("gemma3", False), ("deepseek2", True), ("gpt-oss", True), ("falcon-h1", False),
          ("rwkv7", False), ("mamba2", False), ("bert", False), ("dream", False), ("t5", False)]  # fmt: skip
VARIANTS = ALL if WIDE else SAMPLE
IDS = [f"{name}-moe" if moe and ZOO[name].moe == "both" else name for name, moe in VARIANTS]

SPLITS = [(1, 1), (3, 1), (1, 1, 1), (1, 2, 1)]
# tokens in the cache, tokens, logits of all of them; the cache is filled by one decode, as the plan does it
PHASES = [(0, 1, False), (0, 17, False), (1, 1, False), (9, 5, False), (33, 1, False), (64, 1, False), (0, 17, True), (40, 24, True)]
OPTIONS = {**F32, "n_batch": 64}


def splits_of(index: int) -> list[tuple[int, ...]]:
    """All, or two of them, other ones for each variant."""
    return SPLITS if WIDE else [SPLITS[index % 4], SPLITS[(index + 2) % 4]]


def phases_of(name: str, shares: tuple[int, ...]) -> Iterator[tuple[int, int, bool]]:
    """All, or every other one. Of models without a cache there is nothing to fill."""
    phases = PHASES if WIDE else PHASES[sum(shares) % 2 :: 2]
    return (p for p in phases if not p[0] or ZOO[name].kind in ("decoder", "both"))


def decode(model: gg.Model, n_past: int, n: int, every: bool) -> None:
    """What the plan is about: `fill`, then one decode. By the native context, since encoders give no logits."""
    native = model.default_context._native
    tokens = np.arange(n_past + n, dtype=np.int32) % 64
    if ZOO[model.info.arch].kind == "both":  # the encoder has read as many
        read = min(len(tokens), native.n_batch)
        native.set_batch(tokens[:read], np.arange(read, dtype=np.int32), [(0,)] * read, np.ones(read, np.int8))
        assert native.compute(encode=True) == (0, None)
    if n_past:
        native.decode(tokens[:n_past], 0, all_logits=False)
    for device in model.devices:
        device.reset_stats()
    native.decode(tokens[n_past:], n_past, all_logits=every)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name, moe", VARIANTS, ids=IDS)
def test_counted_at_the_devices(tmp_path: Path, name: str, moe: bool) -> None:
    for shares in splits_of(VARIANTS.index((name, moe))):
        file = tiny_gguf(tmp_path / f"{'-'.join(map(str, shares))}.gguf", name, moe=moe, shares=(shares,))
        check(file, shares)


def check(file: TinyModel, shares: tuple[int, ...]) -> None:
    devices = gg.parse_devices(f"vcpu:{len(shares)}")
    assert [d.stats().buffer_bytes for d in devices] == [0] * len(devices), "another test left something on the devices"
    with gg.Model(file, devices, split_mode="tensor", tensor_split=tuple(map(float, shares)), **OPTIONS) as model:
        reduction = [0] * len(devices)
        for n_past, n, every in phases_of(file.arch, shares):
            where = shares, n_past, n, every
            model.default_context.clear()
            with gg.trace() as taken:
                decode(model, n_past, n, every)
            seen = [d.stats() for d in devices]
            plan = model.plan(n, n_past, all_logits=every)
            check_trace(plan, taken)
            for j, (s, m) in enumerate(zip(seen, plan.memory, strict=True)):
                assert s.graph_computes == len(plan.subgraphs), where
                assert s.allreduces == len(plan.allreduces), where
                assert s.allreduce_bytes == plan.allreduce_bytes, where
                check_n_computed(plan, j, s.nodes)
                assert s.copies == 0, "virtual CPUs sum with their communicator, not with copies"
                # the buffers for sums stay as large as any run before needed them; while they grow, the old ones are still there
                before, reduction[j] = reduction[j], max(reduction[j], m.reduction)
                assert s.buffer_bytes == m.total - m.reduction + reduction[j], where
                assert s.buffer_bytes <= s.buffer_bytes_peak <= s.buffer_bytes + before, where
            assert llama_says(model) == tuple(max(getattr(m, kind) for m in plan.memory) for kind in ("weights", "fixed", "compute")), where
        model.default_context.close()
        assert [d.stats().buffer_bytes for d in devices] == [m.weights for m in plan.memory]


def llama_says(model: gg.Model) -> tuple[int, int, int]:
    """llama.cpp's own account of weights, caches and compute buffers on the meta device: those of the device that has the most."""
    native = model.default_context._native
    rows = ffi.new("struct pgg_memory_row[]", 16)
    n = lib.pgg_llama_memory(native.ptr, rows, 16)
    (row,) = (r for r in rows[0:n] if lib.ggml_backend_buft_get_device(r.buft) == native.loaded.meta)
    return int(row.model), int(row.context), int(row.compute)


# over three and more devices the butterfly has more than one step, over other than powers of two more than one kind
BUTTERFLIES = [(1, 1), (3, 1), (1, 1, 1), (2, 0, 1), (1, 1, 1, 1), (1, 0)]

# ggml takes all heads, on one device, in one row for rows of which one device has all
REFUSED = {("graniteswitch", (1, 0))}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name, moe", VARIANTS, ids=IDS)
def test_what_the_butterfly_moves(tmp_path: Path, name: str, moe: bool) -> None:
    """Simulated devices compute nothing, but are asked for all of it, copies between devices included."""
    at = VARIANTS.index((name, moe))
    for shares in BUTTERFLIES if WIDE else (BUTTERFLIES[at % 6], BUTTERFLIES[(at + 2) % 6]):
        # one head alone would be split within: of a share of nothing there are two
        made_for = (1, 1) if shares == (1, 0) else shares
        file = tiny_gguf(tmp_path / f"{'-'.join(map(str, shares))}.gguf", name, moe=moe, shares=(made_for,))
        devices = gg.simulated(n=len(shares), comm=False)
        with gg.Model(file, devices, split_mode="tensor", tensor_split=tuple(map(float, shares)), **OPTIONS) as model:
            for n_past, n, every in [(0, 17, False), (20, 1, False)][: 2 if ZOO[name].kind in ("decoder", "both") else 1]:
                model.default_context.clear()
                if (name, shares) in REFUSED:
                    with pytest.raises(gg.SplitError, match=r"attn_output\.lora_a"):
                        decode(model, n_past, n, every)
                    with pytest.raises(gg.SplitError, match=r"attn_output\.lora_a"):
                        model.plan(n, n_past)
                    break
                decode(model, n_past, n, every)
                seen = [d.stats() for d in devices]
                plan = model.plan(n, n_past, all_logits=every)
                assert {r.algorithm for r in plan.allreduces} <= {"butterfly"}
                for j, s in enumerate(seen):
                    steps = [step for r in plan.allreduces for step in r.steps or () if step.target == j]
                    moved = [step for step in steps if step.kind != "zero"]
                    assert s.copies == len(moved), (shares, j)
                    assert s.copy_bytes == sum(step.bytes for step in moved) == sum((r.received or ())[j] for r in plan.allreduces)
                    # zeroing and adding are graphs of one node
                    assert s.graph_computes == len(plan.subgraphs) + sum(step.kind != "copy" for step in steps), (shares, j)
                    assert s.allreduces == 0
        for device in devices:
            device.release()
