"""The shop, put together."""

from pathlib import Path

import cqrs
from examples.shop.container import Container


def make_shop(database: Path) -> cqrs.Mediator:
    return cqrs.bootstrap(
        scan="examples.shop",
        exclude=["examples.shop.demo"],
        name="shop",
        container=Container(),
        database=f"sqlite+aiosqlite:///{database}",
        lease=1.0,  # seconds, after which the next worker takes over what a killed one was about to deliver
        retry=cqrs.Retry(attempts=4, first=0.5),
    )
