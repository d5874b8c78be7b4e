"""Number formats: what ggml says of them, quantizing there and back, and everything that must be refused."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

import pyggml as gg
from pyggml import dtype as dtypes
from pyggml.dtype import DTYPES, QuantizedArray, as_dtype, dequantize, quantize

QUANTIZABLE = [d.name for d in DTYPES.values() if d.has_quantizer]
BLOCKS = [n for n in QUANTIZABLE if DTYPES[n].is_quantized]

# NMSE of normal noise, measured and rounded up; a format that lost a bit would be four times as far off
NMSE = {
    "f32": 0.0, "f16": 1e-7, "bf16": 5e-6, "q8_0": 5e-5, "q6_K": 5e-4, "q5_K": 2e-3, "q5_1": 2.5e-3, "q5_0": 2.5e-3,
    "q4_K": 8e-3, "iq4_nl": 8e-3, "iq4_xs": 8e-3, "q4_1": 9e-3, "q4_0": 1e-2, "nvfp4": 1.5e-2, "mxfp4": 2e-2,
    "q3_K": 3e-2, "iq3_s": 3.5e-2, "iq3_xxs": 6e-2, "iq2_s": 9e-2, "q2_K": 0.12, "iq2_xs": 0.12, "iq2_xxs": 0.15,
    "iq1_s": 0.3, "iq1_m": 0.45, "q1_0": 0.45, "q2_0": 0.6, "tq1_0": 0.8, "tq2_0": 0.8,
}  # fmt: skip


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def weights_for(name: str, n: int) -> np.ndarray | None:
    return np.ones(n, np.float32) if DTYPES[name].needs_imatrix else None


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a.astype(np.float64) - b).sum() / np.square(a.astype(np.float64)).sum())


class TestDType:
    def test_agrees_with_ggml(self) -> None:
        ids = {d.type_id for d in DTYPES.values()}
        for type_id in range(gg.lib.GGML_TYPE_COUNT):
            if gg.lib.ggml_blck_size(type_id) == 0:
                assert type_id not in ids
                continue
            d = dtypes.dtype_from_id(type_id)
            assert d is not None
            assert d.name == gg.ffi.string(gg.lib.ggml_type_name(type_id)).decode()
            for ne0 in (0, d.block_size, 7 * d.block_size):
                assert d.row_bytes(ne0) == gg.lib.ggml_row_size(type_id, ne0)
        assert dtypes.dtype_from_id(4) is None
        assert dtypes.dtype_from_id(1 << 40) is None

    def test_names_in_any_case(self) -> None:
        for name, d in DTYPES.items():
            assert as_dtype(name) is as_dtype(name.upper()) is as_dtype(f" {name.lower()} ") is as_dtype(d) is d
        assert as_dtype("float32") == as_dtype(np.float32) == as_dtype(np.dtype("<f4")) == DTYPES["f32"]
        assert as_dtype("BFloat16") == DTYPES["bf16"]
        assert str(as_dtype("Q4_k")) == "q4_K"
        assert as_dtype(np.int64) == DTYPES["i64"]

    @pytest.mark.parametrize("bad", ["q4", "", "f33", "q4_K_M", 3, None, np.complex64, object, np.dtype(">f4"), bool])
    def test_unknown(self, bad: object) -> None:
        with pytest.raises(gg.DTypeError, match=r"expected .*(q4_K|numpy dtype)"):
            as_dtype(bad)  # type: ignore[arg-type]

    def test_mix_of_a_file_is_explained(self) -> None:
        with pytest.raises(gg.DTypeError, match="a tensor has one, such as q4_K"):
            as_dtype("Q4_K_M")

    def test_row_of_half_a_block(self) -> None:
        with pytest.raises(gg.ShapeError, match=r"33 elements .* multiple of 32"):
            as_dtype("q8_0").row_bytes(33)
        with pytest.raises(gg.ShapeError):
            as_dtype("f32").row_bytes(-1)

    def test_is_a_value(self) -> None:
        assert len({as_dtype("f32"), as_dtype("float32"), as_dtype("f16")}) == 2
        with pytest.raises(AttributeError):
            as_dtype("f32").name = "x"  # type: ignore[misc]
        assert as_dtype("q8_0").bits_per_element == 8.5


class TestThereAndBack:
    def test_a_tolerance_for_every_format(self) -> None:
        assert set(NMSE) == set(QUANTIZABLE)

    @pytest.mark.parametrize("name", QUANTIZABLE)
    def test_error_is_that_of_the_format(self, name: str) -> None:
        x = noise(3, 4, 512)
        q = quantize(x, name, weights_for(name, 512))
        assert q.shape == (3, 4, 512)
        assert q.ne == (512, 4, 3)
        assert q.nbytes == 12 * DTYPES[name].row_bytes(512)
        y = dequantize(q)
        assert y.shape == x.shape
        assert y.dtype == np.float32
        assert nmse(x, y) <= NMSE[name]
        # a format of n bits cannot be better than this: it would not be the format
        assert name == "f32" or nmse(x, y) > NMSE[name] / 20

    @pytest.mark.parametrize("name", ["f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0"])
    def test_bytes_equal_those_of_the_gguf_package(self, name: str) -> None:
        gguf = pytest.importorskip("gguf")
        x = noise(8, 1024, seed=3)
        kind = gguf.GGMLQuantizationType(DTYPES[name].type_id)
        theirs = np.ascontiguousarray(gguf.quants.quantize(x, kind)).view(np.uint8).ravel()
        ours = quantize(x, name).data
        # halves may round differently; nothing else may
        assert np.count_nonzero(theirs != ours) <= 1e-4 * ours.size

    @pytest.mark.parametrize("name", [n for n in BLOCKS if n not in ("q1_0", "q2_0")])
    def test_values_equal_those_of_the_gguf_package(self, name: str) -> None:
        gguf = pytest.importorskip("gguf")
        q = quantize(noise(4, 512, seed=5), name, weights_for(name, 512))
        kind = gguf.GGMLQuantizationType(DTYPES[name].type_id)
        try:
            theirs = gguf.quants.dequantize(q.data.reshape(4, -1), kind)
        except NotImplementedError:
            pytest.skip(f"this gguf package does not know {name}")
        np.testing.assert_allclose(q.dequantize(), theirs, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("name", ["q8_0", "q4_K", "iq2_xs"])
    def test_pieces_change_nothing(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        x, w = noise(2, 9, 512), weights_for(name, 512)
        whole = quantize(x, name, w)
        values = dequantize(whole)
        monkeypatch.setattr(dtypes, "_PIECE", 1024)
        assert quantize(x, name, w) == whole
        assert np.array_equal(dequantize(whole), values)

    def test_any_float_and_layout(self) -> None:
        x = noise(64, 8)
        want = quantize(x.T.copy(), "q8_0")
        assert quantize(x.T, "q8_0") == want
        assert quantize(x.T.astype(np.float64), "q8_0") == want
        half = x.T.astype(np.float16)
        assert quantize(half, "q8_0") == quantize(half.astype(np.float32), "q8_0")
        assert quantize(half, "f16").data.tobytes() == half.tobytes()

    def test_importance_changes_the_result(self) -> None:
        x = noise(4, 512)
        w = np.where(np.arange(512) < 256, 1e-4, 1.0)
        plain, weighted = dequantize(quantize(x, "q4_0")), dequantize(quantize(x, "q4_0", np.tile([1.0, 1e-4], 256)))
        assert nmse(x[:, ::2], weighted[:, ::2]) < nmse(x[:, ::2], plain[:, ::2])
        assert quantize(x, "q2_K", w) != quantize(x, "q2_K")

    @pytest.mark.parametrize("name", ["iq1_s", "iq2_xxs", "q4_K"])
    def test_importance_per_expert(self, name: str) -> None:
        x, w = noise(3, 5, 256), np.random.default_rng(1).uniform(0.1, 2, (3, 256))
        whole = dequantize(quantize(x, name, w))
        for expert in range(3):
            assert np.array_equal(whole[expert], dequantize(quantize(x[expert], name, w[expert])))

    def test_threads(self) -> None:
        x = noise(64, 1024)
        want = quantize(x, "iq3_s")
        found: list[bool] = []
        work = [threading.Thread(target=lambda: found.append(quantize(x, "iq3_s") == want)) for _ in range(4)]
        for t in work:
            t.start()
        for t in work:
            t.join()
        assert found == [True] * 4


class TestRefused:
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 32), (1, 1, 1, 1, 32)])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(gg.ShapeError):
            quantize(np.zeros(shape, np.float32), "q8_0")

    @pytest.mark.parametrize("name", BLOCKS)
    def test_rows_of_broken_blocks(self, name: str) -> None:
        n = DTYPES[name].block_size
        for ne0 in (1, n - 1, n + 1, 2 * n - 1):
            with pytest.raises(gg.ShapeError, match=f"expected a multiple of {n}"):
                quantize(np.zeros((2, ne0), np.float32), name, weights_for(name, ne0))

    @pytest.mark.parametrize("name", [d.name for d in DTYPES.values() if not d.has_quantizer])
    def test_formats_without_a_quantizer(self, name: str) -> None:
        with pytest.raises(gg.UnsupportedError, match=f"no quantizer for {name}: expected one of .*q4_K"):
            quantize(np.zeros((2, 256), np.float32), name)

    @pytest.mark.parametrize("array", [np.zeros((2, 32), np.int32), np.zeros((2, 32), bool), ["a"], np.zeros((1, 32), complex)])
    def test_other_numbers(self, array: object) -> None:
        with pytest.raises(gg.DTypeError, match="expected float32, float64 or float16"):
            quantize(array, "q8_0")  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", QUANTIZABLE)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    def test_not_finite_with_its_position(self, name: str, value: float) -> None:
        x = noise(2, 3, 256).astype(np.float64)
        x[1, 2, 77] = value
        with pytest.raises(gg.DTypeError, match=r"array\[1, 2, 77\] is "):
            quantize(x, name, weights_for(name, 256))

    @pytest.mark.parametrize("name", [n for n in QUANTIZABLE if n not in ("f32", "bf16")])
    def test_too_large(self, name: str) -> None:
        x = noise(2, 256)
        x[0, 3] = -70000
        with pytest.raises(gg.DTypeError, match=r"array\[0, 3\] is -70000: .* holds values up to (65504|32768)"):
            quantize(x, name, weights_for(name, 256))

    def test_position_in_a_late_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dtypes, "_PIECE", 64)
        x = noise(40, 32)
        x[37, 5] = np.nan
        with pytest.raises(gg.DTypeError, match=r"array\[37, 5\] is nan"):
            quantize(x, "q4_0")

    @pytest.mark.parametrize("name", [d.name for d in DTYPES.values() if d.needs_imatrix])
    def test_without_importance(self, name: str) -> None:
        with pytest.raises(gg.DTypeError, match=rf"{name} needs an importance matrix: pass imatrix= with shape \(512,\)"):
            quantize(noise(2, 512), name)

    def test_formats_that_need_importance_are_known(self) -> None:
        assert {d.name for d in DTYPES.values() if d.needs_imatrix} == {"iq2_xxs", "iq2_xs", "iq1_s"}

    @pytest.mark.parametrize("shape", [(), (1,), (255,), (2, 256), (257,), (256, 1)])
    def test_importance_of_another_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(gg.ShapeError, match=r"expected \(256,\)"):
            quantize(noise(2, 256), "q4_0", np.ones(shape))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e30])
    def test_importance_of_another_kind(self, value: float) -> None:
        w = np.ones(256)
        w[9] = value
        with pytest.raises(gg.DTypeError, match=r"imatrix\[9\] is "):
            quantize(noise(2, 256), "q4_0", w)
        with pytest.raises(gg.DTypeError, match="imatrix"):
            quantize(noise(2, 256), "q4_0", ["a"] * 256)

    def test_dequantize_of_something_else(self) -> None:
        with pytest.raises(gg.DTypeError, match="found ndarray, expected a QuantizedArray"):
            dequantize(np.zeros(3))  # type: ignore[arg-type]
        q = QuantizedArray(as_dtype("q8_K"), (256,), np.zeros(as_dtype("q8_K").type_size, np.uint8))
        with pytest.raises(gg.UnsupportedError, match="cannot convert q8_K"):
            dequantize(q)


class TestQuantizedArray:
    def test_is_a_value(self) -> None:
        raw = np.arange(34, dtype=np.uint8)
        q = QuantizedArray("Q8_0", [32], raw)  # type: ignore[arg-type]
        assert (q.dtype, q.shape, q.ne, q.size, q.nbytes) == (as_dtype("q8_0"), (32,), (32,), 32, 34)
        with pytest.raises(ValueError, match="read-only"):
            q.data[0] = 1
        with pytest.raises(AttributeError):
            q.shape = (1,)  # type: ignore[misc]
        assert raw.flags.writeable
        assert q == QuantizedArray(as_dtype("q8_0"), (32,), raw.tobytes())  # type: ignore[arg-type]
        assert q != QuantizedArray(as_dtype("q8_0"), (32,), raw[::-1].copy())
        assert q != 3
        with pytest.raises(TypeError, match="unhashable"):
            hash(q)

    @pytest.mark.parametrize("n", [0, 33, 35, 68])
    def test_bytes_must_fit(self, n: int) -> None:
        with pytest.raises(gg.ShapeError, match=f"{n} bytes .* expected 34"):
            QuantizedArray(as_dtype("q8_0"), (32,), np.zeros(n, np.uint8))

    def test_data_must_be_bytes(self) -> None:
        for bad in ("x" * 34, None, np.zeros(68, np.uint8)[::2], [0] * 34):
            with pytest.raises(gg.DTypeError, match="expected contiguous bytes"):
                QuantizedArray(as_dtype("q8_0"), (32,), bad)  # type: ignore[arg-type]

    def test_numpy_takes_it(self) -> None:
        x = noise(2, 64)
        q = quantize(x, "q8_0")
        assert np.array_equal(np.asarray(q), q.dequantize())
        assert np.asarray(q, np.float64).dtype == np.float64

    def test_integers_become_floats(self) -> None:
        q = QuantizedArray(as_dtype("i32"), (2, 2), np.array([[1, -2], [3, 4]], np.int32).view(np.uint8))
        assert dequantize(q).tolist() == [[1, -2], [3, 4]]


NASTY = """
import sys
import numpy as np
from pyggml.dtype import DTYPES, quantize

