"""Models in several files, and models of which there is only metadata."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from split_cases import F32, tokens_of

import pyggml as gg
from pyggml.gguf_check import check_gguf
from pyggml.testing import TinyModel, llama_header, split_gguf, synthetic_weights, tiny_gguf

Make = Callable[..., TinyModel]
MODES: dict[str, dict[str, Any]] = {
    "none": {"device": "vcpu:1"},
    "cpu": {},
    "layer": {"device": "vcpu:2", "split_mode": "layer"},
    "tensor": {"device": "vcpu:2", "split_mode": "tensor", "tensor_split": (3, 1)},
}


@pytest.mark.parametrize("n, first_is_empty", [(1, False), (2, False), (3, False), (5, True)])
@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_a_model_in_parts_is_the_model(tiny: Make, tmp_path: Path, dtype: str, n: int, first_is_empty: bool) -> None:
    whole = tiny("llama-moe", dtype=dtype)
    parts = split_gguf(whole, tmp_path / "parts", n, no_tensor_first_split=first_is_empty)
    assert [p.name for p in parts] == [f"parts-{i + 1:05d}-of-{n:05d}.gguf" for i in range(n)]
    info, all_of_it = check_gguf(parts[0]), check_gguf(whole)
    assert [(t.name, t.ne, t.dtype) for t in info.tensors] == [(t.name, t.ne, t.dtype) for t in all_of_it.tensors]
    assert {k: v for k, v in info.types.items() if not k.startswith("split.")} == all_of_it.types
    assert (check_gguf(parts[0], model=False).tensors[0].path == parts[0]) != first_is_empty
    tokens = tokens_of(whole, 9)
    for mode, options in MODES.items():
        with gg.Model(whole, **F32, **options) as one, gg.Model(parts[0], **F32, **options) as several:
            assert np.array_equal(one.logits(tokens), several.logits(tokens)), mode
            assert np.array_equal(one.weight("blk.1.attn_q.weight"), several.weight("blk.1.attn_q.weight"))
    options = gg.ModelOptions("tensor", (3.0, 1.0))
    assert gg.plan_model(parts[0], "vcpu:2", options=options).to_json() == gg.plan_model(whole, "vcpu:2", options=options).to_json()
    with gg.Weights.from_gguf(gg.cpu(), parts[0]) as a, gg.Weights.from_gguf(gg.cpu(), whole) as b:
        for t in all_of_it.tensors:
            assert np.array_equal(a[t.name].numpy(), b[t.name].numpy())


def test_a_plan_needs_only_the_headers_of_the_parts(tiny: Make, tmp_path: Path) -> None:
    whole = tiny("llama")
    parts = split_gguf(whole, tmp_path / "parts", 3)
    want = gg.plan_model(whole, "vcpu:2").to_json()
    for i in (1, 0, 2):  # one after the other loses its tensors
        end = min(t.offset for t in check_gguf(parts[0], whole=False).tensors if t.path == parts[i])
        parts[i].write_bytes(parts[i].read_bytes()[:end])
        assert gg.plan_model(parts[0], "vcpu:2").to_json() == want
        with pytest.raises(gg.FileFormatError, match=r"parts-0000\d-of-00003\.gguf: tensor .* ends at byte .* truncated"):
            gg.Model(parts[0])


def doors(path: Path) -> dict[str, Callable[[], object]]:
    return {
        "check_gguf": lambda: check_gguf(path),
        "Model": lambda: gg.Model(path),
        "tensor mode": lambda: gg.Model(path, "vcpu:2", split_mode="tensor"),
        "plan_model": lambda: gg.plan_model(path, "vcpu:2"),
        "from_gguf": lambda: gg.Weights.from_gguf(gg.cpu(), path),
    }


def test_parts_that_are_missing_or_mixed_up(tiny: Make, tmp_path: Path) -> None:
    whole, other = tiny("llama"), tiny("llama", n_layer=3)
    parts = split_gguf(whole, tmp_path / "m", 3)
    of_other = split_gguf(other, tmp_path / "other", 3)
    of_four = split_gguf(whole, tmp_path / "four", 4)
    good = {p: p.read_bytes() for p in parts}

    def refused(words: str, path: Path = parts[0], kind: type[gg.Error] = gg.FileFormatError) -> None:
        for door, call in doors(path).items():
            with pytest.raises(kind, match=words) as caught:
                call()
            assert re.search(r"-0000\d-of-0000\d\.gguf", str(caught.value)), door
        for p, raw in good.items():
            p.write_bytes(raw)

    parts[1].unlink()
    refused(r"m-00002-of-00003\.gguf: no such file; it is part 2 of .*m-00001-of-00003\.gguf", kind=gg.ModelNotFoundError)
    refused(r"is file 2 of a split model, expected the first: .*m-00001-of-00003\.gguf", parts[1])
    shutil.copy(parts[2], parts[1])
    refused(r"m-00002-of-00003\.gguf: split\.no: found 2, expected 1")
    shutil.copy(of_four[1], parts[1])
    refused(r"m-00002-of-00003\.gguf: split\.count: found 4, expected 3")
    shutil.copy(of_other[1], parts[1])
    refused(r"m-00001-of-00003\.gguf: split\.tensors\.count|found in .* too")
    shutil.copy(of_other[0], parts[0])
    refused(r"m-00001-of-00003\.gguf: split\.tensors\.count|found in .* too")
    renamed = parts[0].with_name("model.gguf")
    shutil.copy(parts[0], renamed)
    for call in doors(renamed).values():
        with pytest.raises(gg.FileFormatError, match=r"file 1 of a model split into 3: expected a name that says so, such as model-00001-of-00003\.gguf"):
            call()
    for p, raw in good.items():
        p.write_bytes(raw)
    with gg.Model(parts[0]) as model:
        assert np.isfinite(model.logits([1, 2])).all()


def test_a_part_that_was_cut(tiny: Make, tmp_path: Path) -> None:
    parts = split_gguf(tiny("llama"), tmp_path / "m", 3)
    parts[2].write_bytes(parts[2].read_bytes()[:-100])
    for door in ("check_gguf", "Model", "tensor mode", "from_gguf"):
        with pytest.raises(gg.FileFormatError, match=r"m-00003-of-00003\.gguf: .*truncated"):
            doors(parts[0])[door]()


def test_on_the_command_line(tiny: Make, tmp_path: Path) -> None:
    parts = split_gguf(tiny("llama"), tmp_path / "m", 2)
    arguments = [sys.executable, "-m", "pyggml", "compare", str(parts[0]), "-dev", "vcpu:2", "-n", "5"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("agree"), done.stdout + done.stderr
    parts[1].unlink()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "it is part 2 of" in done.stderr and "Traceback" not in done.stderr


def test_more_parts_than_tensors(tiny: Make, tmp_path: Path) -> None:
    n = len(check_gguf(tiny("llama")).tensors)
    assert len(split_gguf(tiny("llama"), tmp_path / "all", n)) == n
    with pytest.raises(gg.ArgumentError, match=f"n_parts={n + 1}: 1 to {n}"):
        split_gguf(tiny("llama"), tmp_path / "m", n + 1)


# --- metadata alone


@pytest.mark.parametrize("dtype, moe", [("f32", False), ("f32", True), ("f16", False), ("bf16", False), ("q8_0", True), ("q4_K", False), ("iq2_xxs", False)])
def test_synthetic_weights_for_a_header(tmp_path: Path, dtype: str, moe: bool) -> None:
    """A header has a plan; with random weights it is a model of the same shapes, for tests: it runs, split as well."""
    model = tiny_gguf(tmp_path / "m.gguf", moe=moe, dtype="q4_K" if dtype.startswith("iq") else dtype, shares=((1, 1),), seed=5)
    info = check_gguf(model)
    header = tmp_path / "header.gguf"
    header.write_bytes(model.path.read_bytes()[: min(t.offset for t in info.tensors)])
    with pytest.raises(gg.FileFormatError, match="truncated"):
        gg.Model(header)
    filled = synthetic_weights(header, tmp_path / "filled.gguf", seed=1)
    again = check_gguf(filled)
    assert [(t.name, t.ne, t.dtype) for t in again.tensors] == [(t.name, t.ne, t.dtype) for t in info.tensors]
    assert again.types == info.types
    assert gg.plan_model(header, "vcpu:2").to_json() == gg.plan_model(filled, "vcpu:2").to_json()
    with gg.Model(filled, "vcpu:1", **F32) as one, gg.Model(filled, "vcpu:2", split_mode="tensor", **F32) as split:
        out = one.logits([1, 15, 7])
        assert np.isfinite(out).all() and 0.1 < out.std() < 10
        assert gg.nmse(split.logits([1, 15, 7]), out) <= (1e-9 if dtype == "f32" else 5e-3)
    assert synthetic_weights(header, tmp_path / "same.gguf", seed=1).read_bytes() == filled.read_bytes()
    assert synthetic_weights(header, tmp_path / "other.gguf", seed=2).read_bytes() != filled.read_bytes()


def test_a_header_of_a_large_model_is_a_plan_alone(tmp_path: Path) -> None:
    header = llama_header(tmp_path / "h.gguf", "llama-8b", vocab="none")
    plan = gg.plan_model(header, "sim:4@24GiB")
    assert len(plan.allreduces) == 64 and sum(w.split for w in plan.weight_bytes()) > 4 << 30


@pytest.mark.parametrize("where", ["Model", "plan_model", "with_options"])
def test_row_mode_is_refused_with_the_reason_and_the_alternative(tiny: Make, where: str) -> None:
    options = gg.ModelOptions("row")
    calls: dict[str, Callable[[], object]] = {
        "Model": lambda: gg.Model(tiny("llama"), "vcpu:2", split_mode="row"),
        "plan_model": lambda: gg.plan_model(tiny("llama"), "vcpu:2", options=options),
        "with_options": lambda: gg.Model.with_options(tiny("llama"), "vcpu:2", options),
    }
    with pytest.raises(gg.UnsupportedError, match=r"split_mode='row' needs split buffers, which only the SYCL and Hexagon backends export; use 'tensor' or 'layer'"):
        calls[where]()
