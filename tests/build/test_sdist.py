"""The source distribution carries what an offline build needs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("scikit_build_core", reason="the build backend is not installed here")


def test_it_carries_the_source_and_the_licences(tmp_path: Path) -> None:
    if not (ROOT / "vendor/llama.cpp/.pyggml-stamp").exists():
        pytest.skip("vendor/llama.cpp is not filled from the locked package")
    code = "import sys; sys.path.insert(0, 'buildtools'); import pyggml_build; print(pyggml_build.build_sdist(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    vendored = {str(p.relative_to(ROOT)) for p in (ROOT / "vendor/llama.cpp").rglob("*") if p.is_file()}
    assert len(vendored) > 500 and vendored <= names
    tracked = subprocess.run(["git", "ls-files", "native", "pyggml", "cmake", "buildtools"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode == 0:
        assert set(tracked.stdout.split()) <= names
    assert {"LICENSE", "pyproject.toml", "CMakeLists.txt", "vendor/llama.cpp.lock", "README.md"} <= names
    assert any(name.startswith("vendor/llama.cpp/") and Path(name).name.startswith("LICENSE") for name in names)
    assert not any(name.endswith((".so", ".gguf", ".o")) or name.startswith("build/") for name in names)
