"""The reproducers of docs/upstream, compiled against our libraries: what upstream computes wrongly or dies of is right or refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyggml._ffi import _lib

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "docs/upstream"
LLAMA_CPP = Path(os.environ.get("PYGGML_LLAMA_CPP_DIR") or ROOT / "vendor/llama.cpp")
LIBRARIES = Path(_lib.__file__).resolve().parent.parent / "lib"

# what each says with our libraries: a line of its output, or the refusal that it dies of for want of a handler
RIGHT, REFUSED = r"right, NMSE", r"illegal split at node '[^']+' \({}\b.*legal repair"
EXPECTED = {
    "01_last_node": RIGHT,
    "02_read_partial": r"^read$",
    "03_shared_weights": r"^A ran again$",
    "04_soft_max_axis_0": REFUSED.format("SOFT_MAX"),
    "05_glu_axis_0": REFUSED.format("SWIGLU"),
    "06_rope_axis_0": REFUSED.format("ROPE"),
    "07_view_of_half": REFUSED.format("VIEW"),
    "08_delayed_over_second_use": RIGHT,
    "09_nan_of_zero_share": RIGHT,
    "10_gated_delta_net_states": RIGHT,
    "11_names": r"device 'Meta\(Fake0,Fake1\)', buffer type 'Meta\(Fake0,Fake1\)'",
    "12_alibi": REFUSED.format("FLASH_ATTN_EXT"),
    "13_callback_eval": RIGHT,
    "14_concat": REFUSED.format("CONCAT"),
    "15_argmax": r"GGML_ASSERT",  # an error in Python, where aborts are caught
    "15_group_norm": REFUSED.format("GROUP_NORM"),
    "16_expert_id": r"^graph_compute returned -1$",
    "17_partial_bias": REFUSED.format("ADD_ID"),
    "18_host_parts": r"is_host: no; SET_ROWS: computed",
    "19_axis_3": RIGHT,
    "20_attention_whole_kv": REFUSED.format("FLASH_ATTN_EXT"),
    "21_segments": REFUSED.format("MUL_MAT"),
    "22_expert_rows": REFUSED.format("MUL_MAT_ID"),
    "23_rope_axis_2": REFUSED.format("ROPE"),
    "24_no_memory": r"^meta device: NULL$",
    "25_view_of_head": RIGHT,
    "26_no_sources": RIGHT,
    "27_view_of_host": RIGHT,
    "28_no_memory_for_sums": r"has no memory for the other devices' summands: \d+ bytes",
    "29_delay_takes_nodes": RIGHT,
    "30_gelu_table": r"GELU 0\.841\d+ and 0\.842\d+",  # ggml's own, unless exact_gelu() is asked for
    "31_rope_of_nothing": r"^graph_compute returned -1$",
    # kernels as they are: what would get there is refused when a graph is built in Python (pyggml/ops)
    "32_strided_rows": r"^CLAMP: [1-9]\d* of 24 elements differ",
    "33_no_elements": r"^SET_ROWS, ids of ne \[2, 0\]: $",
    "34_conversions": r"^q8_K to f32, supports_op yes: $",
}  # fmt: skip


def test_every_program_is_expected_to_say_something() -> None:
    assert set(EXPECTED) == {path.stem for path in PROGRAMS.glob("*.cpp")}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which("nm") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C++ compiler, nm and ELF libraries")
    if not LLAMA_CPP.is_dir():
        pytest.skip(f"needs the llama.cpp source in {LLAMA_CPP}")
    folder = tmp_path_factory.mktemp("upstream")
    libraries = sorted(LIBRARIES.glob("libpyggml-ggml*.so"))
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", *libraries], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listing.splitlines() if " pyggml_" in line}
    symbols = folder / "symbols.h"  # llama.cpp's names carry a prefix in our libraries
    symbols.write_text("".join(f"#pragma redefine_extname {n.removeprefix('pyggml_')} {n}\n" for n in sorted(names)))

    def run(name: str) -> Path:
        program = folder / name
        options = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-include", str(symbols)]
        options += [f"-I{LLAMA_CPP / 'ggml/include'}", f"-I{LLAMA_CPP / 'ggml/src'}", f"-Wl,-rpath,{LIBRARIES}"]
        files = [str(PROGRAMS / f"{name}.cpp"), *map(str, libraries)]
        subprocess.run([compiler, *options, *files, "-o", str(program)], check=True)
        return program

    return run


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_right_or_refused(name: str, build: Callable[[str], Path], tmp_path: Path) -> None:
    program = build(name)
    resource = pytest.importorskip("resource")  # a refusal ends in an abort here: no core files
    for arguments in ([], ["x"]) if "argc" in (PROGRAMS / f"{name}.cpp").read_text() else ([],):
        result = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"}, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        )  # fmt: skip
        said = result.stdout + result.stderr
        assert "WRONG" not in said, said
        assert re.search(EXPECTED[name], said, re.MULTILINE), f"status {result.returncode}\n{said}"
        if EXPECTED[name] is RIGHT:
            assert result.returncode == 0, said
