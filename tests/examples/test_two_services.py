"""Orders and billing: each by itself in a harness, and both over a real broker."""

import asyncio
import os
import re
import signal
import sys

import pytest

from cqrs.testing import harness
from examples.two_services.billing import app as billing
from examples.two_services.orders import app as orders
from tests.examples.shop import ROOT
from tests.servers import server

PATIENCE = 120.0


async def test_billing_issues_one_invoice_an_order():
    async with harness(billing.app, tables=billing.Base.metadata) as t:
        for _ in range(2):
            await t.receive(billing.OrderPlaced(order_id="1", cents=480), event_id="7f3c")
        assert t.assert_published(billing.InvoiceIssued, order_id="1", number=1).topic == "two_services.invoices"
        assert len(t.published) == 1
        t.assert_no_failures()


async def test_an_order_learns_its_invoice():
    async with harness(orders.app, tables=orders.Base.metadata) as t:
        order = await t.send(orders.PlaceOrder(item="tea", cents=480))
        await t.receive(orders.InvoiceIssued(order_id=order, number=7))
        assert await t.send(orders.InvoicesOf(orders=[order])) == {order: 7}


async def test_what_one_publishes_is_what_the_other_reads():
    async with harness(orders.app, tables=orders.Base.metadata) as t:
        await t.send(orders.PlaceOrder(item="tea", cents=480))
        [placed] = t.published
    heard = billing.app.plan_of(billing.OrderPlaced)
    assert (placed.topic, placed.type) == (heard.topic, heard.name)
    assert heard.codec.decode(placed.body).cents == 480


@pytest.mark.services
@pytest.mark.parametrize("variable", ["KAFKA_URL", "RABBITMQ_URL"])
async def test_every_order_gets_its_invoice_over_a_broker(variable: str):
    environment = {**os.environ, "BROKER_URL": server(variable), "PYTHONWARNINGS": "error"}
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.two_services"),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            said, log = await running.communicate()
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGINT)  # it ends its own processes then
            await running.wait()
    assert running.returncode == 0, log.decode()
    items = re.findall(r"^invoice \d+ for (\w+)$", said.decode(), re.MULTILINE)
    assert sorted(items) == ["jam", "milk", "scones", "sugar", "tea"]
