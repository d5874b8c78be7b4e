"""`import pyggml` against `import numpy` alone, both in fresh processes, measured alternately; the ratio is of medians.

To reach: <= 2.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    ours: list[float] = []
    numpy: list[float] = []
    seconds("import pyggml, numpy")  # byte code and page cache
    for _ in range(options.rounds):
        numpy.append(seconds("import numpy"))
        ours.append(seconds("import pyggml"))
    ratio = statistics.median(ours) / statistics.median(numpy)
    print(
        f"import pyggml {statistics.median(ours) * 1e3:.0f} ms, import numpy {statistics.median(numpy) * 1e3:.0f} ms: "
        f"{ratio:.2f}x (to reach: <= 2)"
    )
    return ratio


if __name__ == "__main__":
    main()
