"""pyggml.lib holds what the libraries export, as the C compiler sees it."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyggml._ffi import _lib, ffi, lib

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "buildtools"))

from ffi import headers, left_out  # noqa: E402  (the bindings' generator, not the cffi object above)

SOURCE = ROOT / "vendor/llama.cpp"
LIBRARIES = Path(_lib.__file__).resolve().parent.parent / "lib"
API = re.compile(r"(ggml|gguf|llama|pgg)_\w+")


def exported() -> set[str]:
    """The C symbols of our shared libraries, without the prefix that keeps them from mixing with another ggml's."""
    files = [f for f in LIBRARIES.iterdir() if "pyggml-" in f.name]
    assert len(files) >= 4, f"{LIBRARIES} holds {files}"
    names: set[str] = set()
    for file in files:
        output = subprocess.run(["nm", "-D", "--defined-only", str(file)], capture_output=True, text=True, check=True).stdout
        names |= {line.split()[-1].removeprefix("pyggml_") for line in output.splitlines()}
    return {name for name in names if API.fullmatch(name)}


@pytest.fixture(scope="module")
def symbols() -> set[str]:
    if shutil.which("nm") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs nm and ELF libraries")
    return exported()


def patterns() -> dict[str, str]:
    """Those of what this build has."""
    found = dict(left_out.SYMBOLS)
    for library, symbols in left_out.BACKENDS.items():
        if any(library in f.name for f in LIBRARIES.iterdir()):
            found |= symbols
    return found


def reason(name: str) -> str | None:
    return left_out.FUNCTIONS.get(name) or next((r for p, r in patterns().items() if fnmatch.fnmatch(name, p)), None)


def test_every_exported_symbol_is_bound_or_left_out_with_a_reason(symbols: set[str]) -> None:
    assert len(symbols) > 900
    missing = {name for name in symbols if not hasattr(lib, name) and reason(name) is None}
    assert not missing, f"exported, but neither in lib nor in buildtools/ffi/left_out.py: {sorted(missing)}"


def test_nothing_is_left_out_without_need(symbols: set[str]) -> None:
    unneeded = {name for name in left_out.FUNCTIONS if hasattr(lib, name)}
    unneeded |= {p for p in patterns() if not any(fnmatch.fnmatch(s, p) for s in symbols)}
    both = {s for s in symbols if hasattr(lib, s) and reason(s) is not None}
    assert not unneeded, f"left out without need: {sorted(unneeded)}"
    assert not both, f"bound and yet listed as left out: {sorted(both)}"


ONE_OF_EACH = {
    "ggml.h": "ggml_mul_mat",
    "ggml-alloc.h": "ggml_gallocr_new",
    "ggml-backend.h": "ggml_backend_meta_device",
    "ggml-cpu.h": "ggml_cpu_init",
    "ggml-opt.h": "ggml_opt_fit",
    "ggml-rpc.h": "ggml_backend_rpc_add_server",
    "gguf.h": "gguf_init_from_file",
    "llama.h": "llama_model_load_from_file",
    "ggml-backend-impl.h": "ggml_backend_is_meta",
    "pyggml.h": "pgg_vcpu_device",
}


def test_functions_of_every_header_are_bound() -> None:
    for header in headers.HEADERS:
        function = ONE_OF_EACH[header.name]
        if not header.part or hasattr(lib, {"llama": "llama_decode", "rpc": "ggml_backend_rpc_init"}[header.part]):
            assert hasattr(lib, function), (header.name, function)


def test_macros() -> None:
    assert lib.GGML_MAX_DIMS == 4
    assert lib.LLAMA_DEFAULT_SEED == 0xFFFFFFFF
    assert lib.LLAMA_TOKEN_NULL == -1
    assert ffi.string(lib.GGUF_MAGIC) == b"GGUF"
    assert ffi.sizeof("struct ggml_tensor") == lib.GGML_TENSOR_SIZE


def complete_structs() -> dict[str, dict[str, object]]:
    found = {}
    for name in ffi.list_types()[1]:
        try:
            ffi.sizeof(f"struct {name}")
        except ffi.error:
            continue  # opaque
        found[name] = dict(ffi.typeof(f"struct {name}").fields)
    return found


def constants_of_lib() -> dict[str, int]:
    """Enumerators and integer macros."""
    variables = {"GGML_TENSOR_SIZE"}  # not a constant expression in C
    return {n: v for n in dir(lib) if isinstance(v := getattr(lib, n), int) and n not in variables}


def test_the_c_compiler_agrees_on_every_size_offset_and_constant(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not SOURCE.is_dir():
        pytest.skip("needs a C compiler and the llama.cpp source")
    structs, constants = complete_structs(), constants_of_lib()
    assert len(structs) > 25 and len(constants) > 400
    lines = ["#include <stddef.h>", *(f'#include "{h.name}"' for h in headers.HEADERS)]
    for name, fields in structs.items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {ffi.sizeof("struct " + name)}, "size of {name}");')
        lines += [
            f'_Static_assert(offsetof(struct {name}, {field}) == {info.offset}, "offset of {name}.{field}");'
            for field, info in fields.items()
        ]
    lines += [f'_Static_assert((long long) {name} == {value}LL, "{name}");' for name, value in constants.items()]
    unit = tmp_path / "layout.c"
    unit.write_text("\n".join(lines) + "\n")
    folders = [f"-I{f}" for f in headers.include_folders(SOURCE, ROOT / "native")]
    command = [compiler, "-std=c11", "-fsyntax-only", *folders, str(unit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # and the check can fail
    size = ffi.sizeof("struct ggml_tensor")
    unit.write_text(unit.read_text().replace(f"sizeof(struct ggml_tensor) == {size}", f"sizeof(struct ggml_tensor) == {size + 8}"))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_all_of_lib_can_be_read() -> None:
    for name in dir(lib):
        getattr(lib, name)
    for name in ffi.list_types()[0]:
        ffi.typeof(name)


def test_the_stub_names_what_lib_has() -> None:
    stub = Path(_lib.__file__).with_name("_lib.pyi")
    if not stub.is_file():  # an editable install keeps it elsewhere
        pytest.skip("no _lib.pyi beside the module")
    names = set(re.findall(r"^    (?:def )?(\w+)[(:]", stub.read_text(), re.M))
    real = {n for n in dir(lib) if not n.startswith("_")}
    assert real - names <= {"GGML_TENSOR_SIZE"}
    assert names - real == set()
