"""Fills vendor/llama.cpp with the pinned source: `python buildtools/vendor.py`, or any build through pip.

What is used, in this order:
1. the directory that the environment variable PYGGML_LLAMA_CPP_DIR names;
2. what is in vendor/llama.cpp already, when it carries no stamp of ours: somebody's own checkout, never touched;
3. the source that vendor/llama.cpp.lock pins: downloaded by pip from the index that pip is set to, checked against
   the hash, unpacked beside its place and renamed into it, so that an interruption leaves nothing half-filled.

Only the standard library and pip are used.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ENVIRONMENT = "PYGGML_LLAMA_CPP_DIR"
STAMP = ".pyggml-stamp"
MARKER = "ggml/src/CMakeLists.txt"  # a directory that has it is a llama.cpp source

# What the build, its tests and its benchmarks need of llama.cpp, licences included.
WANTED = (
    "CMakeLists.txt",
    "LICENSE",
    "AUTHORS",
    "licenses/",
    "cmake/",
    "ggml/",
    "include/",
    "src/",
    "vendor/",
    "common/",
    "tools/llama-bench/",
    "tests/test-llama-archs.cpp",
    "tests/test-backend-ops.cpp",
    "tests/gguf-model-data.cpp",
    "tests/gguf-model-data.h",
)
# ... and what can be left out of that: backends that pyggml has no option for, and headers for images and sound.
UNWANTED = (
    *(
        f"ggml/src/ggml-{backend}/"
        for backend in (
            "cann", "et", "hexagon", "musa", "opencl", "openvino", "sycl", "virtgpu", "webgpu", "zdnn", "zendnn",
        )
    ),
    "vendor/miniaudio/miniaudio.h",
    "vendor/stb/stb_image.h",
)  # fmt: skip

# Settings that would change what the nested pip fetches. Those that say where from are kept.
PIP_SETTINGS = (
    "ABI", "BUILD_CONSTRAINT", "CONSTRAINT", "DRY_RUN", "EDITABLE", "IMPLEMENTATION", "NO_BINARY", "ONLY_BINARY",
    "PLATFORM", "PYTHON", "PYTHON_VERSION", "REQUIREMENT", "TARGET",
)  # fmt: skip


class VendorError(RuntimeError):
    """There is no source to build from; the message says what to do."""


@dataclass(frozen=True)
class Lock:
    package: str
    version: str
    sha256: str
    prefix: str  # of llama.cpp inside the source distribution
    commit: str

    @classmethod
    def read(cls, path: Path) -> Lock:
        values = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                key, _, value = line.partition("=")
                values[key.strip()] = value.strip()
        try:
            return cls(**values)
        except TypeError as error:
            raise VendorError(f"{path}: {error}; expected the keys {', '.join(cls.__annotations__)}") from None

    @property
    def stamp(self) -> str:
        selection = hashlib.sha256(repr((WANTED, UNWANTED)).encode()).hexdigest()[:16]
        return f"{self.package} {self.version}\nsha256 {self.sha256}\ncommit {self.commit}\nselection {selection}\n"


def say(text: str) -> None:
    print(f"pyggml: {text}", file=sys.stderr, flush=True)


def three_ways(lock: Lock, problem: str) -> VendorError:
    return VendorError(
        f"the source of llama.cpp is needed, and {problem}\n"
        "Three ways to get it:\n"
        f"  1. let pip reach an index that has {lock.package} {lock.version} (PIP_INDEX_URL, PIP_FIND_LINKS and pip's "
        "other settings apply), or give the file: python buildtools/vendor.py --archive FILE.tar.gz\n"
        f"  2. set {ENVIRONMENT} to a llama.cpp checkout (pyggml is written for commit {lock.commit})\n"
        "  3. build from a source distribution of pyggml, which carries it, or put a checkout into vendor/llama.cpp"
    )


def is_wanted(path: str) -> bool:
    return path.startswith(WANTED) and not path.startswith(UNWANTED)


def is_empty(directory: Path) -> bool:
    return not directory.exists() or not any(directory.iterdir())


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock when its holder dies."""
    with path.open("a") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another build that is filling vendor/llama.cpp")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pip_environment(environ: Mapping[str, str], stub: Path) -> dict[str, str]:
    dropped = {f"PIP_{name}" for name in PIP_SETTINGS}
    # the hooks that started this build, if one did, are not those of the package that pip is to fetch
    env = {
        key: value
        for key, value in environ.items()
        if key not in dropped and not key.startswith(("_PYPROJECT_HOOKS", "PEP517_"))
    }
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(stub), environ.get("PYTHONPATH"))))
    return env


