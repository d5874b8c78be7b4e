"""While a thread plans, nothing is allocated and nothing computes, and the plan is what a run does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libllama import context, decode, host_stats, model, plan_mode, sim, stats

import pyggml.errors
from pyggml._ffi import ffi, lib
from pyggml.testing import llama_header, tiny_gguf

MIB = 1 << 20


def memory_mib(field: str) -> float:
    """A field of /proc/self/status in MiB: the kernel's count, which nothing of ours takes part in."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the kernel's count of memory is read from /proc")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def cpu_buffer_type() -> Any:
    buft = lib.ggml_backend_cpu_buffer_type()
    lib.pgg_buft_watch(buft)
    return buft


def test_host_buffers_are_address_space_only() -> None:
    buft = cpu_buffer_type()
    before, total = memory_mib("VmRSS"), lib.pgg_buft_allocated_total(buft)
    with plan_mode():
        buffer = lib.ggml_backend_buft_alloc_buffer(buft, 8 << 30)
        assert buffer != ffi.NULL and lib.ggml_backend_buffer_is_host(buffer)
        lib.ggml_backend_buffer_clear(buffer, 1)
        assert lib.pgg_plan_host_bytes() == 8 << 30
        lib.ggml_backend_buffer_free(buffer)
        other = lib.ggml_backend_buft_alloc_buffer(buft, 1 << 20)
        assert host_stats()["buffer_bytes"] == 1 << 20
    lib.ggml_backend_buffer_free(other)  # after the plan has ended
    assert host_stats()["buffer_bytes"] == 0
    assert lib.pgg_plan_host_bytes() == 8 << 30  # the most at a time
    assert lib.pgg_buft_allocated_total(buft) == total
    assert memory_mib("VmRSS") - before < 8


def test_outside_of_a_plan_buffers_are_real_and_counted() -> None:
    with plan_mode():
        pass
    buft = cpu_buffer_type()
    total = lib.pgg_buft_allocated_total(buft)
    buffer = lib.ggml_backend_buft_alloc_buffer(buft, 64 * MIB)
    assert lib.pgg_buft_allocated_total(buft) == total + 64 * MIB
    before = memory_mib("VmRSS")
    lib.ggml_backend_buffer_clear(buffer, 1)
    assert memory_mib("VmRSS") - before > 48
    lib.ggml_backend_buffer_free(buffer)
    assert lib.pgg_plan_host_bytes() == 0


