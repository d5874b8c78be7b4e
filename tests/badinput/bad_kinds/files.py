"""GGUF files that end too early, that are damaged, or that are not there."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bad_case import Case
from gguf_damage import SMALL, corruptions, mistakes, parts, with_vocabulary

import pyggml as gg
from pyggml.gguf_check import check_gguf
from pyggml.model import plan_model
from pyggml.testing import tiny_gguf
from pyggml.testing.gguf_writer import write_gguf

BROKEN = (gg.FileFormatError,)
# a wrong number that is still a GGUF file: refused by our rules, or by llama.cpp
REFUSED = (gg.FileFormatError, gg.ModelError, gg.UnsupportedError, gg.ArgumentError, gg.OutOfMemoryError, gg.GGMLAbort, gg.NativeError)


def _load(path: Path, device: str | None = None, probe: bool = False) -> None:
    with gg.Model(path, device, split_mode="tensor" if device else None, threads=1, n_ctx=64, n_batch=64, probe=probe) as model:
        model.logits([1, 2, 3])


def _whole(folder: Path, vocabulary: bool = False) -> bytes:
    path = folder / "whole.gguf"
    return (with_vocabulary(path) if vocabulary else tiny_gguf(path, **SMALL).path).read_bytes()  # type: ignore[arg-type]


def _write_and(path: Path, raw: bytes, act: Callable[[Path], object]) -> Callable[[], object]:
    def do() -> object:
        path.write_bytes(raw)
        return act(path)

    return do


def truncated(folder: Path) -> Iterator[Case]:
    for vocabulary in (False, True):
        raw = _whole(folder, vocabulary)
        path = folder / "cut.gguf"
        header = raw.index(b"output_norm") + 100
        rng = np.random.default_rng(5)
        lengths = {*range(24), *(int(n) for n in rng.integers(24, header, 70)), *(int(n) for n in rng.integers(header, len(raw), 25)), len(raw) - 1}
        for i, n in enumerate(sorted(lengths)):
            device = "vcpu:2" if i % 3 == 0 else None
            yield Case(f"{n} of {len(raw)} bytes on {device}", _write_and(path, raw[:n], lambda p, d=device: _load(p, d)), ("cut.gguf",), BROKEN)
            if i % 8 == 0:
                yield Case(f"weights from {n} of {len(raw)} bytes", _write_and(path, raw[:n], lambda p: gg.Weights.from_gguf(gg.cpu(), p)), ("cut.gguf",), BROKEN)
            if i % 8 == 4 and n < header // 2:
                yield Case(f"a plan from {n} bytes", _write_and(path, raw[:n], lambda p: plan_model(p, "vcpu:2")), ("cut.gguf",), BROKEN)
        for n in range(0, header, max(1, header // 5)):
            yield Case(f"probe, {n} bytes", _write_and(path, raw[:n], lambda p: _load(p, probe=True)), ("cut.gguf",), BROKEN)


def corrupted(folder: Path) -> Iterator[Case]:
    path = folder / "damaged.gguf"
    for vocabulary in (False, True):
        raw = _whole(folder, vocabulary)
        for i, (how, damaged) in enumerate(corruptions(raw, 300, seed=11 + vocabulary)):
            if how == "cut":
                continue
            device = "vcpu:2" if i % 4 == 0 else None
            yield Case(f"{how} {i} on {device}", _write_and(path, damaged, lambda p, d=device: _load(p, d)), ("damaged.gguf",), REFUSED, harmless=True)
    whole = tiny_gguf(folder / "keys.gguf", **SMALL).path  # type: ignore[arg-type]
    metadata, tensors = parts(whole)
    for i, (key, value) in enumerate(mistakes(metadata)):
        if i % 3:
            continue
        changed = {k: v for k, v in {**metadata, key: value}.items() if v is not None}

        def act(changed: dict = changed, device: str | None = "vcpu:2" if i % 4 == 0 else None) -> None:
            write_gguf(path, changed, tensors)
            _load(path, device)

        yield Case(f"{key} = {value!r:.40}", act, ("damaged.gguf",), REFUSED, harmless=True)
    # what only llama.cpp notices: with probe=True a child notices first
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output_norm.weight", "token_embd.weight"):

        def without(name: str = name, probe: bool = False, extra: bool = False) -> None:
            write_gguf(path, metadata, {k: v for k, v in tensors.items() if k != name})
            _load(path, probe=probe)

        def reshaped(name: str = name, probe: bool = False) -> None:
            t = tensors[name]
            write_gguf(path, metadata, {**tensors, name: np.ascontiguousarray(np.concatenate([t, t], axis=-1))})
            _load(path, probe=probe)

        for probe in (False, True):
            yield Case(f"without {name}, probe={probe}", lambda f=without, p=probe: f(probe=p), ("damaged.gguf", name), REFUSED)
            yield Case(f"{name} twice as wide, probe={probe}", lambda f=reshaped, p=probe: f(probe=p), ("damaged.gguf", name), REFUSED)


def missing(folder: Path) -> Iterator[Case]:
    good = tiny_gguf(folder / "good.gguf", **SMALL).path  # type: ignore[arg-type]
    directory = folder / "models"
    directory.mkdir(exist_ok=True)
    dangling, loop = folder / "dangling.gguf", folder / "loop.gguf"
    for link, target in ((dangling, folder / "gone.gguf"), (loop, loop)):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    empty = folder / "empty.gguf"
    empty.write_bytes(b"")
    fifo = folder / "fifo.gguf"
    fifo.exists() or os.mkfifo(fifo)
    listening = folder / "socket.gguf"
    listening.unlink(missing_ok=True)
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket may have some 100 bytes only
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket.gguf")
    os.chdir(here)
    absent = (gg.ModelNotFoundError, gg.FileFormatError, gg.ArgumentError)
    paths: list[tuple[str, object, str]] = [
        ("not there", folder / "nothing.gguf", "nothing.gguf"),
        ("a name only", "no-such-model.gguf", "no-such-model.gguf"),
        ("in a folder that is not there", folder / "no" / "where" / "m.gguf", "m.gguf"),
        ("a folder", directory, "models"),
        ("the root", "/", "/"),
        ("through a file", good / "m.gguf", "m.gguf"),
        ("dangling link", dangling, "dangling.gguf"),
        ("link to itself", loop, "loop.gguf"),
        ("empty", empty, "empty.gguf"),
        ("a pipe", fifo, "fifo.gguf"),
        ("a socket", listening, "socket.gguf"),
        ("a device", "/dev/null", "/dev/null"),
        ("another device", "/dev/zero", "/dev/zero"),
        ("a name that is too long", folder / ("x" * 300), "x" * 40),
        ("a path that is too long", "/" + "y/" * 3000, "y/y"),
        ("not of UTF-8", os.fsdecode(b"caf\xe9.gguf"), "caf"),
        ("with spaces", folder / "a model .gguf", "a model .gguf"),
        ("with a line's end", folder / "a\nb.gguf", "b.gguf"),
        ("of another format", __file__, "files.py"),
        ("an URL", "https://example.invalid/model.gguf", "model.gguf"),
        ("no name", "", ""),
        ("a home that is not expanded", "~/model.gguf", "~/model.gguf"),
        ("a zero byte", "mod\0el.gguf", "mod"),
    ]
    doors: dict[str, Callable[[object], object]] = {
        "Model": lambda p: gg.Model(p),  # type: ignore[arg-type]
        "Model over vcpu:2": lambda p: gg.Model(p, "vcpu:2", split_mode="tensor"),  # type: ignore[arg-type]
        "Model with probe": lambda p: gg.Model(p, probe=True),  # type: ignore[arg-type]
        "plan_model": lambda p: plan_model(p, "vcpu:2"),  # type: ignore[arg-type]
        "check_gguf": lambda p: check_gguf(p),  # type: ignore[arg-type]
        "Weights.from_gguf": lambda p: gg.Weights.from_gguf(gg.cpu(), p),  # type: ignore[arg-type]
    }
    for label, path, name in paths:
        for door, call in doors.items():
            yield Case(f"{door} of {label}", lambda c=call, p=path: c(p), (name,), absent)
    for door, call in doors.items():
        for path in (None, 5, 1.5, [good], {"path": good}, object()):
            yield Case(f"{door} of {type(path).__name__}", lambda c=call, p=path: c(p), (), (gg.ArgumentError,))
    for pattern in ("nothing", "^$", "blk.9", "BLK"):
        yield Case(f"tensors like {pattern!r}", lambda p=pattern: gg.Weights.from_gguf(gg.cpu(), good, p), (repr(pattern), "good.gguf"), (gg.ArgumentError,))
    for wrong in ("(", "[z-a]", "*", b"blk", None, 5):
        yield Case(f"tensors like {wrong!r}", lambda p=wrong: gg.Weights.from_gguf(gg.cpu(), good, p), (repr(wrong),), (gg.ArgumentError,))
