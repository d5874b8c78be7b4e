"""GELU by its formula: what comparisons compute with when they ask for it."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest

import pyggml as gg
from pyggml import ops
from pyggml.testing.exact import exact_gelu

Array = npt.NDArray[np.float32]
rng = np.random.default_rng(3)
X = (rng.standard_normal((5, 3, 64)) * 3).astype(np.float32)
Y = rng.standard_normal((5, 3, 64)).astype(np.float32)


def gelu(x: Array) -> npt.NDArray[np.float64]:
    v = x.astype(np.float64)
    return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * v * (1 + 0.044715 * v * v)))


def quick(x: Array) -> npt.NDArray[np.float64]:
    return x / (1 + np.exp(-1.702 * x.astype(np.float64)))


CASES = {
    "gelu": (lambda a, b: ops.gelu(a), gelu(X)),
    "gelu_quick": (lambda a, b: ops.gelu_quick(a), quick(X)),
    "geglu": (lambda a, b: ops.geglu(a), gelu(X[..., :32]) * X[..., 32:]),
    "geglu_swapped": (lambda a, b: ops.geglu_swapped(a), X[..., :32] * gelu(X[..., 32:])),
    "geglu_quick": (lambda a, b: ops.geglu_quick(a), quick(X[..., :32]) * X[..., 32:]),
    "geglu_split": (lambda a, b: ops.geglu_split(a, b), gelu(X) * Y),
    "geglu_quick_split": (lambda a, b: ops.geglu_quick_split(a, b), quick(X) * Y),
    # rows that do not lie behind each other
    "of a view": (lambda a, b: ops.gelu(ops.permute(a, 0, 2, 1, 3)), gelu(X.transpose(1, 0, 2))),
}


def run(name: str) -> Array:
    with gg.Graph(gg.virtual_cpus(1, threads=3)[0]) as g:
        a, b = g.input("x", ne=(64, 3, 5)), g.input("y", ne=(64, 3, 5))
        g.output("out", CASES[name][0](a, b))
        return g.run(x=X, y=Y)["out"]


@pytest.mark.parametrize("name", CASES)
def test_the_formula(name: str) -> None:
    wanted = CASES[name][1]
    with exact_gelu():
        assert gg.nmse(run(name), wanted) <= 1e-13
        with exact_gelu():
            pass
        assert gg.nmse(run(name), wanted) <= 1e-13, "the inner one turned the outer one off"
    # the table again
    assert 1e-9 <= gg.nmse(run(name), wanted) <= 1e-6


def test_other_kernels_are_left_alone() -> None:
    with gg.Graph(gg.cpu()) as g:
        g.output("out", ops.gelu(ops.cast(g.input("x", ne=(64, 15)), "f16")))
        plain = g.run(x=X.reshape(15, 64))["out"]
        with exact_gelu():
            assert np.array_equal(g.run(x=X.reshape(15, 64))["out"], plain)


def test_from_several_threads() -> None:
    wanted, found = gelu(X), []

    def work() -> None:
        for _ in range(20):
            with exact_gelu():
                found.append(gg.nmse(run("gelu"), wanted))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 60 and max(found) <= 1e-13
