"""The outbox and the inbox: what is saved with a command, and how it is delivered once in effect."""

from __future__ import annotations

from cqrs.outbox.desk import DeadLetter, Outbox
from cqrs.outbox.publisher import Failed, Fate, Naming, Outcome, Pingable, Publisher, Unavailable
from cqrs.outbox.rows import Counts
from cqrs.outbox.survey import Backlog, Saved

__all__ = [
    "Backlog",
    "Counts",
    "DeadLetter",
    "Failed",
    "Fate",
    "Naming",
    "Outbox",
    "Outcome",
    "Pingable",
    "Publisher",
    "Saved",
    "Unavailable",
]
