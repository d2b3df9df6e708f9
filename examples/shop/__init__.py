"""An order application: orders, stock and receipts.

The shop itself is a page each: `messages` says what can be asked and what happens, `orders`, `stock` and `receipts`
act on it, `tables` is what is kept, `container` and `app` put it together, and `worker` runs it. `demo` is no part of
the shop: it starts the worker, kills it on the way, and counts what is left.
"""
