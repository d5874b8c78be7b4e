"""Writes docs/architectures.md: for every architecture of llama.cpp what tensor mode makes of it, measured now.

    python docs/make_architectures.py            # some minutes; --only NAME for one row on the screen
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from rich.progress import track

from pyggml import lib
from pyggml.model.arch_rules import ARCH_RULES
from pyggml.testing import ZOO
from pyggml.testing.exact import exact_gelu
from pyggml.testing.verify import SplitVerdict, verify_arch

SHARES = ((1, 1), (1, 1, 1), (3, 1))
HEAD = """# Architectures

What tensor mode makes of every architecture that llama.cpp knows, measured by `python docs/make_architectures.py` on tiny
models (pyggml.testing.tiny_gguf) over virtual CPU devices, F32 weights and caches: two devices, three, and shares 3:1,
prompts of 1 and 17 tokens, against one device.

- **llama.cpp**: whether it takes the architecture in tensor mode at all.
- **here**: *its rules* (llama.cpp's own work), *our rules* (`pyggml/model/arch_rules.py`: it refuses, or its rules cannot work),
  *not split* (right, but every device does everything), or why not.
- **NMSE**: the largest against one device. What is above 1e-12 goes through GELU, which ggml's CPU looks up in a table of F16;
  in brackets the same with its formula (`pyggml.testing.exact.exact_gelu`).
- **sums**: all-reduces per layer. **weights**, **caches**: the share of the bytes that is really split; the rest is whole on
  every device. Tiny models have small FFNs: in real ones more of the weights is split than here.

"""


def verdict(found: list[SplitVerdict], name: str) -> str:
    if any(v.error for v in found):
        return "no: " + next(v.error for v in found if v.error).splitlines()[0].partition(".gguf: ")[2].replace("|", "/")
    if not all(v.is_split for v in found):
        return "not split" + (f": {ARCH_RULES[name].why}" if name in ARCH_RULES else "")
    if name not in ARCH_RULES:
        return "its rules"
    return "our rules" + (f" ({ARCH_RULES[name].why})" if ARCH_RULES[name].why else "")


def row(name: str, moe: bool) -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = [verify_arch(name, folder, moe=moe, shares=shares) for shares in SHARES]
        error = f"{max(v.nmse for v in found):.1e}"
        if max(v.nmse for v in found) > 1e-12:
            with exact_gelu():
                error += f" ({max(verify_arch(name, folder, moe=moe, shares=shares).nmse for shares in SHARES):.1e})"
    label = f"{name} (MoE)" if moe and ZOO[name].moe == "both" else name
    takes = "yes" if lib.pgg_llama_arch_supports_tensor_split(name.encode()) else "no"
    if any(v.error for v in found):
        return f"| {label} | {takes} | {verdict(found, name)} | | | | |"
    two = found[0]
    caches = "-" if math.isnan(two.caches_split) else f"{two.caches_split:.0%}"
    sums = two.allreduces / two.n_layer
    return f"| {label} | {takes} | {verdict(found, name)} | {error} | {sums:.1f} | {two.weights_split:.0%} | {caches} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one architecture, to the screen")
    only = parser.parse_args().only
    cases = [(name, moe) for name, arch in ZOO.items() if arch.runs and only in (None, name) for moe in arch.variants]
    rows = [row(*case) for case in track(cases, description="verifying")]
    table = ["| architecture | llama.cpp | here | NMSE | sums | weights | caches |", "|---|---|---|---|---|---|---|", *rows]
    if only:
        print("\n".join(table))
        return
    counts = {kind: sum(f"| {kind}" in r for r in rows) for kind in ("its rules", "our rules", "not split", "no: ")}
    total = f"{len(rows)} variants: " + ", ".join(f"{n} {kind.strip(': ')}" for kind, n in counts.items()) + ".\n\n"
    rest = [f"- {name}: {arch.reason}" for name, arch in ZOO.items() if not arch.runs]
    text = HEAD + total + "\n".join(table) + "\n\nCannot run alone, or not at all:\n\n" + "\n".join(rest) + "\n"
    Path(__file__).with_name("architectures.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
