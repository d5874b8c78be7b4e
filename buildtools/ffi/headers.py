"""Which headers are bound, and how their declarations are taken out of the preprocessor's output."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path


class GenerationError(Exception):
    """The bindings cannot be generated; the text says what to do."""


@dataclass(frozen=True)
class Header:
    name: str
    folder: str  # below the llama.cpp source, or "native"
    part: str = ""  # the optional part of the build that it belongs to: "llama", "rpc" or none
    functions_only: bool = False  # an internal header: its structs stay opaque, they are nobody's business


HEADERS = (
    Header("ggml.h", "ggml/include"),
    Header("ggml-alloc.h", "ggml/include"),
    Header("ggml-backend.h", "ggml/include"),
    Header("ggml-cpu.h", "ggml/include"),
    Header("ggml-opt.h", "ggml/include"),
    Header("ggml-rpc.h", "ggml/include", part="rpc"),
    Header("gguf.h", "ggml/include"),
    Header("llama.h", "include", part="llama"),
    Header("ggml-backend-impl.h", "ggml/src", functions_only=True),
    Header("pyggml.h", "native"),
)


@dataclass
class Source:
    """The declarations of one header, in the order of the file, and its macros."""

    header: Header
    lines: list[str] = field(default_factory=list)


@dataclass
class Preprocessed:
    sources: list[Source]  # consecutive pieces; a header may occur more than once
    macros: dict[str, str]  # object-like macros of the bound headers: name -> body


def include_folders(source: Path, native: Path) -> list[Path]:
    folders = [source / "ggml/include", source / "ggml/src", source / "include", native]
    for folder in folders:
        if not folder.is_dir():
            raise GenerationError(f"{folder} is missing: --source must be a llama.cpp tree and --native pyggml's native/")
    return folders


def selected(without: set[str]) -> list[Header]:
    unknown = without - {h.part for h in HEADERS if h.part}
    if unknown:
        raise GenerationError(f"--without {', '.join(sorted(unknown))}: there is no such part")
    return [h for h in HEADERS if h.part not in without or not h.part]


# What is left in a declaration once these are gone is plain C that pycparser reads.
_NEUTRAL = (
    "-D__attribute__(x)=",
    "-D__extension__=",
    "-D__restrict=",
    "-D__inline=",
    "-D__asm__(x)=",
    "-D_Noreturn=",
)
_MARKER = re.compile(r'^#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')
_DEFINE = re.compile(r"^#\s*define\s+(\w+)(?:\s+(.*))?$")
_UNDEF = re.compile(r"^#\s*undef\s+(\w+)")


def preprocess(headers: list[Header], source: Path, native: Path, compiler: str) -> Preprocessed:
    """One run over all headers. The line markers tell which declaration comes from which file."""
    folders = include_folders(source, native)
    paths: dict[Path, Header] = {}
    for header in headers:
        path = (native if header.folder == "native" else source / header.folder) / header.name
        if not path.is_file():
            raise GenerationError(
                f"{path} is missing: this llama.cpp has no {header.name}. Adapt HEADERS in buildtools/ffi/headers.py"
            )
        paths[path.resolve()] = header
    with tempfile.TemporaryDirectory() as temp:
        unit = Path(temp) / "unit.c"
        unit.write_text("".join(f'#include "{h.name}"\n' for h in headers))
        command = [compiler, "-E", "-dD", "-std=c11", *_NEUTRAL, *(f"-I{f}" for f in folders), str(unit)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise GenerationError(f"{' '.join(command)}\nfailed:\n{result.stderr}")

    out = Preprocessed([], {})
    current: Header | None = None
    resolved: dict[str, Header | None] = {}
    for line in result.stdout.splitlines():
        if marker := _MARKER.match(line):
            name = marker.group(2)
            if name not in resolved:
                resolved[name] = paths.get(Path(name).resolve()) if not name.startswith("<") else None
            if resolved[name] is not current or not out.sources:
                current = resolved[name]
            if current is not None and (not out.sources or out.sources[-1].header is not current):
                out.sources.append(Source(current))
        elif define := _DEFINE.match(line):
            if current is not None and not current.functions_only:
                out.macros[define.group(1)] = (define.group(2) or "").strip()
        elif undef := _UNDEF.match(line):
            out.macros.pop(undef.group(1), None)
        elif current is not None and line.strip() and not line.startswith("#"):
            out.sources[-1].lines.append(line)
    seen = {s.header for s in out.sources}
    if missing := [h.name for h in headers if h not in seen]:
        raise GenerationError(f"the preprocessor's output has nothing of {', '.join(missing)}: were other files included?")
    return out
