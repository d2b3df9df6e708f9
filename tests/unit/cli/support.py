"""An application to run commands on, and the way to run them."""

import json
from typing import Any

from click.testing import CliRunner, Result

from cqrs.cli.program import cqrs as program

ORDERS = """
import cqrs


class PlaceOrder(cqrs.Command[str]):
    sku: str


class FindOrder(cqrs.Query[str]):
    order_id: str


class Counted(cqrs.Event):
    sku: str


@cqrs.integration_event(topic="orders", key="order_id", name="order-placed")
class OrderPlaced(cqrs.Event):
    order_id: str


@cqrs.command_handler
async def place_order(command: PlaceOrder, context: cqrs.Context) -> str:
    context.emit(Counted(sku=command.sku))
    context.emit(OrderPlaced(order_id=command.sku))
    return command.sku


@cqrs.query_handler
async def find_order(query: FindOrder) -> str:
    return query.order_id


@cqrs.event_handler
async def count(event: Counted) -> None: ...


@cqrs.event_handler(retry=cqrs.Retry(attempts=1))
async def send_receipt(event: OrderPlaced) -> None:
    if event.order_id.startswith("bad"):
        raise ValueError(f"no receipt for {event.order_id}")
    print("receipt for", event.order_id, flush=True)
"""

MAIN = """
import cqrs

app = cqrs.bootstrap(scan=__package__, exclude=[__name__], name="shop", database="{database}", {options})
"""


def shop(database: str, options: str = "") -> dict[str, str]:
    """Return the files of an application."""
    return {"orders.py": ORDERS, "main.py": MAIN.format(database=database, options=options)}


def run(*arguments: object, code: int = 0, **options: Any) -> Result:
    """Run a command that ends with this exit code."""
    result = CliRunner().invoke(program, [*map(str, arguments)], prog_name="cqrs", **options)
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exc_info}"
    return result


def run_json(*arguments: object, code: int = 0) -> Any:
    """Run a command with `--json`, and return what it prints."""
    return json.loads(run(*arguments, "--json", code=code).stdout)
