"""Meta devices over Vulkan: Mesa's lavapipe, as several devices, is enough (see vulkan_worker.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vulkan_worker as vw
from vulkan_worker import Worker

import pyggml as gg
from pyggml.testing import TinyModel, tiny_gguf

pytestmark = pytest.mark.vulkan

PAIR = "Vulkan0,Vulkan1"
VISIBLE = ",".join(["0"] * vw.N_DEVICES)


def _missing(why: str) -> None:
    # CI builds with Vulkan: there, what is missing is a failure
    (pytest.fail if os.environ.get("PYGGML_TEST_REQUIRE_VULKAN") else pytest.skip)(why)


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[], Worker]]:
    """A worker; a new one where a test has ended it."""
    if not gg.build_info().options["VULKAN"]:
        _missing("this build has no Vulkan: build with -C cmake.define.PYGGML_VULKAN=ON")
    workers: list[Worker] = []

    def started() -> Worker:
        if not workers or not workers[-1].alive:
            workers.append(Worker(VISIBLE))
            found = workers[-1](vw.vulkan_devices)
            if len(found) < vw.N_DEVICES:
                _missing(f"no Vulkan driver: {vw.N_DEVICES} devices were asked for, found {found}; Mesa's lavapipe will do")
        return workers[-1]

    yield started
    for worker in workers:
        worker.kill()


@pytest.fixture
def worker(start: Callable[[], Worker]) -> Worker:
    return start()


MODELS = {
    "llama": ("llama", {}),
    "llama-moe": ("llama", {"moe": True}),  # 8 experts, 2 used
    "qwen35": ("qwen35", {}),
    "qwen3-one-kv-head": ("qwen3", {"n_head_kv": 1}),
    "qwen3": ("qwen3", {}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, TinyModel] = {}

    def get(name: str) -> TinyModel:
        if name not in made:
            arch, options = MODELS[name]
            made[name] = tiny_gguf(folder / f"{name}.gguf", arch, shares=((1, 1), (3, 1)), **options)
        return made[name]

    return get


def check_logits(worker: Worker, tiny: TinyModel, result: vw.Split, **options: Any) -> None:
    """Against one Vulkan device: NMSE at most 1e-6, and at most 3 times that of the Vulkan device against the CPU."""
    path = os.fspath(tiny)
    on_cpu, on_one = worker(vw.one, path, "cpu", **options), worker(vw.one, path, "Vulkan0", **options)
    assert np.isfinite(result.logits).all()
    assert on_cpu.std() > 0.1, "logits that are all alike prove nothing"
    kernels, splitting = gg.nmse(on_one, on_cpu), gg.nmse(result.logits, on_one)
    print(f"{tiny.path.stem}: one Vulkan device against the CPU {kernels:.2e}, split against one {splitting:.2e}")
    assert splitting <= 1e-6
    assert splitting <= 3 * kernels
    assert result.repeated


def check_shares(plan: gg.SplitPlan, tiny: TinyModel, shares: tuple[float, ...]) -> None:
    """Every weight that is split is split as asked for, and every device has heads and FFN columns."""
    asked = tuple(s / sum(shares) for s in shares)
    split = [leaf for leaf in plan.leafs if leaf.kind == "weight" and leaf.split is not None and isinstance(leaf.split.axis, int)]
    names = {leaf.name for leaf in split}
    for part in ("attn_output", "ffn_down_exps" if tiny.n_expert else "ffn_down"):
        assert any(part in name for name in names), f"no {part} is split, only {sorted(names)}"
    for leaf in split:
        assert plan.achieved_shares(leaf.name) == pytest.approx(asked, abs=1e-12), leaf.name
        assert not any(s.empty for s in leaf.slices), leaf.name


SHARES = [(1.0, 1.0), (3.0, 1.0)]


@pytest.mark.parametrize("shares", SHARES, ids=["1,1", "3,1"])
@pytest.mark.parametrize("name", ["llama", "llama-moe", "qwen35"])
def test_logits(worker: Worker, model: Callable[[str], TinyModel], name: str, shares: tuple[float, ...]) -> None:
    tiny = model(name)
    result = worker(vw.split, os.fspath(tiny), PAIR, shares)
    check_logits(worker, tiny, result)
    for plan in (result.planned, result.ran):
        check_shares(plan, tiny, shares)
        assert len(plan.allreduces) >= 2 * tiny.n_layer  # attention and FFN of each layer
        assert {r.algorithm for r in plan.allreduces} == {"butterfly"}
    weights = [leaf for leaf in result.ran.leafs if leaf.kind == "weight" and leaf.split is not None and isinstance(leaf.split.axis, int)]
    achieved = {result.ran.achieved_shares(leaf.name) for leaf in weights}
    print(f"shares of the split weights {achieved}, {len(result.ran.allreduces)} all-reduces for a token")


@pytest.mark.parametrize("name", ["llama", "llama-moe", "qwen35"])
def test_plan_is_what_runs(worker: Worker, model: Callable[[str], TinyModel], name: str) -> None:
    result = worker(vw.split, os.fspath(model(name)), PAIR, (3.0, 1.0))
    planned, ran = result.planned, result.ran
    assert planned.devices == ran.devices == ("Vulkan0", "Vulkan1")
    assert [(n.name, n.op, n.ne, n.split, n.slices) for n in planned.nodes] == [(n.name, n.op, n.ne, n.split, n.slices) for n in ran.nodes]
    assert planned.subgraphs == ran.subgraphs
    assert planned.allreduces == ran.allreduces
    assert planned.memory == ran.memory


def test_default_options(worker: Worker, model: Callable[[str], TinyModel]) -> None:
    """F16 caches, flash attention as llama.cpp chooses."""
    tiny = model("llama")
    options = {"attn_f32": False, "type_k": "f16", "type_v": "f16", "flash_attn": "auto"}
    result = worker(vw.split, os.fspath(tiny), PAIR, (1.0, 1.0), **options)
    check_logits(worker, tiny, result, **options)


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0)], ids=["1,0", "0,1"])
@pytest.mark.parametrize("name", ["llama", "llama-moe", "qwen35"])
def test_device_without_a_share(worker: Worker, model: Callable[[str], TinyModel], name: str, shares: tuple[float, ...]) -> None:
    tiny = model(name)
    result = worker(vw.split, os.fspath(tiny), PAIR, shares)
    check_logits(worker, tiny, result)
    assert result.ran.share_of_weights() == shares
    assert all(r.computes == tuple(s > 0 for s in shares) for r in result.ran.allreduces)


def test_three_devices_one_without_a_share(worker: Worker, model: Callable[[str], TinyModel]) -> None:
    tiny = model("llama")
    result = worker(vw.split, os.fspath(tiny), "Vulkan0,Vulkan1,Vulkan2", (1.0, 0.0, 1.0))
    check_logits(worker, tiny, result)
    assert result.ran.share_of_weights() == pytest.approx((0.5, 0, 0.5))


@pytest.mark.parametrize("shares", SHARES, ids=["1,1", "3,1"])
def test_one_kv_head(worker: Worker, model: Callable[[str], TinyModel], shares: tuple[float, ...]) -> None:
    """Query heads are split, the KV head that they share is on both devices. llama.cpp would leave one without a head, and
    clear its summand by multiplying it by zero, which NaN survives: see `test_device_without_a_share` for such devices."""
    tiny = model("qwen3-one-kv-head")
    assert tiny.n_head_kv == 1 < tiny.n_head
    result = worker(vw.split, os.fspath(tiny), PAIR, shares)
    check_logits(worker, tiny, result)
    q, k = (result.ran[f"blk.0.attn_{name}.weight"].split for name in "qk")
    assert q is not None and [c / sum(q.counts) for c in q.counts] == [s / sum(shares) for s in shares]
    assert str(k) == "M"
    assert all(all(r.computes) for r in result.ran.allreduces)


@pytest.mark.parametrize("devices", ["vcpu:1,Vulkan0", "Vulkan0,vcpu:1"])
@pytest.mark.parametrize("name", ["llama", "qwen35"])
def test_mixed_backends(worker: Worker, model: Callable[[str], TinyModel], name: str, devices: str) -> None:
    tiny = model(name)
    result = worker(vw.split, os.fspath(tiny), devices, (3.0, 1.0))
    check_logits(worker, tiny, result)
    check_shares(result.ran, tiny, (3.0, 1.0))
    assert result.planned.allreduces == result.ran.allreduces


@pytest.mark.parametrize(
    ("devices", "sizes", "options"),
    [
        ("Vulkan0", (2, 32, 400), {"flash_attn": "off", "type_k": "f16", "type_v": "f16", "attn_f32": False}),
        (PAIR, (32, 128, 400), {}),
    ],
    ids=["Vulkan0", PAIR],
)
def test_growing_batches(
    worker: Worker, model: Callable[[str], TinyModel], devices: str, sizes: tuple[int, ...], options: dict[str, Any]
) -> None:
    """Larger batches need larger scratch buffers. lavapipe 22.3 counts references to those that they replace, where a
    descriptor set still names them: the last batch ended the process (docs/vulkan.md)."""
    errors = worker(vw.growing, os.fspath(model("llama-moe")), devices, sizes, **options)
    assert max(errors) <= 1e-4, errors


@pytest.mark.parametrize("devices", ["vcpu:1,Vulkan0", "Vulkan0,vcpu:1"])
def test_allreduces_are_those_that_a_device_counts(worker: Worker, model: Callable[[str], TinyModel], devices: str) -> None:
    tiny = model("llama")
    subgraphs, allreduces, computed = worker(vw.counted, os.fspath(tiny), devices, (1.0, 1.0))
    assert allreduces >= 2 * tiny.n_layer
    assert computed == subgraphs + allreduces  # the butterfly adds the other device's summand in a graph of its own


def test_callbacks_do_not_change_results(worker: Worker, model: Callable[[str], TinyModel]) -> None:
    plain, watched, seen = worker(vw.observed, os.fspath(model("llama")), PAIR)
    assert len(seen) > 20 and all(size > 0 for _, _, size in seen)
    assert np.array_equal(plain, watched)


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
@pytest.mark.parametrize("shares", ["1:1", "3:1"])
@pytest.mark.parametrize("devices", [PAIR, "vcpu:1,Vulkan0", "Vulkan0,vcpu:1"])
def test_graph(worker: Worker, devices: str, shares: str, dtype: str) -> None:
    """The last node is a partial sum."""
    result = worker(vw.mlp, devices, shares, dtype)
    one = gg.nmse(result["one"], result["exact"])
    # Vulkan multiplies quantized weights by the F32 vector, the CPU by its Q8_0
    assert gg.nmse(result["y"], result["exact"]) <= (max(1e-10, 3 * one) if dtype == "f32" else 2e-4)
    assert len(result["plan"].allreduces) == 1
    assert result["weights kept"]


@pytest.mark.parametrize("shares", ["1:0", "0:1"])
@pytest.mark.parametrize("devices", [PAIR, "vcpu:1,Vulkan0", "Vulkan0,vcpu:1"])
def test_nan_of_an_earlier_run_does_not_survive(worker: Worker, devices: str, shares: str) -> None:
    result = worker(vw.mlp, devices, shares, "f32", True)
    assert result["plan"].allreduces[0].computes == tuple(s == "1" for s in shares.split(":"))
    assert gg.nmse(result["y"], result["exact"]) <= 1e-10


@pytest.mark.parametrize("threads", [False, True], ids=["in turns", "two threads"])
def test_graphs_over_the_same_weights(worker: Worker, threads: bool) -> None:
    assert worker(vw.alternate, threads) <= 1e-10


def test_indices_that_the_graph_overwrites_are_refused(worker: Worker) -> None:
    """They were looked at before the run, as if nothing wrote over them: row 9,999,999 of 8 ended the process."""
    said = worker(vw.overwritten_indices)
    assert len(said) == 8
    for text in said:
        assert text.startswith("UnsupportedError: GET_ROWS node 'y' takes indices that the graph computes") and "Vulkan0 does not check them" in text


def test_positions_that_vulkan_would_misread_are_refused(worker: Worker) -> None:
    """It rotated by the positions in front of the view: NMSE 0.01 to 0.1."""
    found = worker(vw.positions_at_an_offset)
    for said, nmse in zip(found[::2], found[1::2], strict=True):
        assert isinstance(said, str) and said.startswith("UnsupportedError: ROPE node 'y' takes 'positions (view)'") and "reads only from multiples of" in said, said
        assert nmse <= 1e-9


def test_illegal_split_and_a_legal_one_after_it(worker: Worker) -> None:
    message, error = worker(vw.illegal_then_legal)
    assert "MUL_MAT" in message and "'up'" in message or "'y'" in message
    assert error <= 1e-10


def test_process_ends(start: Callable[[], Worker], model: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Also with models and devices that nobody closed."""
    start()
    code = f"""
import pyggml as gg
kept = gg.Model({os.fspath(model("llama"))!r}, "{PAIR}", split_mode="tensor", n_ctx=64)
kept.logits([1, 2, 3])
print("computed")
"""
    env = {**os.environ, "GGML_VK_VISIBLE_DEVICES": VISIBLE}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (0, "computed\n"), done.stderr


def test_absent_device_is_named() -> None:
    with pytest.raises(gg.DeviceNotFoundError, match="Vulkan77"):
        gg.get_device("Vulkan77")


def test_worker_reports_its_death(tmp_path: Path) -> None:
    """A crash would be a failing test with a status, not a hang."""
    dying = Worker(VISIBLE)
    dying.kill()
    with pytest.raises(vw.WorkerError, match="died in vulkan_devices"):
        dying(vw.vulkan_devices)
