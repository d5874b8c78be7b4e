"""supports_op is asked for every device's slice, not for the whole node: what a device cannot do with its part is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyggml as gg
from pyggml._ffi import ffi

SUPPORTS_OP = 9  # the place in struct ggml_backend_device_i (ggml-backend-impl.h)


def test_slices_are_asked_for() -> None:
    devices = gg.virtual_cpus(2, first=40)
    table = ffi.cast("void **", devices[1].ptr)
    before = table[SUPPORTS_OP]
    upstream = ffi.cast("bool (*)(ggml_backend_dev_t, const struct ggml_tensor *)", before)
    asked: list[tuple[int, int]] = []

    @ffi.callback("bool (ggml_backend_dev_t, const struct ggml_tensor *)")
    def supports(device: Any, op: Any) -> bool:
        """A device that multiplies at least 32 rows at once, or nothing."""
        if op.op == gg.lib.GGML_OP_MUL_MAT:
            asked.append((int(op.src[0].ne[0]), int(op.src[0].ne[1])))
            return bool(op.src[0].ne[1] >= 32)
        return bool(upstream(device, op))

    def run(split: str) -> Any:
        meta = gg.MetaDevice(devices, [("^w$", split)])
        with gg.Weights(meta, {"w": np.eye(64, dtype=np.float32)}) as weights, gg.Graph(meta) as graph:
            graph.output("y", weights["w"] @ graph.input("x", (64, 2)))
            return graph.run(x=np.ones((2, 64), np.float32))["y"]

    assert run("S1 3:1").sum() == 128
    table[SUPPORTS_OP] = ffi.cast("void *", supports)
    try:
        assert run("S1").sum() == 128  # 32 rows each
        asked.clear()
        with pytest.raises(gg.SplitError, match=r"'y' \(MUL_MAT.*device 1 \(VCPU41\) does not support its slice"):
            run("S1 3:1")
        assert (64, 16) in asked and (64, 64) not in asked
    finally:
        table[SUPPORTS_OP] = before
    assert run("S1 3:1").sum() == 128
