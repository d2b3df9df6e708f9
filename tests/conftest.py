import asyncio
import os

import pytest
from hypothesis import settings

from tests.servers import REMEDY, drop_empty_databases

# A busy machine is no failure; and what CI says of a change must not depend on the luck of a draw.
settings.register_profile("exploring", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "exploring")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: many tests wait for servers, or for processes of their own."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the slow ones, so that no process is left with a long one when the others have nothing to do.

    Those of a file, and all that end servers, stay in one process: what they are slow for they make once.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.get_closest_marker("slow") is not None:
                group = "faults" if "faults" in item.path.parts else item.path.stem
                item.add_marker(pytest.mark.xdist_group(group))


def pytest_sessionfinish() -> None:
    asyncio.run(drop_empty_databases())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.getreports("skipped") if REMEDY in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests need servers that are not up, and were skipped: scripts/services up starts them.",
            yellow=True,
        )
