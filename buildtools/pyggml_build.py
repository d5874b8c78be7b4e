"""The build backend (PEP 517): scikit-build-core's, after the llama.cpp source has been put into its place.

CMake itself never uses the network; buildtools/vendor.py does, once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from scikit_build_core import build as _build
from scikit_build_core.build import (
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import vendor

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent.parent


def _source(*, pinned: bool = False) -> None:
    try:
        vendor.ensure(ROOT, pinned=pinned)
    except vendor.VendorError as error:
        # without the frames of pip's and ours: the text says all there is to say
        print(f"\npyggml: {error}\n", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    _source()
    return str(_build.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    _source()
    return str(_build.build_editable(wheel_directory, config_settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    _source(pinned=True)
    return str(_build.build_sdist(sdist_directory, config_settings))
