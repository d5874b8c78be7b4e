"""The C++ programs of tests/native, compiled against the libraries that Python uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyggml._ffi import _lib

ROOT = Path(__file__).resolve().parents[2]
LLAMA_CPP = Path(os.environ.get("PYGGML_LLAMA_CPP_DIR") or ROOT / "vendor/llama.cpp")
LIBRARIES = Path(_lib.__file__).resolve().parent.parent / "lib"
PROGRAMS = sorted(path.stem for path in (ROOT / "tests/native").glob("test_*.cpp"))


@pytest.fixture(scope="module")
def compile_program(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which("nm") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C++ compiler, nm and ELF libraries")
    if not LLAMA_CPP.is_dir():
        pytest.skip(f"needs the llama.cpp source in {LLAMA_CPP}")
    folder = tmp_path_factory.mktemp("native")
    libraries = sorted(LIBRARIES.glob("libpyggml-ggml*.so"))

    # llama.cpp's names carry a prefix in our libraries (cmake/symbols.cmake)
    names: set[str] = set()
    for library in libraries:
        listing = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
        names |= {line.split()[-1] for line in listing.stdout.splitlines()}
    pragmas = [f"#pragma redefine_extname {n.removeprefix('pyggml_')} {n}" for n in sorted(names) if n.startswith("pyggml_")]
    prefix = folder / "symbols.h"
    prefix.write_text("\n".join(pragmas) + "\n")

    def run(name: str) -> Path:
        program = folder / name
        includes = [ROOT / "native", LLAMA_CPP / "ggml/include", LLAMA_CPP / "ggml/src"]
        subprocess.run(
            [compiler, "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-pthread", "-include", prefix]
            + [f"-I{path}" for path in includes]
            + [ROOT / "tests/native" / f"{name}.cpp", "-o", program, *libraries, f"-Wl,-rpath,{LIBRARIES}"],
            check=True,
        )  # fmt: skip
        return program

    return run


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, compile_program) -> None:  # type: ignore[no-untyped-def]
    result = subprocess.run([compile_program(name)], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0 and result.stdout.endswith("ok\n"), f"status {result.returncode}\n{result.stdout}\n{result.stderr}"
