"""Why an assertion about a plan or a comparison failed, for `pytest_plugin`."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from typing import Any

from ..comparison import Comparison
from ..plan import SplitPlan
from ..plan.check import CheckReport
from ..plan.diff import PlanDiff

__all__ = ["explain", "unequal_plans"]

_LINES = 40
_MANY = 5
_TEMPORARY = "@py_assert"  # as pytest names what it evaluates in an assertion


def unequal_plans(left: SplitPlan, right: SplitPlan, verbosity: int) -> list[str]:
    """The lines of an explanation; -v: all of it."""
    diff = left.diff(right)
    text = diff.table(views=verbosity > 0, limit=None if verbosity > 0 else _LINES)
    return ["the plans differ, from the left one (before) to the right one (after):", *text.splitlines()]


def explain(excinfo: Any, report: Any) -> None:
    """Adds to a report what the comparisons that a failed assertion is about say."""
    if not excinfo.errisinstance(AssertionError) or not excinfo.traceback:
        return
    entry = excinfo.traceback[-1]
    for title, text in _found(_names(str(entry.statement)), entry.frame.f_locals):
        if hasattr(report.longrepr, "addsection"):  # else --tb=line or less
            report.longrepr.addsection(title, text)
        else:
            report.sections.append((title, text))


def _names(statement: str) -> set[str] | None:
    """The variables that a statement is about; None: it cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(statement))
    except SyntaxError:
        return None
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _found(names: set[str] | None, variables: Any) -> Iterator[tuple[str, str]]:
    seen: set[int] = set()
    for name, value in list(variables.items()):
        temporary = name.startswith(_TEMPORARY)
        if not temporary and names is not None and name not in names:
            continue
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
        for one in inside:
            if id(one) in seen or (text := _told(one)) is None:
                continue
            seen.add(id(one))
            yield f"pyggml: {'' if temporary else f'{name}, '}{type(one).__name__}", text
            if len(seen) == _MANY:
                return


def _told(value: object) -> str | None:
    """What a value says that may have failed an assertion; None: it is none, or it did not."""
    if isinstance(value, PlanDiff):
        return value.table(limit=_LINES) if value else None
    if isinstance(value, Comparison):
        return None if value.ok else str(value)
    if isinstance(value, CheckReport):
        return None if value.ok else str(value)
    kind = type(value)
    if kind.__module__ == "pyggml.model_comparison" and kind.__name__ in ("ModelComparison", "NodeComparison"):
        if value.ok:  # type: ignore[attr-defined]
            return None
        hint = "\npyggml.compare_nodes(model, reference, tokens) names the first node that differs" if kind.__name__ == "ModelComparison" else ""
        return str(value) + hint
    return None
