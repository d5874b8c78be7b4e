"""The two ways to spread a model over devices, side by side: `layer` and `tensor`.

    python examples/tensor_or_layer.py                # a tiny model with random weights, two virtual CPUs
    python examples/tensor_or_layer.py model.gguf --devices CUDA0,CUDA1

layer    whole layers on each device. A token passes through the devices one after the other: only one of them works at
         a time, and all that travels is the state between two layers. It helps when a model does not fit on one device.
tensor   a part of every matrix on each device. All work at the same time, and twice in every layer they add up their
         parts (an all-reduce). It also makes a single answer faster, where the devices are connected well enough.

Both compute what one device computes, and share out the memory; this program shows all of that: results, all-reduces, bytes
on each device, and speed. (On a tiny model the all-reduces cost more than they save. That is what measuring is for.)
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyggml as gg
from pyggml.benchmark import BenchSetup, BenchTest, measure
from pyggml.testing import tiny_gguf

MODES = ("layer", "tensor")


def show(path: Path, devices: list[gg.Device]) -> None:
    tokens = list(range(1, 17))
    with gg.Model(path, n_batch=64) as one:
        for mode in MODES:
            with gg.Model(path, devices, split_mode=mode, n_batch=64) as model:
                print(f"=== {mode}")
                result = gg.compare_models(model, one, tokens).check()  # raises where they differ by more than rounding
                print(f"against one device: NMSE {result.nmse:.2g} (allowed {result.tolerance:g}), same top token {100 * result.same_top:.0f} %")
                if mode == "tensor":
                    plan = model.plan(n_tokens=1)
                    print(f"all-reduces for one token: {len(plan.allreduces)}, {plan.allreduce_bytes:,} bytes in all")
                else:
                    print("all-reduces for one token: 0")
                for use in model.default_context.memory():
                    print(f"  {use.device:12} weights {use.weights:>12,} B, caches {use.caches:>10,} B")

    print("=== speed, the configurations taking turns")
    setups = [BenchSetup(path, tuple(devices), gg.ModelOptions(split_mode=mode)) for mode in ("none", *MODES)]
    report = measure(setups, [BenchTest(n_prompt=64), BenchTest(n_gen=16)], repetitions=3)
    for r in report.results:
        print(f"{r.setup.name:24} {r.test!s:6} {r.avg_ts:9.1f} tokens/s, {r.speedup:5.2f} times {r.baseline}; sums by {r.reduction}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, help="the model (default: a tiny one)")
    parser.add_argument("--devices", default="vcpu:2", help="such as vcpu:2 or CUDA0,CUDA1 (default: vcpu:2)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.gguf or tiny_gguf(Path(folder) / "tiny.gguf", shares=((1, 1),), n_layer=4).path
        show(path, gg.parse_devices(args.devices))


if __name__ == "__main__":
    main()
