"""What the configuration of the build says when something is not as pyggml's native code expects it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(os.environ.get("PYGGML_LLAMA_CPP_DIR") or ROOT / "vendor" / "llama.cpp")
META = "ggml/src/ggml-backend-meta.cpp"

pytestmark = [
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake"),
    pytest.mark.skipif(not (SOURCE / META).is_file(), reason="needs the llama.cpp source"),
]


def configure(build: Path, source: Path, *options: str) -> tuple[int, str]:
    """The exit status, and what was said with line breaks and indentation taken out."""
    result = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(build), f"-DPYGGML_LLAMA_CPP_DIR={source}", *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.returncode, " ".join(result.stderr.split())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    # the whole of it, so that only what a test changes can be at fault
    return Path(shutil.copytree(SOURCE, tmp_path / "llama.cpp"))


def test_a_name_that_moved_is_named_with_its_file_and_the_version_that_has_it(copy: Path, tmp_path: Path) -> None:
    text = (copy / META).read_text()
    assert "ggml_backend_meta_get_split_state(" in text
    (copy / META).write_text(text.replace("ggml_backend_meta_get_split_state(", "ggml_backend_meta_infer("))
    status, said = configure(tmp_path / "build", copy)
    assert status != 0
    assert f"{META}: ggml_backend_meta_get_split_state(" in said
    assert "llama-cpp-python 0.3.36" in said
    assert said.count(f"{META}:") == 1


def test_a_file_that_moved_is_named(copy: Path, tmp_path: Path) -> None:
    (copy / "src" / "llama-ext.h").unlink()
    status, said = configure(tmp_path / "build", copy)
    assert status != 0
    assert "src/llama-ext.h: no such file" in said


def test_without_a_source_the_three_ways_are_said(tmp_path: Path) -> None:
    status, said = configure(tmp_path / "build", tmp_path / "nowhere")
    assert status != 0
    assert f"there is no llama.cpp source in {tmp_path / 'nowhere'}" in said
    for way in ("python buildtools/vendor.py", "PYGGML_LLAMA_CPP_DIR", "source distribution of pyggml"):
        assert way in said


def test_nccl_without_cuda_is_refused(tmp_path: Path) -> None:
    status, said = configure(tmp_path / "build", SOURCE, "-DPYGGML_NCCL=ON")
    assert status != 0
    assert "PYGGML_NCCL=ON needs PYGGML_CUDA=ON" in said
