"""An application whose events reach Kafka by PostgreSQL's log: past what relays that poll can carry.

Nothing in it is written differently for that; `carrier="log"` is the one word. Once, with a PostgreSQL that has
`wal_level=logical`:

    alembic -x url=$DATABASE_URL upgrade head                     the tables
    psql -f examples/debezium/publication.sql                     what of them is published, and the slot
    java -cp "$(scripts/debezium)" org.apache.kafka.connect.cli.ConnectStandalone \
        examples/debezium/connect.properties examples/debezium/outbox.properties

The variables that the two files take from the environment are listed in docs/debezium.md. Then, as often as you like:

    python -m examples.debezium.app $DATABASE_URL tea 2
"""

import asyncio
import sys
from uuid import UUID

from uuid_utils.compat import uuid7

import cqrs


@cqrs.integration_event(topic="example-orders", key="order_id")
class OrderPlaced(cqrs.Event):
    order_id: UUID
    sku: str
    quantity: int


class StockReserved(cqrs.Event):
    sku: str
    quantity: int


class PlaceOrder(cqrs.Command[UUID]):
    sku: str
    quantity: int


@cqrs.command_handler
async def place_order(command: PlaceOrder, context: cqrs.Context) -> UUID:
    order_id = uuid7()
    # Inserted and deleted in this command's transaction: the log alone has it, and Debezium takes it to Kafka.
    context.emit(OrderPlaced(order_id=order_id, sku=command.sku, quantity=command.quantity))
    # Saved for the handler below, which the relay of this or another process calls.
    context.emit(StockReserved(sku=command.sku, quantity=command.quantity))
    return order_id


@cqrs.event_handler(durable=True)
async def count_stock(event: StockReserved) -> None:
    print(f"{event.quantity} of {event.sku} reserved")


def make_app(database: str) -> cqrs.Mediator:
    return cqrs.bootstrap("examples.debezium.app", name="debezium-example", database=database, carrier="log")


async def main(database: str, sku: str, quantity: int) -> None:
    async with make_app(database) as app:
        print("order", await app.send(PlaceOrder(sku=sku, quantity=quantity)))
        await app.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
