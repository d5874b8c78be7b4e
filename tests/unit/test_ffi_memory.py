"""Bytes by buffer type are counted where ggml allocates and frees."""

from __future__ import annotations

import threading

import pytest

from pyggml import errors
from pyggml._ffi import ffi, lib


def test_bytes_are_counted_from_the_watch_on() -> None:
    buft = lib.ggml_backend_cpu_buffer_type()
    lib.pgg_buft_watch(buft)
    lib.pgg_buft_watch(buft)  # idempotent: nothing is counted twice
    now, total = lib.pgg_buft_allocated(buft), lib.pgg_buft_allocated_total(buft)
    first = lib.ggml_backend_buft_alloc_buffer(buft, 4096)
    second = lib.ggml_backend_buft_alloc_buffer(buft, 8192)
    assert lib.pgg_buft_allocated(buft) == now + 12288
    lib.ggml_backend_buffer_free(first)
    assert lib.pgg_buft_allocated(buft) == now + 8192
    lib.ggml_backend_buffer_free(second)
    assert lib.pgg_buft_allocated(buft) == now
    assert lib.pgg_buft_allocated_total(buft) == total + 12288


def test_memory_that_is_not_ggmls_is_not_counted() -> None:
    buft = lib.ggml_backend_cpu_buffer_type()
    lib.pgg_buft_watch(buft)
    now = lib.pgg_buft_allocated(buft)
    memory = ffi.new("char[]", 8192)
    address = (int(ffi.cast("uintptr_t", memory)) + 63) // 64 * 64
    buffer = lib.ggml_backend_cpu_buffer_from_ptr(ffi.cast("void *", address), 4096)
    assert lib.pgg_buft_allocated(buft) == now
    lib.ggml_backend_buffer_free(buffer)
    assert lib.pgg_buft_allocated(buft) == now


def test_an_allocation_that_fails_is_not_counted() -> None:
    buft = lib.ggml_backend_cpu_buffer_type()
    lib.pgg_buft_watch(buft)
    now = lib.pgg_buft_allocated(buft)
    assert lib.ggml_backend_buft_alloc_buffer(buft, 1 << 60) == ffi.NULL
    assert lib.pgg_buft_allocated(buft) == now


def test_counts_are_right_with_threads() -> None:
    buft = lib.ggml_backend_cpu_buffer_type()
    lib.pgg_buft_watch(buft)
    now, total = lib.pgg_buft_allocated(buft), lib.pgg_buft_allocated_total(buft)

    def work() -> None:
        for _ in range(200):
            lib.ggml_backend_buffer_free(lib.ggml_backend_buft_alloc_buffer(buft, 64))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert lib.pgg_buft_allocated(buft) == now
    assert lib.pgg_buft_allocated_total(buft) == total + 4 * 200 * 64


def test_bad_and_unwatched_types() -> None:
    with pytest.raises(errors.ArgumentError, match="buffer type is NULL"):
        lib.pgg_buft_watch(ffi.NULL)
    assert lib.pgg_buft_allocated(ffi.NULL) == 0