rng = np.random.default_rng(0)
n, limit = 256, 32768
base = rng.standard_normal((2, n)).astype(np.float32)
sign = np.sign(base)
data = {
    "zeros": base * 0, "ones": base * 0 + 1, "denormal": base * 1e-40, "tiny": base * 1e-20, "small": base * 1e-12,
    "largest": sign * limit, "large": np.clip(base * 3e4, -limit, limit), "one hot": np.eye(2, n) * limit,
    "sparse": base * (rng.random((2, n)) < 0.05), "wide": 10.0 ** rng.uniform(-38, 4.5, (2, n)) * sign,
}
importance = {
    "none": None, "ones": np.ones(n), "zeros": np.zeros(n), "sparse": (rng.random(n) < 0.02) * 1.0,
    "tiny": np.full(n, 1e-38), "largest": np.full(n, 1e9), "wide": 10.0 ** rng.uniform(-38, 9, n),
}
cases = 0
for d in (d for d in DTYPES.values() if d.has_quantizer):
    for what, x in data.items():
        for how, w in importance.items():
            if w is None and d.needs_imatrix:
                continue
            print(d, what, how, file=sys.stderr, flush=True)
            y = quantize(x.astype(np.float32), d, w).dequantize()
            assert np.isfinite(y).all(), (d, what, how)
            cases += 1
print(cases)
"""


@pytest.mark.slow
def test_no_values_end_the_process() -> None:
    """In a child, as what it guards against is an abort; the last line of stderr names the case."""
    done = subprocess.run([sys.executable, "-c", NASTY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    assert int(done.stdout) >= len(QUANTIZABLE) * 60
