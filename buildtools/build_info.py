"""Writes pyggml/_build_info.py; called by cmake/build_info.cmake.

The build id names everything that decides whether two binaries fit together: the facts given here and the text of
every native source. It is made anew only when one of them changes.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from pprint import pformat

LISTS = ("libraries",)
FLAGS = ("options",)


def describe(facts: list[str], native: Path) -> dict[str, object]:
    info: dict[str, object] = {}
    for fact in facts:
        key, _, value = fact.partition("=")
        items = [item for item in value.split(";") if item]
        if key in FLAGS:
            info[key] = {name: state == "ON" for name, _, state in (item.partition("=") for item in items)}
        elif key in LISTS:
            info[key] = items
        else:
            info[key] = value
    digest = hashlib.sha256(repr(sorted(facts)).encode())
    for path in sorted(native.rglob("*")):
        if path.suffix in (".h", ".inc", ".c", ".cpp"):
            digest.update(path.relative_to(native).as_posix().encode() + b"\0" + path.read_bytes())
    info["build_id"] = digest.hexdigest()[:16]
    return info


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("facts", nargs="+", metavar="KEY=VALUE")
    parser.add_argument("--native", type=Path, required=True)
    parser.add_argument("--editable", nargs=2, metavar=("SOURCE", "BUILD"))
    args = parser.parse_args()
    info = describe(args.facts, args.native)
    text = f'"""Written by the build; read it through pyggml.build_info()."""\n\nINFO = {pformat(info, width=100)}\n'
    if args.editable:
        text += f"\n# an editable install: what pyggml/_editable.py rebuilds, and where\nEDITABLE = {tuple(args.editable)!r}\n"
    else:
        text += "\nEDITABLE = None\n"
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
