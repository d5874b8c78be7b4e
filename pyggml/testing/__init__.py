"""Small models for tests, examples and `pyggml demo`; plans as golden files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .gguf_files import split_gguf as split_gguf
    from .gguf_files import synthetic_weights as synthetic_weights
    from .header import HEADER_PRESETS as HEADER_PRESETS
    from .header import llama_header as llama_header
    from .plans import PlanMismatch as PlanMismatch
    from .plans import assert_plan as assert_plan
    from .tiny import ARCHITECTURES as ARCHITECTURES
    from .tiny import DEFAULT_SHARES as DEFAULT_SHARES
    from .tiny import TinyModel as TinyModel
    from .tiny import tiny_gguf as tiny_gguf
    from .zoo import ZOO as ZOO
    from .zoo import Architecture as Architecture

# Names are loaded when they are first used: every run of pytest imports this package for its plugin.
_HOMES = {
    "gguf_files": ("split_gguf", "synthetic_weights"),
    "header": ("HEADER_PRESETS", "llama_header"),
    "plans": ("PlanMismatch", "assert_plan"),
    "tiny": ("ARCHITECTURES", "DEFAULT_SHARES", "TinyModel", "tiny_gguf"),
    "zoo": ("ZOO", "Architecture"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ARCHITECTURES",
    "DEFAULT_SHARES",
    "HEADER_PRESETS",
    "ZOO",
    "Architecture",
    "PlanMismatch",
    "TinyModel",
    "assert_plan",
    "llama_header",
    "split_gguf",
    "synthetic_weights",
    "tiny_gguf",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME_OF:
        raise AttributeError(f"module 'pyggml.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
