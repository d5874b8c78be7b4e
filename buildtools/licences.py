"""Collects the licences of what is compiled into pyggml's libraries; called by cmake/licences.cmake.

llama.cpp's own licence is a file. Parts that it took from others carry theirs at the head of a source file, or name
their authors in a comment: those are copied out, so that they travel with a binary.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SGEMM = "ggml/src/ggml-cpu/llamafile/sgemm.cpp"
YARN = "ggml/src/ggml-cpu/ops.cpp"


def leading_comment(path: Path) -> str:
    """The first block of // lines."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("//"):
            break
        lines.append(line.removeprefix("//").removeprefix(" ").rstrip())
    return "\n".join(lines) + "\n"


def collect(source: Path) -> dict[str, str]:
    own = (source / "LICENSE").read_text(encoding="utf-8")
    out = {"LICENSE": own}

    sgemm = leading_comment(source / SGEMM)
    if "Permission is hereby granted" not in sgemm:
        raise SystemExit(
            f"{SGEMM} no longer begins with its licence: see where it went, and adapt buildtools/licences.py"
        )
    out["LICENSE-llamafile"] = f"The matrix multiplication of {SGEMM}:\n\n{sgemm}"

    found = re.search(r"^// MIT licensed\. (Copyright .*)$", (source / YARN).read_text(encoding="utf-8"), re.MULTILINE)
    terms = own.find("Permission is hereby granted")
    if found is None or terms < 0:
        raise SystemExit(
            f"{YARN} no longer names the authors of YaRN: see where they went, and adapt buildtools/licences.py"
        )
    out["LICENSE-yarn"] = f"The rotary embedding of YaRN in {YARN}:\n\nMIT License\n\n{found[1]}\n\n{own[terms:]}"

    for path in sorted((source / "licenses").glob("*")):
        out[path.name] = path.read_text(encoding="utf-8")
    return out


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    for name, text in collect(source).items():
        (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
