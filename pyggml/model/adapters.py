"""LoRA adapters."""

from __future__ import annotations

import os
from typing import Any

from .._arguments import file_path
from .._ffi import ffi, lib
from .._handle import Handle
from ..errors import FileFormatError
from ..gguf_check import check_gguf
from .loading import LoadedModel, failure

__all__ = ["Adapter"]


class Adapter(Handle):
    """A LoRA adapter for a model: made by `Model.adapter`, used through `Context.set_adapters`.

    llama.cpp keeps the weights of an adapter as long as the model; ``close()`` only takes it out of use.
    """

    def __init__(self, loaded: LoadedModel, path: str | os.PathLike[str]) -> None:
        self.path = file_path("an adapter", path)
        self.info = check_gguf(self.path, model=False)
        kind = self.info.metadata.get("general.type"), self.info.metadata.get("adapter.type")
        if kind != ("adapter", "lora"):
            raise FileFormatError(f"{path}: no LoRA adapter: general.type and adapter.type are {kind[0]!r} and {kind[1]!r}, expected 'adapter' and 'lora'")
        if self.info.arch != loaded.info.arch:
            raise FileFormatError(f"{path}: an adapter for {self.info.arch!r}; the model is {loaded.info.arch!r}")
        self.loaded = loaded
        loaded.follow_adapters()
        ptr = lib.llama_adapter_lora_init(loaded.ptr, os.fsencode(self.path))
        if ptr == ffi.NULL:
            raise failure(f"llama.cpp cannot load the adapter {path}")
        self._ptr = ptr
        self._own(LoadedModel.release, loaded.hold())

    @property
    def ptr(self) -> Any:
        """The ``struct llama_adapter_lora *``."""
        self._check_open()
        return self._ptr

    def __repr__(self) -> str:
        return "<Adapter (closed)>" if self.closed else f"<Adapter {self.path.name}>"