@pytest.mark.parametrize("watch_first", [True, False])
def test_counting_and_planning_in_either_order(watch_first: bool) -> None:
    """Both hook the same pointer, whichever comes first (own process: a hook stays)."""
    steps = ["lib.pgg_buft_watch(buft)", "lib.pgg_plan_mode_begin(); lib.pgg_plan_mode_end()"]
    code = f"""
from pyggml._ffi import lib
buft = lib.ggml_backend_cpu_buffer_type()
{steps[0] if watch_first else steps[1]}
{steps[1] if watch_first else steps[0]}
for _ in range(2):
    lib.pgg_plan_mode_begin()
    lib.ggml_backend_buffer_free(lib.ggml_backend_buft_alloc_buffer(buft, 1000))
    lib.pgg_plan_mode_end()
    assert lib.pgg_buft_allocated_total(buft) == 0
buffer = lib.ggml_backend_buft_alloc_buffer(buft, 1000)
assert lib.pgg_buft_allocated_total(buft) == lib.pgg_buft_allocated(buft) == 1000
lib.ggml_backend_buffer_free(buffer)
assert lib.pgg_buft_allocated(buft) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nests_and_belongs_to_its_thread() -> None:
    seen: list[bool] = []
    with plan_mode():
        with plan_mode():
            pass
        assert lib.pgg_plan_mode()
        thread = threading.Thread(target=lambda: seen.append(bool(lib.pgg_plan_mode())))
        thread.start()
        thread.join()
    assert not lib.pgg_plan_mode()
    assert seen == [False]
    lib.pgg_plan_mode_end()  # one too many does nothing
    with plan_mode():
        assert lib.pgg_plan_mode()


@pytest.mark.parametrize("planned", [False, True])
def test_cpu_backends_of_a_plan_compute_nothing(planned: bool) -> None:
    if planned:
        lib.pgg_plan_mode_begin()
    try:
        backend = lib.ggml_backend_init_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU, ffi.NULL)
        p = ffi.new("struct ggml_init_params *", {"mem_size": MIB, "no_alloc": True})
        ctx = lib.ggml_init(p[0])
        x = lib.ggml_new_tensor_1d(ctx, lib.GGML_TYPE_F32, 16)
        y = lib.ggml_sqr(ctx, x)
        graph = lib.ggml_new_graph(ctx)
        lib.ggml_build_forward_expand(graph, y)
        buffer = lib.ggml_backend_alloc_ctx_tensors(ctx, backend)
        data = np.full(16, 3, np.float32)
        lib.ggml_backend_tensor_set(x, ffi.from_buffer(data), 0, 64)
        assert lib.ggml_backend_graph_compute(backend, graph) == lib.GGML_STATUS_SUCCESS
        lib.ggml_backend_tensor_get(y, ffi.from_buffer(data), 0, 64)
        assert (data == (0 if planned else 9)).all()
        if planned:
            assert (host_stats()["graph_computes"], host_stats()["nodes"]) == (1, 1)
        lib.ggml_backend_tensor_get(x, ffi.from_buffer(data), 0, 64)
        assert (data == 3).all()  # what is written into a plan's buffers stays
        lib.ggml_backend_buffer_free(buffer)
        lib.ggml_free(ctx)
        lib.ggml_backend_free(backend)
    finally:
        if planned:
            lib.pgg_plan_mode_end()


@pytest.mark.parametrize("planned", [False, True])
def test_files_are_not_read_ahead(tmp_path: Path, planned: bool) -> None:
    """The control (planned=False) shows that the measure sees the pages that a normal load brings in."""
    file = tiny_gguf(tmp_path / "m.gguf", n_vocab=16384, n_embd=512)
    size = file.n_bytes / MIB
    assert size > 32
    before = memory_mib("RssFile")
    if planned:
        lib.pgg_plan_mode_begin()
    try:
        with model(file, [sim("ahead0", comm=True), sim("ahead1", comm=True)]):
            # the part of the file that stays mapped is the CPU's (the token embeddings)
            grown = memory_mib("RssFile") - before
    finally:
        if planned:
            lib.pgg_plan_mode_end()
    if planned:
        assert grown < 8
    else:
        assert grown > size / 3


def test_real_device_types_are_never_touched(tmp_path: Path) -> None:
    """A plan over twins of virtual CPU devices allocates nothing from them."""
    file = tiny_gguf(tmp_path / "m.gguf")
    real = [lib.pgg_vcpu_device(i, 1, 0) for i in range(2)]
    for dev in real:
        lib.pgg_vcpu_stats_reset(dev)
    before = [stats(dev) for dev in real]
    buft = cpu_buffer_type()
    total = lib.pgg_buft_allocated_total(buft)
    with (
        plan_mode(),
        model(file, [sim(f"twin{i}", twin=dev, comm=True) for i, dev in enumerate(real)]) as m,
        context(m) as ctx,
    ):
        decode(ctx, list(range(40)))
    assert [stats(dev) for dev in real] == before
    assert lib.pgg_buft_allocated_total(buft) == total


@pytest.mark.parametrize("arch,moe", [("llama", False), ("llama", True), ("qwen35", False)])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("split", ["TENSOR", "LAYER"])
def test_the_plan_is_what_a_run_does(tmp_path: Path, arch: str, moe: bool, n: int, split: str) -> None:
    """Counted at the devices: bytes, graphs, nodes, all-reduces and transfers of a run equal those of its plan."""
    file = tiny_gguf(tmp_path / "m.gguf", arch, moe=moe)

    def counts(devs: list[Any]) -> list[list[dict[str, int]]]:
        steps = []
        reset = lib.pgg_sim_stats_reset if lib.pgg_sim_is(devs[0]) else lib.pgg_vcpu_stats_reset
        for dev in devs:
            reset(dev)
        with model(file, devs, split) as m, context(m) as ctx:
            steps.append([stats(dev) for dev in devs])
            for pos, tokens in ((0, list(range(70))), (70, [5]), (71, [6])):
                decode(ctx, tokens, pos)
                steps.append([stats(dev) for dev in devs])
        assert all(stats(dev)["buffer_bytes"] == 0 for dev in devs)
        return steps

    real = [lib.pgg_vcpu_device(i, 1, 0) for i in range(n)]
    with plan_mode():
        twins = [sim(f"plan{i}", twin=dev, comm=True) for i, dev in enumerate(real)]
        planned = counts(twins)
        for dev in twins:
            lib.pgg_sim_release(dev)
    ran = counts(real)
    assert planned == ran
    last = ran[-1]
    assert all(d["graph_computes"] > 0 and d["nodes"] > 0 and d["set_bytes"] > 0 for d in last)
    if split == "TENSOR":
        assert all(d["allreduces"] > 0 for d in last)
    else:
        assert sum(d["copies"] for d in last) > 0


@pytest.mark.parametrize("split", ["TENSOR", "LAYER"])
@pytest.mark.parametrize("what", ["weights", "context"])
def test_devices_without_enough_memory(tmp_path: Path, split: str, what: str) -> None:
    file = tiny_gguf(tmp_path / "m.gguf")

    def attempt(memory: int) -> list[dict[str, int]]:
        devs = [sim(f"tight{i}", memory=memory, comm=True) for i in range(2)]
        try:
            with model(file, devs, split) as m:
                loaded = [stats(dev) for dev in devs]
                with context(m) as ctx:
                    decode(ctx, [1, 2, 3])
            return loaded
        finally:
            assert all(stats(dev)["buffer_bytes"] == 0 for dev in devs)  # whatever was begun is undone
            for dev in devs:
                lib.pgg_sim_release(dev)

    with plan_mode():
        need = max(d["buffer_bytes"] for d in attempt(0))
        with pytest.raises(pyggml.errors.Error, match=r"tight\d: out of memory: \d+ bytes asked for"):
            attempt(need - 1 if what == "weights" else need + 1)
        attempt(1 << 30)  # and the next one is right
    assert host_stats()["buffer_bytes"] == 0


@pytest.mark.parametrize("extra_bufts", [False, True])
def test_layers_that_stay_on_the_host(tmp_path: Path, extra_bufts: bool) -> None:
    """Also with repacked weights: they are neither allocated nor repacked."""
    file = llama_header(tmp_path / "m.gguf", "llama-8b", vocab="none")
    buft = cpu_buffer_type()
    total, before = lib.pgg_buft_allocated_total(buft), memory_mib("VmRSS")
    dev = sim("half", memory=80 << 30)
    with plan_mode(), model(file, [dev], "LAYER", n_gpu_layers=16, extra_bufts=extra_bufts) as m, context(m) as ctx:
        decode(ctx, [1] * 32)
        assert memory_mib("VmRSS") - before < 100
        got = host_stats()
    assert got["graph_computes"] > 0 and got["nodes"] > 300
    assert (got["buffer_bytes"] > 1 << 30) == extra_bufts  # otherwise the weights stay in the mapped file
    assert lib.pgg_buft_allocated_total(buft) == total


BIG = """
import json, sys, time
from libllama import context, decode, host_stats, model, plan_mode, sim, stats
from pyggml._ffi import lib

