"""Rules as data: read, change, save as JSON or TOML, and give them back.

A file has a list of rules, the first that matches decides::

    [[rule]]
    pattern = 'ffn_(up|gate)'
    split = "S1 3:1"

    [[rule]]
    pattern = '^blk\\.0\\.attn_output\\.weight$'
    split = "S0"
    units = 12          # heads, which are not cut
    granularity = 2     # of them at once

    [[rule]]
    pattern = 'ffn_'
    layers = "0-15"     # only in these
    split = "M"

JSON is the same: ``{"schema": "pyggml.rules/1", "rule": [{"pattern": ..., "split": ...}]}``. Explicit split states are written as
``{"axis": 1, "segments": [{"ne": [192, 64], "nr": 1}]}``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ._arguments import file_path
from .errors import ArgumentError, Error, FileFormatError, ModelNotFoundError, UnsupportedError
from .split import Rule, Segment, Split, SplitState, rule

__all__ = ["load_rules", "rules_from_json", "rules_to_json", "rules_to_toml", "save_rules"]

SCHEMA = "pyggml.rules/1"
_KEYS = ("pattern", "split", "granularity", "units", "layers")


def _as_dict(one: Rule) -> dict[str, Any]:
    if callable(one.split):
        raise ArgumentError(f"the rule {one.pattern!r} is a function, which cannot be saved; plan.split_rules() gives what it came to")
    split: Any = str(one.split)
    if isinstance(one.split, SplitState) and isinstance(one.split.axis, int):
        split = {"axis": one.split.axis, "segments": [{"ne": list(s.ne), "nr": s.nr} for s in one.split.segments]}
    found = {"pattern": one.pattern, "split": split}
    if one.granularity != 1:
        found["granularity"] = one.granularity
    if one.units is not None:
        found["units"] = one.units
    return found


def rules_to_json(rules: Iterable[Rule], *, indent: int | None = 1) -> str:
    """Rules as JSON.

    Raises:
        ArgumentError: one of them is a function.
    """
    return json.dumps({"schema": SCHEMA, "rule": [_as_dict(r) for r in rules]}, indent=indent, ensure_ascii=False)


def rules_to_toml(rules: Iterable[Rule]) -> str:
    """Rules as TOML.

    Raises:
        ArgumentError: one of them is a function.
    """
    lines = [f'schema = "{SCHEMA}"']
    for one in rules:
        d = _as_dict(one)
        split = d["split"]
        if isinstance(split, dict):
            parts = ", ".join("{ ne = [%s], nr = %d }" % (", ".join(map(str, s["ne"])), s["nr"]) for s in split["segments"])  # noqa: UP031
            split = f"{{ axis = {split['axis']}, segments = [{parts}] }}"
        else:
            split = json.dumps(split)
        lines += ["", "[[rule]]", f"pattern = {json.dumps(d['pattern'])}", f"split = {split}"]
        lines += [f"{key} = {d[key]}" for key in ("granularity", "units") if key in d]
    return "\n".join(lines) + "\n"


def _from_dict(d: Any, where: str) -> Rule:
    if not isinstance(d, Mapping):
        raise FileFormatError(f"{where}: found a {type(d).__name__}, expected a table with {', '.join(_KEYS)}")
    for key in d:
        if key not in _KEYS:
            raise FileFormatError(f"{where}: a rule has no {key!r}; it has {', '.join(_KEYS)}")
    for key in ("pattern", "split"):
        if key not in d:
            raise FileFormatError(f"{where}: {key!r} is missing")
    split: str | Split | SplitState = d["split"]
    try:
        if isinstance(d["split"], Mapping):
            segments = tuple(Segment(tuple(int(n) for n in s["ne"]), int(s.get("nr", 1))) for s in d["split"]["segments"])
            split = SplitState(d["split"]["axis"], segments)
        elif not isinstance(d["split"], str):
            raise ArgumentError(f"split = {d['split']!r}: expected such as 'S1 3:1'")
        granularity, units = d.get("granularity", 1), d.get("units")
        for key, value in (("granularity", granularity), ("units", units)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ArgumentError(f"{key} = {value!r}: expected a whole number")
        return rule(d["pattern"], split, granularity=granularity, units=units, layers=d.get("layers"))
    except Error as error:
        raise FileFormatError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{where}: split = {d['split']!r:.80} is no split state: {error}") from None


def _from_data(data: Any, what: str) -> tuple[Rule, ...]:
    if not isinstance(data, Mapping) or not isinstance(data.get("rule", []), list):
        raise FileFormatError(f"{what}: expected a list of rules named 'rule'")
    if data.get("schema", SCHEMA) != SCHEMA:
        raise FileFormatError(f"{what}: found the schema {data['schema']!r}, expected {SCHEMA!r}")
    return tuple(_from_dict(d, f"{what}: rule {i}") for i, d in enumerate(data.get("rule", [])))


def rules_from_json(text: str | bytes) -> tuple[Rule, ...]:
    """What `rules_to_json` wrote.

    Raises:
        FileFormatError: it is not JSON, or a rule is not valid; the message says which.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"rules: not JSON: {error}") from None
    return _from_data(data, "rules")


def save_rules(path: str | os.PathLike[str], rules: Iterable[Rule]) -> None:
    """Writes rules to a file, as TOML if it is called so, else as JSON.

    Raises:
        ArgumentError: one of them is a function.
    """
    to = file_path("a file of rules", path)
    to.write_text(rules_to_toml(rules) if to.suffix.lower() == ".toml" else rules_to_json(rules) + "\n", encoding="utf-8")


def load_rules(path: str | os.PathLike[str]) -> tuple[Rule, ...]:
    """Reads rules from a file, TOML if it is called so, else JSON.

    Raises:
        ModelNotFoundError: there is no such file. FileFormatError: it is damaged; the message says where.
        UnsupportedError: TOML, and this Python (before 3.11) cannot read it.
    """
    where = file_path("a file of rules", path)
    try:
        text = where.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: cannot be read: {error}") from None
    if where.suffix.lower() != ".toml":
        try:
            return _from_data(json.loads(text), str(path))
        except ValueError as error:
            if isinstance(error, Error):
                raise
            raise FileFormatError(f"{path}: not JSON: {error}") from None
    if sys.version_info < (3, 11):
        raise UnsupportedError(f"{path}: Python before 3.11 has no TOML; save the rules as JSON")
    tomllib = importlib.import_module("tomllib")  # mypy knows the oldest Python only

    try:
        return _from_data(tomllib.loads(text), str(path))
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"{path}: not TOML: {error}") from None
