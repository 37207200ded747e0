"""One real Asterisk for all tests here; a fresh server, database and phones for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.install import ensure_asterisk
from tests.real.bench import Bench


@pytest.fixture(scope="session")
def running_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("bench")
    with Bench(folder, ensure_asterisk()).running() as bench:
        yield bench


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """In which of the server's modes a test runs is said by its mark ``modes``, else by its module's MODES."""
    if "bench" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("modes")
        metafunc.parametrize("mode", only.args if only else getattr(metafunc.module, "MODES", ("poll",)))


@pytest.fixture
def mode() -> str:
    raise NotImplementedError  # always a parameter


@pytest.fixture
def bench(running_bench: Bench, mode: str, request: pytest.FixtureRequest) -> Iterator[Bench]:
    running_bench.server.mode = mode
    running_bench.fresh()
    yield running_bench
    if hasattr(request.node, "failed"):
        print(running_bench.evidence())
    running_bench.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        item.failed = True  # type: ignore[attr-defined]
    return report
