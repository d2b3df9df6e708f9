"""A customer of the service: places some orders, and waits until each has its invoice."""

import asyncio

from examples.two_services.orders.app import InvoicesOf, PlaceOrder, app

BASKET = {"tea": 480, "milk": 120, "sugar": 210, "scones": 350, "jam": 290}
PATIENCE = 60.0
LOOK = 0.1


async def main() -> None:
    async with app, app.consuming(), asyncio.timeout(PATIENCE):
        placed = {await app.send(PlaceOrder(item=item, cents=cents)): item for item, cents in BASKET.items()}
        while None in (invoices := await app.send(InvoicesOf(orders=list(placed)))).values():  # noqa: ASYNC110 - another service tells nobody here
            await asyncio.sleep(LOOK)
    for order, number in sorted(invoices.items(), key=lambda found: found[1] or 0):
        print(f"invoice {number} for {placed[order]}")


if __name__ == "__main__":
    asyncio.run(main())
