"""The demo around the shop: it kills the worker on the way and counts, in the database itself, what became of it."""
