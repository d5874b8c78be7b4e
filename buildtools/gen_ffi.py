"""Generates pyggml's bindings: python buildtools/gen_ffi.py --source <llama.cpp> --native native --out <dir> --cc cc

Writes to <dir>:
  _lib_calls.cpp  every bound function behind a guard that turns aborts and exceptions into a pending error
  _lib.c          cffi's module pyggml._ffi._lib (stable ABI), which calls those and checks for errors
  _lib.pyi        its type stub
  _lib.json       what was bound and what was left out, for the tests

A file is only written when its content changes, so that a build does not repeat what is done.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ffi.declarations import Declarations, Function, parse
from ffi.emit import calls, module
from ffi.headers import GenerationError, preprocess, selected
from ffi.left_out import FUNCTIONS
from ffi.stub import stub


def bound(declarations: Declarations, without: set[str]) -> list[Function]:
    """The functions to bind: all but those left out with a reason, and each reason must have its function."""
    out: dict[str, Function] = {}
    for function in declarations.functions:
        if function.name in FUNCTIONS:
            continue
        if "llama" in without and function.name.startswith("pgg_llama_"):
            continue
        if function.variadic or function.inline or function.by_value:
            why = "is variadic" if function.variadic else "is inline" if function.inline else "passes an internal struct by value"
            raise GenerationError(
                f"{function.header}: {function.name} {why}, so it cannot be bound: "
                "add it to FUNCTIONS in buildtools/ffi/left_out.py with the reason, for the users who will look for it"
            )
        out.setdefault(function.name, function)
    declared = {f.name for f in declarations.functions}
    if stale := sorted(set(FUNCTIONS) - declared):
        raise GenerationError(f"buildtools/ffi/left_out.py names what no header declares any more: {', '.join(stale)}")
    return list(out.values())


def write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the llama.cpp source")
    parser.add_argument("--native", type=Path, required=True, help="the folder of pyggml.h")
    parser.add_argument("--out", type=Path, required=True, help="where to write")
    parser.add_argument("--cc", default="cc", help="the C compiler, as a preprocessor")
    parser.add_argument("--without", action="append", default=[], metavar="PART", help="llama or rpc, where it is not built")
    parser.add_argument("--module", default="pyggml._ffi._lib", help="the module's full name")
    options = parser.parse_args()
    without = set(options.without)
    try:
        headers = selected(without)
        declarations = parse(preprocess(headers, options.source, options.native, options.cc))
        functions = bound(declarations, without)
        texts = {
            "_lib_calls.cpp": calls(headers, functions),
            "_lib.c": module(headers, declarations, functions, options.module),
            "_lib.pyi": stub(declarations, functions),
            "_lib.json": json.dumps(
                {
                    "functions": [f.name for f in functions],
                    "left_out": FUNCTIONS,
                    "structs": declarations.structs,
                    "enums": declarations.enums,
                    "integers": declarations.integers,
                    "strings": declarations.strings,
                },
                indent=1,
            )
            + "\n",
        }
    except GenerationError as error:
        print(f"gen_ffi.py: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write(options.out / name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
