"""An application that stands for another one: code that holds the user's own object works on the one under test."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cqrs.mediator import Mediator

if TYPE_CHECKING:
    from collections.abc import Generator


class Substitute(Mediator):
    """What an application is while it is tested: open, and in everything the one under test.

    Entering and leaving it, as a web application's lifespan does, changes nothing.
    """

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "under_test"), name)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Stay open: the harness closes."""


@contextmanager
def standing_in(app: Mediator, under_test: Mediator) -> Generator[None]:
    """Let an application be another one meanwhile."""
    vars(app)["under_test"], kind = under_test, type(app)
    app.__class__ = Substitute
    try:
        yield
    finally:
        app.__class__ = kind
        del vars(app)["under_test"]
