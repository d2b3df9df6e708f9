"""Which handlers saved rows and received messages may be for, and what becomes of those whose delivery fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cqrs.codec import BROKER
from cqrs.registry import Kind
from cqrs.retry import OnDead, Policies, policy_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cqrs.plan import Plan
    from cqrs.signature import Handler


@dataclass(frozen=True, slots=True)
class Deliveries:
    """An application's handlers in the background, with the policies that hold where a handler has none of its own."""

    by_name: Mapping[tuple[str, str], tuple[Handler, Plan]]
    """By the handler's name and the event's."""
    by_topic: Mapping[str, Mapping[str, Plan]]
    """The published events that are handled here, by their topic and name."""
    handlers: Mapping[str, Handler]
    retry: Policies
    on_dead: OnDead

    @property
    def skipping(self) -> list[str]:
        """The destinations whose dead rows hold back nothing."""
        found = [name for name in self.handlers if not self._blocks(name)]
        return [*found, BROKER] if self.on_dead == "skip" else found

    def end(self, destination: str, error: BaseException, failures: int) -> tuple[float | None, bool]:
        """Return the seconds to wait after so many failures (None: dead), and whether a dead row blocks its key."""
        handler = self.handlers.get(destination)
        own = handler.retry if handler is not None and handler.retry is not None else {}
        return policy_for(error, own, self.retry).wait(failures), self._blocks(destination)

    def _blocks(self, destination: str) -> bool:
        handler = self.handlers.get(destination)
        return ((handler.on_dead if handler is not None else None) or self.on_dead) == "block"


def deliveries_of(plans: Iterable[Plan], *, retry: Policies, on_dead: OnDead) -> Deliveries:
    """Return the deliveries of these plans: to durable handlers, and to those of published events."""
    events = [plan for plan in plans if plan.kind is Kind.EVENT]
    by_name = {
        (handler.name, plan.name): (handler, plan)
        for plan in events
        for handler in plan.handlers
        if handler.durable or plan.publishable
    }
    handlers = {name: handler for (name, _), (handler, _) in by_name.items()}
    return Deliveries(by_name, consumed(events), handlers, retry, on_dead)


def consumed(plans: Iterable[Plan]) -> dict[str, dict[str, Plan]]:
    """Return those of published events with handlers, by their topic and name."""
    found: dict[str, dict[str, Plan]] = {}
    for plan in plans:
        if plan.kind is Kind.EVENT and plan.topic and plan.handlers:
            found.setdefault(plan.topic, {})[plan.name] = plan
    return found
