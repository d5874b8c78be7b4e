"""Which all-reduce a model uses, seen while it computes."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

from .._ffi import ffi, lib
from .batch import Batch
from .context import Context

__all__ = ["Reduction", "active_reduction", "cuda_reduction"]


@dataclass(frozen=True, slots=True)
class Reduction:
    """How the devices of a model sum what each has a part of."""

    name: str
    """``NCCL``, ``internal`` (CUDA's own), ``shared memory`` (virtual CPUs), ``butterfly`` (ggml's copies and additions),
    ``none`` (nothing is summed: one device, or layers), or the backend whose communicator it is."""
    times: int
    """All-reduces of one decoded token."""
    certain: bool = True
    """False where a backend does not say what it chose, and this is what its own rules come to."""

    def __str__(self) -> str:
        return self.name + ("" if self.certain else "?")


def active_reduction(context: Context) -> Reduction:
    """The all-reduce of a context, from a token that is decoded for it; the context is empty afterwards.

    Raises:
        Like `Context.decode`.
    """
    context._check_open()
    context.clear()
    loaded = context._native.loaded
    if loaded.meta is None or len(loaded.devices) < 2:
        return Reduction("none", 0)
    device = loaded.devices[0]
    before = device.stats().allreduces if device.is_virtual else 0
    lib.pgg_meta_capture_begin(loaded.meta)
    try:
        context.feed(Batch().add([0]))
    finally:
        text = lib.pgg_meta_capture_take(loaded.meta)
        raw = ffi.string(text)
        lib.pgg_free(text)
    context.clear()
    graphs = [g for g in json.loads(raw)["graphs"] if g["allreduces"]]
    times = sum(len(g["allreduces"]) for g in graphs)
    if not times:
        return Reduction("none", 0)
    if any(g["algorithm"] != "communicator" for g in graphs):
        return Reduction("butterfly", times)
    if device.is_virtual:  # it counts: a communicator may refuse, and ggml sums by itself then
        return Reduction("shared memory" if device.stats().allreduces > before else "butterfly", times)
    if device.backend in ("CUDA", "ROCm"):
        from .._info import build_info

        name = cuda_reduction(os.environ.get("GGML_CUDA_ALLREDUCE"), len(loaded.devices), build_info().options.get("NCCL", False), sys.platform)
        return Reduction(name, times, certain=False)
    return Reduction(device.backend, times)


def cuda_reduction(asked: str | None, n_devices: int, nccl: bool, platform: str) -> str:
    """What the CUDA backend chooses by its own rules, as long as nothing fails: it does not tell.

    Args:
        asked: the environment variable GGML_CUDA_ALLREDUCE: ``nccl``, ``internal``, ``none``; None: not set.
        nccl: whether this build has NCCL.
        platform: as ``sys.platform``.
    """
    wanted = asked if asked is not None else "nccl" if platform.startswith("linux") else "internal"
    if wanted == "nccl" and nccl:
        return "NCCL"
    if wanted in ("nccl", "internal") and n_devices == 2:  # its own one is for two devices
        return "internal"
    return "butterfly"
