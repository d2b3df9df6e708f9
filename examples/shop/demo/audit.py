"""What stands in the shop's database, counted with plain SQL: nothing here asks the toolkit."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

PROGRESS = """
    SELECT (SELECT count(*) FROM (SELECT line FROM orders UNION SELECT line FROM refused_lines) AS handled),
           (SELECT count(*) FROM orders), (SELECT count(*) FROM receipts)"""
REFUSED = "SELECT reason, count(*) AS number FROM refused_lines GROUP BY reason ORDER BY count(*) DESC, reason"

LOST = {
    "orders without a receipt": "SELECT count(*) FROM orders WHERE order_id NOT IN (SELECT order_id FROM receipts)",
    "orders without a movement": "SELECT count(*) FROM orders WHERE order_id NOT IN (SELECT order_id FROM movements)",
}
TWICE = {
    "lines ordered twice": "SELECT count(*) - count(DISTINCT line) FROM orders",
    "lines placed and refused": "SELECT count(*) FROM orders WHERE line IN (SELECT line FROM refused_lines)",
    "receipts sent twice": "SELECT count(*) - count(DISTINCT order_id) FROM receipts",
    "movements noted twice": "SELECT count(*) - count(DISTINCT order_id) FROM movements",
}
WRONG = {
    "events not delivered": "SELECT (SELECT count(*) FROM cqrs_outbox) + (SELECT count(*) FROM cqrs_parked)",
    "receipts without an order": "SELECT count(*) FROM receipts WHERE order_id NOT IN (SELECT order_id FROM orders)",
    "movements without an order": "SELECT count(*) FROM movements WHERE order_id NOT IN (SELECT order_id FROM orders)",
    "articles with a wrong stock": """
        SELECT count(*) FROM articles AS article WHERE available <> initial -
        (SELECT coalesce(sum(quantity), 0) FROM orders WHERE orders.sku = article.sku)""",
    "receipts before those of earlier orders": """
        SELECT count(*) FROM
        (SELECT line, lag(line) OVER (PARTITION BY receipts.customer ORDER BY number) AS previous
         FROM receipts JOIN orders USING (order_id)) AS sent
        WHERE previous > line""",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the worker has come."""

    lines: int
    orders: int
    receipts: int


@dataclass(frozen=True, slots=True)
class Audit:
    """What became of so many order lines. In `lost`, `twice` and `wrong` is only what there should not be."""

    lines: int
    orders: int
    receipts: int
    refused: dict[str, int]
    lost: dict[str, int]
    twice: dict[str, int]
    wrong: dict[str, int]

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.twice or self.wrong)


async def look(engine: AsyncEngine) -> Progress:
    async with engine.connect() as connection:
        return await progress(connection)


async def audit(engine: AsyncEngine, lines: int) -> Audit:
    """Count everything that there is, and everything that there should not be."""
    async with engine.connect() as connection:
        handled = await progress(connection)
        refused = await connection.execute(text(REFUSED))
        lost = {"lines neither placed nor refused": lines - handled.lines, **await counts(connection, LOST)}
        return Audit(
            lines=lines,
            orders=handled.orders,
            receipts=handled.receipts,
            refused={row.reason: row.number for row in refused},
            lost=there_are(lost),
            twice=there_are(await counts(connection, TWICE)),
            wrong=there_are(await counts(connection, WRONG)),
        )


async def progress(connection: AsyncConnection) -> Progress:
    return Progress(*(await connection.execute(text(PROGRESS))).one())


async def counts(connection: AsyncConnection, queries: dict[str, str]) -> dict[str, int]:
    return {name: (await connection.execute(text(query))).scalar_one() for name, query in queries.items()}


def there_are(found: dict[str, int]) -> dict[str, int]:
    return {name: number for name, number in found.items() if number != 0}
