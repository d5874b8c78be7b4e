"""Another ggml in the same process is never mixed up with ours: not its library, and none of its symbols."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyggml._ffi import _lib

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ELF symbol look-up; macOS binds symbols to libraries")

MODULE = Path(_lib.__file__)
LIBRARIES = sorted((MODULE.parent.parent / "lib").glob("libpyggml-*.so"))

# Run in a process of its own. The foreign library's functions end the process with status 86 and their name, but for
# ggml_nelements, which shows that it is the foreign one.
SCRIPT = r"""
import ctypes, sys
path, when, mode = sys.argv[1], sys.argv[2], getattr(ctypes, sys.argv[3])

def load_foreign():
    foreign = ctypes.CDLL(path, mode=mode)
    assert foreign.ggml_nelements(None) == 12345

if when == "before":
    load_foreign()
from pyggml._ffi import ffi, lib
if when == "after":
    load_foreign()

def compute():
    context = lib.ggml_init({"mem_size": 1 << 20, "mem_buffer": ffi.NULL, "no_alloc": True})
    a = lib.ggml_new_tensor_2d(context, lib.GGML_TYPE_F32, 4, 3)
    b = lib.ggml_new_tensor_2d(context, lib.GGML_TYPE_F32, 4, 2)
    assert lib.ggml_nelements(a) == 12
    c = lib.ggml_mul_mat(context, a, b)
    graph = lib.ggml_new_graph(context)
    lib.ggml_build_forward_expand(graph, c)
    backend = lib.ggml_backend_init_by_name(b"CPU", ffi.NULL)
    assert backend != ffi.NULL
    buffer = lib.ggml_backend_alloc_ctx_tensors(context, backend)
    values_a, values_b = [float(i) for i in range(12)], [float(i % 5) for i in range(8)]
    lib.ggml_backend_tensor_set(a, ffi.new("float[]", values_a), 0, 48)
    lib.ggml_backend_tensor_set(b, ffi.new("float[]", values_b), 0, 32)
    assert lib.ggml_backend_graph_compute(backend, graph) == lib.GGML_STATUS_SUCCESS
    out = ffi.new("float[6]")
    lib.ggml_backend_tensor_get(c, out, 0, 24)
    expected = [sum(values_a[4 * i + k] * values_b[4 * j + k] for k in range(4)) for j in range(2) for i in range(3)]
    assert list(out) == expected, (list(out), expected)
    lib.ggml_backend_buffer_free(buffer)
    lib.ggml_backend_free(backend)
    lib.ggml_free(context)

compute()
metadata = lib.gguf_init_empty()
lib.gguf_set_val_u32(metadata, b"answer", 42)
assert lib.gguf_get_val_u32(metadata, lib.gguf_find_key(metadata, b"answer")) == 42
lib.gguf_free(metadata)
rows = ffi.new("float[]", [i / 16 for i in range(64)])
packed = ffi.new("char[]", 68)
assert lib.ggml_quantize_chunk(lib.GGML_TYPE_Q8_0, rows, packed, 0, 2, 32, ffi.NULL) == 68
assert lib.pgg_vcpu_device(0, 1, 0) != ffi.NULL
if hasattr(lib, "llama_backend_init"):
    lib.llama_backend_init()
    assert b"CPU" in ffi.string(lib.llama_print_system_info())
    try:
        model = lib.llama_model_load_from_file(b"no such file.gguf", lib.llama_model_default_params())
    except Exception:
        model = ffi.NULL  # libllama said no, ours and not the other one
    assert model == ffi.NULL
