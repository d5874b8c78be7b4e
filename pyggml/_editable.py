"""Rebuilds the native code of an editable install when its sources changed since; unused in any other install.

scikit-build-core can do so too, but it looks for cmake on PATH and for the ninja that the build used: neither is there
when pip built in an environment of its own, which is gone afterwards. And looking at the times of some sixty files
costs less than asking ninja at every import.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

WATCHED = (
    "CMakeLists.txt",
    "cmake/*",
    "buildtools/*.py",
    "buildtools/ffi/*.py",
    "native",  # a folder's own time tells of files that came or went
    "native/*",
    "native/*/*",
    "pyggml/_about.py",
    "vendor/llama.cpp.lock",
    "vendor/llama.cpp/.pyggml-stamp",
)
INSTALLED = "install_manifest_pyggml.txt"  # written by cmake at each installation


def _changed(source: Path, build: Path) -> Iterator[Path]:
    """The watched files that are newer than what is installed."""
    try:
        installed = (build / INSTALLED).stat().st_mtime_ns
    except FileNotFoundError:
        installed = 0
    for pattern in WATCHED:
        for path in source.glob(pattern):
            if path.stat().st_mtime_ns > installed:
                yield path


def _cache(build: Path) -> dict[str, str]:
    out = {}
    for line in (build / "CMakeCache.txt").read_text(encoding="utf-8").splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith(("#", "//")):
            out[key.partition(":")[0]] = value
    return out


def _tool(name: str) -> str:
    beside = shutil.which(name, path=os.path.dirname(sys.executable))  # this environment, activated or not
    found = beside or shutil.which(name)
    if found is None:
        raise ImportError(
            f"the native sources of this editable install of pyggml changed, and there is no {name} to rebuild them: "
            "pip install cmake ninja, or pip install -e . once more"
        )
    return found


def _run(command: list[str]) -> None:
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        # cmake --install takes files for the same whose times differ by less than a second
        env={**os.environ, "CMAKE_INSTALL_ALWAYS": "1"},
    )
    if result.returncode != 0:
        raise ImportError(
            f"rebuilding the native code of this editable install of pyggml failed: {' '.join(command)} gave status "
            f"{result.returncode}\n{result.stdout[-6000:]}"
        )


def _rebuild(source: Path, build: Path, prefix: Path) -> None:
    cache = _cache(build)
    cmake = cache["CMAKE_COMMAND"]
    tools = (cmake, cache["CMAKE_MAKE_PROGRAM"], cache["Python_EXECUTABLE"])
    if not all(os.path.exists(tool) for tool in tools):
        cmake = _tool("cmake")
        command = [cmake, "-S", str(source), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}"]
        if cache["CMAKE_GENERATOR"] == "Ninja":
            command.append(f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}")
        _run(command)
    _run([cmake, "--build", str(build)])
    _run([cmake, "--install", str(build), "--prefix", str(prefix), "--component", "pyggml"])


def refresh(build_info: ModuleType) -> None:
    """Brings the compiled module and its libraries up to date with the sources they were made from."""
    source, build = map(Path, build_info.EDITABLE)
    if not build.is_dir() or next(_changed(source, build), None) is None:
        return
    import fcntl  # editable installs on Windows are not supported

    with (build / "editable.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if changed := list(_changed(source, build)):  # another process may have been faster
            names = ", ".join(str(path.relative_to(source)) for path in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            print(f"pyggml: rebuilding native code ({names}{more} changed)", file=sys.stderr, flush=True)
            _rebuild(source, build, prefix=Path(str(build_info.__file__)).parent.parent)
    importlib.invalidate_caches()
    importlib.reload(build_info)
