"""Python functions as C callbacks: what they raise arrives where the C call returns."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyggml import errors
from pyggml._ffi import ffi, lib
from pyggml._ffi.callbacks import Callback


class Chain:
    """x -> sqr -> sqr -> sqr on the CPU backend, computed by a scheduler that may ask a callback after each node."""

    def __init__(self) -> None:
        self.cpu = lib.ggml_backend_cpu_init()
        self.ctx = lib.ggml_init({"mem_size": 1 << 20, "mem_buffer": ffi.NULL, "no_alloc": True})
        self.x = lib.ggml_new_tensor_1d(self.ctx, lib.GGML_TYPE_F32, 4)
        lib.ggml_set_input(self.x)
        y = self.x
        for _ in range(3):
            y = lib.ggml_sqr(self.ctx, y)
        self.y = y
        lib.ggml_set_output(y)
        self.graph = lib.ggml_new_graph(self.ctx)
        lib.ggml_build_forward_expand(self.graph, y)
        backends = ffi.new("ggml_backend_t[]", [self.cpu])
        self.sched = lib.ggml_backend_sched_new(backends, ffi.NULL, 1, 64, False, False)
        assert lib.ggml_backend_sched_alloc_graph(self.sched, self.graph)

    def observe(self, callback: Callback | None) -> None:
        if callback is None:
            lib.ggml_backend_sched_set_eval_callback(self.sched, ffi.NULL, ffi.NULL)
        else:
            lib.ggml_backend_sched_set_eval_callback(self.sched, callback.function, callback.user_data)

    def compute(self) -> list[float]:
        values = ffi.new("float[]", [1.0, 2.0, 3.0, 0.5])
        lib.ggml_backend_tensor_set(self.x, values, 0, 16)
        assert lib.ggml_backend_sched_graph_compute(self.sched, self.graph) == lib.GGML_STATUS_SUCCESS
        lib.ggml_backend_tensor_get(self.y, values, 0, 16)
        return list(values)

    def close(self) -> None:
        lib.ggml_backend_sched_free(self.sched)
        lib.ggml_free(self.ctx)
        lib.ggml_backend_free(self.cpu)


@pytest.fixture
def chain() -> Iterator[Chain]:
    chain = Chain()
    yield chain
    chain.close()


WANTED = [1.0, 256.0, 6561.0, 0.00390625]


def test_a_callback_is_called(chain: Chain) -> None:
    seen: list[str] = []

    def node(tensor: Any, ask: bool) -> bool:
        if not ask:
            seen.append(ffi.string(lib.ggml_op_name(tensor.op)).decode())
        return True

    with Callback("sched_eval", node) as callback:
        chain.observe(callback)
        assert chain.compute() == WANTED
        chain.observe(None)
    assert seen == ["SQR"] * 3


class Mine(Exception):
    pass


def test_an_exception_arrives_with_its_traceback_and_stops_the_callbacks(chain: Chain) -> None:
    calls = 0

    def careless(tensor: Any, ask: bool) -> bool:
        nonlocal calls
        calls += 1
        raise Mine("from the callback")

    callback = Callback("sched_eval", careless)
    chain.observe(callback)
    with pytest.raises(Mine, match="from the callback") as info:
        chain.compute()
    assert calls == 1
    assert any(frame.name == "careless" for frame in traceback.extract_tb(info.value.__traceback__))
    assert callback.error is None
    chain.observe(None)
    assert chain.compute() == WANTED  # nothing is left behind
    callback.close()


def test_a_native_error_inside_of_a_callback_goes_through_both(chain: Chain) -> None:
    a = lib.ggml_new_tensor_2d(chain.ctx, lib.GGML_TYPE_F32, 4, 8)
    b = lib.ggml_new_tensor_2d(chain.ctx, lib.GGML_TYPE_F32, 5, 8)

    def nested(tensor: Any, ask: bool) -> bool:
        lib.ggml_mul_mat(chain.ctx, a, b)
        return True

    with Callback("sched_eval", nested) as callback:
        chain.observe(callback)
        with pytest.raises(errors.GGMLAbort, match="can_mul_mat") as info:
            chain.compute()
        chain.observe(None)
    assert any(frame.name == "nested" for frame in traceback.extract_tb(info.value.__traceback__))


def test_an_error_that_a_callback_handles_is_gone(chain: Chain) -> None:
    a = lib.ggml_new_tensor_2d(chain.ctx, lib.GGML_TYPE_F32, 4, 8)
    b = lib.ggml_new_tensor_2d(chain.ctx, lib.GGML_TYPE_F32, 5, 8)
    handled = 0

    def patient(tensor: Any, ask: bool) -> bool:
        nonlocal handled
        with pytest.raises(errors.GGMLAbort):
            lib.ggml_mul_mat(chain.ctx, a, b)
        handled += 1
        return True

    with Callback("sched_eval", patient) as callback:
        chain.observe(callback)
        assert chain.compute() == WANTED
        chain.observe(None)
    assert handled == 6


def test_callbacks_within_callbacks(chain: Chain) -> None:
    inner = Chain()

    def raising(tensor: Any, ask: bool) -> bool:
        raise Mine("innermost")

    def outer(tensor: Any, ask: bool) -> bool:
        inner.compute()
        return True

    with Callback("sched_eval", raising) as first, Callback("sched_eval", outer) as second:
        inner.observe(first)
        chain.observe(second)
        with pytest.raises(Mine, match="innermost") as info:
            chain.compute()
        chain.observe(None)
    names = [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]
    assert names.index("outer") < names.index("raising")
    inner.close()


def test_ctrl_c_inside_of_a_call(chain: Chain) -> None:
    def interrupted(tensor: Any, ask: bool) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return True

    with Callback("sched_eval", interrupted) as callback:
        chain.observe(callback)
        with pytest.raises(KeyboardInterrupt):
            chain.compute()
        chain.observe(None)
    assert chain.compute() == WANTED


def test_exceptions_stay_on_their_threads() -> None:
    wrong: list[str] = []
    barrier = threading.Barrier(6)

    def work(number: int) -> None:
        chain = Chain()

        def node(tensor: Any, ask: bool) -> bool:
            if number % 2:
                raise Mine(str(number))
            return True

        with Callback("sched_eval", node) as callback:
            chain.observe(callback)
            barrier.wait()
            for _ in range(50):
                try:
                    if chain.compute() != WANTED or number % 2:
                        wrong.append(f"{number}: no exception, or a wrong result")
                except Mine as error:
                    if str(error) != str(number) or number % 2 == 0:
                        wrong.append(f"{number}: got {error}")
            chain.observe(None)
        chain.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def call_from_native_thread(callback: Callback) -> None:
    """Calls it on a thread that Python did not start, as a queue of a device does."""
    pthread = ffi.cast("uintptr_t", callback.function)
    run = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(int(pthread))
    libc = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    data = ctypes.c_void_p(int(ffi.cast("uintptr_t", callback.user_data)))
    assert libc.pthread_create(ctypes.byref(thread), None, run, data) == 0
    libc.pthread_join(thread, None)


@pytest.mark.skipif(os.name != "posix", reason="starts a POSIX thread")
def test_an_exception_on_a_foreign_thread_waits_in_the_callback() -> None:
    def abort() -> bool:
        raise Mine("on another thread")

    callback = Callback("abort", abort)
    call_from_native_thread(callback)
    lib.ggml_time_us()  # not this thread's error
    with pytest.raises(Mine, match="on another thread"):
        callback.check()
    callback.check()
    callback.close()


def test_closed_callbacks_are_not_called(chain: Chain) -> None:
    def never(tensor: Any, ask: bool) -> bool:
        raise AssertionError

    callback = Callback("sched_eval", never)
    chain.observe(callback)
    callback.close()
    assert chain.compute() == WANTED
    chain.observe(None)


@pytest.mark.parametrize("build", [lambda: Callback("nonsense", print), lambda: Callback("abort", 3)])  # type: ignore[arg-type]
def test_bad_callbacks_are_refused(build: Callable[[], Callback]) -> None:
    with pytest.raises((ValueError, TypeError), match="callback"):
        build()


def test_every_callback_type_exists() -> None:
    of_llama = set() if hasattr(lib, "llama_decode") else {"progress", "set_tensor"}
    for kind in Callback.TYPES:
        if kind in of_llama:
            with pytest.raises(errors.UnsupportedError, match="PYGGML_LLAMA"):
                Callback(kind, lambda *_: None)
        else:
            Callback(kind, lambda *_: None).close()
    served = {n for n in dir(lib) if n.startswith("pgg_py_")}
    assert served == {function for kind, function in Callback.TYPES.items() if kind not in of_llama}


def test_a_dropped_callback_is_freed() -> None:
    class Function:
        def __call__(self) -> bool:
            return True

    function = Function()
    gone = weakref.ref(function)
    callback = Callback("abort", function)
    del function
    assert gone() is not None
    del callback
    gc.collect()
    assert gone() is None


EXIT = """
import threading, time
import test_ffi_callbacks as t
from pyggml._ffi.callbacks import Callback
chain = t.Chain()
started = threading.Event()
def slow(tensor, ask):
    started.set()
    time.sleep(0.05)
    return True
callback = Callback("sched_eval", slow)
chain.observe(callback)
def forever():
    while True:
        chain.compute()
threading.Thread(target=forever, daemon=True).start()
started.wait()
print("leaving")
"""


def test_the_interpreter_ends_while_a_daemon_thread_computes() -> None:
    result = subprocess.run(
        [sys.executable, "-c", EXIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (result.returncode, result.stdout.strip()) == (0, "leaving"), result.stderr
