"""The port to a kind of database: what each does in its own way, and the lanes in which relays claim rows there."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy import ColumnElement, Insert, Table
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from cqrs.outbox.bell import Bell
    from cqrs.outbox.rows import Claimed, Probe, Verdict, View
    from cqrs.outbox.store import Store


class Nothing(Enum):
    """Why a claim has no rows."""

    IDLE = "no row waits"
    BUSY = "rows wait in slots that others work on"


class Claim(Protocol):
    """Rows that are this relay's until they are settled, or until it has shown no sign of life for a lease."""

    rows: Sequence[Claimed]
    held_back: int
    """How many more rows were moved behind parked ones of their key."""

    async def keep(self) -> None:
        """Show a sign of life."""
        ...

    async def settle(self, done: Sequence[Claimed], failed: Sequence[Verdict], returned: Sequence[Claimed]) -> None:
        """End the claim: delete what was delivered, park what failed, and leave the rest as it was."""
        ...


class Lane(Protocol):
    """One of a relay's ways to the database: it has one claim at a time. What fails may be called again."""

    async def claim(self, view: View, limit: int) -> Claim | Nothing:
        """Take some slots and return their first rows, in order.

        At most about half of the free slots that have work are taken, but at least one, so that relays share without
        knowing each other. Rows of parked keys are moved to the end of their key instead.
        """
        ...

    async def retry(self, view: View, limit: int) -> Claim | None:
        """Take parked rows that are due, each the first of its key."""
        ...

    async def probe(self, view: View, floors: Mapping[int, int]) -> Probe:
        """Say, in one statement, whether there is anything to do; no row of a slot lies at or below its floor."""
        ...

    def floors(self, view: View) -> Mapping[int, int]:
        """Return below which id nothing of this view is left in a slot, where that is known."""
        ...

    async def close(self) -> None:
        """Give back what the lane holds."""
        ...


class Dialect(Protocol):
    """What one kind of database does in its own way."""

    carries_log: bool
    """Whether its log can carry the broker's rows."""
    locks: bool
    """Whether claims hold locks, which nobody should do for long."""
    pace: Mapping[str, int]
    """How many rows a relay claims at once, and in how many lanes (`cqrs.outbox.relay.Pace`)."""

    def writing(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine as commands use it."""
        ...

    def reading(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine as queries use it."""
        ...

    def short(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine for the store's own transactions, whose every statement sees what was committed before."""
        ...

    def later(self, seconds: float) -> ColumnElement[Any]:
        """Return the database's time so many seconds from now, as it is stored."""
        ...

    def seconds_until(self, moment: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the seconds from the database's time to a stored moment."""
        ...

    def taking(self, inbox: Table) -> Insert:
        """Return what writes inbox rows unless they are there."""
        ...

    def run(self, connection: Connection, statement: str, parameters: Any) -> int:
        """Run a compiled statement; returns how many rows it touched."""
        ...

    def begin(self, connection: Connection) -> None:
        """Begin on the server a transaction that has no statement yet, unless the driver does at the first one."""
        ...

    def lost(self, connection: Connection) -> bool:
        """Whether a transaction that was begun was ended past SQLAlchemy, as far as the driver tells."""
        ...

    def begin_with(self, connection: Connection, statement: str, parameters: Any) -> int:
        """Run a compiled statement as a transaction's first; returns how many rows it touched."""
        ...

    def commit_with(self, connection: Connection, statement: str, rows: Sequence[Any]) -> None:
        """Run a compiled statement as a transaction's last, for each of the rows; COMMIT follows."""
        ...

    async def check(self, store: Store) -> None:
        """Raise `SchemaError` where somebody changed what the dialect relies on."""
        ...

    async def longest_body(self, connection: AsyncConnection) -> float:
        """Return how many bytes of a body a statement may carry."""
        ...

    def migrating(self, connection: AsyncConnection) -> AbstractAsyncContextManager[None]:
        """Wait until nobody else migrates this database, and keep all from it meanwhile."""
        ...

    async def hold(self, connection: AsyncConnection, store: Store, slots: Sequence[int]) -> None:
        """Wait until no relay works on these slots, and keep all from them until the transaction ends."""
        ...

    async def serialise(self, connection: AsyncConnection, store: Store, keys: Collection[str]) -> None:
        """Let transactions that write one of these keys come one after the other."""
        ...

    def lane(self, store: Store, owner: str, lease: float) -> Lane:
        """Return a way to the database for a relay."""
        ...

    def bell(self, store: Store, heard: Callable[[], None] | None, listen_url: str | None) -> Bell | None:
        """Return what tells relays of other processes that rows were saved, where the database can."""
        ...

    def slots(self, store: Store) -> Sequence[int]:
        """Return the rows that the slot table must have."""
        ...
