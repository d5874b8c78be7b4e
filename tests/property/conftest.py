"""Profiles: the default one is the same every time; ``pytest tests/property --hypothesis-profile=wide`` searches further."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=600, suppress_health_check=_CHECKS)
settings.register_profile("wide", deadline=None, max_examples=5000, print_blob=True, suppress_health_check=_CHECKS)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile(config.getoption("hypothesis_profile", None) or "repeatable")
    # a package that hypothesis imports to write its report, where it is installed: else the report of a failure fails
    config.addinivalue_line("filterwarnings", "ignore:mypy_extensions.TypedDict is deprecated:DeprecationWarning")
