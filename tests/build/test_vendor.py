"""buildtools/vendor.py: whatever happens, vendor/llama.cpp is either the whole pinned source or not there."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "buildtools" / "vendor.py"
PREFIX = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
FILES = {
    "LICENSE": b"somebody's\n",
    "CMakeLists.txt": b"project(llama.cpp)\n",
    "ggml/src/CMakeLists.txt": b"add_library(ggml-base)\n",
    "ggml/src/ggml-cpu/ops.cpp": b"// kernels\n" * 1000,
    "ggml/src/ggml-sycl/unwanted.cpp": b"// no option of ours builds this\n",
    "src/llama.cpp": b"// library\n",
    "models/unwanted.gguf": b"0" * 4096,
    "tools/llama-bench/main.cpp": b"int main() {}\n",
    "tools/server/unwanted.cpp": b"int main() {}\n",
}
WANTED = {name for name in FILES if "unwanted" not in name}


def archive_of(path: Path, files: dict[str, bytes] = FILES) -> Path:
    """A source distribution that pip accepts, with a llama.cpp in it."""
    metadata = {
        "llama_cpp_python-0.3.36/PKG-INFO": b"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\n",
        "llama_cpp_python-0.3.36/pyproject.toml": b'[build-system]\nrequires = ["scikit-build-core"]\n'
        b'build-backend = "scikit_build_core.build"\n[project]\nname = "llama_cpp_python"\nversion = "0.3.36"\n',
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (metadata | {PREFIX + name: data for name, data in files.items()}).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def lock(root: Path, archive: Path, version: str = "0.3.36") -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (root / "vendor").mkdir(exist_ok=True)
    (root / "vendor" / "llama.cpp.lock").write_text(
        f"# a comment\npackage = llama-cpp-python\nversion = {version}\nsha256  = {digest}\nprefix = vendor/llama.cpp\ncommit = 0123abc\n"
    )


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "links").mkdir()
    return archive_of(tmp_path / "links" / "llama_cpp_python-0.3.36.tar.gz")


@pytest.fixture
def root(tmp_path: Path, archive: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    lock(root, archive)
    return root


def run(root: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key != "PYGGML_LLAMA_CPP_DIR"}
    return subprocess.run(
        [sys.executable, str(VENDOR), "--root", str(root), *args],
        env=environ | {"PIP_NO_INDEX": "1"} | env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def contents(root: Path) -> dict[str, bytes]:
    base = root / "vendor" / "llama.cpp"
    return {
        str(p.relative_to(base)): p.read_bytes() for p in base.rglob("*") if p.is_file() and p.name != ".pyggml-stamp"
    }


def leftovers(root: Path) -> list[str]:
    return [p.name for p in (root / "vendor").iterdir() if p.name.startswith(".llama.cpp-")]


def test_fills_with_what_is_wanted_and_only_that(root: Path, archive: Path) -> None:
    result = run(root, "--archive", str(archive))
    assert result.returncode == 0, result.stderr
    assert contents(root) == {name: FILES[name] for name in WANTED}
    assert (root / "vendor" / "llama.cpp" / ".pyggml-stamp").is_file()
    assert leftovers(root) == []
    assert "unpacking" in result.stderr


def test_through_pip_with_the_settings_of_a_build_in_the_environment(root: Path, archive: Path) -> None:
    result = run(
        root,
        PIP_FIND_LINKS=str(archive.parent),
        # each of these breaks the nested pip unless it is taken out
        _PYPROJECT_HOOKS_BUILD_BACKEND="pyggml_build",
        _PYPROJECT_HOOKS_BACKEND_PATH=str(ROOT / "buildtools"),
        PIP_CONSTRAINT=str(root / "not-there.txt"),
        PIP_ONLY_BINARY=":all:",
        PIP_TARGET=str(root / "target"),
    )
    assert result.returncode == 0, result.stderr
    assert contents(root).keys() == WANTED


def test_does_nothing_the_second_time(root: Path, archive: Path) -> None:
    assert run(root, "--archive", str(archive)).returncode == 0
    before = {p: p.stat().st_mtime_ns for p in (root / "vendor").rglob("*")}
    archive.unlink()
    result = run(root)  # there is neither an archive nor an index
    assert (result.returncode, result.stderr) == (0, "")
    assert {p: p.stat().st_mtime_ns for p in (root / "vendor").rglob("*")} == before


def test_refuses_another_hash(root: Path, archive: Path) -> None:
    archive_of(archive, FILES | {"src/llama.cpp": b"// not what was pinned\n"})
    for result in (run(root, "--archive", str(archive)), run(root, PIP_FIND_LINKS=str(archive.parent))):
        assert result.returncode == 1
        assert re.search("SHA-256 is|DO NOT MATCH THE HASHES", result.stderr)
        assert not (root / "vendor" / "llama.cpp").exists()
        assert leftovers(root) == []


def test_without_network_one_error_says_the_three_ways(root: Path) -> None:
    result = run(root)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "llama-cpp-python 0.3.36 could not be downloaded" in result.stderr
    for way in ("--archive", "PYGGML_LLAMA_CPP_DIR", "source distribution of pyggml"):
        assert result.stderr.count(way) == 1
    assert not (root / "vendor" / "llama.cpp").exists()


def test_a_killed_run_leaves_nothing_half_filled(root: Path, archive: Path) -> None:
    # killed after each number of files in turn; the last one is the stamp
    for n_files in range(len(WANTED) + 1):
        script = (
            "import os, signal, sys, pathlib; sys.path.insert(0, sys.argv[1]); import vendor\n"
            "write, left = vendor.write_file, [int(sys.argv[4])]\n"
            "def write_and_die(path, data):\n"
            "    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    left[0] -= 1\n"
            "    write(path, data)\n"
            "vendor.write_file = write_and_die\n"
            "vendor.ensure(pathlib.Path(sys.argv[2]), archive=pathlib.Path(sys.argv[3]))\n"
        )
        arguments = [str(VENDOR.parent), str(root), str(archive), str(n_files)]
        killed = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True)
        assert killed.returncode == -signal.SIGKILL
        assert not (root / "vendor" / "llama.cpp").exists()
        assert len(leftovers(root)) == 1
    assert run(root, "--archive", str(archive)).returncode == 0
    assert contents(root).keys() == WANTED
    assert leftovers(root) == []


def test_another_lock_refills_and_a_failure_keeps_the_old_source(root: Path, archive: Path) -> None:
    assert run(root, "--archive", str(archive)).returncode == 0
    newer = archive_of(archive.with_name("newer.tar.gz"), FILES | {"src/llama.cpp": b"// newer\n"})
    lock(root, newer, version="0.3.37")
    assert run(root, "--archive", str(archive)).returncode == 1
    assert contents(root)["src/llama.cpp"] == FILES["src/llama.cpp"]
    assert run(root, "--archive", str(newer)).returncode == 0
    assert contents(root)["src/llama.cpp"] == b"// newer\n"
    assert leftovers(root) == []


def test_a_checkout_of_ones_own_is_never_touched(root: Path, archive: Path) -> None:
    own = root / "vendor" / "llama.cpp"
    (own / "ggml" / "src").mkdir(parents=True)
    (own / "ggml" / "src" / "CMakeLists.txt").write_text("# mine\n")
    result = run(root, "--archive", str(archive))
    assert result.returncode == 0
    assert contents(root) == {"ggml/src/CMakeLists.txt": b"# mine\n"}


def test_other_files_in_its_place_are_not_touched_either(root: Path, archive: Path) -> None:
    (root / "vendor" / "llama.cpp").mkdir()
    (root / "vendor" / "llama.cpp" / "notes.txt").write_text("mine\n")
    result = run(root, "--archive", str(archive))
    assert result.returncode == 1
    assert "neither llama.cpp" in result.stderr
    assert contents(root) == {"notes.txt": b"mine\n"}


def test_the_environment_takes_precedence(root: Path, archive: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "ggml" / "src").mkdir(parents=True)
    result = run(root, "--archive", str(archive), PYGGML_LLAMA_CPP_DIR=str(own))
    assert result.returncode == 1
    assert f"PYGGML_LLAMA_CPP_DIR={own} is not one" in result.stderr
    (own / "ggml" / "src" / "CMakeLists.txt").touch()
    result = run(root, "--archive", str(archive), PYGGML_LLAMA_CPP_DIR=str(own))
    assert (result.returncode, result.stdout.strip()) == (0, str(own))
    assert not (root / "vendor" / "llama.cpp").exists()


def test_two_at_once(root: Path, archive: Path) -> None:
    # the first holds the lock until told to go on: the second has to wait, and then finds it done
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import vendor\n"
        "extract = vendor.extract\n"
        "def slow(*args):\n"
        "    print('extracting', flush=True); sys.stdin.readline()\n"
        "    return extract(*args)\n"
        "vendor.extract = slow\n"
        "vendor.ensure(pathlib.Path(sys.argv[2]), archive=pathlib.Path(sys.argv[3]))\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script, str(VENDOR.parent), str(root), str(archive)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None and first.stdout.readline() == "extracting\n"
    second = subprocess.Popen(
        [sys.executable, str(VENDOR), "--root", str(root), "--archive", str(archive)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert second.stderr is not None
    assert "waiting for another build" in second.stderr.readline()
    time.sleep(0.1)
    assert second.poll() is None
    _, first_error = first.communicate("\n", timeout=60)
    out, rest = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), (first_error, rest)
    assert "unpacking" not in rest
    assert contents(root).keys() == WANTED
    assert out.strip() == str(root / "vendor" / "llama.cpp")


def test_an_archive_that_points_outside_is_refused(root: Path, archive: Path) -> None:
    archive_of(archive, FILES | {"ggml/../../../evil.txt": b"!"})
    lock(root, archive)
    result = run(root, "--archive", str(archive))
    assert result.returncode == 1
    assert "outside of its own directory" in result.stderr
    assert not (root / "vendor" / "llama.cpp").exists()


def test_the_real_lock_names_what_it_pins() -> None:
    sys.path.insert(0, str(VENDOR.parent))
    try:
        import vendor
    finally:
        sys.path.remove(str(VENDOR.parent))
    real = vendor.Lock.read(ROOT / "vendor" / "llama.cpp.lock")
    assert len(real.sha256) == 64 and int(real.sha256, 16)
    assert real.package == "llama-cpp-python"
    assert len(real.commit) >= 9 and int(real.commit, 16)
