"""Simulated devices refuse what the device that they stand for refuses, count what they are asked to do, do nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from libllama import sim, stats

import pyggml.errors
from pyggml._ffi import ffi, lib, reason

_numbers = itertools.count()


def fresh(**params: Any) -> Any:
    return sim(f"test{next(_numbers)}", **params)


def alloc(dev: Any, size: int) -> Any:
    return lib.ggml_backend_buft_alloc_buffer(lib.ggml_backend_dev_buffer_type(dev), size)


class Tensors:
    """A ggml context whose tensors can be put into buffers."""

    def __init__(self) -> None:
        p = ffi.new("struct ggml_init_params *", {"mem_size": 1 << 20, "no_alloc": True})
        self.ctx = ffi.gc(lib.ggml_init(p[0]), lib.ggml_free)

    def new(self, *ne: int, type: int = lib.GGML_TYPE_F32) -> Any:
        return lib.ggml_new_tensor(self.ctx, type, len(ne), list(ne))

    def alloc(self, dev: Any) -> Any:
        return lib.ggml_backend_alloc_ctx_tensors_from_buft(self.ctx, lib.ggml_backend_dev_buffer_type(dev))


def test_never_in_the_process_registry() -> None:
    fresh()
    names = {
        ffi.string(lib.ggml_backend_reg_name(lib.ggml_backend_reg_get(i))) for i in range(lib.ggml_backend_reg_count())
    }
    assert b"SIM" not in names
    reg = lib.pgg_sim_reg()
    assert ffi.string(lib.ggml_backend_reg_name(reg)) == b"SIM"
    assert lib.ggml_backend_reg_dev_count(reg) > 0


def test_memory_runs_out_as_on_a_real_device() -> None:
    dev = sim("small", memory=1000)
    first = alloc(dev, 600)
    assert alloc(dev, 401) == ffi.NULL
    assert "small" in "".join(reason()) and "401 bytes" in "".join(reason()) and "400 of 1000" in "".join(reason())
    second = alloc(dev, 400)
    free, total = ffi.new("size_t *"), ffi.new("size_t *")
    lib.ggml_backend_dev_memory(dev, free, total)
    assert (free[0], total[0]) == (0, 1000)
    lib.ggml_backend_buffer_free(first)
    lib.ggml_backend_dev_memory(dev, free, total)
    assert free[0] == 600
    lib.ggml_backend_buffer_free(second)
    assert stats(dev)["buffer_bytes"] == 0
    assert stats(dev)["buffer_bytes_peak"] == 1000
    lib.pgg_sim_release(dev)


def test_buffers_beyond_the_largest_one_are_refused() -> None:
    dev = sim("narrow", max_size=1 << 20)
    assert lib.ggml_backend_buft_get_max_size(lib.ggml_backend_dev_buffer_type(dev)) == 1 << 20
    assert alloc(dev, (1 << 20) + 1) == ffi.NULL
    assert "narrow" in "".join(reason()) and str(1 << 20) in "".join(reason())
    lib.ggml_backend_buffer_free(alloc(dev, 1 << 20))


def test_buffers_have_addresses_of_their_own() -> None:
    dev = fresh(alignment=4096)
    buffers = [alloc(dev, size) for size in (1, 1 << 40, 1 << 24, 5)]
    spans = sorted(
        (int(ffi.cast("uintptr_t", lib.ggml_backend_buffer_get_base(b))), lib.ggml_backend_buffer_get_size(b))
        for b in buffers
    )
    assert all(base % 4096 == 0 for base, _ in spans)
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(spans))
    for b in buffers:
        lib.ggml_backend_buffer_free(b)


def test_transfers_are_counted_and_reads_are_zero() -> None:
    a, b = fresh(), fresh()
    ta, tb = Tensors(), Tensors()
    x, y = ta.new(64), tb.new(64)
    buffers = [ta.alloc(a), tb.alloc(b)]
    data = np.full(64, 7, np.float32)
    lib.ggml_backend_tensor_set(x, ffi.from_buffer(data), 0, 256)
    lib.ggml_backend_tensor_copy(x, y)
    lib.ggml_backend_tensor_get(y, ffi.from_buffer(data), 0, 128)
    assert (data[:32] == 0).all() and (data[32:] == 7).all()
    got_a, got_b = stats(a), stats(b)
    assert (got_a["sets"], got_a["set_bytes"], got_a["copies"]) == (1, 256, 0)
    assert (got_b["copies"], got_b["copy_bytes"], got_b["gets"], got_b["get_bytes"]) == (1, 256, 1, 128)
    lib.pgg_sim_stats_reset(b)
    after = stats(b)
    assert after["copies"] == 0 and after["buffer_bytes"] == after["buffer_bytes_peak"] > 0
    for buffer in buffers:
        lib.ggml_backend_buffer_free(buffer)


def test_async_copies_between_backends() -> None:
    a, b = fresh(), fresh()
    cpu = lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)
    tensors = {dev: Tensors() for dev in (a, b, cpu)}
    xs = {dev: t.new(16) for dev, t in tensors.items()}
    buffers = [t.alloc(dev) for dev, t in tensors.items()]
    backends = {dev: lib.ggml_backend_dev_init(dev, ffi.NULL) for dev in tensors}
    lib.ggml_backend_tensor_copy_async(backends[a], backends[b], xs[a], xs[b])
    assert stats(b)["copies"] == 1
    lib.ggml_backend_tensor_copy_async(backends[cpu], backends[b], xs[cpu], xs[b])
    assert (stats(b)["copies"], stats(b)["sets"]) == (1, 1)
    value = np.full(16, 3, np.float32)
    lib.ggml_backend_tensor_set(xs[cpu], ffi.from_buffer(value), 0, 64)
    lib.ggml_backend_tensor_copy_async(backends[a], backends[cpu], xs[a], xs[cpu])
    lib.ggml_backend_tensor_get(xs[cpu], ffi.from_buffer(value), 0, 64)
    assert stats(a)["gets"] == 1 and (value == 0).all()
    for backend in backends.values():
        lib.ggml_backend_free(backend)
    for buffer in buffers:
        lib.ggml_backend_buffer_free(buffer)


def test_graphs_are_counted_not_computed() -> None:
    dev = fresh()
    t = Tensors()
    x = t.new(8)
    y = lib.ggml_silu(t.ctx, lib.ggml_view_1d(t.ctx, x, 8, 0))
    graph = lib.ggml_new_graph(t.ctx)
    lib.ggml_build_forward_expand(graph, y)
    buffer, backend = t.alloc(dev), lib.ggml_backend_dev_init(dev, ffi.NULL)
    assert lib.ggml_backend_graph_compute(backend, graph) == lib.GGML_STATUS_SUCCESS
    got = stats(dev)
    assert (got["graph_computes"], got["nodes"]) == (1, 1)  # the view is no work
    lib.ggml_backend_free(backend)
    lib.ggml_backend_buffer_free(buffer)


def real_devices() -> list[Any]:
    return [lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU), lib.pgg_vcpu_device(0, 1, 0)]


@pytest.mark.parametrize("real", real_devices(), ids=lambda dev: ffi.string(lib.ggml_backend_dev_name(dev)).decode())
def test_a_twin_answers_as_the_real_device(real: Any) -> None:
    twin = fresh(twin=real)
    bufts = [lib.ggml_backend_dev_buffer_type(dev) for dev in (real, twin)]
    assert len({lib.ggml_backend_buft_get_alignment(b) for b in bufts}) == 1
    assert len({lib.ggml_backend_buft_get_max_size(b) for b in bufts}) == 1
    answers = []
    for dev in (real, twin):
        t = Tensors()
        k = t.new(64, 256, 2, type=lib.GGML_TYPE_F16)
        ops = [
            lib.ggml_cpy(t.ctx, t.new(256, 4), t.new(256, 4, type=type_))
            for type_ in (lib.GGML_TYPE_F16, lib.GGML_TYPE_Q8_0, lib.GGML_TYPE_IQ2_XXS, lib.GGML_TYPE_IQ3_S)
        ]
        ops += [
            lib.ggml_mul_mat(t.ctx, t.new(256, 8, type=type_), t.new(256, 3))
            for type_ in (lib.GGML_TYPE_F32, lib.GGML_TYPE_Q4_K, lib.GGML_TYPE_IQ2_XXS)
        ]
        # V is a view of K here: that must still be seen
        ops.append(
            lib.ggml_flash_attn_ext(t.ctx, t.new(64, 32, 2), k, lib.ggml_view_tensor(t.ctx, k), ffi.NULL, 1.0, 0.0, 0.0)
        )
        buffer = t.alloc(dev)  # each with buffers that belong to the device that is asked
        buft = lib.ggml_backend_dev_buffer_type(dev)
        answers.append(
            [(lib.ggml_backend_dev_supports_op(dev, op), lib.ggml_backend_buft_get_alloc_size(buft, op)) for op in ops]
        )
        lib.ggml_backend_buffer_free(buffer)
    assert answers[0] == answers[1]
    assert {ok for ok, _ in answers[0]} == {True, False}


def test_only_its_own_buffers() -> None:
    a, b = fresh(), fresh()
    assert lib.ggml_backend_dev_supports_buft(a, lib.ggml_backend_dev_buffer_type(a))
    assert not lib.ggml_backend_dev_supports_buft(a, lib.ggml_backend_dev_buffer_type(b))
    assert not lib.ggml_backend_dev_supports_buft(a, lib.ggml_backend_cpu_buffer_type())
    assert not lib.ggml_backend_buft_is_host(lib.ggml_backend_dev_buffer_type(a))


def test_bad_descriptions_are_refused() -> None:
    twin = fresh()
    with pytest.raises(pyggml.errors.ArgumentError, match="needs a name"):
        sim("")
    with pytest.raises(pyggml.errors.ArgumentError, match=r"copy: .* is simulated itself"):
        sim("copy", twin=twin)
    with pytest.raises(pyggml.errors.ArgumentError, match="odd: alignment 96 is not a power of two"):
        sim("odd", alignment=96)


def test_slots_are_used_again_only_for_the_same_kind_of_device() -> None:
    dev = sim("slot", memory=100, alignment=256)
    buffer = alloc(dev, 100)
    lib.pgg_sim_release(dev)
    while_in_use = sim("slot", alignment=256)
    assert while_in_use != dev
    lib.ggml_backend_buffer_free(buffer)
    other_kind = sim("slot", alignment=512)
    assert other_kind != dev
    again = sim("slot", memory=50, alignment=256)
    assert again == dev
    assert stats(again)["buffer_bytes_peak"] == 0
    assert alloc(again, 51) == ffi.NULL
    assert sim("slot", alignment=256) != again  # not released


def test_a_communicator_only_among_devices_that_have_one() -> None:
    reg = lib.pgg_sim_reg()

    def comm(*devs: Any) -> tuple[Any, list[Any]]:
        backends = [lib.ggml_backend_dev_init(dev, ffi.NULL) for dev in devs]
        init = ffi.cast(
            "ggml_backend_comm_init_t", lib.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_comm_init")
        )
        return init(ffi.new("ggml_backend_t[]", backends), len(backends)), backends

    a, b, without = fresh(comm=True), fresh(comm=True), fresh()
    for devs in ((a, without), (a, lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU))):
        none, backends = comm(*devs)
        assert none == ffi.NULL
        for backend in backends:
            lib.ggml_backend_free(backend)
    both, backends = comm(a, b)
    assert both != ffi.NULL
    reduce = ffi.cast(
        "ggml_backend_comm_allreduce_tensor_t",
        lib.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_comm_allreduce_tensor"),
    )
    t = Tensors()
    assert reduce(both, ffi.new("struct ggml_tensor *[]", [t.new(10), t.new(10)]))
    assert [(stats(d)["allreduces"], stats(d)["allreduce_bytes"]) for d in (a, b)] == [(1, 40), (1, 40)]
    ffi.cast("ggml_backend_comm_free_t", lib.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_comm_free"))(both)
    for backend in backends:
        lib.ggml_backend_free(backend)
