"""What pytest loads where pyggml is installed: an option, and explanations of assertions about plans and comparisons.

Every run of pytest in the environment imports this file, most of which have nothing to do with pyggml: nothing else is
imported before an assertion about a value of pyggml has failed, and nothing in here may end a run that is not ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["updating", "written"]

_OPTION = "--pyggml-update"
_WRITTEN = "pyggml_written"  # a property of reports: those of pytest-xdist's processes come to the one that sums up

# runs within runs (pytester) have a configuration each; with the files that the test at work has written
_runs: list[tuple[pytest.Config, list[str]]] = []


def updating() -> bool:
    """Whether golden files are written anew."""
    return bool(_runs) and bool(_runs[-1][0].getoption(_OPTION, False))


def written(path: Path) -> None:
    """Notes a file that was written, for the summary."""
    if _runs:
        _runs[-1][1].append(str(path))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--pyggml-update``."""
    parser.getgroup("pyggml").addoption(
        _OPTION, action="store_true", default=False, help="Write the golden files of pyggml.testing.assert_plan anew, instead of comparing with them."
    )


def pytest_configure(config: pytest.Config) -> None:
    """A run begins."""
    _runs.append((config, []))


def pytest_unconfigure(config: pytest.Config) -> None:
    """It ends."""
    _runs[:] = [run for run in _runs if run[0] is not config]


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: object, right: object) -> list[str] | None:
    """``assert plan == other``: what differs."""
    plans = sys.modules.get("pyggml.plan.plan")
    if op != "==" or plans is None or not (isinstance(left, plans.SplitPlan) and isinstance(right, plans.SplitPlan)):
        return None
    from .explanations import unequal_plans

    return unequal_plans(left, right, config.get_verbosity())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """``assert comparison.ok``: what the comparison says, below the traceback."""
    outcome: Any = yield
    if _runs and _runs[-1][1]:
        outcome.get_result().user_properties.extend((_WRITTEN, file) for file in _runs[-1][1])
        _runs[-1][1].clear()
    if call.excinfo is None or not ("pyggml.comparison" in sys.modules or "pyggml.plan.diff" in sys.modules):
        return
    report = outcome.get_result()
    try:
        from .explanations import explain

        explain(call.excinfo, report)
    except Exception as error:  # whatever it is: the test's own failure is what must be seen
        report.sections.append(("pyggml", f"no explanation: {error!r}"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The files that were written."""
    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    files = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == _WRITTEN]
    if files:
        terminalreporter.section("pyggml")
        for file in dict.fromkeys(files):
            terminalreporter.write_line(f"written: {file}")
