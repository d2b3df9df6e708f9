import os

import pytest
from hypothesis import settings

from tests.servers import REMEDY

# A busy machine is no failure; and what CI says of a change must not depend on the luck of a draw.
settings.register_profile("exploring", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "exploring")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones, so that no process is left with a long one when the others have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.getreports("skipped") if REMEDY in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests need servers that are not up, and were skipped: scripts/services up starts them.",
            yellow=True,
        )
