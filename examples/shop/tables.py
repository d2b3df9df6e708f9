"""What the shop keeps, and how its database begins."""

from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

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


def create(database: Path) -> None:
    """Make a new database with full shelves."""
    engine = create_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for sku, (pieces, price) in ASSORTMENT.items():
            session.add(Article(sku=sku, price=price, initial=pieces, available=pieces))
    engine.dispose()
