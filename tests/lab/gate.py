"""What contrib/test adds to pytest: tests on the real Asterisk come last, and CI skips none of them."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Generator

import pytest

REAL = "tests/real"
IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

_seconds: defaultdict[str, float] = defaultdict(float)
_count: defaultdict[str, int] = defaultdict(int)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.nodeid.startswith(REAL))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    began = time.monotonic()
    try:
        return (yield)
    finally:
        kind = "on a real Asterisk" if item.nodeid.startswith(REAL) else "without Asterisk"
        _seconds[kind] += time.monotonic() - began
        _count[kind] += 1


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _must_run(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _must_run(report)
    return report


def _must_run(report: pytest.TestReport | pytest.CollectReport) -> None:
    expected_failure = hasattr(report, "wasxfail")
    if IN_CI and report.skipped and report.nodeid.startswith(REAL) and not expected_failure:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"In CI nothing that needs the real Asterisk may be skipped: {why}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind, seconds in _seconds.items():
        terminalreporter.write_line(f"{_count[kind]} tests {kind} took {seconds:.0f} s")
