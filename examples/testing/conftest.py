"""What every test of the box office begins with: nobody bought anything, and mails are kept."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from cqrs.testing import Harness
from examples.testing.app import Base, Mailer, app


class Letterbox(Mailer):
    """Keeps mails; the first ones fail."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, str]] = []
        self.failures = 0

    async def send(self, address: str, text: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the mail server does not answer")
        self.mails.append((address, text))


@pytest.fixture
def letterbox() -> Letterbox:
    return Letterbox()


@pytest.fixture
def box_office(
    cqrs_harness: Callable[..., AbstractAsyncContextManager[Harness]], letterbox: Letterbox
) -> AbstractAsyncContextManager[Harness]:
    return cqrs_harness(app, overrides={Mailer: letterbox}, tables=Base.metadata)