path, n = sys.argv[1], int(sys.argv[2])
buft = lib.ggml_backend_cpu_buffer_type()
lib.pgg_buft_watch(buft)
devs = [sim(f"big{i}", memory=80 << 30, comm=True) for i in range(n)]
begin = time.perf_counter()
steps = []
with plan_mode(), model(path, devs) as m, context(m, n_ctx=8192) as ctx:
    for pos, tokens in ((0, [1] * 512), (512, [1])):
        for dev in devs:
            lib.pgg_sim_stats_reset(dev)
        decode(ctx, tokens, pos)
        steps.append([stats(dev) for dev in devs])
print(json.dumps({
    "seconds": time.perf_counter() - begin,
    # not ru_maxrss: a child inherits what its parent had when it forked
    "rss_mib": next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024,
    "steps": steps, "host": host_stats(), "real": lib.pgg_buft_allocated_total(buft),
}))
"""


@pytest.mark.parametrize("n", [2, 8])
def test_a_model_of_40_gb_on_a_laptop(tmp_path: Path, n: int) -> None:
    file = llama_header(tmp_path / "big.gguf", "llama-70b")
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    out = subprocess.run(
        [sys.executable, "-c", BIG, str(file), str(n)], check=True, stdout=subprocess.PIPE, env=env
    ).stdout
    got = json.loads(out)
    assert got["real"] == 0
    assert got["rss_mib"] <= 300
    prompt, token = got["steps"]
    for devices, payload in ((prompt, 159 * 16 * MIB + 32 * 1024), (token, 160 * 32 * 1024)):
        for d in devices:
            assert d["graph_computes"] == 161
            assert d["allreduces"] == 2 * 80
            # the last layer's FFN computes the one row that is asked for
            assert d["allreduce_bytes"] == payload
            assert 0 < d["buffer_bytes"] < 80 << 30
    assert got["host"]["graph_computes"] > 0


def test_one_thread_plans_while_another_one_runs(tmp_path: Path) -> None:
    """The run's buffers are real, its CPU backend computes: a plan is of its thread only."""
    file = tiny_gguf(tmp_path / "m.gguf")
    real = [lib.pgg_vcpu_device(i, 1, 0) for i in range(2)]
    n_vocab = file.n_vocab

    def run() -> bytes:
        with model(file, real) as m, context(m) as ctx:
            decode(ctx, list(range(20)))
            return bytes(ffi.buffer(lib.llama_get_logits_ith(ctx, -1), 4 * n_vocab))

    alone = run()
    assert any(alone)
    planning, stop = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def plan() -> None:
        try:
            devs = [sim(f"beside{i}", comm=True) for i in range(2)]
            while not stop.is_set():
                with plan_mode(), model(file, devs) as m, context(m) as ctx:
                    decode(ctx, list(range(20)))
                    logits = bytes(ffi.buffer(lib.llama_get_logits_ith(ctx, -1), 4 * n_vocab))
                    assert not any(logits)
                planning.set()
        except BaseException as error:
            errors.append(error)
            planning.set()

    thread = threading.Thread(target=plan)
    thread.start()
    try:
        assert planning.wait(60)
        assert [run() for _ in range(5)] == [alone] * 5
    finally:
        stop.set()
        thread.join()
    assert not errors
