"""What everything is measured against: the mediator that one would write by hand."""

from __future__ import annotations


class DictMediator:
    """A `dict[type, handler]`: no check, no scope, no transaction. Each `send` does no more than its kind needs."""

    def __init__(self):
        self.handlers, self.held, self.listeners = {}, {}, {}

    async def send(self, message):
        return await self.handlers[type(message)](message)

    async def send_holding(self, message):
        kind = type(message)
        return await self.handlers[kind](message, *self.held[kind])

    async def send_emitting(self, message):
        events = []
        reply = await self.handlers[type(message)](message, events.append)
        for event in events:
            for listener in self.listeners[type(event)]:
                await listener(event)
        return reply
