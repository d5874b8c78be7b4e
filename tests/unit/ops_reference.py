"""What operations compute, in numpy. Arrays are in numpy's order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_quick(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(1.702 * x)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def away(x: np.ndarray) -> np.ndarray:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def hardsigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip((x + 3) / 6, 0, 1)


def soft_max(x: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
    top = x.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks)
    e = np.exp(x - top)
    return e / (e.sum(-1, keepdims=True) + (0 if sinks is None else np.exp(sinks - top)))


def rotate(x: np.ndarray, angles: np.ndarray, neox: bool, offset: int = 0) -> np.ndarray:
    """x (B, T, H, D), angles (T, n_dims / 2)."""
    x, n = x.copy(), 2 * angles.shape[-1]
    part = x[..., offset : offset + n]
    one, two = (part[..., : n // 2], part[..., n // 2 :]) if neox else (part[..., ::2], part[..., 1::2])
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    one[...], two[...] = one * cos - two * sin, one * sin + two * cos
    return x


def angles(positions: np.ndarray, n_dims: int, base: float = 10000.0) -> np.ndarray:
    return positions[:, None] * base ** (-np.arange(0, n_dims, 2) / n_dims)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: Any = 0,
    sinks: np.ndarray | None = None,
    scale: float | None = None,
    cap: float = 0,
) -> np.ndarray:
    """q (S, H, T, D); k, v (S, G, N, D)."""
    times = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, times, 1), np.repeat(v, times, 1)
    logits = q @ k.swapaxes(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if cap:
        logits = cap * np.tanh(logits / cap)
    return (soft_max(logits + mask, None if sinks is None else sinks[:, None, None]) @ v).swapaxes(1, 2)


def conv(x: np.ndarray, w: np.ndarray, s: int = 1, p: int = 0, d: int = 1) -> np.ndarray:
    """x (N, C, ...), w (O, C, ...), the same along each axis."""
    n_axes = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0)] + [(p, p)] * n_axes)
    size = [(n - d * (k - 1) - 1) // s + 1 for n, k in zip(x.shape[2:], w.shape[2:], strict=True)]
    out = np.zeros((x.shape[0], w.shape[0], *size))
    for at in np.ndindex(w.shape[2:]):
        patch = x[
            (
                slice(None),
                slice(None),
                *(slice(i * d, i * d + s * (n - 1) + 1, s) for i, n in zip(at, size, strict=True)),
            )
        ]
        out += np.einsum("nc...,oc->no...", patch, w[(slice(None), slice(None), *at)])
    return out


def conv_dw(x: np.ndarray, w: np.ndarray, **k: int) -> np.ndarray:
    """w (C, 1, ...)."""
    return np.concatenate([conv(x[:, [c]], w[[c]], **k) for c in range(len(w))], 1)


def conv_t(x: np.ndarray, w: np.ndarray, s: int) -> np.ndarray:
    """x (N, C, ...), w (C, O, ...)."""
    size = [(n - 1) * s + k for n, k in zip(x.shape[2:], w.shape[2:], strict=True)]
    out = np.zeros((x.shape[0], w.shape[1], *size))
    for at in np.ndindex(w.shape[2:]):
        where = tuple(slice(i, i + s * (n - 1) + 1, s) for i, n in zip(at, x.shape[2:], strict=True))
        out[(slice(None), slice(None), *where)] += np.einsum("nc...,co->no...", x, w[(slice(None), slice(None), *at)])
    return out