compute()
print("right")
"""


def symbols(library: Path, *flags: str) -> list[str]:
    out = subprocess.run(
        ["nm", "-D", "--format=posix", *flags, str(library)], capture_output=True, text=True, check=True
    )
    return [line.split()[0].partition("@")[0] for line in out.stdout.splitlines()]


def is_foreign_too(symbol: str) -> bool:
    """Could another build of ggml or llama.cpp have this C++ symbol?"""
    return re.match(r"_ZT?[IVSNK]*\d+(llama|llm|ggml|gguf|unicode|quantize)", symbol) is not None


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the SONAME of ggml's own and every symbol that another build of it would have."""
    cc = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if cc is None:
        pytest.skip("needs a C compiler")
    ours = {symbol for library in LIBRARIES for symbol in symbols(library, "--defined-only")}
    plain = {symbol.removeprefix("pyggml_") for symbol in ours if symbol.startswith("pyggml_")}
    plain |= {symbol for symbol in ours if re.match("ggml|gguf|llama|quantize|dequantize", symbol)}
    mangled = {symbol for symbol in ours if is_foreign_too(symbol)}
    assert len(plain) > 900 and len(mangled) > 100, (len(plain), len(mangled))
    lines = ["#include <stdio.h>", "#include <unistd.h>", "long ggml_nelements(void * t) { (void) t; return 12345; }"]
    lines += [
        f'void stub_{i}(void) __asm__("{symbol}");'
        f'void stub_{i}(void) {{ fprintf(stderr, "foreign {symbol} was called\\n"); _exit(86); }}'
        for i, symbol in enumerate(sorted((plain | mangled) - {"ggml_nelements"}))
    ]
    directory = tmp_path_factory.mktemp("foreign")
    (directory / "foreign.c").write_text("\n".join(lines) + "\n")
    library = directory / "libggml-base.so.0"
    subprocess.run(
        [cc, "-shared", "-fPIC", "-O0", "-Wl,-soname,libggml-base.so.0", "-o", str(library), str(directory / "foreign.c")],
        check=True,
    )  # fmt: skip
    return library


def run(library: Path, when: str, mode: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library), when, mode],
        env=os.environ | env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["RTLD_LOCAL", "RTLD_GLOBAL"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_beside_another_ggml(foreign: Path, when: str, mode: str) -> None:
    result = run(foreign, when, mode)
    assert (result.returncode, result.stdout) == (0, "right\n"), result.stderr


def test_with_another_ggml_preloaded(foreign: Path) -> None:
    result = run(foreign, "before", "RTLD_GLOBAL", LD_PRELOAD=str(foreign))
    assert (result.returncode, result.stdout) == (0, "right\n"), result.stderr


def test_the_foreign_library_would_be_noticed(foreign: Path) -> None:
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).ggml_init()"
    result = subprocess.run([sys.executable, "-c", script, str(foreign)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (86, "foreign ggml_init was called\n")


def test_names_and_run_paths_are_our_own() -> None:
    assert {"libpyggml-ggml-base.so", "libpyggml-ggml.so", "libpyggml-ggml-cpu.so"} <= {path.name for path in LIBRARIES}
    for path in [*LIBRARIES, MODULE]:
        assert not path.is_symlink()
        out = subprocess.run(["readelf", "-d", "-W", str(path)], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", out)
        assert not [name for name in needed if re.match(r"lib(ggml|llama)", name)], (path, needed)
        assert re.search(r"\(SYMBOLIC\)", out), path
        if path != MODULE:
            assert re.findall(r"\(SONAME\).*\[(.*)\]", out) == [path.name]
        run_path = re.findall(r"\(RUNPATH\).*\[(.*)\]", out)
        assert all(part.startswith("$ORIGIN") for part in run_path[0].split(":")), (path, run_path)


def test_only_prefixed_symbols_go_from_library_to_library() -> None:
    # whatever the loader looks up by name in the whole process must be a name that no other ggml has
    defined = {path: set(symbols(path, "--defined-only")) for path in LIBRARIES}
    for path in [*LIBRARIES, MODULE]:
        others = set().union(*(names for other, names in defined.items() if other != path))
        own = defined.get(path, set())
        crossing = (set(symbols(path, "--undefined-only")) & others) - own
        assert crossing or path.name == "libpyggml-ggml-base.so", path
        assert [name for name in sorted(crossing) if not re.match(r"pyggml_|pgg_|_ZT?[IVSNK]*3pgg", name)] == []
    unique = [line for path in LIBRARIES for line in symbols_of_type(path, "u")]
    assert unique == []  # one per process, whatever the scope


def symbols_of_type(library: Path, kind: str) -> list[str]:
    out = subprocess.run(["nm", "-D", "--format=posix", str(library)], capture_output=True, text=True, check=True)
    return [line for line in out.stdout.splitlines() if line.split()[1:2] == [kind]]
