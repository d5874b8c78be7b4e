"""Values in and out of tensors: where they go, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import pyggml as gg
from pyggml import ops

X = np.arange(32, dtype=np.float32).reshape(4, 8)


@pytest.fixture(params=["cpu", "vcpu", "meta"])
def target(request: pytest.FixtureRequest) -> Iterator[gg.Device | gg.MetaDevice]:
    if request.param == "cpu":
        yield gg.cpu()
    elif request.param == "vcpu":
        yield gg.virtual_cpus(1)[0]
    else:
        meta = gg.MetaDevice(gg.virtual_cpus(2), [gg.rule("w", "S1")])
        yield meta
        meta.close()


def test_numpy_fills_an_array_that_is_there(target: gg.Device | gg.MetaDevice) -> None:
    out = np.empty_like(X)
    with gg.Weights(target, {"w": X}) as weights:
        assert weights["w"].numpy(out=out) is out
        assert np.array_equal(out, X) and np.array_equal(weights["w"].numpy(), X)
        out = np.empty((1, 1, 4, 8), np.float32)
        assert weights["w"].numpy(out=out) is out and np.array_equal(out[0, 0], X)


def test_quantized_values_are_dequantized_into_it(target: gg.Device | gg.MetaDevice) -> None:
    q = gg.quantize(np.linspace(-1, 1, 8 * 32, dtype=np.float32).reshape(8, 32), "q8_0")
    out = np.empty((8, 32), np.float32)
    with gg.Weights(target, {"w": q}) as weights:
        assert weights["w"].numpy(out=out) is out
    assert np.array_equal(out, q.dequantize())


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((4, 7), np.float32), gg.ShapeError, r"shape \(4, 7\), expected \(4, 8\)"),
        (np.empty((4, 8), np.float64), gg.DTypeError, "float64, expected an array of float32"),
        (np.empty((8, 4), np.float32).T, gg.ShapeError, "C order"),
        (np.frombuffer(bytes(128), np.float32).reshape(4, 8), gg.ShapeError, "writable"),
        ([1.0], gg.DTypeError, "list"),
    ],
)
def test_arrays_that_cannot_take_the_value(out: object, error: type[Exception], message: str) -> None:
    with gg.Weights(gg.cpu(), {"w": X}) as weights, pytest.raises(error, match=message):
        weights["w"].numpy(out=out)  # type: ignore[arg-type]


def test_runs_take_any_layout_and_check_indices_each_time(target: gg.Device | gg.MetaDevice) -> None:
    with gg.Graph(target) as g:
        x, rows = g.input("x", (8, 4)), g.input("rows", (3,), "i32")
        g.output("y", gg.ops.get_rows(x, rows))
        for given in (X, np.asfortranarray(X), X[::-1][::-1], X.astype(np.float64)):
            for index in (np.array([2, 0, 3], np.int32), np.array([1, 1, 0], np.int64)):
                assert np.array_equal(g.run(x=given, rows=index)["y"], X[index])
        first = g.run(x=X, rows=np.array([2, 0, 3]))["y"]
        g.run({"x": X + 1}, rows=np.array([2, 0, 3]))
        assert np.array_equal(first, X[[2, 0, 3]])  # a later run does not write into an earlier result
        with pytest.raises(gg.IndexRangeError, match="index 9 of 'rows'"):
            g.run(x=X, rows=np.array([1, 9, 1], np.int32))
        with pytest.raises(gg.ArgumentError, match="'rows' is missing"):
            g.run(x=X)
        with pytest.raises(gg.ArgumentError, match="no input 'z'"):
            g.run(x=X, rows=np.zeros(3, np.int32), z=X)
        with pytest.raises(gg.ShapeError):
            g.run(x=X.T, rows=np.zeros(3, np.int32))
        assert np.array_equal(g.run(x=X, rows=np.zeros(3, np.int32))["y"], X[[0, 0, 0]])


@pytest.mark.parametrize("write", ["cpy", "set", "set beside"])
@pytest.mark.parametrize("place", ["input", "weight"])
def test_indices_that_the_graph_overwrites_are_those_that_count(target: gg.Device | gg.MetaDevice, place: str, write: str) -> None:
    """What lies in an input or a weight before the run says nothing about them."""
    rows = np.array([2, 0, 3], np.int32)
    with gg.Weights(target, {"x": X, "ids": rows}) as weights, gg.Graph(target) as g:
        ids = weights["ids"] if place == "weight" else g.input("ids", (3,), "i32")
        new = g.input("new", (3,), "f32" if write == "cpy" else "i32")
        over = ops.cpy(ops.scale(new, 1.0), ids) if write == "cpy" else ops.set(ids, new, inplace=True)
        if write == "set beside":
            g.output("written", over)  # in front of the other output; what reads `ids` itself gets the new ones
        g.output("y", ops.get_rows(weights["x"], ids if write == "set beside" else over))
        values = {"ids": np.array([9, 9, 9])} if place == "input" else {}  # overwritten: never used
        assert np.array_equal(g.run({"new": np.array([1, 1, 0]), **values})["y"], X[[1, 1, 0]])
        with pytest.raises((gg.IndexRangeError, gg.ArgumentError), match="9"):
            g.run({"new": np.array([1, 9, 0]), **values})


@pytest.mark.parametrize(
    "dtype, value",
    [("f16", np.full(4, 1e6, np.float32)), ("f16", np.full(4, 10**6)), ("f32", np.full(4, 1e300)), ("f32", np.array([0, 0, 0, -1e39]))],
    ids=["f32 to f16", "int to f16", "f64 to f32", "one of four"],
)
def test_values_that_would_become_infinite_are_refused(dtype: str, value: np.ndarray) -> None:  # type: ignore[type-arg]
    with gg.Graph(gg.cpu()) as g:
        g.output("y", ops.cont(g.input("x", (4,), dtype)))
        with pytest.raises(gg.DTypeError, match=r"'x' is f(16|32): .* become infinite"):
            g.run(x=value)
        # infinity that was meant, as in masks, passes
        assert np.isinf(g.run(x=np.full(4, -np.inf))["y"]).all()
    if value.dtype == np.float64:
        with pytest.raises(gg.DTypeError, match="'w' is f32"):
            gg.Weights(gg.cpu(), {"w": value})
