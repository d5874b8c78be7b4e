"""Failures of native code arrive as exceptions, on the thread whose call failed, with the reason that was logged."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyggml import errors
from pyggml._ffi import ffi, lib, non_null, reason


@pytest.fixture
def context() -> Iterator[Any]:
    ctx = lib.ggml_init({"mem_size": 1 << 20, "mem_buffer": ffi.NULL, "no_alloc": True})
    yield ctx
    lib.ggml_free(ctx)


def matrices(ctx: Any) -> tuple[Any, Any]:
    return lib.ggml_new_tensor_2d(ctx, lib.GGML_TYPE_F32, 4, 8), lib.ggml_new_tensor_2d(ctx, lib.GGML_TYPE_F32, 5, 8)


def test_an_assertion_is_an_exception(context: Any) -> None:
    a, b = matrices(context)
    with pytest.raises(errors.GGMLAbort, match=r"^ggml\.c:\d+: GGML_ASSERT\(ggml_can_mul_mat\(a, b\)\) failed$") as info:
        lib.ggml_mul_mat(context, a, b)
    assert isinstance(info.value, RuntimeError)
    assert lib.ggml_nelements(a) == 32  # and the next call works
    assert lib.pgg_error_pending() == lib.PGG_ERROR_NONE
    assert lib.pgg_guard_depth() == 0


def test_what_was_logged_is_in_the_message() -> None:
    with pytest.raises(errors.GGMLAbort, match=r"(?s)GGML_ASSERT.*log: .*insufficient memory") as info:
        lib.ggml_init({"mem_size": 1 << 60, "mem_buffer": ffi.NULL, "no_alloc": False})
    assert any("insufficient memory" in line for line in info.value.log)


def test_a_reason_does_not_outlive_its_call(context: Any) -> None:
    with pytest.raises(errors.GGMLAbort):
        lib.ggml_init({"mem_size": 1 << 60, "mem_buffer": ffi.NULL, "no_alloc": False})
    a, b = matrices(context)
    with pytest.raises(errors.GGMLAbort) as info:
        lib.ggml_mul_mat(context, a, b)
    assert info.value.log == ()


def test_null_results_get_their_reason() -> None:
    pointer = lib.gguf_init_from_file(b"/there/is/no/such/file.gguf", {"no_alloc": True, "ctx": ffi.NULL})
    assert any("file.gguf" in line for line in reason())
    with pytest.raises(errors.FileFormatError, match=r"(?s)^cannot open it\n  log: .*file\.gguf"):
        non_null(pointer, "cannot open it", errors.FileFormatError)


def test_out_of_memory_in_cpp() -> None:
    gguf = lib.gguf_init_empty()
    with pytest.raises(MemoryError) as info:
        lib.gguf_set_arr_data(gguf, b"big", lib.GGUF_TYPE_INT8, ffi.NULL, 1 << 60)
    assert type(info.value) is errors.OutOfMemoryError
    with pytest.raises(errors.NativeError, match="vector"):  # std::length_error
        lib.gguf_set_arr_data(gguf, b"bigger", lib.GGUF_TYPE_INT8, ffi.NULL, (1 << 64) - 1)
    lib.gguf_free(gguf)


@pytest.mark.parametrize(
    ("kind", "cls", "builtin"),
    [
        ("ABORT", errors.GGMLAbort, RuntimeError),
        ("SPLIT", errors.SplitError, ValueError),
        ("MEMORY", errors.OutOfMemoryError, MemoryError),
        ("DEVICE", errors.DeviceLostError, RuntimeError),
        ("ARGUMENT", errors.ArgumentError, ValueError),
        ("CPP", errors.NativeError, RuntimeError),
        ("CALLBACK", errors.NativeError, RuntimeError),  # without a kept exception
        ("FORK", errors.ForkError, RuntimeError),
    ],
)
def test_every_kind_has_its_class(kind: str, cls: type[errors.Error], builtin: type[Exception]) -> None:
    lib.pgg_error_set(getattr(lib, f"PGG_ERROR_{kind}"), b"told so")
    lib.pgg_error_set(lib.PGG_ERROR_CPP, b"later ones do not count")
    with pytest.raises(builtin, match="told so") as info:
        lib.ggml_time_us()
    assert type(info.value) is cls
    assert isinstance(info.value, errors.Error)
    lib.ggml_time_us()


def test_every_kind_of_the_header_is_tested() -> None:
    marks = test_every_kind_has_its_class.pytestmark  # type: ignore[attr-defined]
    tested = {f"PGG_ERROR_{row[0]}" for row in marks[0].args[1]}
    assert {n for n in dir(lib) if n.startswith("PGG_ERROR_")} == tested | {"PGG_ERROR_NONE"}


def test_split_errors_carry_their_parts() -> None:
    lib.pgg_error_set(
        lib.PGG_ERROR_SPLIT,
        b"illegal split at node 'y' (MUL_MAT, f32 [4, 8]): shares differ; src0 'w' f32 [64, 4] S0 3:1; src1 'x' f32 [64, 8] S0 1:1; "
        b"legal repair: give both the shares 3:1",
    )
    with pytest.raises(errors.SplitError) as info:
        lib.ggml_time_us()
    error = info.value
    assert (error.node, error.op, error.repair) == ("y", "MUL_MAT", "give both the shares 3:1")
    assert error.sources == (("w", "S0 3:1"), ("x", "S0 1:1"))


def test_threads_keep_their_errors_apart(context: Any) -> None:
    a, b = matrices(context)
    wrong: list[str] = []
    barrier = threading.Barrier(8)

    def work(fails: bool) -> None:
        barrier.wait()
        for _ in range(300):
            try:
                if fails:
                    lib.ggml_mul_mat(context, a, b)
                    wrong.append("no exception")
                elif lib.ggml_nelements(a) != 32:
                    wrong.append("wrong result")
            except errors.GGMLAbort as error:
                if not fails or "can_mul_mat" not in str(error):
                    wrong.append(f"not mine: {error}")

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_logs_reach_logging_with_their_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pyggml.ggml")
    lib.gguf_init_from_file(b"/there/is/no/such/file.gguf", {"no_alloc": True, "ctx": ffi.NULL})
    records = [r for r in caplog.records if "file.gguf" in r.getMessage()]
    assert records and records[0].name == "pyggml.ggml" and records[0].levelno == logging.ERROR
    caplog.clear()
    caplog.set_level(logging.CRITICAL, logger="pyggml.ggml")
    lib.gguf_init_from_file(b"/there/is/no/such/file.gguf", {"no_alloc": True, "ctx": ffi.NULL})
    caplog.set_level(logging.DEBUG, logger="pyggml.ggml")
    lib.ggml_time_us()
    assert not caplog.records  # it was dropped when it was not wanted, not kept for later


def test_a_logging_handler_may_call_lib_and_may_fail(capsys: pytest.CaptureFixture[str]) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lib.ggml_time_us()
            raise OSError("handler failed")

        def handleError(self, record: logging.LogRecord) -> None:
            raise  # what emit raised, as a careless handler does

        def handle(self, record: logging.LogRecord) -> bool:
            self.emit(record)
            return True

    handler = Handler()
    logger = logging.getLogger("pyggml.ggml")
    logger.addHandler(handler)
    try:
        pointer = lib.gguf_init_from_file(b"/there/is/no/such/file.gguf", {"no_alloc": True, "ctx": ffi.NULL})
    finally:
        logger.removeHandler(handler)
    assert pointer == ffi.NULL  # the result arrived all the same
    assert "handler failed" in capsys.readouterr().err


def test_quiet_by_default() -> None:
    script = (
        "from pyggml._ffi import ffi, lib\n"
        "lib.gguf_init_from_file(b'/there/is/no/such/file.gguf', {'no_alloc': True, 'ctx': ffi.NULL})\n"
    )
    result = run_script(script)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def run_script(script: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)  # and not the folder of a checkout, where nothing may be built
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": path},
    )


ABORT = """
import ctypes, pathlib, pyggml._ffi._lib as module
folder = pathlib.Path(module.__file__).resolve().parent.parent / "lib"
base = ctypes.CDLL(str(next(folder.glob("libpyggml-ggml-base.*"))))
abort = getattr(base, "pyggml_ggml_abort", None) or base.ggml_abort
abort(b"/a/folder/file.c", 7, b"the end")  # past the bindings: nobody could catch an exception there
"""


@pytest.mark.skipif(sys.platform == "win32", reason="loads an ELF or Mach-O library by its path")
def test_an_abort_outside_of_a_guard_still_ends_the_process() -> None:
    result = run_script(ABORT)
    assert result.returncode == -6, (result.returncode, result.stderr)
    assert "file.c:7: the end" in result.stderr


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
from pyggml import errors
from pyggml._ffi import ffi, lib
ctx = lib.ggml_init({"mem_size": 1 << 20, "mem_buffer": ffi.NULL, "no_alloc": True})
pid = os.fork()
if pid == 0:
    try:
        lib.ggml_time_us()
        os._exit(3)
    except errors.ForkError as error:
        if "spawn" not in str(error):
            os._exit(4)
    lib.ggml_free(ctx)  # what finalizers do must not complain
    try:
        lib.ggml_new_tensor_1d(ctx, 0, 1)
        os._exit(5)
    except RuntimeError:
        os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert lib.ggml_time_us() > 0
sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_refused() -> None:
    result = run_script(FORK)
    assert result.returncode == 0, (result.returncode, result.stderr)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_spawned_child_is_not_refused() -> None:
    result = run_script(
        "import subprocess, sys\nfrom pyggml._ffi import lib\n"
        "sys.exit(subprocess.run([sys.executable, '-c', 'from pyggml._ffi import lib; lib.ggml_time_us()']).returncode)"
    )
    assert result.returncode == 0, result.stderr
