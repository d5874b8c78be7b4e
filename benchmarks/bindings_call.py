"""A call through pyggml.lib against the same call through ctypes: ggml_nelements of one tensor.

The ctypes side declares its arguments as ggml-python does (a Structure, a POINTER to it), and calls the very same
library. Both are measured alternately in one process; the ratio is of medians. To reach: >= 2.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import timeit
from pathlib import Path

from pyggml._ffi import _lib, ffi, lib


class ggml_tensor(ctypes.Structure):
    pass


ggml_tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * lib.GGML_MAX_DIMS),
    ("nb", ctypes.c_size_t * lib.GGML_MAX_DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * (lib.GGML_MAX_OP_PARAMS // 4)),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(ggml_tensor) * lib.GGML_MAX_SRC),
    ("view_src", ctypes.POINTER(ggml_tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * lib.GGML_MAX_NAME),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=100_000)
    options = parser.parse_args()

    folder = Path(_lib.__file__).resolve().parent.parent / "lib"
    base = ctypes.CDLL(str(next(folder.glob("libpyggml-ggml-base.*"))))
    try:
        theirs = base.pyggml_ggml_nelements  # symbols carry a prefix of ours on Linux
    except AttributeError:
        theirs = base.ggml_nelements
    theirs.argtypes = [ctypes.POINTER(ggml_tensor)]
    theirs.restype = ctypes.c_int64

    assert ctypes.sizeof(ggml_tensor) == ffi.sizeof("struct ggml_tensor")
    context = lib.ggml_init({"mem_size": 1 << 20, "mem_buffer": ffi.NULL, "no_alloc": True})
    tensor = lib.ggml_new_tensor_2d(context, lib.GGML_TYPE_F32, 64, 32)
    pointer = ctypes.cast(int(ffi.cast("uintptr_t", tensor)), ctypes.POINTER(ggml_tensor))
    assert theirs(pointer) == lib.ggml_nelements(tensor) == 2048

    through_ctypes: list[float] = []
    through_lib: list[float] = []
    for _ in range(options.rounds):
        for seconds, statement, names in (
            (through_ctypes, "base.f(pointer)", {"base": type("Library", (), {"f": theirs}), "pointer": pointer}),
            (through_lib, "lib.ggml_nelements(tensor)", {"lib": lib, "tensor": tensor}),
        ):
            seconds.append(timeit.timeit(statement, globals=names, number=options.calls) / options.calls)
    lib.ggml_free(context)
    slow, fast = statistics.median(through_ctypes), statistics.median(through_lib)
    print(f"ctypes {slow * 1e9:.0f} ns, pyggml.lib {fast * 1e9:.0f} ns: {slow / fast:.2f}x as fast (to reach: >= 2)")
    return slow / fast


if __name__ == "__main__":
    main()
