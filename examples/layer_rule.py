"""Split one layer of a model otherwise than the rest, and prove that nothing else changes.

    python examples/layer_rule.py                     # a tiny model with random weights, two virtual CPUs
    python examples/layer_rule.py model.gguf --layer 12 --devices CUDA0,CUDA1

In tensor mode llama.cpp decides how every weight is split. Rules of your own stand in front: a regular expression for
names of tensors, and a split. The first rule that is found in a name decides; llama.cpp decides the rest. Here the FFN of
one layer gets the shares 1:3, the other layers keep theirs:

    ffn_gate, ffn_up  "S1 1:3"   along ggml's axis 1, the columns: each device computes some of the FFN's values ...
    ffn_down          "S0 1:3"   ... and multiplies just those; the results are summed by an all-reduce

The three belong together. A rule that forgets ffn_down is refused before anything runs, with the node at which it goes
wrong and a repair: pyggml proves every placement, and computes nothing that it cannot show to be right.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyggml as gg
from pyggml.testing import tiny_gguf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="?", type=Path, help="the model, with a dense FFN (default: a tiny one)")
    parser.add_argument("--layer", type=int, default=1, help="the layer that is to differ (default: 1)")
    parser.add_argument("--devices", default="vcpu:2", help="two devices (default: vcpu:2)")
    args = parser.parse_args()
    # half of everything for each device, and a quarter of the FFN for the first
    with tempfile.TemporaryDirectory() as folder:
        path = args.gguf or tiny_gguf(Path(folder) / "tiny.gguf", shares=((1, 1), (1, 3)), n_layer=3).path
        show(path, args.devices, args.layer)


def show(path: Path, devices: str, layer: int) -> None:
    gate_and_up = gg.rule(rf"^blk\.{layer}\.ffn_(gate|up)\.", "S1 1:3")
    down = gg.rule(rf"^blk\.{layer}\.ffn_down\.", "S0 1:3")

    print("=== forgetting ffn_down")
    try:
        gg.plan_model(path, devices, rules=[gate_and_up])
    except gg.SplitError as error:
        print(f"refused: {error}")

    print("\n=== what the two rules change")
    plain = gg.plan_model(path, devices)
    mine = gg.plan_model(path, devices, rules=[gate_and_up, down])
    print(plain.diff(mine))

    print("\n=== the rules as a file, for gg.load_rules() and pyggml plan --rule @FILE")
    print(gg.rules_to_toml([gate_and_up, down]))

    print("=== does it still compute the same?")
    with (
        gg.Model(path, devices, split_mode="tensor", rules=[gate_and_up, down]) as split,
        gg.Model(path) as whole,
    ):
        for name, decision in split.decisions.items():
            print(f"{name}: asked {decision.asked}, achieved {decision.state}")
        print(gg.compare_models(split, whole, list(range(1, 17))).check())


if __name__ == "__main__":
    main()
