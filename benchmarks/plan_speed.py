"""The plan of llama-70B Q4_K_M from its header: 128k vocabulary, context 8192, 2 devices; 8 devices stated.

Every plan is made in a fresh process. Measured are the seconds of `plan_model` (llama.cpp reading the vocabulary
included, which is also measured alone: it is the floor), and the peak of that process's resident memory. The plan from a
file that ends behind its header must equal the one from the full file (sparse: its weights are a hole).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _bench import Row, alternate, duration, parser, ratio, seconds, show

N_CTX = 8192


def child(path: str, devices: int) -> None:
    """Makes a plan (devices = 0: only lets llama.cpp read the vocabulary) and prints what it cost."""

    from pyggml import ffi, lib
    from pyggml.model import ModelOptions, plan_model

    lib.llama_backend_init()
    digest, nodes = "", 0
    if devices == 0:
        params = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
        params.vocab_only = True
        taken = seconds(lambda: lib.llama_model_free(lib.llama_model_load_from_file(path.encode(), params[0])))
    else:
        made: list[Any] = []
        options = ModelOptions("tensor", n_ctx=N_CTX)
        taken = seconds(lambda: made.append(plan_model(path, f"sim:{devices}", options=options)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        digest = hashlib.sha256(made[0].to_json().encode()).hexdigest()
        nodes = len(made[0].nodes)
        print(json.dumps({"seconds": taken, "mib": peak / 1024, "digest": digest, "nodes": nodes}))
        return
    print(json.dumps({"seconds": taken}))


def fresh(path: Path, devices: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(path), str(devices)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def measure(rounds: int, preset: str) -> list[Row]:
    from pyggml.gguf_check import TruncatedFileError, check_gguf
    from pyggml.testing.header import llama_header

    with tempfile.TemporaryDirectory(prefix="pyggml-") as folder:
        full = llama_header(Path(folder) / "full.gguf", preset)
        header = Path(folder) / "header.gguf"
        # of the file no more than its header
        with full.open("rb") as file:
            size = min(t.offset for t in check_gguf(full).tensors)
            header.write_bytes(file.read(size))
        try:
            check_gguf(header)
            raise SystemExit("the header was not cut")
        except TruncatedFileError:
            pass
        vocabulary, two, eight = alternate(rounds, lambda: fresh(full, 0), lambda: fresh(header, 2), lambda: fresh(header, 8))
        same = fresh(full, 2)["digest"] == two[0]["digest"]
    if not same or len({plan["digest"] for plan in two}) != 1:
        raise SystemExit("the plan from the header differs from the plan from the full file")
    floor = [one["seconds"] for one in vocabulary]
    rows = []
    for devices, plans in ((2, two), (8, eight)):
        taken, mib = [one["seconds"] for one in plans], sorted(one["mib"] for one in plans)
        what, stated = f"plan of {preset}, {devices} devices, {plans[0]['nodes']} nodes", devices == 2
        value, _ = ratio(taken, [1.0] * len(taken))
        spread = f"{sorted(taken)[len(taken) // 4]:.2f} to {sorted(taken)[-1 - len(taken) // 4]:.2f}"
        rows.append(Row(what, duration(taken), f"its vocabulary alone: {duration(floor)}", value, 2.0 if stated else None, unit="s", spread=spread))
        rows.append(Row(f"{what}: peak RSS", f"{mib[-1]:.0f} MiB", "-", mib[-1], 300.0 if stated else None, unit="MiB"))
    return rows


def main() -> None:
    args = parser(__doc__, rounds=5)
    args.add_argument("--preset", default="llama-70b", help="a preset of pyggml.testing.llama_header (default: llama-70b)")
    args.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = args.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    show(measure(options.rounds, options.preset), options.json)


if __name__ == "__main__":
    main()
