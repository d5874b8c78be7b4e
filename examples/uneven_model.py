"""Split a model unevenly over two devices, and look at what comes of it.

    python examples/uneven_model.py                               # a tiny model with random weights, two virtual CPUs
    python examples/uneven_model.py model.gguf --devices CUDA0,CUDA1 --shares 5,3

Shares are what you ask for; devices get whole things. llama.cpp's own rules give each device whole groups of attention
heads and multiples of 128 columns of the FFN; where that does not come out even, the layers take turns in who has more.
So first look at the plan, which needs nothing but the file's header: no weight is read and no memory is allocated. It says
what every device would hold, which shares could not be had, and where the devices have to add up what each has a part of
("all-reduce"). Then load the model and see the same bytes on the devices.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyggml as gg
from pyggml.testing import tiny_gguf


def percent(parts: tuple[float, ...]) -> str:
    return " : ".join(f"{100 * part:.1f} %" for part in parts)


def look(path: Path, devices: str, shares: list[float]) -> None:
    # 1. what would happen
    plan = gg.plan_model(path, devices, options=gg.ModelOptions("tensor", tensor_split=tuple(shares)))
    print(plan.table("layers"))  # "nodes": every operation
    print(plan.summary())

    # 2. asked for and achieved
    print(f"\nasked for: {percent(tuple(s / sum(shares) for s in shares))}")
    print(f"bytes of the split weights: {percent(plan.share_of_weights())}")
    missed = plan.missed_shares()
    print(f"weights and caches whose shares could not be had: {len(missed)}")
    for leaf in missed[:1]:
        print(f"  such as {leaf.name}: {leaf.split}, that is {percent(plan.achieved_shares(leaf.name))}")

    # 3. the same, for real
    with gg.Model(path, devices, split_mode="tensor", tensor_split=shares) as model:
        logits = model.logits([1, 2, 3])
        print(f"\nlogits of three tokens: {logits.shape}, largest {logits.max():.3f}")
        for use in model.default_context.memory():
            print(f"  {use.device:12} weights {use.weights:>12,} B, caches {use.caches:>10,} B, to compute in {use.compute:>10,} B")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, help="the model (default: a tiny one)")
    parser.add_argument("--devices", default="vcpu:2", help="such as vcpu:2 or CUDA0,CUDA1 (default: vcpu:2)")
    parser.add_argument("--shares", help="one for each device, with commas (default: 3,1, and for comparison 2,1)")
    args = parser.parse_args()
    asked = [args.shares] if args.shares else ["3,1", "2,1"]
    with tempfile.TemporaryDirectory() as folder:
        # a model whose heads and columns can be divided 3:1; 2:1 cannot be had exactly
        path = args.gguf or tiny_gguf(Path(folder) / "tiny.gguf", shares=((3, 1),)).path
        for shares in asked:
            print(f"=== {path.name} over {args.devices}, shares {shares}")
            look(path, args.devices, [float(s) for s in shares.split(",")])


if __name__ == "__main__":
    main()
