import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.servers import REMEDY, drop_empty_databases

# A busy machine is no failure; and what CI says of a change must not depend on the luck of a draw.
settings.register_profile("exploring", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "exploring")


# Whose tests stay in one process of xdist, since they share what takes long to make: servers to kill, a built package.
TOGETHER = ("tests/faults/", "tests/integration/test_debezium.py", "tests/integration/test_wheel.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: many tests wait for servers, or for processes of their own."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a process its next test when it has ended one, so that none waits behind a slow one: first `TOGETHER`."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones, so that no process is left with a long one when the others have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class LostTasks(logging.Handler):
    """Keeps what asyncio says of tasks whose exception nobody asked for, at whatever moment they are collected."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("Task exception was never retrieved"):
            self.told.append(record.getMessage())


lost_tasks = LostTasks()
logging.getLogger("asyncio").addHandler(lost_tasks)


@pytest.fixture(autouse=True)
def no_exception_is_lost() -> Iterator[None]:
    """Fail where an earlier test, or this one, left a task with an exception behind."""
    yield
    told, lost_tasks.told = lost_tasks.told, []
    assert not told, "\n".join(told)


def pytest_sessionfinish() -> None:
    asyncio.run(drop_empty_databases())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.getreports("skipped") if REMEDY in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests need servers that are not up, and were skipped: scripts/services up starts them.",
            yellow=True,
        )