def download(lock: Lock, directory: Path) -> Path:
    """The source distribution, as pip fetches it."""
    # pip asks the package for its metadata before it keeps the file: a stub answers in place of its build backend,
    # which need not be here and would say nothing that we want to know.
    stub = directory / "stub"
    (stub / "scikit_build_core").mkdir(parents=True)
    (stub / "scikit_build_core" / "__init__.py").touch()
    (stub / "scikit_build_core" / "build.py").write_text(
        "import pathlib\n"
        "def get_requires_for_build_wheel(config_settings=None):\n"
        "    return []\n"
        "def prepare_metadata_for_build_wheel(directory, config_settings=None):\n"
        f"    name = '{lock.package.replace('-', '_')}-{lock.version}.dist-info'\n"
        "    path = pathlib.Path(directory, name)\n"
        "    path.mkdir()\n"
        f"    path.joinpath('METADATA').write_text('Metadata-Version: 2.1\\nName: {lock.package}\\n"
        f"Version: {lock.version}\\n')\n"
        "    return name\n",
        encoding="utf-8",
    )
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{lock.package}=={lock.version} --hash=sha256:{lock.sha256}\n", encoding="utf-8")
    target = directory / "download"
    command = [
        sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps",
        "--no-build-isolation", "--no-binary", lock.package, "--require-hashes", "-r", str(requirements),
        "-d", str(target),
    ]  # fmt: skip
    say(f"downloading {lock.package} {lock.version} for its llama.cpp source (77 MB)")
    result = subprocess.run(
        command, env=pip_environment(os.environ, stub), cwd=directory, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    files = sorted(target.glob("*.tar.gz")) if target.is_dir() else []
    if result.returncode != 0 or len(files) != 1:
        lines = [line for line in result.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-5:]
        errors = [re.sub(r" \(from versions: .*\)$", "", line) for line in errors]  # hundreds of them
        reason = "\n  ".join(errors) or f"pip ended with status {result.returncode} and gave {len(files)} files"
        raise three_ways(lock, f"{lock.package} {lock.version} could not be downloaded:\n  {reason}")
    return files[0]


def check_hash(lock: Lock, archive: Path) -> None:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != lock.sha256:
        raise VendorError(
            f"{archive.name} is not the file that vendor/llama.cpp.lock pins: its SHA-256 is {digest.hexdigest()}, "
            f"expected {lock.sha256}. Nothing of it was used."
        )


def extract(lock: Lock, archive: Path, target: Path) -> tuple[int, int]:
    """Unpacks what is wanted; returns the number of files and bytes."""
    n_files = n_bytes = 0
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            _, _, inner = member.name.partition("/")  # the first directory is the package's name and version
            path = inner.removeprefix(lock.prefix + "/")
            if path == inner or not member.isfile() or not is_wanted(path):
                continue
            if ".." in PurePosixPath(path).parts:
                raise VendorError(f"{archive.name} has a file outside of its own directory: {member.name}")
            source = tar.extractfile(member)
            assert source is not None  # a regular file
            write_file(target / path, source.read())
            n_files += 1
            n_bytes += member.size
    if not (target / MARKER).is_file():
        raise VendorError(
            f"{archive.name} has no {lock.prefix}/{MARKER}: not a source distribution with llama.cpp in it"
        )
    return n_files, n_bytes


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def fill(lock: Lock, target: Path, archive: Path | None) -> None:
    # what a killed run left behind; nobody else is at it, since we hold the lock
    for stale in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        if archive is None:
            archive = download(lock, scratch)
        check_hash(lock, archive)
        say(f"unpacking {archive.name}")
        new = scratch / "new"
        n_files, n_bytes = extract(lock, archive, new)
        write_file(new / STAMP, lock.stamp.encode())
        if target.exists():
            target.rename(scratch / "old")
        new.rename(target)
    say(f"vendor/llama.cpp is ready: {n_files} files, {n_bytes / 1e6:.0f} MB, llama.cpp {lock.commit}")


def ensure(root: Path, *, archive: Path | None = None, pinned: bool = False) -> Path:
    """The directory of the llama.cpp source to build from, filled when it has to be.

    pinned: nothing but the source of the lock file will do (a source distribution carries it).
    """
    lock = Lock.read(root / "vendor" / "llama.cpp.lock")
    target = root / "vendor" / "llama.cpp"
    own = os.environ.get(ENVIRONMENT)
    if own and not pinned:
        directory = Path(own).expanduser()
        if not (directory / MARKER).is_file():
            raise three_ways(lock, f"{ENVIRONMENT}={own} is not one: it has no {MARKER}.")
        return directory

    def is_ready() -> bool:
        stamp = target / STAMP
        if stamp.is_file():
            return stamp.read_text(encoding="utf-8") == lock.stamp
        if is_empty(target):
            return False
        if pinned:
            raise VendorError(
                "vendor/llama.cpp is a checkout of your own (it has no stamp of pyggml's), and a source distribution "
                f"carries the pinned source, {lock.package} {lock.version}. Move it away to have that fetched."
            )
        if not (target / MARKER).is_file():
            raise three_ways(
                lock,
                f"vendor/llama.cpp has files that are neither llama.cpp (there is no {MARKER}) nor pyggml's to remove.",
            )
        return True

    if not is_ready():
        with exclusive(target.parent / ".fill.lock"):
            if not is_ready():
                fill(lock, target, archive)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Fills vendor/llama.cpp with the source that vendor/llama.cpp.lock pins."
    )
    parser.add_argument("--archive", type=Path, metavar="FILE", help="the source distribution, when it is here already")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        directory = ensure(args.root, archive=args.archive)
    except VendorError as error:
        print(f"pyggml: {error}", file=sys.stderr)
        return 1
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
