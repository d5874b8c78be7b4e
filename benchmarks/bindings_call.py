"""A call through pyggml.lib against the same call through ctypes: ggml_nelements of one tensor.

The ctypes side declares its arguments as ggml-python does (a Structure, a POINTER to it), and calls the very same
library.
"""

from __future__ import annotations

import ctypes
import timeit
from pathlib import Path

from _bench import Row, alternate, duration, parser, ratio, show

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


def measure(rounds: int, calls: int) -> list[Row]:
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

    library = type("Library", (), {"f": theirs})
    slow, fast = alternate(
        rounds,
        lambda: timeit.timeit("base.f(pointer)", globals={"base": library, "pointer": pointer}, number=calls) / calls,
        lambda: timeit.timeit("lib.ggml_nelements(tensor)", globals={"lib": lib, "tensor": tensor}, number=calls) / calls,
    )
    lib.ggml_free(context)
    value, spread = ratio(slow, fast)
    return [Row("a call (ggml_nelements), times as fast", duration(fast), f"ctypes: {duration(slow)}", value, 2.0, at_most=False, spread=spread)]


if __name__ == "__main__":
    args = parser(__doc__, rounds=25)
    args.add_argument("--calls", type=int, default=50_000, help="calls in one turn (default: 50000)")
    options = args.parse_args()
    show(measure(options.rounds, options.calls), options.json)
