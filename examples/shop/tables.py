"""What the shop keeps, and how its database begins."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import Connection, MetaData, String, Table, insert, inspect
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ASSORTMENT = {
    "tea-assam": (2_000, 690),
    "tea-darjeeling": (1_500, 1_250),
    "tea-earl-grey": (2_000, 740),
    "coffee-espresso": (1_800, 1_190),
    "coffee-filter": (1_800, 980),
    "cocoa": (1_200, 560),
    "honey": (400, 830),
    "mug": (600, 1_450),
}
"""Of every article how many there are, and its price in cents."""


class Base(DeclarativeBase):
    """The shop's tables; those of the toolkit are beside them, prefixed `cqrs_`."""

    # Compared byte by byte; MySQL's default takes a for A.
    type_annotation_map: ClassVar[Mapping[Any, Any]] = {
        str: String(255).with_variant(String(255, collation="utf8mb4_bin"), "mysql", "mariadb")
    }


class Article(Base):
    __tablename__ = "articles"

    sku: Mapped[str] = mapped_column(primary_key=True)
    price: Mapped[int]
    initial: Mapped[int]
    available: Mapped[int]


class Order(Base):
    __tablename__ = "orders"

    order_id: Mapped[str] = mapped_column(primary_key=True)
    line: Mapped[int]
    customer: Mapped[str]
    sku: Mapped[str]
    quantity: Mapped[int]
    total: Mapped[int]


class RefusedLine(Base):
    __tablename__ = "refused_lines"

    line: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str]


# No constraint keeps the rows of the next two from being there twice: that there is one for each order is the
# toolkit's promise, and the demo counts whether it was kept.


class Movement(Base):
    """Stock that left the shelf for an order."""

    __tablename__ = "movements"

    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(index=True)
    sku: Mapped[str]
    quantity: Mapped[int]


class Receipt(Base):
    __tablename__ = "receipts"

    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(index=True)
    customer: Mapped[str]
    text: Mapped[str]


class Occupied(Exception):
    """The database has tables that no earlier run of the shop has made."""


async def create(database: str) -> None:
    """Make the tables, with full shelves. What an earlier run has left in the database is dropped."""
    engine = create_async_engine(database)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(drop_earlier)
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(
                insert(Article),
                [
                    {"sku": sku, "price": price, "initial": pieces, "available": pieces}
                    for sku, (pieces, price) in ASSORTMENT.items()
                ],
            )
    finally:
        await engine.dispose()


def drop_earlier(connection: Connection) -> None:
    """Drop the tables of an earlier run. Raises `Occupied` when there are others, or none of the shop's among them."""
    found = set(inspect(connection).get_table_names())
    ours = Base.metadata.tables.keys()
    others = sorted(name for name in found - ours if not name.startswith("cqrs_"))
    if others or (found and not ours <= found):
        raise Occupied(f"the database is in use ({', '.join(others or sorted(found))}); give the shop one of its own")
    earlier = MetaData()
    for name in found:
        Table(name, earlier)
    earlier.drop_all(connection)
