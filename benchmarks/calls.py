"""Counts the function calls of one awaited call, as `sys.setprofile` sees them."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Calls:
    """The functions that were entered, in order: Python's own, and those written in C."""

    python: list[str]
    c: list[str]

    @property
    def together(self) -> int:
        return len(self.python) + len(self.c)


async def count(call: Callable[[Any], Awaitable[Any]], argument: Any) -> Calls:
    """Return what one call enters once it is warm; its own entry counts, so a direct call is one."""
    for _ in range(100):
        await call(argument)
    seen = Calls([], [])

    def note(frame, event, what):
        if event == "call":
            seen.python.append(frame.f_code.co_qualname)
        elif event == "c_call":
            seen.c.append(getattr(what, "__qualname__", repr(what)))

    sys.setprofile(note)
    await call(argument)
    sys.setprofile(None)
    seen.c.pop()  # the call that ends the profile
    return seen
