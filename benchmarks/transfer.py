"""Upload and download of 256 MiB to one device, against `numpy.copyto` of as many bytes.

Like is compared with like. Into memory that is there already: a write into a tensor, `Tensor.numpy(out=...)`, and
`numpy.copyto` into an array that was used before. Into memory that must be made first, which costs as much again because
the kernel has to hand out its pages: `Weights(...)`, `Tensor.numpy()`, and `numpy.copyto` into a new `numpy.empty`.
"""

from __future__ import annotations

import numpy as np
from _bench import Row, alternate, duration, parser, ratio, seconds, show

import pyggml
from pyggml import ffi, lib


def measure(device: pyggml.Device, mib: int, rounds: int) -> list[Row]:
    source = np.random.default_rng(0).standard_normal((mib, 1 << 18), dtype=np.float32)
    there = np.zeros_like(source)
    out = np.zeros_like(source)
    rows = []

    def new_copy() -> None:
        np.copyto(np.empty_like(source), source)

    with pyggml.Weights(device, {"w": source}) as weights:
        w = weights["w"]

        def write() -> None:
            lib.ggml_backend_tensor_set(w.ptr, ffi.from_buffer(source), 0, source.nbytes)

        def place() -> float:
            made: list[pyggml.Weights] = []
            taken = seconds(lambda: made.append(pyggml.Weights(device, {"w": source})))
            made[0].close()
            return taken

        copy, upload, download, copy_new, upload_new, download_new = alternate(
            rounds,
            lambda: seconds(lambda: np.copyto(there, source)),
            lambda: seconds(write),
            lambda: seconds(lambda: w.numpy(out=out)),
            lambda: seconds(new_copy),
            place,
            lambda: seconds(w.numpy),
        )
        if not np.array_equal(out, source):
            raise SystemExit(f"{device.name}: what was read is not what was written")
    for what, taken, against in (
        ("upload", upload, copy),
        ("download", download, copy),
        ("upload, new memory", upload_new, copy_new),
        ("download, new memory", download_new, copy_new),
    ):
        value, spread = ratio(against, taken)
        name = f"{device.name}: {what}, {mib} MiB, speed"
        rows.append(Row(name, duration(taken), f"copyto: {duration(against)}", value, 0.8, at_most=False, spread=spread))
    return rows


if __name__ == "__main__":
    args = parser(__doc__, rounds=15)
    args.add_argument("--mib", type=int, default=256, help="size of the tensor (default: 256)")
    options = args.parse_args()
    found = [row for device in (pyggml.cpu(), *pyggml.virtual_cpus(1)) for row in measure(device, options.mib, options.rounds)]
    show(found, options.json)
