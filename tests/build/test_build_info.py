"""pyggml.build_info(): what was recorded is what is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pyggml
from pyggml._ffi import ffi, lib

ROOT = Path(__file__).resolve().parents[2]


def test_it_agrees_with_the_libraries() -> None:
    info = pyggml.build_info()
    assert info.version == pyggml.__version__
    assert info.ggml_version == ffi.string(lib.ggml_version()).decode()
    assert info.upstream_commit.startswith(ffi.string(lib.ggml_commit()).decode())
    backends = {
        ffi.string(lib.ggml_backend_reg_name(lib.ggml_backend_reg_get(i))).decode()
        for i in range(lib.ggml_backend_reg_count())
    }
    assert ("RPC" in backends) == info.options["RPC"]
    assert ("Vulkan" in backends) == info.options["VULKAN"]
    assert ("CUDA" in backends) == info.options["CUDA"]
    assert ("llama" in info.libraries) == info.options["LLAMA"] == hasattr(lib, "llama_model_load_from_file")


def test_it_is_a_value() -> None:
    info = pyggml.build_info()
    assert info == pyggml.build_info()
    with pytest.raises(TypeError):
        info.options["CUDA"] = True  # type: ignore[index]
    assert info.build_id in str(info) and info.compiler in str(info)


def test_the_build_id_changes_with_any_native_source_and_any_fact(tmp_path: Path) -> None:
    native = tmp_path / "native"
    native.mkdir()

    def build_id(*facts: str) -> str:
        output = tmp_path / "_build_info.py"
        script = ROOT / "buildtools" / "build_info.py"
        subprocess.run([sys.executable, str(script), str(output), *facts, "--native", str(native)], check=True)
        values: dict[str, dict[str, str]] = {}
        exec(output.read_text(), values)
        return values["INFO"]["build_id"]

    (native / "a.cpp").write_text("int a;")
    seen = [build_id("version=1", "options=CUDA=OFF")]
    assert build_id("version=1", "options=CUDA=OFF") == seen[0]
    seen.append(build_id("version=1", "options=CUDA=ON"))
    (native / "a.cpp").write_text("int b;")
    seen.append(build_id("version=1", "options=CUDA=OFF"))
    (native / "meta").mkdir()
    (native / "meta" / "b.inc").write_text("")
    seen.append(build_id("version=1", "options=CUDA=OFF"))
    (native / "meta" / "b.inc").rename(native / "b.inc")
    seen.append(build_id("version=1", "options=CUDA=OFF"))
    assert len(set(seen)) == 5
