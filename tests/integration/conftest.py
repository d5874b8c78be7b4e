"""Tiny models, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from split_cases import MODELS

from pyggml.testing import TinyModel, tiny_gguf

Make = Callable[..., TinyModel]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``tiny("llama", seed=1, dtype="q8_0")``: a model by its name in `MODELS`."""
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[tuple[Any, ...], TinyModel] = {}

    def make(name: str, **options: Any) -> TinyModel:
        key = (name, *sorted(options.items()))
        if key not in made:
            arch, own = MODELS[name]
            made[key] = tiny_gguf(folder / f"{name}-{len(made)}.gguf", arch, **own, **options)
        return made[key]

    return make
