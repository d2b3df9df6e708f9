"""What pytest has of the toolkit: the fixture `cqrs_harness`, and the story of a test that failed in its report.

Every run of pytest imports it where the toolkit is installed, so it loads nothing itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cqrs.mediator import Mediator
    from cqrs.testing import Harness

OPENED: pytest.StashKey[list[Harness]] = pytest.StashKey()


@pytest.fixture
def cqrs_harness(request: pytest.FixtureRequest) -> Callable[..., AbstractAsyncContextManager[Harness]]:
    """Open applications for a test as `cqrs.testing.harness` does, and show what happened if the test fails."""
    from cqrs.testing import harness

    opened: list[Harness] = request.node.stash.setdefault(OPENED, [])

    @asynccontextmanager
    async def open_harness(app: Mediator, **options: Any) -> AsyncGenerator[Harness]:
        async with harness(app, **options) as t:
            opened.append(t)
            yield t

    return open_harness


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what happened to the report of a test that failed, unless its error says it already."""
    report = yield
    if report.when == "call" and report.failed:
        said = report.longreprtext
        stories = [t.tree for t in item.stash.get(OPENED, [])]
        report.sections.extend(("cqrs story", story) for story in stories if story not in said)
    return report
