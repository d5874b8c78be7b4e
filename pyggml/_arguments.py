"""Arguments that Python's own conversions would take or refuse without saying whose they are."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any

from .errors import ArgumentError

__all__ = ["file_path", "tensor_name", "text", "whole"]

_MAX_NAME = 63  # GGML_MAX_NAME less its end


def whole(what: str, value: Any, low: int, high: int) -> int:
    """A whole number in a range.

    Raises:
        ArgumentError: it is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{what}={value!r}: expected a whole number, {low} to {high}") from None
    if not low <= number <= high:
        raise ArgumentError(f"{what}={number}: {low} to {high} are possible")
    return number


def text(what: str, value: Any) -> bytes:
    """A string as C takes it.

    Raises:
        ArgumentError: it is no string, has a zero byte in it, or cannot be encoded.
    """
    if not isinstance(value, str):
        raise ArgumentError(f"{what} must be a str, got {type(value).__name__}")
    try:
        raw = value.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{what} {value!r} is not valid Unicode: {error.reason}") from None
    if b"\0" in raw:
        raise ArgumentError(f"{what} {value!r} has a zero byte in it, where C ends it")
    return raw


def file_path(what: str, value: Any) -> Path:
    """A path.

    Raises:
        ArgumentError: it is neither str nor path.
    """
    name = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if isinstance(name, str):
        return Path(name)
    raise ArgumentError(
        f"the path of {what} is a str or a Path, got {value!r:.80}" + ("; os.fsdecode() makes a str of it" if isinstance(name, bytes) else "")
    )


def tensor_name(value: Any) -> bytes:
    """The name of a tensor.

    Raises:
        ArgumentError: it is no string, empty, or too long for ggml.
    """
    raw = text("the name of a tensor", value)
    if not 1 <= len(raw) <= _MAX_NAME:
        raise ArgumentError(f"the name {value!r} has {len(raw)} bytes; ggml takes 1 to {_MAX_NAME}")
    return raw
