"""Formats of weights and caches: a split is no further from the F32 run of the same weights than one device is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pyggml as gg
from pyggml.gguf_check import check_gguf
from pyggml.gguf_info import GGUFArray
from pyggml.testing import TinyModel, tiny_gguf
from pyggml.testing.gguf_writer import write_gguf

# Against one device. F32 sums in another order differ by 1e-13; what rounds activations (F16, BF16, blocks of quantized
# weights' partners) turns such a difference into a whole step now and then, and a step is as large as the format is coarse.
TOLERANCES = {"f16": 1e-5, "bf16": 2e-4, "q8_0": 5e-3, "q4_0": 5e-3, "q4_K": 5e-3}
FAMILIES = {"llama": {}, "qwen35": {}, "gemma3": {}}
OPTIONS: dict[str, Any] = {"n_ctx": 64, "threads": 1, "flash_attn": "on"}


def plain(model: TinyModel, path: Path) -> Path:
    """The same weights in F32."""
    info = check_gguf(model)
    metadata = {k: v.load() if isinstance(v, GGUFArray) else v for k, v in info.metadata.items()}
    tensors = {}
    for t in info.tensors:
        raw = np.fromfile(t.path, np.uint8, t.nbytes, offset=t.offset)
        tensors[t.name] = gg.dequantize(gg.QuantizedArray(t.dtype, t.ne[::-1], raw)) if t.dtype.name != "f32" else raw.view(np.float32).reshape(t.ne[::-1])
    return write_gguf(path, metadata, tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize("cache", ["f16", "q8_0"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_further_from_f32_than_one_device(tmp_path: Path, family: str, dtype: str, cache: str) -> None:
    model = tiny_gguf(tmp_path / "m.gguf", family, dtype=dtype, shares=((1, 1), (3, 1)))
    exact = plain(model, tmp_path / "f32.gguf")
    prompts = [np.random.default_rng([seed, 5]).integers(0, model.n_vocab, 24) for seed in range(6)]

    def logits(path: Any, device: str, shares: tuple[int, ...] | None, **options: Any) -> npt.NDArray[np.float32]:
        mode = "none" if shares is None else "tensor"
        with gg.Model(path, device, split_mode=mode, tensor_split=shares, **OPTIONS, **options) as m:
            if shares is not None:
                assert m.plan(24).missed_shares() == () and len(m.plan(24).allreduces) >= model.n_layer
            return np.concatenate([m.logits(p) for p in prompts])

    kv = {"type_k": cache, "type_v": cache}
    truth = logits(exact, "vcpu:1", None, type_k="f32", type_v="f32", attn_f32=True)
    one = logits(model, "vcpu:1", None, **kv)
    for device, shares in (("vcpu:2", (1, 1)), ("vcpu:2", (3, 1))):
        split = logits(model, device, shares, **kv)
        assert gg.nmse(split, truth) <= 1.5 * gg.nmse(one, truth), shares
        assert gg.nmse(split, one) <= TOLERANCES[dtype] + (5e-3 if cache == "q8_0" else 0), shares
