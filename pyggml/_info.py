"""What this build of pyggml is: recorded when it was compiled (cmake/build_info.cmake)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class BuildInfo:
    """How the native code was built."""

    version: str
    #: Two binaries with the same id were made from the same sources with the same options.
    build_id: str
    #: The package that llama.cpp's source came from, or "checkout" for a directory of one's own.
    upstream_package: str
    upstream_commit: str
    ggml_version: str
    compiler: str
    system: str
    build_type: str
    #: The options of the build: CUDA, NCCL, HIP, VULKAN, RPC, LLAMA, NATIVE.
    options: Mapping[str, bool]
    libraries: tuple[str, ...]
    #: Installed with pip install -e: native code is rebuilt at import when its sources changed.
    editable: bool

    def __str__(self) -> str:
        on = ", ".join(name for name, state in self.options.items() if state) or "none"
        off = ", ".join(name for name, state in self.options.items() if not state) or "none"
        rows = {
            "pyggml": self.version + (" (editable)" if self.editable else ""),
            "build": f"{self.build_id}, {self.build_type}, {self.compiler}, {self.system}",
            "llama.cpp": f"{self.upstream_commit} ({self.upstream_package}), ggml {self.ggml_version}",
            "options": f"on: {on}; off: {off}",
            "libraries": ", ".join(self.libraries),
        }
        return "\n".join(f"{name:10} {text}" for name, text in rows.items())


def build_info() -> BuildInfo:
    """How this pyggml was built: versions, compiler, options, and an id that changes with any of its sources."""
    from ._build_info import EDITABLE, INFO

    values: dict[str, Any] = dict(INFO)
    return BuildInfo(
        **values
        | {
            "options": MappingProxyType(dict(values["options"])),
            "libraries": tuple(values["libraries"]),
            "editable": EDITABLE is not None,
        }
    )
