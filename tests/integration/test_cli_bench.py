"""`pyggml bench`: what is measured, in which order, and how it is told. No speed is asserted."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pyggml as gg
from pyggml.benchmark import BenchReport, BenchSetup, BenchTest, measure
from pyggml.cli import cli
from pyggml.model import ModelOptions
from pyggml.report.bench_svg import to_svg
from pyggml.report.bench_text import to_markdown
from pyggml.testing import TinyModel

Make = Callable[..., TinyModel]
QUICK = ["-p", "8", "-n", "3", "-r", "2", "-t", "1"]


def bench(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["bench", *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def cells(line: str) -> list[str]:
    return [c.strip() for c in line.strip("|").split("|")]


def test_markdown_has_llama_benchs_columns_and_ours(tiny: Make) -> None:
    result = bench(tiny("llama"), *QUICK)
    assert result.exit_code == 0
    head, rule, *rows = (cells(line) for line in result.stdout.splitlines() if line.startswith("|"))
    assert head == ["model", "size", "params", "backend", "dev", "sm", "test", "t/s", "speed-up", "all-reduce"]
    assert all(re.fullmatch("-+:?", c) for c in rule)
    assert [(r[5], r[6]) for r in rows] == [(sm, t) for sm in ("none", "layer", "tensor") for t in ("pp8", "tg3")]
    assert [r[8] for r in rows[:2]] == ["1.00x", "1.00x"]
    assert {r[9] for r in rows[:4]} == {"none"} and {r[9] for r in rows[4:]} == {"shared memory"}
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", r[7]) for r in rows)
    assert "speed-up: over VCPU0 none; 2 repetitions, the configurations taking turns" in result.stdout


def test_every_combination_is_measured_and_formats_tell_the_same(tiny: Make) -> None:
    what = [
        tiny("llama"), "-dev", "vcpu:2", "-dev", "vcpu:3", "-sm", "layer,tensor", "-ts", "3,1", "-ts", "1/1", "-p", "8,16", "-n", "2", "-pg", "4,2",
        "-d", "0,5", "-b", "4,8", "-r", "2", "--no-warmup",
    ]  # fmt: skip
    rows = json.loads(bench(*what, "-o", "json").stdout)
    setups = [("VCPU0/VCPU1", ts) for ts in ("3.00/1.00", "1.00/1.00")] + [("VCPU0/VCPU1/VCPU2", "0.00")]
    tests = [(8, 0), (16, 0), (0, 2), (4, 2)]
    keys = [(r["devices"], r["tensor_split"], r["split_mode"], r["n_batch"], r["n_depth"], (r["n_prompt"], r["n_gen"])) for r in rows]
    assert sorted(keys) == sorted((dev, ts, sm, b, d, t) for dev, ts in setups for sm in ("layer", "tensor") for b in (4, 8) for d in (0, 5) for t in tests)
    first = {(r["n_prompt"], r["n_gen"], r["n_depth"]): r for r in reversed(rows)}
    for r in rows:
        n = r["n_prompt"] + r["n_gen"]
        assert r["samples_ts"] == pytest.approx([n * 1e9 / ns for ns in r["samples_ns"]]) and len(r["samples_ns"]) == 2
        assert r["avg_ts"] == pytest.approx(statistics.mean(r["samples_ts"])) and r["stddev_ts"] == pytest.approx(statistics.stdev(r["samples_ts"]))
        base = first[r["n_prompt"], r["n_gen"], r["n_depth"]]
        assert r["speedup"] == pytest.approx(r["avg_ts"] / base["avg_ts"]) and r["speedup_against"] == "VCPU0,VCPU1 layer 3:1"
        assert r["allreduce"] == ("shared memory" if r["split_mode"] == "tensor" else "none") and r["interleaved"]
        assert (r["flash_attn"], r["n_gpu_layers"], r["load_mode"], r["build_number"]) == (-1, 999, "mmap", 0)
    few = [tiny("llama"), *QUICK]
    table = list(csv.DictReader(io.StringIO(bench(*few, "-o", "csv").stdout)))
    assert len(table) == 6 and set(table[0]) == set(rows[0]) - {"samples_ns", "samples_ts"}
    lines = [json.loads(line) for line in bench(*few, "-o", "jsonl").stdout.splitlines()]
    assert len(lines) == 6 and set(lines[0]) == set(rows[0])


def test_all_columns_of_llama_bench_are_there_in_its_order(tiny: Make) -> None:
    source = Path(__file__).parents[2] / "vendor/llama.cpp/tools/llama-bench/llama-bench.cpp"
    if not source.exists():
        pytest.skip("no source of llama-bench beside the tests")
    body = re.search(r"get_fields\(\) \{.*?\{(.*?)\};", source.read_text(), re.DOTALL)
    assert body is not None
    theirs = re.findall(r'"(\w+)"', body[1])
    assert len(theirs) > 35
    (row,) = json.loads(bench(tiny("llama"), "-dev", "vcpu:1", "-p", 4, "-n", 0, "-r", 1, "-o", "json").stdout)
    assert list(row)[: len(theirs)] == theirs
    assert {"speedup", "allreduce", "samples_ns", "samples_ts"} <= set(row)


def test_what_is_fed_and_in_which_order(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[tuple[str, int, int]] = []
    original = gg.Context.feed

    def feed(self: gg.Context, tokens: Any, *rest: Any) -> None:
        fed.append((self._native.loaded.options.split_mode, self.n_past(), len(tokens)))
        original(self, tokens, *rest)

    devices = tuple(gg.virtual_cpus(2))
    path = tiny("qwen35").path  # its state cannot be cut: it goes to the depth anew
    setups = [BenchSetup(path, devices, ModelOptions(mode)) for mode in ("none", "tensor")]
    told: list[tuple[str, float]] = []
    monkeypatch.setattr(gg.Context, "feed", feed)
    report = measure(setups, [BenchTest(6), BenchTest(0, 2), BenchTest(4, 1, 5)], repetitions=2, warmup=False, progress=lambda *a: told.append(a))

    def once(mode: str) -> list[tuple[str, int, int]]:
        deep = [(mode, 0, 5), (mode, 5, 4), (mode, 9, 1)]
        return [(mode, 0, 6), (mode, 0, 1), (mode, 1, 1), *deep]

    active = [("tensor", 0, 1)] * 2  # which all-reduce it is, in each of two contexts
    assert fed == [*active, *once("none"), *once("tensor"), *once("none"), *once("tensor")]
    assert [(r.setup.options.split_mode, str(r.test)) for r in report.results] == [
        (mode, test) for mode in ("none", "tensor") for test in ("pp6", "tg2", "pp4+tg1 @ d5")
    ]
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] <= 1


def test_a_cache_that_can_be_cut_is_filled_to_the_depth_once(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    original = gg.Context.feed
    monkeypatch.setattr(gg.Context, "feed", lambda self, tokens, *rest: (fed.append(len(tokens)), original(self, tokens, *rest)))
    measure([BenchSetup(tiny("llama").path, tuple(gg.virtual_cpus(1)), ModelOptions("none"))], [BenchTest(3, 0, 7)], repetitions=3, warmup=False)
    assert fed == [7, 3, 3, 3]


def test_one_after_the_other_where_memory_is_too_small_for_all(tiny: Make) -> None:
    model = tiny("llama")
    setups = [BenchSetup(model.path, tuple(gg.virtual_cpus(2)), ModelOptions("tensor", shares)) for shares in ((1, 1), (3, 1), (1, 3))]
    tests = [BenchTest(4)]
    try:
        gg.virtual_cpus(2, memory=int(1.8 * model.n_bytes))
        report = measure(setups, tests, repetitions=2)
        assert not report.interleaved and len(report.results) == 3
        assert "one configuration after the other" in to_markdown(report)
        gg.virtual_cpus(2, memory=model.n_bytes // 4)
        with pytest.raises(gg.OutOfMemoryError):
            measure(setups, tests, repetitions=2)
    finally:
        gg.virtual_cpus(2)
    assert measure(setups, tests, repetitions=1).interleaved
    assert not measure(setups, tests, repetitions=1, interleave=False).interleaved
    assert all(d.stats().buffer_bytes == 0 for d in gg.virtual_cpus(2))


def test_what_is_not_possible_is_left_out_and_told(tiny: Make) -> None:
    result = bench(tiny("llama"), *QUICK, "-fa", "on,off", "-sm", "none,tensor")
    assert result.exit_code == 0 and result.stderr.count("left out") == 1
    assert "left out: VCPU0,VCPU1 tensor (-fa off): split_mode='tensor' needs flash attention" in result.stderr
    rows = [cells(line) for line in result.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 * 2 and "fa" in rows[0]
    with pytest.raises(gg.UnsupportedError, match="flash attention"):
        bench(tiny("llama"), *QUICK, "-fa", "off", "-sm", "tensor")
    with pytest.raises(gg.UnsupportedError, match="row"):
        bench(tiny("llama"), *QUICK, "-sm", "row")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["-p", "0", "-n", "0"], "nothing to time"), (["-ts", "1,1,1"], "no configuration has 3 devices"), (["-p", "x"], "valid integer"),
        (["-sm", "none", "--rule", "ffn=M"], "no configuration is in tensor mode"), (["--plot", "x.png"], "ends in .svg"), (["-pg", "1"], "2 values"),
        (["-r", "0"], "not in the range"), (["-sm", "none,diagonal"], "diagonal"),
    ],
)  # fmt: skip
def test_mistakes(tiny: Make, wrong: list[str], said: str) -> None:
    result = bench(tiny("llama"), *wrong)
    assert result.exit_code == 2 and said in result.stderr, result.stderr
    assert bench().exit_code == 2


def test_several_files_and_tiny_ones(tiny: Make) -> None:
    result = bench(tiny("llama"), tiny("qwen3"), *QUICK, "-sm", "none,tensor")
    rows = [cells(line) for line in result.stdout.splitlines() if line.startswith("|")]
    assert rows[0][1] == "file" and len(rows) == 2 + 2 * 2 * 2
    assert [r[-2] for r in rows[2:4]] == [r[-2] for r in rows[6:8]] == ["1.00x", "1.00x"]
    assert f"over {tiny('llama').path.name}: VCPU0 none" in result.stdout or "over VCPU0 none" in result.stdout
    result = bench("--tiny", "llama", *QUICK, "-dev", "vcpu:5", "-sm", "tensor", "-o", "json")
    assert json.loads(result.stdout)[0]["devices"].count("/") == 4


def test_the_plot(tiny: Make, tmp_path: Path) -> None:
    result = bench(tiny("llama"), *QUICK, "-ts", "3,1", "--plot", tmp_path / "out.svg", "-b", "4,8")
    assert result.exit_code == 0 and "plot written" in result.stderr
    root = ET.fromstring((tmp_path / "out.svg").read_text(encoding="utf-8"))
    spelled = "{http://www.w3.org/2000/svg}"
    texts = ["".join(t.itertext()) for t in root.iter(f"{spelled}text")]
    assert texts.count("pp8") == texts.count("tg3") == 1
    assert texts.count("VCPU0,VCPU1 tensor 3:1 b4") == texts.count("VCPU0 none b8") == 2
    assert sum("shared memory" in t for t in texts) == 4
    width, height = (float(root.attrib[k]) for k in ("width", "height"))
    for one in root.iter(f"{spelled}rect"):
        x, y, w, h = (float(one.get(k, 0)) for k in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height
    assert len([1 for one in root.iter(f"{spelled}rect") if one.get("height") == "18"]) == 12


def test_bars_are_as_long_as_the_numbers_say(tiny: Make) -> None:
    report = measure([BenchSetup(tiny("llama").path, tuple(gg.virtual_cpus(2)), ModelOptions(m)) for m in ("none", "tensor")], [BenchTest(4)], repetitions=1)
    root = ET.fromstring(to_svg(BenchReport(report.results, True)))
    bars = [float(r.get("width", 0)) for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") == "18"]
    assert bars[1] / bars[0] == pytest.approx(report.results[1].speedup, rel=0.01)
    # what stands behind the longest bar is not cut at the edge
    equal = tuple(replace(r, samples_ns=(2_500_000,)) for r in report.results)
    root = ET.fromstring(to_svg(BenchReport(equal, True)))
    (number,) = (t for t in root.iter("{http://www.w3.org/2000/svg}text") if "shared memory" in (t.text or ""))
    assert float(number.get("x", 0)) + 7.2 * len(number.text or "") <= float(root.attrib["width"])  # 7.2: a character, in the mean


SERVER = """
import sys
import pyggml as gg
gg.lib.ggml_backend_rpc_start_server(f"127.0.0.1:{sys.argv[1]}".encode(), gg.ffi.NULL, 1, 1, gg.ffi.new("ggml_backend_dev_t[]", [gg.cpu().ptr]))
"""


@pytest.mark.rpc
def test_devices_of_two_backends_sum_by_butterfly(tiny: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # in processes of their own: a device of a server that is gone would stay in the list of this one
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            command = ["bench", tiny("llama"), *QUICK, "-dev", f"vcpu:1,rpc:127.0.0.1:{port}", "-sm", "none,tensor", "-o", "json"]
            done = subprocess.run([sys.executable, "-m", "pyggml", *map(os.fspath, command)], capture_output=True, text=True, timeout=120)
        finally:
            server.kill()
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(r["devices"], r["allreduce"]) for r in rows[1:3]] == [("VCPU0", "none"), ("VCPU0/RPC0", "butterfly")]
    assert all(r["allreduces_per_token"] == 2 * tiny("llama").n_layer for r in rows[2:])


def test_what_is_the_same_is_timed_once(tiny: Make) -> None:
    """``none`` over one device and over two is the first device both times; shares may also be written with colons."""
    result = bench(tiny("llama"), "-dev", "vcpu:1", "-dev", "vcpu:2", "-sm", "none,tensor", "-ts", "3:1", "-p", "4", "-n", "0", "-r", "1", "-t", "1")
    rows = [cells(line) for line in result.stdout.splitlines() if line.startswith("|")][2:]
    assert [(r[4], r[5]) for r in rows] == [("VCPU0", "none"), ("VCPU0", "tensor"), ("VCPU0/VCPU1", "tensor")]
