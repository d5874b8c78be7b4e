"""pyggml/_editable.py on a small project: what changed is rebuilt at import, also when the tools of the build are gone."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from pyggml import _editable

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs cmake and ninja"
)

PROJECT = """
cmake_minimum_required(VERSION 3.26)
project(small LANGUAGES NONE)
add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/built.txt
    COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_SOURCE_DIR}/native/base/code.txt ${CMAKE_BINARY_DIR}/built.txt
    DEPENDS ${CMAKE_SOURCE_DIR}/native/base/code.txt)
add_custom_target(build ALL DEPENDS ${CMAKE_BINARY_DIR}/built.txt)
install(FILES ${CMAKE_BINARY_DIR}/built.txt ${CMAKE_SOURCE_DIR}/_build_info.py DESTINATION pyggml COMPONENT pyggml)
"""


class Install:
    def __init__(self, root: Path) -> None:
        self.source, self.build, self.prefix = root / "source", root / "build", root / "site-packages"
        (self.source / "native" / "base").mkdir(parents=True)
        (self.source / "CMakeLists.txt").write_text(PROJECT)
        (self.source / "_build_info.py").write_text(f"EDITABLE = {(str(self.source), str(self.build))!r}\n")
        self.write("first")
        for path in self.source.rglob("*"):
            os.utime(path, (1e9, 1e9))
        for folder in ("native/base", "native"):
            os.utime(self.source / folder, (1e9, 1e9))
        self.cmake(
            "-G", "Ninja", "-S", str(self.source), "-B", str(self.build), f"-DPython_EXECUTABLE={sys.executable}"
        )
        self.cmake("--build", str(self.build))
        self.cmake("--install", str(self.build), "--prefix", str(self.prefix), "--component", "pyggml")
        time.sleep(0.05)  # file times go in steps of a few milliseconds

    @staticmethod
    def cmake(*arguments: str) -> None:
        subprocess.run(["cmake", *arguments], check=True, capture_output=True)

    def write(self, text: str) -> None:
        (self.source / "native" / "base" / "code.txt").write_text(text)

    def installed(self) -> str:
        return (self.prefix / "pyggml" / "built.txt").read_text()

    def refresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What importing pyggml._ffi does."""
        import importlib.util

        spec = importlib.util.spec_from_file_location("_build_info_of_test", self.prefix / "pyggml" / "_build_info.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        reloaded: list[ModuleType] = []
        monkeypatch.setattr(_editable.importlib, "reload", reloaded.append)
        before = self.installed()
        _editable.refresh(module)
        if self.installed() != before:
            assert reloaded == [module]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    return Install(tmp_path)


def test_nothing_is_run_when_nothing_changed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_editable, "_run", lambda command: pytest.fail(f"ran {command}"))
    install.refresh(monkeypatch)
    assert install.installed() == "first"


def test_a_changed_source_is_rebuilt_once(
    install: Install, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    install.write("second")
    install.refresh(monkeypatch)
    assert install.installed() == "second"
    assert "rebuilding native code (native" in capfd.readouterr().err
    install.refresh(monkeypatch)
    assert capfd.readouterr().err == ""


def test_what_another_process_rebuilt_is_read_again(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has waited for the other one, and what it had read before is of the old build."""
    info = ModuleType("info")
    info.EDITABLE, info.__file__ = (str(install.source), str(install.build)), str(install.prefix / "pyggml" / "_build_info.py")  # type: ignore[attr-defined]
    reloaded: list[ModuleType] = []
    monkeypatch.setattr(_editable.importlib, "reload", reloaded.append)
    install.write("second")
    with (install.build / "editable.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=_editable.refresh, args=(info,))
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive() and not reloaded
        _editable._rebuild(install.source, install.build, install.prefix)
    waiting.join(20)
    assert reloaded == [info] and install.installed() == "second"


def test_the_tools_of_the_build_are_gone(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    # as after a build in an isolated environment
    cache = install.build / "CMakeCache.txt"
    lines = [
        "CMAKE_MAKE_PROGRAM:FILEPATH=/nowhere/ninja" if line.startswith("CMAKE_MAKE_PROGRAM:") else line
        for line in cache.read_text().splitlines()
    ]
    cache.write_text("\n".join(lines) + "\n")
    install.write("third")
    install.refresh(monkeypatch)
    assert install.installed() == "third"


def test_no_tools_at_all(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = install.build / "CMakeCache.txt"
    cache.write_text(cache.read_text().replace("CMAKE_COMMAND:INTERNAL=", "CMAKE_COMMAND:INTERNAL=/nowhere"))
    monkeypatch.setattr(_editable.shutil, "which", lambda name, path=None: None)
    install.write("fourth")
    with pytest.raises(ImportError, match="there is no cmake to rebuild them: pip install cmake ninja"):
        install.refresh(monkeypatch)


def test_a_build_that_fails_says_what_the_compiler_said(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    (install.source / "native" / "base" / "code.txt").unlink()
    with pytest.raises(ImportError, match=r"(?s)rebuilding the native code.*code\.txt"):
        install.refresh(monkeypatch)
    assert install.installed() == "first"
    # and is tried again at the next import
    time.sleep(0.05)
    install.write("fifth")
    install.refresh(monkeypatch)
    assert install.installed() == "fifth"
