"""Plans as golden files: a test that fails, readably, when a split is no longer what it was."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, Error, FileFormatError
from ..plan import SplitPlan
from ..plan.diff import ASPECTS, PlanDiff
from ..plan.json import to_dict

__all__ = ["PlanMismatch", "assert_plan", "write_plan"]

_LINES = 60
_PLUGIN = "pyggml.testing.pytest_plugin"
_UPDATE = "PYGGML_UPDATE"


class PlanMismatch(Error, AssertionError):
    """A plan is not that of its golden file."""

    diff: PlanDiff | None = None
    """What differs, the file's plan being the one before; None: there is no file."""


def assert_plan(plan: SplitPlan, path: str | os.PathLike[str], *, ignore: Collection[str] = (), update: bool | None = None) -> None:
    """Compares a plan with the one in a file, which is JSON with a line for each node.

    ``pytest --pyggml-update`` (outside of pytest ``PYGGML_UPDATE=1``) writes the file instead, also for the first time.

    Args:
        path: the file; a relative one is looked for beside the file whose code calls this.
        ignore: aspects that may differ: ``"devices"`` (their names), ``"memory"``, ``"host"``, ``"strides"``, ``"flags"``,
            ``"asked"``, ``"rules"``, ``"views"``.
        update: write the file or not, whatever pytest was told.

    Raises:
        PlanMismatch: an `AssertionError`. The plan is another one, or there is no file. The message says what differs.
        FileFormatError: the file is no plan.
    """
    __tracebackhide__ = True
    if not isinstance(plan, SplitPlan):
        raise ArgumentError(f"assert_plan(): expected a SplitPlan, got {type(plan).__name__}: give it model.plan(...), graph.plan() or plan_model(...)")
    if strange := set(ignore) - set(ASPECTS):
        raise ArgumentError(f"assert_plan(ignore=): {', '.join(sorted(map(repr, strange)))}: expected some of {', '.join(ASPECTS)}")
    golden = Path(path)
    if not golden.is_absolute():
        golden = Path(sys._getframe(1).f_globals.get("__file__", "")).parent / golden
    plugin = sys.modules.get(_PLUGIN)
    if update is None:
        update = (plugin is not None and plugin.updating()) or os.environ.get(_UPDATE, "") not in ("", "0")
    try:
        stored = _read(golden)
    except FileNotFoundError:
        if not update:
            raise PlanMismatch(f"{golden}: there is no such file yet; {_how(plugin)} writes it") from None
        stored = None
    except FileFormatError:
        if not update:
            raise
        stored = None
    diff = None if stored is None else stored.diff(plan).without(*ignore)
    if diff is not None and not diff:
        return
    if update:
        write_plan(plan, golden)
        if plugin is not None:
            plugin.written(golden)
        return
    assert diff is not None
    error = PlanMismatch(
        f"the plan is not that of {golden}; from the file's (before) to this one (after):\n{diff.table(limit=_LINES)}\n\n"
        f"if that is meant: {_how(plugin)} writes the file anew"
    )
    error.diff = diff
    raise error


def _how(plugin: Any) -> str:
    return "pytest --pyggml-update" if plugin is not None else f"{_UPDATE}=1 in the environment"


def _read(path: Path) -> SplitPlan:
    try:
        return SplitPlan.from_json(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, FileFormatError) as error:
        raise FileFormatError(f"{path}: {error}") from None


def write_plan(plan: SplitPlan, path: str | os.PathLike[str]) -> None:
    """Writes a plan as JSON with a line for each node, so that version control shows what changed."""
    parts = []
    for key, value in to_dict(plan).items():
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            text = "[\n" + ",\n".join(json.dumps(v, separators=(",", ":"), ensure_ascii=False) for v in value) + "\n]"
        parts.append(f"{json.dumps(key)}:{text}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
