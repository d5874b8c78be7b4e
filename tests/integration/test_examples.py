"""Every program in examples/ runs, and what it prints is right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyggml as gg
from pyggml.testing import tiny_gguf

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parents[1] / "examples"
# run by tests of their own
ELSEWHERE = {"minilm_to_gguf": "test_minilm.py", "split_and_look": "test_readme.py"}


def run(name: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py"), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sections(text: str) -> dict[str, str]:
    """What stands below each ``=== title``."""
    parts = re.split(r"^=== (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def weights_on(text: str) -> dict[str, int]:
    """Bytes of weights on each device, as the programs print them."""
    return {device: int(n.replace(",", "")) for device, n in re.findall(r"^  (\S+) +weights +([\d,]+) B", text, re.MULTILINE)}


def numbers(pattern: str, text: str) -> list[float]:
    return [float(x) for x in re.findall(pattern, text)]


def test_all_are_tested() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for name in {path.stem for path in EXAMPLES.glob("*.py")}:
        where = here if name not in ELSEWHERE else (TESTS / ELSEWHERE[name]).read_text(encoding="utf-8")
        assert f'run("{name}"' in where or f"{name}.py" in where, f"no test runs examples/{name}.py"


def test_uneven_model() -> None:
    found = sections(run("uneven_model"))
    three, two = found["tiny.gguf over vcpu:2, shares 3,1"], found["tiny.gguf over vcpu:2, shares 2,1"]

    assert "bytes of the split weights: 75.0 % : 25.0 %" in three
    assert "whose shares could not be had: 0" in three
    # as planned, so loaded
    real = weights_on(three)
    assert real["VCPU0"] / real["VCPU1"] == pytest.approx(3, rel=0.01)

    # of four KV heads nobody can have two thirds
    assert numbers(r"could not be had: (\d+)", two)[0] > 0
    assert "not split as asked for: granularity" in two
    planned = re.search(r"bytes of the split weights: ([\d.]+) % : ([\d.]+) %", two)
    assert planned is not None and abs(float(planned[1]) - 66.7) > 1
    real = weights_on(two)
    assert 100 * real["VCPU0"] / (real["VCPU0"] + real["VCPU1"]) == pytest.approx(float(planned[1]), abs=0.3)


def test_uneven_model_of_a_file(tmp_path: Path) -> None:
    made = tiny_gguf(tmp_path / "mine.gguf", "qwen3", shares=((1, 2, 1),))
    found = sections(run("uneven_model", str(made.path), "--devices", "vcpu:3", "--shares", "1,2,1"))
    assert list(found) == ["mine.gguf over vcpu:3, shares 1,2,1"]
    assert "bytes of the split weights: 25.0 % : 50.0 % : 25.0 %" in found["mine.gguf over vcpu:3, shares 1,2,1"]


def test_layer_rule(tmp_path: Path) -> None:
    found = sections(run("layer_rule"))

    refused = found["forgetting ffn_down"]
    assert refused.startswith("\nrefused: ") and "'ffn_out-1' (MUL_MAT" in refused
    assert re.search(r"legal repair: .*blk\.1\.ffn_down\.weight'? as S0 128:384", refused)

    changed = found["what the two rules change"]
    assert "3 weights, 3 nodes changed; 2 rules added" in changed
    assert {m[1] for m in re.finditer(r"blk\.(\d)\.\w+\.weight", changed)} == {"1"}  # no other layer

    file = tmp_path / "rules.toml"
    file.write_text(found["the rules as a file, for gg.load_rules() and pyggml plan --rule @FILE"], encoding="utf-8")
    made = tiny_gguf(tmp_path / "tiny.gguf", shares=((1, 1), (1, 3)), n_layer=3)
    plan = gg.plan_model(made, "vcpu:2", rules=gg.load_rules(file))
    assert [str(plan[f"blk.{i}.ffn_up.weight"].split) for i in range(3)] == ["S1 256:256", "S1 128:384", "S1 256:256"]

    same = found["does it still compute the same?"]
    assert set(re.findall(r"^blk\.1\.(\w+)\.weight: asked (S\d 1:3), achieved (.*)$", same, re.MULTILINE)) == {
        ("ffn_gate", "S1 1:3", "S1 128:384"), ("ffn_up", "S1 1:3", "S1 128:384"), ("ffn_down", "S0 1:3", "S0 128:384"),
    }  # fmt: skip
    assert same.rstrip().endswith("\nagree")
    (nmse,) = numbers(r"NMSE +(\S+)", same)
    assert 0 < nmse < 1e-6  # sums in another order, and nothing else


def test_unlike_backends() -> None:
    text = run("unlike_backends")
    backends = re.findall(r"\((\w+): ", text.splitlines()[0])
    assert len(backends) == 2 and backends[0] == "VCPU"
    options = gg.build_info().options
    if options["RPC"] or any(d.type in ("gpu", "igpu") and not d.is_virtual for d in gg.devices()):
        assert backends[1] != "VCPU"
        assert "by butterfly" in text
    else:
        assert "nothing else was found here" in text
    alone = numbers(r"alone: NMSE (\S+)", text)
    (split, tolerance), *_ = re.findall(r"NMSE +(\S+) \(tolerance (\S+)\)", text)
    assert len(alone) == 2 and float(split) <= float(tolerance) <= max(1e-5, 3 * max(alone))
    assert "\nagree\n" in text
    if max(alone) == 0:
        assert numbers(r"(\d+) of \d+ nodes compared", text)[0] > 40
        assert "no node differs by more" in text


def test_unlike_backends_that_are_named() -> None:
    text = run("unlike_backends", "--devices", "vcpu:2")
    assert re.match(r"devices: VCPU0 .*, VCPU1 .*\nall of one backend", text)
    assert "by shared memory" in text and "\nagree\n" in text


def test_tensor_or_layer(tmp_path: Path) -> None:
    made = tiny_gguf(tmp_path / "tiny.gguf", shares=((1, 1),), n_layer=4)
    found = sections(run("tensor_or_layer", str(made.path)))
    layer, tensor, speed = found["layer"], found["tensor"], found["speed, the configurations taking turns"]

    assert "all-reduces for one token: 0" in layer
    assert f"all-reduces for one token: {2 * made.n_layer}, {2 * made.n_layer * made.n_embd * 4:,} bytes" in tensor
    (by_layer,), (by_tensor,) = (numbers(r"NMSE (\S+) \(allowed", text) for text in (layer, tensor))
    assert by_layer < 1e-12  # the same sums
    assert by_tensor < 1e-6
    halves = weights_on(tensor)
    assert halves["VCPU0"] == halves["VCPU1"]
    assert sum(weights_on(layer)[d] for d in halves) == pytest.approx(sum(halves.values()), rel=0.01)  # nothing big is there twice

    rows = re.findall(r"^(VCPU\S+) (\w+) +(\w+) +([\d.]+) tokens/s, +([\d.]+) times VCPU0 none; sums by (.+)$", speed, re.MULTILINE)
    assert [row[:3] for row in rows] == [
        (devices, mode, test) for devices, mode in (("VCPU0", "none"), ("VCPU0,VCPU1", "layer"), ("VCPU0,VCPU1", "tensor")) for test in ("pp64", "tg16")
    ]
    assert all(float(row[3]) > 0 for row in rows)
    assert [row[5] for row in rows[::2]] == ["none", "none", "shared memory"]
