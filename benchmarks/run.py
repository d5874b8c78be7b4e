"""Runs benchmarks, each in a process of its own, and prints one table in Markdown.

    python benchmarks/run.py                 all of them, some minutes
    python benchmarks/run.py import_time     those that are named
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from _bench import LEFT_OUT, Row, markdown

NAMES = ("import_time", "bindings_call", "graph_run", "transfer", "model_speed", "llama_bench", "plan_speed", "plan_value", "page_speed", "trace_cost")


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}")
    names = args.parse_args().names or list(NAMES)
    if unknown := set(names) - set(NAMES):
        args.error(f"no benchmark {sorted(unknown)[0]!r}; there are {', '.join(NAMES)}")
    rows: list[Row] = []
    failed = 0
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        program = Path(__file__).with_name(f"{name}.py")
        done = subprocess.run([sys.executable, str(program), "--json"], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode == LEFT_OUT:
            continue
        if done.returncode:
            print(f"{name} failed with status {done.returncode}", file=sys.stderr)
            failed = 1
            continue
        rows += [Row(**row) for row in json.loads(done.stdout)]
    print(markdown(rows))
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"\n{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}{load}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
