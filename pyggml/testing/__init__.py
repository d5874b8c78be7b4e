"""Small models for tests, examples and `pyggml demo`."""

from .header import HEADER_PRESETS, llama_header
from .tiny import ARCHITECTURES, DEFAULT_SHARES, TinyModel, tiny_gguf

__all__ = ["ARCHITECTURES", "DEFAULT_SHARES", "HEADER_PRESETS", "TinyModel", "llama_header", "tiny_gguf"]
