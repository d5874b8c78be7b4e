"""`import pyggml` against `import numpy` alone, both in fresh processes.

pyggml loads its modules when they are first used, so the time until the first use is stated too: the bindings with all
shared libraries, and what a script with a graph needs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from _bench import Row, alternate, duration, parser, ratio, seconds, show

OURS = {
    "import pyggml": "import pyggml",
    "... and pyggml.lib": "import pyggml; pyggml.lib",
    "... and Graph, Model, compare": "import pyggml; pyggml.lib, pyggml.Graph, pyggml.Model, pyggml.compare",
}


def fresh(statement: str) -> float:
    # from elsewhere: with -c the current folder comes first, and a checkout has no libraries when an installation is measured
    return seconds(lambda: subprocess.run([sys.executable, "-c", statement], check=True, cwd=tempfile.gettempdir()))


def measure(rounds: int) -> list[Row]:
    fresh("; ".join(OURS.values()) + "; import numpy")  # byte code and page cache
    sides = ["import numpy", *OURS.values()]
    numpy, *ours = alternate(rounds, *(lambda s=s: fresh(s) for s in sides))  # type: ignore[misc]
    rows = []
    for what, taken in zip(OURS, ours, strict=True):
        value, spread = ratio(taken, numpy)
        rows.append(Row(what, duration(taken), f"import numpy: {duration(numpy)}", value, 2.0 if not rows else None, spread=spread))
    return rows


if __name__ == "__main__":
    options = parser(__doc__, rounds=15).parse_args()
    show(measure(options.rounds), options.json)
