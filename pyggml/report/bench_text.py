"""Benchmarks as markdown, CSV and JSON, with llama-bench's columns and names."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from .._units import binary
from ..benchmark import BenchReport, BenchResult, threads_of
from ..device import cpu
from ..model.options import FLASH

__all__ = ["to_csv", "to_json", "to_jsonl", "to_markdown"]


def _record(r: BenchResult, report: BenchReport) -> dict[str, Any]:
    from .._about import __version__
    from .._info import build_info

    o = r.setup.options
    # llama-bench's, all of them and in its order; where it has a choice that is none here, what is done
    theirs = {
        "build_commit": build_info().upstream_commit,
        "build_number": 0,
        "cpu_info": cpu().description,
        "gpu_info": ", ".join(d.description for d in r.setup.used),
        "backends": _backends(r),
        "model_filename": str(r.setup.path),
        "model_type": r.model_type,
        "model_size": r.model_size,
        "model_n_params": r.model_n_params,
        "n_batch": o.n_batch,
        "n_ubatch": o.n_batch,
        "n_threads": threads_of(r.setup),
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 50,
        "type_k": o.type_k,
        "type_v": o.type_v,
        "n_gpu_layers": 999 if r.setup.used else 0,
        "n_cpu_moe": 0,
        "split_mode": o.split_mode,
        "main_gpu": 0,
        "no_kv_offload": False,
        "flash_attn": FLASH[o.flash_attn],
        "devices": "/".join(_devices(r)),
        "tensor_split": "/".join(f"{s:.2f}" for s in o.tensor_split or ()) or "0.00",
        "tensor_buft_overrides": "none",
        "load_mode": "mmap",
        "lazy_mode": "auto",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": False,
        "fit_target": 0,
        "fit_min_ctx": 0,
        "n_prompt": r.test.n_prompt,
        "n_gen": r.test.n_gen,
        "n_depth": r.test.depth,
        "test_time": r.test_time,
        "avg_ns": round(statistics.fmean(r.samples_ns)),
        "stddev_ns": round(statistics.stdev(r.samples_ns)) if len(r.samples_ns) > 1 else 0,
        "avg_ts": r.avg_ts,
        "stddev_ts": r.stddev_ts,
    }
    ours = {
        "pyggml_version": __version__,
        "rules": "; ".join(map(str, r.setup.rules)),
        "speedup": r.speedup,
        "speedup_against": r.baseline,
        "allreduce": r.reduction.name,
        "allreduce_certain": r.reduction.certain,
        "allreduces_per_token": r.reduction.times,
        "interleaved": report.interleaved,
    }
    return theirs | ours | {"samples_ns": list(r.samples_ns), "samples_ts": list(r.samples_ts)}


def _devices(r: BenchResult) -> list[str]:
    return [d.name for d in r.setup.used] or ["CPU"]


def _backends(r: BenchResult) -> str:
    return ",".join(dict.fromkeys(d.backend for d in r.setup.used)) or "CPU"


def to_json(report: BenchReport) -> str:
    """A list of objects."""
    return json.dumps([_record(r, report) for r in report.results], indent=2, ensure_ascii=False)


def to_jsonl(report: BenchReport) -> str:
    """An object a line."""
    return "\n".join(json.dumps(_record(r, report), ensure_ascii=False) for r in report.results)


def to_csv(report: BenchReport) -> str:
    """A line a test, without the single samples."""
    rows = [{k: v for k, v in _record(r, report).items() if not k.startswith("samples")} for r in report.results]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


# head, cell, flush right, whether it is always shown (else where the configurations differ)
_Column = tuple[str, Callable[[BenchResult], str], bool, bool]
_COLUMNS: tuple[_Column, ...] = (
    ("model", lambda r: r.model_type, False, True),
    ("file", lambda r: r.setup.path.name, False, False),
    ("size", lambda r: binary(r.model_size), True, True),
    ("params", lambda r: _count(r.model_n_params), True, True),
    ("backend", _backends, False, True),
    ("threads", lambda r: str(threads_of(r.setup)), True, False),
    ("n_batch", lambda r: str(r.setup.options.n_batch), True, False),
    ("type_k", lambda r: r.setup.options.type_k, True, False),
    ("type_v", lambda r: r.setup.options.type_v, True, False),
    ("fa", lambda r: r.setup.options.flash_attn, True, False),
    ("dev", lambda r: "/".join(_devices(r)), False, True),
    ("sm", lambda r: r.setup.options.split_mode, True, True),
    ("ts", lambda r: "/".join(f"{s:.2f}" for s in r.setup.options.tensor_split or ()), False, False),
    ("test", lambda r: str(r.test), True, True),
    ("t/s", lambda r: f"{r.avg_ts:.2f} ± {r.stddev_ts:.2f}", True, True),
    ("speed-up", lambda r: f"{r.speedup:.2f}x", True, True),
    ("all-reduce", lambda r: str(r.reduction), False, True),
)


def to_markdown(report: BenchReport) -> str:
    """A table; columns in which nothing differs are left out where they are not always wanted. Notes stand below it."""
    results = report.results
    shown = [c for c in _COLUMNS if c[3] or len({c[1](r) for r in results}) > 1]
    rows = [[c[0] for c in shown], *([c[1](r).replace("|", "\\|") for c in shown] for r in results)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(shown))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.rjust(w) if s[2] else c.ljust(w) for c, w, s in zip(cells, widths, shown, strict=True)) + " |"

    rule = "| " + " | ".join("-" * (w - 1) + ":" if s[2] else "-" * w for w, s in zip(widths, shown, strict=True)) + " |"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:]), "", *_notes(report)])


def _notes(report: BenchReport) -> list[str]:
    files = {r.setup.path: r.baseline for r in report.results}
    same = len(set(files.values())) == 1
    bases = next(iter(files.values())) if same else "; ".join(f"{path.name}: {name}" for path, name in files.items())
    n = len(report.results[0].samples_ns)
    turns = "the configurations taking turns" if report.interleaved else "one configuration after the other"
    out = [f"speed-up: over {bases}; {n} repetitions, {turns}"]
    if any(not r.reduction.certain for r in report.results):
        out.append("all-reduce with '?': what CUDA's rules (GGML_CUDA_ALLREDUCE) come to; it does not tell whether it fell back")
    return out


def _count(n: int) -> str:
    """As llama-bench writes it: ``6.74 B``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return str(n)
