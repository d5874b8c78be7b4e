"""Small models for tests, examples and `pyggml demo`."""

from .header import HEADER_PRESETS, llama_header
from .tiny import ARCHITECTURES, DEFAULT_SHARES, TinyModel, tiny_gguf
from .zoo import ZOO, Architecture

__all__ = [
    "ARCHITECTURES",
    "DEFAULT_SHARES",
    "HEADER_PRESETS",
    "ZOO",
    "Architecture",
    "TinyModel",
    "llama_header",
    "tiny_gguf",
]
